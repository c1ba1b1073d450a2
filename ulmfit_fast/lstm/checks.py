"""Checks of what an LSTM layer is called with; each error names value, expectation and mend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ulmfit_fast.checks import gate_probabilities, unwrap_vmap

__all__ = [
    "FitError",
    "InputError",
    "KindError",
    "TensorError",
    "check_dropouts",
    "check_gate_mask",
    "check_hx",
    "check_input",
    "check_input_dtype",
    "check_layer",
    "check_lengths",
    "check_pair",
]


class FitError(RuntimeError, ValueError):
    """A shape or a device does not fit; torch.nn.LSTM raises RuntimeError."""


class KindError(RuntimeError, TypeError):
    """A state or a weight is of another kind or dtype; torch.nn.LSTM raises RuntimeError."""


class InputError(ValueError, RuntimeError, TypeError):
    """The input is of another dtype or rank; torch.nn.LSTM: ValueError, packed RuntimeError."""


class TensorError(AttributeError, TypeError):
    """Something else stands where a tensor belongs; torch.nn.LSTM raises AttributeError."""


for _kind in (FitError, KindError, InputError, TensorError):
    # Who tells kinds of errors apart by name, as logs and tables of tests do, reads nn.LSTM's.
    _kind.__name__ = _kind.__bases__[0].__name__


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def check_pair(name: str, pair: object, parts: str, *, optional: bool = False) -> None:
    """Refuse what is not two tensors; each may be None if optional.

    Raises:
        TypeError: naming the argument and its two parts; where torch.nn.LSTM raises a RuntimeError
            or an AttributeError, it is both.
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


def check_gate_mask(gate_mask: str) -> str:
    """Return how long a gate mask lives.

    Raises:
        ValueError: if it is unknown.
    """
    if gate_mask not in ("step", "sequence"):
        raise ValueError(f'gate_mask is {gate_mask!r}, expected "step" or "sequence"')
    return gate_mask


def check_dropouts(
    weight_p: float | Sequence[float], gate_p: float | Sequence[float], gate_mask: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Expand weight_p and gate_p to four values each, and refuse what would grow without bound.

    Raises:
        ValueError: if a value lies outside [0, 1], `gate_mask` is unknown, or one mask for the
            whole sequence would drop forget gates.
        TypeError: if a value is not a number.
    """
    weight_ps = gate_probabilities("weight_p", weight_p)
    gate_ps = gate_probabilities("gate_p", gate_p)
    if check_gate_mask(gate_mask) == "sequence" and gate_ps[1] > 0:
        raise ValueError(
            f'gate_p drops forget gates with p = {gate_ps[1]} under gate_mask="sequence": a kept '
            "forget gate, scaled by 1/(1-p) at each step, grows as (1-p)**-T; "
            'use gate_p=(p_i, 0, p_g, p_o) or gate_mask="step"'
        )
    return weight_ps, gate_ps


def check_layer(
    x: Tensor,
    state: tuple[Tensor, Tensor] | None,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    lengths: Tensor | None,
    masks: tuple[Tensor | None, Tensor | None] | None,
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
    w_ih, w_hh, b_ih, b_hh = weights
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
        check_pair("masks", masks, "(weight, gate)", optional=True)
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
    lengths = unwrap_vmap(lengths)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 0 or longest > steps:
        raise ValueError(
            f"lengths run from {shortest} to {longest}, expected values from 0 to T = {steps}"
        )


def _check_masks(masks: tuple[Tensor | None, Tensor | None], hidden_size: int, x: Tensor) -> None:
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
