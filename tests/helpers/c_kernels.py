"""The C kernels of a CPU beside the torch operations that they stand for."""

import os
import shutil
from contextlib import contextmanager

import pytest
import torch

from ulmfit_fast.kernels.cpu import calls, library


def needed():
    """Skip a test where there is no compiler, or none may be used; fail where one does not work."""
    compilers = [os.environ.get("CC"), *map(shutil.which, ("cc", "gcc", "clang"))]
    if os.environ.get(library.SWITCH) == "0" or not any(compilers):
        pytest.skip("there is no C compiler, or it may not be used")
    assert library.library() is not None, library.status()


@contextmanager
def switched_off():
    """Have torch operations do the work of this process."""
    plain = calls.can_access
    calls.can_access = lambda *tensors: False
    try:
        yield
    finally:
        calls.can_access = plain


class Listener:
    """Says whether a module's C functions were called since it was asked last."""

    def __init__(self, monkeypatch, module):
        self._heard = False
        call = module._call

        def heard(*args, **kwargs):
            self._heard = True
            return call(*args, **kwargs)

        monkeypatch.setattr(module, "_call", heard)

    def heard(self):
        heard, self._heard = self._heard, False
        return heard


@contextmanager
def threads(count):
    """Have PyTorch, and so the kernels, compute with some threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_bits(got, wanted):
    """Assert that two tensors are equal, zeros by their sign too; any NaN is like another."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert torch.equal(got.isnan(), wanted.isnan())
    number = ~wanted.isnan()
    assert torch.equal(got[number], wanted[number])
    if got.is_floating_point():
        assert torch.equal(got[number].signbit(), wanted[number].signbit())
