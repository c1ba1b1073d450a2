"""The recurrence backwards: one launch a step, or one launch for all of them.

Buffers as in lstm_forward.py; besides, grad_gates `(T, B, 4H)` interleaved, the gradients of the
pre-activations. grad_h and grad_c `(B, H)` float32 hold on entry the gradients of the last state;
grad_c holds on return the gradient of the first cell state.
"""

import torch
import triton
import triton.language as tl

from ulmfit_fast.kernels.cell import cell_backward, split_gates
from ulmfit_fast.kernels.grid_barrier import COUNTER_STRIDE, arrive, wait
from ulmfit_fast.kernels.launch import cdiv, interpreted, launch, watch
from ulmfit_fast.kernels.lstm_forward import MAX_SPINS
from ulmfit_fast.kernels.philox import (
    gate_bits,
    interleave_columns,
    load_weights,
    scales_of_bits,
)

__all__ = ["run_persistent", "run_stepwise"]


@triton.jit
def step_gradients(
    act,
    c,
    c_prev,
    grad_h,
    grad_c,
    bits,
    gate_drop,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    GATE_MASK: tl.constexpr,
):
    """Gradients of a step's pre-activations (ROWS, 4 UNITS), and of the cell state before it."""
    s_i, s_f, s_g, s_o = split_gates(act, ROWS, UNITS)
    if GATE_MASK != 0:
        z_i, z_f, z_g, z_o = scales_of_bits(bits, gate_drop)
    else:
        z_i, z_f, z_g, z_o = 1.0, 1.0, 1.0, 1.0
    g_i, g_f, g_g, g_o, grad_c = cell_backward(
        s_i, s_f, s_g, s_o, z_i, z_f, z_g, z_o, c, c_prev, grad_h, grad_c
    )
    return interleave_columns(g_i, g_f, g_g, g_o, ROWS, UNITS), grad_c


