"""Records of one file: lines of .txt, rows of .csv and .parquet, objects of .jsonl."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "READABLE",
    "checked_values",
    "csv_rows",
    "decoded_lines",
    "kind_of",
    "missing_column",
    "read_records",
    "read_whole",
    "unit_of",
]

READABLE = (".txt", ".csv", ".jsonl", ".parquet")
_ZIPPED = ".gz"
# The largest limit that the csv module takes on every platform.
_CSV_FIELD_LIMIT = 2**31 - 1


def kind_of(name: str | Path) -> str:
    """Return the suffix that says how a file is read, that under .gz too.

    >>> kind_of("reviews.CSV.gz"), kind_of("readme.md")
    ('.csv', '.md')
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix == _ZIPPED and Path(path.stem).suffix.lower() in READABLE[:3]:
        return Path(path.stem).suffix.lower()
    return suffix


def unit_of(path: Path) -> str:
    """Return what an error counts in this file: lines from 1, rows of .parquet from 0."""
    return "row" if kind_of(path) == ".parquet" else "line"


def read_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the number and the wanted columns of each record of a file, the text first.

    Args:
        path: an existing file of a readable kind.
        columns: the column of the text, and that of the label if it is wanted.

    Raises:
        ValueError: if the file is not UTF-8, is malformed, or lacks a column or a value.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        from ulmfit_fast.data.tables import parquet_records

        yield from parquet_records(path, columns)
    elif kind == ".csv":
        yield from _csv_records(path, columns)
    elif kind == ".jsonl":
        yield from _json_records(path, columns)
    else:
        for number, line in decoded_lines(path):
            if line.strip():
                yield number, (line.rstrip("\r\n"),)


def read_whole(path: Path) -> str:
    """Return a file as one text, its line ends as they are."""
    return "".join(line for _, line in decoded_lines(path))


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Decode a file, also a gzipped one, line by line, so that an error can name its line."""
    number = 0
    with gzip.open(path) if path.suffix.lower() == _ZIPPED else path.open("rb") as file:
        try:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path}, line {number}: byte 0x{raw[error.start]:02x} is not UTF-8; "
                        "save as UTF-8"
                    ) from error
                yield number, line.removeprefix("\ufeff") if number == 1 else line
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path}, line {number + 1}: not a whole gzip file ({error}); fetch it anew"
            ) from error


def _csv_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    rows = csv_rows(path)
    _, header = next(rows, (0, None))
    if header is None:
        return
    for column in columns:
        if column not in header:
            raise ValueError(missing_column(path, column, header))
    positions = [header.index(column) for column in columns]
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} fields, expected {len(header)} as in the header; "
                'put a text that contains a comma or a line end between "quotes"'
            )
        yield line, tuple(row[position] for position in positions)


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of its first line and the fields of each row that is not blank."""
    # Before Python 3.11 the csv module stops at a NUL.
    lines = (line.replace("\0", " ") for _, line in decoded_lines(path))
    reader = csv.reader(lines, strict=True)
    while True:
        line = reader.line_num + 1
        row = _next_row(reader, path)
        if row is None:
            return
        if row:
            yield line, row


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


def _json_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for number, line in decoded_lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON ({error}); one object a line") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {line.strip()!r:.60}, expected a JSON object")
        for column in columns:
            if column not in record:
                raise ValueError(missing_column(where, column, list(record)))
        yield number, checked_values(where, columns, [record[column] for column in columns])


def checked_values(where: str, columns: Sequence[str], values: Sequence[Any]) -> tuple[Any, ...]:
    """Return a text and perhaps a label as plain str and int.

    Raises:
        ValueError: for a text that is no string, or a label that is neither string nor integer.
    """
    if type(values[0]) is str and all(type(value) in (str, int) for value in values[1:]):
        return tuple(values)
    checked: list[str | int] = []
    for column, value in zip(columns, values, strict=True):
        # NumPy's integers are none of Python's, its strings are.
        if isinstance(value, np.integer) and checked:
            value = int(value)
        allowed = (str, int) if checked else (str,)
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise ValueError(
                f"{where}: {column!r} is {value!r:.60}, expected "
                f"{'a string or an integer' if checked else 'a string'}"
            )
        checked.append(str(value) if isinstance(value, str) else value)
    return tuple(checked)


def missing_column(where: object, column: str, present: Iterable[object]) -> str:
    """Return the sentence that says which columns there are instead."""
    names = ", ".join(repr(name) for name in present) or "none"
    return f"{where} has no column {column!r}; its columns are {names}; pass the name of one"
