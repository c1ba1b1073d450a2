"""What the eager LSTM does anew at every time step: the recurrent product and the gate mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit_fast import rng

__all__ = ["GateMask", "Recurrence", "gate_mask_of"]

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
        seed: Tensor,
        shape: tuple[int, int, int],
        p: Sequence[float],
        *,
        sequence: bool,
        stream: int,
        injected: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._seed, self._p, self._stream = seed, p, stream
        self._steps, self._batch_size, self._hidden_size = shape
        self._sequence = sequence if injected is None else injected.shape[0] == 1
        self._injected, self._dtype, self._device = injected, dtype, device
        self._block = max(1, _MASK_BLOCK // max(1, self._batch_size * self._hidden_size))
        self._range, self._cache = range(0), torch.empty(0, dtype=dtype, device=device)

    def at(self, t: int) -> Tensor:
        """Return the mask of step t."""
        if self._sequence:
            t = 0
        if self._injected is not None:
            mask = self._injected[t].t().to(self._dtype)
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
            self._cache = by_gate.permute(0, 2, 3, 1).to(self._dtype)
            # By numbers: a tensor of them would be copied to the device, and waited for.
            for gate, p in enumerate(self._p):
                self._cache[:, gate].mul_(rng.keep_scale(p))
        return self._cache[t - self._range.start]


def gate_mask_of(
    x: Tensor,
    hidden_size: int,
    seed: Tensor,
    gate_p: Sequence[float],
    sequence: bool,
    stream: int,
    injected: Tensor | None,
    dtype: torch.dtype,
) -> GateMask | None:
    """Return the gate masks of a call, or None when no gate is masked."""
    if injected is None and not any(gate_p):
        return None
    return GateMask(
        seed,
        (x.shape[0], x.shape[1], hidden_size),
        gate_p,
        sequence=sequence,
        stream=stream,
        injected=injected,
        dtype=dtype,
        device=x.device,
    )
