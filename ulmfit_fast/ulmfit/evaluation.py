"""How good a classifier is, beside the majority class and a bag of words, and by how much."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data.columns import Label
from ulmfit_fast.nn.weights import Place
from ulmfit_fast.report.numbers import FEWEST_TEXTS
from ulmfit_fast.training.scores import (
    BINS,
    SCORES,
    bootstrap,
    class_scores,
    confusion_matrix,
    reliability,
    scores_of,
)
from ulmfit_fast.ulmfit.model_schema import shown

__all__ = [
    "BAG_OF_WORDS",
    "MAJORITY",
    "Bin",
    "ClassResult",
    "Comparison",
    "Evaluation",
    "Interval",
    "Mistake",
]

Array = npt.NDArray[Any]

MAJORITY, BAG_OF_WORDS = "majority class", "bag of words"
TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}
_MOST_MISTAKES = 50
# More columns than this are wider than a terminal.
_MOST_COLUMNS = 10
_MOST_CONFUSED = 5
_WIDEST = 24


@dataclass(frozen=True)
class Interval:
    """A number, and where it lies in 95 % of the resamples of a bootstrap over the texts.

    >>> print(Interval(0.9, 0.85, 0.95))
    0.900 (0.850 to 0.950)

    Attributes:
        value: on the texts themselves.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    @classmethod
    def of(cls, value: float, draws: Array) -> Interval:
        """Return a value with the percentiles of its resamples.

        Args:
            value: on the texts themselves.
            draws: on the resamples. What is biased there, as the calibration error is upwards,
                may miss the value: the interval is widened to it.
        """
        low, high = np.percentile(draws, (2.5, 97.5)).tolist()
        return cls(float(value), min(low, float(value)), max(high, float(value)))


@dataclass(frozen=True)
class ClassResult:
    """What a classifier is worth on one class.

    Attributes:
        label: the class.
        precision: share of its answers that are right, None where there is none.
        recall: share of its texts that are found, None where there is none.
        f1: harmonic mean of both, None where both are.
        support: its texts.
        answered: texts that were said to be of it.
    """

    label: Label
    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    answered: int


@dataclass(frozen=True)
class Bin:
    """The answers of one bin of probability, for a diagram of reliability.

    Attributes:
        count: answers in it.
        probability: their mean, 0 where there is none.
        right: share that is right, 0 where there is none.
    """

    count: int
    probability: float
    right: float


@dataclass(frozen=True)
class Mistake:
    """A wrong answer.

    Attributes:
        row: of the text among those that were classified, from 0.
        text: the text, empty where it is not kept.
        label: the right one.
        predicted: the answer.
        probability: that of the answer.
        label_probability: that of the right one.
    """

    row: int
    text: str
    label: Label
    predicted: Label
    probability: float
    label_probability: float


@dataclass(frozen=True)
class Comparison:
    """A simpler classifier on the same texts.

    Attributes:
        name: "majority class" or "bag of words".
        scores: as of an `Evaluation`.
        gains: each score of the classifier less that of this one, in pairs; of log loss and
            calibration error a gain is below 0.
    """

    name: str
    scores: dict[str, Interval]
    gains: dict[str, Interval]


