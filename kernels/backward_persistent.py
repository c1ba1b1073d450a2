"""The recurrence backwards, one launch for all steps; buffers as in backward_stepwise.py."""

import torch
import triton
import triton.language as tl

from ulmfit_fast.kernels.backward_stepwise import carried_gradient
from ulmfit_fast.kernels.grid_barrier import COUNTER_STRIDE, MAX_SPINS, arrive, make_counters, wait
from ulmfit_fast.kernels.launch import cdiv, interpreted, launch, watch
from ulmfit_fast.kernels.lstm_step import step_gradients
from ulmfit_fast.kernels.philox import gate_bits
from ulmfit_fast.kernels.weight_slice import load_tiles, mask_slice, multiply

__all__ = ["run"]


@triton.jit(
    do_not_specialize=["steps", "batch_size", "first_row", "mask_stream"],
    do_not_specialize_on_alignment=["seed"],
)
def backward_kernel(
    grad_output,
    gates,
    cells,
    weight,
    slices,
    exchange,
    grad_gates,
    grad_h,
    grad_c,
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
    K_PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    RESIDENT: tl.constexpr,
    GROUPED: tl.constexpr,
    WEIGHT_DROP: tl.constexpr,
    GATE_MASK: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
    SPINS: tl.constexpr,
    INLINE_POLL: tl.constexpr,
):
    """All steps from the end in one launch, the weight split both ways.

    The 4H gate columns fall into K_PARTS ranges, the H columns into ranges of COLUMNS. Block (part,
    piece) multiplies by one piece of the weight, and owns COLUMNS / K_PARTS units of its K range
    for what is done unit by unit. Two barriers a step: gate gradients, (1), partial sums, (2).

    Weight and slices as in the forward; exchange has the gates' gradients, of even and odd steps.
    With GROUPED a block waits only for those that it depends on: (1) among the blocks of its K
    range, (2) among those of one column range. One range may then run a step, never two, ahead of
    another: the partial sums and the counters of (2) alternate with the step's parity.
    Row r of the gates' product is unit r // 4, gate r % 4: the weight's rows are read interleaved.
    """
    PIECES: tl.constexpr = (HIDDEN + COLUMNS - 1) // COLUMNS
    PADDED: tl.constexpr = PIECES * COLUMNS
    DEPTH: tl.constexpr = 4 * PADDED // K_PARTS
    UNITS: tl.constexpr = COLUMNS // K_PARTS
    part = tl.program_id(0) // PIECES
    piece = tl.program_id(0) % PIECES
    first_unit = part * (PADDED // K_PARTS) + piece * UNITS
    units = first_unit + tl.arange(0, UNITS)  # (UNITS,)
    columns = 4 * first_unit + tl.arange(0, 4 * UNITS)  # (4 UNITS,)
    outputs = piece * COLUMNS + tl.arange(0, COLUMNS)  # (COLUMNS,)
    rows = first_row + tl.program_id(1) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    ks = tl.arange(0, BLOCK_K)

    counter = counters + tl.program_id(1) * (K_PARTS + 2 * PIECES) * COUNTER_STRIDE
    if GROUPED:
        gates_done = counter + part * COUNTER_STRIDE
        sums_done = counter + (K_PARTS + 2 * piece) * COUNTER_STRIDE
        own_sums = counter + (K_PARTS + 2 * (first_unit // COLUMNS)) * COUNTER_STRIDE
        gate_blocks = PIECES
        sum_blocks = K_PARTS
    else:
        gates_done = counter
        sums_done = counter + COUNTER_STRIDE
        own_sums = counter + COUNTER_STRIDE
        gate_blocks = K_PARTS * PIECES
        sum_blocks = K_PARTS * PIECES

    block = tl.program_id(1) * (K_PARTS * PIECES) + tl.program_id(0)
    own = slices + block.to(tl.int64) * (COLUMNS * DEPTH)
    own += ks[:, None] + tl.arange(0, COLUMNS)[None, :] * DEPTH  # (BLOCK_K, COLUMNS)
    mask_slice(
        weight,
        own,
        part * (DEPTH // 4) + tl.arange(0, BLOCK_K // 4),
        outputs,
        seed,
        mask_stream,
        weight_drop,
        BLOCK_K // 4,
        0,
        HIDDEN,
        DEPTH,
        BLOCK_K,
        WEIGHT_DROP,
    )

    tiles = load_tiles(own, DEPTH, BLOCK_K, RESIDENT)

    row_in = rows[:, None] < batch_size
    unit_in = row_in & (units[None, :] < HIDDEN)
    gate_in = row_in & (columns[None, :] < 4 * HIDDEN)
    plane = (batch_size * HIDDEN).to(tl.int64)
    exchange_plane = tl.cdiv(batch_size, ROWS) * (ROWS * 4 * PADDED)
    unit_at = rows[:, None] * HIDDEN + units[None, :]  # (ROWS, UNITS)
    gate_at = rows[:, None] * (4 * HIDDEN) + columns[None, :]  # (ROWS, 4 UNITS)
    exchange_rows = exchange + rows[:, None] * (4 * PADDED)  # (ROWS, 1)
    sums_plane = (exchange_plane // 4).to(tl.int64)
    if HAS_LENGTHS:
        length = tl.load(lengths + rows, mask=rows < batch_size, other=0)
    # What a row brings along into the step, beside what comes of its output.
    carried = tl.load(grad_h + unit_at, mask=unit_in, other=0.0)  # (ROWS, UNITS)
    carried_c = tl.load(grad_c + unit_at, mask=unit_in, other=0.0)  # (ROWS, UNITS)

    alive = 1
    poison = 0.0
    for s in range(steps):
        # Always 0, which no compiler can tell: what follows from it is computed anew at each step.
        # Else it would sit in registers that the products need, and they would spill.
        zero = (s + first_row) >> 31
        rows = first_row + (tl.program_id(1) + zero) * ROWS + tl.arange(0, ROWS)
        units = first_unit + zero * UNITS + tl.arange(0, UNITS)
        columns = 4 * (first_unit + zero * UNITS) + tl.arange(0, 4 * UNITS)
        outputs = (piece + zero) * COLUMNS + tl.arange(0, COLUMNS)
        row_in = rows[:, None] < batch_size
        unit_in = row_in & (units[None, :] < HIDDEN)
        gate_in = row_in & (columns[None, :] < 4 * HIDDEN)
        # In twos: wider than what a thread has of the product, a load or store changes layouts.
        unit_at = rows[:, None] * HIDDEN + units[None, :] + 2 * zero
        gate_at = rows[:, None] * (4 * HIDDEN) + columns[None, :]
        exchange_rows = exchange + rows[:, None] * (4 * PADDED)  # (ROWS, 1)
        t = s if REVERSE else steps - 1 - s
        slot = t if REVERSE else t + 1
        slot_prev = t + 1 if REVERSE else t
        # The mask is drawn, and what this block alone needs fetched, while other blocks finish.
        bits = gate_bits(
            tl.load(seed + zero), rows, units, t, mask_stream ^ zero, gate_drop, HIDDEN, GATE_MASK
        )
        act = tl.load(gates + t * 4 * plane + gate_at, mask=gate_in, other=0.0)  # (ROWS, 4 UNITS)
        c = tl.load(cells + slot * plane + unit_at, mask=unit_in, other=0.0)  # (ROWS, UNITS)
        c_prev = tl.load(cells + slot_prev * plane + unit_at, mask=unit_in, other=0.0)
        from_output = tl.load(grad_output + t * plane + unit_at, mask=unit_in, other=0.0)
        if GATE_MASK != 0:
            # With c's bits, all masked off, layouts are converted before there are four scales.
            bits = bits ^ (carried_c.to(tl.int32, bitcast=True) & zero)
        if s > 0:
            # The arrivals of the step before.
            target = ((s - 1) // 2 + 1) * sum_blocks
            counter_2 = own_sums + (s - 1) % 2 * COUNTER_STRIDE
            alive = wait(counter_2, error, target, alive, SPINS, INLINE_POLL)
            poison = tl.where(alive > 0, 0.0, float("nan"))
            total = tl.zeros((ROWS, UNITS), tl.float32)  # (ROWS, UNITS)
            total_at = rows[:, None] * PADDED + units[None, :] + 2 * zero  # (ROWS, UNITS)
            # Always in this order: the sum is the same in every run.
            for j in tl.static_range(K_PARTS):
                total += tl.load(
                    partial_sums + ((s + 1) % 2 * K_PARTS + j) * sums_plane + total_at,
                    cache_modifier=".cg",
                )
            if HAS_LENGTHS:
                t_after = t - 1 if REVERSE else t + 1
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
            active = (t < length)[:, None]  # (ROWS, 1)
            grads = tl.where(active, grads, 0.0)
            new_c = tl.where(active, new_c, carried_c)
        carried_c = new_c  # (ROWS, UNITS)
        grads = grads.to(grad_gates.dtype.element_ty)  # (ROWS, 4 UNITS)
        left = exchange_rows + s % 2 * exchange_plane
        tl.store(left + columns[None, :], grads)
        arrive(gates_done)
        tl.store(grad_gates + t * 4 * plane + gate_at, grads, mask=gate_in)
        alive = wait(gates_done, error, (s + 1) * gate_blocks, alive, SPINS, INLINE_POLL)

        # NaN from here on, should the others' gradients not be there yet.
        acc = tl.zeros((ROWS, COLUMNS), tl.float32) + tl.where(alive > 0, 0.0, float("nan"))
        acc = multiply(
            acc,
            left + part * DEPTH + ks[None, :],
            own + zero * BLOCK_K,
            tiles,
            zero,
            DEPTH,
            BLOCK_K,
            STAGES,
            RESIDENT,
            PRECISION,
        )
        sums_now = partial_sums + (s % 2 * K_PARTS + part) * sums_plane
        tl.store(sums_now + rows[:, None] * PADDED + outputs[None, :], acc)
        arrive(sums_done + s % 2 * COUNTER_STRIDE)
    tl.store(grad_c + unit_at, carried_c + poison, mask=unit_in)
    if HAS_LENGTHS:
        tl.store(grad_h + unit_at, carried + poison, mask=unit_in)


def run(grad_output, gates, cells, weight, grad_h, grad_c, lengths, seed, call, tile):
    """Launch the whole recurrence, once for each set of rows that fits on the device.

    Args:
        grad_output: as in `backward_stepwise.run`; so are gates, cells, grad_h, grad_c, lengths,
            seed and call.
        gates: see grad_output.
        cells: see grad_output.
        weight: `(4H, H)` in PyTorch's order, undropped.
        grad_h: see grad_output.
        grad_c: see grad_output.
        lengths: see grad_output.
        seed: see grad_output.
        call: see grad_output.
        tile: `BackwardTile`.

    Returns:
        As `backward_stepwise.run`.

    Raises:
        LaunchRefused: if the blocks cannot be on the device together.
        ValueError: if a K range is no whole number of K-tiles, whose rest would be left out.
    """
    steps, batch_size, width = gates.shape  # (T, B, 4H)
    hidden = width // 4
    depth = tile.depth(hidden)
    if depth % tile.block_k:
        raise ValueError(f"K-tiles of {tile.block_k} do not divide K ranges of {depth}")
    pieces = cdiv(hidden, tile.columns)
    blocks = tile.k_parts * pieces
    constants = {
        "HIDDEN": hidden,
        "ROWS": tile.rows,
        "K_PARTS": tile.k_parts,
        "COLUMNS": tile.columns,
        "BLOCK_K": tile.block_k,
        "STAGES": tile.stages,
        "RESIDENT": tile.resident,
        "GROUPED": tile.grouped,
        "WEIGHT_DROP": call.weight_drop.active,
        "GATE_MASK": call.gate_mask,
        "REVERSE": call.reverse,
        "HAS_LENGTHS": lengths is not None,
        "PRECISION": call.precision,
        "SPINS": MAX_SPINS,
        "INLINE_POLL": not interpreted(),
    }
    # A block has a multiprocessor to itself: registers spared for a second one would be spilled.
    options = {"num_warps": tile.warps, "num_stages": 1, "maxnreg": 255}
    options["launch_cooperative_grid"] = True
    groups = cdiv(batch_size, tile.rows)
    launches = cdiv(groups, tile.groups)
    grad_gates = torch.empty_like(gates)  # (T, B, 4H)
    device = gates.device
    slices = gates.new_empty(tile.groups, blocks, tile.columns, depth)
    padded = groups * tile.rows, pieces * tile.columns
    exchange = gates.new_empty(2, *padded, 4)  # (2, rows, columns, 4)
    sums = torch.empty(2, tile.k_parts, *padded, dtype=torch.float32, device=device)
    counters, error = make_counters(launches, tile.groups * (tile.k_parts + 2 * pieces), device)
    buffers = (grad_output, gates, cells, weight, slices, exchange, grad_gates, grad_h, grad_c)
    drops = (call.weight_drop.arguments, call.gate_drop.arguments)
    for index in range(launches):
        grid = (blocks, min(tile.groups, groups - index * tile.groups))
        first_row = index * tile.groups * tile.rows
        scalars = (steps, batch_size, first_row, call.mask_stream)
        args = (*buffers, sums, lengths, seed, counters[index], error, *scalars, *drops)
        launch(backward_kernel, grid, args, constants, options, begun=index > 0)
    watch(error, "the backward LSTM kernel")
    first = sums[(steps - 1) % 2, :, :batch_size, :hidden].sum(0)  # (B, H)
    return grad_gates, carried_gradient(first, grad_h, lengths, steps - 1 if call.reverse else 0)
