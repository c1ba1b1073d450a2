"""A tokenizer.json of Hugging Face made ours: its words as they are, the nine specials in front."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ulmfit_fast.data.tokens.rules import SURROGATE
from ulmfit_fast.data.tokens.vocab import BOS, SPECIALS, UNK, Vocab
from ulmfit_fast.data.tokens.words import (
    Encoder,
    Ids,
    begin_with_mark,
    errors_of_one_kind,
    library,
)
from ulmfit_fast.system.files import user_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

__all__ = ["HuggingFaceEngine", "import_tokenizer"]

_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


def import_tokenizer(source: str | os.PathLike[str] | Any) -> HFTokenizer:
    """Return a tokenizer of the library `tokenizers` with our specials as the ids 0 to 8.

    Its unknown word becomes `xxunk`; its other special tokens are left out, its own words follow in
    the order of their ids. Normaliser, pre-tokenizer, model and decoder stay as they are.

    Args:
        source: a tokenizer.json, a `tokenizers.Tokenizer`, or what has one as `backend_tokenizer`.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if source is something else.
        ValueError: if the file holds no tokenizer, or one whose model is none of the four.
    """
    hf = library()
    source = getattr(source, "backend_tokenizer", source)
    if isinstance(source, (str, os.PathLike)):
        name, text = str(source), _text_of(user_path(source))
    elif hasattr(source, "to_str"):
        name, text = f"the {type(source).__name__}", source.to_str()
    else:
        raise TypeError(
            f"source is {source!r:.60} ({type(source).__name__}), expected the path of a "
            "tokenizer.json or a tokenizers.Tokenizer"
        )
    try:
        with errors_of_one_kind():
            # The library itself brings older files into the present form.
            content = json.loads(hf.Tokenizer.from_str(text).to_str())
    except Exception as error:
        raise ValueError(f"{name} is no tokenizer.json ({error!s:.300}); save it anew") from error
    if content["model"]["type"] not in _MODELS:
        raise ValueError(
            f"{name} has a model of type {content['model']['type']!r}, expected one of "
            f"{', '.join(_MODELS)}"
        )
    try:
        _rewrite(content)
        with errors_of_one_kind():
            found = begin_with_mark(hf.Tokenizer.from_str(json.dumps(content)))
    except Exception as error:
        raise ValueError(
            f"{name} needs its own special tokens ({error!s:.300}); train another"
        ) from error
    try:
        _words_of(found)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error}; save it anew") from error
    return found


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no tokenizer.json ({error}); save it anew") from error


def _rewrite(content: dict[str, Any]) -> None:
    """Change the ids of a tokenizer.json in place."""
    model, added = content["model"], content["added_tokens"]
    left_out = {*SPECIALS, *(token["content"] for token in added if token["special"])}
    if model["type"] == "Unigram":
        pieces: list[Any] = model["vocab"]
        if model["unk_id"] is not None:
            left_out.add(pieces[model["unk_id"]][0])
        # A special must not be the cheapest way to write a text.
        lowest = min((score for _, score in pieces), default=0.0)
        kept = [(piece, score) for piece, score in pieces if piece not in left_out]
        model["vocab"] = [(special, lowest) for special in SPECIALS] + kept
        model["unk_id"] = UNK
    else:
        if model["unk_token"] is not None:
            left_out.add(model["unk_token"])
            model["unk_token"] = SPECIALS[UNK]
        kept = [word for word in sorted(model["vocab"], key=model["vocab"].get)]
        words = (*SPECIALS, *(word for word in kept if word not in left_out))
        model["vocab"] = {word: index for index, word in enumerate(words)}
    content["added_tokens"] = _renumbered(added, model["vocab"], left_out)
    content["truncation"] = content["padding"] = content["post_processor"] = None


def _words_of(model: HFTokenizer) -> list[str]:
    """Return the words in the order of their ids, which are all there are from 0 on.

    Raises:
        ValueError: if an id is left out or a special has another one than ours.
    """
    ids = model.get_vocab(with_added_tokens=True)
    words = sorted(ids, key=lambda word: int(ids[word]))
    for index, word in enumerate(words):
        if ids[word] != index or (index < len(SPECIALS) and word != SPECIALS[index]):
            raise ValueError(
                f"{word!r:.60} has the id {ids[word]}, expected "
                f"{index}{f', that of {SPECIALS[index]}' if index < len(SPECIALS) else ''}"
            )
    return words


def _renumbered(added: Sequence[dict[str, Any]], vocab: Any, left_out: set[str]) -> list[Any]:
    ids = vocab if isinstance(vocab, dict) else {word: i for i, (word, _) in enumerate(vocab)}
    ids, kept = dict(ids), []
    for token in sorted(added, key=lambda token: int(token["id"])):
        if token["content"] not in left_out:
            kept.append({**token, "id": ids.setdefault(token["content"], len(ids))})
    return kept


class HuggingFaceEngine:
    """A tokenizer of the library `tokenizers`, without our rules."""

    def __init__(self, model: HFTokenizer) -> None:
        self.model = model
        self.vocab = Vocab(_words_of(model))

    @classmethod
    def from_content(cls, content: Any) -> HuggingFaceEngine:
        """Read what `content` gave."""
        try:
            # A length that somebody wrote in could be any.
            plain = {**content, "truncation": None, "padding": None}
            with errors_of_one_kind():
                engine = cls(library().Tokenizer.from_str(json.dumps(plain)))
            # Its words may lack the one for what it does not know.
            engine.encoder()(["a \ue000\U0001f600 1"])
        except Exception as error:
            raise ValueError(f"the tokenizer is damaged ({error!s:.300}); save it anew") from error
        return engine

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        with errors_of_one_kind():
            encoding = self.model.encode(_encodable(text), add_special_tokens=False)
        found = (SPECIALS[UNK] if token in SPECIALS else token for token in encoding.tokens)
        return [SPECIALS[BOS], *found]

    def encoder(self) -> Encoder:
        """Return an encoder."""
        return self._encode

    def _encode(self, texts: list[str]) -> list[Ids]:
        texts = [_encodable(text) for text in texts]
        ids = []
        with errors_of_one_kind():
            encodings = self.model.encode_batch_fast(texts, add_special_tokens=False)
        for encoding in encodings:
            found = np.array([BOS, *encoding.ids], dtype=np.int32)
            # A special that is spelled out in the text is a word that nobody knows.
            found[1:][found[1:] < len(SPECIALS)] = UNK
            ids.append(found)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text; of the specials, only an unknown word shows."""
        shown = [index for index in ids if index == UNK or index >= len(SPECIALS)]
        text: str = self.model.decode(shown, skip_special_tokens=False)
        return text

    def content(self) -> dict[str, Any]:
        """Return the whole of tokenizer.json."""
        return {"huggingface": json.loads(self.model.to_str())}

    def to_huggingface(self) -> HFTokenizer:
        """Return a copy of the tokenizer."""
        copy: HFTokenizer = library().Tokenizer.from_str(self.model.to_str())
        return copy


def _encodable(text: str) -> str:
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)