@dataclass(frozen=True)
class Evaluation:
    """What a classifier says of labelled texts, and what simpler ones say of them.

    `print` shows it as a table, `to_dict` as plain values for JSON.

    Example:
        >>> probabilities = np.array([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
        >>> found = Evaluation.of(["a", "b", "c"], [0, 1, 1], probabilities, ["bad", "good"])
        >>> round(found.scores["accuracy"].value, 3), found.confusion
        (0.667, [[1, 0], [1, 1]])
        >>> found.mistakes[0].text, found.mistakes[0].label, found.mistakes[0].predicted
        ('c', 'good', 'bad')

    Attributes:
        rows: texts.
        labels: the classes.
        scores: accuracy, macro_f1 (the mean over classes that occur), weighted_f1, log_loss (nats)
            and calibration_error (10 bins), each with its interval.
        classes: each by itself, in the order of the labels.
        confusion: texts of each class, a row, by what was answered, a column.
        bins: of the calibration error, from 0 to 1 in equal widths.
        baselines: the majority class and the bag of words, as far as there are any.
        mistakes: up to 50 wrong answers, the most certain first.
        notes: what there is to know, such as why a baseline is left out.

    Source:
        Efron & Tibshirani 1993, "An Introduction to the Bootstrap", for the intervals: percentiles
        of 1,000 resamples of the texts, the same for all classifiers.
    """

    rows: int
    labels: list[Label]
    scores: dict[str, Interval]
    classes: list[ClassResult]
    confusion: list[list[int]]
    bins: list[Bin]
    baselines: list[Comparison]
    mistakes: list[Mistake]
    notes: list[str]

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        truth: Sequence[int] | Array,
        probabilities: Array,
        labels: Sequence[Label],
        *,
        baselines: Mapping[str, Array] | None = None,
        notes: Sequence[str] = (),
        seed: int = 0,
    ) -> Evaluation:
        """Compare probabilities with the truth.

        Args:
            texts: N of them.
            truth: `(N,)`, the class of each by its position in the labels.
            probabilities: `(N, C)`.
            labels: C classes.
            baselines: further probabilities, `(N, C)`, by the name of who says so.
            notes: what there is to know.
            seed: of the resamples.
        """
        others, truth = dict(baselines or {}), np.asarray(truth, np.int64)
        everybody = [probabilities, *others.values()]
        draws = bootstrap(truth, everybody, seed=seed)
        values = [scores_of(truth, own) for own in everybody]
        intervals = [
            {name: Interval.of(own[name], drawn[:, n]) for n, name in enumerate(SCORES)}
            for own, drawn in zip(values, draws, strict=True)
        ]
        gains = [
            {
                name: Interval.of(values[0][name] - own[name], draws[0, :, n] - drawn[:, n])
                for n, name in enumerate(SCORES)
            }
            for own, drawn in zip(values[1:], draws[1:], strict=True)
        ]
        confusion = confusion_matrix(truth, probabilities.argmax(axis=1), len(labels))
        parts = (map(_defined, part.tolist()) for part in class_scores(confusion))
        counts = (confusion.sum(axis=axis).tolist() for axis in (1, 0))
        return cls(
            rows=len(texts),
            labels=list(labels),
            scores=intervals[0],
            classes=[ClassResult(*own) for own in zip(labels, *parts, *counts, strict=True)],
            confusion=confusion.tolist(),
            bins=[Bin(*own) for own in reliability(truth, probabilities)],
            baselines=[Comparison(*own) for own in zip(others, intervals[1:], gains, strict=True)],
            mistakes=_mistakes(texts, truth, probabilities, labels),
            notes=list(notes),
        )

    def baseline(self, name: str) -> Comparison | None:
        """Return a baseline by its name, or None where it is left out.

        Args:
            name: "majority class" or "bag of words".
        """
        return next((own for own in self.baselines if own.name == name), None)

    @property
    def verdict(self) -> str:
        """Whether a bag of words would have done, in one sentence; empty without a baseline."""
        other = self.baseline(BAG_OF_WORDS) or self.baseline(MAJORITY)
        if other is None:
            return ""
        compared = ("accuracy", "macro_f1")
        gains = {name: other.gains[name] for name in compared}
        lost = [name for name in compared if gains[name].high < 0]
        won = [name for name in compared if gains[name].low > 0]
        if self.rows < FEWEST_TEXTS:
            texts = "1 text is" if self.rows == 1 else f"{self.rows} texts are"
            start = f"{texts} too few to tell the classifier from the {other.name}"
        elif lost:
            start = f"The {other.name} wins in {_joined(lost)}"
        elif won:
            start = f"The classifier beats the {other.name} in {_joined(won)}"
        else:
            start = (
                f"The difference from the {other.name} is within the interval, it may do as well"
            )
        details = (
            f"{TITLES[name]} {self.scores[name].value:.3f} against {other.scores[name].value:.3f}, "
            f"a difference of {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
            for name, gain in gains.items()
        )
        return f"{start}: {'; '.join(details)}."

    def __str__(self) -> str:
        parts = [f"{self.rows:,} texts, {len(self.labels)} classes", *self._tables()]
        verdict = [self.verdict] if self.verdict else []
        return "\n\n".join([*parts, *verdict, *self.notes])

    def _tables(self) -> list[str]:
        everybody = {"": self.scores, **{own.name: own.scores for own in self.baselines}}
        rows = [["", *(name or "classifier" for name in everybody)]]
        rows += [[TITLES[n], *(str(own[n]) for own in everybody.values())] for n in SCORES]
        classes = [["class", "precision", "recall", "F1", "texts"]]
        for own in self.classes:
            numbers = (own.precision, own.recall, own.f1)
            parts = ("-" if value is None else f"{value:.3f}" for value in numbers)
            classes.append([_short(own.label), *parts, f"{own.support:,}"])
        return [_table(rows), _table(classes), self._confusion_table()]

    def _confusion_table(self) -> str:
        names = [_short(label) for label in self.labels]
        if len(names) <= _MOST_COLUMNS:
            counts = zip(names, self.confusion, strict=True)
            return _table(
                [["texts of / said to be", *names]]
                + [[name, *(f"{count:,}" for count in own)] for name, own in counts]
            )
        pairs = [
            (count, row, column)
            for row, own in enumerate(self.confusion)
            for column, count in enumerate(own)
            if count and row != column
        ]
        worst = sorted(pairs, key=lambda pair: (-pair[0], *pair[1:]))[:_MOST_CONFUSED]
        rows = [[names[row], names[column], f"{count:,}"] for count, row, column in worst]
        return _table([["most often confused: texts of", "said to be", "texts"], *rows])

    def before_refit(self, rows: int, epochs: int) -> Evaluation:
        """Return a copy that says that the classifier was then fitted to more texts.

        Args:
            rows: texts that it was fitted to.
            epochs: passes over them.
        """
        note = (
            f"The classifier was then fitted anew to all {rows:,} texts, in {epochs} "
            f"epoch{'s' * (epochs != 1)}; the numbers are those of the one before."
        )
        return replace(self, notes=[*self.notes, note])

    def without_texts(self) -> Evaluation:
        """Return a copy whose mistakes have no texts, for others to see."""
        return replace(self, mistakes=[replace(own, text="") for own in self.mistakes])

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, and the verdict, as plain values that JSON holds."""
        return {"verdict": self.verdict, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Any, labels: Sequence[Label], place: Place) -> Evaluation:
        """Return what `to_dict` was called on.

        Args:
            values: as JSON has them.
            labels: the classes of the model that it is of.
            place: where the values are from, for the error.

        Raises:
            ValueError: if a value is not what it has to be.
        """
        _check_names(place, "it", values, [own.name for own in fields(cls)])
        if repr(values["labels"]) != repr(list(labels)):
            raise place.error(
                f"labels is {shown(values['labels'])}, expected {shown(list(labels))}, those of "
                "the model"
            )
        count, known = len(labels), {repr(label) for label in labels}
        confusion = _list(place, "confusion", values["confusion"], count)
        for position, row in enumerate(confusion):
            name = f"confusion[{position}]"
            for number in _list(place, name, row, count):
                _check_value(place, name, "int", number)
        classes = _made(place, "classes", ClassResult, values["classes"], count)
        mistakes = _made(place, "mistakes", Mistake, values["mistakes"])
        for label in (label for own in mistakes for label in (own.label, own.predicted)):
            if repr(label) not in known:
                raise place.error(f"mistakes has the label {shown(label)}, expected a known one")
        baselines = []
        for position, own in enumerate(_list(place, "baselines", values["baselines"])):
            name = f"baselines[{position}]"
            _check_names(place, name, own, [part.name for part in fields(Comparison)])
            _check_value(place, f"{name}.name", "str", own["name"])
            parts = (_scores(place, f"{name}.{part}", own[part]) for part in ("scores", "gains"))
            baselines.append(Comparison(own["name"], *parts))
        _check_value(place, "rows", "int", values["rows"])
        for note in _list(place, "notes", values["notes"]):
            _check_value(place, "notes", "str", note)
        return cls(
            rows=values["rows"],
            labels=list(labels),
            scores=_scores(place, "scores", values["scores"]),
            classes=[replace(own, label=label) for own, label in zip(classes, labels, strict=True)],
            confusion=confusion,
            bins=_made(place, "bins", Bin, values["bins"], BINS),
            baselines=baselines,
            mistakes=mistakes,
            notes=values["notes"],
        )


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mistakes(
    texts: Sequence[str], truth: Array, probabilities: Array, labels: Sequence[Label]
) -> list[Mistake]:
    predicted = probabilities.argmax(axis=1)
    sure = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != truth)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:_MOST_MISTAKES].tolist()
    return [
        Mistake(
            row,
            texts[row],
            labels[truth[row]],
            labels[predicted[row]],
            float(sure[row]),
            float(probabilities[row, truth[row]]),
        )
        for row in worst
    ]


def _joined(names: Sequence[str]) -> str:
    return " and ".join(TITLES[name] for name in names)


def _short(label: Label) -> str:
    text = str(label)
    # Names of classes differ at their end as often as at their start.
    half = (_WIDEST - 3) // 2
    return text if len(text) <= _WIDEST else f"{text[:half]}...{text[-half:]}"


def _table(rows: list[list[str]]) -> str:
    """Return rows with the first column on the left and the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# By the annotations of the fields, which are strings here.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: type(value) is int and 0 <= value < 2**63, "a whole number, at least 0"),
    "float": (_is_number, "a finite number"),
    "float | None": (lambda value: value is None or _is_number(value), "a finite number or null"),
    "str": (lambda value: type(value) is str, "a string"),
    "Label": (lambda value: isinstance(value, (str, int)), "a label"),
}

