"""How good the answers of a classifier are: scores, and what they would be on other texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "BINS",
    "SCORES",
    "bootstrap",
    "class_scores",
    "confusion_matrix",
    "reliability",
    "scores_of",
]

Array = npt.NDArray[Any]

SCORES = ("accuracy", "macro_f1", "weighted_f1", "log_loss", "calibration_error")
# Of the calibration error: of equal width, over the probability of the answer.
BINS = 10
# A probability of 0 would cost infinitely much; those of a classifier are in float32.
_LEAST = float(np.finfo(np.float32).eps)
# Rows drawn in all resamples together, beyond which there are fewer of them.
_MOST_DRAWN = 10**8
_FEWEST_RESAMPLES = 200


def confusion_matrix(truth: Array, predicted: Array, classes: int) -> Array:
    """Count the texts of each class, a row, by what was answered, a column.

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    array([[1, 1],
           [0, 1]])

    Args:
        truth: `(N,)`, the class of each text by its position.
        predicted: `(N,)`, the answers.
        classes: C.

    Returns:
        `(C, C)` int64.
    """
    counts = np.bincount(truth * classes + predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def class_scores(confusion: Array) -> tuple[Array, Array, Array]:
    """Return precision, recall and F1 of each class; NaN where there is nothing to divide by.

    >>> [part.round(3).tolist() for part in class_scores(np.array([[3, 1], [0, 4]]))]
    [[1.0, 0.8], [0.75, 1.0], [0.857, 0.889]]

    Args:
        confusion: `(C, C)`, or several, `(..., C, C)`.

    Returns:
        Three times `(..., C)`: precision is NaN where the class was never answered, recall where
        it has no text, F1 where both are so.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, answered = confusion.sum(axis=-1), confusion.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        return right / answered, right / support, 2 * right / (support + answered)


def scores_of(truth: Array, probabilities: Array) -> dict[str, float]:
    """Return accuracy, macro and weighted F1, log loss and calibration error.

    >>> scores = scores_of(np.array([0, 1]), np.array([[0.8, 0.2], [0.4, 0.6]]))
    >>> scores["accuracy"], round(scores["log_loss"], 4), round(scores["calibration_error"], 4)
    (1.0, 0.367, 0.3)

    Args:
        truth: `(N,)`, the class of each text by its position.
        probabilities: `(N, C)`.

    Returns:
        Each of `SCORES`. The macro F1 is the mean over the classes that a text has or that were
        answered; log loss is in nats; the calibration error is expected |right - probability| of
        the answers in `BINS` bins of equal width.

    Source:
        Guo et al. 2017 (arXiv:1706.04599), equation 3, for the calibration error.
    """
    answers = _Answers(truth, probabilities)
    return dict(zip(SCORES, answers.scores(np.arange(len(truth))), strict=True))


def bootstrap(
    truth: Array, probabilities: Sequence[Array], *, resamples: int = 1000, seed: int = 0
) -> Array:
    """Return the scores of several classifiers on texts drawn from these with replacement.

    Each draw is the same for all of them, so that differences are of pairs.

    >>> sure, unsure = np.eye(2), np.full((2, 2), 0.5)
    >>> bootstrap(np.array([0, 1]), [sure, unsure], resamples=3)[..., 0].round(1).tolist()
    [[1.0, 1.0, 1.0], [0.0, 0.5, 1.0]]

    Args:
        truth: `(N,)`, the class of each text by its position.
        probabilities: of each classifier, `(N, C)`.
        resamples: draws, fewer where the texts are very many.
        seed: of the draws.

    Returns:
        `(len(probabilities), resamples, len(SCORES))` in float64.

    Source:
        Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapters 6 and 13.
    """
    answers = [_Answers(truth, own) for own in probabilities]
    count = len(truth)
    resamples = min(resamples, max(_FEWEST_RESAMPLES, _MOST_DRAWN // count))
    draw = np.random.default_rng(seed)
    found = np.empty((len(answers), resamples, len(SCORES)))
    for n in range(resamples):
        rows = draw.integers(0, count, count)
        for position, own in enumerate(answers):
            found[position, n] = own.scores(rows)
    return found


def reliability(truth: Array, probabilities: Array) -> list[tuple[int, float, float]]:
    """Return what the answers of each bin of probability are worth.

    >>> reliability(np.array([0, 1]), np.array([[0.9, 0.1], [0.88, 0.12]]))[8:]
    [(1, 0.88, 0.0), (1, 0.9, 1.0)]

    Args:
        truth: `(N,)`, the class of each text by its position.
        probabilities: `(N, C)`.

    Returns:
        For each of `BINS` the answers in it, their mean probability and the share that is right,
        0 where there is none.
    """
    own = _Answers(truth, probabilities)
    counts = np.bincount(own.bins, minlength=BINS)
    sums = (np.bincount(own.bins, part, minlength=BINS) for part in (own.sure, own.right))
    means = [total / np.maximum(counts, 1) for total in sums]
    return list(zip(counts.tolist(), *(part.tolist() for part in means), strict=True))


class _Answers:
    """What of each answer its scores need, so that those of a resample are sums over its rows."""

    def __init__(self, truth: Array, probabilities: Array) -> None:
        probabilities = np.asarray(probabilities, np.float64)
        rows, self.classes = np.arange(len(truth)), probabilities.shape[1]
        predicted = probabilities.argmax(axis=1)
        self.cells = truth * self.classes + predicted
        self.right = predicted == truth
        self.sure = probabilities[rows, predicted]
        # The edge belongs to the bin above, and 1 to the last one.
        self.bins = np.minimum((self.sure * BINS).astype(np.int64), BINS - 1)
        self.excess = self.right - self.sure
        self.losses = -np.log(np.clip(probabilities[rows, truth], _LEAST, 1 - _LEAST))

    def scores(self, rows: Array) -> tuple[float, ...]:
        size = self.classes
        confusion = np.bincount(self.cells[rows], minlength=size**2).reshape(size, size)
        f1, support = class_scores(confusion)[2], confusion.sum(axis=1)
        known = ~np.isnan(f1)
        excess = np.bincount(self.bins[rows], self.excess[rows], minlength=BINS)
        return (
            float(np.trace(confusion) / len(rows)),
            float(f1[known].mean()),
            float(f1[known] @ support[known] / len(rows)),
            float(self.losses[rows].mean()),
            float(np.abs(excess).sum() / len(rows)),
        )
