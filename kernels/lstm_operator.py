"""The LSTM layer as operators of PyTorch: products by torch, the recurrence by the kernels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ulmfit_fast.kernels import (
    backward_persistent,
    backward_stepwise,
    forward_persistent,
    forward_stepwise,
    recompute,
    tiles,
    weight_drop,
)
from ulmfit_fast.kernels.launch import (
    DropArguments,
    LaunchRefused,
    LayerCall,
    matmul_precision,
    on,
    plan_layer,
    raise_failed,
)

__all__ = ["KEEP_CELLS", "KEEP_GATES", "KEEP_NOTHING", "lstm_triton", "with_gates_together"]

# What a forward leaves for the backward; without the gates, the backward computes them again.
KEEP_NOTHING, KEEP_CELLS, KEEP_GATES = range(3)


class _Recurrence(NamedTuple):
    """The recurrence of one call, as the kernels of both its directions take it.

    Attributes:
        plan: which form runs, with which tiles.
        form: the form that was asked for; "auto" may fall back from what the plan says.
        weight: `(4H, H)` contiguous, undropped.
        lengths: `(B,)` int32, or None.
        seed: 0-d int64 on the device.
        call: dropouts, direction and what is kept.
    """

    plan: tiles.Plan
    form: str
    weight: Tensor
    lengths: Tensor | None
    seed: Tensor
    call: LayerCall

    def dropped(self):
        """Return the weight with its mask applied, `(4H, H)`."""
        call = self.call
        return weight_drop.drop_weight(self.weight, call.weight_drop, self.seed, call.mask_stream)

    def forward(self, gates, states, cells):
        """Fill the states and cells `(T + 1, B, H)`, and activate the gates `(T, B, 4H)`."""
        after = (self.lengths, self.seed, self.call)
        if self.plan.form == "persistent":
            buffers = (gates, self.weight, states, cells)
            try:
                forward_persistent.run(*buffers, *after, self.plan.forward)
                return
            except LaunchRefused:
                if self.form != "auto":
                    raise
        buffers = (gates, self.dropped(), states, cells)
        forward_stepwise.run(*buffers, *after, self.plan.forward_step)

    def backward(self, grad_output, gates, cells, grad_h, grad_c):
        """Return the gradients of the pre-activations `(T, B, 4H)` and of the first h `(B, H)`."""
        after = (self.lengths, self.seed, self.call)
        if self.plan.form == "persistent":
            buffers = (grad_output, gates, cells, self.weight, grad_h, grad_c)
            try:
                return backward_persistent.run(*buffers, *after, self.plan.backward)
            except LaunchRefused:
                if self.form != "auto":
                    raise
        buffers = (grad_output, gates, cells, self.dropped(), grad_h, grad_c)
        return backward_stepwise.run(*buffers, *after, self.plan.backward_step)


def _recurrence(x, w_hh, lengths, seed, weight_p, gate_p, sequence, stream, form, keep):
    plan = plan_layer(
        x.device,
        batch_size=x.shape[1],
        hidden_size=w_hh.shape[1],
        dtype=x.dtype,
        form=None if form == "auto" else form,
    )
    if plan.form is None:
        raise RuntimeError(f"the Triton LSTM cannot run this call: {plan.reason}")
    gate_drop = DropArguments.of(gate_p)
    call = LayerCall(
        DropArguments.of(weight_p),
        gate_drop,
        (2 if sequence else 1) if gate_drop.active else 0,
        bool(stream & 1),
        stream,
        matmul_precision(x.device),
        keep == KEEP_GATES,
        keep != KEEP_NOTHING,
    )
    rows = None if lengths is None else lengths.to(torch.int32)
    return _Recurrence(plan, form, w_hh.contiguous(), rows, seed, call)


def with_gates_together(w_ih, b_ih, b_hh, dtype):
    """Return the weight `(4H, E)` and the sum of the biases `(4H,)` as `lstm_triton` takes them.

    Once a step: one copy changes both order and dtype, and the backward finds it done.
    """
    if b_ih is not None and b_hh is not None:
        bias = b_ih + b_hh
    else:
        bias = b_hh if b_ih is None else b_ih
    if bias is not None:
        bias = weight_drop.interleave(bias, dtype)
    return weight_drop.interleave(w_ih, dtype), bias


def _input_gates(x, w_ih, bias):
    """Return x W_ih^T + b, `(T, B, 4H)` interleaved."""
    flat = x.reshape(-1, x.shape[2])  # (TB, E)
    gates = torch.mm(flat, w_ih.t()) if bias is None else torch.addmm(bias, flat, w_ih.t())
    return gates.view(x.shape[0], x.shape[1], -1)  # (T, B, 4H)


def _slots(states, reverse):
    """Return the steps' own slots of `(T + 1, B, H)`, and the initial one."""
    return (states[:-1], states[-1]) if reverse else (states[1:], states[0])