Made = TypeVar("Made", ClassResult, Bin, Mistake, Interval)


def _check_value(place: Place, name: str, kind: str, value: Any) -> None:
    fits, expected = _RULES[kind]
    if not fits(value):
        raise place.error(f"{name} is {shown(value)}, expected {expected}")


def _check_names(place: Place, name: str, values: Any, names: Sequence[str]) -> None:
    if type(values) is not dict or not set(names) <= set(values):
        raise place.error(f"{name} is {shown(values)}, expected an object with {', '.join(names)}")


def _list(place: Place, name: str, values: Any, count: int | None = None) -> list[Any]:
    if type(values) is not list or len(values) != (len(values) if count is None else count):
        expected = "a list" if count is None else f"a list of {count}"
        raise place.error(f"{name} is {shown(values)}, expected {expected}")
    return values


def _one(place: Place, name: str, kind: type[Made], values: Any) -> Made:
    kinds = {own.name: str(own.type) for own in fields(kind)}
    _check_names(place, name, values, list(kinds))
    for key, annotation in kinds.items():
        _check_value(place, f"{name}.{key}", annotation, values[key])
    return kind(**{key: values[key] for key in kinds})


def _made(
    place: Place, name: str, kind: type[Made], values: Any, count: int | None = None
) -> list[Made]:
    found = _list(place, name, values, count)
    return [_one(place, f"{name}[{n}]", kind, own) for n, own in enumerate(found)]


def _scores(place: Place, name: str, values: Any) -> dict[str, Interval]:
    _check_names(place, name, values, SCORES)
    return {score: _one(place, f"{name}.{score}", Interval, values[score]) for score in SCORES}
