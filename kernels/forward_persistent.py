"""The recurrence forwards, one launch for all steps; buffers as in forward_stepwise.py."""

import torch
import triton
import triton.language as tl

from ulmfit_fast.kernels.grid_barrier import COUNTER_STRIDE, MAX_SPINS, arrive, make_counters, wait
from ulmfit_fast.kernels.launch import cdiv, interpreted, launch, watch
from ulmfit_fast.kernels.lstm_step import finish_step
from ulmfit_fast.kernels.philox import gate_bits
from ulmfit_fast.kernels.weight_slice import load_tiles, mask_slice, multiply

__all__ = ["run"]


@triton.jit
def _sum_columns(block, WIDTH: tl.constexpr, K_PARTS: tl.constexpr):
    """Columns of K_PARTS neighbouring blocks, each WIDTH of them, the block's own first."""
    local = tl.arange(0, WIDTH * K_PARTS)
    owner = block // K_PARTS * K_PARTS + (block + local // WIDTH) % K_PARTS  # (WIDTH K_PARTS,)
    return owner * WIDTH + local % WIDTH


@triton.jit
def _parts(acc, ROWS: tl.constexpr, WIDTH: tl.constexpr, K_PARTS: tl.constexpr):
    """The K_PARTS tiles (ROWS, WIDTH) that lie side by side in acc."""
    if K_PARTS == 1:
        return (acc,)
    else:
        halves = tl.reshape(acc, (ROWS, 2, WIDTH * K_PARTS // 2))  # (ROWS, 2, half)
        first, second = tl.split(tl.permute(halves, (0, 2, 1)))  # each (ROWS, half)
        return _parts(first, ROWS, WIDTH, K_PARTS // 2) + _parts(second, ROWS, WIDTH, K_PARTS // 2)


@triton.jit(
    do_not_specialize=["steps", "batch_size", "first_row", "mask_stream"],
    do_not_specialize_on_alignment=["seed"],
)
def forward_kernel(
    gates,
    weight,
    slices,
    exchange,
    states,
    cells,
    partial_sums,
    lengths,
    seed,
    counters,
    error,
    steps,
    batch_size,
    first_row,
    mask_stream,
    weight_drop,
    gate_drop,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    K_PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    RESIDENT: tl.constexpr,
    WEIGHT_DROP: tl.constexpr,
    GATE_MASK: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    KEEP_GATES: tl.constexpr,
    KEEP_CELLS: tl.constexpr,
    PRECISION: tl.constexpr,
    SPINS: tl.constexpr,
    INLINE_POLL: tl.constexpr,
):
    """All steps in one launch; block (p, q) has units p UNITS.. of rows q ROWS...

    Weight is in PyTorch's order; slices has room for each block's own. Step s reads h from one
    half of exchange, (2, rows, columns) padded to whole tiles, and writes to the other.

    With K_PARTS above 1 the weight is split both ways: K_PARTS neighbouring blocks multiply one
    range of h each for the units of all of them, and exchange their sums behind a barrier.
    """
    DEPTH: tl.constexpr = (HIDDEN + K_PARTS * BLOCK_K - 1) // (K_PARTS * BLOCK_K) * BLOCK_K
    WIDTH: tl.constexpr = 4 * UNITS * K_PARTS
    blocks = tl.num_programs(0)
    # Rows do not depend on one another: each group of rows has counters of its own.
    if K_PARTS == 1:
        counter = counters + tl.program_id(1) * COUNTER_STRIDE
    else:
        counter = counters + tl.program_id(1) * (1 + blocks // K_PARTS) * COUNTER_STRIDE
        sums_done = counter + (1 + tl.program_id(0) // K_PARTS) * COUNTER_STRIDE
    columns = tl.program_id(0) * (4 * UNITS) + tl.arange(0, 4 * UNITS)  # (4 UNITS,)
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)  # (UNITS,)
    rows = first_row + tl.program_id(1) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    k_first = tl.program_id(0) % K_PARTS * DEPTH
    ks = tl.arange(0, BLOCK_K)

    own = slices + (tl.program_id(1) * blocks + tl.program_id(0)).to(tl.int64) * (WIDTH * DEPTH)
    own_rows = tl.arange(0, WIDTH) * DEPTH  # (WIDTH,)
    # What the block multiplies by: its own columns, and then those of its neighbours.
    mask_slice(
        weight,
        own + own_rows[:, None] + ks[None, :],
        _sum_columns(tl.program_id(0), UNITS, K_PARTS),
        k_first + ks,
        seed,
        mask_stream,
        weight_drop,
        0,
        BLOCK_K,
        HIDDEN,
        DEPTH,
        BLOCK_K,
        WEIGHT_DROP,
    )

    tiles = load_tiles(own + own_rows[None, :] + ks[:, None], DEPTH, BLOCK_K, RESIDENT)

    row_in = rows[:, None] < batch_size
    unit_in = row_in & (units[None, :] < HIDDEN)
    gate_in = row_in & (columns[None, :] < 4 * HIDDEN)
    plane = (batch_size * HIDDEN).to(tl.int64)
    exchange_plane = tl.cdiv(batch_size, ROWS) * (ROWS * K_PARTS * DEPTH)
    gate_at = rows[:, None] * (4 * HIDDEN) + columns[None, :]  # (ROWS, 4 UNITS)
    unit_at = rows[:, None] * HIDDEN + units[None, :]  # (ROWS, UNITS)
    h_rows = exchange + rows[:, None] * (K_PARTS * DEPTH)  # (ROWS, 1)
    first_slot = steps if REVERSE else 0
    first = steps - 1 if REVERSE else 0
    c = tl.load(cells + first_slot * plane * KEEP_CELLS + unit_at, mask=unit_in, other=0.0)
    if HAS_LENGTHS:
        length = tl.load(lengths + rows, mask=rows < batch_size, other=0)
        h_first = tl.load(states + first_slot * plane + unit_at, mask=unit_in, other=0.0)
    next_gates = tl.load(gates + first * 4 * plane + gate_at, mask=gate_in, other=0.0)
    bits = gate_bits(tl.load(seed), rows, units, first, mask_stream, gate_drop, HIDDEN, GATE_MASK)
    alive = 1
    poison = 0.0
    for s in range(steps):
        # Always 0, which no compiler can tell: what follows from it is computed anew at each step.
        # Else it would sit in registers that the products need, and they would spill.
        zero = (s + first_row) >> 31
        columns = (tl.program_id(0) + zero) * (4 * UNITS) + tl.arange(0, 4 * UNITS)
        units = (tl.program_id(0) + zero) * UNITS + tl.arange(0, UNITS)
        rows = first_row + (tl.program_id(1) + zero) * ROWS + tl.arange(0, ROWS)
        row_in = rows[:, None] < batch_size
        unit_in = row_in & (units[None, :] < HIDDEN)
        gate_in = row_in & (columns[None, :] < 4 * HIDDEN)
        gate_at = rows[:, None] * (4 * HIDDEN) + columns[None, :]  # (ROWS, 4 UNITS)
        # In twos: wider than what a thread has of the product, a load or store changes layouts.
        unit_at = rows[:, None] * HIDDEN + units[None, :] + 2 * zero
        h_rows = exchange + rows[:, None] * (K_PARTS * DEPTH)  # (ROWS, 1)
        t = steps - 1 - s if REVERSE else s
        slot_out = t if REVERSE else t + 1
        if K_PARTS == 1:
            acc = next_gates.to(tl.float32) + poison  # (ROWS, 4 UNITS)
        else:
            acc = tl.zeros((ROWS, WIDTH), tl.float32) + poison  # (ROWS, WIDTH)
        acc = multiply(
            acc,
            h_rows + s % 2 * exchange_plane + k_first + ks[None, :],
            own + zero * BLOCK_K + own_rows[None, :] + ks[:, None],
            tiles,
            zero,
            DEPTH,
            BLOCK_K,
            STAGES,
            RESIDENT,
            PRECISION,
        )
        if K_PARTS > 1:
            sums = _parts(acc, ROWS, 4 * UNITS, K_PARTS)  # each (ROWS, 4 UNITS)
            for j in tl.static_range(1, K_PARTS):
                to = tl.program_id(0) // K_PARTS * K_PARTS + (tl.program_id(0) + j) % K_PARTS
                to_columns = to * (4 * UNITS) + tl.arange(0, 4 * UNITS)
                sums_at = rows[:, None] * (4 * HIDDEN) + to_columns[None, :]
                sums_in = row_in & (to_columns < 4 * HIDDEN)[None, :]
                tl.store(partial_sums + (j - 1) * 4 * plane + sums_at, sums[j], mask=sums_in)
            arrive(sums_done)
            acc = sums[0] + next_gates.to(tl.float32)  # (ROWS, 4 UNITS)
            target = (s + 1) * K_PARTS
            alive = wait(sums_done, error, target, alive, SPINS, INLINE_POLL)
            acc += tl.where(alive > 0, 0.0, float("nan"))
            # Always in this order: the sum is the same in every run.
            for j in tl.static_range(1, K_PARTS):
                acc += tl.load(
                    partial_sums + (j - 1) * 4 * plane + gate_at,
                    mask=gate_in,
                    other=0.0,
                    cache_modifier=".cg",
                )
        if GATE_MASK != 0:
            # With c's bits, all masked off, layouts are converted before there are four scales.
            bits = bits ^ (c.to(tl.int32, bitcast=True) & zero)
        act, h, c_new = finish_step(
            acc, c, tl.arange(0, 4 * UNITS), bits, gate_drop, ROWS, UNITS, GATE_MASK
        )  # (ROWS, 4 UNITS), (ROWS, UNITS), (ROWS, UNITS)
        h = h.to(states.dtype.element_ty)  # (ROWS, UNITS)
        h_next = h
        if HAS_LENGTHS:
            active = (t < length)[:, None]  # (ROWS, 1)
            c_new = tl.where(active, c_new, c)
            act = tl.where(active, act, 0.0)
            h = tl.where(active, h, 0.0)
            # A row's first step backwards in time is its last one: until then it waits.
            h_next = tl.where(active, h_next, h_first)
        c = c_new
        h_at = h_rows + (s + 1) % 2 * exchange_plane + units[None, :] + 2 * zero
        tl.store(h_at, h_next, mask=units[None, :] < HIDDEN)
        if s + 1 < steps:
            arrive(counter)
        # What no other block reads is stored, and the next input fetched, while the others arrive.
        tl.store(states + slot_out * plane + unit_at, h, mask=unit_in)
        tl.store(cells + slot_out * plane * KEEP_CELLS + unit_at, c, mask=unit_in)
        if KEEP_GATES:
            gates_now = gates + t * 4 * plane + gate_at
            tl.store(gates_now, act.to(gates.dtype.element_ty), mask=gate_in)
        if s + 1 < steps:
            t_next = t - 1 if REVERSE else t + 1
            gates_next = gates + t_next * 4 * plane + gate_at
            next_gates = tl.load(gates_next, mask=gate_in, other=0.0)  # (ROWS, 4 UNITS)
            if GATE_MASK == 1:
                bits = gate_bits(
                    tl.load(seed + zero),
                    rows,
                    units,
                    t_next,
                    mask_stream ^ zero,
                    gate_drop,
                    HIDDEN,
                    GATE_MASK,
                )
            alive = wait(counter, error, (s + 1) * blocks, alive, SPINS, INLINE_POLL)
            poison = tl.where(alive > 0, 0.0, float("nan"))


def run(gates, weight, states, cells, lengths, seed, call, tile):
    """Launch the whole recurrence, once for each set of rows that fits on the device.

    Args:
        gates: as in `forward_stepwise.run`; so are states, cells, lengths, seed and call.
        weight: `(4H, H)` in PyTorch's order, undropped.
        states: see gates.
        cells: see gates.
        lengths: see gates.
        seed: see gates.
        call: see gates.
        tile: `PersistentTile`.

    Raises:
        LaunchRefused: if the blocks cannot be on the device together.
    """
    steps, batch_size, width = gates.shape  # (T, B, 4H)
    hidden = width // 4
    pieces = cdiv(hidden, tile.units * tile.k_parts)
    blocks = tile.k_parts * pieces
    constants = {
        "HIDDEN": hidden,
        "ROWS": tile.rows,
        "UNITS": tile.units,
        "K_PARTS": tile.k_parts,
        "BLOCK_K": tile.block_k,
        "STAGES": tile.stages,
        "RESIDENT": tile.resident,
        "WEIGHT_DROP": call.weight_drop.active,
        "GATE_MASK": call.gate_mask,
        "REVERSE": call.reverse,
        "HAS_LENGTHS": lengths is not None,
        "KEEP_GATES": call.keep_gates,
        "KEEP_CELLS": call.keep_cells,
        "PRECISION": call.precision,
        "SPINS": MAX_SPINS,
        "INLINE_POLL": not interpreted(),
    }
    # A block has a multiprocessor to itself: registers spared for a second one would be spilled.
    options = {"num_warps": tile.warps, "num_stages": 1, "maxnreg": 255}
    options["launch_cooperative_grid"] = True
    groups = cdiv(batch_size, tile.rows)
    launches = cdiv(groups, tile.groups)
    split = tile.k_parts > 1
    counters, error = make_counters(launches, tile.groups * (1 + split * pieces), gates.device)
    shape = (tile.k_parts - 1, batch_size, width) if split else (0,)
    sums = torch.empty(shape, dtype=torch.float32, device=gates.device)  # (K_PARTS - 1, B, 4H)
    depth = tile.depth(hidden)
    slices = gates.new_empty(tile.groups, blocks, 4 * tile.units * tile.k_parts, depth)
    # Beside the H columns nobody writes, and the weight is 0: so must this be, lest it be NaN.
    exchange = gates.new_zeros(2, groups * tile.rows, tile.k_parts * depth)
    exchange[0, :batch_size, :hidden] = states[-1 if call.reverse else 0]
    buffers = (gates, weight, slices, exchange, states, cells, sums, lengths, seed)
    drops = (call.weight_drop.arguments, call.gate_drop.arguments)
    for index in range(launches):
        grid = (blocks, min(tile.groups, groups - index * tile.groups))
        first_row = index * tile.groups * tile.rows
        scalars = (steps, batch_size, first_row, call.mask_stream)
        args = (*buffers, counters[index], error, *scalars, *drops)
        launch(forward_kernel, grid, args, constants, options, begun=index > 0)
    watch(error, "the forward LSTM kernel")
