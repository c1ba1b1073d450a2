"""Memory that runs out at a chosen call, and new memory full of what must not be read."""

import contextlib
import functools
from unittest import mock

import torch

from ulmfit_fast.system import scoped

# What the package calls that takes memory, forwards and backwards; none of it is an optimizer's.
CALLS = [
    *[
        (torch, name)
        for name in (
            *("empty", "empty_like", "zeros", "zeros_like", "full", "full_like", "arange"),
            *("mm", "addmm", "where", "cat", "stack", "lstm", "embedding"),
        )
    ],
    *[
        (torch.Tensor, name)
        for name in (
            *("new_empty", "new_zeros", "clone", "contiguous", "to", "tanh", "addmm_", "sum"),
            *("masked_fill", "view", "reshape", "copy_"),
        )
    ],
]


class MadeUp(torch.OutOfMemoryError):
    """Told apart from a real one."""


@contextlib.contextmanager
def out_of_memory(at=None):
    """Have the call of that number fail, counted from 0; give a list with a name for each call."""
    called = []

    def counted(name, real):
        # torch.compile looks at the functions of torch; nothing here compiles.
        @functools.wraps(real)
        def call(*args, **kwargs):
            called.append(name)
            if len(called) - 1 == at:
                raise MadeUp(f"made up at call {at}, {name}")
            return real(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in CALLS:
            fake = counted(name, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, fake))
        yield called


@contextlib.contextmanager
def memory_full_of(value):
    """Fill new memory with a value, and that of integers with one that is as wrong."""

    def filled(make):
        @functools.wraps(make)
        def call(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(value)
            if tensor.dtype == torch.bool:
                return tensor.fill_(value != 0)
            # Wrong as a counter, an index and a seed alike.
            return tensor.fill_(101 if value else 0)

        return call

    owners = [(torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")]
    with contextlib.ExitStack() as stack:
        for owner, name in owners:
            fake = filled(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, fake))
        yield


def assert_nothing_is_left_over():
    """Assert that what a failed call may have changed for the whole process is as ever."""
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    assert not torch.is_inference_mode_enabled()
    assert scoped.seed_source is None and scoped.backend is None
