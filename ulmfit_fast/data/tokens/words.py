"""What turns texts into ids and back behind `Tokenizer`; here words and subwords with the rules.

The library `tokenizers` of Hugging Face, which splits words and has both models, is imported on
first use.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data.tokens.rules import (
    Piece,
    apply_rules,
    chunk_pieces,
    restore_text,
    split_chunks,
)
from ulmfit_fast.data.tokens.texts import text_blocks
from ulmfit_fast.data.tokens.vocab import BOS, SPECIALS, UNK, Vocab

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

__all__ = [
    "SPACE_MARK",
    "Encoder",
    "Engine",
    "Ids",
    "SubwordEngine",
    "WordEngine",
    "begin_with_mark",
    "count_words",
    "errors_of_one_kind",
    "library",
    "prepared_for_subwords",
    "train_subword_pieces",
]

Ids = npt.NDArray[np.int32]
Encoder = Callable[[list[str]], list[Ids]]

_CACHED_CHUNKS = 200_000
# A longer chunk hardly comes again; a language without blanks has nothing but long ones.
_LONGEST_CACHED = 100
# The library takes a few hundred bytes for every token that it has not given back yet.
_CHARACTERS_AT_ONCE = 250_000
_SPELLED = re.compile("|".join(SPECIALS))
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


class Engine(Protocol):
    """One kind of tokenizer, with its vocabulary."""

    vocab: Vocab

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text, `xxbos` first, also those outside the vocabulary."""

    def encoder(self) -> Encoder:
        """Return a function from texts to their ids; it may remember words between calls."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids that are all within the vocabulary."""

    def content(self) -> dict[str, Any]:
        """Return what JSON has to hold besides the words."""

    def to_huggingface(self) -> HFTokenizer:
        """Return a tokenizer of the library `tokenizers` with the same ids."""


class WordEngine:
    """The rules, then words by a pattern."""

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        self.model = word_model(vocab.words)

    def prepared(self, text: str) -> str:
        """Return a text as the rules expect it."""
        return text

    def split(self, piece: str) -> list[str]:
        """Return the words of a lower-case piece."""
        return split_words(self.model, piece)

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        shown = [SPECIALS[BOS]]
        for piece in apply_rules(self.prepared(text)):
            if isinstance(piece, int):
                shown.append(SPECIALS[piece])
            else:
                shown += [SPECIALS[UNK] if w in SPECIALS else w for w in self.split(piece)]
        return shown

    def ruled(self, text: str) -> str:
        """Return a text after the rules, marks spelled out, as `to_huggingface` takes it."""
        shown: list[str] = []
        for piece in apply_rules(self.prepared(text)):
            if isinstance(piece, int):
                shown.append(SPECIALS[piece])
            else:
                # Who spells a mark has written a word that nobody knows.
                spelled = any(special in piece for special in SPECIALS)
                shown.append(self.without_marks(piece) if spelled else piece)
        return " ".join(shown)

    def without_marks(self, piece: str) -> str:
        """Return a piece with `xxunk` for the specials that it spells."""
        words = self.split(piece)
        return " ".join(SPECIALS[UNK] if word in SPECIALS else word for word in words)

    def encoder(self) -> Encoder:
        """Return an encoder that treats each distinct chunk of its texts once."""
        return _ChunkEncoder(self.model, self.prepared)

    def decode(self, ids: list[int]) -> str:
        """Return the text, as far as the rules can be undone."""
        words = self.vocab.words
        return restore_text(index if index < len(SPECIALS) else words[index] for index in ids)

    def content(self) -> dict[str, Any]:
        """Return nothing: the words are all there is."""
        return {}

    def to_huggingface(self) -> HFTokenizer:
        """Return the model that comes after the rules."""
        return exported_words(self.vocab.words)


