"""Which labelled texts are held out, and how good a classifier is on labelled texts."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data.columns import Label, shown, why_not_classes
from ulmfit_fast.data.reading.corpus import read_marked
from ulmfit_fast.data.reading.lines import OnError
from ulmfit_fast.ulmfit.baselines import NO_BAG_OF_WORDS, Baselines
from ulmfit_fast.ulmfit.evaluation import BAG_OF_WORDS, Evaluation
from ulmfit_fast.ulmfit.labelled import labelled_texts, text_weights
from ulmfit_fast.ulmfit.trained import Texts

__all__ = [
    "Divided",
    "Labelled",
    "Valid",
    "divided",
    "evaluated",
    "positions_of",
    "stratified_split",
]

_log = logging.getLogger("ulmfit_fast.progress")

# A share, texts with a column of labels, or texts and their labels.
Valid = float | Texts | tuple[Texts, Iterable[Label]]
_MOST_NAMED = 5


@dataclass(frozen=True)
class Labelled:
    """Labelled texts.

    Attributes:
        texts: N of them.
        labels: of each.
        weights: how much each counts, or None.
    """

    texts: list[str]
    labels: list[Label]
    weights: Iterable[float] | None = None

    def at(self, rows: Sequence[int]) -> Labelled:
        """Return some of the texts.

        Args:
            rows: their positions.
        """
        return Labelled(
            [self.texts[n] for n in rows],
            [self.labels[n] for n in rows],
            None if self.weights is None else np.asarray(self.weights)[list(rows)],
        )


@dataclass(frozen=True)
class Divided:
    """Labelled texts to train on, some that are held out, and all of both.

    Attributes:
        train: to train on.
        held_out: to measure on; None where there are too few texts.
        everything: in the order in which they were given.
    """

    train: Labelled
    held_out: Labelled | None
    everything: Labelled


def stratified_split(
    texts: Sequence[str], labels: Sequence[Label], share: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Divide rows at random, with each class in the share that it has, and copies on one side.

    Texts that differ in case and outer white space alone are copies of each other. Every class
    keeps at least one text to train on; of one with a single text none is held out, and where
    classes are small, as many of them as make up the share give a text each.

    Example:
        >>> texts = [f"text {n}" for n in range(18)] + ["copy", " Copy"]
        >>> train, held_out = stratified_split(texts, ["a", "b"] * 10, 0.2)
        >>> len(train), sorted(n % 2 for n in held_out)
        (16, [0, 0, 1, 1])

    Args:
        texts: N of them.
        labels: of each.
        share: of the texts that is held out, above 0 and below 1.
        seed: of the draw.

    Returns:
        The positions to train on and those that are held out, each in ascending order.
    """
    copies: defaultdict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        copies[text.strip().casefold()].append(row)
    by_class: defaultdict[Label, list[list[int]]] = defaultdict(list)
    for rows in copies.values():
        # Copies with several labels go with the first one's.
        by_class[labels[rows[0]]].append(rows)
    draw = np.random.default_rng(seed % 2**64)
    classes = sorted(by_class, key=lambda label: (str(type(label)), label))
    # A class of one text, whatever its copies, has none to give.
    counts = [sum(map(len, by_class[label])) * (len(by_class[label]) > 1) for label in classes]
    wanted = _apportioned([share * count for count in counts], round(share * sum(counts)), draw)
    held_out: list[int] = []
    for label, most in zip(classes, wanted, strict=True):
        groups = by_class[label]
        order = draw.permutation(len(groups)).tolist()
        taken = 0
        # The last one stays, whatever its size.
        for position in order[:-1]:
            rows = groups[position]
            if taken + len(rows) <= most:
                held_out += rows
                taken += len(rows)
    out = set(held_out)
    return [row for row in range(len(texts)) if row not in out], sorted(out)


def _apportioned(quotas: Sequence[float], total: int, draw: np.random.Generator) -> list[int]:
    """Return whole numbers of that sum near the quotas, by the largest remainders."""
    found = [math.floor(quota) for quota in quotas]
    remainders = [own - whole for own, whole in zip(quotas, found, strict=True)]
    # Equal remainders in an order that is drawn, or the first classes would always give.
    order = sorted(draw.permutation(len(quotas)).tolist(), key=lambda n: -round(remainders[n], 9))
    for position in order[: max(0, total - sum(found))]:
        found[position] += 1
    return found


