"""A training step of a classifier, in one process or shared by several."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ulmfit_fast.data.batches import ClassifierBatch
from ulmfit_fast.nn import TextClassifier
from ulmfit_fast.runs.metrics import Reading
from ulmfit_fast.system import distributed
from ulmfit_fast.system.seeds import initialize_vector_functions
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.precision import autocast
from ulmfit_fast.training.readings import not_finite
from ulmfit_fast.training.shared_batch import SharedBatch
from ulmfit_fast.training.step import TrainingStep

__all__ = ["ClassifierLoss", "ClassifierStep", "relative_weights"]

_DEFAULT = Objective(alpha=0.0, beta=0.0)


class ClassifierLoss(NamedTuple):
    """What a classifier's step came to.

    Attributes:
        cross_entropy: in nats, with label smoothing and weights of texts where there are any.
        regularisers: AR + TAR.
    """

    cross_entropy: float
    regularisers: float


def _terms(
    model: TextClassifier,
    tokens: Tensor,
    lengths: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    objective: Objective,
) -> list[Tensor]:
    """Return the cross entropy of a batch and, where there are weights for them, AR and TAR.

    Args:
        model: the classifier.
        tokens: `(T, B)`, of the whole batch in every process.
        lengths: `(B,)`.
        labels: `(B,)`.
        weights: `(B,)`, of the texts, or None.
        objective: weights of AR and TAR, and label smoothing.
    """
    alpha, beta, smoothing = objective.alpha, objective.beta, objective.label_smoothing
    batch = SharedBatch(tokens, lengths)
    texts = (batch.tokens.to(labels.device), batch.lengths.to(labels.device))
    if alpha or beta:
        logits, *terms = model.regularised(*texts, alpha=alpha, beta=beta, join=batch.join)
        factors = batch.weights_of_means(model.max_len)
        terms = [term * factor for term, factor in zip(terms, factors, strict=True)]
    else:
        logits, terms = model(*texts, join=batch.join), []
    scores = logits.float()  # (B, C)
    if weights is None:
        return [F.cross_entropy(scores, labels, label_smoothing=smoothing), *terms]
    each = F.cross_entropy(scores, labels, label_smoothing=smoothing, reduction="none")  # (B,)
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


class ClassifierStep(TrainingStep[TextClassifier]):
    """Train a classifier on one batch after another.

    Several processes pass the same batch: each encodes its part of the texts,
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

    Example:
        >>> from ulmfit_fast.data import ClassifierBatches
        >>> from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig
        >>> model = TextClassifier(AWDLSTM(AWDLSTMConfig(10, emb_size=4, hidden_size=6)), 2)
        >>> step = ClassifierStep(model, torch.optim.Adam(model.parameters()))
        >>> (batch,) = ClassifierBatches([[3, 4], [5]], torch.tensor([0, 1]), batch_size=2)
        >>> step(*batch).regularisers
        0.0

    Args:
        model: the classifier; its training mode is the caller's.
        optimizer: of the model's parameters.
        scheduler: steps after every batch, or None.
        objective: what is minimised; by itself without AR and TAR.
        weights: `(N,)`, of all texts, in the order of the batches' positions and with the mean 1,
            as `relative_weights` returns them; or None, which weighs all alike.

    Attributes:
        unit: "texts".
        state: None.
        steps: updates so far.
    """

    unit = "texts"

    def __init__(
        self,
        model: TextClassifier,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        *,
        objective: Objective = _DEFAULT,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__(model, optimizer, scheduler, objective)
        self.weights = weights

    def train_on(self, batch: ClassifierBatch) -> Iterator[Reading]:
        """Take a step, and yield its reading.

        Args:
            batch: labelled texts.

        Raises:
            FloatingPointError: if the loss is not finite; the parameters are those before the step.
        """
        lrs = self.rates()
        yield Reading(*self(*batch), lrs, len(batch.lengths))

    def __call__(
        self, tokens: Tensor, lengths: Tensor, labels: Tensor | None, positions: Tensor
    ) -> ClassifierLoss:
        """Train on one batch.

        Args:
            tokens: token ids, `(T, B)`, int64.
            lengths: `(B,)`.
            labels: `(B,)`.
            positions: `(B,)`, of the texts among all.

        Returns:
            The parts of the loss.

        Raises:
            FloatingPointError: if the loss is not finite; the parameters are those before the step.
            ValueError: if there are no labels.
        """
        initialize_vector_functions()
        if labels is None:
            raise ValueError("the batch has no labels, expected one for each text; pass labels")
        optimizer, precision = self.optimizer, self.objective.precision
        weights = self.weights
        own = None if weights is None else weights[positions].to(self.device, torch.float32)  # (B,)
        with autocast(self.device, precision.dtype):
            terms = self._of_model(_terms)(
                tokens, lengths, labels.to(self.device), own, self.objective
            )
        # In the order of their sum: a float's sum depends on it.
        loss = terms[0]
        for term in terms[1:]:
            loss = loss + term
        both = distributed.mean_(torch.stack([terms[0].detach(), loss.detach()]))  # (2,)
        cross_entropy, value = both.tolist()
        if not math.isfinite(value):
            raise not_finite(value, self.steps, self.rates())
        optimizer.zero_grad()
        scaler = precision.scaler
        scaled = loss if scaler is None else scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        if scaler is not None:
            scaler.unscale_(optimizer)
        self._clip()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        self._stepped()
        return ClassifierLoss(cross_entropy, value - cross_entropy)
