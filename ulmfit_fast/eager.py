"""Hand-written forward and backward of one LSTM layer in torch operations.

Everything is kept feature-major, `(4H, T, B)`: a step's recurrent product is `(4H, H) @ (H, B)`,
which a CPU runs faster at small B than `(B, H) @ (H, 4H)`, and the weight gradients are single
GEMMs over the same buffers, without a copy.
The dropped weight is kept for the backward, which costs less than to draw its mask again; the gate
masks are drawn again.
Half precision is computed in float32 and rounded to the input's dtype once a step, as h is
exchanged in the compute dtype while c stays in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ulmfit_fast import rng
from ulmfit_fast.eager_steps import Recurrence, gate_mask_of

__all__ = ["lstm_backward", "lstm_forward"]


def _dropped_weight(
    w_hh: Tensor, seed: Tensor, weight_p: Sequence[float], stream: int, injected: Tensor | None
) -> Tensor:
    if injected is not None:
        return w_hh * injected
    return rng.drop_weight(w_hh, seed, weight_p, stream=stream) if any(weight_p) else w_hh


def _time_order(steps: int, stream: int) -> range:
    """Odd streams are the reverse direction."""
    return range(steps - 1, -1, -1) if stream & 1 else range(steps)


def lstm_forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor,
    weight_p: Sequence[float],
    gate_p: Sequence[float],
    sequence: bool,
    stream: int,
    weight_mask: Tensor | None,
    gate_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run one layer in one direction and keep what the backward needs.

    Args:
        x: `(T, B, E)`.
        h0: `(B, H)`.
        c0: `(B, H)`, possibly of a wider dtype than x.
        w_ih: `(4H, E)`.
        w_hh: `(4H, H)`, undropped.
        b_ih: `(4H,)` or None.
        b_hh: `(4H,)` or None.
        lengths: `(B,)` int64 or None.
        seed: 0-d int64 CPU tensor.
        weight_p: four probabilities of weight-drop.
        gate_p: four probabilities of gate dropout.
        sequence: one gate mask for all steps instead of one a step.
        stream: 2 * layer + reverse.
        weight_mask: `(4H, H)`, used instead of a drawn one.
        gate_mask: `(T, B, 4H)` or `(1, B, 4H)`, used instead of a drawn one.

    Returns:
        output `(T, B, H)`, h_n `(B, H)`, c_n `(B, H)` in the dtype of c0; and for the backward the
        activated, unmasked gates `(4H, T, B)`, the cell states `(H, T, B)` and the dropped weight
        `(4H, H)`, empty unless a mask was drawn for it.
    """
    steps, batch_size, input_size = x.shape
    hidden_size = w_hh.shape[1]
    compute = torch.promote_types(x.dtype, torch.float32)
    weight = _dropped_weight(w_hh.to(compute), seed, weight_p, stream, weight_mask)
    recurrence = Recurrence(weight, batch_size)
    mask = gate_mask_of(x, hidden_size, seed, gate_p, sequence, stream, gate_mask, compute)

    flat = x.reshape(steps * batch_size, input_size).to(compute)
    gates = torch.mm(w_ih.to(compute), flat.t())
    bias = _sum_of_biases(b_ih, b_hh, compute)
    gates = gates.view(4 * hidden_size, steps, batch_size)
    cells = gates.new_empty(hidden_size, steps, batch_size)
    output = x.new_empty(steps, batch_size, hidden_size)

    h, c = h0.to(compute).t(), c0.to(compute).t()
    shortest = steps if lengths is None else int(lengths.min()) if batch_size else 0
    for t in _time_order(steps, stream):
        recurrence.add_product(gates[:, t], h)
        if bias is not None:
            gates[:, t].add_(bias[:, None])
        step = gates[:, t].view(4, hidden_size, batch_size)
        step[:2].sigmoid_()
        step[2].tanh_()
        step[3].sigmoid_()
        gate_i, gate_f, gate_g, gate_o = step if mask is None else step * mask.at(t)
        c_new = torch.mul(gate_f, c, out=cells[:, t]).addcmul_(gate_i, gate_g)
        h_new = c_new.tanh().mul_(gate_o)
        output[t] = h_new.t()
        if compute != x.dtype:
            h_new = h_new.to(x.dtype).to(compute)
        if lengths is not None and t >= shortest:
            active = t < lengths
            c_new = cells[:, t].copy_(torch.where(active, c_new, c))
            h_new = torch.where(active, h_new, h)
            # Not a product: what is padded may be infinite or NaN.
            output[t].masked_fill_(~active[:, None], 0.0)
        h, c = h_new, c_new
    drawn = weight_mask is None and any(weight_p)
    dropped = weight if drawn else weight.new_empty(0)
    return output, _copy(h.t(), x.dtype), _copy(c.t(), c0.dtype), gates, cells, dropped


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _sum_of_biases(b_ih: Tensor | None, b_hh: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    biases = [bias.to(dtype) for bias in (b_ih, b_hh) if bias is not None]
    return sum(biases[1:], biases[0]) if biases else None


def lstm_backward(
    grad_output: Tensor,
    grad_h_n: Tensor,
    grad_c_n: Tensor,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    lengths: Tensor | None,
    seed: Tensor,
    weight_p: Sequence[float],
    gate_p: Sequence[float],
    sequence: bool,
    stream: int,
    weight_mask: Tensor | None,
    gate_mask: Tensor | None,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    dropped: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Differentiate `lstm_forward`; the gates' masks are drawn again from the seed.

    Args:
        grad_output: `(T, B, H)`.
        grad_h_n: `(B, H)`.
        grad_c_n: `(B, H)`.
        x: as given to the forward; so are h0, c0, w_ih, w_hh, lengths, seed, weight_p, gate_p,
            sequence, stream, weight_mask and gate_mask.
        h0: see x.
        c0: see x.
        w_ih: see x.
        w_hh: see x.
        lengths: see x.
        seed: see x.
        weight_p: see x.
        gate_p: see x.
        sequence: see x.
        stream: see x.
        weight_mask: see x.
        gate_mask: see x.
        output: `(T, B, H)` from the forward.
        gates: `(4H, T, B)` from the forward.
        cells: `(H, T, B)` from the forward.
        dropped: `(4H, H)` from the forward, or empty.
        needs: which of grad_x, grad_h0, grad_c0, grad_w_ih, grad_w_hh, grad_bias are wanted.

    Returns:
        Those six gradients, an empty tensor for each that is not wanted.
    """
    steps, batch_size, input_size = x.shape
    hidden_size = w_hh.shape[1]
    compute = gates.dtype
    weight = dropped if dropped.numel() else w_hh.to(compute)
    if weight_mask is not None:
        weight = weight * weight_mask
    # Transposed once, for a product that is formed at every step.
    recurrence = Recurrence(weight.t().contiguous(), batch_size)
    mask = gate_mask_of(x, hidden_size, seed, gate_p, sequence, stream, gate_mask, compute)

    grad_gates = torch.empty_like(gates)
    grad_out = grad_output.to(compute)
    grad_h = grad_h_n.to(compute).t()
    grad_c = grad_c_n.to(compute).t().contiguous()
    first = c0.to(compute).t()
    shortest = steps if lengths is None else int(lengths.min()) if batch_size else 0
    order = _time_order(steps, stream)
    before = -order.step
    for t in reversed(order):
        c_prev = first if t == order.start else cells[:, t + before]
        act = gates[:, t].view(4, hidden_size, batch_size)
        grad_act = grad_gates[:, t].view(4, hidden_size, batch_size)
        gate_i, gate_f, gate_g, gate_o = act if mask is None else act * mask.at(t)
        tanh_c = cells[:, t].tanh()
        grad_h_t = grad_h + grad_out[t].t()
        grad_c_t = torch.ops.aten.tanh_backward(grad_h_t * gate_o, tanh_c).add_(grad_c)
        torch.mul(grad_c_t, gate_g, out=grad_act[0])
        torch.mul(grad_c_t, c_prev, out=grad_act[1])
        torch.mul(grad_c_t, gate_i, out=grad_act[2])
        torch.mul(grad_h_t, tanh_c, out=grad_act[3])
        if mask is not None:
            grad_act.mul_(mask.at(t))
        _sigmoid_backward_(grad_act[:2], act[:2])
        torch.ops.aten.tanh_backward.grad_input(grad_act[2], act[2], grad_input=grad_act[2])
        _sigmoid_backward_(grad_act[3], act[3])
        grad_c_prev = grad_c_t.mul_(gate_f)
        if lengths is None or t < shortest:
            grad_h, grad_c = recurrence.product(grad_gates[:, t]), grad_c_prev
        else:
            active = t < lengths
            grad_act.masked_fill_(~active, 0.0)
            grad_c = torch.where(active, grad_c_prev, grad_c)
            grad_h = recurrence.product(grad_gates[:, t]).add_(grad_h.masked_fill(active, 0.0))

    flat = grad_gates.view(4 * hidden_size, steps * batch_size)
    # A custom op may not return one tensor twice.
    grad_x, grad_h0, grad_c0, grad_w_ih, grad_w_hh, grad_bias = (x.new_empty(0) for _ in needs)
    if needs[0]:
        grad_x = torch.mm(flat.t(), w_ih.to(compute)).view(x.shape).to(x.dtype)
    if needs[3]:
        inputs = x.reshape(steps * batch_size, input_size).to(compute)
        grad_w_ih = torch.mm(flat, inputs).to(w_ih.dtype)
    if needs[4]:
        grad_w_hh = _recurrent_weight_grad(grad_gates, output, h0, lengths, order)
        if weight_mask is not None:
            grad_w_hh *= weight_mask
        elif dropped.numel():
            grad_w_hh = rng.mask_gradient(grad_w_hh, w_hh, dropped, seed, weight_p, stream=stream)
        grad_w_hh = grad_w_hh.to(w_hh.dtype)
    if needs[5]:
        grad_bias = flat.sum(1).to(w_ih.dtype)
    if needs[1]:
        grad_h0 = _copy(grad_h.t(), h0.dtype)
    if needs[2]:
        grad_c0 = _copy(grad_c.t(), c0.dtype)
    return [grad_x, grad_h0, grad_c0, grad_w_ih, grad_w_hh, grad_bias]


def _sigmoid_backward_(grad: Tensor, activated: Tensor) -> None:
    torch.ops.aten.sigmoid_backward.grad_input(grad, activated, grad_input=grad)


def _recurrent_weight_grad(
    grad_gates: Tensor, output: Tensor, h0: Tensor, lengths: Tensor | None, order: range
) -> Tensor:
    """Sum grad_gates_t h_{t-1}^T over time: one GEMM over the outputs, one for the first state.

    The state before a row's first step is h0. That step is t = 0, or in the reverse direction the
    row's last one; there the output that follows in memory is zero, so the GEMM adds nothing.
    """
    rows, steps, batch_size = grad_gates.shape
    before = output.to(grad_gates.dtype)
    forwards = order.step == 1
    later = grad_gates[:, 1:] if forwards else grad_gates[:, :-1]
    earlier = before[:-1] if forwards else before[1:]
    # Sizes in full, for a batch of none leaves nothing to infer one from.
    pairs = (steps - 1) * batch_size
    grad = torch.mm(later.reshape(rows, pairs), earlier.reshape(pairs, rows // 4))
    if forwards or lengths is None:
        first = grad_gates[:, order.start]
    else:
        last = (lengths - 1).clamp_min(0).expand(rows, 1, batch_size)
        first = grad_gates.gather(1, last)[:, 0]
    return grad.addmm_(first, h0.to(grad.dtype))
