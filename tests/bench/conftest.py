"""Settings of a run at tiny shapes, whose ceilings are made up."""

import pytest
import torch

from benchmarks.harness import roofline
from benchmarks.harness.settings import Settings


@pytest.fixture
def said():
    return []


@pytest.fixture
def settings(said):
    found = Settings(tiny=True, repeats=2, say=said.append)
    found.measured["ceilings"] = roofline.Ceilings(found, 1e9, 0.0, {torch.float32: 1e9})
    return found
