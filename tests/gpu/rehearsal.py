"""Sizes of the GPU tests: real ones on a GPU, tiny ones in Triton's interpreter.

So that a GPU's minutes are not spent on typing errors, all that does not need CUDA itself also runs
on a CPU with TRITON_INTERPRET=1.
"""

import os

import pytest

REHEARSAL = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
FORMS = ["triton-persistent", "triton-stepwise"]


def rehearsed(test):
    """Mark a test as one for the GPU that runs in the interpreter as well."""
    return test if REHEARSAL else pytest.mark.gpu(test)


def sized(real, tiny):
    """Return the real size on a GPU and the tiny one in the interpreter."""
    return tiny if REHEARSAL else real
