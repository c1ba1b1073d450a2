"""Texts on their way to the tokenizer: checked one by one, taken in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ulmfit_fast.data.columns import checked_record, is_iterable, shown
from ulmfit_fast.data.tables import column_values, is_table

__all__ = ["BLOCK_CHARACTERS", "CheckedTexts", "not_a_text", "text_blocks"]

# The memory in use must not grow with the corpus.
BLOCK_CHARACTERS = 1_000_000


class CheckedTexts:
    """Texts, each checked when its turn comes, and how many there were so far.

    >>> list(CheckedTexts({"text": ["one text"], "id": [7]}))
    ['one text']

    Args:
        texts: any iterable of strings, or a table or records with a column of them, as for
            `read_texts`.
        column: which one of a table or record.
        name: of the argument, for the errors.

    Raises:
        TypeError: if texts is one string, or one of the texts is no string.
        ValueError: if a table lacks the column, or has it more than once.
    """

    def __init__(self, texts: Any, column: str = "text", *, name: str = "texts") -> None:
        if isinstance(texts, str):
            raise TypeError(f"{name} is the string {texts!r:.60}, expected a list of texts")
        if isinstance(texts, bytes) or not (is_table(texts) or is_iterable(texts)):
            raise TypeError(
                f"{name} is {shown(texts)} ({type(texts).__name__}), expected a list of texts"
            )
        self._name, self._column = name, column
        self._texts = column_values(texts, column)
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        """Yield the texts."""
        for text in self._texts:
            if not isinstance(text, str):
                text = _text_of(f"{self._name}[{self.count}]", self._column, text)
            self.count += 1
            yield text


def _text_of(where: str, column: str, item: object) -> str:
    if not isinstance(item, Mapping):
        raise not_a_text(where, item)
    (text,) = checked_record(where, (column,), item)
    return str(text)


def not_a_text(where: str, value: object) -> TypeError:
    """Return the error of something that stands where a text should."""
    mend = "drop it or pass str(value)"
    if isinstance(value, np.ndarray):
        mend = "pass the texts, not the ids of their tokens"
    if is_table(value):
        mend = "pass a single table, several joined into one"
    return TypeError(f"{where} is {shown(value)} ({type(value).__name__}), expected a str; {mend}")


def text_blocks(texts: Iterable[str], characters: int | None = None) -> Iterator[list[str]]:
    """Group texts into lists of about so many characters, or a million."""
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size > (BLOCK_CHARACTERS if characters is None else characters):
            yield block
            block, size = [], 0
    if block:
        yield block
