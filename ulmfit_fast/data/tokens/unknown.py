"""Which share of a corpus' words a model's vocabulary lacks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data.tokens.vocab import SPECIALS, UNK, Vocab

__all__ = ["LARGEST_SHARE", "UnknownWords", "log_unknown_words", "unknown_words"]

# A logger of its own, which the command line shows.
_log = logging.getLogger("ulmfit_fast.vocabulary")

LARGEST_SHARE = 0.2
_TOKENS = 2**20
_SPECIALS = len(SPECIALS)

AnyIds = npt.NDArray[np.integer[Any]]


class UnknownWords(NamedTuple):
    """What a vocabulary lacks of a corpus.

    Attributes:
        running: share of the corpus' words, each as often as it occurs.
        distinct: share of its distinct words; None where those outside the vocabulary are not told
            apart.
        words: the number of distinct words.
    """

    running: float
    distinct: float | None
    words: int


def unknown_words(documents: Iterable[AnyIds], vocab: Vocab, known: Vocab) -> UnknownWords:
    """Return the share of a corpus' words that a vocabulary lacks; marks are no words.

    Where the corpus has a vocabulary of its own, words too rare for that do not count.

    >>> documents = [np.array([2, 9, 9, 9, 10]), np.array([2, 0])]
    >>> unknown_words(documents, Vocab(["cat", "dog"]), Vocab(["dog"]))
    UnknownWords(running=0.75, distinct=0.5, words=2)
    >>> own = Vocab(["cat", "dog"])
    >>> unknown_words(documents, own, own)
    UnknownWords(running=0.2, distinct=None, words=2)

    Args:
        documents: token ids of each text.
        vocab: that of the ids.
        known: the model's vocabulary; the same object where texts are read with it.
    """
    counts = np.zeros(len(vocab), dtype=np.int64)
    for ids in _blocks(documents):
        counts += np.bincount(ids, minlength=len(vocab))
    words = counts[_SPECIALS:]
    distinct = int(np.count_nonzero(words))
    if vocab is known:
        lacking = int(counts[UNK])
        return UnknownWords(lacking / max(1, int(words.sum()) + lacking), None, distinct)
    is_new = vocab.transfer(known).numpy()[_SPECIALS:] < 0
    running = int(words[is_new].sum()) / max(1, int(words.sum()))
    new = int(np.count_nonzero(words[is_new]))
    return UnknownWords(running, new / max(1, distinct), distinct)


def _blocks(documents: Iterable[AnyIds]) -> Iterator[AnyIds]:
    """Join short documents and part long ones: counting takes time a block, and memory an id."""
    block: list[AnyIds] = []
    size = 0
    for document in documents:
        for start in range(0, len(document), _TOKENS):
            block.append(document[start : start + _TOKENS])
            size += len(block[-1])
            if size >= _TOKENS:
                yield np.concatenate(block)
                block, size = [], 0
    if block:
        yield np.concatenate(block)


def log_unknown_words(documents: Iterable[AnyIds], vocab: Vocab, known: Vocab) -> None:
    """Log what `unknown_words` finds, as a warning where it is more than `LARGEST_SHARE`.

    Args:
        documents: token ids of each text.
        vocab: that of the ids.
        known: the model's vocabulary.
    """
    found = unknown_words(documents, vocab, known)
    which = "tokens"
    if found.distinct is not None:
        which = f"running words and {found.distinct:.1%} of its {found.words:,} distinct ones"
    line = f"the model's vocabulary lacks {found.running:.1%} of the text's {which}"
    if found.running > LARGEST_SHARE:
        _log.warning(
            "%s, expected at most %.0f%%; take a model of this language and kind of text, and the "
            "tokenizer that its vocabulary was made with",
            line,
            100 * LARGEST_SHARE,
        )
    else:
        _log.info("%s", line)