class SubwordEngine(WordEngine):
    """NFKC, the rules, then a unigram model."""

    def __init__(self, vocab: Vocab, scores: list[float]) -> None:
        self.vocab = vocab
        self.scores = scores
        self.model = subword_model(list(zip(vocab.words, scores, strict=True)))

    def prepared(self, text: str) -> str:
        """Return a text as the rules expect it."""
        return unicodedata.normalize("NFKC", text)

    def split(self, piece: str) -> list[str]:
        """Return the subwords of a lower-case piece."""
        tokens: list[str] = self.model.encode(piece, add_special_tokens=False).tokens
        return tokens

    def without_marks(self, piece: str) -> str:
        """Return a piece with `xxunk` for the specials that it spells."""
        return _SPELLED.sub(f" {SPECIALS[UNK]} ", piece).strip()

    def decode(self, ids: list[int]) -> str:
        """Return the text, as far as the rules can be undone."""
        words: list[Piece] = []
        for index in ids:
            if index < len(SPECIALS):
                words.append(index)
                continue
            piece = self.vocab.words[index]
            word = piece.removeprefix(SPACE_MARK)
            last = words[-1] if words and word == piece else None
            if isinstance(last, str):
                words[-1] = last + word
            else:
                words.append(word)
        return restore_text(words)

    def content(self) -> dict[str, Any]:
        """Return the scores of the pieces."""
        return {"scores": self.scores}

    def to_huggingface(self) -> HFTokenizer:
        """Return the model that comes after the rules."""
        return exported_subwords(list(zip(self.vocab.words, self.scores, strict=True)))


class _ChunkEncoder:
    """Encodes texts and remembers the ids of chunks; texts repeat most of theirs."""

    def __init__(self, model: HFTokenizer, prepared: Callable[[str], str]) -> None:
        self._model = model
        self._prepared = prepared
        self._known: dict[Piece, bytes] = dict(_MARKS)

    def __call__(self, texts: list[str]) -> list[Ids]:
        chunked = [split_chunks(self._prepared(text)) for text in texts]
        if len(self._known) > _CACHED_CHUNKS:
            self._known = dict(_MARKS)
        known = self._known
        new = set().union(*chunked).difference(known)
        self._learn(new)
        ids: list[Ids] = []
        for chunks in chunked:
            buffer = bytearray(_MARKS[BOS])
            buffer += b"".join(map(known.__getitem__, chunks))
            ids.append(np.frombuffer(buffer, dtype=np.int32))
        for chunk in new:
            if isinstance(chunk, str) and len(chunk) > _LONGEST_CACHED:
                del known[chunk]
        return ids

    def _learn(self, chunks: set[Piece]) -> None:
        pieces = {chunk: chunk_pieces(chunk) for chunk in chunks if isinstance(chunk, str)}
        strings = sorted({p for ps in pieces.values() for p in ps if isinstance(p, str)})
        ids_of: dict[Piece, bytes] = dict(_MARKS)
        for part in text_blocks(strings, _CHARACTERS_AT_ONCE):
            encodings = self._model.encode_batch_fast(part, add_special_tokens=False)
            for string, encoding in zip(part, encodings, strict=True):
                ids_of[string] = b"".join([_as_bytes(index) for index in encoding.ids])
        for chunk, parts in pieces.items():
            self._known[chunk] = b"".join(map(ids_of.__getitem__, parts))


def _as_bytes(index: int) -> bytes:
    # A special that is spelled out in the text is a word that nobody knows.
    return _MARKS[UNK] if index < len(SPECIALS) else index.to_bytes(4, _BYTE_ORDER)


_BYTE_ORDER = sys.byteorder
_MARKS: dict[Piece, bytes] = {i: i.to_bytes(4, _BYTE_ORDER) for i in range(len(SPECIALS))}


def prepared_for_subwords(texts: Iterable[str]) -> Iterable[str]:
    """Yield what of each text a unigram model learns from: its words, without marks."""
    for text in texts:
        pieces = apply_rules(unicodedata.normalize("NFKC", text))
        yield " ".join(piece for piece in pieces if isinstance(piece, str))


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
