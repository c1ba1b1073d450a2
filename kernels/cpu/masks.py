"""The masks of masks.c on tensors: drawn, and applied. `ulmfit_fast.rng` says which bits they are.

Whoever calls has asked `calls.can_access` whether the tensors may be read and written.
"""

import ctypes

import torch

from ulmfit_fast.kernels.cpu.calls import Dropout, address, dropout, threads
from ulmfit_fast.kernels.cpu.library import library

__all__ = [
    "drop_weight",
    "embedding_keep",
    "gate_keep",
    "keep_mask",
    "locked_dropout",
    "weight_keep",
]

_I, _P = ctypes.c_int64, ctypes.c_void_p


class _Mask(ctypes.Structure):
    _fields_ = (
        *((name, _I) for name in ("n", "rows", "columns", "start", "steps", "threads")),
        ("kind", ctypes.c_uint32),
        ("gradient", ctypes.c_uint32),
        *((name, _P) for name in ("source", "target", "scales")),
        ("drop", Dropout),
    )


def _call(name, drop, *flags, source=None, target=None, scales=None, **sizes):
    call = _Mask(threads=threads(), drop=drop, **sizes)
    call.source, call.target, call.scales = address(source), address(target), address(scales)
    return getattr(library(), name)(ctypes.byref(call), *flags)


def _one(seed, stream, p):
    return dropout(seed, stream, (p, 0.0, 0.0, 0.0))


def drop_weight(weight, seed, p, stream, *, gradient=False):
    """Return M * U of a weight `(4H, H)`, float32 or bfloat16.

    Of a gradient what is dropped is 0 whatever it was; of a weight it is the product with 0.
    """
    weight = weight.contiguous()
    dropped = torch.empty_like(weight)
    _call(
        "drop_weight",
        dropout(seed, stream, p),
        weight.dtype == torch.bfloat16,
        n=weight.shape[1] ** 2,
        gradient=gradient,
        source=weight,
        target=dropped,
    )
    return dropped


def weight_keep(keep, seed, hidden, p, stream):
    """Write which recurrent weights are kept, into bool `(4, HH)`."""
    _call("weight_keep", dropout(seed, stream, p), n=hidden * hidden, target=keep)


def gate_keep(keep, seed, steps, batch, hidden, p, stream):
    """Write which gates are kept at a range of S steps into bool `(S, B, 4H)`."""
    sizes = {"start": steps.start, "steps": len(steps), "rows": batch, "columns": hidden}
    _call("gate_keep", dropout(seed, stream, p), target=keep, **sizes)


def keep_mask(keep, seed, p, kind, stream):
    """Write which of n elements are kept, into bool `(n,)`."""
    _call("keep_mask", _one(seed, stream, p), n=keep.numel(), kind=kind, target=keep)


def embedding_keep(keep, seed, tokens, p):
    """Write which rows of an embedding are kept, into bool `(n,)`, of n int64 token ids.

    Returns:
        False where an id is no counter of 32 bits, and what was written is nothing.
    """
    tokens = tokens.contiguous()
    return not _call(
        "embedding_keep", _one(seed, 0, p), n=tokens.numel(), source=tokens, target=keep
    )


def locked_dropout(x, seed, p):
    """Return `(T, B, F)`, float32 or bfloat16, with the same features dropped at every step."""
    x = x.contiguous()
    n = x.shape[1] * x.shape[2]
    dropped = torch.empty_like(x)
    _call(
        "locked_dropout",
        _one(seed, 0, p),
        x.dtype == torch.bfloat16,
        n=n,
        rows=x.shape[0],
        source=x,
        target=dropped,
        scales=torch.empty(n, dtype=torch.float32, device="cpu"),
    )
    return dropped
