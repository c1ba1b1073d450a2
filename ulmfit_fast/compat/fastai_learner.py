"""Swap the recurrent layers of a live fastai `Learner`, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from ulmfit_fast import backend as backends
from ulmfit_fast.checks import gate_probabilities
from ulmfit_fast.compat.fastai_layer import WeightDropLSTM
from ulmfit_fast.nn.convert import added_names, check_added, swap_modules

__all__ = ["accelerate", "restore"]

LearnerT = TypeVar("LearnerT")


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
