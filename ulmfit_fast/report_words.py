"""Texts whose words are coloured by what they add to a prediction."""

from __future__ import annotations

import html
from collections.abc import Sequence

from .report import Explanation, WordScore
from .report_template import PAGE, STYLE, WORDS_OPENING

__all__ = ["coloured_words", "render_explanations"]

_FAINT = 0.05


def coloured_words(words: Sequence[WordScore]) -> str:
    """Write words as HTML, filled where they speak for a prediction, underlined where against.

    >>> print(coloured_words([{"word": "<good>", "score": 1.0}, {"word": "film", "score": 0.01}]))
    <span class="word for" style="--share: 1.00" title="+1.00">&lt;good&gt;</span>
    <span class="word" title="+0.01">film</span>

    Args:
        words: each with its score; beyond -1 and 1 the colour is the strongest one.

    Returns:
        One element a word, texts escaped.
    """
    return "\n".join(_word(entry) for entry in words)


def _word(entry: WordScore) -> str:
    score = float(entry["score"])
    share = min(abs(score), 1.0)
    kind, style = "word", ""
    if share >= _FAINT:
        kind = "word for" if score > 0 else "word against"
        style = f' style="--share: {share:.2f}"'
    return f'<span class="{kind}"{style} title="{score:+.2f}">{html.escape(entry["word"])}</span>'


def render_explanations(explanations: Sequence[Explanation]) -> str:
    """Compose a page of explained texts.

    >>> "<h2>" in render_explanations([])
    True

    Args:
        explanations: what `saliency.explain` found, each after `to_report`.

    Returns:
        An HTML document that refers to nothing outside itself.
    """
    articles = [
        f"<article><p><strong>{html.escape(entry['label'])}</strong> "
        f'<span class="note">probability {entry["probability"]:.3f}</span></p>\n'
        f'<p class="words">{coloured_words(entry["words"])}</p></article>'
        for entry in explanations
    ]
    count = f"{len(articles):,} text{'' if len(articles) == 1 else 's'}"
    sections = "\n".join([WORDS_OPENING, f"<h2>{count}</h2>", *articles])
    return PAGE.format(
        style=STYLE, title="Why the classifier says so", sections=sections, footer="ulmfit_fast"
    )
