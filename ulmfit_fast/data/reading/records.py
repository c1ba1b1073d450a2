"""Records of one file: lines of .txt, rows of .csv, .tsv, .xlsx and .parquet, objects of .jsonl."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ulmfit_fast.data.columns import (
    COLUMN_ARGUMENTS,
    DELIMITERS,
    Kept,
    checked_record,
    checked_values,
    column_positions,
)
from ulmfit_fast.data.reading.lines import (
    ZIPPED,
    Line,
    Reading,
    decoded_lines,
    lines_of,
    numbered_lines,
    opened,
    usual_delimiter,
)
from ulmfit_fast.data.reading.sheets import sheet_rows
from ulmfit_fast.data.tables import parquet_names, parquet_records
from ulmfit_fast.data.tokens.rules import SURROGATE

__all__ = [
    "READABLE",
    "TEXT_KINDS",
    "columns_of",
    "csv_rows",
    "delimiter_of",
    "kind_of",
    "read_records",
    "read_whole",
    "unit_of",
]

# Those that are text may be gzipped.
TEXT_KINDS = (".txt", ".csv", ".tsv", ".jsonl")
READABLE = (*TEXT_KINDS, ".parquet", ".xlsx")
# What is longer lacks the quote at its end. Memory stays bounded.
_CSV_FIELD_CHARACTERS = 2**27
_FIELD_LIMIT = threading.Lock()
_RAISING = Reading()
# A line for Excel above the header.
_DECLARED = re.compile(r"sep=([^\s\"]|\t)\s*")
# So many rows at the start of a file are tried with each delimiter.
_TRIED_ROWS = 100


def kind_of(name: str | Path) -> str:
    """Return the suffix that says how a file is read, that under .gz too.

    >>> kind_of("reviews.CSV.gz"), kind_of("readme.md")
    ('.csv', '.md')
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix == ZIPPED and Path(path.stem).suffix.lower() in TEXT_KINDS:
        return Path(path.stem).suffix.lower()
    return suffix


def unit_of(path: Path) -> str:
    """Return what an error counts: lines from 1, rows of .xlsx from 1, rows of .parquet from 0."""
    return "row" if kind_of(path) in (".parquet", ".xlsx") else "line"


def columns_of(path: Path, reading: Reading, text_column: str) -> tuple[str, ...]:
    """Return the names of a file's columns, in their order; those of .jsonl in its first record.

    A .txt file has none, nor has a damaged .parquet, nor what can be read only once, such as a
    pipe.

    Args:
        path: an existing file of a readable kind.
        reading: takes a first row that cannot be read.
        text_column: which of the columns should be there.

    Raises:
        ImportError: as for `read_records`.
    """
    kind = kind_of(path)
    if kind not in READABLE[1:] or not path.is_file():
        return ()
    if kind == ".parquet":
        return parquet_names(path)
    if kind == ".xlsx":
        return _sheet_names(next(sheet_rows(path, reading.skip_or_raise), (0, ()))[1])
    if kind != ".jsonl":
        return tuple(next(csv_rows(path, reading, (text_column,)), (0, []))[1])
    for number, line in decoded_lines(path, reading):
        if line.strip():
            try:
                return tuple(_json_object(f"{path}, line {number}", line))
            except ValueError as error:
                reading.skip_or_raise(error)
                break
    return ()


