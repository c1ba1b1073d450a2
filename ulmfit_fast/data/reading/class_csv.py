"""The CSV of AG News, DBpedia and Yelp as published: the class by its number, then the texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ulmfit_fast.data.reading.lines import BadRows, OnError, decoded_lines
from ulmfit_fast.data.reading.records import csv_rows
from ulmfit_fast.system.files import user_path

__all__ = [
    "Labelled",
    "PathName",
    "existing_file",
    "read_ag_news",
    "read_class_csv",
    "read_dbpedia",
    "read_yelp",
]

PathName = str | os.PathLike[str]


class Labelled(NamedTuple):
    """A text and its class.

    Attributes:
        text: the text.
        label: its class.
    """

    text: str
    label: str


def read_class_csv(
    path: PathName,
    classes: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    mend: Callable[[str], str] = str,
    on_error: OnError = "raise",
) -> Iterator[Labelled]:
    """Yield the rows of a CSV without header: the number of the class, from 1, then its texts.

    Args:
        path: the file; .csv or .csv.gz.
        classes: names of the classes; None takes those of a classes.txt beside the file (one a
            line), and where there is none the number itself, as a string.
        columns: texts of a row, which are joined by a blank; None takes as many as the first has.
        mend: is applied to each text.
        on_error: "raise", or "skip" to leave out rows that cannot be read.

    Returns:
        An iterator over text and class.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: with the line, if it is not UTF-8 or malformed, has another number of fields,
            or a class that is no number in range; or if on_error is something else.

    Source:
        Zhang, Zhao & LeCun 2015 (arXiv:1509.01626), for the layout.
    """
    found = existing_file(path)
    names = _classes_beside(found) if classes is None else list(classes)
    return _class_rows(found, names, columns, mend, BadRows(on_error))


def _class_rows(
    path: Path,
    names: Sequence[str],
    columns: int | None,
    mend: Callable[[str], str],
    bad: BadRows,
) -> Iterator[Labelled]:
    empty, met = True, bad.count
    for line, row in csv_rows(path, bad):
        columns = len(row) - 1 if columns is None else columns
        fault = _class_fault(row, names, columns)
        if fault:
            bad.take(ValueError(f"{path}, line {line}: {fault}"))
            continue
        empty = False
        label = names[int(row[0]) - 1] if names else str(int(row[0]))
        yield Labelled(" ".join(mend(text) for text in row[1:]), label)
    bad.log()
    if empty:
        skipped = f" but for the {bad.count - met} rows skipped" if bad.count > met else ""
        raise ValueError(f"{path} is empty{skipped}, expected a class and its texts on each line")


def _class_fault(row: Sequence[str], names: Sequence[str], columns: int) -> str | None:
    """Return what is wrong with a row, if anything is."""
    if len(row) != columns + 1 or columns < 1:
        return (
            f"{len(row)} fields, expected {max(columns, 1) + 1}: a class and its texts, each in "
            "quotes"
        )
    number = int(row[0]) if row[0].isascii() and row[0].isdecimal() and len(row[0]) < 10 else 0
    if number < 1 or (names and number > len(names)):
        return (
            f"the class is {row[0]!r:.60}, expected a number from 1"
            f"{f' to {len(names)} ({names[0]} to {names[-1]})' if names else ''}; the file has no "
            "header"
        )
    return None


def _classes_beside(path: Path) -> list[str]:
    file = path.parent / "classes.txt"
    if not file.is_file():
        return []
    return [line.strip() for _, line in decoded_lines(file, BadRows()) if line.strip()]


def read_ag_news(
    directory: PathName, split: str = "train", *, on_error: OnError = "raise"
) -> Iterator[Labelled]:
    r"""Yield title and description of AG News, with their class.

    The published file has a backslash where a line ended ("dwindling\band"); it becomes a blank.

    Args:
        directory: the unpacked ag_news_csv with train.csv, test.csv and classes.txt.
        split: "train" or "test".
        on_error: as for `read_class_csv`.

    Returns:
        An iterator over text and class: "World", "Sports", "Business" or "Sci/Tech".

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: as for `read_class_csv`.
    """
    path = _split_file(directory, split)
    names = _classes_beside(path) or ["World", "Sports", "Business", "Sci/Tech"]
    return read_class_csv(
        path, names, columns=2, mend=lambda text: text.replace("\\", " "), on_error=on_error
    )


def read_dbpedia(
    directory: PathName, split: str = "train", *, on_error: OnError = "raise"
) -> Iterator[Labelled]:
    """Yield title and abstract of the DBpedia ontology classification, with their class.

    Args:
        directory: the unpacked dbpedia_csv with train.csv, test.csv and classes.txt.
        split: "train" or "test".
        on_error: as for `read_class_csv`.

    Returns:
        An iterator over text and class, one of 14 such as "Company".

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: as for `read_class_csv`.
    """
    path = _split_file(directory, split)
    return read_class_csv(path, columns=2, mend=str.strip, on_error=on_error)


def read_yelp(
    directory: PathName, split: str = "train", *, on_error: OnError = "raise"
) -> Iterator[Labelled]:
    r"""Yield the reviews of Yelp, full or polarity, with their class.

    The published file writes a line end as "\n" and a quote as "\""; both are undone.

    Args:
        directory: the unpacked yelp_review_full_csv or yelp_review_polarity_csv.
        split: "train" or "test".
        on_error: as for `read_class_csv`.

    Returns:
        An iterator over review and class: "1" to "5" stars, or "1" (negative) and "2" (positive).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: as for `read_class_csv`.
    """
    path = _split_file(directory, split)
    return read_class_csv(path, columns=1, mend=_unescaped, on_error=on_error)


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace('\\"', '"')


def _split_file(directory: PathName, split: str) -> Path:
    plain = user_path(directory) / f"{split}.csv"
    zipped = plain.with_name(f"{split}.csv.gz")
    return zipped if zipped.exists() and not plain.exists() else plain


def existing_file(name: PathName) -> Path:
    """Return a path that is a file.

    Args:
        name: to look at.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is a directory.
    """
    path = user_path(name)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected a file; check the path")
    if path.is_dir():
        raise ValueError(f"{path} is a directory, expected a file in it")
    return path
