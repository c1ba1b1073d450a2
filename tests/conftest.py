"""Seeds every test, keeps it on one thread, and skips what this machine cannot run."""

import gc
import os

import pytest
import torch

# Threads cost more than they bring at these sizes, and beside other work they wait for each other;
# `make test-cpus` asks for two.
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))

# It holds no doctest, and the one of a folder below bears the same name.
collect_ignore = ["conftest.py"]


@pytest.fixture(scope="module", autouse=True)
def _freeze():
    # What is there between two files, modules and tests, stays. A plan of unfreezing asks the
    # collector for all that is alive, and was shown hundreds of thousands of objects each time.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def nan_workspaces(monkeypatch):
    """Fill new memory with NaN, so that what is read before it was written shows."""

    def poisoned(make):
        def call(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return call

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def without_native(monkeypatch):
    """Have the package find no C kernels, as on a machine without a compiler."""
    from native import switch_off

    switch_off(monkeypatch)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and there is none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
