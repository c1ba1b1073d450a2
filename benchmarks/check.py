"""Is what is about to be timed right?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Largest difference from float64, as a share of the largest value. PyTorch's own LSTM in float32
# multiplies in TF32 on a GPU that has it.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 2e-3,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


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


def tolerance(dtype: torch.dtype) -> float:
    """Return the largest error that counts as right."""
    return TOLERANCES[dtype]
