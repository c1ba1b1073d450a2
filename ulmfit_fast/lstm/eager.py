"""The eager LSTM's forward: an operator written by hand in torch operations.

Everything is kept feature-major, `(4H, T, B)`: a step's recurrent product is `(4H, H) @ (H, B)`,
which a CPU runs faster at small B than `(B, H) @ (H, 4H)`.
The dropped weight is kept for the backward, which costs less than to draw its mask again; the gate
masks are drawn again.
Half precision is computed in float32 and rounded to the input's dtype once a step, as h is
exchanged in the compute dtype while c stays in float32.
Being opaque to `torch.compile`, the operator is taken whole into its graphs. operators.py joins it
to its backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit_fast import rng
from ulmfit_fast.system.seeds import initialize_vector_functions

__all__ = ["GateMask", "Recurrence", "copy_as", "lstm_eager", "time_order"]

# Gate masks are made for several steps at once: about this many Philox counters a call.
_MASK_BLOCK = 1 << 16
# Below this batch size and above this weight size, oneDNN beats the BLAS: it reads the weight in
# place where the BLAS packs it anew at each step. Measured at H = 1152: 1.8 against 2.5 ms at
# B = 16, 2.8 against 3.0 at B = 32, 4.6 against 4.0 at B = 48.
_ONEDNN_BATCH_SIZE = 32
_ONEDNN_WEIGHTS = 1 << 20


class Recurrence:
    """The product of one weight with a new state at every step."""

    def __init__(self, weight: Tensor, batch_size: int) -> None:
        self._opaque = None
        self._weight = weight
        if (
            0 < batch_size <= _ONEDNN_BATCH_SIZE
            and weight.numel() >= _ONEDNN_WEIGHTS
            and weight.dtype == torch.float32
            and weight.device.type == "cpu"
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        ):
            self._opaque = weight.contiguous().to_mkldnn()

    def product(self, state: Tensor) -> Tensor:
        """Return `(rows, K) @ (K, B)`."""
        if self._opaque is None:
            return torch.mm(self._weight, state)
        return F.linear(self._opaque, state.t().contiguous()).to_dense()

    def add_product(self, out: Tensor, state: Tensor) -> None:
        """Add `(rows, K) @ (K, B)` to out."""
        if self._opaque is None:
            out.addmm_(self._weight, state)
        else:
            out.add_(self.product(state))


class GateMask:
    """The gate mask of one time step after the other, as `(4, H, B)`, never held for all T."""

    def __init__(
        self,
        like: Tensor,
        seed: Tensor,
        p: Sequence[float],
        sequence: bool,
        stream: int,
        injected: Tensor | None,
    ) -> None:
        rows, self._steps, self._batch_size = like.shape  # (4H, T, B)
        self._hidden_size, self._dtype, self._device = rows // 4, like.dtype, like.device
        self._seed, self._p, self._stream, self._injected = seed, p, stream, injected
        self._sequence = sequence if injected is None else injected.shape[0] == 1
        self._block = max(1, _MASK_BLOCK // max(1, self._batch_size * self._hidden_size))
        self._range, self._cache = range(0), like.new_empty(0)

    def at(self, t: int) -> Tensor:
        """Return the mask of step t."""
        if self._sequence:
            t = 0
        if self._injected is not None:
            mask = self._injected[t].t().to(self._dtype)  # (4H, B)
            return mask.reshape(4, self._hidden_size, self._batch_size)
        if t not in self._range:
            start = t - t % self._block
            stop = 1 if self._sequence else min(self._steps, start + self._block)
            self._range = range(start, stop)
            keep = rng.gate_keep(
                self._seed,
                self._range,
                self._batch_size,
                self._hidden_size,
                self._p,
                stream=self._stream,
                device=self._device,
            )
            by_gate = keep.view(len(self._range), self._batch_size, 4, self._hidden_size)
            self._cache = by_gate.permute(0, 2, 3, 1).to(self._dtype)  # (n, 4, H, B)
            # By numbers: a tensor of them would be copied to the device, and waited for.
            for gate, p in enumerate(self._p):
                self._cache[:, gate].mul_(rng.keep_scale(p))
        return self._cache[t - self._range.start]


def _dropped_weight(
    w_hh: Tensor, seed: Tensor, weight_p: Sequence[float], stream: int, injected: Tensor | None
) -> Tensor:
    if injected is not None:
        return w_hh * injected
    return rng.drop_weight(w_hh, seed, weight_p, stream=stream) if any(weight_p) else w_hh


def time_order(steps: int, stream: int) -> range:
    """Return the steps as they are taken; odd streams are the reverse direction."""
    return range(steps - 1, -1, -1) if stream & 1 else range(steps)


@torch.library.custom_op("ulmfit_fast::lstm_eager", mutates_args=())
def lstm_eager(
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
    # The caller has cast already; autocast would take the loop's GEMMs to half precision.
    with torch.autocast(x.device.type, enabled=False):
        initialize_vector_functions()
        steps, batch_size, input_size = x.shape
        hidden_size = w_hh.shape[1]
        compute = torch.promote_types(x.dtype, torch.float32)
        weight = _dropped_weight(w_hh.to(compute), seed, weight_p, stream, weight_mask)  # (4H, H)
        recurrence = Recurrence(weight, batch_size)

        flat = x.reshape(steps * batch_size, input_size).to(compute)  # (TB, E)
        gates = torch.mm(w_ih.to(compute), flat.t())  # (4H, TB)
        gates = gates.view(4 * hidden_size, steps, batch_size)  # (4H, T, B)
        bias = _sum_of_biases(b_ih, b_hh, compute)
        masked = gate_mask is not None or any(gate_p)
        mask = GateMask(gates, seed, gate_p, sequence, stream, gate_mask) if masked else None
        cells = gates.new_empty(hidden_size, steps, batch_size)  # (H, T, B)
        output = x.new_empty(steps, batch_size, hidden_size)

        h, c = h0.to(compute).t(), c0.to(compute).t()  # (H, B)
        shortest = steps if lengths is None else int(lengths.min()) if batch_size else 0
        for t in time_order(steps, stream):
            recurrence.add_product(gates[:, t], h)
            if bias is not None:
                gates[:, t].add_(bias[:, None])
            step = gates[:, t].view(4, hidden_size, batch_size)  # (4, H, B)
            step[:2].sigmoid_()
            step[2].tanh_()
            step[3].sigmoid_()
            gate_i, gate_f, gate_g, gate_o = step if mask is None else step * mask.at(t)  # (H, B)
            c_new = torch.mul(gate_f, c, out=cells[:, t]).addcmul_(gate_i, gate_g)
            h_new = c_new.tanh().mul_(gate_o)  # (H, B)
            output[t] = h_new.t()  # (B, H)
            if compute != x.dtype:
                h_new = h_new.to(x.dtype).to(compute)
            if lengths is not None and t >= shortest:
                active = t < lengths  # (B,)
                c_new = cells[:, t].copy_(torch.where(active, c_new, c))
                h_new = torch.where(active, h_new, h)
                # Not a product: what is padded may be infinite or NaN.
                output[t].masked_fill_(~active[:, None], 0.0)
            h, c = h_new, c_new
        drawn = weight_mask is None and any(weight_p)
        dropped = weight if drawn else weight.new_empty(0)
        return output, copy_as(h.t(), x.dtype), copy_as(c.t(), c0.dtype), gates, cells, dropped


@lstm_eager.register_fake
def _(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weight_p, weight_mask = rest[4], rest[8]
    steps, batch_size, _ = x.shape
    rows, hidden_size = w_hh.shape
    compute = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty(steps, batch_size, hidden_size),
        h0.new_empty(batch_size, hidden_size, dtype=x.dtype),
        c0.new_empty(batch_size, hidden_size),
        x.new_empty(rows, steps, batch_size, dtype=compute),
        x.new_empty(hidden_size, steps, batch_size, dtype=compute),
        w_hh.new_empty(w_hh.shape if any(weight_p) and weight_mask is None else 0, dtype=compute),
    )


def copy_as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a contiguous copy, for a custom op may not return what it was given."""
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _sum_of_biases(b_ih: Tensor | None, b_hh: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    biases = [bias.to(dtype) for bias in (b_ih, b_hh) if bias is not None]
    return sum(biases[1:], biases[0]) if biases else None
