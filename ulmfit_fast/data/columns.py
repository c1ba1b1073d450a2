"""Which column is meant, and what may stand in it: the same for files, tables and records."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

__all__ = [
    "COLUMN_ARGUMENTS",
    "DELIMITERS",
    "Kept",
    "Label",
    "LabelKinds",
    "MarkColumn",
    "MissingLabelError",
    "WeightColumn",
    "check_ordered",
    "checked_record",
    "checked_values",
    "column_positions",
    "is_iterable",
    "is_missing",
    "is_whole_float",
    "label_error",
    "missing_label",
    "nearest",
    "several_labels",
    "shown",
    "weight_of",
    "why_not_classes",
]

Label = str | int
# Of the columns of a file; a damaged record can have any number.
_SHOWN = 100
# Of so many a few classes can have one row each.
_FEWEST_ROWS = 20
# In the order in which one is preferred, all else being equal.
DELIMITERS = (",", ";", "\t", "|")
# In the order in which columns are wanted everywhere.
COLUMN_ARGUMENTS = ("text_column", "label_column", "weight_column")
# Between several labels in one.
_SEPARATORS = ("|", ";", ",")


class Kept(str):
    """The name of a column beside the text whose values are taken as they are.

    A record may lack it: its value is None there.
    """

    __slots__ = ()


class MarkColumn(str):
    """The name of a column that marks what is held out."""

    __slots__ = ()
    argument = "valid_column"


class WeightColumn(str):
    """The name of a column of weights behind one of marks."""

    __slots__ = ()
    argument = "weight_column"


class MissingLabelError(TypeError, ValueError):
    """A row without a label; of both kinds, since it is a wrong type as well as a wrong value."""


def column_positions(
    where: object,
    wanted: Sequence[Any],
    present: Collection[Any],
    arguments: Sequence[str] = (),
) -> list[int]:
    """Return where the wanted columns stand; each has to be there once.

    >>> column_positions("a.csv", ["text", "label"], ["id", "label", "text"])
    [2, 1]
    >>> column_positions("a.csv", ["text"], ["Text "])
    Traceback (most recent call last):
    ...
    ValueError: a.csv has no column 'text'; its columns are 'Text '; pass the name of one, such as \
