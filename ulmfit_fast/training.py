"""One epoch at a time: train a language model or a classifier."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ulmfit_fast.data.batches import ClassifierBatch
from ulmfit_fast.evaluation import (
    SizedIterable,
    evaluate_language_model,
    predict_logits,
    recalibrate_batch_norm,
)
from ulmfit_fast.lm_step import LanguageModelStep, trainable
from ulmfit_fast.loss_readings import LossReadings, Reading, not_finite
from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.optim.groups import layer_rates
from ulmfit_fast.precision import Precision
from ulmfit_fast.precision import autocast as autocasting
from ulmfit_fast.progress import progress_bar

__all__ = [
    "ClassifierLoss",
    "EpochResult",
    "History",
    "classifier_step",
    "evaluate_language_model",
    "predict_logits",
    "recalibrate_batch_norm",
    "train_classifier_epoch",
    "train_language_model_epoch",
]

_log = logging.getLogger("ulmfit_fast")

_FULL = Precision()


class EpochResult(NamedTuple):
    """What one epoch of training came to.

    Attributes:
        loss: mean cross entropy in nats, without regularisers.
        items: tokens (language model) or texts (classifier) trained on.
        seconds: wall time.
    """

    loss: float
    items: int
    seconds: float


@dataclass
class History:
    """Every step of a run, for its report.

    Attributes:
        losses: cross entropy of each step, in nats, with label smoothing where that is on.
        regularisers: AR + TAR of each step.
        lrs: learning rate of each layer group at each step, as the step was taken with it.
        epochs: result of each epoch.
        unfreeze_steps: first step of each stage of gradual unfreezing.
        valid_losses: cross entropy on the held-out documents after each epoch, in nats.
        average_step: number of steps after which NT-ASGD began to average, or None.
    """

    losses: list[float] = field(default_factory=list)
    regularisers: list[float] = field(default_factory=list)
    lrs: list[list[float]] = field(default_factory=list)
    epochs: list[EpochResult] = field(default_factory=list)
    unfreeze_steps: list[int] = field(default_factory=list)
    valid_losses: list[float] = field(default_factory=list)
    average_step: int | None = None


def train_language_model_epoch(
    model: LanguageModel,
    batches: SizedIterable,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 1.0,
    clip: float | None = None,
    label_smoothing: float = 0.0,
    rescale_to: int | None = None,
    precision: Precision = _FULL,
    capture: bool = False,
    history: History | None = None,
    description: str = "language model",
    progress: bool = True,
) -> EpochResult:
    """Train on one pass over contiguous streams; the state is carried and detached.

    Args:
        model: the language model; put into training mode.
        batches: pairs of int64 (inputs, targets), each `(T, B)`, in stream order.
        optimizer: steps on every batch.
        scheduler: steps after every batch.
        alpha: weight of the activation regulariser AR.
        beta: weight of the temporal regulariser TAR.
        clip: largest gradient norm, or None.
        label_smoothing: share of the target spread over all words.
        rescale_to: s, take a step of T tokens with T / s of the learning rate; or None.
        precision: autocast and the scaling of gradients.
        capture: replay the steps from a CUDA graph, see `LanguageModelStep`.
        history: gains a record of each step and of the epoch.
        description: shown beside the progress bar.
        progress: show the bar.

    Returns:
        The mean cross entropy, the tokens seen and the time taken.

    Raises:
        FloatingPointError: if the loss is not finite; the parameters are those before the step.
    """
    model.train()
    device = next(model.parameters()).device
    history = history if history is not None else History()
    step = LanguageModelStep(
        model,
        optimizer,
        scheduler,
        alpha=alpha,
        beta=beta,
        clip=clip,
        label_smoothing=label_smoothing,
        rescale_to=rescale_to,
        autocast=precision.dtype,
        scaler=precision.scaler,
        capture=capture,
    )
    step.steps = len(history.losses)
    readings = LossReadings(step.steps)
    total, count, start = 0.0, 0, time.perf_counter()
    with progress_bar(description, len(batches), enabled=progress) as advance:

        def take(reading: Reading) -> None:
            nonlocal total, count
            history.losses.append(reading.cross_entropy)
            history.regularisers.append(reading.regularisers)
            history.lrs.append(reading.lrs)
            total += reading.cross_entropy * reading.tokens
            count += reading.tokens
            advance(f"loss {reading.cross_entropy:.3f}")

        for inputs, targets in batches:
            lrs = step.rates(len(inputs))
            batch = (ids.to(device, non_blocking=True) for ids in (inputs, targets))
            for reading in readings.add(step(*batch), lrs, targets.numel()):
                take(reading)
        for reading in readings.rest():
            take(reading)
    result = EpochResult(total / max(1, count), count, time.perf_counter() - start)
    _log.info("%s: loss %.4f, %.0f s", description, result.loss, result.seconds)
    history.epochs.append(result)
    return result


class ClassifierLoss(NamedTuple):
    """What a classifier's step came to.

    Attributes:
        cross_entropy: in nats, with label smoothing where that is on.
        regularisers: AR + TAR.
    """

    cross_entropy: float
    regularisers: float


def classifier_step(
    model: TextClassifier,
    batch: ClassifierBatch,
    optimizer: Optimizer,
    *,
    alpha: float = 0.0,
    beta: float = 0.0,
    clip: float | None = None,
    label_smoothing: float = 0.0,
    precision: Precision = _FULL,
    step: int = 0,
) -> ClassifierLoss:
    """Train a classifier on one batch.

    Args:
        model: the classifier; its training mode is the caller's.
        batch: labelled texts.
        optimizer: takes the step.
        alpha: weight of the activation regulariser AR.
        beta: weight of the temporal regulariser TAR.
        clip: largest gradient norm, or None.
        label_smoothing: share of the target spread over all classes.
        precision: autocast and the scaling of gradients.
        step: steps taken before, for the error's message.

    Returns:
        The parts of the loss.

    Raises:
        FloatingPointError: if the loss is not finite; the parameters are those before the step.
    """
    tokens, lengths, labels, _ = batch
    device, scaler = next(model.parameters()).device, precision.scaler
    if labels is None:
        raise ValueError("the batch has no labels, expected one for each text; pass labels")
    texts = (tokens.to(device), lengths.to(device))
    with autocasting(device, precision.dtype):
        if alpha or beta:
            logits, *terms = model.regularised(*texts, alpha=alpha, beta=beta)
        else:
            logits, terms = model(*texts), []
    loss = F.cross_entropy(logits.float(), labels.to(device), label_smoothing=label_smoothing)
    cross_entropy = float(loss.detach())
    for term in terms:
        loss = loss + term
    value = float(loss.detach())
    if not math.isfinite(value):
        raise not_finite(value, step, layer_rates(optimizer))
    optimizer.zero_grad()
    scaled = loss if scaler is None else scaler.scale(loss)
    scaled.backward()  # type: ignore[no-untyped-call]
    if scaler is not None:
        scaler.unscale_(optimizer)
    if clip is not None:
        nn.utils.clip_grad_norm_(trainable(optimizer), clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return ClassifierLoss(cross_entropy, value - cross_entropy)


def train_classifier_epoch(
    model: TextClassifier,
    batches: SizedIterable,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    *,
    alpha: float = 0.0,
    beta: float = 0.0,
    clip: float | None = None,
    label_smoothing: float = 0.0,
    precision: Precision = _FULL,
    history: History | None = None,
    description: str = "classifier",
    progress: bool = True,
) -> EpochResult:
    """Train on one pass over labelled texts.

    Args:
        model: the classifier; put into training mode.
        batches: tuples (tokens `(T, B)`, lengths `(B,)`, labels `(B,)`, index `(B,)`).
        optimizer: steps on every batch.
        scheduler: steps after every batch.
        alpha: weight of the activation regulariser AR.
        beta: weight of the temporal regulariser TAR.
        clip: largest gradient norm, or None.
        label_smoothing: share of the target spread over all classes.
        precision: autocast and the scaling of gradients.
        history: gains a record of each step and of the epoch.
        description: shown beside the progress bar.
        progress: show the bar.

    Returns:
        The mean cross entropy, the texts seen and the time taken.

    Raises:
        FloatingPointError: if the loss is not finite; the parameters are those before the step.
    """
    model.train()
    history = history if history is not None else History()
    total, count, start = 0.0, 0, time.perf_counter()
    with progress_bar(description, len(batches), enabled=progress) as advance:
        for batch in batches:
            lrs = layer_rates(optimizer)
            loss = classifier_step(
                model,
                batch,
                optimizer,
                alpha=alpha,
                beta=beta,
                clip=clip,
                label_smoothing=label_smoothing,
                precision=precision,
                step=len(history.losses),
            )
            if scheduler is not None:
                scheduler.step()
            history.losses.append(loss.cross_entropy)
            history.regularisers.append(loss.regularisers)
            history.lrs.append(lrs)
            total += loss.cross_entropy * len(batch.lengths)
            count += len(batch.lengths)
            advance(f"loss {loss.cross_entropy:.3f}")
    result = EpochResult(total / max(1, count), count, time.perf_counter() - start)
    _log.info("%s: loss %.4f, %.0f s", description, result.loss, result.seconds)
    history.epochs.append(result)
    return result
