"""Columns of tables: Parquet files, datasets, Arrow, data frames; no library is imported for it."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_fast.data.columns import (
    COLUMN_ARGUMENTS,
    Kept,
    check_ordered,
    checked_values,
    column_positions,
    is_iterable,
    is_whole_float,
    shown,
)
from ulmfit_fast.system.files import name_in_utf8

__all__ = ["column_values", "is_table", "parquet_names", "parquet_records", "table_records"]

# At a time at most, so that memory does not grow with the table, nor with the length of its texts.
_ROWS = 1_000
_BYTES = 2**24


def is_table(source: object) -> bool:
    """Return whether something has named columns: a dataset, an Arrow table, a frame, a mapping.

    >>> is_table(["a text"]), is_table({"text": ["a text"]})
    (False, True)
    """
    if isinstance(source, np.ndarray):
        return source.dtype.names is not None
    return (
        isinstance(source, Mapping)
        or _has(source, "column_names")
        or _has(source, "columns", "__getitem__")
        or _is_arrow(source)
    )


def _has(source: object, *names: str) -> bool:
    # Of the object itself a column of that name would be an attribute as well.
    return all(hasattr(type(source), name) for name in names)


def _is_arrow(source: object) -> bool:
    return (
        _has(source, "schema", "num_columns", "slice")
        or _has(source, "schema", "read_next_batch")
        or _has(source, "schema", "scanner")
    )


def table_records(
    source: Any, columns: Sequence[str], refuse: Callable[[ValueError], None]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the position and the wanted columns of each row of a table in memory, the text first.

    A label of a class with a name comes out as that name.

    Args:
        source: what `is_table` accepts.
        columns: the column of the text, and those of the label and the weight if they are wanted.
        refuse: called for each row whose text is not a string, or whose label is none.

    Raises:
        TypeError: for a dictionary of datasets, which has several sets of rows, or a column that
            is no list of values.
        ValueError: if a column is missing, or there more than once.
    """
    batches, features = _opened(source, columns)
    names = _class_names(features, columns[1]) if len(columns) > 1 else None
    return _rows(_name(source), columns, batches, names, refuse)


def column_values(source: Any, column: str) -> Iterable[Any]:
    """Return the values of a column: one that stands alone, or that of this name in a table.

    >>> list(column_values({"text": ["a", "b"]}, "text")), column_values(["a"], "text")
    (['a', 'b'], ['a'])

    Args:
        source: what `is_table` accepts, or any iterable.
        column: which one of a table.

    Returns:
        Python's or NumPy's values; a class with a name comes out as that name.

    Raises:
        TypeError: as for `table_records`.
        ValueError: as for `table_records`.
    """
    if is_table(source):
        batches, features = _opened(source, [column])
        names = _class_names(features, column)
        values = itertools.chain.from_iterable(batch[0] for batch in batches)
        if names is None:
            return values
        return (
            _class_name(f"{_name(source)}, row {row}", column, value, names)
            if isinstance(value, int)
            else value
            for row, value in enumerate(values)
        )
    found: Iterable[Any] = _values(source) if _has(source, "to_pylist") else source
    return found


def _name(source: object) -> str:
    return f"the {type(source).__name__}"


def _opened(
    source: Any, columns: Sequence[str], where: str | None = None
) -> tuple[Iterator[list[Any]], Any]:
    """Return the values of the wanted columns, batch by batch, and what is known of classes."""
    where = where or _name(source)
    if isinstance(source, Mapping) and _has(source, "column_names"):
        names = ", ".join(repr(name) for name in source)
        raise TypeError(
            f"source is a {type(source).__name__} with the splits {names}, expected one of them; "
            "pass source[name]"
        )
    if isinstance(source, Mapping):
        column_positions(where, columns, list(source))
        found = [list(_column(where, column, source[column])) for column in columns]
        if len({len(values) for values in found}) > 1:
            lengths = " and ".join(
                f"{len(values)} values in {column!r}"
                for column, values in zip(columns, found, strict=True)
            )
            raise ValueError(f"{where} has {lengths}, expected as many; fill in what is missing")
        return iter([found]), None
    if isinstance(source, np.ndarray):
        column_positions(where, columns, source.dtype.names or ())
        if source.ndim != 1:
            raise ValueError(f"{where} has shape {source.shape}, expected (N,), a record each")
        return iter([[source[column].tolist() for column in columns]]), None
    if _has(source, "column_names", "iter"):
        return _opened_dataset(source, columns)
    if _is_arrow(source):
        return _arrow_batches(source, columns, where), _written_features(source.schema.metadata)
    if _has(source, "collect", "collect_schema"):
        column_positions(where, columns, source.collect_schema().names())
        from polars import selectors

        # A plain name could be a pattern.
        source = source.select(selectors.by_name(*columns)).collect()
    column_positions(where, columns, list(source.columns))
    return iter([[_column(where, column, source[column]) for column in columns]]), None


def _column(where: str, name: str, values: Any) -> Iterable[Any]:
    if isinstance(values, (str, bytes)) or is_table(values) or not is_iterable(values):
        raise TypeError(
            f"{where} has {shown(values)} ({type(values).__name__}) in {name!r}, expected a list "
            "of values"
        )
    check_ordered(f"{name!r} of {where}", values)
    return column_values(values, name)


def parquet_names(path: Path) -> tuple[str, ...]:
    """Return the names of a Parquet file's columns; none of a file that is damaged.

    Args:
        path: an existing file.

    Raises:
        ImportError: if the package pyarrow is missing.
    """
    pyarrow, parquet = _pyarrow(path)
    damage = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
    with contextlib.suppress(*damage), name_in_utf8(path) as name:
        return tuple(parquet.read_schema(name).names)
    return ()


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package pyarrow; pip install 'ulmfit-fast[datasets]'"
        ) from error
    return pyarrow, parquet


