"""Says where a device can be listened to, and keeps pytest from importing programs."""

import importlib.util
import os
import shutil
import sys

import pytest
import torch

# Each runs in a process of its own, where the device must be there before torch is.
collect_ignore = ["reading.py", "scenarios.py", "site"]


@pytest.fixture(scope="session")
def compiler():
    """Return the path of a C++ compiler, where the library that it compiles is of use."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    if sys.platform != "linux" or not found:
        pytest.skip("needs Linux and a C++ compiler, to build the library that listens")
    if not importlib.util.find_spec("triton"):
        pytest.skip("needs Triton, whose launches are listened to")
    if torch.version.cuda or torch.version.hip:
        pytest.skip("this PyTorch has a device of its own, which cannot be stood in for")
    return found


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Return the variables of a program that compiles, into a cache of its own."""
    left_out = ("TRITON_INTERPRET", "ULMFIT_FAST_BACKEND")
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    cache = tmp_path_factory.mktemp("cache")
    return {**kept, "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