@triton.jit(do_not_specialize=["t", "s", "steps", "batch_size", "mask_stream"])
def backward_step_kernel(
    grad_output,
    gates,
    cells,
    weight,
    grad_gates,
    grad_h,
    grad_c,
    lengths,
    seed,
    t,
    s,
    steps,
    batch_size,
    mask_stream,
    gate_drop,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GATE_MASK: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Step t, the s-th from the end. Weight is dropped already, (4H, H) interleaved."""
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    columns = tl.program_id(0) * (4 * UNITS) + tl.arange(0, 4 * UNITS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    ks = tl.arange(0, BLOCK_K)
    row_in = rows[:, None] < batch_size
    unit_in = row_in & (units[None, :] < HIDDEN)
    gate_in = row_in & (columns[None, :] < 4 * HIDDEN)
    plane = (batch_size * HIDDEN).to(tl.int64)
    if REVERSE:
        t_after = t - 1
        slot = t
        slot_prev = t + 1
    else:
        t_after = t + 1
        slot = t + 1
        slot_prev = t

    # (grad_gates of the step after) times the weight; the last step has none after it.
    acc = tl.zeros((ROWS, UNITS), tl.float32)
    after_rows = grad_gates + t_after * 4 * plane + rows[:, None] * (4 * HIDDEN)
    columns_to_sum = tl.where(s > 0, 4 * HIDDEN, 0)
    for k in range(0, columns_to_sum, BLOCK_K):
        k_in = k + ks < 4 * HIDDEN
        a = tl.load(after_rows + (k + ks)[None, :], mask=row_in & k_in[None, :], other=0.0)
        w = tl.load(
            weight + (k + ks)[:, None] * HIDDEN + units[None, :],
            mask=k_in[:, None] & (units[None, :] < HIDDEN),
            other=0.0,
        )
        acc = tl.dot(a, w, acc, input_precision=PRECISION)

    unit_at = rows[:, None] * HIDDEN + units[None, :]
    carried = tl.load(grad_h + unit_at, mask=unit_in, other=0.0)
    if HAS_LENGTHS:
        length = tl.load(lengths + rows, mask=rows < batch_size, other=0)
        active = (t < length)[:, None]
        # A row that has not begun, or has ended, carries its gradient along.
        after_active = ((s > 0) & (t_after < length))[:, None]
        carried = tl.where(after_active, acc, carried)
        tl.store(grad_h + unit_at, carried, mask=unit_in)
    else:
        carried = tl.where(s > 0, acc, carried)
    gate_at = t * 4 * plane + rows[:, None] * (4 * HIDDEN) + columns[None, :]
    act = tl.load(gates + gate_at, mask=gate_in, other=0.0).to(tl.float32)
    c = tl.load(cells + slot * plane + unit_at, mask=unit_in, other=0.0)
    c_prev = tl.load(cells + slot_prev * plane + unit_at, mask=unit_in, other=0.0)
    from_output = tl.load(grad_output + t * plane + unit_at, mask=unit_in, other=0.0)
    grad_c_old = tl.load(grad_c + unit_at, mask=unit_in, other=0.0)
    grads, grad_c_new = step_gradients(
        act,
        c,
        c_prev,
        carried + from_output.to(tl.float32),
        grad_c_old,
        gate_bits(tl.load(seed), rows, units, t, mask_stream, gate_drop, HIDDEN, GATE_MASK),
        gate_drop,
        ROWS,
        UNITS,
        GATE_MASK,
    )
    if HAS_LENGTHS:
        grads = tl.where(active, grads, 0.0)
        grad_c_new = tl.where(active, grad_c_new, grad_c_old)
    tl.store(grad_gates + gate_at, grads.to(grad_gates.dtype.element_ty), mask=gate_in)
    tl.store(grad_c + unit_at, grad_c_new, mask=unit_in)


@triton.jit(do_not_specialize=["start", "stop", "steps", "batch_size", "first_row", "mask_stream"])
def backward_kernel(
    grad_output,
    gates,
    cells,
    weight,
    streamed,
    grad_gates,
    grad_h,
    grad_c,
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
    K_PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RESIDENT: tl.constexpr,
    IN_FLIGHT: tl.constexpr,
    GROUPED: tl.constexpr,
    WEIGHT_DROP: tl.constexpr,
    GATE_MASK: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    FULL_TILES: tl.constexpr,
    PRECISION: tl.constexpr,
    SPINS: tl.constexpr,
    INLINE_POLL: tl.constexpr,
):
    """Steps start to stop from the end in one launch, the weight split both ways.

    The 4H gate columns fall into K_PARTS ranges, the H columns into ranges of COLUMNS. Block (part,
    piece) keeps one piece of the weight, and owns COLUMNS / K_PARTS units of its K range for what
    is done unit by unit. Two meetings a step: gate gradients, (1), partial sums, (2).

    With GROUPED a block waits only for those that it depends on: (1) among the blocks of its K
    range, (2) among those of one column range. One range may then run a step, never two, ahead of
    another: the partial sums and the counters of (2) alternate with the step's parity.
    Row r of the gates' product is unit r // 4, gate r % 4: the weight's rows are read interleaved.
    """
    SLICES: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    PADDED: tl.constexpr = SLICES * COLUMNS
    DEPTH: tl.constexpr = 4 * PADDED // K_PARTS
    K_TILES: tl.constexpr = DEPTH // BLOCK_K
    UNITS: tl.constexpr = COLUMNS // K_PARTS
    part = tl.program_id(0) // SLICES
    piece = tl.program_id(0) % SLICES
    first_unit = part * (PADDED // K_PARTS) + piece * UNITS
    units = first_unit + tl.arange(0, UNITS)
    columns = 4 * first_unit + tl.arange(0, 4 * UNITS)
    outputs = piece * COLUMNS + tl.arange(0, COLUMNS)
    rows = first_row + tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    ks = tl.arange(0, BLOCK_K)

    counter = counters + tl.program_id(1) * (K_PARTS + 2 * SLICES) * COUNTER_STRIDE
    if GROUPED:
        gates_done = counter + part * COUNTER_STRIDE
        sums_done = counter + (K_PARTS + 2 * piece) * COUNTER_STRIDE
        own_sums = counter + (K_PARTS + 2 * (first_unit // COLUMNS)) * COUNTER_STRIDE
        gate_blocks = SLICES
        sum_blocks = K_PARTS
    else:
        gates_done = counter
        sums_done = counter + COUNTER_STRIDE
        own_sums = counter + COUNTER_STRIDE
        gate_blocks = K_PARTS * SLICES
        sum_blocks = K_PARTS * SLICES

    tiles = ()
    for tile in tl.static_range(RESIDENT):
        tile_units = (part * DEPTH + tile * BLOCK_K) // 4 + tl.arange(0, BLOCK_K // 4)
        w_i, w_f, w_g, w_o = load_weights(
            weight,
            tile_units[:, None],
            outputs[None, :],
            # Loaded after the barrier of the tile before, lest all tiles' masks be drawn at once:
            # they would not fit into the registers.
            tl.load(seed),
            mask_stream,
            weight_drop,
            HIDDEN,
            WEIGHT_DROP,
        )
        by_unit = tl.join(tl.join(w_i, w_g), tl.join(w_f, w_o))
        w = tl.reshape(tl.permute(by_unit, (0, 2, 3, 1)), (BLOCK_K, COLUMNS))
        tiles = tiles + (w.to(grad_gates.dtype.element_ty),)
        tl.debug_barrier()

    row_in = rows[:, None] < batch_size
    unit_in = row_in & (units[None, :] < HIDDEN)
    gate_in = row_in & (columns[None, :] < 4 * HIDDEN)
    if FULL_TILES:
        row_in = tl.full((ROWS, 1), 1, tl.int1)
        unit_in = tl.full((ROWS, UNITS), 1, tl.int1)
        gate_in = tl.full((ROWS, 4 * UNITS), 1, tl.int1)
    plane = (batch_size * HIDDEN).to(tl.int64)
    unit_at = rows[:, None] * HIDDEN + units[None, :]
    gate_at = rows[:, None] * (4 * HIDDEN) + columns[None, :]

    alive = 1
    poison = 0.0
    for s in range(start, stop):
        # Always 0, which no compiler can tell: what follows from it is computed anew at each step.
        # Else it would sit in registers that the products need, and they would spill.
        zero = s >> 31
        rows = first_row + (tl.program_id(1) + zero) * ROWS + tl.arange(0, ROWS)
        units = first_unit + zero * UNITS + tl.arange(0, UNITS)
        columns = 4 * (first_unit + zero * UNITS) + tl.arange(0, 4 * UNITS)
        unit_at = rows[:, None] * HIDDEN + units[None, :]
        gate_at = rows[:, None] * (4 * HIDDEN) + columns[None, :]
        k_first = (part + zero) * DEPTH
        gate_tile = rows[:, None] * (4 * HIDDEN) + k_first + ks[None, :]
        if not FULL_TILES:
            row_in = rows[:, None] < batch_size
            unit_in = row_in & (units[None, :] < HIDDEN)
            gate_in = row_in & (columns[None, :] < 4 * HIDDEN)
        if REVERSE:
            t = s
            t_after = t - 1
            slot = t
            slot_prev = t + 1
        else:
            t = steps - 1 - s
            t_after = t + 1
            slot = t + 1
            slot_prev = t
        sums_now = partial_sums + (s % 2) * K_PARTS * plane
        sums_before = partial_sums + ((s + 1) % 2) * K_PARTS * plane
        # The mask is drawn while other blocks finish.
        bits = gate_bits(
            tl.load(seed + zero),
            rows,
            units,
            t,
            mask_stream ^ zero,
            gate_drop,
            HIDDEN,
            GATE_MASK,
        )
        act = tl.load(gates + t * 4 * plane + gate_at, mask=gate_in, other=0.0)
        c = tl.load(cells + slot * plane + unit_at, mask=unit_in, other=0.0)
        c_prev = tl.load(cells + slot_prev * plane + unit_at, mask=unit_in, other=0.0)
        from_output = tl.load(grad_output + t * plane + unit_at, mask=unit_in, other=0.0)
        # A block reads back what it wrote rather than hold it during the products.
        carried_c = tl.load(grad_c + unit_at, mask=unit_in, other=0.0, cache_modifier=".cg")
        if HAS_LENGTHS or s == start:
            carried = tl.load(grad_h + unit_at, mask=unit_in, other=0.0, cache_modifier=".cg")
        else:
            carried = tl.zeros((ROWS, UNITS), tl.float32)
        if GATE_MASK != 0:
            # With c's bits, all masked off, layouts are converted before there are four scales.
            bits = bits ^ (carried_c.to(tl.int32, bitcast=True) & zero)
        if s > start:
            # The arrivals of the step before, s - 1.
            since = s - 1 - start
            target = (since // 2 + 1) * sum_blocks
            counter_2 = own_sums + (since % 2) * COUNTER_STRIDE
            alive = wait(counter_2, error, target, alive, SPINS, INLINE_POLL)
            poison = tl.where(alive > 0, 0.0, float("nan"))
            total = tl.zeros((ROWS, UNITS), tl.float32)
            # Always in this order: the sum is the same in every run.
            for j in tl.static_range(K_PARTS):
                total += tl.load(
                    sums_before + j * plane + unit_at,
                    mask=unit_in,
                    other=0.0,
                    cache_modifier=".cg",
                )
            if HAS_LENGTHS:
                # Loaded where it is used, if twice: held, it would take registers in between.
                length = tl.load(lengths + rows, mask=rows < batch_size, other=0)
                carried = tl.where((t_after < length)[:, None], total, carried)
            else:
                carried = total
        grads, new_c = step_gradients(
            act.to(tl.float32),
            c,
            c_prev,
            carried + from_output.to(tl.float32) + poison,
            carried_c,
            bits,
            gate_drop,
            ROWS,
            UNITS,
            GATE_MASK,
        )
        if HAS_LENGTHS:
            length = tl.load(lengths + rows, mask=rows < batch_size, other=0)
            active = (t < length)[:, None]
            grads = tl.where(active, grads, 0.0)
            new_c = tl.where(active, new_c, carried_c)
        grads_now = grad_gates + t * 4 * plane
        tl.store(grads_now + gate_at, grads.to(grad_gates.dtype.element_ty), mask=gate_in)
        arrive(gates_done)
        tl.store(grad_c + unit_at, new_c + poison, mask=unit_in)
        if HAS_LENGTHS:
            tl.store(grad_h + unit_at, carried + poison, mask=unit_in)
        target = (s + 1 - start) * gate_blocks
        alive = wait(gates_done, error, target, alive, SPINS, INLINE_POLL)

        # NaN from here on, should the others' gradients not be there yet.
        acc = tl.zeros((ROWS, COLUMNS), tl.float32) + tl.where(alive > 0, 0.0, float("nan"))
        for group in tl.static_range(0, K_TILES, IN_FLIGHT):
            parts = ()
            for j in tl.static_range(IN_FLIGHT):
                if group + j < K_TILES:
                    # Other blocks wrote this in the same launch: L1 must not serve it.
                    k = k_first + (group + j) * BLOCK_K + ks
                    # Only what the last K range may lack is masked.
                    if (K_PARTS - 1) * DEPTH + (group + j + 1) * BLOCK_K <= 4 * HIDDEN:
                        grads_mask = row_in
                    else:
                        grads_mask = row_in & (k < 4 * HIDDEN)[None, :]
                    grads_part = tl.load(
                        grads_now + gate_tile + (group + j) * BLOCK_K,
                        mask=grads_mask,
                        other=0.0,
                        cache_modifier=".cg",
                    )
                    parts = parts + (grads_part,)
            for j in tl.static_range(IN_FLIGHT):
                if group + j < RESIDENT:
                    acc = tl.dot(parts[j], tiles[group + j], acc, input_precision=PRECISION)
                elif group + j < K_TILES:
                    k = k_first + (group + j) * BLOCK_K + ks
                    w_now = tl.load(
                        streamed + k[:, None] * HIDDEN + outputs[None, :],
                        mask=(k < 4 * HIDDEN)[:, None] & (outputs < HIDDEN)[None, :],
                        other=0.0,
                    )
                    acc = tl.dot(parts[j], w_now, acc, input_precision=PRECISION)
        sum_columns = (piece + zero) * COLUMNS + tl.arange(0, COLUMNS)
        sums_at = sums_now + part * plane + rows[:, None] * HIDDEN + sum_columns[None, :]
        if FULL_TILES:
            tl.store(sums_at, acc)
        else:
            tl.store(sums_at, acc, mask=row_in & (sum_columns[None, :] < HIDDEN))
        arrive(sums_done + ((s - start) % 2) * COUNTER_STRIDE)


def run_stepwise(grad_output, gates, cells, dropped, grad_h, grad_c, lengths, seed, call, tile):
    """Launch every step, from the last to the first.

    Args:
        grad_output: `(T, B, H)`, contiguous.
        gates: `(T, B, 4H)`, see the head of this file; so are cells, grad_h and grad_c.
        cells: see gates.
        dropped: `(4H, H)` dropped weight, interleaved.
        grad_h: see gates.
        grad_c: see gates.
        lengths: `(B,)` int32 or None.
        seed: 0-d int64 on the device.
        call: `LayerCall`.
        tile: `StepTile`.

    Returns:
        grad_gates `(T, B, 4H)` interleaved, and the gradient of the first h, `(B, H)` float32.
    """
    steps, batch_size, width = gates.shape
    hidden = width // 4
    grad_gates = torch.empty_like(gates)
    grid = (cdiv(hidden, tile.units), cdiv(batch_size, tile.rows))
    constants = {
        "HIDDEN": hidden,
        "ROWS": tile.rows,
        "UNITS": tile.units,
        "BLOCK_K": tile.block_k,
        "GATE_MASK": call.gate_mask,
        "REVERSE": call.reverse,
        "HAS_LENGTHS": lengths is not None,
        "PRECISION": call.precision,
    }
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    order = range(steps) if call.reverse else range(steps - 1, -1, -1)
    for s, t in enumerate(order):
        args = (grad_output, gates, cells, dropped, grad_gates, grad_h, grad_c, lengths, seed)
        scalars = (t, s, steps, batch_size, call.mask_stream, call.gate_drop.arguments)
        launch(backward_step_kernel, grid, (*args, *scalars), constants, options)
    first = torch.mm(grad_gates[order[-1]].float(), dropped.float())
    return grad_gates, _ended(first, grad_h, lengths, order[-1])


def _ended(first, grad_h, lengths, t):
    """Rows that took no part in step t keep the gradient that they carried."""
    return first if lengths is None else torch.where((t < lengths)[:, None], first, grad_h)


def run_persistent(
    grad_output, gates, cells, weight, dropped, grad_h, grad_c, lengths, seed, call, tile
):
    """Launch the whole recurrence, once for each set of rows that fits on the device.

    Args:
        grad_output: as in `run_stepwise`; so are gates, cells, grad_h, grad_c, lengths, seed, call.
        gates: see grad_output.
        cells: see grad_output.
        weight: `(4H, H)` in PyTorch's order, undropped.
        dropped: `(4H, H)` dropped weight, interleaved, or None when all tiles are resident.
        grad_h: see grad_output.
        grad_c: see grad_output.
        lengths: see grad_output.
        seed: see grad_output.
        call: see grad_output.
        tile: `BackwardTile`.

    Returns:
        As `run_stepwise`.

    Raises:
        LaunchRefused: if the blocks cannot be on the device together.
    """
    steps, batch_size, width = gates.shape
    hidden = width // 4
    slices = cdiv(hidden, tile.columns)
    constants = {
        "HIDDEN": hidden,
        "ROWS": tile.rows,
        "K_PARTS": tile.k_parts,
        "COLUMNS": tile.columns,
        "BLOCK_K": tile.block_k,
        "RESIDENT": tile.resident,
        "IN_FLIGHT": tile.in_flight,
        "GROUPED": tile.grouped,
        "WEIGHT_DROP": call.weight_drop.active,
        "GATE_MASK": call.gate_mask,
        "REVERSE": call.reverse,
        "HAS_LENGTHS": lengths is not None,
        "FULL_TILES": batch_size % tile.rows == 0 and hidden % tile.columns == 0,
        "PRECISION": call.precision,
        "SPINS": MAX_SPINS,
        "INLINE_POLL": not interpreted(),
    }
    options = {"num_warps": tile.warps, "num_stages": 1, "launch_cooperative_grid": True}
    groups = cdiv(batch_size, tile.rows)
    launches = cdiv(groups, tile.groups)
    grad_gates = torch.empty_like(gates)
    device = gates.device
    sums = torch.empty(2, tile.k_parts, batch_size, hidden, dtype=torch.float32, device=device)
    words = tile.groups * (tile.k_parts + 2 * slices) * COUNTER_STRIDE.value
    counters = torch.zeros(launches, words, dtype=torch.int32, device=device)
    error = torch.zeros(1, dtype=torch.int32, device=device)
    streamed = weight if dropped is None else dropped
    buffers = (grad_output, gates, cells, weight, streamed, grad_gates, grad_h, grad_c, sums)
    drops = (call.weight_drop.arguments, call.gate_drop.arguments)
    for index in range(launches):
        grid = (tile.k_parts * slices, min(tile.groups, groups - index * tile.groups))
        first_row = index * tile.groups * tile.rows
        scalars = (0, steps, steps, batch_size, first_row, call.mask_stream)
        args = (*buffers, lengths, seed, counters[index], error, *scalars, *drops)
        launch(backward_kernel, grid, args, constants, options)
    watch(error, "the backward LSTM kernel")
    first = sums[(steps - 1) % 2].sum(0)
    return grad_gates, _ended(first, grad_h, lengths, steps - 1 if call.reverse else 0)
