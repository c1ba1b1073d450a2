"""Evaluate a language model, score texts, and make a classifier ready for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ulmfit_fast.lstm.native import caching_weights
from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.nn.state import State
from ulmfit_fast.system import distributed
from ulmfit_fast.training.precision import autocast as autocasting
from ulmfit_fast.training.shared_batch import SharedBatch

__all__ = [
    "SizedIterable",
    "evaluate_language_model",
    "predict_logits",
    "recalibrate_batch_norm",
]


class SizedIterable(Sized, Iterable[Any], Protocol):
    """Batches that know how many they are."""


@torch.no_grad()
def evaluate_language_model(
    model: LanguageModel,
    batches: SizedIterable,
    *,
    autocast: torch.dtype | None = None,
    shared: bool = False,
) -> float:
    """Return the mean cross entropy in nats, whose exponential is the perplexity.

    Args:
        model: the language model; put into evaluation mode.
        batches: as for `train_language_model_epoch`.
        autocast: dtype to compute in, bfloat16 or float16, or None for the weights' own.
        shared: the mean over the batches of all processes, each of which calls this.

    Raises:
        ValueError: if there are no tokens.
    """
    model.eval()
    device = next(model.parameters()).device
    state: State | None = None
    # Summed on the device: reading each loss would wait for it.
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    with caching_weights():
        for inputs, targets in batches:
            inputs, targets = (ids.to(device, non_blocking=True) for ids in (inputs, targets))
            with autocasting(device, autocast):
                loss, state = model.loss(inputs, targets, state, alpha=0.0, beta=0.0)
            total += loss.cross_entropy.double() * targets.numel()
            count += targets.numel()
    if shared:
        both = distributed.sum_(torch.stack([total, total.new_tensor(count)]))
        return float(both[0] / both[1])
    if count == 0:
        raise ValueError("there are 0 tokens to evaluate on, expected at least 1; pass more text")
    return float(total) / count


@torch.no_grad()
def predict_logits(
    model: TextClassifier,
    batches: SizedIterable,
    count: int,
    *,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Score texts and put the rows back into the order of the texts.

    Args:
        model: the classifier; put into evaluation mode.
        batches: as for `train_classifier_epoch`; labels may be None.
        count: number of texts N.
        autocast: dtype to compute in, bfloat16 or float16, or None for the weights' own.

    Returns:
        `(N, C)` logits on the CPU, in float32.
    """
    model.eval()
    device = next(model.parameters()).device
    logits = torch.empty(count, model.num_classes, dtype=torch.float32, device="cpu")
    with caching_weights():
        for tokens, lengths, _, index in batches:
            with autocasting(device, autocast):
                scores = model(tokens.to(device), lengths.to(device))  # (B, C)
            logits[index] = scores.float().cpu()
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
def recalibrate_batch_norm(
    model: TextClassifier, batches: SizedIterable, *, autocast: torch.dtype | None = None
) -> None:
    """Estimate the head's BatchNorm statistics anew, with every dropout off.

    Over few training steps the running averages lag behind the weights, and they were taken under
    dropout: a classifier can be right in training mode and wrong in evaluation on one and the same
    text. One pass over the training texts mends that; several processes divide it among them.

    Args:
        model: the classifier; left in evaluation mode.
        batches: the training texts, as for `train_classifier_epoch`.
        autocast: dtype to compute in, bfloat16 or float16, or None for the weights' own.
    """
    device = next(model.parameters()).device
    with _averaging_statistics(model):
        for tokens, lengths, _, _ in batches:
            if len(lengths) > 1:
                batch = SharedBatch(tokens, lengths)
                with autocasting(device, autocast):
                    model(batch.tokens.to(device), batch.lengths.to(device), join=batch.join)
