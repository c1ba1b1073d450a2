"""Parameter groups with discriminative learning rates, and with weight decay on weights alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ulmfit_fast.checks import NumberError, number

__all__ = ["discriminative_groups", "layer_rates", "trainable", "without_decay"]

# A layer: a module, a parameter, or a list of them, nested or with "params" as an optimizer has it.
Group = nn.Module | Tensor | Iterable[Any]

_POSITIVE = "a positive number"
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)


def group_parameters(group: Group) -> list[Tensor]:
    """Return the parameters of a layer: a module, a parameter, or lists of them.

    Raises:
        TypeError: if there is anything else in it.
    """
    if isinstance(group, Tensor):
        return [group]
    if isinstance(group, nn.Module):
        return list(group.parameters())
    if isinstance(group, Mapping) and "params" in group:
        group = group["params"]
    if isinstance(group, str | Mapping) or not isinstance(group, Iterable):
        raise TypeError(
            f"a group has a {type(group).__name__} in it ({str(group)[:40]}), expected modules, "
            "parameters or lists of them; pass parameters(), without names"
        )
    return [parameter for part in group for parameter in group_parameters(part)]


def layer_groups(model: nn.Module | Iterable[Group]) -> list[list[Tensor]]:
    """Return a model's layer groups, from input to output.

    Raises:
        TypeError: if the model has no `layer_groups()` and is no sequence of groups.
    """
    layers: Any = model
    own = getattr(model, "layer_groups", None)
    if own is not None:
        layers = own()
    elif isinstance(model, nn.Module | Tensor) and not isinstance(model, nn.ModuleList):
        raise TypeError(
            f"model is a {type(model).__name__} without layer_groups(); pass a list of its "
            "layers from input to output, such as list(model.children())"
        )
    elif not isinstance(model, Iterable):
        raise TypeError(
            f"model is {model!r:.60} ({type(model).__name__}), expected a module with "
            "layer_groups(), or a list of layers from input to output"
        )
    return [group_parameters(group) for group in layers]


def discriminative_groups(
    model: nn.Module | Sequence[Group],
    lr: float,
    factor: float = 2.6,
    *,
    multipliers: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Give each layer group its own learning rate, lr / factor ** (L - l).

    Example:
        >>> import torch
        >>> layers = [torch.nn.Linear(2, 2) for _ in range(3)]
        >>> groups = discriminative_groups(layers, lr=0.01)
        >>> [round(group["lr"], 6) for group in groups]
        [0.001479, 0.003846, 0.01]
        >>> optimizer = torch.optim.Adam(groups)

    Args:
        model: a module with `layer_groups()`, or its layers (modules, parameters or lists of them)
            from input to output.
        lr: rate of the last group.
        factor: how much smaller the rate of the group below is; 1 gives all groups one rate.
        multipliers: each group's rate over `lr`, from input to output, in place of the factor.

    Returns:
        A dictionary {"params", "lr", "name"} for each group, from input to output, frozen
        parameters included: unfreeze with `requires_grad_`, never by adding groups. A parameter
        that stands in several groups is kept in the first of them.

    Raises:
        ValueError: if lr, factor or a multiplier is not positive, there are not as many
            multipliers as groups, or there is no parameter.
        TypeError: if the model has no layer groups.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146), section 3.2, equation 2.
    """
    if not (isinstance(lr, Tensor) and lr.numel() == 1 and lr > 0):
        lr = number("lr", lr, _POSITIVE, above=0)
    expected = f"{_POSITIVE}; 1 gives one rate to all"
    factor = number("factor", factor, expected, above=0, below=None)
    groups = layer_groups(model)
    shares = [1.0 / factor ** (len(groups) - 1 - index) for index in range(len(groups))]
    if multipliers is not None:
        shares = _checked_multipliers(multipliers, len(groups))
    seen: set[int] = set()
    result: list[dict[str, Any]] = []
    for index, group in enumerate(groups):
        own = [p for p in group if id(p) not in seen and not seen.add(id(p))]  # type: ignore[func-returns-value]
        result.append({"params": own, "lr": lr * shares[index], "name": f"group {index}"})
    if not seen:
        raise ValueError("model has 0 parameters, expected at least one layer with parameters")
    return result


def _checked_multipliers(multipliers: Sequence[float], count: int) -> list[float]:
    if isinstance(multipliers, str) or not isinstance(multipliers, Iterable):
        raise NumberError(
            f"multipliers is {multipliers!r:.60}, expected {_POSITIVE} for each layer group"
        )
    shares = [
        number(f"multipliers[{index}]", value, _POSITIVE, above=0)
        for index, value in enumerate(multipliers)
    ]
    if len(shares) != count:
        raise ValueError(
            f"multipliers has {len(shares)} values for {count} layer groups, expected one for each"
        )
    return shares


def without_decay(groups: Sequence[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Split from each group its parameters that weight decay leaves alone.

    These are the parameters of normalisation layers and every parameter whose name is `bias`. As
    in fastai the biases inside an LSTM, which have other names, stand with the weights.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> groups = without_decay(discriminative_groups([layer], lr=0.01), layer)
        >>> [(len(group["params"]), group.get("weight_decay")) for group in groups]
        [(1, None), (1, 0.0)]

    Args:
        groups: parameter groups, as from `discriminative_groups`.
        model: the module whose parameters they are.

    Returns:
        Each group, followed by one without decay where it has such parameters; the latter has the
        key "twin", for `layer_rates`.

    Source:
        fastai 2.8.12, `Learner(wd_bn_bias=False)`.
    """
    spared: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" or isinstance(module, _NORMS):
                spared.add(id(parameter))
    result: list[dict[str, Any]] = []
    for group in groups:
        own: dict[bool, list[Tensor]] = {True: [], False: []}
        for parameter in group["params"]:
            own[id(parameter) in spared].append(parameter)
        result.append({**group, "params": own[False]})
        if own[True]:
            name = f"{group.get('name', 'group')} without decay"
            twin = {"params": own[True], "weight_decay": 0.0, "name": name, "twin": True}
            result.append({**group, **twin})
    return result


def layer_rates(optimizer: Optimizer) -> list[float]:
    """Return the learning rate of each layer group, from input to output.

    Args:
        optimizer: of groups as from `discriminative_groups` or `without_decay`, or any others.
    """
    return [float(g["lr"]) for g in optimizer.param_groups if not g.get("twin", False)]


def trainable(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of an optimizer that require a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
