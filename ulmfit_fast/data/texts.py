"""Texts on their way to the tokenizer: checked one by one, taken in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["BLOCK_CHARACTERS", "CheckedTexts", "text_blocks"]

# The memory in use must not grow with the corpus.
BLOCK_CHARACTERS = 1_000_000


class CheckedTexts:
    """Texts, each checked when its turn comes, and how many there were so far.

    Args:
        texts: any iterable of strings.

    Raises:
        TypeError: if texts is one string, or one of the texts is no string.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        if isinstance(texts, str):
            raise TypeError(f"texts is the string {texts!r:.60}, expected a list of texts")
        self._texts = texts
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        """Yield the texts."""
        for text in self._texts:
            if not isinstance(text, str):
                raise TypeError(
                    f"texts[{self.count}] is {text!r:.60} ({type(text).__name__}), expected a str; "
                    "drop it or pass str(value)"
                )
            self.count += 1
            yield text


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
