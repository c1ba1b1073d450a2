"""Batch sizes and epochs from the amount of text, so that a stage takes enough steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["FEWEST_STEPS", "classifier_sizes", "language_model_sizes", "words_in"]

# Below that a classifier had not learnt what it could, whatever the set (docs/command-line.md).
FEWEST_STEPS = 150
_LM_STEPS = 1000


def words_in(texts: Sequence[str]) -> int:
    """Return about how many tokens there are in texts, each with its mark.

    >>> words_in(["a fine film", "dull"])
    6

    Args:
        texts: any.
    """
    return sum(len(text.split()) + 1 for text in texts)


def classifier_sizes(rows: int) -> tuple[int, int]:
    """Return the batch size and epochs of a classifier.

    >>> [classifier_sizes(rows) for rows in (50, 600, 2000, 100_000)]
    [(8, 20), (16, 10), (32, 10), (64, 5)]

    Args:
        rows: texts to train on.
    """
    batch_size = min(64, max(8, 2 ** round(math.log2(max(1, rows) / 40))))
    wanted = math.ceil(2 * FEWEST_STEPS / math.ceil(max(1, rows) / batch_size))
    return batch_size, min(20, max(10 if rows < 10_000 else 5, wanted))


def language_model_sizes(words: int, bptt: int = 40) -> tuple[int, int]:
    """Return the batch size and epochs of a language model.

    >>> [language_model_sizes(words) for words in (1_000, 12_000, 200_000, 10_000_000)]
    [(4, 20), (8, 20), (16, 4), (16, 1)]

    Args:
        words: of the corpus, about.
        bptt: of a step.
    """
    # At least two steps an epoch, or none is left to learn from what it said.
    batch_size = next((n for n in (16, 8, 4, 2) if words >= 20 * n * bptt), 4)
    batch_size = min(batch_size, max(1, words // (2 * bptt)))
    return batch_size, min(20, max(1, math.ceil(_LM_STEPS * batch_size * bptt / max(1, words))))
