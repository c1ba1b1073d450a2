"""Parameter groups with discriminative learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["discriminative_groups"]

Group = nn.Module | Iterable[Tensor]


def group_parameters(group: Group) -> list[Tensor]:
    """Return the parameters of a module, or of an iterable of them."""
    return list(group.parameters()) if isinstance(group, nn.Module) else list(group)


def layer_groups(model: nn.Module | Sequence[Group]) -> list[list[Tensor]]:
    """Return a model's layer groups, from input to output.

    Raises:
        TypeError: if the model has no `layer_groups()` and is no sequence of groups.
    """
    if isinstance(model, nn.Module):
        method = getattr(model, "layer_groups", None)
        if method is None:
            raise TypeError(
                f"model is a {type(model).__name__} without layer_groups(); pass a list of its "
                "layers from input to output, such as list(model.children())"
            )
        groups = method()
    else:
        groups = model
    return [group_parameters(group) for group in groups]


def discriminative_groups(
    model: nn.Module | Sequence[Group], lr: float, factor: float = 2.6
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
        model: a module with `layer_groups()`, or its layers (modules or parameter lists) from
            input to output.
        lr: rate of the last group.
        factor: how much smaller the rate of the group below is; 1 gives all groups one rate.

    Returns:
        A dictionary {"params", "lr", "name"} for each group, from input to output, frozen
        parameters included: unfreeze with `requires_grad_`, never by adding groups. A parameter
        that stands in several groups is kept in the first of them.

    Raises:
        ValueError: if lr or factor is not positive, or there is no parameter.
        TypeError: if the model has no layer groups.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146), section 3.2, equation 2.
    """
    if not lr > 0:
        raise ValueError(f"lr is {lr}, expected a positive number")
    if not factor > 0:
        raise ValueError(f"factor is {factor}, expected a positive number; 1 gives one rate to all")
    groups = layer_groups(model)
    seen: set[int] = set()
    result: list[dict[str, Any]] = []
    for index, group in enumerate(groups):
        own = [p for p in group if id(p) not in seen and not seen.add(id(p))]  # type: ignore[func-returns-value]
        rate = lr / factor ** (len(groups) - 1 - index)
        result.append({"params": own, "lr": rate, "name": f"group {index}"})
    if not seen:
        raise ValueError("model has 0 parameters, expected at least one layer with parameters")
    return result
