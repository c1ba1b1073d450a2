"""Is what is about to be timed right?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Largest difference from float64, as a share of the largest value: what rounding makes of a
# recurrence of 70 steps in the baselines too, and far below what a wrong mask makes of it.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.float16: 3e-2,
    torch.bfloat16: 1e-1,
}
# On a GPU PyTorch's own LSTM multiplies float32 in TF32, whose mantissa is that of float16.
_TF32 = TOLERANCES[torch.float16]


def error_of(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference between two results, each as a share of the largest value.

    A result with NaN is infinitely wrong.
    """
    errors = []
    for value, want in zip(got, wanted, strict=True):
        scale = want.double().abs().max().clamp_min(1e-30)
        error = float((value.double() - want.double()).abs().max() / scale)
        errors.append(error if error == error else float("inf"))
    return max(errors)


def tolerance(dtype: torch.dtype, cuda: bool) -> float:
    """Return the largest error that counts as right."""
    return _TF32 if cuda and dtype == torch.float32 else TOLERANCES[dtype]
