"""The recurrence backwards, one launch for all steps; buffers as in backward_stepwise.py."""

import torch
import triton
import triton.language as tl

from ulmfit_fast.kernels.backward_stepwise import carried_gradient
from ulmfit_fast.kernels.grid_barrier import COUNTER_STRIDE, MAX_SPINS, arrive, wait
from ulmfit_fast.kernels.launch import cdiv, interpreted, launch, watch
from ulmfit_fast.kernels.lstm_step import step_gradients
from ulmfit_fast.kernels.philox import gate_bits, load_weights

__all__ = ["run"]


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


def run(grad_output, gates, cells, weight, dropped, grad_h, grad_c, lengths, seed, call, tile):
    """Launch the whole recurrence, once for each set of rows that fits on the device.

    Args:
        grad_output: as in `backward_stepwise.run`; so are gates, cells, grad_h, grad_c, lengths,
            seed and call.
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
        As `backward_stepwise.run`.

    Raises:
        LaunchRefused: if the blocks cannot be on the device together.
        ValueError: if a K range is no whole number of K-tiles, whose rest would be left out.
    """
    steps, batch_size, width = gates.shape
    hidden = width // 4
    depth = tile.depth(hidden)
    if depth % tile.block_k:
        raise ValueError(f"K-tiles of {tile.block_k} do not divide K ranges of {depth}")
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
        launch(backward_kernel, grid, args, constants, options, begun=index > 0)
    watch(error, "the backward LSTM kernel")
    first = sums[(steps - 1) % 2].sum(0)
    return grad_gates, carried_gradient(first, grad_h, lengths, steps - 1 if call.reverse else 0)
