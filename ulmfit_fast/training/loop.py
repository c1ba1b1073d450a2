"""One epoch at a time: train a language model or a classifier."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.nn.state import State
from ulmfit_fast.optim.groups import layer_rates
from ulmfit_fast.runs import Run
from ulmfit_fast.system import distributed
from ulmfit_fast.training.classifier_step import classifier_step, shared_classifier
from ulmfit_fast.training.cursor import Cursor
from ulmfit_fast.training.epochs import EpochBooks
from ulmfit_fast.training.evaluation import (
    SizedIterable,
    evaluate_language_model,
    predict_logits,
    recalibrate_batch_norm,
)
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.readings import LossReadings, Reading
from ulmfit_fast.training.state import EpochResult, History

__all__ = [
    "evaluate_language_model",
    "predict_logits",
    "recalibrate_batch_norm",
    "train_classifier_epoch",
    "train_language_model_epoch",
]

_FULL = Precision()


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
