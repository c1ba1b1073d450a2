"""What turns texts into ids and back behind `Tokenizer`; here words and subwords with the rules."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data.tokens import huggingface
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

__all__ = ["Encoder", "Engine", "Ids", "SubwordEngine", "WordEngine", "prepared_for_subwords"]

Ids = npt.NDArray[np.int32]
Encoder = Callable[[list[str]], list[Ids]]

_CACHED_CHUNKS = 200_000
# A longer chunk hardly comes again; a language without blanks has nothing but long ones.
_LONGEST_CACHED = 100
# The library takes a few hundred bytes for every token that it has not given back yet.
_CHARACTERS_AT_ONCE = 250_000
_SPELLED = re.compile("|".join(SPECIALS))


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
        self.model = huggingface.word_model(vocab.words)

    def prepared(self, text: str) -> str:
        """Return a text as the rules expect it."""
        return text

    def split(self, piece: str) -> list[str]:
        """Return the words of a lower-case piece."""
        return huggingface.split_words(self.model, piece)

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
        return huggingface.exported_words(self.vocab.words)


class SubwordEngine(WordEngine):
    """NFKC, the rules, then a unigram model."""

    def __init__(self, vocab: Vocab, scores: list[float]) -> None:
        self.vocab = vocab
        self.scores = scores
        self.model = huggingface.subword_model(list(zip(vocab.words, scores, strict=True)))

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
            word = piece.removeprefix(huggingface.SPACE_MARK)
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
        return huggingface.exported_subwords(list(zip(self.vocab.words, self.scores, strict=True)))


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
