"""A training step of a classifier, in one process or shared by several."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ulmfit_fast.data.batches import ClassifierBatch
from ulmfit_fast.nn import TextClassifier
from ulmfit_fast.optim.groups import layer_rates, trainable
from ulmfit_fast.system import distributed
from ulmfit_fast.system.seeds import initialize_vector_functions
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.precision import autocast as autocasting
from ulmfit_fast.training.readings import not_finite
from ulmfit_fast.training.shared_batch import SharedBatch

__all__ = ["ClassifierLoss", "classifier_step", "relative_weights", "shared_classifier"]

_FULL = Precision()


class ClassifierLoss(NamedTuple):
    """What a classifier's step came to.

    Attributes:
        cross_entropy: in nats, with label smoothing and weights of texts where there are any.
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
        weights: Tensor | None,
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
            weights: `(B,)`, of the texts, or None.
            alpha: weight of AR.
            beta: weight of TAR.
            label_smoothing: share of the target spread over all classes.
        """
        model, device = self.model, labels.device
        batch = SharedBatch(tokens, lengths)
        texts = (batch.tokens.to(device), batch.lengths.to(device))
        if alpha or beta:
            logits, *terms = model.regularised(*texts, alpha=alpha, beta=beta, join=batch.join)
            factors = batch.weights_of_means(model.max_len)
            terms = [term * factor for term, factor in zip(terms, factors, strict=True)]
        else:
            logits, terms = model(*texts, join=batch.join), []
        scores, smoothing = logits.float(), label_smoothing
        if weights is None:
            return [F.cross_entropy(scores, labels, label_smoothing=smoothing), *terms]
        each = F.cross_entropy(scores, labels, label_smoothing=smoothing, reduction="none")
        return [(each * weights).mean(), *terms]


def relative_weights(weights: Tensor | None, count: int) -> Tensor | None:
    """Return weights of texts over their mean, or None where all are equal.

    Example:
        >>> relative_weights(torch.tensor([1, 3]), 2)
        tensor([0.5000, 1.5000], dtype=torch.float64)

    Args:
        weights: `(N,)`, finite, at least 0 and not all 0; or None.
        count: N.

    Returns:
        `(N,)` in float64 on the CPU, the same on every processor.

    Raises:
        ValueError: if the weights are others.
    """
    if weights is None:
        return None
    own = weights.detach().to("cpu", torch.float64)
    if own.shape != (count,) or not ((own >= 0) & own.isfinite()).all() or not own.any():
        raise ValueError(
            f"weights of shape {tuple(own.shape)} are {own.tolist()!r:.60}, expected ({count},) "
            "finite numbers, at least 0 and not all 0"
        )
    # Over the largest first: the sum of large ones may not be finite.
    own = own / own.max()
    if (own == 1.0).all():
        return None
    return own / (math.fsum(own.tolist()) / count)


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
    weights: Tensor | None = None,
    precision: Precision = _FULL,
    step: int = 0,
    shared: DistributedDataParallel | None = None,
) -> ClassifierLoss:
    """Train a classifier on one batch.

    Several processes (see `distributed`) pass the same batch: each encodes its part of the texts,
    and every head sees the features of all.

    With weights the cross entropy of a batch of B texts is sum(w_i * l_i) / B, where the weights of
    all texts have the mean 1. Over an epoch, or in a batch of all texts, that is the weighted mean
    sum(w_i * l_i) / sum(w_i), which scikit-learn minimises. It is not divided by the weights of the
    batch at hand, as `torch.nn.functional.cross_entropy` with its `weight` does: a batch without
    the rare class would then count as much as one full of it, and with batches of one text weights
    would do nothing. So the gradient of a batch grows with its weights (and is clipped as it then
    is), its mean is that of the weighted loss, and that of a batch whose weights are all 0 is 0. A
    weight is a factor of its text's whole cross entropy, the smoothed share of other classes in it.
    AR and TAR, which know no classes, and the statistics of BatchNorm are of all texts alike.

    Args:
        model: the classifier; its training mode is the caller's.
        batch: labelled texts.
        optimizer: takes the step.
        alpha: weight of the activation regulariser AR.
        beta: weight of the temporal regulariser TAR.
        clip: largest gradient norm, or None.
        label_smoothing: share of the target spread over all classes.
        weights: `(N,)`, of all texts, in the order of the batch's positions and with the mean 1; or
            None, which weighs all alike. See `relative_weights`.
        precision: autocast and the scaling of gradients.
        step: steps taken before, for the error's message.
        shared: what `shared_classifier` returned.

    Returns:
        The parts of the loss.

    Raises:
        FloatingPointError: if the loss is not finite; the parameters are those before the step.
    """
    initialize_vector_functions()
    tokens, lengths, labels, positions = batch
    device, scaler = next(model.parameters()).device, precision.scaler
    if labels is None:
        raise ValueError("the batch has no labels, expected one for each text; pass labels")
    options: dict[str, Any] = {"alpha": alpha, "beta": beta, "label_smoothing": label_smoothing}
    own = None if weights is None else weights[positions].to(device, torch.float32)
    with autocasting(device, precision.dtype):
        terms = (shared or _Loss(model))(tokens, lengths, labels.to(device), own, **options)
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
