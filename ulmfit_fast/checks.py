"""Checks of the LSTM's arguments; each error names the value, what was expected and the mend."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ulmfit_fast.lstm.masks import DropoutMasks

__all__ = [
    "FitError",
    "InputError",
    "KindError",
    "NumberError",
    "TensorError",
    "as_seed",
    "check_hx",
    "check_input",
    "check_input_dtype",
    "check_layer",
    "check_lengths",
    "check_pair",
    "flag",
    "gate_probabilities",
    "number",
    "probability",
    "size",
]


class FitError(RuntimeError, ValueError):
    """A shape or a device does not fit; torch.nn.LSTM raises RuntimeError."""


class KindError(RuntimeError, TypeError):
    """A state or a weight is of another kind or dtype; torch.nn.LSTM raises RuntimeError."""


class InputError(ValueError, RuntimeError, TypeError):
    """The input is of another dtype or rank; torch.nn.LSTM: ValueError, packed RuntimeError."""


class NumberError(ValueError, TypeError):
    """A str or a bool stands where a number belongs; torch.nn.LSTM raises ValueError."""


class TensorError(AttributeError, TypeError):
    """Something else stands where a tensor belongs; torch.nn.LSTM raises AttributeError."""


for _kind in (FitError, KindError, InputError, NumberError, TensorError):
    # Who tells kinds of errors apart by name, as logs and tables of tests do, reads nn.LSTM's.
    _kind.__name__ = _kind.__bases__[0].__name__


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


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
    p = float(value)  # type: ignore[arg-type]
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
                f"seed is a {seed.dtype} tensor of shape {_shape(seed)} on {seed.device}, "
                "expected a 0-d int64 tensor or an int"
            )
        return seed
    if not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed is {seed!r}, expected a whole number from 0 to 2**63 - 1")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}, expected a whole number from 0 to 2**63 - 1")
    return torch.tensor(int(seed), dtype=torch.int64, device="cpu")


def check_pair(name: str, pair: object, parts: str, *, optional: bool = False) -> None:
    """Refuse what is not two tensors; each may be None if optional.

    Raises:
        TypeError: naming the argument and its two parts; see the kinds of it above.
    """
    kinds = (Tensor, type(None)) if optional else Tensor
    error: type[TypeError] = TypeError
    if not isinstance(pair, tuple | list):
        found = f"a {type(pair).__name__}"
        error = KindError if isinstance(pair, Tensor) else TypeError
    elif len(pair) != 2:
        found, error = f"{len(pair)} values", KindError
    elif not all(isinstance(part, kinds) for part in pair):
        found, error = f"({type(pair[0]).__name__}, {type(pair[1]).__name__})", TensorError
    else:
        return
    tensors = "two tensors or Nones" if optional else "two tensors"
    raise error(f"{name} is {found}, expected {tensors}, {parts}")


def check_layer(
    x: Tensor,
    state: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    masks: DropoutMasks | None,
    *,
    cast: bool = False,
) -> None:
    """Refuse arguments of `functional.lstm` that do not fit together.

    With cast, weights of another dtype than x are brought to it later, as autocast has it.

    Raises:
        FitError: for shapes and devices.
        InputError: for an x that is not floating.
        KindError: for dtypes of the state and the weights.
        ValueError: for values.
    """
    if x.dim() != 3:
        raise FitError(f"x has shape {_shape(x)}, expected (T, B, E)")
    steps, batch_size, input_size = x.shape
    if steps == 0:
        raise FitError(f"x has shape {_shape(x)}, expected at least one time step")
    if not x.is_floating_point():
        raise InputError(
            f"x has dtype {x.dtype}, expected a floating dtype; embed the tokens first"
        )
    if w_hh.dim() != 2 or w_hh.shape[0] != 4 * w_hh.shape[1]:
        raise FitError(f"w_hh has shape {_shape(w_hh)}, expected (4H, H)")
    hidden_size = w_hh.shape[1]
    _check_weight("w_ih", w_ih, (4 * hidden_size, input_size), x, cast)
    _check_weight("w_hh", w_hh, (4 * hidden_size, hidden_size), x, cast)
    for name, bias in (("b_ih", b_ih), ("b_hh", b_hh)):
        if bias is not None:
            _check_weight(name, bias, (4 * hidden_size,), x, cast)
    if state is not None:
        _check_state(state, batch_size, hidden_size, x)
    if lengths is not None:
        check_lengths(lengths, batch_size, steps)
        _check_device("lengths", lengths, x)
    if masks is not None:
        _check_masks(masks, hidden_size, x)


def _check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise FitError(
            f"{name} is on {tensor.device} and x on {x.device}, expected one device; "
            f'move one with .to("{x.device}")'
        )


def _check_weight(name: str, weight: Tensor, shape: tuple[int, ...], x: Tensor, cast: bool) -> None:
    if tuple(weight.shape) != shape:
        raise FitError(
            f"{name} has shape {_shape(weight)}, expected {shape} for x of shape {_shape(x)}"
        )
    if weight.dtype != x.dtype and not cast:
        raise KindError(
            f"{name} has dtype {weight.dtype} and x has {x.dtype}, expected one dtype; "
            f"convert one with .to({x.dtype})"
        )
    _check_device(name, weight, x)


def _check_state(
    state: tuple[Tensor, Tensor], batch_size: int, hidden_size: int, x: Tensor
) -> None:
    for name, tensor in zip(("h0", "c0"), state, strict=True):
        if tuple(tensor.shape) != (batch_size, hidden_size):
            raise FitError(
                f"{name} has shape {_shape(tensor)}, expected {(batch_size, hidden_size)} "
                f"for x of shape {_shape(x)}"
            )
        _check_device(name, tensor, x)
    if state[0].dtype != x.dtype:
        raise KindError(f"h0 has dtype {state[0].dtype}, expected {x.dtype} as x has")
    if torch.promote_types(state[1].dtype, x.dtype) != state[1].dtype:
        raise KindError(f"c0 has dtype {state[1].dtype}, expected {x.dtype} or wider")


def behind_vmap(values: Tensor) -> Tensor:
    """Return the tensor with the values of all rows, of which torch.func.vmap lets none be read."""
    while torch._C._functorch.is_batchedtensor(values):
        values = torch._C._functorch.get_unwrapped(values)
    return values


def check_lengths(lengths: Tensor, batch_size: int, steps: int) -> None:
    """Refuse lengths that do not fit `(T, B, ...)`; their values are read on the CPU alone.

    Raises:
        ValueError: for a wrong shape, or a value outside [0, T].
        TypeError: for a dtype other than int64, or anything but a tensor.
    """
    if not isinstance(lengths, Tensor):
        raise TypeError(
            f"lengths is a {type(lengths).__name__}, expected an int64 tensor; "
            "pass torch.tensor(lengths)"
        )
    if tuple(lengths.shape) != (batch_size,):
        raise ValueError(f"lengths has shape {_shape(lengths)}, expected ({batch_size},)")
    if lengths.dtype != torch.int64:
        raise TypeError(f"lengths has dtype {lengths.dtype}, expected torch.int64")
    if torch.compiler.is_compiling() or lengths.device.type != "cpu" or batch_size == 0:
        return
    lengths = behind_vmap(lengths)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 0 or longest > steps:
        raise ValueError(
            f"lengths run from {shortest} to {longest}, expected values from 0 to T = {steps}"
        )


def _check_masks(masks: DropoutMasks, hidden_size: int, x: Tensor) -> None:
    steps, batch_size, _ = x.shape
    weight, gate = masks
    for name, mask in (("masks.weight", weight), ("masks.gate", gate)):
        if mask is None:
            continue
        if not mask.is_floating_point() and mask.dtype != torch.bool:
            raise TypeError(f"{name} has dtype {mask.dtype}, expected a floating dtype or bool")
        _check_device(name, mask, x)
    if weight is not None and tuple(weight.shape) != (4 * hidden_size, hidden_size):
        raise ValueError(
            f"masks.weight has shape {_shape(weight)}, expected {(4 * hidden_size, hidden_size)}"
        )
    shapes = [(n, batch_size, 4 * hidden_size) for n in (steps, 1)]
    if gate is not None and tuple(gate.shape) not in shapes:
        raise ValueError(
            f"masks.gate has shape {_shape(gate)}, expected "
            f"({steps} or 1, {batch_size}, {4 * hidden_size})"
        )


def check_input(x: Tensor, input_size: int) -> None:
    """Refuse what is not `(T, B, E)`, `(B, T, E)` or `(T, E)`.

    Raises:
        TypeError: for anything but a tensor.
        InputError: for another number of dimensions.
        FitError: for another number of features.
    """
    if not isinstance(x, Tensor):
        raise TensorError(f"input is a {type(x).__name__}, expected a tensor or a PackedSequence")
    if x.dim() not in (2, 3):
        raise InputError(f"input has shape {_shape(x)}, expected 3 dimensions, or 2 unbatched")
    if x.shape[-1] != input_size:
        raise FitError(f"input has {x.shape[-1]} features, expected input_size = {input_size}")


def check_input_dtype(x: Tensor, weight: Tensor) -> None:
    """Refuse an input of another dtype than the weights, in the words of torch.nn.LSTM.

    Raises:
        InputError: naming both ways to mend it.
    """
    if not x.is_floating_point():
        raise InputError(
            f"input has dtype {x.dtype}, expected a floating dtype; embed the tokens first"
        )
    if x.dtype != weight.dtype:
        raise InputError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )


def check_hx(hx: tuple[Tensor, Tensor], shape: tuple[int, ...], x: Tensor) -> None:
    """Refuse a state of all layers that does not fit the input.

    Raises:
        KindError: for anything but two tensors.
        FitError: for a wrong shape or device.
    """
    check_pair("hx", hx, "(h_0, c_0)")
    for name, tensor in zip(("h_0", "c_0"), hx, strict=True):
        if tuple(tensor.shape) != shape:
            raise FitError(f"{name} has shape {_shape(tensor)}, expected {shape}")
        if tensor.device != x.device:
            raise FitError(
                f"{name} is on {tensor.device} and the input on {x.device}, expected one device; "
                f'move one with .to("{x.device}")'
            )
