"""The door to Hugging Face `tokenizers`, imported on first use: word splitter and both models."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from ulmfit_fast.data.tokens.rules import Piece, chunk_pieces, split_chunks
from ulmfit_fast.data.tokens.vocab import BOS, SPECIALS

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

__all__ = [
    "begin_with_mark",
    "count_words",
    "errors_of_one_kind",
    "exported_subwords",
    "exported_words",
    "library",
    "split_words",
    "subword_model",
    "train_subword_pieces",
    "word_model",
]

SPACE_MARK = "\u2581"

# Lower-case text without blanks. In turn: "do" of "don't"; "can" of "cannot"; "n't"; "'s" and its
# like; a word or number, with the dots and commas inside it; any other character on its own.
_QUOTE = "['\u2019]"
_WORD_PATTERN = (
    rf"\w+?(?=n{_QUOTE}t(?!\w))|(?<!\w)can(?=not(?!\w))"
    rf"|n{_QUOTE}t(?!\w)|{_QUOTE}(?:s|m|d|ll|re|ve)(?!\w)"
    r"|\w+(?:(?:\.\w|(?<=\d)[,:]\d)\w*)*"
    r"|[^\w\s]"
)


@functools.cache
def library() -> ModuleType:
    """Import the library `tokenizers`, or say how to install it."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "the tokenizer needs the package tokenizers; pip install 'ulmfit-fast[text]'"
        ) from error
    if hasattr(os, "register_at_fork"):
        _quiet_fork()
    return tokenizers


@contextmanager
def errors_of_one_kind() -> Iterator[None]:
    """Let what the library raises be a ValueError: a bare Exception, or a panic, which is none."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the library tokenizers gave up: {error!s:.200}") from error


def _quiet_fork() -> None:
    """Make a forked child encode in one thread, and say nothing about it.

    The library's worker threads do not survive a fork. Up to version 0.22 it notices, turns itself
    serial and prints a warning, unless this variable says so at the moment of the fork.
    """
    name = "TOKENIZERS_PARALLELISM"
    ours = False

    def before() -> None:
        nonlocal ours
        ours = name not in os.environ
        if ours:
            os.environ[name] = "false"

    def after_in_parent() -> None:
        if ours:
            os.environ.pop(name, None)

    os.register_at_fork(before=before, after_in_parent=after_in_parent)


def word_model(words: Sequence[str]) -> HFTokenizer:
    """Return a model that splits a chunk into words and knows these words."""
    hf = library()
    ids = {word: index for index, word in enumerate(words)}
    model = hf.Tokenizer(hf.models.WordLevel(ids, unk_token=SPECIALS[0]))
    pattern = hf.Regex(_WORD_PATTERN)
    model.pre_tokenizer = hf.pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    return model  # type: ignore[no-any-return]


def subword_model(pieces: Sequence[tuple[str, float]]) -> HFTokenizer:
    """Return a unigram model over pieces and their log probabilities."""
    hf = library()
    model = hf.Tokenizer(hf.models.Unigram([(p, float(s)) for p, s in pieces], unk_id=0))
    model.pre_tokenizer = hf.pre_tokenizers.Metaspace(replacement=SPACE_MARK)
    return model  # type: ignore[no-any-return]


def exported_words(words: Sequence[str]) -> HFTokenizer:
    """Return a tokenizer of ruled texts, whose marks are words of the model."""
    return begin_with_mark(word_model(words))


def exported_subwords(pieces: Sequence[tuple[str, float]]) -> HFTokenizer:
    """Return a tokenizer of ruled texts, whose marks are cut out before the model sees a word."""
    hf = library()
    model = subword_model(pieces)
    # The blanks on either side go with the mark, or they would become a piece of their own.
    model.add_special_tokens(
        [hf.AddedToken(s, lstrip=True, rstrip=True, special=True) for s in SPECIALS]
    )
    return begin_with_mark(model)


def begin_with_mark(model: HFTokenizer) -> HFTokenizer:
    """Let a tokenizer put `xxbos` in front of each text; return it."""
    bos = SPECIALS[BOS]
    model.post_processor = library().processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, BOS)]
    )
    return model


# In the Unigram trainer of `tokenizers`: what it adds from one uncovered character to the next.
_UNCOVERED_STEP = 1e-4


def train_subword_pieces(texts: Iterable[str], max_vocab: int) -> list[tuple[str, float]]:
    """Train a unigram model and return its pieces, the specials first."""
    hf = library()
    model = hf.Tokenizer(hf.models.Unigram())
    model.pre_tokenizer = hf.pre_tokenizers.Metaspace(replacement=SPACE_MARK)
    trainer = hf.trainers.UnigramTrainer(
        vocab_size=max_vocab,
        special_tokens=list(SPECIALS),
        unk_token=SPECIALS[0],
        show_progress=False,
    )
    too_small = (
        f"max_vocab is {max_vocab}, expected room for the {len(SPECIALS)} specials and every "
        "distinct character of the texts; raise max_vocab"
    )
    try:
        model.train_from_iterator(texts, trainer)
    except Exception as error:
        if "not large enough" not in str(error):
            raise
        raise ValueError(too_small) from error
    learnt = json.loads(model.to_str())["model"]["vocab"][len(SPECIALS) :]
    # Texts that spell a special out may have taught it as a piece of their own.
    pieces = [(piece, score) for piece, score in learnt if piece not in SPECIALS]
    # The trainer makes room for the characters and leaves the specials out of account.
    if len(SPECIALS) + len(pieces) > max_vocab:
        raise ValueError(too_small)
    # The trainer sums in any order: without the rounding equal pieces would swap ids between runs.
    rounded = _without_hash_order([(piece, round(score, 9)) for piece, score in pieces])
    rounded.sort(key=lambda item: (-item[1], item[0]))
    return [(special, 0.0) for special in SPECIALS] + rounded


def _without_hash_order(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Give all characters that no learnt piece covers the lowest score.

    The trainer gives each of them a step more than the one before, in the order of a hash that
    another run does not repeat.

    >>> _without_hash_order([("a", -1.0), ("c", -3.9999), ("bc", -4.0), ("b", -4.0)])
    [('a', -1.0), ('c', -4.0), ('bc', -4.0), ('b', -4.0)]
    """
    lowest = min((score for _, score in pieces), default=0.0)
    steps = {round(lowest + n * _UNCOVERED_STEP, 9) for n in range(len(pieces))}
    return [
        (piece, lowest if len(piece) == 1 and score in steps else score) for piece, score in pieces
    ]


def split_words(model: HFTokenizer, chunk: str) -> list[str]:
    """Split a lower-case chunk as the model does, without looking the words up."""
    return [word for word, _ in model.pre_tokenizer.pre_tokenize_str(chunk)]


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Count the words of texts; each distinct chunk is split only once."""
    chunks: Counter[Piece] = Counter()
    for text in texts:
        chunks.update(split_chunks(text))
    splitter = word_model(SPECIALS)
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for piece in chunk_pieces(chunk) if isinstance(chunk, str) else ():
            if isinstance(piece, str):
                for word in split_words(splitter, piece):
                    words[word] += count
    return words
