"""The number format of a step: autocast, and gradients that are scaled for float16."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch.amp import GradScaler

__all__ = ["FULL", "Precision", "autocast"]

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision(NamedTuple):
    """What a training step needs to know of its number format.

    Example:
        >>> Precision.of("bfloat16", "cpu")
        Precision(dtype=torch.bfloat16, scaler=None)

    Attributes:
        dtype: of autocast, or None for the weights' own.
        scaler: keeps small gradients from vanishing in float16; it remembers its scale from step to
            step, so that one run has one of them. None for none.
    """

    dtype: torch.dtype | None = None
    scaler: GradScaler | None = None

    @classmethod
    def of(cls, name: str, device: torch.device | str) -> Precision:
        """Return the precision of a name on a device.

        Args:
            name: "float32", "bfloat16" or "float16".
            device: where the model is.

        Raises:
            ValueError: for another name, or float16 without CUDA.
        """
        if name not in _DTYPES:
            raise ValueError(f"precision is {name!r}, expected one of {', '.join(_DTYPES)}")
        kind = torch.device(device).type
        if name == "float16" and kind != "cuda":
            raise ValueError(
                f"precision is 'float16' and the model is on {device}, expected CUDA; pass "
                "'bfloat16', or 'float32'"
            )
        return cls(_DTYPES[name], GradScaler(kind) if name == "float16" else None)


# That of the weights.
FULL = Precision()


def autocast(
    device: torch.device, dtype: torch.dtype | None, *, cache_enabled: bool = True
) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a model computes in another dtype.

    Args:
        device: where the model is.
        dtype: bfloat16 or float16, or None for the weights' own.
        cache_enabled: convert each weight once while the context lasts.
    """
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=cache_enabled)
