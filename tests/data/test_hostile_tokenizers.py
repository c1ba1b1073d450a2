"""A tokenizer's file is data: tampered with, it is refused; what it names is not run."""

import json
from pathlib import Path

import pytest

from ulmfit_fast.data import Tokenizer


def tampered(kind: str, change) -> str:
    texts = ["the cat sat", "on a mat"]
    own = Tokenizer.train(texts, "word" if kind == "huggingface" else kind, 60, 1)
    if kind == "huggingface":
        own = Tokenizer.from_huggingface(own.to_huggingface())
    content = json.loads(own.to_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("word", lambda c: c.update(words=[*c["words"], 3])),
        ("word", lambda c: c.update(words=[*c["words"], "cat"])),
        ("word", lambda c: c.update(words=c["words"][1:])),
        ("word", lambda c: c.update(words=[*c["words"], "\ud800"])),
        ("word", lambda c: c.update(kind=["word"])),
        ("subword", lambda c: c["scores"].__setitem__(-1, float("nan"))),
        ("subword", lambda c: c["scores"].__setitem__(-1, "1")),
        ("subword", lambda c: c["scores"].__setitem__(-1, True)),
        ("subword", lambda c: c["scores"].__setitem__(-1, 10**400)),
        ("huggingface", lambda c: c.update(huggingface=None)),
        ("huggingface", lambda c: c["huggingface"]["model"].update(unk_token="gone")),
        ("huggingface", lambda c: c["huggingface"]["model"]["vocab"].update(cat=10**6)),
        ("huggingface", lambda c: c["huggingface"]["model"]["vocab"].pop("xxpad")),
    ],
    ids=[
        *("number", "twice", "specials", "surrogate", "kind", "nan", "string", "bool", "huge"),
        *("none", "unknown", "gap", "lacks"),
    ],
)
def test_tampered_tokenizers_are_refused(kind: str, change) -> None:
    with pytest.raises(ValueError):
        Tokenizer.from_json(tampered(kind, change))


def test_a_piece_that_stands_twice_in_a_tokenizer(tmp_path: Path) -> None:
    """The library gives ids past the last word of such a tokenizer."""
    own = Tokenizer.train(["the cat sat", "on a mat"], "subword", 60)
    content = json.loads(own.to_huggingface().to_str())
    content["model"]["vocab"] += content["model"]["vocab"][-3:]
    content["added_tokens"], content["post_processor"] = [], None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{path} is damaged: .*; save it anew"):
        Tokenizer.from_huggingface(path)


def test_lengths_in_a_tokenizer_are_not_obeyed() -> None:
    padding = {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "xxpad",
    }
    text = tampered("huggingface", lambda c: c["huggingface"].update(padding=padding))
    assert len(Tokenizer.from_json(text).encode_batch(["the cat"])[0]) == 3
