"""Records of one file: lines of .txt, rows of .csv and .parquet, objects of .jsonl."""

from __future__ import annotations

import csv
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ulmfit_fast.data.columns import Kept, checked_record, column_positions
from ulmfit_fast.data.reading.lines import ZIPPED, BadRows, Line, decoded_lines, numbered_lines
from ulmfit_fast.data.tables import parquet_columns, parquet_records
from ulmfit_fast.data.tokens.rules import SURROGATE

__all__ = [
    "READABLE",
    "columns_of",
    "csv_rows",
    "kind_of",
    "read_records",
    "read_whole",
    "unit_of",
]

READABLE = (".txt", ".csv", ".jsonl", ".parquet")
# What is longer lacks the quote at its end. Memory stays bounded.
_CSV_FIELD_CHARACTERS = 2**27
_DELIMITERS = (";", "\t", "|")
_FIELD_LIMIT = threading.Lock()
_RAISING = BadRows()


def kind_of(name: str | Path) -> str:
    """Return the suffix that says how a file is read, that under .gz too.

    >>> kind_of("reviews.CSV.gz"), kind_of("readme.md")
    ('.csv', '.md')
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix == ZIPPED and Path(path.stem).suffix.lower() in READABLE[:3]:
        return Path(path.stem).suffix.lower()
    return suffix


def unit_of(path: Path) -> str:
    """Return what an error counts in this file: lines from 1, rows of .parquet from 0."""
    return "row" if kind_of(path) == ".parquet" else "line"


def columns_of(path: Path) -> list[str]:
    """Return the names of a file's columns, in their order; those of .jsonl in its first record.

    A .txt file has none, and nor has what can be read only once, such as a pipe.

    Args:
        path: an existing file of a readable kind.

    Raises:
        ValueError: if its first row cannot be read.
    """
    kind = kind_of(path)
    if kind not in READABLE[1:] or not path.is_file():
        return []
    if kind == ".parquet":
        return parquet_columns(path)
    if kind == ".csv":
        return next((row for _, row in csv_rows(path, _RAISING, header=True)), [])
    lines = ((number, line) for number, line in decoded_lines(path, _RAISING) if line.strip())
    return next((list(_json_object(f"{path}, line {n}", line)) for n, line in lines), [])


def read_records(
    path: Path, columns: Sequence[str], bad: BadRows
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the number and the wanted columns of each record of a file, the text first.

    Args:
        path: an existing file of a readable kind.
        columns: the column of the text, and that of the label if it is wanted.
        bad: takes the records that cannot be read, and a file that has none.

    Raises:
        ImportError: for a .parquet file if the package pyarrow is missing.
        ValueError: if the file lacks a column, or has it more than once.
    """
    readers: dict[str, Callable[..., Iterator[tuple[int, tuple[Any, ...]]]]]
    readers = {".csv": _csv_records, ".jsonl": _json_records, ".parquet": _parquet_records}
    empty, before = True, bad.count
    for record in readers.get(kind_of(path), _line_records)(path, columns, bad):
        empty = False
        yield record
    if empty and bad.count == before:
        bad.take(_empty(path))


def _empty(path: Path) -> ValueError:
    return ValueError(f"{path} is empty, expected at least one text; fill or remove it")


def _line_records(
    path: Path, columns: Sequence[str], bad: BadRows
) -> Iterator[tuple[int, tuple[str]]]:
    for number, line in decoded_lines(path, bad):
        if line.strip():
            yield number, (line.rstrip("\r\n"),)


def _parquet_records(
    path: Path, columns: Sequence[str], bad: BadRows
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    return parquet_records(path, columns, bad.take)


def read_whole(path: Path, bad: BadRows) -> str | None:
    """Return a file as one text, its line ends as they are; None if it cannot be read.

    Args:
        path: an existing file.
        bad: takes the file if a line of it cannot be read, or it is empty.
    """
    try:
        text = "".join(line for _, line in decoded_lines(path, _RAISING))
        if not text.strip():
            raise _empty(path)
    except ValueError as error:
        bad.take(error)
        return None
    return text


def _csv_records(
    path: Path, columns: Sequence[str], bad: BadRows
) -> Iterator[tuple[int, tuple[str, ...]]]:
    rows = csv_rows(path, bad, header=True)
    _, header = next(rows, (0, None))
    if header is None:
        return
    positions = column_positions(path, columns, header, _other_delimiter(columns, header))
    for line, row in rows:
        if len(row) == len(header):
            yield line, tuple(row[position] for position in positions)
            continue
        bad.take(
            ValueError(
                f"{path}, line {line}: {len(row)} fields, expected {len(header)} as in the header; "
                'put a text that contains a comma or a line end between "quotes"'
            )
        )


def _other_delimiter(columns: Sequence[str], header: Sequence[str]) -> str | None:
    """Return the mend of a header that has the columns between other signs than commas."""
    for sign in _DELIMITERS:
        if set(columns) & set(",".join(header).replace(",", sign).split(sign)) - set(header):
            return f"separate its fields by commas instead of {sign!r}"
    return None


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


def csv_rows(path: Path, bad: BadRows, *, header: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of its first line and the fields of each row that is not blank.

    Args:
        path: an existing file.
        bad: takes the rows that cannot be read. After a quote that does not end, reading goes on
            with the line below it.
        header: without its first row the file cannot be read on.
    """
    lines = _CsvLines(numbered_lines(path, bad))
    reader = csv.reader(lines, strict=True)
    while True:
        lines.row.clear()
        try:
            row = _next_row(reader)
        except csv.Error as error:
            first, last = lines.row[0].number, lines.row[-1].number
            until = f" up to line {last}" if last > first else ""
            bad.take(
                ValueError(
                    f"{path}, line {first}: {error}{until}; close the quote, and write a quote "
                    "within a field twice"
                )
            )
            if header:
                return
            lines.read_again()
            reader = csv.reader(lines, strict=True)
            continue
        if row is None:
            return
        fault = next((line.fault for line in lines.row if line.fault), None)
        if fault is not None:
            bad.take(fault)
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
    path: Path, columns: Sequence[str], bad: BadRows
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for number, line in decoded_lines(path, bad):
        if not line.strip():
            continue
        try:
            values = _json_values(f"{path}, line {number}", line, columns)
        except ValueError as error:
            bad.take(error)
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
    values = checked_record(where, columns, record)
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
