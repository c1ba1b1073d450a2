"""Turn every `torch.nn.LSTM` of a model into an `ulmfit_fast.LSTM`, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ulmfit_fast.nn.lstm import LSTM
from ulmfit_fast.system.scoped import ignoring

__all__ = ["added_names", "check_added", "convert_lstm", "restore_lstm", "swap_modules"]


def convert_lstm(
    module: nn.Module,
    *,
    weight_p: float | Sequence[float] = 0.0,
    gate_p: float | Sequence[float] = 0.0,
    gate_mask: str = "step",
    backend: str = "auto",
) -> nn.Module:
    """Turn every `torch.nn.LSTM` of a model, in place, into one that drops weights and gates.

    Each layer stays the same object and changes its class, so whatever holds it sees the change,
    another model too. Its parameters stay, so an optimizer made before goes on, and so do its
    hooks, buffers, submodules and attributes. Evaluation gives what it gave before. A layer that no
    module of the model registers, as in a plain list alone, is not found.

    Example:
        >>> import torch
        >>> import ulmfit_fast as uf
        >>> model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(4, 6), "out": torch.nn.Linear(6, 2)})
        >>> uf.convert_lstm(model, weight_p=0.5)["rnn"]
        LSTM(4, 6, weight_p=0.5)
        >>> uf.restore_lstm(model)["rnn"]
        LSTM(4, 6)

    Args:
        module: the model, or one LSTM.
        weight_p: probability of dropping a recurrent weight; one, or four for the gates i, f, g, o.
            Merity et al. 2018 drop 0.5 in language models of words; fastai's language models 0.2
            and classifiers 0.5, MultiFiT 0.15 (see `presets`). For other tasks try a few.
        gate_p: probability of dropping an activated gate; one or four.
        gate_mask: "step" for a new gate mask at each time step; "sequence" for one in all.
        backend: one of `ulmfit_fast.backend.BACKENDS`.

    Returns:
        The same model.

    Raises:
        ValueError: if there is no `torch.nn.LSTM`, or one of them cannot be turned: it has
            projections, is of a subclass, its weights are not plain parameters, its `forward` is
            replaced, or it has an attribute by a name that `ulmfit_fast.LSTM` uses. The model is
            then as it was.

    Source:
        Merity et al. 2018 (arXiv:1708.02182), section 4, for weight_p.
    """

    def replacement(old: nn.LSTM) -> LSTM:
        return LSTM(
            **_sizes(old),
            device="meta",
            weight_p=weight_p,
            gate_p=gate_p,
            gate_mask=gate_mask,
            backend=backend,
        )

    return _swapped(module, nn.LSTM(1, 1, device="meta"), replacement)


def restore_lstm(module: nn.Module) -> nn.Module:
    """Turn every `ulmfit_fast.LSTM` of a model, in place, into a `torch.nn.LSTM`.

    As with `convert_lstm`, each layer stays the same object. `weight_p` and `gate_p` are lost:
    nn.LSTM has neither.

    Example:
        >>> import ulmfit_fast as uf
        >>> uf.restore_lstm(uf.LSTM(4, 6, weight_p=0.5))
        LSTM(4, 6)

    Args:
        module: the model, or one LSTM.

    Returns:
        The same model.

    Raises:
        ValueError: if there is no `ulmfit_fast.LSTM`, or one of them cannot be turned, as for
            `convert_lstm`. The model is then as it was.
    """

    def replacement(old: LSTM) -> nn.LSTM:
        return nn.LSTM(**_sizes(old), device="meta")

    return _swapped(module, LSTM(1, 1, device="meta"), replacement)


def _sizes(layer: nn.LSTM | LSTM) -> dict[str, Any]:
    """Return the sizes and options that both kinds of LSTM are made with, by name."""
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")
    return {name: getattr(layer, name) for name in (*names, "bidirectional")}


def _swapped(module: nn.Module, plain: nn.Module, empty: Callable[..., nn.Module]) -> nn.Module:
    def replacement(name: str, old: nn.Module) -> nn.Module:
        _check_weights(name, old)
        # The old layer has said already that dropout needs a second layer.
        with ignoring(UserWarning):
            new = empty(old)
        for weight in new._parameters:
            setattr(new, weight, old._parameters[weight])
        return new

    if not swap_modules(module, plain, replacement):
        kind = type(plain)
        raise ValueError(f"the {type(module).__name__} has no {kind.__module__}.{kind.__name__}")
    return module


def _check_weights(name: str, layer: nn.Module) -> None:
    if getattr(layer, "proj_size", 0):
        raise ValueError(
            f"{name} has proj_size={layer.proj_size}, and projections are not supported"
        )
    for weights in layer._all_weights:  # type: ignore[union-attr]
        for weight in weights:
            if layer._parameters.get(weight) is None:
                raise ValueError(
                    f"{weight} of {name} is no parameter of its own: something around the layer or "
                    "on it computes the weight, a weight drop or a parametrization; remove that "
                    "first (for fastai, ulmfit_fast.compat.fastai.accelerate does)"
                )


def swap_modules(
    module: nn.Module, plain: nn.Module, replacement: Callable[[str, Any], nn.Module]
) -> bool:
    """Turn every submodule of a kind into one of another kind, in place.

    Each stays the same object with another class, as lazy modules do it: lists, optimizers, hooks
    and whatever else refers to it need not know. What was added to it stays. All new ones are built
    before the first is used, so an error changes nothing.

    Args:
        module: the model, itself among its submodules.
        plain: one of the kind that is turned, with nothing added.
        replacement: given name and submodule, makes one of the other kind with its parameters.

    Returns:
        Whether there was one.

    Raises:
        ValueError: if one is of a subclass, or has something of its own that would be lost.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}, expected a torch.nn.Module")
    pairs = []
    for name, old in module.named_modules():
        if isinstance(old, type(plain)):
            name = name or type(module).__name__
            new = replacement(name, old)
            if type(old) is not type(plain):
                raise ValueError(
                    f"{name} is a {type(old).__name__}, a subclass that may do more than its "
                    "parent; replace it by hand"
                )
            replaced = {"forward", *_names(new)} - new._parameters.keys()
            check_added(name, added_names(old, plain) & replaced)
            pairs.append((old, new))
    for old, new in pairs:
        _change_class(old, new, plain)
    return bool(pairs)


def check_added(name: str, lost: set[str]) -> None:
    """Refuse to lose what was added to a module.

    Raises:
        ValueError: naming it, if there is any.
    """
    if lost:
        raise ValueError(
            f"{name} has {', '.join(sorted(lost))} of its own, which would be lost; remove it "
            "first, or give it another name"
        )


def added_names(module: nn.Module, plain: nn.Module) -> set[str]:
    """Return what a module has and a plain one of its kind has not, by name.

    That is attributes, parameters, buffers, submodules, and the dicts of hooks that hold one.
    """
    return _names(module) - _names(plain)


def _names(module: nn.Module) -> set[str]:
    state = vars(module)
    own = {name for name, value in state.items() if not name.endswith("_hooks") or value}
    return {*own, *module._parameters, *module._buffers, *module._modules}


def _change_class(old: nn.Module, new: nn.Module, plain: nn.Module) -> None:
    new.train(old.training)
    state = vars(old)
    for name in vars(plain).keys() - vars(new).keys():
        state.pop(name, None)
    for name, value in vars(new).items():
        if name in ("_parameters", "_modules"):
            state[name].update(value)
        elif name not in vars(nn.Module()):
            state[name] = value
    old.__class__ = type(new)
