"""A run of one stage, and what has to be equal for it to be gone on with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.nn import LanguageModel
from ulmfit_fast.nn.state import State
from ulmfit_fast.runs.run import Run
from ulmfit_fast.system.distributed import world
from ulmfit_fast.training.settings import TrainingSettings
from ulmfit_fast.training.snapshot import Training

__all__ = ["StageRun", "surviving"]


@dataclass(frozen=True)
class StageRun:
    """A run, with what it keeps of the stage beside the model.

    Attributes:
        run: the run.
        stage: "pretrain", "fine_tune_lm" or "fit_classifier".
        tokenizer: of the texts.
    """

    run: Run
    stage: str
    tokenizer: Tokenizer


def surviving(
    run: StageRun | None,
    training: Training,
    settings: TrainingSettings,
    documents: Sequence[Any],
    seed: int,
    weights: Tensor | None = None,
) -> AbstractContextManager[State | None]:
    """Return the context of `Run.training`, or one that does nothing where there is no run.

    Args:
        run: the run, or None.
        training: with no step taken.
        settings: how it trains.
        documents: token ids of each document.
        seed: of their order.
        weights: `(N,)` in float64, of a classifier's texts; or None.
    """
    if run is None:
        return nullcontext()
    model = training.model
    encoder = model.encoder
    fingerprint = {
        "settings": asdict(settings),
        "model": {**encoder.config.to_dict(), "kind": type(model).__name__},
        "dtype": str(next(model.parameters()).dtype),
        "device": next(model.parameters()).device.type,
        "seed": seed,
        "processes": world().size,
        "steps_of_epochs": training.plan.epoch_steps,
        "documents": len(documents),
        "first_documents": [_digest(documents[i]) for i in range(min(3, len(documents)))],
    }
    if not isinstance(model, LanguageModel):
        fingerprint["classes"] = model.num_classes
        fingerprint["weights"] = None if weights is None else _summary(weights)
    return run.run.training(run.stage, training, fingerprint, run.tokenizer)


def _summary(weights: Tensor) -> str:
    """Return the range of weights for a reader, and what other weights do not have as well."""
    digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
    return f"{float(weights.min()):.4g} to {float(weights.max()):.4g}, {digest[:32]}"


def _digest(document: Any) -> list[int]:
    """Return some numbers that another document hardly has as well."""
    ids = np.asarray(document, dtype=np.int64)
    return [len(ids), int((ids * np.arange(1, len(ids) + 1)).sum())]