def parquet_records(
    path: Path, columns: Sequence[str], refuse: Callable[[ValueError], None]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the position and the wanted columns of each row of a Parquet file, the text first.

    Names of classes that the library `datasets` wrote into the file take the place of the numbers.

    Args:
        path: an existing file.
        columns: the column of the text, and those of the label and the weight if they are wanted.
        refuse: called for each row that cannot be read, as for `table_records`, a row group that is
            damaged, and a file that is no whole one.

    Raises:
        ImportError: if the package pyarrow is missing.
        ValueError: if a column is missing, or there more than once.
    """
    pyarrow, parquet = _pyarrow(path)
    damage = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
    try:
        with name_in_utf8(path) as name:
            file = parquet.ParquetFile(name)
        present, metadata = file.schema_arrow.names, file.schema_arrow.metadata
    except damage as error:
        refuse(_damaged(f"{path} is no whole Parquet file", error))
        return
    with file:
        column_positions(path, columns, present, COLUMN_ARGUMENTS)
        names = None
        if len(columns) > 1 and not isinstance(columns[1], Kept):
            names = _class_names(_written_features(metadata), columns[1])
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group)
            batches = file.iter_batches(
                batch_size=max(1, min(_ROWS, _BYTES * rows.num_rows // (rows.total_byte_size + 1))),
                row_groups=[group],
                columns=list(dict.fromkeys(columns)),
            )
            try:
                found = _arrow_columns(path, columns, batches)
                yield from _rows(str(path), columns, found, names, refuse, first)
            except damage as error:
                where = f"{path}, row group {group} (rows {first} to {first + rows.num_rows - 1})"
                refuse(_damaged(f"{where}: cannot be read to its end", error))
            first += rows.num_rows


def _damaged(what: str, error: Exception) -> ValueError:
    # An error number comes from the system: the file may be whole.
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return ValueError(f"{what} ({' '.join(str(error).split()):.200}); fetch it anew")


def _opened_dataset(source: Any, columns: Sequence[str]) -> tuple[Iterator[list[Any]], Any]:
    where = _name(source)
    if _has(source, "format") and source.format["type"] == "custom":
        # A transform of the user's decides what a row holds: from which columns it alone knows, and
        # its integers need not be the numbers of the dataset's classes.
        return _batches_of_tables(source, columns, f"{where} after its transform"), None
    if source.column_names is not None:
        column_positions(where, columns, source.column_names)
        # No other column need be made.
        source = source.select_columns(list(dict.fromkeys(columns)))
    # Nor another format.
    return _batches_of_tables(source.with_format(None), columns, where), source.features


def _batches_of_tables(source: Any, columns: Sequence[str], where: str) -> Iterator[list[Any]]:
    for batch in source.iter(_ROWS):
        if not is_table(batch):
            raise TypeError(
                f"{where} gives {shown(batch)} ({type(batch).__name__}), expected a dict of lists "
                "or another table"
            )
        yield from _opened(batch, columns, where)[0]


def _arrow_batches(source: Any, columns: Sequence[str], where: str) -> Iterator[list[Any]]:
    names = source.schema.names
    column_positions(where, columns, names)
    if _has(source, "scanner"):
        # It cannot be scanned where any name repeats, also one that is not wanted.
        column_positions(where, names, names)
        # Of the files behind it no other column need be read.
        batches = source.to_batches(columns=list(dict.fromkeys(columns)))
    else:
        batches = source if _has(source, "read_next_batch") else [source]
    return _arrow_columns(where, columns, batches)


def _arrow_columns(
    where: object, columns: Sequence[str], batches: Iterable[Any]
) -> Iterator[list[Any]]:
    for batch in batches:
        positions = column_positions(where, columns, batch.schema.names)
        for start in range(0, batch.num_rows, _ROWS):
            part = batch.slice(start, _ROWS)
            yield [_values(part.column(position)) for position in positions]


def _values(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        # As bytes it is refused like any other value that is no string.
        return error.object


def _rows(
    where: str,
    columns: Sequence[str],
    batches: Iterator[list[Any]],
    names: list[str] | None,
    refuse: Callable[[ValueError], None],
    first: int = 0,
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    rows = itertools.chain.from_iterable(zip(*batch, strict=True) for batch in batches)
    for row, values in enumerate(rows, start=first):
        place = f"{where}, row {row}"
        try:
            checked = checked_values(place, columns, values)
            if names is not None and (type(checked[1]) is int or is_whole_float(checked[1])):
                name = _class_name(place, columns[1], int(checked[1]), names)
                checked = (checked[0], name, *checked[2:])
        except ValueError as error:
            refuse(error)
        else:
            yield row, checked


def _class_name(place: str, column: str, number: int, names: list[str]) -> str:
    if not 0 <= number < len(names):
        raise ValueError(
            f"{place}: {column!r} is {number}, expected 0 to {len(names) - 1} for the classes "
            f"{', '.join(names[:5])}; drop rows without a label"
        )
    return names[number]


def _class_names(features: Any, column: str) -> list[str] | None:
    """Return the names of the label's classes, if the table knows them."""
    if not isinstance(features, Mapping) or column not in features:
        return None
    feature = features[column]
    names = (
        feature.get("names") if isinstance(feature, Mapping) else getattr(feature, "names", None)
    )
    # Anybody may have written the metadata of a file.
    is_named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_named and names else None


def _written_features(metadata: Mapping[bytes, bytes] | None) -> Any:
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return None
