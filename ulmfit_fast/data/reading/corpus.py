"""Texts and labels from files, folders and tables."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ulmfit_fast.data.columns import (
    Kept,
    Label,
    LabelKinds,
    MarkColumn,
    WeightColumn,
    checked_record,
    column_positions,
    is_iterable,
    is_missing,
    is_whole_float,
    label_error,
    missing_label,
    shown,
    weight_of,
)
from ulmfit_fast.data.reading.lines import STANDARD_INPUT, OnError, Reading
from ulmfit_fast.data.reading.records import (
    READABLE,
    TEXT_KINDS,
    columns_of,
    kind_of,
    read_records,
    read_whole,
    unit_of,
)
from ulmfit_fast.data.tables import column_values, is_table, table_records
from ulmfit_fast.data.tokens.texts import not_a_text
from ulmfit_fast.system.directories import STORE_META, owned_names
from ulmfit_fast.system.files import exists, user_path

__all__ = [
    "Label",
    "Source",
    "checked_path",
    "is_text",
    "kept_columns",
    "read_labelled",
    "read_marked",
    "read_rows",
    "read_texts",
    "read_weighted",
]

# A table is not named here: it has columns, and comes from a package that need not be installed.
Source = str | os.PathLike[str] | Iterable[Any]

_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst", ".tar.gz")
_ENDINGS = (*READABLE, *(f"{suffix}.gz" for suffix in TEXT_KINDS))


def read_texts(
    source: Source,
    *,
    text_column: str = "text",
    on_error: OnError = "raise",
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Iterator[str]:
    r"""Yield the texts of files, folders or tables, or those of an iterable as they are.

    A .txt file holds one text a line, and blank lines are skipped. A .csv or .tsv file has a header
    and one text a row, as has the first sheet of an .xlsx file; a .jsonl file has one JSON object a
    line, a .parquet file one text a row; there an empty text counts as a text. All but .parquet and
    .xlsx may be gzipped (.txt.gz). A folder of .txt files holds one text a file, at any depth, in
    the order of their paths; a folder of files of another kind is read file by file; hidden files
    and those of unknown kind are left alone. Lines end with a line feed, a carriage return or both.
    A table is a dataset of Hugging Face's `datasets`, as its transform gives it, an Arrow table,
    dataset or reader of record batches, a data frame of pandas or polars (lazy as well), a
    structured array or a dict of lists; the column has to be there exactly once. In a list, a
    string is a text, a dict a record and a `pathlib.Path` a file or folder.

    Of a .csv or .tsv file the header and the first rows tell what separates the columns: a comma, a
    semicolon, a tab or a bar. A text file is in UTF-8, in UTF-16 or UTF-32, which its first bytes
    give away, or else in cp1252: if in its first 4 MiB at least ten to one of the sequences beyond
    ASCII are broken as UTF-8, and half of these or more are accents at a letter or usual signs. So
    one broken line does not change how the others are read. What is found, if it is not a comma (in
    .tsv a tab) and UTF-8, is said in the log once a file; other encodings have to be named.

    A row of a file or table that cannot be read stops the reading, and so does a file without a
    text: the error names the file and the line, what is wrong, and the mend. Such rows are bytes
    that are not of the file's encoding, a NUL byte, a line above 256 MiB, malformed CSV or JSON, a
    record without the column or with something else than a string in it. With `on_error="skip"`
    they are left out and logged in one warning at the end; of a file that is not read on (a damaged
    .gz, a .csv without a good header) the rest is left out, of a damaged .parquet the row group, of
    a folder of .txt the file. Half a character in a .jsonl escape ("\\ud83d") becomes U+FFFD.

    >>> list(read_texts(["one text", "another"]))
    ['one text', 'another']

    Args:
        source: a path, a table, or an iterable of texts, of records or of `pathlib.Path`.
        text_column: column of a file or table, or key of a .jsonl file or record, that holds the
            text.
        on_error: "raise"; "skip" for a corpus with some rows that cannot be read; or "skip_few",
            which raises at the end of the iteration if more than 5 % of the rows (and more than
            three) were skipped.
        delimiter: between the columns of .csv and .tsv files, one character; None finds it.
        encoding: of text files, as Python names it; None finds it.

    Returns:
        An iterator that reads as it goes, so that a corpus may be larger than memory.

    Raises:
        TypeError: for something that is neither a text nor a path, or a dictionary of datasets.
        FileNotFoundError: if a file does not exist.
        ImportError: for a .parquet file if the package pyarrow is missing, for .xlsx openpyxl.
        ValueError: if a row cannot be read, a file or table lacks the column, has it more than
            once or is of another kind, or an argument is something else; or, at the end of the
            iteration, if there was no text at all.
    """
    reading = Reading(on_error, delimiter, encoding)
    if is_table(source):
        records = table_records(source, (text_column,), reading.skip_or_raise)
        return _some(_first(records), source, reading)
    if isinstance(source, (str, os.PathLike)):
        source = [checked_path(source)]
    items = _items(source)
    if isinstance(source, (list, tuple)):
        # A list can be checked before the first text is used; an iterator only as it goes.
        for item in source:
            if isinstance(item, os.PathLike):
                checked_path(item)
    return _some(_texts(items, text_column, reading), source, reading)


def _items(source: Any) -> Iterable[Any]:
    if isinstance(source, bytes) or not is_iterable(source):
        raise TypeError(
            f"source is {shown(source)} ({type(source).__name__}), expected a path or texts"
        )
    return column_values(source, "text")


def _first(records: Iterable[tuple[object, tuple[Any, ...]]]) -> Iterator[str]:
    return (record[0] for _, record in records)


def _some(texts: Iterator[str], source: object, reading: Reading) -> Iterator[str]:
    count = 0
    for text in texts:
        count += 1
        yield text
    reading.end(count)
    if not count:
        raise ValueError(
            f"the corpus {_described(source)} is empty, expected at least one text; pass more text"
        )


def _record(
    where: str, columns: tuple[str, ...], record: Mapping[Any, Any], reading: Reading
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    try:
        values = checked_record(where, columns, record)
    except ValueError as error:
        reading.skip_or_raise(error)
    else:
        yield where, values


def _texts(source: Iterable[Any], text_column: str, reading: Reading) -> Iterator[str]:
    for position, item in enumerate(source):
        if isinstance(item, os.PathLike):
            path = checked_path(item)
            for file in _files_in(path):
                if path.is_dir() and kind_of(file) == ".txt":
                    text = read_whole(file, reading)
                    if text is not None:
                        yield text
                else:
                    yield from _first(read_records(file, (text_column,), reading))
        elif isinstance(item, Mapping):
            yield from _first(_record(f"texts[{position}]", (text_column,), item, reading))
        elif not isinstance(item, str):
            raise not_a_text(f"texts[{position}]", item)
        elif item.endswith(_ENDINGS) and _is_file(item):
            raise ValueError(
                f"texts[{position}] is {item!r:.60}, the name of a file; "
                "pass pathlib.Path(...) to read it"
            )
        else:
            yield item


def is_text(source: object) -> bool:
    """Return whether a string is a text itself: neither a path that exists nor the name of a file.

    >>> is_text("a fine film"), is_text("reviews.csv"), is_text(Path("reviews"))
    (True, False, False)

    Args:
        source: anything; what is no string is no text.
    """
    if not isinstance(source, str) or source.lower().endswith(_ENDINGS):
        return False
    return not (source and exists(user_path(source)))


def kept_columns(
    paths: Sequence[Path],
    wanted: str | None,
    *,
    text_column: str = "text",
    delimiter: str | None = None,
    encoding: str | None = None,
) -> list[str]:
    """Return the names of the columns that are to go along with texts, see `read_rows`.

    Args:
        paths: files and folders.
        wanted: "all"; names with commas between, each of which every file has to have; or None for
            the column "id" of the files that have one, in whichever case.
        text_column: as for `read_texts`.
        delimiter: as for `read_texts`.
        encoding: as for `read_texts`.

    Raises:
        FileNotFoundError: if a file does not exist.
        ImportError: as for `read_texts`.
        ValueError: if a file lacks one of the names, or its first row cannot be read.
    """
    reading = Reading("raise", delimiter, encoding)
    # Those who read the texts tell.
    reading.logs = False
    files = [file for path in paths for file in _files_in(checked_path(path))]
    if wanted is None or wanted == "all":
        found = dict.fromkeys(
            name for file in files for name in columns_of(file, reading, text_column)
        )
        return [name for name in found if wanted == "all" or name.lower() == "id"]
    names = list(dict.fromkeys(wanted.split(",")))
    for file in files:
        # A pipe with columns tells as it is read.
        if file.is_file() or kind_of(file) not in READABLE[1:]:
            column_positions(file, names, columns_of(file, reading, text_column))
    return names


def read_rows(
    paths: Sequence[Path],
    names: Sequence[str] = (),
    *,
    text_column: str = "text",
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the texts of files and folders, each with what other columns hold beside it.

    Args:
        paths: files and folders, as for `read_texts`.
        names: of the columns; a file or record that lacks one has None there.
        text_column: column or key of the text.
        delimiter: as for `read_texts`.
        encoding: as for `read_texts`.

    Returns:
        An iterator over texts and values in the order of the names, strings in .csv and .tsv files.

    Raises:
        FileNotFoundError: if a file does not exist.
        ImportError: as for `read_texts`.
        ValueError: if a row cannot be read, or a file is empty, lacks a column or has it twice.
    """
    reading, count = Reading("raise", delimiter, encoding), 0
    for path in map(checked_path, paths):
        for file in _files_in(path):
            if path.is_dir() and kind_of(file) == ".txt":
                text = read_whole(file, reading)
                if text is not None:
                    count += 1
                    yield text, (None,) * len(names)
                continue
            # What can be read only once may have them all.
            there = columns_of(file, reading, text_column) or names
            own = [Kept(name) for name in names if name in there]
            for _, (text, *values) in read_records(file, (text_column, *own), reading):
                found: dict[str, Any] = dict(zip(own, values, strict=False))
                count += 1
                yield text, tuple(found.get(name) for name in names)
    reading.end(count)


