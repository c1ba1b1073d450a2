"""Dropout masks on values: Philox-4x32-10 of a counter, compared with integer thresholds.

A mask is a function of (seed, counter) alone, never of the tiling, so both directions and every
form of a kernel draw the same bits, and so does `ulmfit_fast/rng.py`. The counter table is in
README.md beside this file.
"""

import triton
import triton.language as tl

__all__ = [
    "gate_bits",
    "gate_scales",
    "interleave_columns",
    "load_weights",
    "scales_of_bits",
    "threshold_bits",
    "weight_scales",
]

KIND_WEIGHT: tl.constexpr = tl.constexpr(0)
KIND_GATE: tl.constexpr = tl.constexpr(1)


@triton.jit
def threshold_bits(threshold):
    """The 32 bits of a threshold as `launch.DropArguments` passes it."""
    # Below 2^32, as that of 0 is, the interpreter holds it in 32 bits until something is done.
    return ((threshold | 0) >> 32).to(tl.int32).to(tl.uint32, bitcast=True)


@triton.jit
def _scale_of(word, threshold, scale):
    """Scale where the word is at or above the threshold, and 0 below it."""
    return tl.where(word.to(tl.uint32, bitcast=True) >= threshold_bits(threshold), scale, 0.0)


@triton.jit
def _four_scales(seed, word_0, word_1, word_2, KIND: tl.constexpr, drop):
    """One Philox call a counter; its four words are the four gates i, f, g, o.

    drop holds four thresholds and then four scales, see `launch.DropArguments`.
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
def _masked(value, scale):
    """What is dropped is 0, were it infinite before; in the dtype of the value."""
    return tl.where(scale > 0.0, value.to(tl.float32) * scale, 0.0).to(value.dtype)


@triton.jit
def load_weights(
    weight, unit, k, seed, mask_stream, drop, HIDDEN: tl.constexpr, WEIGHT_DROP: tl.constexpr
):
    """Load the recurrent weights of (unit, k) and mask them: a tile a gate.

    Gate by gate the masked values are rounded at once, and few registers hold a tile.
    """
    inside = (unit < HIDDEN) & (k < HIDDEN)
    at = weight + unit * HIDDEN + k  # (UNITS, K)
    w_i = tl.load(at, mask=inside, other=0.0)
    w_f = tl.load(at + HIDDEN * HIDDEN, mask=inside, other=0.0)
    w_g = tl.load(at + 2 * HIDDEN * HIDDEN, mask=inside, other=0.0)
    w_o = tl.load(at + 3 * HIDDEN * HIDDEN, mask=inside, other=0.0)
    if WEIGHT_DROP:
        z_i, z_f, z_g, z_o = weight_scales(seed, unit, k, mask_stream, drop, HIDDEN)
        w_i, w_f = _masked(w_i, z_i), _masked(w_f, z_f)
        w_g, w_o = _masked(w_g, z_g), _masked(w_o, z_o)
    return w_i, w_f, w_g, w_o


@triton.jit
def gate_scales(seed, row, unit, t, mask_stream, drop, HIDDEN: tl.constexpr):
    """Mask of the activated gates of (row, unit) at time t: a tile a gate."""
    return _four_scales(seed, row * HIDDEN + unit, t, mask_stream, KIND_GATE, drop)


@triton.jit
def gate_bits(
    seed,
    rows,
    units,
    t,
    mask_stream,
    gate_drop,
    HIDDEN: tl.constexpr,
    GATE_MASK: tl.constexpr,
):
    """What the masks of the gates keep, (ROWS, UNITS), one bit a gate: less to hold than scales.

    GATE_MASK is 0 for none, 1 for a new mask each step, 2 for one mask for the sequence.
    """
    if GATE_MASK == 0:
        return 0
    else:
        z_i, z_f, z_g, z_o = gate_scales(
            seed,
            rows[:, None],
            units[None, :],
            t if GATE_MASK == 1 else 0,
            mask_stream,
            gate_drop,
            HIDDEN,
        )
        i_or_f = (z_i > 0.0).to(tl.int32) | ((z_f > 0.0).to(tl.int32) << 1)
        return i_or_f | ((z_g > 0.0).to(tl.int32) << 2) | ((z_o > 0.0).to(tl.int32) << 3)


@triton.jit
def scales_of_bits(bits, gate_drop):
    """What `gate_bits` keeps as scales of i, f, g and o."""
    z_i = tl.where((bits & 1) != 0, gate_drop[4], 0.0)
    z_f = tl.where((bits & 2) != 0, gate_drop[5], 0.0)
    z_g = tl.where((bits & 4) != 0, gate_drop[6], 0.0)
    z_o = tl.where((bits & 8) != 0, gate_drop[7], 0.0)
    return z_i, z_f, z_g, z_o


@triton.jit
def interleave_columns(i, f, g, o, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Four (ROWS, UNITS) tiles as one (ROWS, 4 UNITS), the gates of a unit side by side."""
    return tl.reshape(tl.join(tl.join(i, g), tl.join(f, o)), (ROWS, 4 * UNITS))  # (ROWS, 4 UNITS)
