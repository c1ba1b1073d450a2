"""The hand-written forward of one LSTM layer in torch operations; eager_backward.py has the rest.

Everything is kept feature-major, `(4H, T, B)`: a step's recurrent product is `(4H, H) @ (H, B)`,
which a CPU runs faster at small B than `(B, H) @ (H, 4H)`.
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
from ulmfit_fast.lstm.eager_steps import Recurrence, gate_mask_of
from ulmfit_fast.system.seeds import initialize_vector_functions

__all__ = ["copy_as", "lstm_forward", "time_order"]


def _dropped_weight(
    w_hh: Tensor, seed: Tensor, weight_p: Sequence[float], stream: int, injected: Tensor | None
) -> Tensor:
    if injected is not None:
        return w_hh * injected
    return rng.drop_weight(w_hh, seed, weight_p, stream=stream) if any(weight_p) else w_hh


def time_order(steps: int, stream: int) -> range:
    """Return the steps as they are taken; odd streams are the reverse direction."""
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
    initialize_vector_functions()
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
    for t in time_order(steps, stream):
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
    return output, copy_as(h.t(), x.dtype), copy_as(c.t(), c0.dtype), gates, cells, dropped


def copy_as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a contiguous copy, for a custom op may not return what it was given."""
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _sum_of_biases(b_ih: Tensor | None, b_hh: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    biases = [bias.to(dtype) for bias in (b_ih, b_hh) if bias is not None]
    return sum(biases[1:], biases[0]) if biases else None
