"""What a method answers: classifiers, by themselves and as the mean of their probabilities.

Each classifier's answers on the measured rows are kept, so that a mean of two fits neither again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.real_data.models import Models
from benchmarks.real_data.sets import Set, Texts
from ulmfit_fast.system.files import file_in_place
from ulmfit_fast.ulmfit.baselines import Baselines
from ulmfit_fast.ulmfit.estimator import ULMFiT

Array = npt.NDArray[Any]

# Each method is the mean of classifiers; the stages of ULMFiT are scratch, pretrained, tuned,
# ulmfit, ulmfit_both, each with one thing more than the one before.
METHODS: dict[str, tuple[str, ...]] = {
    "majority": ("majority",),
    "tfidf": ("tfidf",),
    "scratch": ("scratch",),
    "pretrained": ("pretrained",),
    "tuned": ("tuned",),
    "ulmfit": ("forward",),
    "ulmfit_both": ("forward", "backward"),
    "ulmfit+tfidf": ("forward", "tfidf"),
}
# They know no recipe, and no seed.
FIXED = ("majority", "tfidf")
_C, _C_OF_FEW, _FEW = (1, 3, 10, 30, 100), (1, 3, 10, 30, 100, 300, 1000), 2000
_FOLDS = 3


def is_fixed(method: str) -> bool:
    """Say whether a method depends on the rows alone."""
    return all(member in FIXED for member in METHODS[method])


class Answers(NamedTuple):
    """Probabilities `(N, C)` of the measured rows, and the seconds to fit and to answer."""

    probabilities: Array
    seconds: float


def answers(
    method: str, models: Models, task: Set, labels: int | None, draw: int, kept: Path
) -> Answers:
    """Return what a method says of the measured rows.

    Args:
        method: a name of `METHODS`.
        models: of the recipe.
        task: the set.
        labels: how many; None for all.
        draw: its number.
        kept: folder of the classifiers' answers.
    """
    found = [_kept(member, models, task, labels, draw, kept) for member in METHODS[method]]
    mean = np.mean([own.probabilities for own in found], axis=0)
    return Answers(mean, sum(own.seconds for own in found))


def _kept(
    member: str, models: Models, task: Set, labels: int | None, draw: int, folder: Path
) -> Answers:
    # All rows are the same in every draw.
    number = 0 if member in FIXED and labels is None else draw
    digest = "" if member in FIXED else f"-{models.digest}"
    count = "all" if labels is None else labels
    path = folder / f"{task.name}-{task.part}-{count}-{number}-{member}{digest}.npz"
    if not path.exists():
        rows = task.draw(labels, draw)
        answer = _classifier(member, models, task, rows, draw)
        begun = time.perf_counter()
        probabilities = answer(task.measured.texts, rows)
        with file_in_place(path) as file:
            seconds = time.perf_counter() - begun
            np.savez(file, probabilities=probabilities, seconds=seconds)
    with np.load(path) as stored:
        return Answers(stored["probabilities"], float(stored["seconds"]))


def _classifier(
    member: str, models: Models, task: Set, rows: Texts, draw: int
) -> Callable[[Sequence[str], Texts], Array]:
    """Return what fits a classifier to rows and answers texts; language models are made before."""
    seed = 1000 * models.recipe.seed + draw
    if member == "majority":
        return lambda texts, rows: majority(texts, rows, task.classes)
    if member == "tfidf":
        return lambda texts, rows: tfidf(texts, rows, task.classes)
    backwards = member == "backward"
    if member == "scratch":
        model = models.new(seed)
    elif member == "pretrained":
        model = models.load(models.general(), seed)
    else:
        model = models.load(models.tuned(task, backwards), seed)
    given = models.recipe.classifier_arguments(
        len(rows.texts), plain=member in ("scratch", "pretrained", "tuned")
    )
    return lambda texts, rows: fitted(model, texts, rows, task.classes, given)


def fitted(
    model: ULMFiT, texts: Sequence[str], rows: Texts, classes: Sequence[str], given: dict[str, Any]
) -> Array:
    """Fit a classifier of ULMFiT to rows, and answer texts."""
    model.fit_classifier(rows.texts, rows.labels, baseline=False, **given)
    return _in_order(model.predict_proba(texts), model.labels, classes)


def majority(texts: Sequence[str], rows: Texts, classes: Sequence[str]) -> Array:
    """Answer with the classes' shares among the rows."""
    counts = tuple(rows.labels.count(name) for name in classes)
    (shares,) = Baselines(counts).predict_proba(texts).values()
    return shares


def tfidf(texts: Sequence[str], rows: Texts, classes: Sequence[str]) -> Array:
    r"""Fit TF-IDF of words and pairs with logistic regression to rows, and answer texts.

    Words are `\b\w+\b`; frequencies count by their logarithm; from 2,000 rows on a feature must
    occur in two texts. C is that of 1, 3, 10, 30, 100, and below 2,000 rows 300 and 1,000, with the
    best accuracy in three folds, of equal ones the largest; 10 where no class has three rows.
    """
    from sklearn.base import clone
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.multiclass import OneVsRestClassifier

    labels, corpus = np.array(rows.labels), np.array(rows.texts, dtype=object)
    few = len(labels) < _FEW
    words = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=1 if few else 2,
        token_pattern=r"\b\w+\b",
    )
    count = len(set(rows.labels))

    def regression(c: float) -> Any:
        if 2 < count <= 6:
            return LogisticRegression(C=c, max_iter=2000)
        own = LogisticRegression(C=c, solver="liblinear", max_iter=2000)
        return own if count == 2 else OneVsRestClassifier(own)

    best: float = 10
    if max(rows.labels.count(name) for name in classes) >= _FOLDS:
        grid = _C_OF_FEW if few else _C
        right = dict.fromkeys(grid, 0)
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
        with warnings.catch_warnings():
            # Classes with fewer rows than folds stand in some of them only.
            warnings.simplefilter("ignore", UserWarning)
            parts = list(folds.split(corpus, labels))
        for train, held_out in parts:
            features = clone(words)
            own = features.fit_transform(corpus[train])
            others = features.transform(corpus[held_out])
            for c in grid:
                model = regression(c).fit(own, labels[train])
                right[c] += int((model.predict(others) == labels[held_out]).sum())
        best = max(grid, key=lambda c: (right[c], c))
    model = regression(best).fit(words.fit_transform(corpus), labels)
    return _in_order(model.predict_proba(words.transform(texts)), list(model.classes_), classes)


def _in_order(probabilities: Array, own: Sequence[Any], classes: Sequence[str]) -> Array:
    """Return probabilities with a column for each class, 0 for one that is not known."""
    found = np.zeros((len(probabilities), len(classes)))
    found[:, [classes.index(str(label)) for label in own]] = probabilities
    return found
