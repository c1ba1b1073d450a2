"""Dropout masks on values: Philox-4x32-10 of a counter, compared with integer thresholds.

A mask is a function of (seed, counter) alone, never of the tiling, so both directions and every
form of a kernel draw the same bits, and so does `ulmfit_fast/rng.py`. The counter table is in
README.md beside this file.
"""

import triton
import triton.language as tl

__all__ = ["gate_scales", "interleave_columns", "weight_scales"]

KIND_WEIGHT: tl.constexpr = tl.constexpr(0)
KIND_GATE: tl.constexpr = tl.constexpr(1)


@triton.jit
def _scale_of(word, threshold, scale):
    """Scale where the word is at or above the threshold, an unsigned number, and 0 below it."""
    bound = tl.to_tensor(threshold).to(tl.uint32, bitcast=True)
    return tl.where(word.to(tl.uint32, bitcast=True) >= bound, scale, 0.0)


@triton.jit
def _four_scales(seed, word_0, word_1, word_2, KIND: tl.constexpr, drop):
    """One Philox call a counter; its four words are the four gates i, f, g, o.

    drop holds four thresholds, floor(p 2^32) as int32 bits, and then four scales 1/(1-p).
    """
    zero = word_0 * 0
    r_i, r_f, r_g, r_o = tl.philox(seed, word_0, zero + word_1, zero + word_2, zero + KIND)
    return (
        _scale_of(r_i, drop[0], drop[4]),
        _scale_of(r_f, drop[1], drop[5]),
        _scale_of(r_g, drop[2], drop[6]),
        _scale_of(r_o, drop[3], drop[7]),
    )


@triton.jit
def weight_scales(seed, unit, k, mask_stream, drop, HIDDEN: tl.constexpr):
    """Mask of the recurrent weights of (unit, k): a tile a gate, each value 0 or 1/(1-p)."""
    return _four_scales(seed, unit * HIDDEN + k, 0, mask_stream, KIND_WEIGHT, drop)


@triton.jit
def gate_scales(seed, row, unit, t, mask_stream, drop, HIDDEN: tl.constexpr):
    """Mask of the activated gates of (row, unit) at time t: a tile a gate."""
    return _four_scales(seed, row * HIDDEN + unit, t, mask_stream, KIND_GATE, drop)


@triton.jit
def interleave_columns(i, f, g, o, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Four (ROWS, UNITS) tiles as one (ROWS, 4 UNITS), the gates of a unit side by side."""
    return tl.reshape(tl.join(tl.join(i, g), tl.join(f, o)), (ROWS, 4 * UNITS))
