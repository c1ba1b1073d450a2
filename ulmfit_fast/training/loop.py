"""One epoch at a time: train a language model or a classifier."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.nn.state import State
from ulmfit_fast.optim.groups import layer_rates
from ulmfit_fast.runs import Run
from ulmfit_fast.system import distributed
from ulmfit_fast.system.progress import Advance, progress_bar
from ulmfit_fast.training.classifier_step import classifier_step, shared_classifier
from ulmfit_fast.training.evaluation import (
    SizedIterable,
    evaluate_language_model,
    predict_logits,
    recalibrate_batch_norm,
)
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.readings import LossReadings, Reading
from ulmfit_fast.training.state import Cursor, EpochResult, History

__all__ = [
    "evaluate_language_model",
    "predict_logits",
    "recalibrate_batch_norm",
    "train_classifier_epoch",
    "train_language_model_epoch",
]

_log = logging.getLogger("ulmfit_fast")
_FULL = Precision()


class EpochBooks:
    """The books of an epoch: its history, where it is, and what its run is told."""

    def __init__(
        self, history: History, cursor: Cursor, run: Run | None, items: str = "tokens"
    ) -> None:
        self.history, self.cursor, self.run = history, cursor, run
        self._items = items
        self._start = time.perf_counter() - cursor.seconds
        # Batches whose loss has not been read yet: one of them may turn out not to be finite.
        self._unread: deque[Any] = deque()
        self._advance: Advance = lambda note: None

    @contextmanager
    def batches(
        self, batches: SizedIterable, description: str, progress: bool
    ) -> Iterator[Iterable[Any]]:
        """Show a bar while the block trains on the batches that are left."""
        done, total = self.cursor.batch, len(batches)
        left = batches if not done else batches.after(done)  # type: ignore[attr-defined]
        try:
            with progress_bar(description, total, done=done, enabled=progress) as self._advance:
                yield self._noted(left)
        except FloatingPointError as error:
            if self.run is None:
                raise
            raise self.run.failed(error, self._unread[0]) from None

    def _noted(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            self._unread.append(batch)
            yield batch

    def take(self, reading: Reading) -> None:
        """Enter a step's loss."""
        self._unread.popleft()
        self.history.losses.append(reading.cross_entropy)
        self.history.regularisers.append(reading.regularisers)
        self.history.lrs.append(reading.lrs)
        self.cursor.loss_sum += reading.cross_entropy * reading.tokens
        self.cursor.items += reading.tokens
        self._advance(self._note(reading))
        if self.run is not None:
            self.run.report(reading)

    def _note(self, reading: Reading) -> str:
        """Say how it goes, for the progress bar."""
        seconds = max(1e-9, time.perf_counter() - self._start)
        speed = f"{self.cursor.items / seconds:,.0f} {self._items}/s"
        loss = f"loss {reading.cross_entropy:.3f}"
        if self._items == "texts":
            return f"{loss}, {speed}"
        return f"{loss}, perplexity {math.exp(min(reading.cross_entropy, 700.0)):,.1f}, {speed}"

    def stepped(self, steps: int) -> bool:
        """Count a batch; return whether a checkpoint is to be written."""
        self.cursor.batch += 1
        return self.run is not None and self.run.due(steps)

    def checkpoint(self, state: State | None) -> None:
        """Have the run write a checkpoint."""
        assert self.run is not None
        self.cursor.seconds = time.perf_counter() - self._start
        self.run.checkpoint(state)

    def result(self, description: str) -> EpochResult:
        """Close the books."""
        result = EpochResult(
            self.cursor.loss_sum / max(1, self.cursor.items),
            self.cursor.items,
            time.perf_counter() - self._start,
        )
        _log.info("%s: loss %.4f, %.0f s", description, result.loss, result.seconds)
        self.history.epochs.append(result)
        return result


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
    cursor: Cursor | None = None,
    state: State | None = None,
    run: Run | None = None,
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
        cursor: where in the epoch to begin, and where it is from then on; None for its start.
        state: the hidden state that goes into the first batch; None for none.
        run: is told of every step, and keeps checkpoints; or None.
        description: shown beside the progress bar.
        progress: show the bar.

    Returns:
        The mean cross entropy, the tokens seen by all processes and the time taken.

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
    step.steps, step.state = len(history.losses), state
    readings = LossReadings(step.steps)
    epoch = EpochBooks(history, cursor or Cursor(), run)
    processes = distributed.world().size
    with epoch.batches(batches, description, progress) as left:
        for inputs, targets in left:
            lrs = step.rates(len(inputs))
            batch = (ids.to(device, non_blocking=True) for ids in (inputs, targets))
            for reading in readings.add(step(*batch), lrs, targets.numel() * processes):
                epoch.take(reading)
            if epoch.stepped(step.steps):
                for reading in readings.rest():
                    epoch.take(reading)
                epoch.checkpoint(step.state)
        for reading in readings.rest():
            epoch.take(reading)
    return epoch.result(description)


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
    weights: Tensor | None = None,
    precision: Precision = _FULL,
    history: History | None = None,
    cursor: Cursor | None = None,
    run: Run | None = None,
    description: str = "classifier",
    progress: bool = True,
) -> EpochResult:
    """Train on one pass over labelled texts.

    Args:
        model: the classifier; put into training mode.
        batches: tuples (tokens `(T, B)`, lengths `(B,)`, labels `(B,)`, index `(B,)`); the same in
            all processes, where there are several.
        optimizer: steps on every batch.
        scheduler: steps after every batch.
        alpha: weight of the activation regulariser AR.
        beta: weight of the temporal regulariser TAR.
        clip: largest gradient norm, or None.
        label_smoothing: share of the target spread over all classes.
        weights: `(N,)`, of all texts, in the order of the index, see `classifier_step`; or None.
        precision: autocast and the scaling of gradients.
        history: gains a record of each step and of the epoch.
        cursor: where in the epoch to begin, and where it is from then on; None for its start.
        run: is told of every step, and keeps checkpoints; or None.
        description: shown beside the progress bar.
        progress: show the bar.

    Returns:
        The mean cross entropy, weighted where there are weights, the texts seen and the time taken.

    Raises:
        FloatingPointError: if the loss is not finite; the parameters are those before the step.
    """
    model.train()
    history = history if history is not None else History()
    epoch = EpochBooks(history, cursor or Cursor(), run, "texts")
    shared = shared_classifier(model)
    with epoch.batches(batches, description, progress) as left:
        for batch in left:
            lrs = layer_rates(optimizer)
            loss = classifier_step(
                model,
                batch,
                optimizer,
                alpha=alpha,
                beta=beta,
                clip=clip,
                label_smoothing=label_smoothing,
                weights=weights,
                precision=precision,
                step=len(history.losses),
                shared=shared,
            )
            if scheduler is not None:
                scheduler.step()
            epoch.take(Reading(*loss, lrs, len(batch.lengths)))
            if epoch.stepped(len(history.losses)):
                epoch.checkpoint(None)
    return epoch.result(description)
