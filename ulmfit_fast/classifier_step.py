"""A training step of a classifier, in one process or shared by several."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ulmfit_fast import distributed
from ulmfit_fast.data.classifier_batches import ClassifierBatch
from ulmfit_fast.lm_step import trainable
from ulmfit_fast.loss_readings import not_finite
from ulmfit_fast.nn import TextClassifier
from ulmfit_fast.optim.groups import layer_rates
from ulmfit_fast.precision import Precision
from ulmfit_fast.precision import autocast as autocasting
from ulmfit_fast.shared_batch import SharedBatch

__all__ = ["ClassifierLoss", "classifier_step", "shared_classifier"]

_FULL = Precision()


class ClassifierLoss(NamedTuple):
    """What a classifier's step came to.

    Attributes:
        cross_entropy: in nats, with label smoothing where that is on.
        regularisers: AR + TAR.
    """

    cross_entropy: float
    regularisers: float


class _Loss(nn.Module):
    """A classifier's loss as a forward, which is what DistributedDataParallel runs."""

    def __init__(self, model: TextClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor,
        labels: Tensor,
        *,
        alpha: float,
        beta: float,
        label_smoothing: float,
    ) -> list[Tensor]:
        """Return the cross entropy of the batch and, where there are weights for them, AR and TAR.

        Args:
            tokens: `(T, B)`, of the whole batch in every process.
            lengths: `(B,)`.
            labels: `(B,)`.
            alpha: weight of AR.
            beta: weight of TAR.
            label_smoothing: share of the target spread over all classes.
        """
        model, device = self.model, labels.device
        batch = SharedBatch(tokens, lengths)
        texts = (batch.tokens.to(device), batch.lengths.to(device))
        if alpha or beta:
            logits, *terms = model.regularised(*texts, alpha=alpha, beta=beta, join=batch.join)
            weights = batch.weights_of_means(model.max_len)
            terms = [term * weight for term, weight in zip(terms, weights, strict=True)]
        else:
            logits, terms = model(*texts, join=batch.join), []
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        return [loss, *terms]


def shared_classifier(model: TextClassifier) -> DistributedDataParallel | None:
    """Return what `classifier_step` needs where there are several processes, and None in one.

    To be made anew when other parameters are to be trained.

    Args:
        model: the classifier.
    """
    if distributed.world().size == 1:
        return None
    # The statistics of BatchNorm are formed of the whole batch in every process.
    return distributed.parallel(_Loss(model))


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
    shared: DistributedDataParallel | None = None,
) -> ClassifierLoss:
    """Train a classifier on one batch.

    Several processes (see `distributed`) pass the same batch: each encodes its part of the texts,
    and every head sees the features of all.

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
        shared: what `shared_classifier` returned.

    Returns:
        The parts of the loss.

    Raises:
        FloatingPointError: if the loss is not finite; the parameters are those before the step.
    """
    tokens, lengths, labels, _ = batch
    device, scaler = next(model.parameters()).device, precision.scaler
    if labels is None:
        raise ValueError("the batch has no labels, expected one for each text; pass labels")
    options: dict[str, Any] = {"alpha": alpha, "beta": beta, "label_smoothing": label_smoothing}
    with autocasting(device, precision.dtype):
        terms = (shared or _Loss(model))(tokens, lengths, labels.to(device), **options)
    # In the order of their sum: a float's sum depends on it.
    loss = terms[0]
    for term in terms[1:]:
        loss = loss + term
    both = distributed.mean_(torch.stack([terms[0].detach(), loss.detach()]))
    cross_entropy, value = both.tolist()
    if not math.isfinite(value):
        raise not_finite(value, step, layer_rates(optimizer))
    optimizer.zero_grad()
    scaled = loss if scaler is None else scaler.scale(loss)
    scaled.backward()
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
