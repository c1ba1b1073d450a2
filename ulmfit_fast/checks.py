"""Checks of the LSTM's arguments; each error names the value, what was expected and the mend."""

from __future__ import annotations

import torch
from torch import Tensor

from ulmfit_fast.masks import DropoutMasks

__all__ = ["check_layer"]


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def check_layer(
    x: Tensor,
    state: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor | int | None,
    masks: DropoutMasks | None,
) -> None:
    """Refuse arguments of `functional.lstm` that do not fit together.

    Raises:
        ValueError: for shapes, devices and values.
        TypeError: for dtypes.
    """
    if x.dim() != 3:
        raise ValueError(f"x has shape {_shape(x)}, expected (T, B, E)")
    steps, batch_size, input_size = x.shape
    if steps == 0:
        raise ValueError(f"x has shape {_shape(x)}, expected at least one time step")
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}, expected a floating dtype; embed the tokens first")
    if w_hh.dim() != 2 or w_hh.shape[0] != 4 * w_hh.shape[1]:
        raise ValueError(f"w_hh has shape {_shape(w_hh)}, expected (4H, H)")
    hidden_size = w_hh.shape[1]
    _check_weight("w_ih", w_ih, (4 * hidden_size, input_size), x)
    _check_weight("w_hh", w_hh, (4 * hidden_size, hidden_size), x)
    for name, bias in (("b_ih", b_ih), ("b_hh", b_hh)):
        if bias is not None:
            _check_weight(name, bias, (4 * hidden_size,), x)
    if state is not None:
        _check_state(state, batch_size, hidden_size, x)
    if lengths is not None:
        check_lengths(lengths, batch_size, steps)
    if isinstance(seed, Tensor):
        if seed.dim() != 0 or seed.dtype != torch.int64 or seed.device.type != "cpu":
            raise ValueError(
                f"seed is a {seed.dtype} tensor of shape {_shape(seed)} on {seed.device}, "
                "expected a 0-d int64 CPU tensor or an int"
            )
    elif seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}, expected a whole number from 0 to 2**63 - 1")
    if masks is not None:
        _check_masks(masks, (steps, batch_size, hidden_size))


def _check_weight(name: str, weight: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if tuple(weight.shape) != shape:
        raise ValueError(
            f"{name} has shape {_shape(weight)}, expected {shape} for x of shape {_shape(x)}"
        )
    if weight.dtype != x.dtype:
        raise TypeError(
            f"{name} has dtype {weight.dtype} and x has {x.dtype}, expected one dtype; "
            f"convert one with .to({x.dtype})"
        )
    if weight.device != x.device:
        raise ValueError(
            f"{name} is on {weight.device} and x on {x.device}, expected one device; "
            f'move one with .to("{x.device}")'
        )


def _check_state(
    state: tuple[Tensor, Tensor], batch_size: int, hidden_size: int, x: Tensor
) -> None:
    for name, tensor in zip(("h0", "c0"), state, strict=True):
        if tuple(tensor.shape) != (batch_size, hidden_size):
            raise ValueError(
                f"{name} has shape {_shape(tensor)}, expected {(batch_size, hidden_size)} "
                f"for x of shape {_shape(x)}"
            )
        if tensor.device != x.device:
            raise ValueError(
                f"{name} is on {tensor.device} and x on {x.device}, expected one device"
            )
    if state[0].dtype != x.dtype:
        raise TypeError(f"h0 has dtype {state[0].dtype}, expected {x.dtype} as x has")
    if torch.promote_types(state[1].dtype, x.dtype) != state[1].dtype:
        raise TypeError(f"c0 has dtype {state[1].dtype}, expected {x.dtype} or wider")


def check_lengths(lengths: Tensor, batch_size: int, steps: int) -> None:
    """Refuse lengths that do not fit `(T, B, ...)`; their values are read on the CPU alone.

    Raises:
        ValueError: for a wrong shape, or a value outside [0, T].
        TypeError: for a dtype other than int64.
    """
    if tuple(lengths.shape) != (batch_size,):
        raise ValueError(f"lengths has shape {_shape(lengths)}, expected ({batch_size},)")
    if lengths.dtype != torch.int64:
        raise TypeError(f"lengths has dtype {lengths.dtype}, expected torch.int64")
    if torch.compiler.is_compiling() or lengths.device.type != "cpu" or batch_size == 0:
        return
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 0 or longest > steps:
        raise ValueError(
            f"lengths run from {shortest} to {longest}, expected values from 0 to T = {steps}"
        )


def _check_masks(masks: DropoutMasks, sizes: tuple[int, int, int]) -> None:
    steps, batch_size, hidden_size = sizes
    weight, gate = masks
    if weight is not None and tuple(weight.shape) != (4 * hidden_size, hidden_size):
        raise ValueError(
            f"masks.weight has shape {_shape(weight)}, expected {(4 * hidden_size, hidden_size)}"
        )
    if gate is not None and (
        gate.shape[0] not in (1, steps) or tuple(gate.shape[1:]) != (batch_size, 4 * hidden_size)
    ):
        raise ValueError(
            f"masks.gate has shape {_shape(gate)}, expected "
            f"({steps} or 1, {batch_size}, {4 * hidden_size})"
        )
