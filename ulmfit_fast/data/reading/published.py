r"""Known corpora in the layout in which they are published, read as they go.

WikiText (articles), IMDb (a file a review, in folders), and from `class_csv` AG News, DBpedia and
Yelp. Files of other layouts are for `data.corpus`.

>>> articles = read_wikitext([" \n", " = Cats = \n", " \n", " A 3 @,@ 000 @-@ year story . \n"])
>>> list(articles)
[' = Cats = \n \n A 3,000-year story . \n']
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ulmfit_fast.data.reading.class_csv import (
    Labelled,
    PathName,
    existing_file,
    read_ag_news,
    read_class_csv,
    read_dbpedia,
    read_yelp,
)
from ulmfit_fast.data.reading.lines import BadRows, OnError, decoded_lines
from ulmfit_fast.data.reading.records import kind_of, read_records, read_whole
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

# One sign of equality at either end; the headings of sections have two or more.
_TITLE = re.compile(r"\s*= (?!= ).*(?<! =) =\s*")
_JOINER = re.compile(r" @([.,-])@ ")


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
    bad = BadRows(on_error)
    if isinstance(source, (str, os.PathLike)):
        return _articles(_file_lines(existing_file(source), bad), str(source), bad)
    return _articles(CheckedTexts(source), "the source", bad)


def _file_lines(path: Path, bad: BadRows) -> Iterator[str]:
    if kind_of(path) == ".parquet":
        return (record[0] for _, record in read_records(path, ("text",), bad))
    return (line for _, line in decoded_lines(path, bad))


def _articles(lines: Iterable[str], name: str, bad: BadRows) -> Iterator[str]:
    article: list[str] = []
    titles = 0
    for before, line, after in _with_neighbours(lines):
        if not before.strip() and not after.strip() and _TITLE.fullmatch(line):
            titles += 1
            yield from _finished(article)
            article = []
        article.append(line)
    bad.log()
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
    bad = BadRows(on_error)
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
    return _reviews([path for found in files for path in found], bad)


def _reviews(paths: Iterable[Path], bad: BadRows) -> Iterator[Labelled]:
    for path in paths:
        text = read_whole(path, bad)
        if text is not None:
            yield Labelled(text, path.parent.name)
    bad.log()


def _number_first(path: Path) -> tuple[int, str]:
    number = path.name.partition("_")[0]
    return (int(number) if number.isdecimal() else -1, path.name)


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
