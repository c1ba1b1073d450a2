"""One epoch at a time: train and evaluate a language model or a classifier."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ulmfit_fast.lm_step import LanguageModelStep, trainable
from ulmfit_fast.loss_readings import LossReadings, Reading, not_finite
from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.nn.state import State
from ulmfit_fast.progress import progress_bar

__all__ = [
    "EpochResult",
    "History",
    "evaluate_language_model",
    "predict_logits",
    "recalibrate_batch_norm",
    "train_classifier_epoch",
    "train_language_model_epoch",
]

_log = logging.getLogger("ulmfit_fast")


class SizedIterable(Sized, Iterable[Any], Protocol):
    """Batches that know how many they are."""


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
        losses: cross entropy of each step, in nats.
        regularisers: AR + TAR of each step; zeros for a classifier.
        lrs: learning rate of each parameter group at each step.
        epochs: result of each epoch.
        unfreeze_steps: first step of each stage of gradual unfreezing.
    """

    losses: list[float] = field(default_factory=list)
    regularisers: list[float] = field(default_factory=list)
    lrs: list[list[float]] = field(default_factory=list)
    epochs: list[EpochResult] = field(default_factory=list)
    unfreeze_steps: list[int] = field(default_factory=list)


def _step(
    loss: Tensor, optimizer: Optimizer, scheduler: LRScheduler | None, clip: float | None
) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if clip is not None:
        nn.utils.clip_grad_norm_(trainable(optimizer), clip)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()


def _check_finite(loss: Tensor, step: int, lrs: list[float]) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise not_finite(value, step, lrs)
    return value


def train_language_model_epoch(
    model: LanguageModel,
    batches: SizedIterable,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 1.0,
    clip: float | None = None,
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
        model, optimizer, scheduler, alpha=alpha, beta=beta, clip=clip, capture=capture
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
            lrs = [group["lr"] for group in optimizer.param_groups]
            batch = (ids.to(device, non_blocking=True) for ids in (inputs, targets))
            for reading in readings.add(step(*batch), lrs, targets.numel()):
                take(reading)
        for reading in readings.rest():
            take(reading)
    result = EpochResult(total / max(1, count), count, time.perf_counter() - start)
    _log.info("%s: loss %.4f, %.0f s", description, result.loss, result.seconds)
    history.epochs.append(result)
    return result


@torch.no_grad()
def evaluate_language_model(model: LanguageModel, batches: SizedIterable) -> float:
    """Return the mean cross entropy in nats, whose exponential is the perplexity.

    Args:
        model: the language model; put into evaluation mode.
        batches: as for `train_language_model_epoch`.
    """
    model.eval()
    device = next(model.parameters()).device
    state: State | None = None
    # Summed on the device: reading each loss would wait for it.
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for inputs, targets in batches:
        inputs, targets = (ids.to(device, non_blocking=True) for ids in (inputs, targets))
        loss, state = model.loss(inputs, targets, state, alpha=0.0, beta=0.0)
        total += loss.cross_entropy.double() * targets.numel()
        count += targets.numel()
    if count == 0:
        raise ValueError("there are 0 tokens to evaluate on, expected at least 1; pass more text")
    return float(total) / count


def train_classifier_epoch(
    model: TextClassifier,
    batches: SizedIterable,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    *,
    clip: float | None = None,
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
        clip: largest gradient norm, or None.
        history: gains a record of each step and of the epoch.
        description: shown beside the progress bar.
        progress: show the bar.

    Returns:
        The mean cross entropy, the texts seen and the time taken.

    Raises:
        FloatingPointError: if the loss is not finite; the parameters are those before the step.
    """
    model.train()
    device = next(model.parameters()).device
    history = history if history is not None else History()
    total, count, start = 0.0, 0, time.perf_counter()
    with progress_bar(description, len(batches), enabled=progress) as advance:
        for tokens, lengths, labels, _ in batches:
            logits = model(tokens.to(device), lengths.to(device))
            loss = F.cross_entropy(logits.float(), labels.to(device))
            lrs = [group["lr"] for group in optimizer.param_groups]
            value = _check_finite(loss.detach(), len(history.losses), lrs)
            _step(loss, optimizer, scheduler, clip)
            history.losses.append(value)
            history.regularisers.append(0.0)
            history.lrs.append(lrs)
            total += value * len(labels)
            count += len(labels)
            advance(f"loss {value:.3f}")
    result = EpochResult(total / max(1, count), count, time.perf_counter() - start)
    _log.info("%s: loss %.4f, %.0f s", description, result.loss, result.seconds)
    history.epochs.append(result)
    return result


@torch.no_grad()
def predict_logits(model: TextClassifier, batches: SizedIterable, count: int) -> Tensor:
    """Score texts and put the rows back into the order of the texts.

    Args:
        model: the classifier; put into evaluation mode.
        batches: as for `train_classifier_epoch`; labels may be None.
        count: number of texts N.

    Returns:
        `(N, C)` logits on the CPU, in float32.
    """
    model.eval()
    device = next(model.parameters()).device
    logits = torch.empty(count, model.num_classes)
    for tokens, lengths, _, index in batches:
        logits[index] = model(tokens.to(device), lengths.to(device)).float().cpu()
    return logits


@contextmanager
def _averaging_statistics(model: TextClassifier) -> Iterator[list[nn.BatchNorm1d]]:
    """Let the head's BatchNorm layers, and nothing else, be in training mode."""
    norms = [module for module in model.head.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield norms
    finally:
        model.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def recalibrate_batch_norm(model: TextClassifier, batches: SizedIterable) -> None:
    """Estimate the head's BatchNorm statistics anew, with every dropout off.

    Over few training steps the running averages lag behind the weights, and they were taken under
    dropout: a classifier can be right in training mode and wrong in evaluation on one and the same
    text. One pass over the training texts mends that.

    Args:
        model: the classifier; left in evaluation mode.
        batches: the training texts, as for `train_classifier_epoch`.
    """
    device = next(model.parameters()).device
    with _averaging_statistics(model):
        for tokens, lengths, _, _ in batches:
            if len(lengths) > 1:
                model(tokens.to(device), lengths.to(device))
