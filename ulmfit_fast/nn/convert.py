"""Swap every `torch.nn.LSTM` of a model for `ulmfit_fast.LSTM`, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ulmfit_fast.nn.lstm import LSTM

__all__ = ["convert_lstm", "restore_lstm", "swap_modules"]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def convert_lstm(
    module: nn.Module,
    *,
    weight_p: float | Sequence[float] = 0.0,
    gate_p: float | Sequence[float] = 0.0,
    gate_mask: str = "step",
    backend: str = "auto",
) -> nn.Module:
    """Replace every `torch.nn.LSTM` of a model, in place, by one that drops weights and gates.

    The parameters stay the same objects, so an optimizer made before goes on, and the state_dict
    keeps its names. Evaluation gives what it gave before. Hooks move along.

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
        gate_p: probability of dropping an activated gate; one or four.
        gate_mask: "step" for a new gate mask at each time step; "sequence" for one in all.
        backend: one of `ulmfit_fast.backend.BACKENDS`.

    Returns:
        The model; the new layer where `module` is itself an LSTM.

    Raises:
        ValueError: if there is no `torch.nn.LSTM`, or one of them cannot be replaced: it has
            projections, is of a subclass, or its weights are not plain parameters. The model is
            then as it was.
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

    return _swapped(module, nn.LSTM, replacement)


def restore_lstm(module: nn.Module) -> nn.Module:
    """Replace every `ulmfit_fast.LSTM` of a model, in place, by `torch.nn.LSTM`.

    The parameters stay the same objects. `weight_p` and `gate_p` are lost: nn.LSTM has neither.

    Example:
        >>> import ulmfit_fast as uf
        >>> uf.restore_lstm(uf.LSTM(4, 6, weight_p=0.5))
        LSTM(4, 6)

    Args:
        module: the model, or one LSTM.

    Returns:
        The model; the new layer where `module` is itself an LSTM.

    Raises:
        ValueError: if there is no `ulmfit_fast.LSTM`, or one is of a subclass or has weights that
            are not plain parameters. The model is then as it was.
    """

    def replacement(old: LSTM) -> nn.LSTM:
        return nn.LSTM(
            **_sizes(old),
            device="meta",
        )

    return _swapped(module, LSTM, replacement)


def _sizes(layer: nn.LSTM | LSTM) -> dict[str, Any]:
    """Return the sizes and options that both kinds of LSTM are made with, by name."""
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")
    return {name: getattr(layer, name) for name in (*names, "bidirectional")}


def _swapped(
    module: nn.Module, kind: type[nn.Module], empty: Callable[..., nn.Module]
) -> nn.Module:
    def replacement(name: str, old: nn.Module) -> nn.Module:
        _check_replaceable(name or type(module).__name__, old, kind)
        with warnings.catch_warnings():
            # The old layer has said already that dropout needs a second layer.
            warnings.simplefilter("ignore")
            new = empty(old)
        for parameter_name, parameter in old._parameters.items():
            setattr(new, parameter_name, parameter)
        return new

    swapped = swap_modules(module, kind, replacement)
    if swapped is None:
        raise ValueError(f"the {type(module).__name__} has no {kind.__module__}.{kind.__name__}")
    return swapped


def swap_modules(
    module: nn.Module, kind: type[nn.Module], replacement: Callable[[str, Any], nn.Module]
) -> nn.Module | None:
    """Replace every submodule of a kind, in place, by one in its mode and with its hooks.

    All new ones are built before the first is put in place, so an error changes nothing.

    Args:
        module: the model.
        kind: class of what is replaced, subclasses among it.
        replacement: given name and submodule, makes the new one.

    Returns:
        The model, or the new module where the model is itself of that kind; None if there was none.
    """
    # A submodule that stands in several places is listed at each of them.
    modules = module.named_modules(remove_duplicate=False)
    found = [(name, old) for name, old in modules if isinstance(old, kind)]
    new: dict[int, nn.Module] = {}
    for name, old in found:
        if id(old) not in new:
            new[id(old)] = _in_place_of(old, replacement(name, old))
    for name, old in found:
        if not name:
            return new[id(old)]
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, new[id(old)])
    return module if found else None


def _in_place_of(old: nn.Module, new: nn.Module) -> nn.Module:
    new.train(old.training)
    for hooks in _HOOKS:
        setattr(new, hooks, getattr(old, hooks))
    return new


def _check_replaceable(name: str, layer: nn.Module, kind: type[nn.Module]) -> None:
    if type(layer) is not kind and not parametrize.is_parametrized(layer):
        raise ValueError(
            f"{name} is a {type(layer).__name__}, a subclass that may do more than its parent; "
            "replace it by hand"
        )
    if getattr(layer, "proj_size", 0):
        raise ValueError(
            f"{name} has proj_size={layer.proj_size}, and projections are not supported"
        )
    names = [name for names in layer._all_weights for name in names]  # type: ignore[union-attr]
    missing = [weight for weight in names if weight not in layer._parameters]
    if missing:
        raise ValueError(
            f"{missing[0]} of {name} is no parameter of its own: something around the layer or on "
            "it computes the weight, a weight drop or a parametrization; remove that first (for "
            "fastai, ulmfit_fast.compat.fastai.accelerate does)"
        )
