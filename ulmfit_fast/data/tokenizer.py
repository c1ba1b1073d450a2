"""From texts to ids and back: the xx-rules, then a word or a subword model."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data import huggingface
from ulmfit_fast.data.rules import Piece, apply_rules, chunk_pieces, restore_text, split_chunks
from ulmfit_fast.data.texts import CheckedTexts, text_blocks
from ulmfit_fast.data.vocab import BOS, SPECIALS, UNK, Vocab, check_vocabulary_limits

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

__all__ = ["Kind", "Tokenizer"]

Kind = Literal["word", "subword"]
Ids = npt.NDArray[np.int32]

_FORMAT = "ulmfit_fast tokenizer"
_VERSION = 1
_CACHED_CHUNKS = 200_000


class Tokenizer:
    """Turns texts into ids by the xx-rules and a vocabulary of words or subwords.

    Each text starts with `xxbos`; capitals and repetitions become marks (see `data.rules`); blanks
    and line ends only separate. On the word level, `n't`, `'s` and their like, punctuation and
    hyphens are split off, and numbers and dotted names ("3.14", "nn.linear") stay whole. This is
    close to spaCy's blank English tokenizer, with these differences: abbreviations ("e.g.", "Mr.")
    lose their last dot, emoticons and runs of punctuation are split into characters, every hyphen
    and every slash stands alone, "10km" stays whole, line ends are no tokens.

    A text never yields the id of a mark that the rules did not set: who writes "xxpad" or "xxbos"
    in a text gets `xxunk`.

    >>> tokenizer = Tokenizer.train(["The cat sat.", "The dog sat."], min_freq=1)
    >>> tokenizer.tokens("The CAT sat!!!")
    ['xxbos', 'xxmaj', 'the', 'xxup', 'cat', 'sat', 'xxrep', '3', '!']
    >>> ids = tokenizer.encode_batch(["The dog sat."])[0]
    >>> ids
    array([ 2,  8, 11, 13, 10,  9], dtype=int32)
    >>> tokenizer.decode(ids)
    'The dog sat.'
    """

    def __init__(self, kind: Kind, vocab: Vocab, model: HFTokenizer, scores: list[float]) -> None:
        """Put the parts together; `train` and `from_json` make them."""
        self.kind: Kind = kind
        self.vocab = vocab
        self._model = model
        self._scores = scores

    @classmethod
    def from_vocab(cls, vocab: Vocab) -> Tokenizer:
        """Return a word-level tokenizer with this vocabulary.

        >>> Tokenizer.from_vocab(Vocab(["cat"])).encode_batch(["cat dog"])[0].tolist()
        [2, 9, 0]
        """
        return cls("word", vocab, huggingface.word_model(vocab.words), [])

    @classmethod
    def _from_pieces(cls, pieces: list[tuple[str, float]]) -> Tokenizer:
        vocab = Vocab([piece for piece, _ in pieces])
        return cls(
            "subword", vocab, huggingface.subword_model(pieces), [score for _, score in pieces]
        )

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: Kind = "word",
        max_vocab: int = 60_000,
        min_freq: int = 3,
    ) -> Tokenizer:
        """Learn a vocabulary from texts; the same texts give the same vocabulary.

        Args:
            texts: any iterable of strings, read once.
            kind: "word"; or "subword", a unigram model after NFKC, which also serves languages
                written without blanks.
            max_vocab: largest number of words or pieces, the nine specials among them. For
                subwords 15,000 to 30,000 are usual.
            min_freq: a word with fewer occurrences is left out; without effect on subwords.

        Returns:
            A tokenizer with that vocabulary.

        Raises:
            TypeError: if texts is one string, or one of the texts is no string.
            ValueError: if there are no texts, no word is frequent enough, or an option is wrong.
        """
        if kind not in ("word", "subword"):
            raise ValueError(f"kind is {kind!r}, expected 'word' or 'subword'")
        check_vocabulary_limits(max_vocab, min_freq, name="max_vocab")
        checked = CheckedTexts(texts)
        if kind == "subword":
            ruled = (_normalised_for_subwords(text) for text in checked)
            result = cls._from_pieces(huggingface.train_subword_pieces(ruled, max_vocab))
        else:
            result = cls.from_vocab(
                Vocab.build(huggingface.count_words(checked), max_vocab, min_freq)
            )
        if checked.count == 0:
            raise ValueError("texts is empty, expected at least one text")
        if len(result.vocab) == len(SPECIALS):
            raise ValueError(
                f"no word of the {checked.count} texts is left with min_freq={min_freq} and "
                f"max_vocab={max_vocab}; lower min_freq, raise max_vocab or pass more text"
            )
        return result

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of one text as strings; words outside the vocabulary are shown too.

        Args:
            text: any string.

        Returns:
            The tokens, `xxbos` first; a special that the text spells out is `xxunk`.
        """
        shown = [SPECIALS[BOS]]
        for piece in apply_rules(self._prepared(text)):
            if isinstance(piece, int):
                shown.append(SPECIALS[piece])
                continue
            if self.kind == "word":
                words = huggingface.split_words(self._model, piece)
            else:
                words = self._model.encode(piece, add_special_tokens=False).tokens
            shown += [SPECIALS[UNK] if word in SPECIALS else word for word in words]
        return shown

    def encode_batch(self, texts: Iterable[str]) -> list[Ids]:
        """Turn texts into ids.

        Args:
            texts: any iterable of strings; an empty string gives `[xxbos]`.

        Returns:
            For each text int32 ids of shape `(N,)`, `xxbos` (2) first.

        Raises:
            TypeError: if texts is one string, or one of the texts is no string.
        """
        ids: list[Ids] = []
        known: dict[Piece, bytes] = dict(_MARKS)
        for block in text_blocks(CheckedTexts(texts)):
            chunked = [split_chunks(self._prepared(text)) for text in block]
            if len(known) > _CACHED_CHUNKS:
                known = dict(_MARKS)
            self._learn(set().union(*chunked).difference(known), known)
            for chunks in chunked:
                buffer = bytearray(_MARKS[BOS])
                buffer += b"".join(map(known.__getitem__, chunks))
                ids.append(np.frombuffer(buffer, dtype=np.int32))
        return ids

    def _learn(self, chunks: set[Piece], known: dict[Piece, bytes]) -> None:
        """Add the ids of chunks to `known`; texts repeat most of their chunks."""
        pieces = {chunk: chunk_pieces(chunk) for chunk in chunks if isinstance(chunk, str)}
        strings = sorted({p for ps in pieces.values() for p in ps if isinstance(p, str)})
        encodings = self._model.encode_batch(strings, add_special_tokens=False)
        ids_of: dict[Piece, bytes] = dict(_MARKS)
        for string, encoding in zip(strings, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int32)
            # A special that is spelled out in the text is a word that nobody knows.
            ids[ids < len(SPECIALS)] = UNK
            ids_of[string] = ids.tobytes()
        for chunk, parts in pieces.items():
            known[chunk] = b"".join(map(ids_of.__getitem__, parts))

    def _prepared(self, text: str) -> str:
        return unicodedata.normalize("NFKC", text) if self.kind == "subword" else text

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids back into text as far as the rules can be undone.

        Args:
            ids: ids of one text, as integers, an array or a 1-D tensor.

        Returns:
            The text, without `xxpad`, `xxbos`, `xxeos` and `xxfld`; an unknown word is "xxunk".

        Raises:
            ValueError: for an id outside the vocabulary.
        """
        words: list[Piece] = []
        for item in ids:
            index = int(item)
            if not 0 <= index < len(self.vocab):
                raise ValueError(
                    f"id {index} is outside the vocabulary, expected 0 to {len(self.vocab) - 1}"
                )
            if index < len(SPECIALS):
                words.append(index)
                continue
            word = self.vocab.words[index]
            if self.kind == "subword":
                starts_word = word.startswith(huggingface.SPACE_MARK)
                word = word.removeprefix(huggingface.SPACE_MARK)
                if not starts_word and words and isinstance(words[-1], str):
                    words[-1] += word
                    continue
            words.append(word)
        return restore_text(words)

    def to_json(self) -> str:
        """Return everything there is to the tokenizer as JSON."""
        content: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": self.kind,
            "words": self.vocab.words,
        }
        if self.kind == "subword":
            content["scores"] = self._scores
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Read what `to_json` wrote.

        >>> tokenizer = Tokenizer.from_vocab(Vocab(["cat"]))
        >>> Tokenizer.from_json(tokenizer.to_json()).vocab == tokenizer.vocab
        True

        Raises:
            ValueError: if the text is something else, or of a newer version.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the tokenizer is not valid JSON ({error}); save it anew") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(
                f"the tokenizer starts with {text[:40]!r}, expected what Tokenizer.to_json writes"
            )
        if content.get("version") != _VERSION:
            raise ValueError(
                f"the tokenizer has version {content.get('version')!r}, expected {_VERSION}; "
                "update ulmfit_fast"
            )
        vocab = Vocab.from_json(json.dumps(content.get("words")))
        if content.get("kind") == "word":
            return cls.from_vocab(vocab)
        scores = content.get("scores")
        if not isinstance(scores, list) or len(scores) != len(vocab):
            raise ValueError(
                f"the tokenizer has kind {content.get('kind')!r}, expected 'word', or 'subword' "
                "with a score for each piece; save it anew"
            )
        return cls._from_pieces(list(zip(vocab.words, scores, strict=True)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as JSON, independent of the version of the library underneath."""
        return (Tokenizer.from_json, (self.to_json(),))

    def __repr__(self) -> str:
        """Show the kind and the size."""
        return f"Tokenizer(kind={self.kind!r}, vocabulary of {len(self.vocab)})"


_MARKS: dict[Piece, bytes] = {i: np.array([i], np.int32).tobytes() for i in range(len(SPECIALS))}


def _normalised_for_subwords(text: str) -> str:
    pieces = apply_rules(unicodedata.normalize("NFKC", text))
    return " ".join(piece for piece in pieces if isinstance(piece, str))