def divided(
    texts: Texts,
    labels: Iterable[Label] | None = None,
    sample_weight: Iterable[float] | None = None,
    *,
    valid: Valid | None = None,
    valid_column: str | None = None,
    seed: int = 0,
    text_column: str = "text",
    label_column: str = "label",
    weight_column: str | None = None,
    on_error: OnError = "raise",
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Divided:
    """Read labelled texts, and hold some of them out.

    Example:
        >>> texts = [f"text {n}" for n in range(20)]
        >>> parts = divided(texts, ["a", "b"] * 10, valid=0.2)
        >>> len(parts.train.texts), len(parts.held_out.texts)
        (16, 4)

    Args:
        texts: any iterable of str, or paths of files, folders or tables.
        labels: of the texts; None reads them from a column.
        sample_weight: of the texts, or None.
        valid: the share that `stratified_split` holds out, texts with a column of labels, or a
            tuple of texts and their labels.
        valid_column: column of the texts that marks what is held out.
        seed: of the split.
        text_column: of the texts.
        label_column: of the labels.
        weight_column: where to read the weights from, or None.
        on_error: "raise" or "skip".
        delimiter: of .csv and .tsv files, as for `data.read_texts`.
        encoding: of text files, as for `data.read_texts`.

    Raises:
        TypeError: as `labelled_texts`.
        ValueError: as `labelled_texts`, or if both of valid and valid_column are given or neither,
            the share is none, or a column is to be read beside labels.
    """
    if (valid is None) == (valid_column is None):
        raise ValueError(
            f"valid is {shown(valid)} and valid_column {valid_column!r}, expected one of them; "
            "leave the other out"
        )
    is_share = isinstance(valid, Real)
    if is_share and (isinstance(valid, bool) or not 0 < valid < 1):  # type: ignore[operator]
        raise ValueError(
            f"valid is {valid!r}, expected a share between 0 and 1, texts with labels or a file"
        )
    marks: list[bool] | None = None
    columns: Any = {
        "text_column": text_column,
        "label_column": label_column,
        "on_error": on_error,
        "delimiter": delimiter,
        "encoding": encoding,
    }
    if valid_column is not None:
        if labels is not None:
            raise ValueError(
                f"valid_column is {valid_column!r} beside labels, expected labels in a column of "
                "the texts; pass valid=(texts, labels) in its place"
            )
        if weight_column is not None and sample_weight is not None:
            raise ValueError(
                f"weight_column is {weight_column!r} beside sample_weight; leave one of them out"
            )
        corpus, own, marks, weights = read_marked(
            texts,
            valid_column=valid_column,
            weight_column=weight_column,
            **columns,
        )
        sample_weight = sample_weight if weights is None else weights
    else:
        corpus, own, sample_weight = labelled_texts(
            texts, labels, sample_weight, weight_column, **columns
        )
    kept = text_weights(own, None, sample_weight)
    everything = Labelled(corpus, own, kept)
    if marks is not None:
        train = [n for n, mark in enumerate(marks) if not mark]
        if not train:
            raise ValueError(
                f"{valid_column!r} marks all of the {len(corpus)} texts, expected some to train on"
            )
        held = [n for n, mark in enumerate(marks) if mark]
        return _of_rows(everything, train, held, f"{valid_column!r} marks none")
    if is_share:
        split = stratified_split(corpus, own, float(valid), seed)  # type: ignore[arg-type]
        return _of_rows(everything, *split, "they are too few, or copies of each other")
    pair = valid if isinstance(valid, tuple) and len(valid) == 2 else (valid, None)
    others, named, _ = labelled_texts(*pair, **columns)
    # A file may write a number as a string; unknown ones are for the model to refuse.
    written = {str(label): label for label in own}
    held_out = Labelled(others, [written.get(str(label), label) for label in named])
    known = {text.strip().casefold() for text in corpus}
    seen = sum(text.strip().casefold() in known for text in held_out.texts)
    if seen:
        _log.warning(
            "%d of the %d texts of valid are among those to train on, and look better than new "
            "ones; take them out of one of both",
            *(seen, len(held_out.texts)),
        )
    both = Labelled([*corpus, *held_out.texts], [*own, *held_out.labels])
    if kept is not None:
        # What comes from elsewhere has none, and counts as the mean.
        mean = np.full(len(held_out.texts), kept.mean())
        both = replace(both, weights=np.concatenate([kept, mean]))
    return Divided(everything, held_out, both)


def _of_rows(
    everything: Labelled, train: Sequence[int], held_out: Sequence[int], why: str
) -> Divided:
    if not held_out:
        # Labels that are no classes are refused, and for another reason.
        if not why_not_classes(Counter(everything.labels)):
            _log.warning(
                "no text of %d is held out (%s): how good the classifier is will not be known",
                *(len(everything.texts), why),
            )
        return Divided(everything, None, everything)
    found = Divided(everything.at(train), everything.at(held_out), everything)
    assert found.held_out is not None
    _log.info("%d of %d texts are held out to measure on", len(held_out), len(everything.texts))
    missing = sorted(set(found.train.labels) - set(found.held_out.labels), key=str)
    if missing:
        _log.warning(
            "none of them is of %s: too few texts, or none that is marked", _named(missing)
        )
    return found


def _named(labels: Sequence[Label]) -> str:
    more = len(labels) - _MOST_NAMED
    names = ", ".join(f"{label!r:.60}" for label in labels[:_MOST_NAMED])
    return f"{names} and {more} more" if more > 0 else names


def positions_of(labels: Sequence[Label], classes: Sequence[Label]) -> list[int]:
    """Return the position of each label among a model's classes, by how it is written.

    >>> positions_of(["1", "2"], [1, 2])
    [0, 1]

    Args:
        labels: of texts; a file may write a number as a string.
        classes: of the model.

    Raises:
        ValueError: if the model does not know a label; it names all of those.
    """
    known = {str(label): position for position, label in enumerate(classes)}
    unknown = Counter(label for label in labels if str(label) not in known)
    if unknown:
        raise ValueError(
            f"{sum(unknown.values())} of {len(labels)} texts have labels that the model does not "
            f"know, {_named(sorted(unknown, key=str))}; its labels are {list(classes)!r:.120}; "
            "mend or drop these rows, or fit the classifier on texts of these classes"
        )
    return [known[str(label)] for label in labels]


class _Classifier(Protocol):
    labels: list[Label]

    def predict_proba(self, texts: Any, /, *, batch_size: int) -> npt.NDArray[np.float32]:
        """Return the probability of each class, `(N, C)`."""


def evaluated(
    model: _Classifier,
    texts: Texts,
    labels: Iterable[Label] | None = None,
    *,
    baselines: Baselines | None = None,
    text_column: str = "text",
    label_column: str = "label",
    on_error: OnError = "raise",
    delimiter: str | None = None,
    encoding: str | None = None,
    batch_size: int = 64,
) -> Evaluation:
    """Return how good a classifier is on labelled texts, beside its baselines.

    Args:
        model: what has `labels` and `predict_proba`.
        texts: any iterable of str, or paths of files, folders or tables.
        labels: of the texts; None reads them from a column.
        baselines: fitted to the same texts as the model, or None.
        text_column: of the texts.
        label_column: of the labels.
        on_error: "raise" or "skip".
        delimiter: of .csv and .tsv files, as for `data.read_texts`.
        encoding: of text files, as for `data.read_texts`.
        batch_size: texts at a time; the result does not depend on it.

    Raises:
        TypeError: as `labelled_texts`.
        ValueError: as `labelled_texts`, or if the model does not know a label.
    """
    corpus, own, _ = labelled_texts(
        *(texts, labels),
        text_column=text_column,
        label_column=label_column,
        on_error=on_error,
        delimiter=delimiter,
        encoding=encoding,
    )
    truth = positions_of(own, model.labels)
    others = {} if baselines is None else baselines.predict_proba(corpus)
    notes = [] if BAG_OF_WORDS in others else [NO_BAG_OF_WORDS]
    probabilities = model.predict_proba(corpus, batch_size=batch_size)
    return Evaluation.of(corpus, truth, probabilities, model.labels, baselines=others, notes=notes)
