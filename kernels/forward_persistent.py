"""The recurrence forwards, one launch for all steps; buffers as in forward_stepwise.py."""

import torch
import triton
import triton.language as tl

from ulmfit_fast.kernels.grid_barrier import COUNTER_STRIDE, MAX_SPINS, arrive, wait
from ulmfit_fast.kernels.launch import cdiv, interpreted, launch, watch
from ulmfit_fast.kernels.lstm_step import finish_step
from ulmfit_fast.kernels.philox import gate_bits, interleave_columns, weight_scales

__all__ = ["run"]


@triton.jit
def _sum_columns(block, WIDTH: tl.constexpr, K_PARTS: tl.constexpr):
    """Columns of K_PARTS neighbouring blocks, each WIDTH of them, the block's own first."""
    local = tl.arange(0, WIDTH * K_PARTS)
    owner = block // K_PARTS * K_PARTS + (block + local // WIDTH) % K_PARTS
    return owner * WIDTH + local % WIDTH


@triton.jit
def _parts(acc, ROWS: tl.constexpr, WIDTH: tl.constexpr, K_PARTS: tl.constexpr):
    """The K_PARTS tiles (ROWS, WIDTH) that lie side by side in acc."""
    if K_PARTS == 1:
        return (acc,)
    else:
        halves = tl.reshape(acc, (ROWS, 2, WIDTH * K_PARTS // 2))
        first, second = tl.split(tl.permute(halves, (0, 2, 1)))
        return _parts(first, ROWS, WIDTH, K_PARTS // 2) + _parts(second, ROWS, WIDTH, K_PARTS // 2)


@triton.jit(
    do_not_specialize=[
        "start",
        "stop",
        "steps",
        "batch_size",
        "first_row",
        "mask_stream",
    ],
    do_not_specialize_on_alignment=["seed"],
)
def forward_kernel(
    gates,
    weight,
    streamed,
    states,
    cells,
    partial_sums,
    lengths,
    seed,
    counters,
    error,
    start,
    stop,
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
    RESIDENT: tl.constexpr,
    IN_FLIGHT: tl.constexpr,
    WEIGHT_DROP: tl.constexpr,
    GATE_MASK: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    KEEP_GATES: tl.constexpr,
    KEEP_CELLS: tl.constexpr,
    FULL_TILES: tl.constexpr,
    PRECISION: tl.constexpr,
    SPINS: tl.constexpr,
    INLINE_POLL: tl.constexpr,
):
    """Steps start to stop in one launch; block (p, q) has units p UNITS.. of rows q ROWS...

    The first RESIDENT K-tiles of the block's weights are loaded once from weight, (4H, H) in
    PyTorch's order, and masked as they are; the others stream at each step from streamed, dropped
    already and interleaved. IN_FLIGHT tiles of h are loaded ahead of their products.

    With K_PARTS above 1 the weight is split both ways: K_PARTS neighbouring blocks multiply one
    range of h each for the units of all of them, exchange their sums, and meet for it.
    """
    DEPTH: tl.constexpr = (HIDDEN + K_PARTS * BLOCK_K - 1) // (K_PARTS * BLOCK_K) * BLOCK_K
    K_TILES: tl.constexpr = DEPTH // BLOCK_K
    blocks = tl.num_programs(0)
    # Rows do not depend on one another: each group of rows has counters of its own.
    if K_PARTS == 1:
        counter = counters + tl.program_id(1) * COUNTER_STRIDE
    else:
        counter = counters + tl.program_id(1) * (1 + blocks // K_PARTS) * COUNTER_STRIDE
        sums_done = counter + (1 + tl.program_id(0) // K_PARTS) * COUNTER_STRIDE
    local = tl.arange(0, 4 * UNITS)
    columns = tl.program_id(0) * (4 * UNITS) + local
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    rows = first_row + tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    ks = tl.arange(0, BLOCK_K)
    column_in = columns[None, :] < 4 * HIDDEN
    # What the block multiplies by: its own columns, and then those of its neighbours.
    if K_PARTS == 1:
        sum_columns, sum_units, sum_column_in, k_first = columns, units, column_in, 0
    else:
        sum_columns = _sum_columns(tl.program_id(0), 4 * UNITS, K_PARTS)
        sum_units = _sum_columns(tl.program_id(0), UNITS, K_PARTS)
        sum_column_in = sum_columns[None, :] < 4 * HIDDEN
        k_first = tl.program_id(0) % K_PARTS * DEPTH

    tiles = ()
    for tile in tl.static_range(RESIDENT):
        k = k_first + tile * BLOCK_K + ks
        source_row = (sum_columns % 4) * HIDDEN + sum_columns // 4
        w = tl.load(
            weight + source_row[None, :] * HIDDEN + k[:, None],
            mask=sum_column_in & (k[:, None] < HIDDEN),
            other=0.0,
        )
        if WEIGHT_DROP:
            # Loaded after the barrier of the tile before, lest all tiles' masks be drawn at once:
            # they would not fit into the registers.
            z_i, z_f, z_g, z_o = weight_scales(
                tl.load(seed), sum_units[None, :], k[:, None], mask_stream, weight_drop, HIDDEN
            )
            scales = interleave_columns(z_i, z_f, z_g, z_o, BLOCK_K, UNITS * K_PARTS)
            w = tl.where(scales > 0.0, w.to(tl.float32) * scales, 0.0)
        tiles = tiles + (w.to(states.dtype.element_ty),)
        tl.debug_barrier()

    row_in = rows[:, None] < batch_size
    unit_in = row_in & (units[None, :] < HIDDEN)
    gate_in = row_in & column_in
    if FULL_TILES:
        # The masks fold away, and their registers with them.
        row_in = tl.full((ROWS, 1), 1, tl.int1)
        unit_in = tl.full((ROWS, UNITS), 1, tl.int1)
        gate_in = tl.full((ROWS, 4 * UNITS), 1, tl.int1)
    plane = (batch_size * HIDDEN).to(tl.int64)
    gate_at = rows[:, None] * (4 * HIDDEN) + columns[None, :]
    unit_at = rows[:, None] * HIDDEN + units[None, :]
    first = steps - 1 - start if REVERSE else start
    next_gates = tl.load(gates + first * 4 * plane + gate_at, mask=gate_in, other=0.0)
    bits = gate_bits(tl.load(seed), rows, units, first, mask_stream, gate_drop, HIDDEN, GATE_MASK)
    alive = 1
    poison = 0.0
    for s in range(start, stop):
        # Always 0, which no compiler can tell: what follows from it is computed anew at each step.
        # Else it would sit in registers that the products need, and they would spill.
        zero = s >> 31
        columns = (tl.program_id(0) + zero) * (4 * UNITS) + local
        units = (tl.program_id(0) + zero) * UNITS + tl.arange(0, UNITS)
        rows = first_row + (tl.program_id(1) + zero) * ROWS + tl.arange(0, ROWS)
        gate_at = rows[:, None] * (4 * HIDDEN) + columns[None, :]
        unit_at = rows[:, None] * HIDDEN + units[None, :]
        if not FULL_TILES:
            row_in = rows[:, None] < batch_size
            unit_in = row_in & (units[None, :] < HIDDEN)
            gate_in = row_in & (columns[None, :] < 4 * HIDDEN)
        if REVERSE:
            t = steps - 1 - s
            slot_in = t + 1
            slot_out = t
            t_next = t - 1
        else:
            t = s
            slot_in = t
            slot_out = t + 1
            t_next = t + 1
        h_rows = states + slot_in * plane + rows[:, None] * HIDDEN
        if HAS_LENGTHS and REVERSE:
            # A row's first step is its last one in time; what follows in memory is padding.
            length = tl.load(lengths + rows, mask=rows < batch_size, other=0)
            slots = tl.where(t + 1 >= length, steps, t + 1).to(tl.int64)[:, None]
            h_rows = states + slots * plane + rows[:, None] * HIDDEN
        if K_PARTS == 1:
            h_tile = h_rows + ks[None, :]
            acc = next_gates.to(tl.float32) + poison
        else:
            sum_columns = _sum_columns(tl.program_id(0) + zero, 4 * UNITS, K_PARTS)
            sum_column_in = sum_columns[None, :] < 4 * HIDDEN
            k_first = (tl.program_id(0) + zero) % K_PARTS * DEPTH
            h_tile = h_rows + k_first + ks[None, :]
            acc = tl.zeros((ROWS, 4 * UNITS * K_PARTS), tl.float32) + poison
        for group in tl.static_range(0, K_TILES, IN_FLIGHT):
            hs = ()
            for j in tl.static_range(IN_FLIGHT):
                if group + j < K_TILES:
                    # Other blocks wrote this in the same launch: L1 must not serve it.
                    if (K_PARTS - 1) * DEPTH + (group + j + 1) * BLOCK_K <= HIDDEN:
                        h_mask = row_in
                    else:
                        h_mask = row_in & (k_first + (group + j) * BLOCK_K + ks < HIDDEN)[None, :]
                    h_part = tl.load(
                        h_tile + (group + j) * BLOCK_K,
                        mask=h_mask,
                        other=0.0,
                        cache_modifier=".cg",
                    )
                    hs = hs + (h_part,)
            for j in tl.static_range(IN_FLIGHT):
                if group + j < RESIDENT:
                    acc = tl.dot(hs[j], tiles[group + j], acc, input_precision=PRECISION)
                elif group + j < K_TILES:
                    k = k_first + (group + j) * BLOCK_K + ks
                    # Not w: after a mask that is float32, and no loop carries two types.
                    w_now = tl.load(
                        streamed + sum_columns[None, :] * HIDDEN + k[:, None],
                        mask=sum_column_in & (k[:, None] < HIDDEN),
                        other=0.0,
                    )
                    acc = tl.dot(hs[j], w_now, acc, input_precision=PRECISION)
        if K_PARTS > 1:
            sums = _parts(acc, ROWS, 4 * UNITS, K_PARTS)
            for j in tl.static_range(1, K_PARTS):
                to = tl.program_id(0) // K_PARTS * K_PARTS + (tl.program_id(0) + j) % K_PARTS
                sums_at = rows[:, None] * (4 * HIDDEN) + (to * (4 * UNITS) + local)[None, :]
                sums_in = (rows[:, None] < batch_size) & (to * (4 * UNITS) + local < 4 * HIDDEN)
                tl.store(partial_sums + (j - 1) * 4 * plane + sums_at, sums[j], mask=sums_in)
            arrive(sums_done)
            acc = sums[0] + next_gates.to(tl.float32)
            target = (s + 1 - start) * K_PARTS
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
        # A block reads back the c that it wrote rather than hold it during the products.
        c_at = cells + slot_in * plane * KEEP_CELLS + unit_at
        c_old = tl.load(c_at, mask=unit_in, other=0.0, cache_modifier=".cg")
        if GATE_MASK != 0:
            # With c's bits, all masked off, layouts are converted before there are four scales.
            bits = bits ^ (c_old.to(tl.int32, bitcast=True) & zero)
        act, h, c = finish_step(
            acc,
            c_old,
            local,
            bits,
            gate_drop,
            ROWS,
            UNITS,
            GATE_MASK,
        )
        if HAS_LENGTHS:
            # Loaded again: held, it would take registers from the products.
            length = tl.load(lengths + rows, mask=rows < batch_size, other=0)
            active = (t < length)[:, None]
            c = tl.where(active, c, c_old)
            h = tl.where(active, h, 0.0)
            act = tl.where(active, act, 0.0)
        tl.store(states + slot_out * plane + unit_at, h.to(states.dtype.element_ty), mask=unit_in)
        if s + 1 < stop:
            arrive(counter)
        # What no other block reads is stored, and the next input fetched, while the others arrive.
        tl.store(cells + slot_out * plane * KEEP_CELLS + unit_at, c, mask=unit_in)
        if KEEP_GATES:
            gates_now = gates + t * 4 * plane + gate_at
            tl.store(gates_now, act.to(gates.dtype.element_ty), mask=gate_in)
        # Were the old ones kept after the last step, they would take registers all through a step.
        next_gates = tl.zeros((ROWS, 4 * UNITS), gates.dtype.element_ty)
        if GATE_MASK == 1:
            bits = tl.zeros((ROWS, UNITS), tl.int32)
        if s + 1 < stop:
            gates_next = gates + t_next * 4 * plane + gate_at
            next_gates = tl.load(gates_next, mask=gate_in, other=0.0)
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
            target = (s + 1 - start) * blocks
            alive = wait(counter, error, target, alive, SPINS, INLINE_POLL)
            poison = tl.where(alive > 0, 0.0, float("nan"))


def run(gates, weight, dropped, states, cells, lengths, seed, call, tile):
    """Launch the whole recurrence, once for each set of rows that fits on the device.

    Args:
        gates: as in `forward_stepwise.run`; so are states, cells, lengths, seed and call.
        weight: `(4H, H)` in PyTorch's order, undropped.
        dropped: `(4H, H)` as in `forward_stepwise.run`, or None when all tiles are resident.
        states: see gates.
        cells: see gates.
        lengths: see gates.
        seed: see gates.
        call: see gates.
        tile: `PersistentTile`.

    Raises:
        LaunchRefused: if the blocks cannot be on the device together.
    """
    steps, batch_size, width = gates.shape
    hidden = width // 4
    slices = cdiv(hidden, tile.units * tile.k_parts)
    constants = {
        "HIDDEN": hidden,
        "ROWS": tile.rows,
        "UNITS": tile.units,
        "K_PARTS": tile.k_parts,
        "BLOCK_K": tile.block_k,
        "RESIDENT": tile.resident,
        "IN_FLIGHT": tile.in_flight,
        "WEIGHT_DROP": call.weight_drop.active,
        "GATE_MASK": call.gate_mask,
        "REVERSE": call.reverse,
        "HAS_LENGTHS": lengths is not None,
        "KEEP_GATES": call.keep_gates,
        "KEEP_CELLS": call.keep_cells,
        "FULL_TILES": batch_size % tile.rows == 0 and hidden % (tile.units * tile.k_parts) == 0,
        "PRECISION": call.precision,
        "SPINS": MAX_SPINS,
        "INLINE_POLL": not interpreted(),
    }
    options = {"num_warps": tile.warps, "num_stages": 1, "launch_cooperative_grid": True}
    groups = cdiv(batch_size, tile.rows)
    launches = cdiv(groups, tile.groups)
    # Zeroed for this call and never shared with another stream; a captured graph zeroes it again.
    split = tile.k_parts > 1
    words = tile.groups * (1 + split * slices) * COUNTER_STRIDE.value
    counters = torch.zeros(launches, words, dtype=torch.int32, device=gates.device)
    shape = (tile.k_parts - 1, batch_size, width) if split else (0,)
    sums = torch.empty(shape, dtype=torch.float32, device=gates.device)
    error = torch.zeros(1, dtype=torch.int32, device=gates.device)
    streamed = weight if dropped is None else dropped
    buffers = (gates, weight, streamed, states, cells, sums, lengths, seed)
    drops = (call.weight_drop.arguments, call.gate_drop.arguments)
    for index in range(launches):
        grid = (tile.k_parts * slices, min(tile.groups, groups - index * tile.groups))
        first_row = index * tile.groups * tile.rows
        scalars = (0, steps, steps, batch_size, first_row, call.mask_stream)
        args = (*buffers, counters[index], error, *scalars, *drops)
        launch(forward_kernel, grid, args, constants, options, begun=index > 0)
    watch(error, "the forward LSTM kernel")
