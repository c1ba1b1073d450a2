"""Arguments of the C kernels: addresses of tensors, masks, how many threads."""

import ctypes
import os

import torch
from torch.autograd import forward_ad

from ulmfit_fast.kernels.cpu.library import library

__all__ = ["Dropout", "address", "can_access", "dropout", "function", "threads"]

_WORDS = 1 << 32
_forked = False


def _after_fork():
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    # GNU's OpenMP hangs in a child whose parent had more than one thread.
    os.register_at_fork(after_in_child=_after_fork)


class Dropout(ctypes.Structure):
    """`dropout` of philox.h."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("stream", ctypes.c_uint32),
        ("active", ctypes.c_uint32),
        ("threshold", ctypes.c_uint32 * 4),
        ("scale", ctypes.c_float * 4),
    )


def dropout(seed, stream, p):
    """Build the argument of four probabilities."""
    thresholds = (min(int(value * 2.0**32), _WORDS - 1) for value in p)
    scales = (0.0 if value >= 1.0 else 1.0 / (1.0 - value) for value in p)
    four_words, four_floats = ctypes.c_uint32 * 4, ctypes.c_float * 4
    key = int(seed) & (1 << 64) - 1
    return Dropout(key, stream, any(p), four_words(*thresholds), four_floats(*scales))


def threads():
    """Return how many threads a kernel takes, as many as PyTorch does."""
    return 1 if _forked else torch.get_num_threads()


def address(tensor):
    """Return where a tensor's elements lie, None for none."""
    return None if tensor is None else tensor.data_ptr()


def function(name):
    """Return a function of the library that returns nothing."""
    found = getattr(library(), name)
    found.restype = None
    return found


def can_access(*tensors):
    """Say whether there are kernels, and they may read and write the memory of these tensors.

    Not where there is none of its own, as behind a subclass, nor where somebody listens to
    PyTorch's operations, which the kernels are none of: a transform, a trace, a mode.
    """
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
        and not torch.jit.is_tracing()
        and all(map(_has_memory, tensors))
        and library() is not None
    )


def _has_memory(tensor):
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and torch._C._has_storage(tensor)
        # A view may stand for its negative; zeros of autograd's lie nowhere.
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
    )
