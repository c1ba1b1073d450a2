"""Texts and labels from files: .txt, .csv and .jsonl, all in UTF-8."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Label", "Source", "read_labelled", "read_texts"]

Label = str | int
Source = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_SUFFIXES = (".txt", ".csv", ".jsonl")
# The largest limit that the csv module takes on every platform.
_CSV_FIELD_LIMIT = 2**31 - 1


def read_texts(source: Source, *, text_column: str = "text") -> Iterator[str]:
    r"""Yield the texts of files, or those of an iterable as they are.

    A .txt file holds one text a line, and blank lines are skipped. A .csv file has a header and one
    text a row, a .jsonl file one JSON object a line; there an empty text counts as a text. In a
    list, a string is a text and a `pathlib.Path` a file.

    >>> list(read_texts(["one text", "another"]))
    ['one text', 'another']

    Args:
        source: a path, an iterable of texts, or an iterable of `pathlib.Path`.
        text_column: column of a .csv file, or key of a .jsonl file, that holds the text.

    Returns:
        An iterator that reads as it goes, so that a corpus may be larger than memory.

    Raises:
        TypeError: for something that is neither a text nor a path.
        FileNotFoundError: if a file does not exist.
        ValueError: if a file is not UTF-8, is malformed, lacks the column or is of another kind;
            or, at the end of the iteration, if there was no text at all.
    """
    if isinstance(source, (str, os.PathLike)):
        source = [_checked_path(source)]
    elif isinstance(source, (bytes, Mapping)) or not isinstance(source, Iterable):
        raise TypeError(
            f"source is {source!r:.60} ({type(source).__name__}), expected a path or texts"
        )
    elif isinstance(source, (list, tuple)):
        # A list can be checked before the first text is used; an iterator only as it goes.
        for item in source:
            if isinstance(item, os.PathLike):
                _checked_path(item)
    return _texts(source, text_column)


def _texts(source: Iterable[str | os.PathLike[str]], text_column: str) -> Iterator[str]:
    empty = True
    for position, item in enumerate(source):
        if isinstance(item, os.PathLike):
            for _, record in _records(_checked_path(item), (text_column,)):
                empty = False
                yield record[0]
        elif not isinstance(item, str):
            raise TypeError(
                f"texts[{position}] is {item!r:.60} ({type(item).__name__}), expected a str; "
                "drop it or pass str(value)"
            )
        elif item.endswith(_SUFFIXES) and _is_file(item):
            raise ValueError(
                f"texts[{position}] is {item!r:.60}, the name of a file; "
                "pass pathlib.Path(...) to read it"
            )
        else:
            empty = False
            yield item
    if empty:
        raise ValueError(
            f"the corpus {_described(source)} is empty, expected at least one text; pass more text"
        )


def read_labelled(
    source: Source,
    text_column: str = "text",
    label_column: str = "label",
) -> tuple[list[str], list[Label]]:
    """Read texts and their labels from .csv or .jsonl files.

    Args:
        source: a path, or an iterable of paths.
        text_column: column or key of the text.
        label_column: column or key of the label: a string, or in .jsonl also an integer.

    Returns:
        The texts and the labels, in the order of the files and the rows in them.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file is not UTF-8, is malformed or empty, lacks a column or a label, or is
            of another kind; or if a label occurs as a string and as an integer.
    """
    paths = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    texts: list[str] = []
    labels: list[Label] = []
    seen: dict[str, tuple[Label, str]] = {}
    for name in paths:
        is_text = isinstance(name, str) and not name.lower().endswith(_SUFFIXES)
        if is_text and not _exists(Path(name)):
            raise ValueError(
                f"got the string {name!r:.60} and no labels; pass labels, or the path of a .csv or "
                ".jsonl file that holds them"
            )
    for path in [_checked_path(path) for path in paths]:
        if path.suffix.lower() == ".txt":
            raise ValueError(f"{path} has no labels, expected a .csv or .jsonl file with labels")
        for line, (text, label) in _records(path, (text_column, label_column)):
            if label == "":
                raise ValueError(
                    f"{path}, line {line}: {label_column!r} is empty, expected a label; "
                    "fill it in or drop the row"
                )
            first, where = seen.setdefault(str(label), (label, f"{path}, line {line}"))
            if first != label:
                raise ValueError(
                    f"{path}, line {line}: {label_column!r} is {label!r:.60} and {first!r:.60} in "
                    f"{where}, expected one kind: they would be two classes; write the integers "
                    'of .jsonl files as strings, such as "1"'
                )
            texts.append(text)
            labels.append(label)
    if not texts:
        raise ValueError(
            f"the corpus {_described(paths)} is empty, expected at least one labelled text"
        )
    return texts, labels


def _described(source: object) -> str:
    if isinstance(source, (list, tuple)) and source:
        return f"of {', '.join(str(item) for item in source[:3])}"
    return "passed"


def _is_file(name: str) -> bool:
    # A text can be longer than a file name may be, or hold a NUL.
    try:
        return os.path.isfile(name)
    except (OSError, ValueError):
        return False


def _checked_path(name: str | os.PathLike[str]) -> Path:
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"{name!r:.60} is a {type(name).__name__}, expected a path")
    path = Path(name)
    if isinstance(name, str) and path.suffix.lower() not in _SUFFIXES and not _exists(path):
        raise ValueError(f"got the string {name!r:.60}; pass a list of texts or an existing path")
    if not _exists(path):
        raise FileNotFoundError(f"{path} does not exist, expected a file; check the path")
    if path.is_dir():
        raise ValueError(f"{path} is a directory; pass the files in it, such as its *.txt")
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"{path} ends in {path.suffix!r}, expected one of {', '.join(_SUFFIXES)}; rename or "
            "convert it"
        )
    return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _records(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the line number and the wanted columns of each record of a file."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        yield from _csv_records(path, columns)
    elif suffix == ".jsonl":
        yield from _json_records(path, columns)
    else:
        for number, line in _lines(path):
            if line.strip():
                yield number, (line.rstrip("\r\n"),)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Decode line by line, so that an error can name its line."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: byte 0x{raw[error.start]:02x} is not UTF-8; "
                    "save as UTF-8"
                ) from error
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def _csv_records(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    # Before Python 3.11 the csv module stops at a NUL.
    reader = csv.reader((line.replace("\0", " ") for _, line in _lines(path)), strict=True)
    header = _next_row(reader, path)
    if header is None:
        return
    for column in columns:
        if column not in header:
            raise ValueError(_missing_column(path, column, header))
    positions = [header.index(column) for column in columns]
    while True:
        line = reader.line_num + 1
        row = _next_row(reader, path)
        if row is None:
            return
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} fields, expected {len(header)} as in the header; "
                'put a text that contains a comma or a line end between "quotes"'
            )
        yield line, tuple(row[position] for position in positions)


def _next_row(reader: Any, path: Path) -> list[str] | None:
    # The limit belongs to the whole process: raise it only while a row is read.
    limit = csv.field_size_limit(_CSV_FIELD_LIMIT)
    try:
        row: list[str] | None = next(reader, None)
        return row
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error}; save as comma-separated values"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _json_records(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON ({error}); one object a line") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {line.strip()!r:.60}, expected a JSON object")
        for position, column in enumerate(columns):
            if column not in record:
                raise ValueError(_missing_column(where, column, list(record)))
            value = record[column]
            allowed = (str,) if position == 0 else (str, int)
            if not isinstance(value, allowed) or isinstance(value, bool):
                raise ValueError(
                    f"{where}: {column!r} is {value!r:.60}, expected "
                    f"{'a string' if position == 0 else 'a string or an integer'}"
                )
        yield number, tuple(record[column] for column in columns)


def _missing_column(where: object, column: str, present: list[str]) -> str:
    names = ", ".join(repr(name) for name in present) or "none"
    return f"{where} has no column {column!r}; its columns are {names}; pass the name of one"
