"""One LSTM layer with fastai's parameter names and this package's recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ulmfit_fast.lstm.masks import DropoutMasks
from ulmfit_fast.nn.lstm import LSTM, State

__all__ = ["WeightDropLSTM"]

_DROPPED = "weight_hh_l0"
_RAW = "weight_hh_l0_raw"


class WeightDropLSTM(LSTM):
    """An `ulmfit_fast.LSTM` of one layer that stands in for fastai's `WeightDropout(nn.LSTM)`.

    Its state_dict has fastai's keys in fastai's order: the recurrent weight is
    `weight_hh_l0_raw`, everything else lies under `module`. The state may come in the dtype and on
    the device that the model had before it was converted. `weight_p` may be set at any time.

    Example:
        >>> layer = WeightDropLSTM(4, 6, weight_p=0.5)
        >>> list(layer.state_dict())[:2]
        ['weight_hh_l0_raw', 'module.weight_ih_l0']
        >>> layer(torch.randn(3, 2, 4))[0].shape
        torch.Size([3, 2, 6])

    Args:
        input_size: E.
        hidden_size: H.
        bias: whether there are b_ih and b_hh.
        batch_first: input and output as `(B, T, .)`, as in fastai.
        bidirectional: run both directions; both recurrent weights are dropped.
        device: device of the parameters.
        dtype: dtype of the parameters.
        weight_p: probability of dropping a recurrent weight; one, or four for i, f, g, o.
        gate_p: probability of dropping an activated gate; one or four.
        backend: one of `ulmfit_fast.backend.BACKENDS`.

    Raises:
        ValueError: if a size is not positive or a probability lies outside [0, 1].
        TypeError: if a size is not a whole number, or a probability not a number.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        batch_first: bool = True,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        weight_p: float | Sequence[float] = 0.0,
        gate_p: float | Sequence[float] = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
            weight_p=weight_p,
            gate_p=gate_p,
            backend=backend,
        )
        self.module = nn.Module()
        for name in self._flat_weights_names:
            parameter = self._parameters.pop(name)
            if name == _DROPPED:
                self.register_parameter(_RAW, parameter)
            else:
                self.module.register_parameter(name, parameter)

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each direction: w_ih, w_hh and, with bias, b_ih, b_hh."""
        return [[self._weight(name) for name in names] for names in self._all_weights]

    def _weight(self, name: str) -> nn.Parameter:
        found: nn.Parameter = (
            getattr(self, _RAW) if name == _DROPPED else getattr(self.module, name)
        )
        return found

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        lengths: Tensor | None = None,
        seed: Tensor | int | None = None,
        masks: Sequence[DropoutMasks] | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run the layer; see `ulmfit_fast.LSTM.forward`.

        Args:
            input: `(B, T, E)`, or `(T, B, E)` without batch_first.
            hx: (h_0, c_0), each `(D, B, H)`, of any floating dtype; None for zeros.
            lengths: as for `ulmfit_fast.LSTM`.
            seed: as for `ulmfit_fast.LSTM`.
            masks: as for `ulmfit_fast.LSTM`.

        Returns:
            output with D * H features, and (h_n, c_n), of the class of the input; c is in float32
            where h is in half precision.
        """
        kind = _own_class(input)
        if isinstance(input, Tensor):
            input = _plain(input)
        if hx is not None:
            weight = getattr(self, _RAW)
            wide = torch.promote_types(weight.dtype, torch.float32)
            h, c = (_plain(part) for part in hx)
            hx = h.to(weight.device, weight.dtype), c.to(weight.device, wide)
        output, (h, c) = super().forward(input, hx, lengths=lengths, seed=seed, masks=masks)
        if kind is not None and isinstance(output, Tensor):
            return output.as_subclass(kind), (h.as_subclass(kind), c.as_subclass(kind))
        return output, (h, c)


def _own_class(x: object) -> Any:
    """Return the class by which fastai says what a tensor stands for, or None."""
    kind = type(x)
    if not isinstance(x, Tensor) or kind in (Tensor, nn.Parameter):
        return None
    # torch.export runs this on tensors of classes of its own.
    return None if torch.compiler.is_exporting() else kind


def _plain(x: Tensor) -> Tensor:
    # Every operation on such a class goes through Python twice.
    return x if _own_class(x) is None else x.as_subclass(Tensor)
