"""Sizes of the GPU tests: real ones on a GPU, tiny ones in Triton's interpreter.

So that a GPU's minutes are not spent on typing errors, all that does not need CUDA itself also runs
on a CPU with TRITON_INTERPRET=1.
"""

import contextlib
import os
import warnings

import pytest
import torch

REHEARSAL = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
FORMS = ["triton-persistent", "triton-stepwise"]
# Triton hands float32 to the tensor cores as it is, and these drop the low 13 bits, where cuDNN may
# round before. An operand is then off by up to 2^-10 instead of 2^-11, and always to the same side.
TF32_SHARE = 4


def rehearsed(test):
    """Mark a test as one for the GPU that runs in the interpreter as well."""
    return test if REHEARSAL else pytest.mark.gpu(test)


def sized(real, tiny):
    """Return the real size on a GPU and the tiny one in the interpreter."""
    return tiny if REHEARSAL else real


@contextlib.contextmanager
def never_waiting():
    """Raise where the device is waited for."""
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            # PyTorch says that it may overlook some, after it has set the mode.
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
