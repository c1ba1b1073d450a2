"""A block's slice of the recurrent weight: masked once a launch, then read at each step.

The slice is (WIDTH, DEPTH) in the compute dtype, K contiguous and padded with zeros to whole tiles,
in a buffer that only this block reads and writes: it lies in L2, as what follows in a step does.
"""

import triton
import triton.language as tl

from ulmfit_fast.kernels.philox import load_weights

__all__ = ["mask_slice", "multiply"]


@triton.jit
def mask_slice(
    weight,
    target,
    units,
    ks,
    seed,
    mask_stream,
    drop,
    UNITS_ON: tl.constexpr,
    KS_ON: tl.constexpr,
    HIDDEN: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WEIGHT_DROP: tl.constexpr,
):
    """Write the weights of (units, ks), four rows a unit, to the pointers of target.

    Each of DEPTH // BLOCK_K turns goes UNITS_ON units or KS_ON columns on, and BLOCK_K in target.
    """
    ROWS: tl.constexpr = 4 * units.shape[0]
    for _ in range(0, DEPTH, BLOCK_K):
        w_i, w_f, w_g, w_o = load_weights(
            weight,
            units[:, None],
            ks[None, :],
            tl.load(seed),
            mask_stream,
            drop,
            HIDDEN,
            WEIGHT_DROP,
        )
        by_unit = tl.join(tl.join(w_i, w_g), tl.join(w_f, w_o))  # (ROWS // 4, K, 2, 2)
        w = tl.reshape(tl.permute(by_unit, (0, 2, 3, 1)), (ROWS, ks.shape[0]))  # (ROWS, K)
        tl.store(target, w.to(target.dtype.element_ty))
        units += UNITS_ON
        ks += KS_ON
        target += BLOCK_K
    # What one thread wrote another one reads.
    tl.debug_barrier()


@triton.jit
def load_tiles(right, DEPTH: tl.constexpr, BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr):
    """The K-tiles that begin at the pointers right, to stay on chip, if RESIDENT."""
    tiles = ()
    if RESIDENT:
        for k in tl.static_range(0, DEPTH, BLOCK_K):
            tiles = tiles + (tl.load(right + k, cache_modifier=".cg"),)
    return tiles


@triton.jit
def multiply(
    acc,
    left,
    right,
    tiles,
    zero,
    DEPTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    RESIDENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to acc the product over DEPTH of what begins at the pointers left and right.

    A loop, not a tuple of tiles: Triton then copies STAGES - 1 turns ahead of the products. Neither
    operand is masked, and each row is a multiple of 16 bytes: only copies of 16 bytes pass L1 by,
    in which there may be what other blocks have written over since.

    RESIDENT, tiles are the right operand, and STAGES of the left one are loaded at once.
    """
    if RESIDENT:
        for first in tl.static_range(0, DEPTH, STAGES * BLOCK_K):
            parts = ()
            for k in tl.static_range(first, min(first + STAGES * BLOCK_K, DEPTH), BLOCK_K):
                parts = parts + (tl.load(left + k, cache_modifier=".cg"),)
            for k in tl.static_range(first, min(first + STAGES * BLOCK_K, DEPTH), BLOCK_K):
                a = parts[(k - first) // BLOCK_K]  # (ROWS, BLOCK_K)
                acc = tl.dot(a, tiles[k // BLOCK_K], acc, input_precision=PRECISION)
    else:
        # Were the number of turns known, the loop would be unrolled, and its addresses held.
        for k in tl.range(0, DEPTH + zero, BLOCK_K, num_stages=STAGES):
            a = tl.load(left + k, cache_modifier=".cg")  # (ROWS, BLOCK_K)
            b = tl.load(right + k, cache_modifier=".cg")  # (BLOCK_K, WIDTH)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)  # (ROWS, WIDTH)
    return acc
