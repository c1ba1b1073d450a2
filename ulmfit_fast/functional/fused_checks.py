"""Where the fused steps run, and what they accept; each error names the value and the mend."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from ulmfit_fast import backend as backends
from ulmfit_fast.functional import layer

__all__ = ["check_cross_entropy", "check_time_first", "takes_kernels"]

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.lru_cache(maxsize=64)
def _runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    # The smallest of LSTMs asks no more of a device than these kernels do.
    plan = layer.kernel_plan("stepwise", device=device, dtype=dtype, hidden_size=16)
    return plan.form is not None


def _can_run(device: torch.device, dtype: torch.dtype) -> bool:
    if dtype not in _KERNEL_DTYPES or importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == "cuda" and _runs_on(device, dtype)


# Constant for Dynamo: it depends on the device, not on a tensor's values.
_can_run._dynamo_marked_constant = True  # type: ignore[attr-defined]


def takes_kernels(x: Tensor) -> bool:
    """Say whether the kernels compute what is asked of a tensor, see `fused`."""
    name, _ = backends._requested("auto")
    forced = name.startswith("triton")
    if not (forced or (name == "auto" and x.device.type == "cuda")):
        return False
    return not backends._transforms() and _can_run(x.device, x.dtype)


def check_time_first(x: Tensor) -> None:
    """Refuse what is not `(T, B, F)`.

    Raises:
        ValueError: naming the shape.
    """
    if x.dim() != 3:
        raise ValueError(
            f"locked dropout expected a (T, B, F) tensor, got shape {tuple(x.shape)}: "
            "add the missing axis with unsqueeze"
        )


def check_cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int) -> None:
    """Refuse logits and targets that do not fit each other.

    Raises:
        TypeError: if targets are not int64 or logits are not floating.
        ValueError: if a shape does not fit, or a target on the CPU is no class.
        RuntimeError: if the logits require a gradient while autograd records.
    """
    if not logits.is_floating_point():
        raise TypeError(f"logits are {logits.dtype}, expected a floating dtype: convert them first")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 ids, got {targets.dtype}: convert with .long()")
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, expected (N, V) with at least one class: "
            "flatten (T, B, V) with flatten(0, 1)"
        )
    if targets.shape != logits.shape[:1] or targets.device != logits.device:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} on {targets.device}, expected "
            f"({logits.shape[0]},) on {logits.device} like the logits' rows"
        )
    if logits.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "the logits require a gradient, and are overwritten with one that autograd would not "
            "see: pass logits.detach(), or use torch.nn.functional.cross_entropy"
        )
    # On an accelerator looking at the targets would wait for the device.
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = targets[(targets != ignore_index) & ((targets < 0) | (targets >= logits.shape[1]))]
    if len(wrong):
        raise ValueError(
            f"target {int(wrong[0])} is outside [0, {logits.shape[1]}): encode the text with the "
            f"vocabulary of this model, or mark what does not count with {ignore_index}"
        )
