"""The LSTM as its equations say it: plain autograd, any dtype, double backward. The truth."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit_fast.lstm.masks import DropoutMasks

__all__ = ["lstm_layer"]

State = tuple[Tensor, Tensor]


def lstm_layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    masks: DropoutMasks,
    lengths: Tensor | None,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer in one direction.

    With M the weight mask and z the gate masks:

        a_t = W x_t + b_ih + (M * U) h_{t-1} + b_hh
        i, f, o = z * sigmoid(a),  g = z * tanh(a)
        c_t = f c_{t-1} + i g
        h_t = o tanh(c_t)

    Half precision is computed in float32; h alone is rounded to the dtype of x, once a step.

    Args:
        x: `(T, B, E)` input.
        h0: `(B, H)` hidden state before the first step.
        c0: `(B, H)` cell state before the first step, possibly of a wider dtype than x.
        w_ih: `(4H, E)` input weight W.
        w_hh: `(4H, H)` recurrent weight U.
        b_ih: `(4H,)` or None.
        b_hh: `(4H,)` or None.
        masks: what to drop, values 0 and 1/(1-p).
        lengths: `(B,)` int64; a row's state stops at its length and later outputs are zeros.
        reverse: run from the last step to the first.

    Returns:
        output `(T, B, H)`, h_n `(B, H)`, c_n `(B, H)` in the dtype of c0.

    Source:
        Hochreiter & Schmidhuber 1997; Merity, Keskar & Socher 2018 (arXiv:1708.02182), section 2.
    """
    steps, dtype = x.shape[0], x.dtype
    compute = torch.promote_types(dtype, torch.float32)
    x, w_ih, w_hh = x.to(compute), w_ih.to(compute), w_hh.to(compute)
    b_ih, b_hh = (None if bias is None else bias.to(compute) for bias in (b_ih, b_hh))
    if masks.weight is not None:
        w_hh = w_hh * masks.weight
    weights = (w_hh,) if b_hh is None else (w_hh, b_hh)
    h, c = h0, c0.to(torch.promote_types(compute, c0.dtype))

    if torch.compiler.is_exporting():
        inputs = F.linear(x, w_ih, b_ih)  # (T, B, 4H)
        output, h, c = _scanned(inputs, (h, c), weights, masks.gate, lengths, reverse=reverse)
        return output, h, c.to(c0.dtype)
    outputs: list[Tensor] = [h] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        z = None if masks.gate is None else masks.gate[t if masks.gate.shape[0] > 1 else 0]
        active = None if lengths is None else (t < lengths)[:, None]  # (B, 1)
        h, c = _step(F.linear(x[t], w_ih, b_ih), (h, c), weights, z, active)  # (B, H)
        outputs[t] = h if active is None else h.masked_fill(~active, 0.0)
    output = torch.stack(outputs) if steps else h0.new_zeros(0, *h0.shape)  # (T, B, H)
    return output, h, c.to(c0.dtype)


def _step(
    inputs: Tensor,
    state: State,
    weights: tuple[Tensor, ...],
    z: Tensor | None,
    active: Tensor | None,
) -> State:
    h, c = state
    activations = inputs + F.linear(h.to(inputs.dtype), *weights)  # (B, 4H)
    a_i, a_f, a_g, a_o = activations.chunk(4, dim=1)  # (B, H)
    gates = torch.cat([a_i.sigmoid(), a_f.sigmoid(), a_g.tanh(), a_o.sigmoid()], dim=1)  # (B, 4H)
    if z is not None:
        gates = gates * z
    gate_i, gate_f, gate_g, gate_o = gates.chunk(4, dim=1)
    c_new = gate_f * c + gate_i * gate_g
    h_new = (gate_o * c_new.tanh()).to(h.dtype)
    if active is None:
        return h_new, c_new
    return torch.where(active, h_new, h), torch.where(active, c_new, c)


def _scanned(
    inputs: Tensor,
    state: State,
    weights: tuple[Tensor, ...],
    gate_mask: Tensor | None,
    lengths: Tensor | None,
    *,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Go over the steps in an operator of PyTorch's own, whose program takes any T."""
    from torch._higher_order_ops.scan import scan, scan_op

    given = {"inputs": inputs}
    if gate_mask is not None:
        given["z"] = gate_mask.expand(inputs.shape[0], -1, -1)  # (T, B, 4H)
    if lengths is not None:
        steps = torch.arange(inputs.shape[0], dtype=torch.int64, device=inputs.device)  # (T,)
        given["active"] = (steps[:, None] < lengths)[:, :, None]  # (T, B, 1)
    names = tuple(given)

    def step(h: Tensor, c: Tensor, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        now = dict(zip(names, values, strict=False))
        active = now.get("active")
        h, c = _step(now["inputs"], (h, c), values[len(names) :], now.get("z"), active)
        # What is carried on and what is given out must be two tensors.
        return h, c, h.clone() if active is None else h.masked_fill(~active, 0.0)

    def in_dynamo(state: State, values: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        h, c, output = step(*state, *values, *weights)
        return (h, c), output

    values = tuple(value.flip(0) if reverse else value for value in given.values())
    h, c = state[0].clone(), state[1].clone()
    if torch.compiler.is_dynamo_compiling():
        (h, c), output = scan(in_dynamo, (h, c), values)
    else:
        # `scan` would start Dynamo, whose guards of an earlier export fail in a later one.
        h, c, output = scan_op(step, [h, c], values, weights)
    return output.flip(0) if reverse else output, h, c
