"""A language model and a classifier that train in a moment, for tests of how they train."""

import numpy as np
import pytest
import torch

from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.training.stages import (
    TrainingSettings,
    build_classifier,
    fit_classifier,
    train_language_model,
)

CONFIG = AWDLSTMConfig(14, emb_size=8, hidden_size=10, num_layers=2)
SETTINGS = TrainingSettings(batch_size=4, bptt=5, lr=0.02)
KINDS = pytest.mark.parametrize("kind", ["language model", "classifier"])


def documents(count=12):
    draw = np.random.default_rng(0)
    return [draw.integers(2, 14, 3 + n % 7).astype(np.int32) for n in range(count)]


def make(kind):
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    return model if kind == "language model" else build_classifier(model, CONFIG, 2, SETTINGS)


def train(model, settings, **options):
    if isinstance(model, LanguageModel):
        return train_language_model(model, documents(), settings, progress=False, **options)
    labels = torch.arange(12) % 2
    return fit_classifier(model, documents(), labels, settings, progress=False, **options)
