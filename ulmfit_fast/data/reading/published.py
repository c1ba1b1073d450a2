r"""Known corpora in the layout in which they are published, read as they go.

WikiText (articles), IMDb (a file a review, in folders), AG News, DBpedia and Yelp (the class by its
number, then the texts, in a CSV without header). Files of other layouts are for `reading.corpus`.

>>> articles = read_wikitext([" \n", " = Cats = \n", " \n", " A 3 @,@ 000 @-@ year story . \n"])
>>> list(articles)
[' = Cats = \n \n A 3,000-year story . \n']
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ulmfit_fast.data.reading.lines import OnError, Reading, decoded_lines
from ulmfit_fast.data.reading.records import csv_rows, kind_of, read_records, read_whole
from ulmfit_fast.data.tokens.texts import CheckedTexts
from ulmfit_fast.system.files import user_path

__all__ = [
    "LAYOUTS",
    "Labelled",
    "read_ag_news",
    "read_class_csv",
    "read_dbpedia",
    "read_imdb",
    "read_wikitext",
    "read_yelp",
]

PathName = str | os.PathLike[str]
# One sign of equality at either end; the headings of sections have two or more.
_TITLE = re.compile(r"\s*= (?!= ).*(?<! =) =\s*")
_JOINER = re.compile(r" @([.,-])@ ")


def _reading(on_error: OnError) -> Reading:
    # As these files are distributed.
    return Reading(on_error, delimiter=",", encoding="utf-8")


class Labelled(NamedTuple):
    """A text and its class.

    Attributes:
        text: the text.
        label: its class.
    """

    text: str
    label: str


def read_wikitext(
    source: PathName | Iterable[str], *, on_error: OnError = "raise"
) -> Iterator[str]:
    r"""Yield the articles of WikiText-2 or WikiText-103, raw or tokenized.

    An article begins with a title such as " = Robert Boulter = " between two blank lines. The marks
    " @-@ ", " @,@ " and " @.@ ", which both forms have within words and numbers, are undone; the
    `<unk>` of the tokenized form stays, and our tokenizers read it as `xxunk`.

    Args:
        source: a file such as wiki.train.raw or wiki.train.tokens (also .gz, or .parquet with a
            line a row in the column "text"), any iterable of its lines, or a table of them.
        on_error: "raise", or "skip" to leave out lines that cannot be read, as for `read_texts`.

    Returns:
        An iterator over the articles; what stands before the first title comes as one more.

    Raises:
        FileNotFoundError: if the file does not exist.
        TypeError: if the source is something else, or one of its lines is no string.
        ValueError: if a line cannot be read, there is no title at all, a table does not have the
            column "text" exactly once, or on_error is something else.
    """
    reading = _reading(on_error)
    if isinstance(source, (str, os.PathLike)):
        return _articles(_file_lines(_existing_file(source), reading), str(source), reading)
    return _articles(CheckedTexts(source), "the source", reading)


def _file_lines(path: Path, reading: Reading) -> Iterator[str]:
    if kind_of(path) == ".parquet":
        return (record[0] for _, record in read_records(path, ("text",), reading))
    return (line for _, line in decoded_lines(path, reading))


def _articles(lines: Iterable[str], name: str, reading: Reading) -> Iterator[str]:
    article: list[str] = []
    titles = 0
    count = 0
    for before, line, after in _with_neighbours(lines):
        count += 1
        if not before.strip() and not after.strip() and _TITLE.fullmatch(line):
            titles += 1
            yield from _finished(article)
            article = []
        article.append(line)
    reading.end(count)
    if not titles:
        raise ValueError(
            f"{name} has no title such as ' = Robert Boulter = ' between blank lines, expected "
            "WikiText; read other files with read_texts"
        )
    yield from _finished(article)


def _with_neighbours(lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    before, line = "", None
    for after in lines:
        if line is not None:
            yield before, line, after
            before = line
        line = after
    if line is not None:
        yield before, line, ""


def _finished(article: Sequence[str]) -> Iterator[str]:
    while article and not article[-1].strip():
        article = article[:-1]
    while article and not article[0].strip():
        article = article[1:]
    if article:
        yield _JOINER.sub(r"\1", "".join(article))


def read_imdb(
    directory: PathName,
    split: str = "train",
    classes: Sequence[str] = ("neg", "pos"),
    *,
    on_error: OnError = "raise",
) -> Iterator[Labelled]:
    """Yield the reviews of the Large Movie Review Dataset (aclImdb), class by class.

    Args:
        directory: the unpacked aclImdb with its folders train and test.
        split: "train" or "test".
        classes: folders to read; ("unsup",) holds the unlabelled reviews of train.
        on_error: "raise", or "skip" to leave out files that cannot be read or are empty.

    Returns:
        An iterator over review and class, by the number that each file name begins with.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if a folder holds no review, a file cannot be read, or on_error is something
            else.

    Source:
        Maas et al. 2011, Learning Word Vectors for Sentiment Analysis.
    """
    reading = _reading(on_error)
    folders = [user_path(directory) / split / name for name in classes]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is no directory, expected the reviews of a class; pass the unpacked "
                "aclImdb, which holds train and test"
            )
    files = [sorted(folder.glob("*.txt"), key=_number_first) for folder in folders]
    for folder, found in zip(folders, files, strict=True):
        if not found:
            raise ValueError(f"{folder} holds no .txt file, expected a review a file")
    return _reviews([path for found in files for path in found], reading)


def _reviews(paths: Iterable[Path], reading: Reading) -> Iterator[Labelled]:
    count = 0
    for path in paths:
        text = read_whole(path, reading)
        if text is not None:
            count += 1
            yield Labelled(text, path.parent.name)
    reading.end(count)


def _number_first(path: Path) -> tuple[int, str]:
    number = path.name.partition("_")[0]
    return (int(number) if number.isdecimal() else -1, path.name)


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
    found = _existing_file(path)
    names = _classes_beside(found) if classes is None else list(classes)
    return _class_rows(found, names, columns, mend, _reading(on_error))


def _class_rows(
    path: Path,
    names: Sequence[str],
    columns: int | None,
    mend: Callable[[str], str],
    reading: Reading,
) -> Iterator[Labelled]:
    count, before = 0, reading.count
    for line, row in csv_rows(path, reading):
        columns = len(row) - 1 if columns is None else columns
        fault = _class_fault(row, names, columns)
        if fault:
            reading.skip_or_raise(ValueError(f"{path}, line {line}: {fault}"))
            continue
        count += 1
        label = names[int(row[0]) - 1] if names else str(int(row[0]))
        yield Labelled(" ".join(mend(text) for text in row[1:]), label)
    reading.end(count)
    if not count:
        skipped = reading.count - before
        but = f" but for the {skipped} rows skipped" if skipped else ""
        raise ValueError(f"{path} is empty{but}, expected a class and its texts on each line")


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
    return [line.strip() for _, line in decoded_lines(file, _reading("raise")) if line.strip()]


@dataclass(frozen=True)
class _ClassCSV:
    """Reads train.csv or test.csv of a directory by `read_class_csv`."""

    columns: int
    mend: Callable[[str], str]
    classes: Sequence[str] = ()

    def __call__(
        self, directory: PathName, split: str = "train", *, on_error: OnError = "raise"
    ) -> Iterator[Labelled]:
        path = user_path(directory) / f"{split}.csv"
        zipped = path.with_name(f"{split}.csv.gz")
        if zipped.exists() and not path.exists():
            path = zipped
        classes = _classes_beside(path) or self.classes
        return read_class_csv(
            path, classes, columns=self.columns, mend=self.mend, on_error=on_error
        )


# Title and description, with a backslash where a line ended ("dwindling\band").
read_ag_news = _ClassCSV(
    2, lambda text: text.replace("\\", " "), ("World", "Sports", "Business", "Sci/Tech")
)
# Title and abstract, of one of 14 classes such as "Company".
read_dbpedia = _ClassCSV(2, str.strip)
# Reviews, "1" to "5" stars, or "1" (negative) and "2"; a line end is written "\n" and a quote "\"".
read_yelp = _ClassCSV(1, lambda text: text.replace("\\n", "\n").replace('\\"', '"'))


def _existing_file(name: PathName) -> Path:
    path = user_path(name)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected a file; check the path")
    if path.is_dir():
        raise ValueError(f"{path} is a directory, expected a file in it")
    return path


class ReadTexts(Protocol):
    """Reads the texts of one layout."""

    def __call__(self, path: PathName, /, *, on_error: OnError = "raise") -> Iterator[str]:
        """Yield texts for a language model."""


def _texts_of(read: Callable[..., Iterator[Labelled]], **options: Any) -> ReadTexts:
    def texts(path: PathName, *, on_error: OnError = "raise") -> Iterator[str]:
        return (row.text for row in read(path, **options, on_error=on_error))

    return texts


# What the command line calls them.
LAYOUTS: dict[str, ReadTexts] = {
    "wikitext": read_wikitext,
    "imdb": _texts_of(read_imdb, classes=("neg", "pos", "unsup")),
    "ag_news": _texts_of(read_ag_news),
    "dbpedia": _texts_of(read_dbpedia),
    "yelp": _texts_of(read_yelp),
}
