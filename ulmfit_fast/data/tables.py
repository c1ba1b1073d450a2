"""Columns of tables: Parquet files, Hugging Face datasets, data frames; none is imported here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ulmfit_fast.data.records import checked_values, missing_column

__all__ = ["check_one_split", "is_table", "parquet_records", "table_records"]

# Rows at a time, so that memory does not grow with the table.
_ROWS = 1_000


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


def table_records(source: Any, columns: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the position and the wanted columns of each row of a table in memory, the text first.

    A label of a class with a name comes out as that name.

    Args:
        source: what `is_table` accepts.
        columns: the column of the text, and that of the label if it is wanted.

    Raises:
        ValueError: if a column is missing, or a value is not a string (a label: nor an integer).
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
    yield from _rows(f"the {type(source).__name__}", columns, batches, names)


def parquet_records(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the position and the wanted columns of each row of a Parquet file, the text first.

    Names of classes that the library `datasets` wrote into the file take the place of the numbers.

    Args:
        path: an existing file.
        columns: the column of the text, and that of the label if it is wanted.

    Raises:
        ImportError: if the package pyarrow is missing.
        ValueError: if the file is damaged, or as for `table_records`.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package pyarrow; pip install 'ulmfit-fast[datasets]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            _require_columns(path, columns, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=_ROWS, columns=list(dict.fromkeys(columns)))
            features = _written_features(file.schema_arrow.metadata)
            names = _class_names(features, columns)
            yield from _rows(str(path), columns, _arrow_columns(batches, columns), names)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no whole Parquet file ({reason}); fetch it anew") from error


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
        yield [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in names]


def _require_columns(source: object, columns: Sequence[str], present: Any) -> None:
    for column in columns:
        if column not in list(present):
            where = source if isinstance(source, Path) else f"the {type(source).__name__}"
            raise ValueError(missing_column(where, column, present))


def _rows(
    where: str, columns: Sequence[str], batches: Iterator[list[Any]], names: list[str] | None
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    row = 0
    for batch in batches:
        for values in zip(*batch, strict=True):
            place = f"{where}, row {row}"
            checked = checked_values(place, columns, values)
            if names is not None and isinstance(checked[1], int):
                if not 0 <= checked[1] < len(names):
                    raise ValueError(
                        f"{place}: {columns[1]!r} is {checked[1]}, expected 0 to {len(names) - 1} "
                        f"for the classes {', '.join(names[:5])}; drop rows without a label"
                    )
                checked = (checked[0], names[checked[1]])
            yield row, checked
            row += 1


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
