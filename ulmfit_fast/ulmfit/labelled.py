"""What a classifier learns from: texts and labels, and how much each of them counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ulmfit_fast.data.columns import (
    Label,
    LabelKinds,
    check_ordered,
    is_iterable,
    is_missing,
    missing_label,
    nearest,
    several_labels,
    shown,
    weight_of,
    why_not_classes,
)
from ulmfit_fast.data.reading.corpus import read_labelled, read_texts, read_weighted
from ulmfit_fast.data.reading.lines import OnError
from ulmfit_fast.data.tables import column_values, is_table
from ulmfit_fast.data.tokens.rules import SURROGATE
from ulmfit_fast.ulmfit.trained import Texts

__all__ = [
    "ClassWeight",
    "classes_of",
    "labelled_texts",
    "plain_labels",
    "require_labels",
    "text_weights",
    "with_weights",
]


ClassWeight = Literal["balanced"] | Mapping[Any, float]
Weights = npt.NDArray[np.float64]


def labelled_texts(
    texts: Texts,
    labels: Iterable[Label] | None,
    sample_weight: Iterable[float] | None = None,
    weight_column: str | None = None,
    *,
    text_column: str = "text",
    label_column: str = "label",
    on_error: OnError = "raise",
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[list[str], list[Label], Iterable[float] | None]:
    """Return texts, a label for each and their weights, as passed or from columns.

    Args:
        texts: any iterable of str, or paths of files, folders or tables.
        labels: of the texts; None reads them from a column.
        sample_weight: of the texts, or None.
        weight_column: where to read the weights from, in a table of weights or in the texts; or
            None.
        text_column: of the texts.
        label_column: of the labels.
        on_error: as for `read_texts`.
        delimiter: as for `read_texts`.
        encoding: as for `read_texts`.

    Raises:
        TypeError: if a label is neither a str nor an int nor a bool.
        ValueError: if labels do not match the texts, one of them is missing, a row cannot be read,
            or there is a column of weights beside labels or weights.
    """
    if weight_column is not None and is_table(sample_weight):
        sample_weight, weight_column = column_values(sample_weight, weight_column), None
    if weight_column is not None and not (labels is None and sample_weight is None):
        given = "sample_weight" if labels is None else "labels"
        raise ValueError(
            f"weight_column is {weight_column!r} beside {given}, expected both in columns of the "
            f"texts or both passed; leave out {'one' if labels is None else 'weight_column'}"
        )
    form: dict[str, Any] = {"on_error": on_error, "delimiter": delimiter, "encoding": encoding}
    if weight_column is not None:
        return read_weighted(texts, text_column, label_column, weight_column, **form)
    if labels is None:
        return *read_labelled(texts, text_column, label_column, **form), sample_weight
    check_ordered("texts", texts)
    corpus = list(read_texts(texts, text_column=text_column, **form))
    own = plain_labels(labels, label_column)
    if len(corpus) != len(own):
        raise ValueError(
            f"there are {len(own)} labels for {len(corpus)} texts, expected one for each text"
        )
    return corpus, own, sample_weight


def plain_labels(labels: Any, column: str = "label") -> list[Label]:
    """Return labels as values that JSON holds; arrays and tensors have scalars of their own.

    >>> plain_labels(np.array([True, False])), plain_labels({"label": ["a", "b"]})
    ([True, False], ['a', 'b'])

    Args:
        labels: any iterable of str, int and bool, or a table with a column of them.
        column: which one of a table.

    Raises:
        TypeError: for one string, or a label of another kind.
        ValueError: for a missing label, a class that is written in two ways, or a table that does
            not have the column exactly once.
    """
    if isinstance(labels, (str, bytes)):
        raise TypeError(
            f"labels is the string {labels!r:.60}, expected a label for each text; "
            "name a column of the files with label_column"
        )
    check_ordered("labels", labels)
    found = column_values(labels, column)
    if not is_iterable(found):
        raise TypeError(
            f"labels is {shown(labels)} ({type(labels).__name__}), expected a label for each text"
        )
    plain = [_plain(label) for label in found]
    # A missing one first: it may have made floats of the others.
    require_labels("labels", plain)
    kinds = LabelKinds()
    for position, value in enumerate(plain):
        if not isinstance(value, (str, int)):
            raise TypeError(
                f"labels[{position}] is {shown(value)} ({type(value).__name__}), expected a str, "
                "an int or a bool; convert it"
            )
        if isinstance(value, str) and SURROGATE.search(value):
            raise ValueError(
                f"labels[{position}] is {value!r:.60}, half a character, expected whole ones; "
                "write the label anew"
            )
        other = kinds.other(value, f"labels[{position}]")
        if other is not None:
            raise ValueError(
                f"labels[{position}] is the {type(value).__name__} {value!r:.60}, and {other[1]} "
                f"the {type(other[0]).__name__} {other[0]!r:.60}; write each class in one way"
            )
    return plain


def _plain(label: Any) -> Any:
    is_scalar = isinstance(label, (np.generic, Tensor)) and label.ndim == 0
    return label.item() if is_scalar else label


def require_labels(name: str, labels: Iterable[Any]) -> None:
    """Refuse a missing label, with its position.

    Args:
        name: of the argument.
        labels: each a scalar.

    Raises:
        ValueError: if one is None, NaN, NaT, pandas.NA or an empty string.
    """
    for position, label in enumerate(labels):
        if is_missing(label):
            raise missing_label(f"{name}[{position}]", label)


def classes_of(labels: Collection[Label]) -> list[Label]:
    """Return the classes in the order of a classifier's logits.

    >>> classes_of(["good", 2, "bad", 1])
    [1, 2, 'bad', 'good']

    Args:
        labels: of the texts.

    Raises:
        ValueError: if there is one class only, so many that the labels are none, or labels that
            are several in one.
    """
    counts = Counter(labels)
    classes = sorted(counts, key=lambda label: (str(type(label)), label))
    if len(classes) < 2:
        raise ValueError(f"labels hold the one class {classes}, expected at least two classes")
    fault = why_not_classes(counts)
    if fault is not None:
        raise ValueError(f"labels hold {fault}; pass another column as label_column=")
    fault = several_labels(counts)
    if fault is not None:
        raise ValueError(fault)
    return classes


def text_weights(
    labels: Sequence[Any],
    class_weight: ClassWeight | None = None,
    sample_weight: Iterable[float] | None = None,
    *,
    spare: bool = False,
) -> Weights | None:
    """Return the product of the weights of each text and its class, or None where there are none.

    Example:
        >>> text_weights(["good", "good", "good", "bad"], "balanced")
        array([0.66666667, 0.66666667, 0.66666667, 2.        ])

    Args:
        labels: of each text, plain values.
        class_weight: "balanced" for `n_samples / (n_classes * np.bincount(y))`, where texts with
            weights are counted with them; a weight for each class, by the label or how it is
            written, 1 for a class that is left out; or None.
        sample_weight: a number for each text, or a table with a column "weight"; or None.
        spare: a mapping with a weight for each class may have more, as in scikit-learn.

    Returns:
        `(N,)` in float64; only the proportions are of use.

    Raises:
        TypeError: if one of both is of another kind, or a weight no number.
        ValueError: if a weight is not finite or below 0, there are not as many as texts, a class is
            unknown, or less than two classes have a weight above 0.

    Source:
        scikit-learn 1.9, `utils.class_weight.compute_class_weight`; King & Zeng 2001, "Logistic
        regression in rare events data", for the balanced weights.
    """
    if class_weight is None and sample_weight is None:
        return None
    classes = {label: position for position, label in enumerate(dict.fromkeys(labels))}
    positions = np.array([classes[label] for label in labels])
    own: Weights = np.ones(len(positions))
    if sample_weight is not None:
        own = _sample_weights(sample_weight, len(positions))
    own = own * _class_weights(class_weight, classes, spare, positions, own)[positions]
    counts = np.bincount(positions, own > 0)
    left = [label for label, position in classes.items() if counts[position] > 0]
    if len(left) < 2:
        raise ValueError(
            f"the texts with a weight above 0 are of the classes {left!r:.60}, expected at least "
            "two classes; raise the weights of others"
        )
    return own


def with_weights(
    texts: list[str],
    labels: list[Label],
    class_weight: ClassWeight | None,
    sample_weight: Iterable[float] | None,
) -> tuple[list[str], list[Label], Tensor | None]:
    """Return the texts that count, their labels, and their weights where there are any.

    A text of weight 0 is left out: it has no part in the statistics of BatchNorm either.

    Args:
        texts: all of them.
        labels: of each.
        class_weight: "balanced", a weight for each class by its label, or None.
        sample_weight: a number for each text, or None.

    Raises:
        TypeError: as `text_weights`.
        ValueError: as `text_weights`.
    """
    weights = text_weights(labels, class_weight, sample_weight)
    if weights is None:
        return texts, labels, None
    kept = np.flatnonzero(weights).tolist()
    own = torch.from_numpy(weights[kept])
    return [texts[n] for n in kept], [labels[n] for n in kept], own


def _sample_weights(values: Iterable[float], count: int) -> Weights:
    """Return weights of texts over the largest, so that their sum is finite."""
    check_ordered("sample_weight", values)
    given: Any = column_values(values, "weight")
    if isinstance(given, Tensor) or hasattr(given, "__array__"):
        # A tensor need not be on the CPU, nor of a dtype that NumPy has.
        given = np.asanyarray(given.tolist() if isinstance(given, Tensor) else given)
        if given.ndim != 1:
            raise ValueError(
                f"sample_weight has shape {given.shape}, expected ({count},), a number for each "
                "text; pass one column"
            )
        given = given.tolist()
    elif isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(
            f"sample_weight is {shown(given)} ({type(given).__name__}), expected a number for each "
            "text; name a column of the files with weight_column"
        )
    given = list(given)
    if len(given) != count:
        raise ValueError(
            f"there are {len(given)} values of sample_weight for {count} texts, expected one for "
            "each text"
        )
    own: Weights = np.array(
        [_checked(f"sample_weight[{n}]", value) for n, value in enumerate(given)], np.float64
    )
    if not own.any():
        raise ValueError("sample_weight is 0 for all texts, expected a number above 0 for some")
    own /= own.max()
    return own


def _class_weights(
    class_weight: ClassWeight | None,
    classes: Mapping[Any, int],
    spare: bool,
    positions: npt.NDArray[np.int64],
    own: Weights,
) -> Weights:
    """Return a weight for each class."""
    if class_weight is None:
        return np.ones(len(classes))
    if isinstance(class_weight, str) and class_weight == "balanced":
        counts = np.bincount(positions, own)
        # A class of which no text counts has nothing to weigh.
        balanced: Weights = np.zeros(len(classes))
        np.divide(counts.sum(), len(classes) * counts, out=balanced, where=counts > 0)
        return balanced
    if not isinstance(class_weight, Mapping):
        kind = ValueError if isinstance(class_weight, str) else TypeError
        raise kind(
            f"class_weight is {shown(class_weight)} ({type(class_weight).__name__}), expected "
            '"balanced" or a mapping from label to weight'
        )
    by_name = {str(label): position for label, position in classes.items()}
    found: dict[int, tuple[Any, float]] = {}
    unknown = []
    for key, value in class_weight.items():
        label = _plain(key)
        weight = _checked(f"class_weight[{label!r:.60}]", value)
        position = classes.get(label, by_name.get(str(label)))
        if position is None:
            unknown.append(label)
        elif position in found:
            raise ValueError(
                f"class_weight has {found[position][0]!r:.60} and {label!r:.60}, which are one "
                "class; leave one out"
            )
        else:
            found[position] = label, weight
    if unknown and not (spare and len(found) == len(classes)):
        raise ValueError(
            f"class_weight has {unknown[0]!r:.60}, which is no class of the texts; their classes "
            f"are {sorted(classes, key=str)!r:.120}; pass one of them{nearest(unknown[0], classes)}"
        )
    weights = np.ones(len(classes))
    for position, (_, weight) in found.items():
        weights[position] = weight
    return weights


def _checked(name: str, value: Any) -> float:
    weight = weight_of(value)
    if weight is None:
        raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}), expected a number")
    if not 0.0 <= weight < np.inf:
        raise ValueError(f"{name} is {shown(value)}, expected a finite number, at least 0")
    return weight
