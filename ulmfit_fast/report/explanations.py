"""What a classifier's answer is made of: found by `serving.saliency.explain`, shown by the page."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Explanation", "TokenScore"]


@dataclass(frozen=True)
class TokenScore:
    """One token and what it adds to the answer.

    Attributes:
        token: as the tokenizer shows it, marks such as `xxmaj` included.
        score: from -1 to 1; the token with the largest effect on its text has -1 or 1.
    """

    token: str
    score: float


@dataclass(frozen=True)
class Explanation:
    """A classifier's answer on one text, and what each token had to do with it.

    Attributes:
        text: the text.
        label: the class that is explained.
        probability: what the classifier gives it.
        tokens: the text's tokens in reading order, `xxbos` first.
        words: the words much as they were written, with their marks and pieces joined and the
            scores added up; without `xxbos`.
    """

    text: str
    label: str | int
    probability: float
    tokens: list[TokenScore]
    words: list[TokenScore]
