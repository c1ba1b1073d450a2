"""The recurrent state as an explicit value: one (h, c) per layer, handed in and out of forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

State: TypeAlias = list[tuple[Tensor, Tensor]]


def detach_state(state: State) -> State:
    """Cut a state from the graph that made it, so that the next backward stops there.

    Example:
        >>> import torch
        >>> h = torch.ones(1, 2, 3, requires_grad=True) * 2
        >>> detach_state([(h, h)])[0][0].requires_grad
        False

    Args:
        state: per layer (h, c), each (1, B, H_l).

    Returns:
        The same values without history.
    """
    return [(h.detach(), c.detach()) for h, c in state]


def resize_state(state: State, batch: int) -> State:
    """Make a state fit a batch: more rows start from zeros, fewer keep the first rows.

    Example:
        >>> import torch
        >>> (h, c), = resize_state([(torch.ones(1, 2, 3), torch.ones(1, 2, 3))], batch=4)
        >>> tuple(h.shape), h.sum().item()
        ((1, 4, 3), 6.0)

    Args:
        state: per layer (h, c), each (1, B, H_l).
        batch: the wanted B.

    Returns:
        Per layer (h, c), each (1, batch, H_l); the tensors themselves where B fits already.
    """
    return [(_resize_rows(h, batch), _resize_rows(c, batch)) for h, c in state]


def prepare_state(
    state: State, sizes: Sequence[int], *, batch: int, dtype: torch.dtype, device: torch.device
) -> State:
    """Check a state against the layers and bring it to their batch, dtype and device.

    A state may come from before `model.double()` or `model.to(device)`, or from inside autocast,
    where h is in half precision. c is never narrower than float32: h is rounded at each step
    anyway, but a rounded c would make the result depend on where a text is cut into windows.

    Example:
        >>> import torch
        >>> state = [(torch.ones(1, 2, 3), torch.ones(1, 2, 3))]
        >>> fit = dict(batch=4, dtype=torch.float64, device=torch.device("cpu"))
        >>> (h, c), = prepare_state(state, [3], **fit)
        >>> tuple(h.shape), h.dtype
        ((1, 4, 3), torch.float64)

    Args:
        state: per layer (h, c), each (1, B, H_l).
        sizes: H_l of each layer.
        batch: rows of the input.
        dtype: dtype that the layers run in.
        device: device of the layers' parameters.

    Returns:
        The state for this forward, h in dtype and c in it or in float32, whichever is wider;
        gradients flow through the conversion.

    Raises:
        TypeError: if the state is not a sequence of (h, c) pairs of floating tensors.
        ValueError: if the number of layers or a shape is not the model's.
    """
    if not isinstance(state, (list, tuple)):
        raise TypeError(
            f"state must be a list of (h, c), one per layer, got {type(state).__name__}: "
            "pass what forward returned, or None for zeros"
        )
    if len(state) != len(sizes):
        raise ValueError(
            f"state has {len(state)} layers, the model has {len(sizes)}: "
            "pass what this model's forward returned, or None for zeros"
        )
    for layer, (pair, size) in enumerate(zip(state, sizes, strict=True)):
        _check_pair(layer, pair, size)
    wide = torch.promote_types(dtype, torch.float32)
    return [(h.to(device, dtype), c.to(device, wide)) for h, c in resize_state(state, batch)]


def first_state(
    sizes: Sequence[int], *, batch: int, dtype: torch.dtype, device: torch.device
) -> State | list[None]:
    """Return the state before the first token: zeros, c in float32 where h is in half precision.

    Example:
        >>> import torch
        >>> fit = dict(batch=4, device=torch.device("cpu"))
        >>> (h, c), = first_state([3], dtype=torch.bfloat16, **fit)
        >>> h.dtype, c.dtype
        (torch.bfloat16, torch.float32)
        >>> first_state([3], dtype=torch.float32, **fit)
        [None]

    Args:
        sizes: H_l of each layer.
        batch: rows of the input.
        dtype: dtype of the layers' parameters.
        device: device of the layers' parameters.

    Returns:
        Per layer (h, c), each (1, batch, H_l); None per layer where the layers' own zeros are wide
        enough.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    if not half and not torch.is_autocast_enabled(device.type):
        return [None] * len(sizes)
    wide = torch.promote_types(dtype, torch.float32)
    return [
        (
            torch.zeros(1, batch, size, dtype=dtype, device=device),
            torch.zeros(1, batch, size, dtype=wide, device=device),
        )
        for size in sizes
    ]


def _check_pair(layer: int, pair: object, size: int) -> None:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise TypeError(f"state of layer {layer} must be a pair (h, c), got {type(pair).__name__}")
    for name, value in zip("hc", pair, strict=True):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} of layer {layer} must be a floating tensor, got {kind}")
        if value.dim() != 3 or value.shape[0] != 1 or value.shape[2] != size:
            raise ValueError(
                f"state of layer {layer} has {name} of shape {tuple(value.shape)}, "
                f"expected (1, B, {size}): pass the state of a model of the same sizes, "
                "or None for zeros"
            )
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            f"state of layer {layer} has h of {pair[0].shape[1]} rows and c of "
            f"{pair[1].shape[1]}: both must come from one forward"
        )


def _resize_rows(value: Tensor, batch: int) -> Tensor:
    rows = value.shape[1]
    if rows == batch:
        return value
    if rows > batch:
        return value[:, :batch]
    zeros = value.new_zeros(value.shape[0], batch - rows, value.shape[2])
    return torch.cat([value, zeros], dim=1)  # (1, B, H)
