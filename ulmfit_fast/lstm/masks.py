"""Dropout masks as tensors: to look at, to compare with, to inject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ulmfit_fast import rng
from ulmfit_fast.checks import gate_probabilities
from ulmfit_fast.lstm.checks import check_gate_mask

__all__ = ["DropoutMasks", "draw_masks", "dropout_masks"]


class DropoutMasks(NamedTuple):
    """The masks of one LSTM layer and direction; each value is 0 or 1/(1-p).

    Attributes:
        weight: `(4H, H)` mask of the recurrent weight, or None for no weight-drop.
        gate: `(T, B, 4H)` mask of the activated gates, `(1, B, 4H)` when one mask serves the whole
            sequence, or None for no gate dropout.
    """

    weight: Tensor | None
    gate: Tensor | None


def dropout_masks(
    seed: Tensor | int,
    *,
    hidden_size: int,
    batch_size: int = 1,
    steps: int = 1,
    weight_p: float | Sequence[float] = 0.0,
    gate_p: float | Sequence[float] = 0.0,
    gate_mask: str = "step",
    layer: int = 0,
    reverse: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> DropoutMasks:
    """Export the masks that a forward call with this seed applies to one layer and direction.

    Example:
        >>> masks = dropout_masks(7, hidden_size=1152, weight_p=0.2)
        >>> int((masks.weight[:1152] == 0).sum())  # connections cut inside gate i
        265547

    Args:
        seed: the seed given to the forward call.
        hidden_size: H.
        batch_size: B; matters to the gate mask only.
        steps: T; matters to the gate mask only.
        weight_p: probability of dropping a recurrent weight, one or four (i, f, g, o).
        gate_p: probability of dropping an activated gate, one or four.
        gate_mask: "step" for a new gate mask at each time step, "sequence" for one in all.
        layer: index of the layer in its stack.
        reverse: True for the backward direction of a bidirectional layer.
        dtype: floating dtype of the masks, or torch.bool for which values are kept, without their
            scale; None is PyTorch's default dtype.
        device: where the masks are made.

    Returns:
        `DropoutMasks(weight, gate)`.

    Raises:
        ValueError: if a probability lies outside [0, 1], or `gate_mask` is unknown.
        TypeError: if dtype is neither floating nor torch.bool.
    """
    if dtype is not None and dtype != torch.bool and not dtype.is_floating_point:
        raise TypeError(
            f"dtype is {dtype}, expected a floating dtype or torch.bool: a mask's values are 0 and "
            "1/(1-p); take torch.bool for what is kept, and .to() that"
        )
    return draw_masks(
        seed,
        (steps, batch_size, hidden_size),
        gate_probabilities("weight_p", weight_p),
        gate_probabilities("gate_p", gate_p),
        sequence=check_gate_mask(gate_mask) == "sequence",
        stream=2 * layer + int(reverse),
        dtype=dtype,
        device=device,
    )


def draw_masks(
    seed: Tensor | int,
    sizes: tuple[int, int, int],
    weight_p: Sequence[float],
    gate_p: Sequence[float],
    *,
    sequence: bool,
    stream: int,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> DropoutMasks:
    """Draw the masks of T, B and H with four checked probabilities each."""
    steps, batch_size, hidden_size = sizes
    weight = gate = None
    if any(weight_p):
        keep = rng.weight_keep(seed, hidden_size, weight_p, stream=stream, device=device)
        weight = _scaled(keep.view(4, -1), weight_p, dtype)  # (4, HH)
        weight = weight.view(4 * hidden_size, hidden_size)  # (4H, H)
    if any(gate_p):
        times = range(1 if sequence else steps)
        keep = rng.gate_keep(
            seed, times, batch_size, hidden_size, gate_p, stream=stream, device=device
        )
        by_gate = keep.view(len(times), batch_size, 4, hidden_size)  # (T, B, 4, H)
        gate = _scaled(by_gate, gate_p, dtype).flatten(-2)  # (T, B, 4H) or (1, B, 4H)
    return DropoutMasks(weight, gate)


def _scaled(keep: Tensor, p: Sequence[float], dtype: torch.dtype | None) -> Tensor:
    """Turn keep-bits with a gate axis second to last into masks of 0 and 1/(1-p)."""
    masks = keep.to(dtype or torch.get_default_dtype())
    if masks.dtype == torch.bool:
        return masks
    # By numbers: a tensor of them would be copied to the device, and waited for.
    for gate, value in enumerate(p):
        masks[..., gate, :].mul_(rng.keep_scale(value))
    return masks