def _sheet_names(header: Sequence[Any]) -> tuple[str, ...]:
    names = ["" if name is None else str(name) for name in header]
    # Cells without a value, such as those with a colour alone.
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def read_records(
    path: Path, columns: Sequence[str], reading: Reading
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the number and the wanted columns of each record of a file, the text first.

    Args:
        path: an existing file of a readable kind.
        columns: the column of the text, and that of the label if it is wanted.
        reading: takes the records that cannot be read, and a file that has none.

    Raises:
        ImportError: for a .parquet file if the package pyarrow is missing.
        ValueError: if the file lacks a column, or has it more than once.
    """
    readers: dict[str, Callable[..., Iterator[tuple[int, tuple[Any, ...]]]]]
    readers = {
        **dict.fromkeys((".csv", ".tsv"), _csv_records),
        ".jsonl": _json_records,
        ".parquet": _parquet_records,
        ".xlsx": _sheet_records,
    }
    empty, before = True, reading.count
    for record in readers.get(kind_of(path), _line_records)(path, columns, reading):
        empty = False
        yield record
    if empty and reading.count == before:
        reading.skip_or_raise(_empty(path))


def _empty(path: Path) -> ValueError:
    return ValueError(f"{path} is empty, expected at least one text; fill or remove it")


def _line_records(
    path: Path, columns: Sequence[str], reading: Reading
) -> Iterator[tuple[int, tuple[str]]]:
    for number, line in decoded_lines(path, reading):
        if line.strip():
            yield number, (line.rstrip("\r\n"),)


def _parquet_records(
    path: Path, columns: Sequence[str], reading: Reading
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    return parquet_records(path, columns, reading.skip_or_raise)


def read_whole(path: Path, reading: Reading) -> str | None:
    """Return a file as one text, its line ends as they are; None if it cannot be read.

    Args:
        path: an existing file.
        reading: takes the file if a line of it cannot be read, or it is empty.
    """
    try:
        with opened(path, reading.encoding) as file:
            reading.log_assumption(path, encoding=file.encoding)
            text = "".join(line for _, line in lines_of(file, _RAISING))
        if not text.strip():
            raise _empty(path)
    except ValueError as error:
        reading.skip_or_raise(error)
        return None
    return text


def _csv_records(
    path: Path, columns: Sequence[str], reading: Reading
) -> Iterator[tuple[int, tuple[str, ...]]]:
    rows = csv_rows(path, reading, columns)
    _, header = next(rows, (0, None))
    if header is None:
        return
    positions = column_positions(path, columns, header, COLUMN_ARGUMENTS)
    for line, row in rows:
        if len(row) == len(header):
            yield line, tuple(row[position] for position in positions)
            continue
        reading.skip_or_raise(
            ValueError(
                f"{path}, line {line}: {len(row)} fields, expected {len(header)} as in the header; "
                "put a text that contains the delimiter or a line end between "
                '"quotes"'
            )
        )


def _sheet_records(
    path: Path, columns: Sequence[str], reading: Reading
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    rows = sheet_rows(path, reading.skip_or_raise)
    _, header = next(rows, (0, None))
    if header is None:
        return
    positions = column_positions(path, columns, _sheet_names(header), COLUMN_ARGUMENTS)
    for number, row in rows:
        # Blank cells at its end a row need not have.
        text, *others = (row[n] if n < len(row) else None for n in positions)
        # Excel makes numbers and dates of what looks like them.
        values = ["" if text is None else str(text), *others]
        try:
            checked = checked_values(f"{path}, row {number}", columns, values)
        except ValueError as error:
            reading.skip_or_raise(error)
        else:
            yield number, checked


def delimiter_of(lines: Sequence[str], columns: Sequence[str], usual: str = ",") -> str:
    r"""Return what stands between the columns of a table, by its first lines.

    It separates names in the header, the wanted ones if there is one that does, and splits most of
    the rows into as many fields.

    >>> delimiter_of(["id;text\n", "1;a, b, c\n"], ["text"]), delimiter_of(["text\n", "a;b\n"], [])
    (';', ',')

    Args:
        lines: the header and some rows.
        columns: names that should be in the header.
        usual: what is returned where no other has such evidence.
    """
    best, found = (False, 0.5), usual
    for sign in sorted(DELIMITERS, key=lambda sign: sign != usual):
        rows: list[list[str]] = []
        # What comes before a row that cannot be read is evidence, too.
        with contextlib.suppress(csv.Error):
            reader = csv.reader(iter(lines), strict=True, delimiter=sign)
            while len(rows) < _TRIED_ROWS and (row := _next_row(reader)) is not None:
                rows += [row] if row else []
        if not rows or len(rows[0]) < 2:
            continue
        fitting = [len(row) == len(rows[0]) for row in rows[1:]] or [True]
        evidence = (set(columns) <= set(rows[0]), sum(fitting) / len(fitting))
        if evidence > best and any(fitting):
            best, found = evidence, sign
    return found


class _CsvLines:
    """The lines that a csv reader takes, and those of its present row once more."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._again: deque[Line] = deque()
        self.row: list[Line] = []

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.row.append(line)
        return line.text

    def read_again(self) -> None:
        """Go back to the second line of the row."""
        self._again.extendleft(reversed(self.row[1:]))


def csv_rows(
    path: Path, reading: Reading, header: Sequence[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of its first line and the fields of each row that is not blank.

    Args:
        path: an existing file.
        reading: takes the rows that cannot be read. After a quote that does not end, reading goes
            on with the line below it.
        header: columns that the first row should name; without that row the file cannot be read on.
            None if there is none.
    """
    with opened(path, reading.encoding) as file:
        first, lines = file.first_lines(), numbered_lines(file, reading)
        declared = _DECLARED.fullmatch(first[0]) if first else None
        if declared:
            next(lines, None)
        found = (
            declared[1] if declared else delimiter_of(first, header or (), usual_delimiter(path))
        )
        sign = reading.delimiter or found
        reading.log_assumption(path, delimiter=sign, encoding=file.encoding)
        yield from _csv_rows(path, lines, sign, reading, header is not None)


def _csv_rows(
    path: Path, numbered: Iterator[Line], sign: str, reading: Reading, header: bool
) -> Iterator[tuple[int, list[str]]]:
    lines = _CsvLines(numbered)
    reader = csv.reader(lines, strict=True, delimiter=sign)
    while True:
        lines.row.clear()
        try:
            row = _next_row(reader)
        except csv.Error as error:
            first, last = lines.row[0].number, lines.row[-1].number
            until = f" up to line {last}" if last > first else ""
            reading.skip_or_raise(
                ValueError(
                    f"{path}, line {first}: {error}{until}; close the quote, and write a quote "
                    "within a field twice"
                )
            )
            if header:
                return
            lines.read_again()
            reader = csv.reader(lines, strict=True, delimiter=sign)
            continue
        if row is None:
            return
        fault = next((line.fault for line in lines.row if line.fault), None)
        if fault is not None:
            reading.skip_or_raise(fault)
            if header:
                return
        elif row:
            header = False
            yield lines.row[0].number, row


def _next_row(reader: Any) -> list[str] | None:
    # The limit belongs to the whole process: raise it only while a row is read, and in one thread
    # at a time, or one could put back for good what another had set.
    with _FIELD_LIMIT:
        limit = csv.field_size_limit(_CSV_FIELD_CHARACTERS)
        try:
            row: list[str] | None = next(reader, None)
            return row
        finally:
            csv.field_size_limit(limit)


def _json_records(
    path: Path, columns: Sequence[str], reading: Reading
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for number, line in decoded_lines(path, reading):
        if not line.strip():
            continue
        try:
            values = _json_values(f"{path}, line {number}", line, columns)
        except ValueError as error:
            reading.skip_or_raise(error)
            continue
        yield number, values


class _Repeating(dict[str, Any]):
    """An object with a key more than once, of which a dict keeps the last."""

    names: list[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        record = _Repeating(record)
        record.names = [name for name, _ in pairs]
    return record


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error}); one object a line") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {line.strip()!r:.60}, expected a JSON object")
    return record


def _json_values(where: str, line: str, columns: Sequence[str]) -> tuple[Any, ...]:
    record = _json_object(where, line)
    if isinstance(record, _Repeating):
        column_positions(where, columns, record.names)
    values = checked_record(where, columns, record, COLUMN_ARGUMENTS)
    if "\\u" not in line:
        return values
    labels = () if isinstance(columns[-1], Kept) else values[1:2]
    if any(isinstance(label, str) and SURROGATE.search(label) for label in labels):
        raise ValueError(
            f"{where}: {columns[1]!r} is {values[1]!r:.60}, half a character, expected whole ones; "
            "write the label anew"
        )
    # Half a character, where an emoji was cut in two, cannot be written in UTF-8.
    return (SURROGATE.sub("\ufffd", values[0]), *values[1:])
