"""The recurrence backwards, one launch a step.

Buffers as in forward_stepwise.py; besides, grad_gates `(T, B, 4H)` interleaved, the gradients of
the pre-activations. grad_h and grad_c `(B, H)` float32 hold on entry the gradients of the last
state; grad_c holds on return the gradient of the first cell state.
"""

import torch
import triton
import triton.language as tl

from ulmfit_fast.kernels.launch import cdiv, launch
from ulmfit_fast.kernels.lstm_step import step_gradients
from ulmfit_fast.kernels.philox import gate_bits

__all__ = ["carried_gradient", "run"]


@triton.jit(
    do_not_specialize=["t", "s", "steps", "batch_size", "mask_stream"],
    do_not_specialize_on_alignment=["seed"],
)
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
    units = tl.program_id(0) * UNITS + tl.arange(0, UNITS)  # (UNITS,)
    columns = tl.program_id(0) * (4 * UNITS) + tl.arange(0, 4 * UNITS)  # (4 UNITS,)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    ks = tl.arange(0, BLOCK_K)  # (BLOCK_K,)
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
    acc = tl.zeros((ROWS, UNITS), tl.float32)  # (ROWS, UNITS)
    after_rows = grad_gates + t_after * 4 * plane + rows[:, None] * (4 * HIDDEN)
    columns_to_sum = tl.where(s > 0, 4 * HIDDEN, 0)
    for k in range(0, columns_to_sum, BLOCK_K):
        k_in = k + ks < 4 * HIDDEN
        # (ROWS, BLOCK_K) times (BLOCK_K, UNITS)
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
        active = (t < length)[:, None]  # (ROWS, 1)
        # A row that has not begun, or has ended, carries its gradient along.
        after_active = ((s > 0) & (t_after < length))[:, None]
        carried = tl.where(after_active, acc, carried)
        tl.store(grad_h + unit_at, carried, mask=unit_in)
    else:
        carried = tl.where(s > 0, acc, carried)  # (ROWS, UNITS)
    gate_at = t * 4 * plane + rows[:, None] * (4 * HIDDEN) + columns[None, :]
    act = tl.load(gates + gate_at, mask=gate_in, other=0.0).to(tl.float32)  # (ROWS, 4 UNITS)
    c = tl.load(cells + slot * plane + unit_at, mask=unit_in, other=0.0)  # (ROWS, UNITS)
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
    )  # (ROWS, 4 UNITS), (ROWS, UNITS)
    if HAS_LENGTHS:
        grads = tl.where(active, grads, 0.0)
        grad_c_new = tl.where(active, grad_c_new, grad_c_old)
    tl.store(grad_gates + gate_at, grads.to(grad_gates.dtype.element_ty), mask=gate_in)
    tl.store(grad_c + unit_at, grad_c_new, mask=unit_in)


def run(grad_output, gates, cells, dropped, grad_h, grad_c, lengths, seed, call, tile):
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
    steps, batch_size, width = gates.shape  # (T, B, 4H)
    hidden = width // 4
    grad_gates = torch.empty_like(gates)  # (T, B, 4H)
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
    first = torch.mm(grad_gates[order[-1]].float(), dropped.float())  # (B, H)
    return grad_gates, carried_gradient(first, grad_h, lengths, order[-1])


def carried_gradient(first, grad_h, lengths, t):
    """Rows that took no part in step t keep the gradient that they carried."""
    return first if lengths is None else torch.where((t < lengths)[:, None], first, grad_h)
