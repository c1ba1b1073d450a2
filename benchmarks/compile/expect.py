"""What a compiled variant must show, and what is wrong with one that does not."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.compile.inspect import Found, work
from benchmarks.compile.variants import DEVICES, DTYPES, Variant

TENSOR_MEMORY = 512  # columns


class Expected(NamedTuple):
    """What a compiled variant must show; None where nothing can be said.

    Attributes:
        product: rows, columns and depth of the matrix product that stands in the code.
        resident: tiles of the weight in shared memory before the time loop.
        past_l1: bytes a thread loads past L1 in one step, copies to shared memory apart.
        copied: bytes a thread copies there at each turn of the product's loop.
        turns: of that loop in one step.
    """

    product: tuple[int, int, int] | None = None
    resident: int | None = None
    past_l1: int | None = None
    copied: int | None = None
    turns: int = 0


def expect(variant: Variant, tile: Any) -> Expected:
    """Return what the tiles promise of the compiled code."""
    if tile is None:
        return Expected()
    size = DTYPES[variant.dtype].itemsize
    if variant.form == "stepwise":
        columns = (4 if variant.kernel == "forward" else 1) * tile.units
        return Expected((tile.rows, columns, tile.block_k))
    threads = 32 * tile.warps
    if variant.kernel == "forward":
        columns = 4 * tile.units * tile.k_parts
        # What the neighbours have summed.
        beside = 4 * tile.units * (tile.k_parts - 1)
    else:
        columns = tile.columns
        beside = columns
    depth = tile.depth(variant.hidden)
    turns = depth // tile.block_k
    past_l1 = tile.rows * beside * 4 // threads
    if tile.resident:
        past_l1 += (tile.rows + columns) * depth * size // threads
        return Expected((tile.rows, columns, depth), turns, past_l1, 0)
    copied = (tile.rows + columns) * tile.block_k * size // threads
    return Expected((tile.rows, columns, tile.block_k), 0, past_l1, copied, turns)


def faults(variant: Variant, expected: Expected, found: Found, default: bool, ratio) -> list[str]:
    """Return what is wrong with a compiled variant, in words."""
    limit = DEVICES[variant.arch].shared_memory
    wrong = []
    if found.shared > limit:
        wrong.append(f"{found.shared} bytes of shared memory, the device has {limit}")
    if found.tensor_memory > TENSOR_MEMORY:
        wrong.append(f"{found.tensor_memory} columns of tensor memory, there are {TENSOR_MEMORY}")
    if default and (found.spilled or found.local_accesses):
        wrong.append(f"spills {found.spilled} bytes in {found.local_accesses} instructions")
    if expected.product and not found.products:
        wrong.append("no matrix instructions")
    elif ratio is not None and ratio != (round(ratio) if variant.form == "stepwise" else 1):
        # A stepwise loop may stand in the code more than once, unrolled or peeled.
        wrong.append(f"multiplies {ratio:.2f} times what the shapes need: {found.products}")
    counted = {"resident": found.resident, "past_l1": found.past_l1, "copied": found.loop.copied}
    for name, got in counted.items():
        want = getattr(expected, name)
        if want is not None and want != got:
            wrong.append(f"{name} is {got}, not {want}")
    if variant.persistent and found.loop.through_l1:
        wrong.append(f"{found.loop.through_l1} copies of what other blocks write go through L1")
    return wrong


def loaded_in_a_step(variant: Variant, expected: Expected, found: Found, warps: int) -> int | None:
    """Return the bytes that a block asks of global memory in a time step, or None.

    As the instructions stand: a load that a mask turns off is counted, and one that L1 serves.
    """
    loop, threads = found.loop, 32 * warps
    if DEVICES[variant.arch].kind != "cuda" or variant.form == "small":
        return None
    if variant.persistent or not loop.instructions:
        copied = expected.turns * loop.copied
        return threads * (loop.loaded + copied or loop.loaded_outside)
    # A turn of the stepwise loop is some tiles of the product; all of them are a step.
    assert expected.product is not None
    block_k = expected.product[2]
    size = DTYPES[variant.dtype].itemsize
    depth = variant.hidden * (1 if variant.kernel == "forward" else 4)
    tiles = -(-depth // block_k)
    done = work(loop.products, warps, expected.product)
    if done is None:
        # An instruction of tcgen05 covers all rows and columns, 32 bytes deep.
        done = sum(loop.products.values()) * (32 // size) / block_k
    return round(threads * (loop.loaded * tiles / done + loop.loaded_outside))
