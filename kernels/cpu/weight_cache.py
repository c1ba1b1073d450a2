"""What is made of weights once, where they are known to stay as they are for a while."""

from contextlib import contextmanager
from contextvars import ContextVar

import torch

__all__ = ["cached", "caching"]

_made = ContextVar("ulmfit_fast.made_of_weights", default=None)


@contextmanager
def caching():
    """Let what `cached` makes in the block be made once, until its end.

    For predictions, which ask the same weights again and again. Weights may change in the block if
    PyTorch counts the change, as it does but for `.data`.
    """
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)


def cached(kind, tensor, make):
    """Return what is made of a tensor: the same as before, in a block of `caching`.

    Args:
        kind: what it is; of a tensor there is one of each kind.
        tensor: what it is made of.
        make: makes it.
    """
    made = _made.get()
    if made is None or torch.is_grad_enabled() or tensor.is_inference():
        return make()
    key = kind, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
    # Its memory is kept, also if the tensor is given another one: nothing can come to lie there.
    _, version, value = made.get(key, (None, None, None))
    if version != tensor._version:
        value = make()
        made[key] = tensor.detach(), tensor._version, value
    return value
