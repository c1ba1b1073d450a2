"""From texts to ids and back, by words, subwords, spaCy or a tokenizer.json of Hugging Face."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from ulmfit_fast.data.tokens.huggingface import HuggingFaceEngine, import_tokenizer
from ulmfit_fast.data.tokens.spacy_words import SpacyEngine, count_spacy_words
from ulmfit_fast.data.tokens.texts import CheckedTexts, text_blocks
from ulmfit_fast.data.tokens.vocab import SPECIALS, Vocab, check_vocabulary_limits, vocabulary_of
from ulmfit_fast.data.tokens.words import (
    Encoder,
    Engine,
    Ids,
    SubwordEngine,
    WordEngine,
    count_words,
    prepared_for_subwords,
    train_subword_pieces,
)
from ulmfit_fast.system.files import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

__all__ = ["TRAINABLE_KINDS", "Kind", "Tokenizer", "largest_json"]

Kind = Literal["word", "subword", "spacy", "huggingface"]
TRAINABLE_KINDS = ("word", "subword", "spacy")

_FORMAT = "ulmfit_fast tokenizer"
# Of the logarithm of a probability; neither NaN nor an infinity is below it.
_LARGEST_SCORE = 1e6
_VERSION = 1


class Tokenizer:
    """Turns texts into ids by rules and a vocabulary of words or subwords.

    There are four kinds. "word" and "subword" apply the xx-rules: each text starts with `xxbos`;
    capitals and repetitions become marks (see `data.rules`); blanks and line ends only separate. On
    the word level, `n't`, `'s` and their like, punctuation and hyphens are split off, and numbers
    and dotted names ("3.14", "nn.linear") stay whole. This is close to fastai's tokens, the
    xx-rules before spaCy's blank English tokenizer, with these differences: spaCy's exceptions
    are not known (there abbreviations keep their last dot, emoticons stay whole and "gonna",
    "dont" and "id" are split); units stay on their numbers ("10km"); every hyphen stands alone,
    and so does any other sign within a word or beside signs ("a@b", "x=y", ".5"); any "n't" is
    split off; "..." becomes `xxrep 3 .` instead of "…"; three slashes become no `xxrep`; one
    capital before signs ("A,") has no `xxup`; capitals beyond A to Z are marked; two runs of
    words side by side are both marked, and so is a run behind a "#"; HTML is undone properly;
    line ends are no tokens.

    "spacy" gives the token lists of fastai v2 (see `data.spacy_words`), at spaCy's speed, and
    "huggingface" is a tokenizer.json of another language or model (see `from_huggingface`).

    But for "spacy", a text never yields the id of a mark that the rules did not set: who writes
    "xxpad" or "xxbos" in a text gets `xxunk`.

    >>> tokenizer = Tokenizer.train(["The cat sat.", "The dog sat."], min_freq=1)
    >>> tokenizer.tokens("The CAT sat!!!")
    ['xxbos', 'xxmaj', 'the', 'xxup', 'cat', 'sat', 'xxrep', '3', '!']
    >>> ids = tokenizer.encode_batch(["The dog sat."])[0]
    >>> ids
    array([ 2,  8, 11, 13, 10,  9], dtype=int32)
    >>> tokenizer.decode(ids)
    'The dog sat.'
    """

    def __init__(self, kind: Kind, engine: Engine) -> None:
        """Put the parts together; the class methods make them."""
        self.kind: Kind = kind
        self.vocab = engine.vocab
        self._engine = engine

    @classmethod
    def from_vocab(cls, vocab: Vocab, kind: Literal["word", "spacy"] = "word") -> Tokenizer:
        """Return a word-level tokenizer with this vocabulary.

        >>> Tokenizer.from_vocab(Vocab(["cat"])).encode_batch(["cat dog"])[0].tolist()
        [2, 9, 0]

        Args:
            vocab: its words, such as those of a model trained with fastai.
            kind: "word" or "spacy".

        Raises:
            ImportError: for kind "spacy" if the package spacy is missing.
            ValueError: for another kind.
        """
        if kind not in ("word", "spacy"):
            raise ValueError(f"kind is {kind!r}, expected 'word' or 'spacy', which need words only")
        return cls(kind, WordEngine(vocab) if kind == "word" else SpacyEngine(vocab))

    @classmethod
    def from_huggingface(cls, source: str | os.PathLike[str] | Any) -> Tokenizer:
        """Take over a BPE, unigram, WordPiece or WordLevel tokenizer of Hugging Face.

        Its words keep their order and come after our nine specials. Its unknown word becomes
        `xxunk`; its other special tokens (such as "</s>" or "[CLS]") are left out, and a text that
        spells one is split like any other. Its own normaliser decides on capitals: there are no
        xx-rules. `xxbos` stands in front of every text.

        Args:
            source: the path of a tokenizer.json, a `tokenizers.Tokenizer`, or a fast tokenizer of
                the library transformers.

        Raises:
            FileNotFoundError: if there is no such file.
            ImportError: if the package tokenizers is missing.
            TypeError: if source is something else.
            ValueError: if the file holds no tokenizer, or one with another model.
        """
        return cls("huggingface", HuggingFaceEngine(import_tokenizer(source)))

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: Kind = "word",
        max_vocab: int = 60_000,
        min_freq: int = 3,
        *,
        text_column: str = "text",
    ) -> Tokenizer:
        """Learn a vocabulary from texts; the same texts give the same vocabulary.

        Args:
            texts: any iterable of strings, read once; or a table, as for `read_texts`.
            kind: "word"; "subword", a unigram model after NFKC, which also serves languages
                written without blanks; or "spacy".
            max_vocab: largest number of words or pieces, the nine specials among them. For
                subwords 15,000 to 30,000 are usual.
            min_freq: a word with fewer occurrences is left out; without effect on subwords.
            text_column: column of a table.

        Returns:
            A tokenizer with that vocabulary.

        Raises:
            ImportError: if the package of that kind is missing.
            TypeError: if texts is one string, or one of the texts is no string.
            ValueError: if there are no texts, no word is frequent enough, or an option is wrong; or
                if a table does not have the column exactly once.
        """
        if kind not in TRAINABLE_KINDS:
            raise ValueError(
                f"kind is {kind!r}, expected 'word', 'subword' or 'spacy'; a tokenizer.json comes "
                "in by Tokenizer.from_huggingface"
            )
        check_vocabulary_limits(max_vocab, min_freq, name="max_vocab")
        checked = CheckedTexts(texts, text_column)
        if kind == "subword":
            ruled = prepared_for_subwords(checked)
            result = cls._from_pieces(train_subword_pieces(ruled, max_vocab))
        else:
            count = count_words if kind == "word" else count_spacy_words
            vocab = Vocab.build(count(checked), max_vocab, min_freq)
            result = cls.from_vocab(vocab, "word" if kind == "word" else "spacy")
        if checked.count == 0:
            raise ValueError("texts is empty, expected at least one text")
        if len(result.vocab) == len(SPECIALS):
            raise ValueError(
                f"no word of the {checked.count} texts is left with min_freq={min_freq} and "
                f"max_vocab={max_vocab}; lower min_freq, raise max_vocab or pass more text"
            )
        return result

    @classmethod
    def _from_pieces(cls, pieces: list[tuple[str, float]]) -> Tokenizer:
        vocab = Vocab([piece for piece, _ in pieces])
        return cls("subword", SubwordEngine(vocab, [score for _, score in pieces]))

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of one text as strings; words outside the vocabulary are shown too.

        Args:
            text: any string.

        Returns:
            The tokens, `xxbos` first; a special that the text spells out is `xxunk`, but for kind
            "spacy", which has fastai's tokens.
        """
        return self._engine.tokens(text)

    def encode_batch(self, texts: Iterable[str], *, text_column: str = "text") -> list[Ids]:
        """Turn texts into ids.

        Args:
            texts: any iterable of strings, or a table, as for `read_texts`; an empty string gives
                `[xxbos]`.
            text_column: column of a table.

        Returns:
            For each text int32 ids of shape `(N,)`, `xxbos` (2) first.

        Raises:
            TypeError: if texts is one string, or one of the texts is no string.
            ValueError: if a table does not have the column exactly once.
        """
        encode, checked = self._engine.encoder(), CheckedTexts(texts, text_column)
        return [ids for block in text_blocks(checked) for ids in encode(block)]

    def encoder(self) -> Encoder:
        """Return a function that encodes a list of texts and remembers their words.

        For many lists in a row, as `TokenStore.build` has them; `encode_batch` begins anew each
        time. Not for two threads at once.

        >>> encode = Tokenizer.from_vocab(Vocab(["cat"])).encoder()
        >>> [ids.tolist() for ids in encode(["cat", "a cat"])]
        [[2, 9], [2, 0, 9]]
        """
        encode = self._engine.encoder()
        return lambda texts: encode(list(CheckedTexts(texts)))

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids back into text as far as the rules can be undone.

        Args:
            ids: ids of one text, as integers, an array or a 1-D tensor.

        Returns:
            The text, without `xxpad`, `xxbos`, `xxeos` and `xxfld`; an unknown word is "xxunk".

        Raises:
            ValueError: for an id outside the vocabulary.
        """
        plain = [int(item) for item in ids]
        for index in plain:
            if not 0 <= index < len(self.vocab):
                raise ValueError(
                    f"id {index} is outside the vocabulary, expected 0 to {len(self.vocab) - 1}"
                )
        return self._engine.decode(plain)

    def ruled(self, text: str) -> str:
        """Return a text after the rules, in one string, as the result of `to_huggingface` takes it.

        >>> Tokenizer.from_vocab(Vocab([])).ruled("It's NASA!!!")
        "xxmaj it's xxup nasa xxrep 3 !"

        Args:
            text: any string.

        Returns:
            The text with marks spelled out; as it is for kind "huggingface", which has no rules.

        Raises:
            ValueError: for kind "spacy", see `to_huggingface`.
        """
        if isinstance(self._engine, WordEngine):
            return self._engine.ruled(text)
        if self.kind == "spacy":
            self._engine.to_huggingface()
        return text

    def to_huggingface(self) -> HFTokenizer:
        """Return a tokenizer of the library `tokenizers` that gives the same ids.

        The xx-rules count and lower letters, which that form cannot express. So for "word" and
        "subword" the result takes texts that `ruled` has gone over:
        `to_huggingface().encode(tokenizer.ruled(text)).ids` are the ids of text. For "huggingface"
        the text is taken as it is. Only a text that spells out a special may have other ids, for
        "subword" and "huggingface".

        >>> tokenizer = Tokenizer.from_vocab(Vocab(["cat"]))
        >>> tokenizer.to_huggingface().encode(tokenizer.ruled("The Cat")).ids
        [2, 8, 0, 8, 9]

        Raises:
            ValueError: for kind "spacy": spaCy's exceptions have no such form.
        """
        return self._engine.to_huggingface()

    def to_json(self) -> str:
        """Return everything there is to the tokenizer as JSON."""
        content: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": self.kind,
            "words": self.vocab.words,
            **self._engine.content(),
        }
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, vocab_size: int | None = None) -> Tokenizer:
        """Read what `to_json` wrote.

        >>> tokenizer = Tokenizer.from_vocab(Vocab(["cat"]))
        >>> Tokenizer.from_json(tokenizer.to_json()).vocab == tokenizer.vocab
        True

        Args:
            text: the JSON.
            vocab_size: the number of words that it has to have, which is looked at before anything
                is built; None takes any.

        Raises:
            ImportError: if the package of its kind is missing.
            ValueError: if the text is something else, of a newer version, or has another number of
                words.
        """
        if vocab_size is not None:
            _check_extent(text, vocab_size)
        content = parse_json(text, "the tokenizer")
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(
                f"the tokenizer starts with {text[:40]!r}, expected what Tokenizer.to_json writes; "
                "save it anew"
            )
        if type(content.get("version")) is not int or content["version"] != _VERSION:
            raise ValueError(
                f"the tokenizer has version {content.get('version')!r:.60}, expected {_VERSION}; "
                "update ulmfit_fast"
            )
        words = content.get("words")
        if vocab_size is not None and isinstance(words, list) and len(words) != vocab_size:
            raise ValueError(
                f"the tokenizer has {len(words)} words and its model {vocab_size}, expected those "
                "of one model; save the model again"
            )
        vocab = vocabulary_of(words)
        kind = content.get("kind")
        if kind == "word" or kind == "spacy":
            return cls.from_vocab(vocab, kind)
        if kind == "huggingface":
            engine = HuggingFaceEngine.from_content(content.get("huggingface"))
            if engine.vocab != vocab:
                raise ValueError(
                    f"the tokenizer is damaged: its words are {len(vocab)}, and those of its "
                    f"Hugging Face model {len(engine.vocab)} or others, expected the same; save it "
                    "anew"
                )
            return cls("huggingface", engine)
        scores: Any = content.get("scores")
        if kind != "subword" or not _are_scores(scores, len(vocab)):
            raise ValueError(
                f"the tokenizer has kind {kind!r:.60}, expected 'word', 'spacy', 'huggingface', or "
                "'subword' with a score for each piece, a number; save it anew"
            )
        return cls._from_pieces(list(zip(vocab.words, scores, strict=True)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as JSON, independent of the version of the library underneath."""
        return (Tokenizer.from_json, (self.to_json(),))

    def __repr__(self) -> str:
        """Show the kind and the size."""
        return f"Tokenizer(kind={self.kind!r}, vocabulary of {len(self.vocab)})"


def largest_json(vocab_size: int) -> int:
    """Return how many bytes the JSON of a tokenizer may have: 4 KiB a word, 64 MiB in any case.

    >>> largest_json(1000)
    71204864

    Args:
        vocab_size: the number of its words.
    """
    return 2**26 + 2**12 * vocab_size


def _check_extent(text: str, vocab_size: int) -> None:
    # Every value but the first of its list or object has a comma before it. That of a piece of
    # Hugging Face's has some ten: of the word, its id, its merges, its entry among added tokens.
    most = 20_000 + 64 * vocab_size
    found = text.count(",")
    if found > most:
        raise ValueError(
            f"the tokenizer has some {found:,} values and its model {vocab_size:,} words, expected "
            f"at most {most:,} values; save the model again"
        )


def _are_scores(scores: object, count: int) -> bool:
    if not isinstance(scores, list) or len(scores) != count:
        return False
    return all(type(score) in (int, float) and abs(score) <= _LARGEST_SCORE for score in scores)
