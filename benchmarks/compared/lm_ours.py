"""Our training step of a language model: the one place that says which it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.compared.lm_plain import ADAM, ALPHA, BETA, CLIP
from ulmfit_fast.nn import LanguageModel
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.precision import Precision

Step = Callable[[Tensor, Tensor], Tensor]


def make_step(model: LanguageModel, dtype: torch.dtype, *, capture: bool = False) -> Step:
    """Return our training step.

    Args:
        model: on its device, in float32.
        dtype: of autocast, or float32 for none.
        capture: replay the step from a CUDA graph.

    Returns:
        A function of (T, B) inputs and targets that trains once and returns the loss. The state is
        carried from call to call.
    """
    half = dtype if dtype in (torch.float16, torch.bfloat16) else None
    step = LanguageModelStep(
        model.train(),
        make_optimizer(model),
        objective=Objective(ALPHA, BETA, clip=CLIP, precision=Precision(half)),
        capture=capture,
    )
    return lambda inputs, targets: step(inputs, targets).total


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of the step."""
    return torch.optim.AdamW(model.parameters(), fused=True, **ADAM)


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Clip the gradients and step."""
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()


def autocast(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Return autocast for half precision, and nothing for float32."""
    if dtype in (torch.float16, torch.bfloat16):
        return torch.autocast(device, dtype)
    return contextlib.nullcontext()
