"""The recurrence forwards, one launch a step.

Buffers, time-major and contiguous:

- gates `(T, B, 4H)` interleaved: on entry x W_ih^T + b, on return the activated gates, unmasked;
- states `(T + 1, B, H)` in the compute dtype and cells `(T + 1, B, H)` in float32: each step writes
  a slot of its own. Forwards, step t reads slot t and writes slot t + 1, and slot 0 is the initial
  state; in the reverse direction it reads slot t + 1 and writes slot t, and slot T is initial.
"""

import triton
import triton.language as tl

from ulmfit_fast.kernels.launch import cdiv, launch
from ulmfit_fast.kernels.lstm_step import finish_step
from ulmfit_fast.kernels.philox import gate_bits

__all__ = ["run"]


@triton.jit(
    do_not_specialize=["t", "steps", "batch_size", "mask_stream"],
    do_not_specialize_on_alignment=["seed"],
)
def forward_step_kernel(
    gates,
    weight,
    states,
    cells,
    lengths,
    seed,
    t,
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
    KEEP_GATES: tl.constexpr,
    KEEP_CELLS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Step t of the recurrence. Weight is dropped already, (4H, H) interleaved."""
    columns = tl.program_id(0) * (4 * UNITS) + tl.arange(0, 4 * UNITS)  # (4 UNITS,)
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)  # (UNITS,)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    ks = tl.arange(0, BLOCK_K)  # (BLOCK_K,)
    row_in = rows[:, None] < batch_size
    unit_in = row_in & (units[None, :] < HIDDEN)
    gate_in = row_in & (columns[None, :] < 4 * HIDDEN)
    plane = (batch_size * HIDDEN).to(tl.int64)
    if REVERSE:
        slot_in = t + 1
        slot_out = t
    else:
        slot_in = t
        slot_out = t + 1

    h_rows = states + slot_in * plane + rows[:, None] * HIDDEN  # (ROWS, 1)
    if HAS_LENGTHS:
        length = tl.load(lengths + rows, mask=rows < batch_size, other=0)
        active = (t < length)[:, None]  # (ROWS, 1)
        if REVERSE:
            # A row's first step is its last one in time; what follows in memory is padding.
            slots = tl.where(t + 1 >= length, steps, t + 1).to(tl.int64)[:, None]
            h_rows = states + slots * plane + rows[:, None] * HIDDEN

    acc = tl.zeros((ROWS, 4 * UNITS), tl.float32)  # (ROWS, 4 UNITS)
    for k in range(0, HIDDEN, BLOCK_K):
        if HIDDEN % BLOCK_K == 0:
            h = tl.load(h_rows + (k + ks)[None, :], mask=row_in, other=0.0)  # (ROWS, BLOCK_K)
            w = tl.load(
                weight + columns[None, :] * HIDDEN + (k + ks)[:, None],
                mask=columns[None, :] < 4 * HIDDEN,
                other=0.0,
            )  # (BLOCK_K, 4 UNITS)
        else:
            k_in = k + ks < HIDDEN
            h = tl.load(h_rows + (k + ks)[None, :], mask=row_in & k_in[None, :], other=0.0)
            w = tl.load(
                weight + columns[None, :] * HIDDEN + (k + ks)[:, None],
                mask=(columns[None, :] < 4 * HIDDEN) & k_in[:, None],
                other=0.0,
            )
        acc = tl.dot(h, w, acc, input_precision=PRECISION)  # (ROWS, 4 UNITS)

    gate_at = gates + t * 4 * plane + rows[:, None] * (4 * HIDDEN) + columns[None, :]
    unit_at = rows[:, None] * HIDDEN + units[None, :]  # (ROWS, UNITS)
    c_old = tl.load(cells + slot_in * plane * KEEP_CELLS + unit_at, mask=unit_in, other=0.0)
    acc += tl.load(gate_at, mask=gate_in, other=0.0).to(tl.float32)  # (ROWS, 4 UNITS)
    act, h, c = finish_step(
        acc,
        c_old,
        columns,
        gate_bits(tl.load(seed), rows, units, t, mask_stream, gate_drop, HIDDEN, GATE_MASK),
        gate_drop,
        ROWS,
        UNITS,
        GATE_MASK,
    )  # (ROWS, 4 UNITS), (ROWS, UNITS), (ROWS, UNITS)
    if HAS_LENGTHS:
        c = tl.where(active, c, c_old)
        h = tl.where(active, h, 0.0)
        act = tl.where(active, act, 0.0)
    tl.store(states + slot_out * plane + unit_at, h.to(states.dtype.element_ty), mask=unit_in)
    tl.store(cells + slot_out * plane * KEEP_CELLS + unit_at, c, mask=unit_in)
    if KEEP_GATES:
        tl.store(gate_at, act.to(gates.dtype.element_ty), mask=gate_in)


def run(gates, dropped, states, cells, lengths, seed, call, tile):
    """Launch every step.

    Args:
        gates: `(T, B, 4H)`, see the head of this file; so are states and cells.
        dropped: `(4H, H)` dropped weight, interleaved.
        states: see gates.
        cells: `(T + 1, B, H)` float32, or `(1, B, H)` when the cell states are not kept.
        lengths: `(B,)` int32 or None.
        seed: 0-d int64 on the device.
        call: `LayerCall`.
        tile: `StepTile`.
    """
    steps, batch_size, width = gates.shape  # (T, B, 4H)
    hidden = width // 4
    grid = (cdiv(hidden, tile.units), cdiv(batch_size, tile.rows))
    constants = {
        "HIDDEN": hidden,
        "ROWS": tile.rows,
        "UNITS": tile.units,
        "BLOCK_K": tile.block_k,
        "GATE_MASK": call.gate_mask,
        "REVERSE": call.reverse,
        "HAS_LENGTHS": lengths is not None,
        "KEEP_GATES": call.keep_gates,
        "KEEP_CELLS": call.keep_cells,
        "PRECISION": call.precision,
    }
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    for t in reversed(range(steps)) if call.reverse else range(steps):
        args = (gates, dropped, states, cells, lengths, seed)
        scalars = (t, steps, batch_size, call.mask_stream, call.gate_drop.arguments)
        launch(forward_step_kernel, grid, (*args, *scalars), constants, options)
