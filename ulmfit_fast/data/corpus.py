"""Texts and labels from files, folders and tables; all files in UTF-8."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ulmfit_fast.data.records import READABLE, kind_of, read_records, read_whole, unit_of
from ulmfit_fast.data.tables import check_one_split, is_table, table_records

__all__ = ["Label", "Source", "read_labelled", "read_texts"]

Label = str | int
# A table is not named here: it has columns, and comes from a package that need not be installed.
Source = str | os.PathLike[str] | Iterable[Any]

_ENDINGS = (*READABLE, *(f"{suffix}.gz" for suffix in READABLE[:3]))


def read_texts(source: Source, *, text_column: str = "text") -> Iterator[str]:
    r"""Yield the texts of files, folders or tables, or those of an iterable as they are.

    A .txt file holds one text a line, and blank lines are skipped. A .csv file has a header and one
    text a row, a .jsonl file one JSON object a line, a .parquet file one text a row; there an empty
    text counts as a text. All but .parquet may be gzipped (.txt.gz). A folder of .txt files holds
    one text a file, at any depth, in the order of their paths; a folder of files of another kind is
    read file by file; hidden files and those of unknown kind are left alone. A table is a dataset
    of Hugging Face's `datasets`, an Arrow table or a data frame. In a list, a string is a text and
    a `pathlib.Path` a file or folder.

    >>> list(read_texts(["one text", "another"]))
    ['one text', 'another']

    Args:
        source: a path, a table, an iterable of texts, or an iterable of `pathlib.Path`.
        text_column: column of a file or table, or key of a .jsonl file, that holds the text.

    Returns:
        An iterator that reads as it goes, so that a corpus may be larger than memory.

    Raises:
        TypeError: for something that is neither a text nor a path.
        FileNotFoundError: if a file does not exist.
        ImportError: for a .parquet file if the package pyarrow is missing.
        ValueError: if a file is not UTF-8, is malformed, lacks the column or is of another kind;
            or, at the end of the iteration, if there was no text at all.
    """
    check_one_split(source)
    if is_table(source):
        return _some(_first(table_records(source, (text_column,))), source)
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
    return _some(_texts(source, text_column), source)


def _first(records: Iterable[tuple[int, tuple[Any, ...]]]) -> Iterator[str]:
    return (record[0] for _, record in records)


def _some(texts: Iterator[str], source: object) -> Iterator[str]:
    empty = True
    for text in texts:
        empty = False
        yield text
    if empty:
        raise ValueError(
            f"the corpus {_described(source)} is empty, expected at least one text; pass more text"
        )


def _texts(source: Iterable[Any], text_column: str) -> Iterator[str]:
    for position, item in enumerate(source):
        if isinstance(item, os.PathLike):
            path = _checked_path(item)
            for file in _files_of(path) if path.is_dir() else [path]:
                if path.is_dir() and kind_of(file) == ".txt":
                    yield read_whole(file)
                else:
                    yield from _first(read_records(file, (text_column,)))
        elif not isinstance(item, str):
            raise TypeError(
                f"texts[{position}] is {item!r:.60} ({type(item).__name__}), expected a str; "
                "drop it or pass str(value)"
            )
        elif item.endswith(_ENDINGS) and _is_file(item):
            raise ValueError(
                f"texts[{position}] is {item!r:.60}, the name of a file; "
                "pass pathlib.Path(...) to read it"
            )
        else:
            yield item


def read_labelled(
    source: Source,
    text_column: str = "text",
    label_column: str = "label",
) -> tuple[list[str], list[Label]]:
    """Read texts and their labels from .csv, .jsonl or .parquet files, folders or a table.

    In a folder of .txt files each text lies in the folder of its class, `neg/1.txt`; its label is
    the name of that folder.

    Args:
        source: a path, an iterable of paths, or a table (see `read_texts`).
        text_column: column or key of the text.
        label_column: column or key of the label: a string, or in .jsonl, .parquet and tables also
            an integer; a class that `datasets` has a name for gets that name.

    Returns:
        The texts and the labels, in the order of the files and the rows in them.

    Raises:
        FileNotFoundError: if a file does not exist.
        ImportError: for a .parquet file if the package pyarrow is missing.
        TypeError: for a dictionary of datasets, or something that is no path.
        ValueError: if a file is not UTF-8, is malformed or empty, lacks a column or a label, or is
            of another kind; or if a label occurs as a string and as an integer.
    """
    check_one_split(source)
    columns = (text_column, label_column)
    if is_table(source):
        name = f"the {type(source).__name__}"
        places = ((f"{name}, row {row}", pair) for row, pair in table_records(source, columns))
        return _collected(places, label_column, source)
    names: list[Any] = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    for name in names:
        is_text = isinstance(name, str) and not name.lower().endswith(_ENDINGS)
        if is_text and not _exists(Path(name)):
            raise ValueError(
                f"got the string {name!r:.60} and no labels; pass labels, or the path of a .csv or "
                ".jsonl file that holds them"
            )
    paths = [_checked_path(name) for name in names]
    return _collected(_labelled_records(paths, columns), label_column, paths)


def _labelled_records(
    paths: list[Path], columns: tuple[str, str]
) -> Iterator[tuple[str, tuple[str, Label]]]:
    """Yield where a text stands, the text and its label."""
    for path in paths:
        for file in _files_of(path) if path.is_dir() else [path]:
            if kind_of(file) != ".txt":
                for number, pair in read_records(file, columns):
                    yield f"{file}, {unit_of(file)} {number}", (pair[0], pair[1])
            elif not path.is_dir():
                raise ValueError(
                    f"{path} has no labels, expected a .csv or .jsonl file with labels"
                )
            elif file.parent == path:
                raise ValueError(
                    f"{file} lies in no folder of a class, expected {path.name}/class/{file.name}; "
                    "move or remove it"
                )
            else:
                yield str(file), (read_whole(file), file.relative_to(path).parts[0])


def _collected(
    records: Iterable[tuple[str, tuple[Any, ...]]], label_column: str, source: object
) -> tuple[list[str], list[Label]]:
    texts: list[str] = []
    labels: list[Label] = []
    seen: dict[str, tuple[Label, str]] = {}
    for place, (text, label) in records:
        if label == "":
            raise ValueError(
                f"{place}: {label_column!r} is empty, expected a label; fill it in or drop the row"
            )
        first, where = seen.setdefault(str(label), (label, place))
        if first != label:
            raise ValueError(
                f"{place}: {label_column!r} is {label!r:.60} and {first!r:.60} in "
                f"{where}, expected one kind: they would be two classes; write the integers "
                'of .jsonl files as strings, such as "1"'
            )
        texts.append(text)
        labels.append(label)
    if not texts:
        raise ValueError(
            f"the corpus {_described(source)} is empty, expected at least one labelled text"
        )
    return texts, labels


def _described(source: object) -> str:
    if isinstance(source, (list, tuple)) and source:
        return f"of {', '.join(str(item) for item in source[:3])}"
    return "passed"


def _files_of(folder: Path) -> list[Path]:
    """Return the files to read in a folder and those below, all of one kind, in a fixed order."""
    found: dict[str, list[Path]] = {}
    for directory, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            if kind_of(name) in READABLE and not name.startswith("."):
                found.setdefault(kind_of(name), []).append(Path(directory, name))
    if len(found) != 1:
        kinds = ", ".join(sorted(found)) or f"none of {', '.join(READABLE)}"
        raise ValueError(
            f"{folder} is a directory with files of {'the kinds ' if found else ''}{kinds}, "
            "expected one kind; pass the files in it"
        )
    return sorted(*found.values())


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
    kind = kind_of(path)
    if isinstance(name, str) and kind not in READABLE and not _exists(path):
        raise ValueError(f"got the string {name!r:.60}; pass a list of texts or an existing path")
    if not _exists(path):
        raise FileNotFoundError(f"{path} does not exist, expected a file; check the path")
    if kind not in READABLE and not path.is_dir():
        raise ValueError(
            f"{path} ends in {path.suffix!r}, expected one of {', '.join(READABLE)}; rename or "
            "convert it"
        )
    return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