@torch.library.custom_op("ulmfit_fast::lstm_triton", mutates_args=())
def lstm_triton(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor,
    weight_p: Sequence[float],
    gate_p: Sequence[float],
    sequence: bool,
    stream: int,
    form: str,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run one layer in one direction.

    Args:
        x: `(T, B, E)`.
        h0: `(B, H)`.
        c0: `(B, H)`, possibly of a wider dtype than x.
        w_ih: `(4H, E)` interleaved.
        w_hh: `(4H, H)` in PyTorch's order, undropped.
        bias: `(4H,)` interleaved, or None.
        lengths: `(B,)` int64 on x's device, or None.
        seed: 0-d int64 on x's device; without dropout it is not read.
        weight_p: four probabilities of weight-drop.
        gate_p: four probabilities of gate dropout.
        sequence: one gate mask for all steps instead of one a step.
        stream: 2 * layer + reverse.
        form: as `tiles.choose` takes it, or "auto".
        keep: what is left for the backward, one of the `KEEP_` constants.

    Returns:
        output `(T, B, H)`, h_n `(B, H)`, c_n `(B, H)` in the dtype of c0; and for the backward the
        activated gates `(T, B, 4H)` interleaved and the cell states `(T + 1, B, H)` float32, each
        empty when not kept.

    Raises:
        RuntimeError: if this form cannot run here.
    """
    with on(x.device):
        raise_failed()
    steps, batch_size, _ = x.shape
    hidden = w_hh.shape[1]
    reverse = bool(stream & 1)
    states = x.new_empty(steps + 1, batch_size, hidden)  # (T + 1, B, H)
    output, first = _slots(states, reverse)  # (T, B, H), (B, H)
    first.copy_(h0)
    cells = x.new_empty(steps + 1 if keep else 1, batch_size, hidden, dtype=torch.float32)
    cells[-1 if reverse else 0].copy_(c0)
    nothing = x.new_empty(0)
    if steps == 0 or batch_size == 0:
        kept = x.new_empty(steps, batch_size, 4 * hidden) if keep == KEEP_GATES else nothing
        kept_cells = cells if keep else x.new_empty(0, dtype=torch.float32)
        return output, first.clone(), _copy(c0, c0.dtype), kept, kept_cells
    recurrence = _recurrence(x, w_hh, lengths, seed, weight_p, gate_p, sequence, stream, form, keep)
    # The products are torch's; autocast has had its say before this operator.
    with torch.autocast(x.device.type, enabled=False):
        gates = _input_gates(x, w_ih, bias)  # (T, B, 4H)
    recurrence.forward(gates, states, cells)
    if lengths is None:
        h_n = output[0 if reverse else -1].clone()
    else:
        rows = recurrence.lengths
        slot = torch.where(rows > 0, 0, steps) if reverse else rows  # (B,)
        column = torch.arange(batch_size, dtype=torch.int64, device=x.device)
        h_n = states[slot.long(), column]  # (B, H)
    c_n = _copy(cells[0 if reverse or not keep else -1], c0.dtype)  # (B, H)
    return (
        output,
        h_n,
        c_n,
        gates if keep == KEEP_GATES else nothing,
        cells if keep else x.new_empty(0, dtype=torch.float32),
    )


def _copy(tensor, dtype):
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


@lstm_triton.register_fake
def _(x, h0, c0, w_ih, w_hh, *rest):
    stream, keep = rest[6], rest[8]
    steps, batch_size, _ = x.shape
    hidden = w_hh.shape[1]
    output, first = _slots(x.new_empty(steps + 1, batch_size, hidden), bool(stream & 1))
    cells = x.new_empty(steps + 1, batch_size, hidden, dtype=torch.float32)
    return (
        output,
        torch.empty_like(first),
        c0.new_empty(batch_size, hidden),
        x.new_empty(steps, batch_size, 4 * hidden) if keep == KEEP_GATES else x.new_empty(0),
        cells if keep else x.new_empty(0, dtype=torch.float32),
    )


@torch.library.custom_op("ulmfit_fast::lstm_triton_backward", mutates_args=())
def _lstm_triton_backward(
    grad_output: Tensor,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor,
    weight_p: Sequence[float],
    gate_p: Sequence[float],
    sequence: bool,
    stream: int,
    form: str,
    keep: int,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # Not a list: PyTorch batches an operator over several gradients at once if it returns tensors.
    with on(x.device):
        raise_failed()
    steps, batch_size, _ = x.shape
    grad_h, grad_c = (
        h0.new_zeros(h0.shape, dtype=torch.float32) if grad is None else _copy(grad, torch.float32)
        for grad in (grad_h_n, grad_c_n)
    )
    if steps == 0 or batch_size == 0:
        zeros = [torch.zeros_like(like) for like in (x, h0, c0, w_ih, w_hh, w_hh[:, 0])]
        zeros[1], zeros[2] = grad_h.to(h0.dtype), grad_c.to(c0.dtype)
        return tuple(
            grad.contiguous() if need else x.new_empty(0)
            for grad, need in zip(zeros, needs, strict=True)
        )
    recurrence = _recurrence(x, w_hh, lengths, seed, weight_p, gate_p, sequence, stream, form, keep)
    call = recurrence.call
    # A custom op may not return one tensor twice.
    grads = [x.new_empty(0) for _ in needs]
    with torch.autocast(x.device.type, enabled=False):
        before = None
        if needs[4] or keep != KEEP_GATES:
            before = recompute.previous_states(output, h0, lengths, call.reverse)  # (T, B, H)
            before = before.view(-1, before.shape[2])  # (TB, H)
        if keep != KEEP_GATES:
            gates = _input_gates(x, w_ih, bias)  # (T, B, 4H)
            gates.view(-1, gates.shape[2]).addmm_(before, recurrence.dropped().t())
            recompute.activate_gates(gates)
        grad_gates, grad_first = recurrence.backward(
            grad_output.contiguous(), gates, cells, grad_h, grad_c
        )
        flat = grad_gates.view(-1, grad_gates.shape[2])  # (TB, 4H)
        if needs[0]:
            grads[0] = torch.mm(flat, w_ih).view(x.shape)  # (T, B, E)
        if needs[1]:
            grads[1] = grad_first.to(h0.dtype)
        if needs[2]:
            grads[2] = grad_c.to(c0.dtype)
        if needs[3]:
            grads[3] = torch.mm(flat.t(), x.reshape(-1, x.shape[2]))  # (4H, E)
        if needs[4]:
            mixed = torch.mm(flat.t(), before)  # (4H, H)
            grads[4] = weight_drop.unmix_gradient(mixed, call.weight_drop, seed, call.mask_stream)
        if needs[5]:
            grads[5] = flat.sum(0)  # (4H,)
    return tuple(grads)


@_lstm_triton_backward.register_fake
def _(grad_output, grad_h_n, grad_c_n, x, h0, c0, w_ih, w_hh, *rest):
    likes = (x, h0, c0, w_ih, w_hh, w_hh.new_empty(w_hh.shape[0]))
    return tuple(
        torch.empty_like(like, memory_format=torch.contiguous_format) if need else x.new_empty(0)
        for like, need in zip(likes, rest[-1], strict=True)
    )


def _save_for_backward(ctx, inputs, output):
    x, h0, c0, w_ih, w_hh, bias, lengths, seed, *ctx.scalars = inputs
    out, _, _, gates, cells = output
    keep = ctx.scalars[-1]
    # The bias serves to compute the gates again, and for nothing else.
    bias = None if keep == KEEP_GATES else bias
    ctx.save_for_backward(x, h0, c0, w_ih, w_hh, bias, lengths, seed, out, gates, cells)
    ctx.mark_non_differentiable(gates, cells)
    ctx.set_materialize_grads(False)


def _lstm_triton_gradients(ctx, *grads):
    x, h0, c0, w_ih, w_hh, bias, lengths, seed, *kept = ctx.saved_tensors
    grad_output = torch.zeros_like(kept[0]) if grads[0] is None else grads[0]
    inputs = (x, h0, c0, w_ih, w_hh, bias, lengths, seed)
    needs = list(ctx.needs_input_grad[:6])
    results = _lstm_triton_backward(grad_output, *grads[1:3], *inputs, *ctx.scalars, *kept, needs)
    by_input = (grad if need else None for grad, need in zip(results, needs, strict=True))
    return (*by_input, *([None] * 8))


def _no_double_backward(ctx, *grads):
    raise NotImplementedError(
        'the Triton LSTM has no double backward; use backend="reference" for second derivatives'
    )


lstm_triton.register_autograd(_lstm_triton_gradients, setup_context=_save_for_backward)
_lstm_triton_backward.register_autograd(_no_double_backward)
