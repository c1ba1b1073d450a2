"""Checks of numbers, switches and seeds; each error names value, expectation and mend."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "NumberError",
    "as_seed",
    "flag",
    "gate_probabilities",
    "number",
    "probability",
    "size",
    "unwrap_vmap",
]


class NumberError(ValueError, TypeError):
    """A str or a bool stands where a number belongs; torch.nn.LSTM raises ValueError."""


# Who tells kinds of errors apart by name, as logs and tables of tests do, reads nn.LSTM's.
NumberError.__name__ = "ValueError"


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and value.dtype != torch.bool and not value.is_complex()
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def number(
    name: str,
    value: object,
    expected: str,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float | None = math.inf,
    whole: bool = False,
) -> float:
    """Return a number of Python, NumPy or a 0-d tensor as a float.

    >>> number("div", 25, "a number, at least 1", at_least=1)
    25.0

    Args:
        name: of the argument, for the error.
        value: what was handed in.
        expected: what it says, and the mend.
        above: the number is larger.
        at_least: the number is not smaller.
        below: the number is smaller; None lets infinity pass.
        whole: the number is a whole one.

    Raises:
        ValueError: if it is none, or lies outside the bounds; for what is no number of Python also
            a TypeError.
    """
    found = math.nan
    if _is_number(value):
        with contextlib.suppress(OverflowError):
            found = float(value)  # type: ignore[arg-type]
    inside = found > above and found >= at_least and (below is None or found < below)
    if not inside or (whole and not found.is_integer()):
        kind = ValueError if _is_number(value) else NumberError
        raise kind(f"{name} is {value!r:.60}, expected {expected}")
    return found


def probability(name: str, value: object) -> float:
    """Return a probability as a float, given as a number of Python, NumPy or a 0-d tensor.

    Raises:
        TypeError: if it is not a number; a str or a bool is a ValueError as well.
        ValueError: if it lies outside [0, 1].
    """
    if not _is_number(value):
        kind = NumberError if isinstance(value, (str, bool)) else TypeError
        raise kind(f"{name} is {value!r}, expected a probability between 0 and 1")
    try:
        p = float(value)  # type: ignore[arg-type]
    except OverflowError:
        p = math.inf
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name} is {p}, expected a probability between 0 and 1")
    return p


def gate_probabilities(name: str, p: float | Sequence[float]) -> tuple[float, ...]:
    """Expand a dropout probability to one value a gate, in the order i, f, g, o.

    Example:
        >>> gate_probabilities("gate_p", 0.25)
        (0.25, 0.25, 0.25, 0.25)

    Args:
        name: the argument's name, for the error message.
        p: one probability for all gates, or four of them.

    Returns:
        Four floats in [0, 1].

    Raises:
        ValueError: if there are not one or four values, or one lies outside [0, 1].
        TypeError: if a value is not a number.
    """
    if _is_number(p):
        return (probability(name, p),) * 4
    wrong = f"{name} is {p!r}, expected one number or four (gates i, f, g, o)"
    if isinstance(p, str):
        raise TypeError(wrong)
    try:
        values = tuple(p)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(wrong) from None
    if len(values) != 4:
        raise ValueError(
            f"{name} has {len(values)} values, expected one number or four (gates i, f, g, o)"
        )
    return tuple(probability(name, value) for value in values)


def size(name: str, value: object) -> int:
    """Return a size as an int.

    Raises:
        TypeError: if it is not a whole number.
        ValueError: if it is not positive.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__} ({value!r})")
    if value < 1:
        raise ValueError(f"{name} must be greater than zero, got {value}")
    return int(value)


def flag(name: str, value: object) -> bool:
    """Return a switch as it is; a number in its place is a slip in the order of arguments.

    Raises:
        TypeError: if it is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(
            f"{name} should be of type bool, got: {type(value).__name__} ({value!r}); "
            "pass True or False, and what follows it by name"
        )
    return value


def as_seed(seed: Tensor | int) -> Tensor:
    """Return a seed as the 0-d int64 tensor that the operators take; a number goes to the CPU.

    Raises:
        ValueError: for a value outside [0, 2**63), or a tensor of another kind.
        TypeError: for anything but a whole number or a tensor.
    """
    if isinstance(seed, Tensor):
        if seed.dim() != 0 or seed.dtype != torch.int64:
            raise ValueError(
                f"seed is a {seed.dtype} tensor of shape {tuple(seed.shape)} on {seed.device}, "
                "expected a 0-d int64 tensor or an int"
            )
        return seed
    if not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed is {seed!r}, expected a whole number from 0 to 2**63 - 1")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}, expected a whole number from 0 to 2**63 - 1")
    return torch.tensor(int(seed), dtype=torch.int64, device="cpu")


def unwrap_vmap(values: Tensor) -> Tensor:
    """Return the tensor with the values of all rows, of which torch.func.vmap lets none be read."""
    while torch._C._functorch.is_batchedtensor(values):
        values = torch._C._functorch.get_unwrapped(values)
    return values
