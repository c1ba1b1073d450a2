"""One LSTM layer with fastai's parameter names, and its way into a live `Learner` and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ulmfit_fast import backend as backends
from ulmfit_fast.checks import gate_probabilities
from ulmfit_fast.lstm.masks import DropoutMasks
from ulmfit_fast.nn.convert import added_names, check_added, swap_modules
from ulmfit_fast.nn.lstm import LSTM, State

__all__ = ["WeightDropLSTM", "accelerate", "restore"]

LearnerT = TypeVar("LearnerT")

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
        """Run the layer.

        Args:
            input: `(B, T, E)`, or `(T, B, E)` without batch_first.
            hx: (h_0, c_0), each `(D, B, H)`, of any floating dtype; None for zeros.
            lengths: tokens of each row, `(B,)`, or None where all are T.
            seed: fixes the masks; None draws one.
            masks: dropout masks to use in place of drawn ones; or None.

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


def accelerate(
    learn: LearnerT, *, gate_p: float | Sequence[float] = 0.0, backend: str = "auto"
) -> LearnerT:
    """Have a fastai `Learner` run its AWD-LSTM layers with this package, in place.

    It works on a language model and on a classifier, before or in the middle of training. The
    parameters stay the same objects under the same names: the optimizer goes on with its state,
    layers are grouped and frozen as before, and what `save` and `save_encoder` write goes to and
    comes from learners that are not accelerated. Evaluation gives what it gave before; in training
    the masks of the recurrent weights follow from `torch.manual_seed`, but are other ones than
    fastai's. In a bidirectional AWD-LSTM the recurrent weight of the second direction is dropped as
    well, which fastai forgets. On a learner that is accelerated already the call sets gate_p and
    backend.

    `load_learner` needs this package for what an accelerated learner exports; `restore` it before
    the export if that is not to be.

    Example:
        >>> import ulmfit_fast as uf
        >>> learn = language_model_learner(dls, AWD_LSTM)  # doctest: +SKIP
        >>> learn = uf.compat.fastai.accelerate(learn)  # doctest: +SKIP
        >>> learn.fit_one_cycle(1, 5e-3)  # doctest: +SKIP

    Args:
        learn: a `Learner` whose model holds an `AWD_LSTM`, or such a model itself.
        gate_p: probability of dropping an activated gate; one, or four for i, f, g, o.
        backend: one of `ulmfit_fast.backend.BACKENDS`.

    Returns:
        The same learner.

    Raises:
        ImportError: if fastai is not installed.
        TypeError: if there is no model.
        ValueError: if the model has no AWD-LSTM layer, one of them cannot be replaced, or an
            argument is out of range. The model is then as it was.
    """
    weight_dropout = _weight_dropout()
    model = _model_of(learn)
    values = gate_probabilities("gate_p", gate_p)
    one_or_four = values[0] if len(set(values)) == 1 else values
    backends.check_name(backend)
    plain = weight_dropout(nn.LSTM(1, 1, device="meta"), 0.0)
    done = [layer for layer in model.modules() if isinstance(layer, WeightDropLSTM)]

    def accelerated(name: str, old: Any) -> WeightDropLSTM:
        new = _accelerated(name, old, gate_p=one_or_four, backend=backend)
        _check_inner(name, old, new, plain)
        return new

    if not swap_modules(model, plain, accelerated) and not done:
        raise ValueError(
            f"the {type(model).__name__} has no layer of an AWD_LSTM to accelerate; make the "
            "learner with language_model_learner or text_classifier_learner and AWD_LSTM"
        )
    for dropped in done:
        dropped.gate_p, dropped.backend = one_or_four, backend
    return learn


def restore(learn: LearnerT) -> LearnerT:
    """Give an accelerated `Learner` fastai's own layers back, in place.

    The parameters stay the same objects; `gate_p` is lost, since fastai has none.

    Example:
        >>> learn = uf.compat.fastai.restore(learn)  # doctest: +SKIP

    Args:
        learn: a `Learner` that `accelerate` returned, or its model.

    Returns:
        The same learner.

    Raises:
        ImportError: if fastai is not installed.
        TypeError: if there is no model.
        ValueError: if the model has no accelerated layer, or one of them has a weight_p for each
            gate. The model is then as it was.
    """
    weight_dropout = _weight_dropout()
    model = _model_of(learn)
    plain = WeightDropLSTM(1, 1, device="meta")

    def original(name: str, old: Any) -> nn.Module:
        new = _original(name, old, weight_dropout)
        _check_inner(name, old, new, plain)
        return new

    if not swap_modules(model, plain, original):
        raise ValueError(f"the {type(model).__name__} has no layer that accelerate() made")
    return learn


def _weight_dropout() -> type[nn.Module]:
    try:
        from fastai.text.models.awdlstm import WeightDropout
    except ImportError as error:
        raise ImportError(
            "this needs the package fastai; pip install 'ulmfit-fast[compat]'"
        ) from error
    return WeightDropout  # type: ignore[no-any-return]


def _model_of(learn: Any) -> nn.Module:
    model = learn if isinstance(learn, nn.Module) else getattr(learn, "model", None)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"learn is a {type(learn).__name__}, expected a fastai Learner or its model"
        )
    return model


def _check_inner(name: str, old: Any, new: Any, plain: Any) -> None:
    """Refuse to lose what was added to the module inside, which the new layer has its own of."""
    added = added_names(old.module, plain.module) - new.module._parameters.keys()
    check_added(f"{name}.module", added)


def _accelerated(
    name: str, old: Any, *, gate_p: float | Sequence[float], backend: str
) -> WeightDropLSTM:
    lstm = old.module
    if type(lstm) is not nn.LSTM or list(old.layer_names) != ["weight_hh_l0"]:
        raise ValueError(
            f"{name} drops {', '.join(old.layer_names)} of a {type(lstm).__name__}, expected "
            "weight_hh_l0 of a torch.nn.LSTM, as AWD_LSTM has it"
        )
    if lstm.num_layers != 1 or lstm.proj_size:
        raise ValueError(
            f"{name} has num_layers={lstm.num_layers} and proj_size={lstm.proj_size}, expected one "
            "layer without projections, as AWD_LSTM has it"
        )
    new = WeightDropLSTM(
        lstm.input_size,
        lstm.hidden_size,
        bias=lstm.bias,
        batch_first=lstm.batch_first,
        bidirectional=lstm.bidirectional,
        device="meta",
        weight_p=old.weight_p,
        gate_p=gate_p,
        backend=backend,
    )
    new.weight_hh_l0_raw = old.weight_hh_l0_raw
    for key in new.module._parameters:
        setattr(new.module, key, getattr(lstm, key))
    return new


def _original(name: str, old: WeightDropLSTM, weight_dropout: Any) -> nn.Module:
    if not isinstance(old.weight_p, (int, float)):
        raise ValueError(
            f"{name} has weight_p={old.weight_p!r}, and fastai knows one value for all gates; set "
            "weight_p to one number first"
        )
    lstm = nn.LSTM(
        old.input_size,
        old.hidden_size,
        bias=old.bias,
        batch_first=old.batch_first,
        bidirectional=old.bidirectional,
        device="meta",
    )
    lstm.weight_hh_l0 = old.weight_hh_l0_raw
    for key, parameter in old.module._parameters.items():
        setattr(lstm, key, parameter)
    new: nn.Module = weight_dropout(lstm, old.weight_p)
    # It made a parameter of its own of the weight, and the layer will be the old object.
    new.weight_hh_l0_raw = old.weight_hh_l0_raw
    vars(lstm)["flatten_parameters"] = weight_dropout._do_nothing.__get__(old)
    return new
