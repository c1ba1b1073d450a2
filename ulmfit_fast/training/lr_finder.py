"""Find a learning rate: train with one that grows until the loss runs away."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor
from torch.optim import Optimizer

from ulmfit_fast.data.batches import ClassifierBatches
from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.system.progress import progress_bar
from ulmfit_fast.system.seeds import own_generators
from ulmfit_fast.training.classifier_step import (
    classifier_step,
    relative_weights,
    shared_classifier,
)
from ulmfit_fast.training.lm_stage import Documents, training_stream
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.lr_curve import Curve, LRFinderResult, Suggestions, suggest
from ulmfit_fast.training.plan import TrainingPlan
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.settings import TrainingSettings

__all__ = ["LRFinderResult", "Suggestions", "find_lr", "suggest"]


def find_lr(
    model: LanguageModel | TextClassifier,
    documents: Documents,
    settings: TrainingSettings,
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    steps: int = 100,
    stop_factor: float = 4.0,
    seed: int = 0,
    progress: bool = True,
) -> LRFinderResult:
    """Train a copy of a model with a growing learning rate, and read off a good one.

    The rate of the last layer group grows exponentially from step to step, the other groups' in
    proportion. The search ends early where the smoothed loss is `stop_factor` times its lowest.
    With an unfreezing plan the groups of its first stage train. The model and the states of all
    random generators are left as they were.

    Example:
        >>> import numpy as np
        >>> from ulmfit_fast.nn import AWDLSTMConfig
        >>> model = LanguageModel(AWDLSTMConfig(12, emb_size=4, hidden_size=6))
        >>> documents = [np.arange(2, 12, dtype=np.int32)] * 10
        >>> result = find_lr(model, documents, TrainingSettings(batch_size=2, bptt=5), steps=50)
        >>> 1e-7 <= result.suggestions.valley <= 10
        True

    Args:
        model: a language model, or a classifier.
        documents: token ids of each document, int32; read again from the start where they are few.
        settings: how the training is meant to be; its rate, schedule and epochs do not count.
        labels: `(N,)` int64, for a classifier.
        weights: `(N,)`, of a classifier's texts, as for `pipeline.fit_classifier`; or None.
        start_lr: smallest learning rate.
        end_lr: largest learning rate.
        steps: at most so many.
        stop_factor: where to stop, over the lowest smoothed loss.
        seed: of the masks and of the order of the documents.
        progress: show a bar.

    Returns:
        The curve and the suggested rates.

    Raises:
        TypeError: if the model is neither of the two.
        ValueError: if an argument does not fit, or the loss ran away before there was a curve.
    """
    if not (0.0 < start_lr < end_lr and math.isfinite(end_lr)):
        raise ValueError(
            f"start_lr is {start_lr} and end_lr is {end_lr}, expected 0 < start_lr < end_lr"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 10:
        raise ValueError(f"steps is {steps!r}, expected a whole number, at least 10")
    if not stop_factor > 1.0:
        raise ValueError(f"stop_factor is {stop_factor}, expected a number above 1")
    is_classifier = isinstance(model, TextClassifier)
    if not is_classifier and not isinstance(model, LanguageModel):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a LanguageModel or a TextClassifier: of "
            "a ULMFiT, pass its language_model or its classifier"
        )
    if is_classifier != (labels is not None):
        expected = "labels for each text" if is_classifier else "labels=None"
        raise ValueError(f"the model is a {type(model).__name__}, expected {expected}")
    if len(documents) == 0:
        raise ValueError("there are 0 documents, expected at least one; pass more text")
    if weights is not None and not is_classifier:
        raise ValueError("the model is a LanguageModel, expected weights=None")
    weights = relative_weights(weights, len(documents))
    device = next(model.parameters()).device
    with own_generators(seed, device):
        rates = [start_lr * (end_lr / start_lr) ** (i / (steps - 1)) for i in range(steps)]
        with progress_bar("learning rate", steps, enabled=progress) as advance:
            curve = Curve(stop_factor)
            copied = copy.deepcopy(model)
            for lr, loss in _search(copied, documents, labels, weights, settings, rates, seed):
                advance(f"lr {lr:.1e}, loss {loss:.3f}")
                if not curve.add(lr, loss):
                    break
    return curve.result(skip_start=steps // 10)


def _search(
    model: LanguageModel | TextClassifier,
    documents: Documents,
    labels: Tensor | None,
    weights: Tensor | None,
    settings: TrainingSettings,
    rates: Sequence[float],
    seed: int,
) -> Iterator[tuple[float, float]]:
    """Train, and yield each rate with the loss that its step began with."""
    own = replace(settings, schedule="constant", capture=False)
    plan = TrainingPlan(model, own, [len(rates)] * settings.epochs)
    with plan.unfreezing_groups():
        plan.begin_epoch(0)
        shares = [group["lr"] / settings.lr for group in plan.optimizer.param_groups]
        if isinstance(model, LanguageModel):
            losses = _language_model_losses(model, documents, own, plan.optimizer, seed)
        else:
            losses = _classifier_losses(
                model, documents, labels, weights, own, plan.optimizer, seed
            )
        model.train()
        for rate in rates:
            for group, share in zip(plan.optimizer.param_groups, shares, strict=True):
                group["lr"] = rate * share
            try:
                loss = next(losses)
            except FloatingPointError:
                loss = math.nan
            yield rate, loss


def _language_model_losses(
    model: LanguageModel,
    documents: Documents,
    settings: TrainingSettings,
    optimizer: Optimizer,
    seed: int,
) -> Iterator[float]:
    """Take a step each time the next loss is asked for, over and over the text."""
    device = next(model.parameters()).device
    precision = Precision.of(settings.precision, device)
    step = LanguageModelStep(
        model,
        optimizer,
        alpha=settings.alpha,
        beta=settings.beta,
        clip=settings.clip,
        label_smoothing=settings.label_smoothing,
        rescale_to=settings.bptt if settings.random_bptt and settings.rescale_lr else None,
        autocast=precision.dtype,
        scaler=precision.scaler,
    )
    for epoch in itertools.count():
        step.reset()
        for inputs, targets in training_stream(documents, settings, seed, epoch, device):
            loss = step(inputs.to(device), targets.to(device))
            yield float(loss.cross_entropy) if math.isfinite(float(loss.total)) else math.nan


def _classifier_losses(
    model: TextClassifier,
    documents: Documents,
    labels: Tensor | None,
    weights: Tensor | None,
    settings: TrainingSettings,
    optimizer: Optimizer,
    seed: int,
) -> Iterator[float]:
    """Take a step each time the next loss is asked for, over and over the texts."""
    precision = Precision.of(settings.precision, next(model.parameters()).device)
    batches = ClassifierBatches(
        documents,
        labels,
        settings.batch_size,
        pad_id=model.encoder.config.pad_id,
        shuffle=True,
        seed=seed,
    )
    shared = shared_classifier(model)
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        for batch in batches:
            loss = classifier_step(
                model,
                batch,
                optimizer,
                alpha=settings.alpha,
                beta=settings.beta,
                clip=settings.clip,
                label_smoothing=settings.label_smoothing,
                weights=weights,
                precision=precision,
                shared=shared,
            )
            yield loss.cross_entropy
