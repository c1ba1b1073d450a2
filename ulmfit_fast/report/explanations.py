"""What a classifier's answer is made of: found by `serving.saliency.explain`, shown by the page."""

from __future__ import annotations

import html
from dataclasses import dataclass

__all__ = ["Explanation", "Explanations", "TokenScore"]


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

    def _repr_html_(self) -> str:
        """Show the text in a notebook, its words coloured: filled for the answer, or underlined."""
        words = " ".join(map(_coloured, self.words))
        label = html.escape(str(self.label))
        return f"<p><b>{label}</b> ({self.probability:.3f})<br>{words}</p>"


class Explanations(list[Explanation]):
    """Explanations of several texts, which a notebook shows with coloured words.

    >>> words = [TokenScore("fine", 1.0), TokenScore("<film>", -0.2)]
    >>> shown = Explanations([Explanation("fine <film>", "good", 0.9, words, words)])
    >>> "<b>good</b> (0.900)" in shown._repr_html_(), "&lt;film&gt;" in shown._repr_html_()
    (True, True)
    """

    def _repr_html_(self) -> str:
        return "\n".join(one._repr_html_() for one in self)


def _coloured(word: TokenScore) -> str:
    share = min(1.0, abs(word.score))
    colour = f"rgba(31, 119, 180, {0.6 * share:.2f})"
    style = f"background: {colour}" if word.score > 0 else f"border-bottom: 3px solid {colour}"
    return f'<span style="{style}" title="{word.score:+.2f}">{html.escape(word.token)}</span>'
