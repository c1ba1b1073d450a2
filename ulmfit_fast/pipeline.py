"""The stages of ULMFiT as functions: train a language model, carry it over, fit a classifier."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ulmfit_fast.data.batches import ClassifierBatches, LMBatches, concatenate_documents
from ulmfit_fast.data.vocab import Vocab, transfer_rows
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.optim import GradualUnfreezing, SlantedTriangularLR, discriminative_groups
from ulmfit_fast.training import (
    History,
    evaluate_language_model,
    recalibrate_batch_norm,
    train_classifier_epoch,
    train_language_model_epoch,
)

__all__ = [
    "TrainingSettings",
    "build_classifier",
    "fit_classifier",
    "perplexity",
    "train_language_model",
    "with_vocabulary",
]

Documents = Sequence[np.ndarray[Any, np.dtype[np.int32]]]


@dataclass(frozen=True)
class TrainingSettings:
    """How one stage trains.

    Attributes:
        epochs: passes over the texts.
        lr: largest learning rate, that of the last layer group.
        batch_size: streams of a language model, texts of a classifier.
        bptt: tokens of a language-model step, or of a classifier's window.
        betas: Adam's decay rates.
        weight_decay: decoupled from the gradient (AdamW); 0 is plain Adam.
        clip: largest gradient norm, or None.
        alpha: weight of the activation regulariser AR.
        beta: weight of the temporal regulariser TAR.
        capture: replay a language model's steps from a CUDA graph, see `LanguageModelStep`.
        slanted: slanted triangular learning rates over all steps; False keeps the rate constant.
        cut_frac: share of the steps on which the rate rises.
        ratio: largest learning rate over the smallest.
        factor: a layer group's rate over that of the group below it; 1 gives all groups one rate.
        gradual_unfreezing: open one more layer group, from the last down, every so many epochs;
            0 trains all groups from the start.
        max_len: tokens at a text's end that a classifier pools and trains on.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146), sections 3.2, 3.3 and 4.1, for the default values.
    """

    epochs: int = 1
    lr: float = 4e-3
    batch_size: int = 64
    bptt: int = 70
    betas: tuple[float, float] = (0.7, 0.99)
    weight_decay: float = 0.0
    clip: float | None = None
    alpha: float = 2.0
    beta: float = 1.0
    capture: bool = False
    slanted: bool = True
    cut_frac: float = 0.1
    ratio: float = 32.0
    factor: float = 2.6
    gradual_unfreezing: int = 0
    max_len: int = 1440

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "bptt", "max_len"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a whole number, at least 1")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise ValueError(f"lr is {self.lr}, expected a positive number")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}, expected a positive number, None for none")
        if self.gradual_unfreezing < 0:
            raise ValueError(
                f"gradual_unfreezing is {self.gradual_unfreezing}, expected a number of epochs, "
                "0 for none"
            )


EpochHook = Callable[[int, History], None]


def _optimizer(
    model: LanguageModel | TextClassifier, settings: TrainingSettings
) -> tuple[Optimizer, list[dict[str, Any]]]:
    groups = discriminative_groups(model, settings.lr, settings.factor)
    kind = AdamW if settings.weight_decay > 0 else Adam
    optimizer = kind(
        [dict(group) for group in groups],
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        # One pass over the parameters instead of eight; the embedding is most of them.
        fused=True,
    )
    return optimizer, groups


def _scheduler(optimizer: Optimizer, settings: TrainingSettings, steps: int) -> LRScheduler | None:
    if not settings.slanted:
        return None
    return SlantedTriangularLR(optimizer, max(1, steps), settings.cut_frac, settings.ratio)


@contextmanager
def _unfreezing(
    model: LanguageModel | TextClassifier, settings: TrainingSettings
) -> Iterator[GradualUnfreezing | None]:
    """Open the layer groups one by one; an interrupted run, too, leaves none of them frozen."""
    stages = settings.gradual_unfreezing
    try:
        yield GradualUnfreezing(model.layer_groups(), epochs_per_stage=stages) if stages else None
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(True)


def train_language_model(
    model: LanguageModel,
    documents: Documents,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    description: str = "language model",
    progress: bool = True,
    after_epoch: EpochHook | None = None,
) -> History:
    """Train a language model on documents in an order drawn anew each epoch.

    Args:
        model: trained in place.
        documents: token ids of each document, int32.
        settings: how to train.
        seed: of the order of the documents.
        description: shown beside the progress bar.
        progress: show the bar.
        after_epoch: called with the number of finished epochs and the history so far.

    Returns:
        The losses and learning rates of every step.

    Raises:
        ValueError: if the corpus is too small for one batch.
    """
    history = History()

    def stream(epoch: int) -> LMBatches:
        # Folding the epoch into the seed keeps an epoch's order independent of how many ran before.
        ids = concatenate_documents(documents, seed=(seed * 1009 + epoch) % 2**63)
        batches = LMBatches(ids, settings.batch_size, settings.bptt)
        return batches.pin_memory() if device.type == "cuda" else batches

    device = next(model.parameters()).device
    batches = stream(0)
    optimizer, _ = _optimizer(model, settings)
    scheduler = _scheduler(optimizer, settings, settings.epochs * len(batches))
    with _unfreezing(model, settings) as unfreezing:
        for epoch in range(settings.epochs):
            if unfreezing is not None:
                _record_stage(unfreezing, history)
            train_language_model_epoch(
                model,
                batches if epoch == 0 else stream(epoch),
                optimizer,
                scheduler,
                alpha=settings.alpha,
                beta=settings.beta,
                clip=settings.clip,
                capture=settings.capture,
                history=history,
                description=f"{description}, epoch {epoch + 1}/{settings.epochs}",
                progress=progress,
            )
            if unfreezing is not None:
                unfreezing.step()
            if after_epoch is not None:
                after_epoch(epoch + 1, history)
    return history


def _record_stage(unfreezing: GradualUnfreezing, history: History) -> None:
    if unfreezing.stage == len(history.unfreeze_steps):
        history.unfreeze_steps.append(len(history.losses))


def perplexity(
    model: LanguageModel, documents: Documents, *, batch_size: int = 16, bptt: int = 70
) -> float:
    """Return the perplexity of a language model on documents, in their own order.

    Args:
        model: put into evaluation mode.
        documents: token ids of each document, int32.
        batch_size: streams; fewer when the text is short.
        bptt: tokens of a step; the value does not depend on it.
    """
    ids = concatenate_documents(documents)
    streams = max(1, min(batch_size, (len(ids) - 1) // 2))
    return math.exp(evaluate_language_model(model, LMBatches(ids, streams, bptt)))


def with_vocabulary(model: LanguageModel, old: Vocab, new: Vocab) -> LanguageModel:
    """Return a copy of a language model for another vocabulary.

    A word that both know keeps its embedding row and decoder bias; a new word gets the mean row
    and the mean bias.

    Args:
        model: the language model over `old`.
        old: its vocabulary.
        new: the vocabulary wanted.

    Returns:
        A new model; the old one is untouched.

    Source:
        Howard & Ruder 2018 and the code that accompanies it: new words start from the mean row.
    """
    config = replace(model.config, vocab_size=len(new))
    weight = next(model.parameters())
    result = LanguageModel(config).to(weight.device, weight.dtype)
    index = new.transfer(old)
    state = model.state_dict()
    shaped = result.state_dict()
    for name, value in state.items():
        if value.shape[0] == len(old) and name in _VOCABULARY_TENSORS:
            shaped[name] = transfer_rows(value, index)
        else:
            shaped[name] = value
    result.load_state_dict(shaped)
    return result


_VOCABULARY_TENSORS = {"encoder.encoder.weight", "decoder.weight", "decoder.bias"}


def build_classifier(
    language_model: LanguageModel | None,
    config: AWDLSTMConfig,
    num_classes: int,
    settings: TrainingSettings,
) -> TextClassifier:
    """Put a new head on a copy of a language model's encoder, or on a new encoder.

    Args:
        language_model: where the encoder's weights come from; None starts from scratch.
        config: sizes as the language model's, dropout values of the classifier.
        num_classes: C.
        settings: give the window and the longest pooled span.
    """
    encoder = AWDLSTM(config)
    if language_model is not None:
        encoder.to(next(language_model.parameters()).dtype)
        encoder.load_state_dict(copy.deepcopy(language_model.encoder.state_dict()))
    return TextClassifier(
        encoder,
        num_classes,
        output_p=config.output_p,
        bptt=settings.bptt,
        max_len=settings.max_len,
    )


def fit_classifier(
    model: TextClassifier,
    documents: Documents,
    labels: Tensor,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    progress: bool = True,
    after_epoch: EpochHook | None = None,
) -> History:
    """Fit a classifier, then estimate the head's BatchNorm statistics anew with dropout off.

    Args:
        model: trained in place, left in evaluation mode.
        documents: token ids of each text, int32.
        labels: `(N,)` int64.
        settings: how to train.
        seed: of the order of the texts.
        progress: show the bar.
        after_epoch: called with the number of finished epochs and the history so far, when the
            model is ready to predict.

    Returns:
        The losses and learning rates of every step, and where each layer group was opened.
    """
    history = History()
    pad_id = model.encoder.config.pad_id
    batches = ClassifierBatches(
        documents, labels, settings.batch_size, pad_id=pad_id, shuffle=True, seed=seed
    )
    optimizer, _ = _optimizer(model, settings)
    scheduler = _scheduler(optimizer, settings, settings.epochs * len(batches))
    with _unfreezing(model, settings) as unfreezing:
        for epoch in range(settings.epochs):
            batches.set_epoch(epoch)
            if unfreezing is not None:
                _record_stage(unfreezing, history)
            train_classifier_epoch(
                model,
                batches,
                optimizer,
                scheduler,
                clip=settings.clip,
                history=history,
                description=f"classifier, epoch {epoch + 1}/{settings.epochs}",
                progress=progress,
            )
            if unfreezing is not None:
                unfreezing.step()
            if after_epoch is not None or epoch + 1 == settings.epochs:
                recalibrate_batch_norm(model, batches)
            if after_epoch is not None:
                after_epoch(epoch + 1, history)
    return history
