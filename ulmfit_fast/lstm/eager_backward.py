"""The eager LSTM's backward: an operator written by hand in torch operations.

From the last step to the first in chunks. What does not depend on the carried gradients is formed
for all steps of a chunk at once; then each step is a few multiplications and its product; then the
chunk's gradients go into those of x and the weights, each by one GEMM. So the gradients of the
gates are held for one chunk, never for all T.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ulmfit_fast import rng
from ulmfit_fast.lstm.eager import GateMask, Recurrence, copy_as, time_order

__all__ = ["lstm_eager_backward"]

# Steps times batch of a chunk, about: enough for the GEMMs, little enough to hold.
_CHUNK = 512


@torch.library.custom_op("ulmfit_fast::lstm_eager_backward", mutates_args=())
def lstm_eager_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiate `lstm_eager`; the gates' masks are drawn again from the seed.

    Args:
        grad_output: `(T, B, H)`.
        grad_h_n: `(B, H)`.
        grad_c_n: `(B, H)`.
        x: `(T, B, E)`, as given to the forward; so are those that follow, up to gate_mask.
        h0: `(B, H)`.
        c0: `(B, H)`.
        w_ih: `(4H, E)`.
        w_hh: `(4H, H)`, undropped.
        lengths: `(B,)` int64 or None.
        seed: 0-d int64 CPU tensor.
        weight_p: four probabilities of weight-drop.
        gate_p: four probabilities of gate dropout.
        sequence: one gate mask for all steps instead of one a step.
        stream: 2 * layer + reverse.
        weight_mask: `(4H, H)`, used instead of a drawn one.
        gate_mask: `(T, B, 4H)` or `(1, B, 4H)`, used instead of a drawn one.
        output: `(T, B, H)` from the forward.
        gates: `(4H, T, B)` from the forward.
        cells: `(H, T, B)` from the forward.
        dropped: `(4H, H)` from the forward, or empty.
        needs: which of grad_x, grad_h0, grad_c0, grad_w_ih, grad_w_hh, grad_bias are wanted.

    Returns:
        Those six gradients, an empty tensor for each that is not wanted. Not a list: PyTorch
        batches an operator over several gradients at once if it returns tensors.
    """
    with torch.autocast(x.device.type, enabled=False):
        steps, batch_size, _ = x.shape
        hidden_size = w_hh.shape[1]
        compute = gates.dtype
        weight = dropped if dropped.numel() else w_hh.to(compute)
        if weight_mask is not None:
            weight = weight * weight_mask
        # Transposed once, for a product that is formed at every step.
        recurrence = Recurrence(weight.t().contiguous(), batch_size)  # of (H, 4H)
        masked = gate_mask is not None or any(gate_p)
        mask = GateMask(gates, seed, gate_p, sequence, stream, gate_mask) if masked else None
        order = time_order(steps, stream)
        sums = _Sums(x, h0, w_ih, output, lengths, order, needs, compute)

        grad_out = grad_output.to(compute)  # (T, B, H)
        grad_h = grad_h_n.to(compute).t()  # (H, B)
        grad_c = grad_c_n.to(compute).t().contiguous()  # (H, B)
        first = c0.to(compute).t()  # (H, B)
        shortest = steps if lengths is None else int(lengths.min()) if batch_size else 0
        for chunk in _chunks(order, batch_size):
            before = _shifted(cells, chunk, order, first)  # (H, n, B)
            grads, into_c, gate_f = _factors(gates, cells, before, chunk, mask)
            steps_of_it = grads.view(4, hidden_size, len(chunk), batch_size)  # of (4H, n, B)
            for t in reversed(chunk) if order.step == 1 else chunk:
                k = t - chunk.start
                grad_h_t = grad_h + grad_out[t].t()  # (H, B)
                grad_c_t = torch.addcmul(grad_c, grad_h_t, into_c[:, k])
                steps_of_it[:3, :, k].mul_(grad_c_t)
                steps_of_it[3, :, k].mul_(grad_h_t)
                grad_c_prev = grad_c_t.mul_(gate_f[:, k])
                if lengths is None or t < shortest:
                    grad_c = grad_c_prev
                    if t != order.start or needs[1]:
                        grad_h = recurrence.product(grads[:, k])
                else:
                    active = t < lengths  # (B,)
                    steps_of_it[:, :, k].masked_fill_(~active, 0.0)
                    grad_c = torch.where(active, grad_c_prev, grad_c)
                    carried = grad_h.masked_fill(active, 0.0)
                    grad_h = recurrence.product(grads[:, k]).add_(carried)
            sums.add(grads, chunk)

        grad_x, grad_w_ih, grad_w_hh, grad_bias = sums.total()
        if needs[4]:
            if weight_mask is not None:
                grad_w_hh *= weight_mask
            elif dropped.numel():
                grad_w_hh = rng.mask_gradient(
                    grad_w_hh, w_hh, dropped, seed, weight_p, stream=stream
                )
        grad_h0 = copy_as(grad_h.t(), h0.dtype) if needs[1] else x.new_empty(0)  # (B, H)
        grad_c0 = copy_as(grad_c.t(), c0.dtype) if needs[2] else x.new_empty(0)
        weights = (grad_w_ih.to(w_ih.dtype), grad_w_hh.to(w_hh.dtype), grad_bias.to(w_ih.dtype))
        return grad_x, grad_h0, grad_c0, *weights


