"""Softmax with cross entropy of cross_entropy.c on tensors."""

import ctypes

import torch

from ulmfit_fast.kernels.cpu.calls import address, threads
from ulmfit_fast.kernels.cpu.library import library

__all__ = ["can_read", "softmax_cross_entropy_"]

_I, _P = ctypes.c_int64, ctypes.c_void_p
# Of cross_entropy.c.
_BLOCK = 2048
_LINE = 16


class _Loss(ctypes.Structure):
    _fields_ = (
        *((name, _I) for name in ("rows", "classes", "stride", "threads", "ignore_index")),
        *((name, _P) for name in ("logits", "bias", "targets", "losses", "scratch")),
        ("scratch_size", _I),
        ("label_smoothing", ctypes.c_float),
    )


def _call(call, *flags):
    compute = library().cross_entropy
    compute.restype = _I
    return compute(ctypes.byref(call), *flags)


def can_read(logits):
    """Say whether logits `(N, V)` lie as the kernel reads them: classes side by side."""
    rows, classes = logits.shape
    apart = rows < 2 or logits.stride(0) >= classes
    return apart and (classes == 1 or logits.stride(1) == 1)


def softmax_cross_entropy_(logits, targets, bias, ignore_index, label_smoothing, *, gradient=True):
    """Return each row's loss, and write the gradient of their sum over the logits.

    Args:
        logits: `(N, V)` float32 or bfloat16 that `can_read` can read.
        targets: `(N,)` int64.
        bias: `(V,)` that is added to each row, or None.
        ignore_index: target whose loss and gradient are 0.
        label_smoothing: share of the target spread evenly over all V classes.
        gradient: False leaves the logits as they are.

    Returns:
        `(N,)` float32.

    Raises:
        IndexError: if a target is neither a class nor ignore_index.
    """
    rows, classes = logits.shape
    targets = targets.contiguous()
    if bias is not None:
        bias = bias.to(torch.float32).contiguous()
    losses = torch.empty(rows, dtype=torch.float32, device="cpu")
    bfloat16 = logits.dtype == torch.bfloat16
    size = -(-classes // _BLOCK) + (classes if bfloat16 and gradient else 0)
    size += -size % _LINE
    team = threads()
    scratch = torch.empty(team * size, dtype=torch.float32, device="cpu")
    call = _Loss(
        rows,
        classes,
        logits.stride(0),
        team,
        ignore_index,
        *map(address, (logits, bias, targets, losses, scratch)),
        size,
        label_smoothing,
    )
    wrong = _call(call, bfloat16, gradient)
    if wrong:
        raise IndexError(f"{wrong} targets are outside [0, {classes}), and not {ignore_index}")
    return losses
