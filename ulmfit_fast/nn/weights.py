"""Weights that somebody else may have written: finite, or an error that says where they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Place", "check_finite"]


class Place(NamedTuple):
    """What is looked at, for errors of one form.

    Attributes:
        name: a file, or what it would be written from.
        mend: what to do about it.
    """

    name: object
    mend: str = "save the model again"

    def error(self, fault: str) -> ValueError:
        """Return an error that says where, what and the mend."""
        return ValueError(f"{self.name}: {fault}; {self.mend}")


def check_finite(place: Place, tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinities, and statistics of BatchNorm that cannot be; one pass each.

    Args:
        place: what holds the tensors, for the error.
        tensors: by name, of floating dtypes or int64.

    Raises:
        ValueError: naming the tensor, the value and where it stands.
    """
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        low, high = (float(value) for value in torch.aminmax(tensor.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            first = tuple((~torch.isfinite(tensor)).nonzero()[0].tolist())
            raise place.error(
                f"{name}{list(first)} is {float(tensor[first])}, expected finite numbers"
            )
        if low < 0 and name.endswith(("running_var", "num_batches_tracked")):
            raise place.error(f"{name} has {low:g}, expected no number below 0")