'Text '

    Args:
        where: what has the columns, for the error.
        wanted: names of columns, those of a frame may be numbers or tuples.
        present: the names of all columns, in their order.
        arguments: that the wanted names were handed in by, for the error; fewer for none.

    Raises:
        ValueError: if a name is missing or occurs more than once; it names all columns.
    """
    found: dict[Any, list[int]] = {}
    # Looked up by hash: some names, such as pandas.NA, have no truth when they are compared.
    for position, name in enumerate(present):
        found.setdefault(name, []).append(position)
    for number, column in enumerate(wanted):
        count = len(found.get(column, ())) if isinstance(column, Hashable) else 0
        if count != 1:
            names = ", ".join(f"{name!r:.60}" for name in list(present)[:_SHOWN]) or "none"
            more = f" and {len(present) - _SHOWN:,} more" if len(present) > _SHOWN else ""
            if count:
                has, mend = f"the column {column!r} {count} times", "rename or drop all but one"
            else:
                has = f"no column {column!r}"
                of = getattr(column, "argument", None) or next(iter(arguments[number:]), None)
                has_argument = bool(arguments and of) and not isinstance(column, Kept)
                argument = f" as {of}=" if has_argument else ""
                split = _delimiter_hint(present) if has_argument else ""
                mend = f"pass {split}the name of one{argument}{nearest(column, found)}"
            raise ValueError(f"{where} has {has}; its columns are {names}{more}; {mend}")
    return [found[column][0] for column in wanted]


def _delimiter_hint(present: Collection[Any]) -> str:
    """Return the start of a mend where the one name of a header looks like several."""
    only = next(iter(present)) if len(present) == 1 else None
    sign = max(DELIMITERS, key=only.count) if isinstance(only, str) else ""
    return f"delimiter={sign!r} or " if sign and sign in str(only) else ""


def nearest(given: Any, names: Collection[Any]) -> str:
    """Return the end of an error of an unknown name: those that differ in blanks and case alone.

    Where there is none, it is the one that is written most like it.

    >>> nearest("true", [False, True]), nearest("yes", [False, True]), nearest("text", ["texto"])
    (', such as True', '', ", such as 'texto'")
    """
    near = [f"{name!r:.60}" for name in names if _folded(name) == _folded(given)]
    if not near and isinstance(given, str):
        written = {_folded(name): name for name in names if isinstance(name, str)}
        close = difflib.get_close_matches(_folded(given), written, n=1, cutoff=0.75)
        near = [f"{written[name]!r:.60}" for name in close]
    return f", such as {' or '.join(near[:3])}" if near else ""


def _folded(name: Any) -> str:
    folded = "".join(str(name).replace("\ufeff", "").split()).casefold()
    # As an integer is written where another one is missing.
    return folded.removesuffix(".0")


def is_iterable(values: object) -> bool:
    """Return whether there are values in it; an array or tensor of one alone says so, and has none.

    >>> is_iterable(np.array("a")), is_iterable(np.array(["a"]))
    (False, True)
    """
    return isinstance(values, Iterable) and getattr(values, "ndim", None) != 0


def check_ordered(what: str, values: object) -> None:
    """Refuse a set where each value belongs to another one: the pairs would change by themselves.

    >>> check_ordered("labels", ["a", "b"])

    Args:
        what: its name, for the error.
        values: anything.

    Raises:
        TypeError: for a set.
    """
    if isinstance(values, (set, frozenset)):
        raise TypeError(
            f"{what} is a {type(values).__name__}, which has no order, expected a list: each value "
            "belongs to a text; pass them in the order of the texts"
        )


def checked_record(
    where: str, columns: Sequence[str], record: Mapping[Any, Any], arguments: Sequence[str] = ()
) -> tuple[Any, ...]:
    """Return the wanted values of a record with keys; see `checked_values`, `column_positions`.

    Raises:
        ValueError: if a key is missing.
    """
    values = [record[column] for column in columns if column in record]
    if len(values) < len(columns):
        needed = [column for column in columns if not isinstance(column, Kept)]
        column_positions(where, needed, list(record), arguments)
        values = [record.get(column) for column in columns]
    return checked_values(where, columns, values)


def checked_values(where: str, columns: Sequence[str], values: Sequence[Any]) -> tuple[Any, ...]:
    """Return a text and perhaps a label as plain str, int and bool, a weight after them as it is.

    A label may also be missing, or a float of a whole number, which many a file and table makes of
    integers if one of them is missing: whether it is one, only the other rows show.

    Raises:
        ValueError: for a text that is no string, or a label that is none of these.
    """
    if type(values[0]) is str and all(type(value) in (str, int, bool) for value in values[1:2]):
        return tuple(values)
    if not isinstance(values[0], str):
        raise ValueError(
            f"{where}: {columns[0]!r} is {shown(values[0])}, expected a string; mend or drop the "
            "row"
        )
    checked: list[Any] = [str(values[0])]
    for column, value in zip(columns[1:2], values[1:2], strict=True):
        if isinstance(column, Kept):
            checked.append(value)
            continue
        # A scalar of NumPy, torch or another library.
        if getattr(value, "ndim", None) == 0 and not is_missing(value):
            value = value.item()
        if not (isinstance(value, (str, int)) or is_whole_float(value) or is_missing(value)):
            raise label_error(f"{where}: {column!r}", value)
        checked.append(value)
    return (*checked, *values[2:])


def is_whole_float(value: object) -> bool:
    """Return whether a label is a float that may stand for an integer.

    >>> is_whole_float(1.0), is_whole_float(1.5), is_whole_float(1)
    (True, False, False)
    """
    return isinstance(value, float) and value.is_integer()


def weight_of(value: Any) -> float | None:
    """Return a weight as a float, also where it is none that can be used; None for no number.

    >>> weight_of(np.float32(0.5)), weight_of(True), weight_of("0.5")
    (0.5, 1.0, None)
    """
    if not isinstance(value, (Real, Decimal, np.bool_)):
        return None
    try:
        return float(value)
    except OverflowError:
        return np.inf


def is_missing(value: Any) -> bool:
    """Return whether a label is not there: None, NaN, NaT, pandas.NA or an empty string.

    >>> is_missing(float("nan")), is_missing(""), is_missing(0), is_missing(False)
    (True, True, False, False)
    """
    if value is None or isinstance(value, str):
        return not value
    if value is np.ma.masked:
        return True
    if hasattr(type(value), "__len__"):
        return False
    try:
        # NaN and NaT differ from themselves.
        return bool(value != value)
    except TypeError:
        # pandas.NA, of which nobody knows whether it does.
        return True


def missing_label(where: str, value: Any) -> MissingLabelError:
    """Return the error of a row without a label."""
    what = "empty" if isinstance(value, str) else shown(value)
    return MissingLabelError(f"{where} is {what}, expected a label; fill it in or drop the row")


def label_error(where: str, value: Any) -> ValueError:
    """Return the error of a row whose label is of a kind that no class is written in."""
    return ValueError(
        f"{where} is {shown(value)}, expected a string, an integer or a bool; mend or drop the row"
    )


def shown(value: object) -> str:
    """Return the start of a value's repr, in one line.

    >>> shown(np.eye(2))
    'array([[1., 0.], [0., 1.]])'
    """
    value = value.item() if isinstance(value, np.generic) else value
    return " ".join(line.strip() for line in f"{value!r:.60}".splitlines())


def why_not_classes(counts: Mapping[Any, int]) -> str | None:
    """Return why values are no classes: more than four fifths differ, among more than twenty.

    Few labels of many classes are classes: BANKING77 has 77 in 100 rows, one of each at least.

    >>> why_not_classes({f"ticket {n}": 1 for n in range(30)})
    "30 different values in 30 rows, such as 'ticket 0', expected classes that many rows share"
    >>> why_not_classes({"good": 20, "bad": 10})

    Args:
        counts: how often each value occurs.
    """
    rows = sum(counts.values())
    if rows <= _FEWEST_ROWS or 5 * len(counts) <= 4 * rows:
        return None
    return (
        f"{len(counts):,} different values in {rows:,} rows, such as {shown(next(iter(counts)))}, "
        "expected classes that many rows share"
    )


def several_labels(counts: Mapping[Any, int]) -> str | None:
    """Return why values are several labels each, or None.

    They are where the parts between signs occur in other values as well, and not at the same place
    in all: those of a hierarchy (`sports|tennis`, `sports|golf`) are one class each.

    >>> several_labels({"price|quality": 4, "price": 5, "quality": 3})
    "4 of 12 labels are several in one, such as 'price|quality', and a text has one label \
(multi-label is not supported); keep one label a text, or fit a classifier for each label; where \
the '|' is of a name, write it in another way"
    >>> several_labels({"yes|no": 4, "A": 5}), several_labels({"A|x": 4, "A|y": 4, "B|x": 4})
    (None, None)

    Args:
        counts: how often each value occurs.
    """
    rows = sum(counts.values())
    for sign in _SEPARATORS:
        joined = _joined([label for label in counts if isinstance(label, str)], sign)
        of_several = sum(counts[label] for label in joined)
        if joined and 10 * of_several >= rows:
            return (
                f"{of_several:,} of {rows:,} labels are several in one, such as "
                f"{shown(joined[0])}, and a text has one label (multi-label is not supported); "
                "keep one label a text, or fit a classifier for each label; where the "
                f"{sign!r} is of a name, write it in another way"
            )
    return None


def _joined(labels: Sequence[str], sign: str) -> list[str]:
    """Return the labels that are several in one."""
    parts = {label: [part.strip() for part in label.split(sign)] for label in labels}
    owners = Counter(part for own in parts.values() for part in set(own))
    places: dict[str, set[int]] = {}
    for own in parts.values():
        for place, part in enumerate(own):
            places.setdefault(part, set()).add(place)
    return [
        label
        for label, own in parts.items()
        if len(own) > 1
        and all(part and owners[part] > 1 for part in own)
        and any(len(places[part]) > 1 for part in own)
        # A number such as 2,5 beside 2 and 5.
        and (sign != "," or any(map(str.isalpha, label)))
    ]


class LabelKinds:
    """Remembers how each class was written first: 1, "1" and True are not the same class.

    >>> kinds = LabelKinds()
    >>> kinds.other(1, "row 0"), kinds.other(2, "row 1"), kinds.other("1", "row 2")
    (None, None, (1, 'row 0'))
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Label, str]] = {}

    def other(self, label: Label, place: str) -> tuple[Label, str] | None:
        """Return the label that looks like this one but is another, and where it stands."""
        # True and 1 are equal, so that one would count as the other.
        names = (str(label), str(int(label))) if isinstance(label, bool) else (str(label),)
        for name in names:
            first, where = self._seen.setdefault(name, (label, place))
            if type(first) is not type(label):
                return first, where
        return None
