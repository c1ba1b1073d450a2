"""Columns of tables: Parquet files, Hugging Face datasets, data frames; none is imported here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ulmfit_fast.data.bad_rows import BadRows
from ulmfit_fast.data.records import checked_values, missing_column

__all__ = ["check_one_split", "is_table", "parquet_records", "table_records"]

# At a time at most, so that memory does not grow with the table, nor with the length of its texts.
_ROWS = 1_000
_BYTES = 2**24


def is_table(source: object) -> bool:
    """Tell whether something has named columns: a dataset, an Arrow table or a data frame.

    >>> is_table(["a text"]), is_table({"text": ["a text"]})
    (False, False)
    """
    if isinstance(source, (str, bytes, Mapping, list, tuple)):
        return False
    return hasattr(source, "column_names") or (
        hasattr(source, "columns") and hasattr(source, "__getitem__")
    )


def check_one_split(source: object) -> None:
    """Refuse a dictionary of datasets, which has several sets of rows.

    Raises:
        TypeError: if source is one.
    """
    if isinstance(source, Mapping) and hasattr(source, "column_names"):
        names = ", ".join(repr(name) for name in source)
        raise TypeError(
            f"source is a {type(source).__name__} with the splits {names}, expected one of them; "
            "pass source[name]"
        )


def table_records(
    source: Any, columns: Sequence[str], bad: BadRows
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the position and the wanted columns of each row of a table in memory, the text first.

    A label of a class with a name comes out as that name.

    Args:
        source: what `is_table` accepts.
        columns: the column of the text, and that of the label if it is wanted.
        bad: takes the rows whose text is not a string, or whose label is not one nor an integer.

    Raises:
        ValueError: if a column is missing.
    """
    if hasattr(source, "iter"):
        batches = _dataset_batches(source, columns)
    elif hasattr(source, "to_batches"):
        _require_columns(source, columns, source.column_names)
        batches = _arrow_columns(source.select(list(columns)).to_batches(_ROWS))
    else:
        _require_columns(source, columns, source.columns)
        batches = iter([[source[column] for column in columns]])
    names = _class_names(getattr(source, "features", None), columns)
    yield from _rows(f"the {type(source).__name__}", columns, batches, names, bad)


def parquet_records(
    path: Path, columns: Sequence[str], bad: BadRows
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the position and the wanted columns of each row of a Parquet file, the text first.

    Names of classes that the library `datasets` wrote into the file take the place of the numbers.

    Args:
        path: an existing file.
        columns: the column of the text, and that of the label if it is wanted.
        bad: takes the rows that cannot be read, as for `table_records`, a row group that is
            damaged, and a file that is no whole one.

    Raises:
        ImportError: if the package pyarrow is missing.
        ValueError: if a column is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package pyarrow; pip install 'ulmfit-fast[datasets]'"
        ) from error
    damage = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
    try:
        file = parquet.ParquetFile(path)
        present, metadata = file.schema_arrow.names, file.schema_arrow.metadata
    except damage as error:
        bad.meet(_damaged(f"{path} is no whole Parquet file", error))
        return
    with file:
        _require_columns(path, columns, present)
        names = _class_names(_written_features(metadata), columns)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group)
            batches = file.iter_batches(
                batch_size=max(1, min(_ROWS, _BYTES * rows.num_rows // (rows.total_byte_size + 1))),
                row_groups=[group],
                columns=list(dict.fromkeys(columns)),
            )
            try:
                yield from _rows(
                    str(path), columns, _arrow_columns(batches, columns), names, bad, first
                )
            except damage as error:
                where = f"{path}, row group {group} (rows {first} to {first + rows.num_rows - 1})"
                bad.meet(_damaged(f"{where}: cannot be read to its end", error))
            first += rows.num_rows


def _damaged(what: str, error: Exception) -> ValueError:
    # An error number comes from the system: the file may be whole.
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return ValueError(f"{what} ({' '.join(str(error).split()):.200}); fetch it anew")


def _dataset_batches(source: Any, columns: Sequence[str]) -> Iterator[list[Any]]:
    if source.column_names is not None:
        _require_columns(source, columns, source.column_names)
        # Neither other columns nor another format need be made.
        source = source.select_columns(list(dict.fromkeys(columns))).with_format(None)
    for batch in source.iter(_ROWS):
        _require_columns(source, columns, batch)
        yield [batch[column] for column in columns]


def _arrow_columns(batches: Any, columns: Sequence[str] | None = None) -> Iterator[list[Any]]:
    for batch in batches:
        names = batch.schema.names if columns is None else columns
        yield [_values(batch.column(batch.schema.get_field_index(name))) for name in names]


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


def _require_columns(source: object, columns: Sequence[str], present: Any) -> None:
    for column in columns:
        if column not in list(present):
            where = source if isinstance(source, Path) else f"the {type(source).__name__}"
            raise ValueError(missing_column(where, column, present))


def _rows(
    where: str,
    columns: Sequence[str],
    batches: Iterator[list[Any]],
    names: list[str] | None,
    bad: BadRows,
    first: int = 0,
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    rows = itertools.chain.from_iterable(zip(*batch, strict=True) for batch in batches)
    for row, values in enumerate(rows, start=first):
        place = f"{where}, row {row}"
        try:
            checked = checked_values(place, columns, values)
            if names is not None and isinstance(checked[1], int):
                checked = (checked[0], _class_name(place, columns[1], checked[1], names))
        except ValueError as error:
            bad.meet(error)
        else:
            yield row, checked


def _class_name(place: str, column: str, number: int, names: list[str]) -> str:
    if not 0 <= number < len(names):
        raise ValueError(
            f"{place}: {column!r} is {number}, expected 0 to {len(names) - 1} for the classes "
            f"{', '.join(names[:5])}; drop rows without a label"
        )
    return names[number]


def _class_names(features: Any, columns: Sequence[str]) -> list[str] | None:
    """Return the names of the label's classes, if the table knows them."""
    if len(columns) < 2 or not features or columns[1] not in features:
        return None
    feature = features[columns[1]]
    names = (
        feature.get("names") if isinstance(feature, Mapping) else getattr(feature, "names", None)
    )
    return list(names) if names else None


def _written_features(metadata: Mapping[bytes, bytes] | None) -> Any:
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return None