@lstm_eager_backward.register_fake
def _(
    grad_output: Tensor,
    grad_h_n: Tensor,
    grad_c_n: Tensor,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    needs = rest[-1]
    bias = w_hh.new_empty(w_hh.shape[0])
    likes = (x, h0, c0, w_ih, w_hh, bias)
    return tuple(
        torch.empty_like(like, memory_format=torch.contiguous_format) if need else x.new_empty(0)
        for like, need in zip(likes, needs, strict=True)
    )


def _chunks(order: range, batch_size: int) -> Iterator[range]:
    """Yield ranges of about as many steps each, from the last that was taken to the first."""
    steps = len(order)
    count = max(1, round(steps * batch_size / _CHUNK))
    size = -(-steps // count) if steps else 1
    chunks = [range(start, min(start + size, steps)) for start in range(0, steps, size)]
    yield from reversed(chunks) if order.step == 1 else chunks


def _shifted(cells: Tensor, chunk: range, order: range, first: Tensor) -> Tensor:
    """Return the cell states before each step of a chunk, `(H, n, B)`."""
    if order.start not in chunk:
        return cells[:, chunk.start - order.step : chunk.stop - order.step]
    if order.step == 1:
        return torch.cat([first[:, None], cells[:, : chunk.stop - 1]], 1)  # (H, n, B)
    return torch.cat([cells[:, chunk.start + 1 :], first[:, None]], 1)  # (H, n, B)


def _factors(
    gates: Tensor, cells: Tensor, before: Tensor, chunk: range, mask: GateMask | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the steps of a chunk are to be multiplied by.

    First the gradients of the pre-activations, `(4H, n, B)`, but for the gradient of c as a factor,
    or for the output gate that of h; then the share of h's gradient that goes into c's, and the
    masked forget gate, both `(H, n, B)`.
    """
    rows, _, batch_size = gates.shape
    act = gates[:, chunk.start : chunk.stop].view(4, rows // 4, len(chunk), batch_size)
    masked = act  # (4, H, n, B)
    if mask is not None:
        scales = torch.stack([mask.at(t) for t in chunk], 2)  # (4, H, n, B)
        masked = act * scales
    tanh_c = cells[:, chunk.start : chunk.stop].tanh()  # (H, n, B)
    grads = gates.new_empty(rows, len(chunk), batch_size)  # (4H, n, B)
    grad_i, grad_f, grad_g, grad_o = grads.view_as(act)  # (H, n, B)
    _sigmoid_backward(masked[2], act[0], grad_i)
    _sigmoid_backward(before, act[1], grad_f)
    torch.ops.aten.tanh_backward.grad_input(masked[0], act[2], grad_input=grad_g)
    _sigmoid_backward(tanh_c, act[3], grad_o)
    if mask is not None:
        grads.view_as(act).mul_(scales)
    return grads, torch.ops.aten.tanh_backward(masked[3], tanh_c), masked[1]


def _sigmoid_backward(grad: Tensor, activated: Tensor, out: Tensor) -> None:
    torch.ops.aten.sigmoid_backward.grad_input(grad, activated, grad_input=out)


class _Sums:
    """The gradients of x, the weights and the bias, chunk by chunk."""

    def __init__(
        self,
        x: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        output: Tensor,
        lengths: Tensor | None,
        order: range,
        needs: Sequence[bool],
        compute: torch.dtype,
    ) -> None:
        self._x, self._h0, self._w_ih, self._output = x, h0, w_ih.to(compute), output
        self._lengths, self._order, self._needs, self._compute = lengths, order, needs, compute
        rows, input_size = w_ih.shape

        def wanted(which: int, *shape: int) -> Tensor:
            return self._w_ih.new_zeros(shape if needs[which] else 0)

        # A custom op may not return one tensor twice, so what is not wanted is a new one, empty.
        self._grad_x = x.new_empty(x.shape if needs[0] else 0)
        self._grad_w_ih = wanted(3, rows, input_size)
        self._grad_w_hh = wanted(4, rows, rows // 4)
        self._grad_bias = wanted(5, rows)

    def add(self, grads: Tensor, chunk: range) -> None:
        """Add what the gradients of a chunk's pre-activations, `(4H, n, B)`, bring."""
        rows, steps, batch_size = grads.shape
        flat = grads.view(rows, steps * batch_size)  # (4H, nB)
        inside = slice(chunk.start, chunk.stop)
        if self._needs[0]:
            grad_x = torch.mm(flat.t(), self._w_ih)  # (nB, E)
            self._grad_x[inside] = grad_x.view(steps, batch_size, self._w_ih.shape[1])
        if self._needs[3]:
            inputs = self._x[inside].to(self._compute)
            self._grad_w_ih.addmm_(flat, inputs.reshape(steps * batch_size, inputs.shape[2]))
        if self._needs[4]:
            self._add_recurrent(grads, chunk)
        if self._needs[5]:
            self._grad_bias.add_(flat.sum(1))

    def _add_recurrent(self, grads: Tensor, chunk: range) -> None:
        """Add grads_t h_{t-1}^T: one GEMM over the outputs, and one for the first state.

        The state before a row's first step is h0. That step is t = 0, or in the reverse direction
        the row's last one; there the output that follows in memory is zero, so the first GEMM adds
        nothing.
        """
        order, hidden_size = self._order, grads.shape[0] // 4
        start, stop = chunk.start - order.step, chunk.stop - order.step
        later = grads
        if order.start in chunk:
            later = grads[:, 1:] if order.step == 1 else grads[:, :-1]
            start, stop = max(start, 0), min(stop, len(order))
        # Sizes in full, for a batch of none leaves nothing to infer one from.
        pairs = (stop - start) * grads.shape[2]
        earlier = self._output[start:stop].to(self._compute).reshape(pairs, hidden_size)  # (nB, H)
        self._grad_w_hh.addmm_(later.reshape(grads.shape[0], pairs), earlier)
        if order.step == 1 or self._lengths is None:
            if order.start in chunk:
                self._add_first(grads[:, order.start - chunk.start])
            return
        last = (self._lengths - 1).clamp_min(0) - chunk.start
        inside = (last >= 0) & (last < len(chunk))
        picked = last.clamp(0, len(chunk) - 1).expand(grads.shape[0], 1, -1)
        self._add_first(grads.gather(1, picked)[:, 0].masked_fill(~inside, 0.0))

    def _add_first(self, grads: Tensor) -> None:
        self._grad_w_hh.addmm_(grads, self._h0.to(self._compute))

    def total(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of x, W_ih, W_hh and the bias."""
        return self._grad_x, self._grad_w_ih, self._grad_w_hh, self._grad_bias
