"""What fastai itself warns of is not this package's to mend; anything else stays an error."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
FASTAI_WARNINGS = [
    # fastai.layers decorates with it as it is imported, and its functions are compiled at a call.
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            for warning in FASTAI_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(autouse=True)
def _seed_fastai():
    # It orders texts with these two.
    random.seed(0)
    np.random.seed(0)


@pytest.fixture
def in_float64(monkeypatch):
    """Make models in float64, and keep fastai from rounding to float32 on the way."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
