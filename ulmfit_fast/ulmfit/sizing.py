"""Batch sizes and epochs from the amount of text, so that a stage takes enough steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ulmfit_fast.training.settings import TrainingSettings

__all__ = [
    "classifier_sizes",
    "language_model_sizes",
    "too_few_lm_steps",
    "too_few_steps",
    "words_in",
]

_CLASSIFIER_STEPS, _LM_STEPS = 2500, 1000
_MOST_EPOCHS = 20


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

    A batch is the power of two near a hundredth of the rows, from 8 to 64; epochs are as many as
    take 2,500 steps, from 5 to 20. docs/small-data.md has the measurements.

    >>> [classifier_sizes(rows) for rows in (50, 600, 2000, 20_000, 100_000)]
    [(8, 20), (8, 20), (16, 20), (64, 8), (64, 5)]

    Args:
        rows: texts to train on.
    """
    batch_size = min(64, max(8, 2 ** round(math.log2(max(1, rows) / 100))))
    wanted = math.ceil(_CLASSIFIER_STEPS * batch_size / max(1, rows))
    return batch_size, min(_MOST_EPOCHS, max(5, wanted))


def too_few_steps(settings: TrainingSettings, rows: int, *, is_sized: bool) -> str | None:
    """Return what is to be said of a classifier that takes less than half the steps it should.

    Args:
        settings: how it is trained.
        rows: texts to train on.
        is_sized: whether the rows decide what the caller leaves out, and no published preset does.
    """
    batch_size, epochs = classifier_sizes(rows)
    steps = settings.epochs * -(-rows // settings.batch_size)
    enough = epochs * -(-rows // batch_size)
    if 2 * steps >= enough:
        return None
    # Where they are left out, a published preset has its own.
    mend = "leave batch size and epochs out to take these" if is_sized else "pass these two"
    return (
        f"the classifier takes {_counted(steps, 'step')} (batch size {settings.batch_size}, "
        f"{_counted(settings.epochs, 'epoch')}); where it was measured, {enough:,} did better "
        f"(batch size {batch_size}, {_counted(epochs, 'epoch')}): {mend}"
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def too_few_lm_steps(settings: TrainingSettings, words: int) -> str | None:
    """Return what is to be said of a language model that takes less than half the steps it should.

    Args:
        settings: how it is trained.
        words: of the corpus, about.
    """
    batch_size, epochs = language_model_sizes(words, settings.bptt)

    def steps_of(batch_size: int, epochs: int) -> int:
        # As batches are cut: the last one is shorter, and the last word is a target alone.
        return epochs * max(1, -(-((words - 1) // batch_size) // settings.bptt))

    steps, enough = steps_of(settings.batch_size, settings.epochs), steps_of(batch_size, epochs)
    if 2 * steps >= enough:
        return None
    return (
        f"the language model takes {_counted(steps, 'step')} (batch size {settings.batch_size}, "
        f"{_counted(settings.epochs, 'epoch')}); on as much text `train` takes {enough:,} (batch "
        f"size {batch_size}, {_counted(epochs, 'epoch')})"
    )


def language_model_sizes(words: int, bptt: int = 40) -> tuple[int, int]:
    """Return the batch size and epochs of a language model.

    A batch of 16, or less where an epoch would have fewer than 20 steps; epochs are as many as take
    1,000 steps, from 1 to 20.

    >>> [language_model_sizes(words) for words in (1_000, 12_000, 200_000, 10_000_000)]
    [(4, 20), (8, 20), (16, 4), (16, 1)]

    Args:
        words: of the corpus, about.
        bptt: of a step.
    """
    batch_size = next((n for n in (16, 8, 4) if words >= 20 * n * bptt), 4)
    # At least two steps an epoch.
    batch_size = min(batch_size, max(1, words // (2 * bptt)))
    wanted = math.ceil(_LM_STEPS * batch_size * bptt / max(1, words))
    return batch_size, min(_MOST_EPOCHS, max(1, wanted))