def read_labelled(
    source: Source,
    text_column: str = "text",
    label_column: str = "label",
    *,
    on_error: OnError = "raise",
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[list[str], list[Label]]:
    """Read texts and their labels from files with columns, folders or a table.

    In a folder of .txt files each text lies in the folder of its class, `neg/1.txt`; its label is
    the name of that folder.

    Args:
        source: a path, a table, or an iterable of paths or records (see `read_texts`).
        text_column: column or key of the text.
        label_column: column or key of the label: a string, or in all but .csv and .tsv also an
            integer or a bool; a class that `datasets` has a name for gets that name, where no
            transform of a dataset has made the label.
        on_error: as for `read_texts`; a row without a label cannot be read either. Floats that a
            missing label has made of integers are read as integers where it is skipped.
        delimiter: as for `read_texts`.
        encoding: as for `read_texts`.

    Returns:
        The texts and the labels, in the order of the files and the rows in them.

    Raises:
        FileNotFoundError: if a file does not exist.
        ImportError: for a .parquet file if the package pyarrow is missing.
        TypeError: for a dictionary of datasets, or something that is no path.
        ValueError: if a row cannot be read, a file or table lacks a column, has it more than once
            or is of another kind, or there is no text at all; or if a label occurs in two kinds,
            as a string and as an integer.
    """
    texts, labels, _ = _read(
        source, (text_column, label_column), Reading(on_error, delimiter, encoding)
    )
    return texts, labels


def read_weighted(
    source: Source,
    text_column: str = "text",
    label_column: str = "label",
    weight_column: str = "weight",
    *,
    on_error: OnError = "raise",
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[list[str], list[Label], list[float]]:
    """Read texts, their labels and their weights from files with columns or a table.

    Args:
        source: as for `read_labelled`, but for folders of .txt files, which have no weights.
        text_column: column or key of the text.
        label_column: column or key of the label.
        weight_column: column or key of the weight: a finite number, at least 0, which in a file
            may be written as a string.
        on_error: as for `read_labelled`; a row without a weight cannot be read either.
        delimiter: as for `read_texts`.
        encoding: as for `read_texts`.

    Returns:
        The texts, the labels and the weights, in the order of the files and the rows in them.

    Raises:
        FileNotFoundError: as `read_labelled`.
        ImportError: as `read_labelled`.
        TypeError: as `read_labelled`.
        ValueError: as `read_labelled`, or if a weight is something else.
    """
    texts, labels, weights = _read(
        source,
        (text_column, label_column, weight_column),
        Reading(on_error, delimiter, encoding),
        _weight,
    )
    return texts, labels, [weight for (weight,) in weights]


def read_marked(
    source: Source,
    text_column: str = "text",
    label_column: str = "label",
    valid_column: str = "is_valid",
    weight_column: str | None = None,
    *,
    on_error: OnError = "raise",
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[list[str], list[Label], list[bool], list[float] | None]:
    """Read texts, their labels and whether each is held out, from files or a table.

    Args:
        source: as for `read_weighted`.
        text_column: column or key of the text.
        label_column: column or key of the label.
        valid_column: column or key of the mark: True or False, 1 or 0, or one of these words in a
            file.
        weight_column: column or key of the weight, or None.
        on_error: as for `read_labelled`; a row without a mark cannot be read either.
        delimiter: as for `read_texts`.
        encoding: as for `read_texts`.

    Returns:
        The texts, the labels, the marks, and the weights or None.

    Raises:
        FileNotFoundError: as `read_labelled`.
        ImportError: as `read_labelled`.
        TypeError: as `read_labelled`.
        ValueError: as `read_weighted`, or if a mark is something else.
    """
    # Of a table names can be numbers, and are not told of as arguments.
    mark: Any = MarkColumn(valid_column) if isinstance(valid_column, str) else valid_column
    weight: Any = WeightColumn(weight_column) if isinstance(weight_column, str) else weight_column
    columns = (text_column, label_column, mark)
    reading = Reading(on_error, delimiter, encoding)
    if weight_column is None:
        texts, labels, more = _read(source, columns, reading, _mark)
        return texts, labels, [mark for (mark,) in more], None
    texts, labels, more = _read(source, (*columns, weight), reading, _mark, _weight)
    return texts, labels, [mark for mark, _ in more], [weight for _, weight in more]


def _read(
    source: Source,
    columns: tuple[str, ...],
    reading: Reading,
    *checks: Callable[[str, str, Any], Any],
) -> tuple[list[str], list[Label], list[tuple[Any, ...]]]:
    """Read texts and labels, and the further columns as the checks of their values return them."""
    if is_table(source):
        name = f"the {type(source).__name__}"
        records = table_records(source, columns, reading.skip_or_raise)
        places = ((f"{name}, row {row}", pair) for row, pair in records)
        return _collected(places, columns, source, reading, checks)
    is_path = isinstance(source, (str, os.PathLike))
    items: list[Any] = [source] if is_path else list(_items(source))
    for name in items:
        is_text = isinstance(name, str) and not name.lower().endswith(_ENDINGS)
        if is_text and not exists(user_path(name)):
            raise ValueError(
                f"got the string {name!r:.60} and no labels; pass labels, or the path of a .csv or "
                ".jsonl file that holds them"
            )
    items = [item if isinstance(item, Mapping) else checked_path(item) for item in items]
    return _collected(_labelled_records(items, columns, reading), columns, items, reading, checks)


def _labelled_records(
    items: list[Path | Mapping[Any, Any]], columns: tuple[str, ...], reading: Reading
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield where a text stands, the text, its label and perhaps its weight."""
    for position, path in enumerate(items):
        if isinstance(path, Mapping):
            yield from _record(f"record {position}", columns, path, reading)
            continue
        for file in _files_in(path):
            if kind_of(file) != ".txt":
                for number, values in read_records(file, columns, reading):
                    yield f"{file}, {unit_of(file)} {number}", values
            elif len(columns) > 2:
                raise ValueError(
                    f"{file} has no column {columns[2]!r}; pass a .csv, .jsonl or .parquet file "
                    "that has one"
                )
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
                text = read_whole(file, reading)
                if text is not None:
                    yield str(file), (text, file.relative_to(path).parts[0])


def _collected(
    records: Iterable[tuple[str, tuple[Any, ...]]],
    columns: tuple[str, ...],
    source: object,
    reading: Reading,
    checks: Sequence[Callable[[str, str, Any], Any]],
) -> tuple[list[str], list[Label], list[tuple[Any, ...]]]:
    label_column = columns[1]
    texts: list[str] = []
    labels: list[Label] = []
    more: list[tuple[Any, ...]] = []
    kinds = LabelKinds()
    float_label: ValueError | None = None
    for place, (text, label, *rest) in records:
        if is_missing(label):
            reading.skip_or_raise(missing_label(f"{place}: {label_column!r}", label))
            continue
        if is_whole_float(label):
            float_label = float_label or label_error(f"{place}: {label_column!r}", label)
            label = int(label)
        try:
            parts = zip(checks, columns[2:], rest, strict=True)
            own = tuple(check(place, column, value) for check, column, value in parts)
        except ValueError as error:
            reading.skip_or_raise(error)
            continue
        other = kinds.other(label, place)
        if other is not None:
            raise ValueError(
                f"{place}: {label_column!r} is {label!r:.60} and {other[0]!r:.60} in {other[1]}, "
                "expected one kind: they would be two classes; write the integers of .jsonl files "
                'as strings, such as "1"'
            )
        texts.append(text)
        labels.append(label)
        more.append(own)
    if float_label is not None and not reading.count:
        # No row lacks its label, which would have made floats of integers.
        raise float_label
    reading.end(len(texts))
    if not texts:
        raise ValueError(
            f"the corpus {_described(source)} is empty, expected at least one labelled text"
        )
    return texts, labels, more


def _mark(place: str, column: str, value: Any) -> bool:
    word = str(value).strip().casefold().removesuffix(".0")
    if word not in ("true", "1", "false", "0"):
        raise ValueError(
            f"{place}: {column!r} is {shown(value)}, expected True or False, 1 or 0; mend or drop "
            "the row"
        )
    return word in ("true", "1")


def _weight(place: str, column: str, value: Any) -> float:
    try:
        # All that a .csv file holds are strings.
        weight = weight_of(float(value) if isinstance(value, str) else value)
    except ValueError:
        weight = None
    if weight is None or not 0.0 <= weight < math.inf:
        raise ValueError(
            f"{place}: {column!r} is {shown(value)}, expected a finite number, at least 0; mend or "
            "drop the row"
        )
    return weight


def _described(source: object) -> str:
    if isinstance(source, (list, tuple)) and source:
        return f"of {', '.join(str(item) for item in source[:3])}"
    return "passed"


def _files_in(path: Path) -> list[Path]:
    return _files_of(path) if path.is_dir() else [path]


def _files_of(folder: Path) -> list[Path]:
    """Return the files to read in a folder and those below, all of one kind, in a fixed order."""
    found: dict[str, list[Path]] = {}
    for directory, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            if kind_of(name) in READABLE and not name.startswith("."):
                found.setdefault(kind_of(name), []).append(Path(directory, name))
    if len(found) != 1 and (own := owned_names(folder)):
        if STORE_META in own:
            raise ValueError(
                f"{folder} is a token store, expected text: pretrain and fine-tune take a store; "
                "pass the files that it was made of"
            )
        raise ValueError(
            f"{folder} is the directory of a model, expected text; pass the files of the text"
        )
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
        return user_path(name).is_file()
    except (OSError, ValueError):
        return False


def checked_path(name: str | os.PathLike[str]) -> Path:
    """Return the path of a file or folder that can be read.

    Args:
        name: as the user wrote it.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if it is no path.
        ValueError: if it is a text, an archive or of an unknown kind.
    """
    if not isinstance(name, (str, os.PathLike)):
        mend = "; pass a single table, several joined into one" if is_table(name) else ""
        raise TypeError(f"{shown(name)} is a {type(name).__name__}, expected a path{mend}")
    path = user_path(name)
    if path == STANDARD_INPUT:
        return path
    kind = kind_of(path)
    if isinstance(name, str) and kind not in READABLE and not exists(path):
        raise ValueError(f"got the string {name!r:.60}; pass a list of texts or an existing path")
    if not exists(path):
        raise FileNotFoundError(f"{path} does not exist, expected a file; check the path")
    if path.name.lower().endswith(_ARCHIVES) and not path.is_dir():
        raise ValueError(
            f"{path} is an archive, and none is unpacked here; unpack it and pass what was in it"
        )
    if kind not in READABLE and not path.is_dir():
        raise ValueError(
            f"{path} ends in {path.suffix!r}, expected one of {', '.join(READABLE)}; rename or "
            "convert it"
        )
    return path
