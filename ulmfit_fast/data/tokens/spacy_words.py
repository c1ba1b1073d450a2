r"""The token lists of fastai v2: its rules on the whole text, then spaCy's blank English tokenizer.

For vocabularies and weights that were made with fastai. In their order: remains of HTML and of
WikiText; `xxrep n c`; `xxwrep n w`; blanks around `/`, `#` and the backslash; one blank for many;
`xxup`; `xxmaj`; lower case, with `xxbos` in front. The nine specials stay whole, line ends are
tokens, and a blank within a token becomes the sign U+2581.

The one deliberate difference: HTML entities come out as what they stand for. fastai turns "&amp;"
into "&&", "&quot;" into "&'" and the end of "champ;" into "&", and reads the "&copy" of
"?a=1&copy=2". A text without such remains has the same tokens.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ulmfit_fast.data.tokens.rules import ENTITY, SURROGATE, restore_text
from ulmfit_fast.data.tokens.vocab import BOS, SPECIALS, UNK, Vocab

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

    from ulmfit_fast.data.tokens.words import Encoder, Ids

__all__ = ["SpacyEngine", "count_spacy_words", "fastai_rules"]

BLANK_MARK = "\u2581"
# spaCy keeps every word that it has read; past so many it begins anew, a tenth of a gigabyte later.
_KEPT_WORDS = 500_000

# Whole ones first, or "&amp;amp;" would become "&&".
_REMAINS = (
    re.compile(r"&(#39|#146|#36|amp|nbsp|quot);"),
    re.compile(r"&?(#39|#146|#36);|(?:&|(?<!\w))(amp|nbsp|quot);"),
)
_MEANT = {"#39": "'", "#146": "'", "#36": "$", "amp": "&", "nbsp": " ", "quot": '"'}
# Each acts on what those before it have left.
_LITERALS = (
    ("\\n", "\n"),
    ("<br />", "\n"),
    ('\\"', '"'),
    ("<unk>", SPECIALS[UNK]),
    (" @.@ ", "."),
    (" @-@ ", "-"),
    ("...", " \u2026"),
)
_RUN = re.compile(r"(\S)\1\1+")
_REPEATED_WORD = re.compile(
    r"(?:^|\s)(?P<word>\w+)\s+(?P<more>(?:(?P=word)\s+)+)(?P=word)(?P<end>$|\s|\W)"
)
_SIGN = re.compile(r"[/#\\]")
_BLANKS = re.compile("  +")
_IN_CAPITALS = re.compile(r"(?<!\S)[A-Z]+[^a-z\s]*(?!\S)")
_CAPITALISED = re.compile(r"(?<!\S)[A-Z][^A-Z\s]*(?!\S)")


def fastai_rules(text: str) -> str:
    """Apply the rules of fastai v2 to a text, marks spelled out.

    >>> fastai_rules("It's NASA!!!! no no no, and/or")
    "xxbos xxmaj it's xxup nasa xxrep 4 ! xxwrep 3 no , and / or"

    Args:
        text: any string; lone surrogates become U+FFFD.

    Returns:
        The text that spaCy is to split.
    """
    if not text.isascii():
        text = SURROGATE.sub("\ufffd", text)
    if ";" in text:
        for remains in _REMAINS:
            text = remains.sub(lambda match: _MEANT[match[match.lastindex or 0]], text)
    for written, meant in _LITERALS:
        text = text.replace(written, meant)
    if "&" in text:
        text = ENTITY.sub(lambda match: html.unescape(match[0]), text)
    text = _RUN.sub(lambda match: f" xxrep {len(match[0])} {match[1]} ", text)
    text = _REPEATED_WORD.sub(_marked_words, text)
    text = _SIGN.sub(r" \g<0> ", text)
    text = _BLANKS.sub(" ", text)
    text = _IN_CAPITALS.sub(lambda match: _lowered("xxup", match[0]), text)
    text = _CAPITALISED.sub(lambda match: _lowered("xxmaj", match[0]), text)
    return f"{SPECIALS[BOS]} {text.lower().strip()}"


def _marked_words(match: re.Match[str]) -> str:
    count = len(match["more"].split()) + 2
    return f" xxwrep {count} {match['word']} {match['end']}"


def _lowered(mark: str, word: str) -> str:
    return f"{mark} {word.lower()}" if len(word) > 1 else word.lower()


def _blank_english() -> Any:
    """Return spaCy's blank English pipeline, which keeps the specials whole."""
    try:
        import spacy
    except ImportError as error:
        raise ImportError(
            "a tokenizer of kind 'spacy' needs the package spacy; pip install 'ulmfit-fast[spacy]'"
        ) from error
    pipeline: Any = spacy.blank("en")
    for special in SPECIALS:
        pipeline.tokenizer.add_special_case(special, [{"ORTH": special}])
    return pipeline


class _Splitter:
    """spaCy's words of ruled texts."""

    def __init__(self) -> None:
        self._pipeline = _blank_english()

    def split(self, text: str) -> Any:
        """Return spaCy's document of a text."""
        if len(self._pipeline.vocab.strings) > _KEPT_WORDS:
            self._pipeline = _blank_english()
        return self._pipeline.tokenizer(fastai_rules(text))

    def words(self, text: str) -> list[str]:
        """Return the words of a text."""
        return [word.text.replace(" ", BLANK_MARK) for word in self.split(text)]


def count_spacy_words(texts: Iterable[str]) -> Counter[str]:
    """Count the tokens of texts, specials among them."""
    splitter = _Splitter()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(splitter.words(text))
    return counts


class SpacyEngine:
    """fastai's rules, then spaCy's words."""

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        self._splitter = _Splitter()

    def tokens(self, text: str) -> list[str]:
        """Return fastai's tokens of a text; a special that the text spells out is that special."""
        return self._splitter.words(text)

    def encoder(self) -> Encoder:
        """Return an encoder that looks each distinct word up once."""
        return _SpacyEncoder(self.vocab, self._splitter)

    def decode(self, ids: list[int]) -> str:
        """Return the text, as far as the rules can be undone."""
        words = (
            index if index < len(SPECIALS) else self.vocab.words[index].replace(BLANK_MARK, " ")
            for index in ids
        )
        return restore_text(words)

    def content(self) -> dict[str, Any]:
        """Return nothing: the words are all there is."""
        return {}

    def to_huggingface(self) -> HFTokenizer:
        """Refuse: neither the rules nor spaCy's exceptions can be written in that form."""
        raise ValueError(
            "a tokenizer of kind 'spacy' has no form in Hugging Face's tokenizers: spaCy splits "
            "its words; use kind 'word' or 'subword', or encode with this object"
        )


class _SpacyEncoder:
    """Encodes texts and remembers the ids of words by spaCy's hash of them."""

    def __init__(self, vocab: Vocab, splitter: _Splitter) -> None:
        self._vocab = vocab
        self._splitter = splitter
        self._known: dict[int, int] = {}

    def __call__(self, texts: list[str]) -> list[Ids]:
        if len(self._known) > _KEPT_WORDS:
            self._known = {}
        known, found = self._known, []
        for text in texts:
            words = self._splitter.split(text)
            hashes = words.to_array(["ORTH"]).ravel().tolist()
            for unknown in set(hashes).difference(known):
                word = words.vocab.strings[unknown].replace(" ", BLANK_MARK)
                known[unknown] = self._vocab.index(word)
            found.append(np.array([known[word] for word in hashes], dtype=np.int32))
        return found
