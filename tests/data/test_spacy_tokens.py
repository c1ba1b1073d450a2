"""Kind "spacy": fastai's token lists, as fastai itself gave them, and what we do otherwise."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from ulmfit_fast.data import SPECIALS, Tokenizer, Vocab
from ulmfit_fast.data.tokens.spacy_words import fastai_rules

CASES = json.loads(Path(__file__).with_name("fastai_tokens.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _spacy():
    pytest.importorskip("spacy", reason="needs the package spacy")


@pytest.fixture(scope="module")
def no_words() -> Tokenizer:
    return Tokenizer.from_vocab(Vocab([]), "spacy")


def test_the_tokens_are_those_of_fastai(no_words: Tokenizer) -> None:
    assert len(CASES) > 250
    for case in CASES:
        assert no_words.tokens(case["text"]) == case["tokens"], case["text"]
        assert not any(" " in token for token in case["tokens"])


def test_the_ids_are_those_of_the_tokens() -> None:
    known = sorted({token for case in CASES[::2] for token in case["tokens"]})
    tokenizer = Tokenizer.from_vocab(Vocab(known), "spacy")
    found = tokenizer.encode_batch(case["text"] for case in CASES)
    seen = set()
    for case, ids in zip(CASES, found, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == [tokenizer.vocab.index(token) for token in case["tokens"]]
        seen.update(ids.tolist())
    assert 0 in seen and len(seen) > 150


def test_one_encoder_for_many_lists(no_words: Tokenizer) -> None:
    tokenizer = Tokenizer.from_vocab(Vocab(["cat", "dog", "\n", "\n\u2581\n"]), "spacy")
    encode = tokenizer.encoder()
    assert [ids.tolist() for ids in encode(["cat dog", "cat\n \ndog"])] == [
        [2, 9, 10],
        [2, 9, 12, 10],
    ]
    assert [ids.tolist() for ids in encode(["dog new cat\nx", ""])] == [[2, 10, 0, 9, 11, 0], [2]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fish &amp; chips", "xxbos xxmaj fish & chips"),
        ("&quot;Yes&quot; &#39;no&#39; a&nbsp;b &lt;3", "xxbos \" yes \" ' no ' a b <3"),
        ("a champ; amp; one #39; two quot;", "xxbos a champ ; & one ' two \""),
        ("see ?a=1&copy=2 &copy; AT&amp;amp;T", "xxbos see ? a=1&copy=2 \u00a9 xxup at&t"),
        ("it#39;s #36;5 &#8217;", "xxbos it 's $ 5 \u2019"),
    ],
    ids=["ampersand", "quotes", "words", "no-semicolon", "stray"],
)
def test_entities_come_out_as_what_they_stand_for(
    no_words: Tokenizer, text: str, expected: str
) -> None:
    assert " ".join(no_words.tokens(text)) == expected


def test_spacy_begins_anew_before_it_grows_without_end(
    no_words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_vocab(Vocab(["cat", "dog"]), "spacy")
    texts = [f"cat number{i} dog" for i in range(30)]
    expected = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    kept = len(tokenizer._engine._splitter._pipeline.vocab.strings) - 5
    monkeypatch.setattr("ulmfit_fast.data.tokens.spacy_words._KEPT_WORDS", kept)
    first = tokenizer._engine._splitter._pipeline
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
    assert tokenizer._engine._splitter._pipeline is not first


def test_rules_of_odd_texts(no_words: Tokenizer) -> None:
    assert fastai_rules("a \ud800 b") == "xxbos a \ufffd b"
    assert no_words.encode_batch(["\ud800"])[0].tolist() == [2, 0]
    assert no_words.encode_batch([]) == [] and no_words.encode_batch([""])[0].tolist() == [2]
    # Longer than spaCy's pipelines take.
    assert len(no_words.encode_batch(["unexceptional words " * 60_000])[0]) == 120_001
    assert len(no_words.encode_batch(["word " * 250_000])[0]) == 4


def test_training_decoding_and_json() -> None:
    texts = ["The cat didn't sit.", "The CAT sat!!! \n Well, the cat..."] * 3
    tokenizer = Tokenizer.train(texts, "spacy", max_vocab=40)
    assert tokenizer.kind == "spacy" and tokenizer.vocab.words[:9] == SPECIALS
    assert {"cat", "did", "n't", "\u2026", "\n\u2581"} <= set(tokenizer.vocab.words)
    ids = tokenizer.encode_batch(texts)
    assert tokenizer.decode(ids[0]) == "The cat didn't sit."
    assert tokenizer.decode(ids[1]).split() == "The CAT sat!!! Well, the cat \u2026".split()
    for other in (Tokenizer.from_json(tokenizer.to_json()), pickle.loads(pickle.dumps(tokenizer))):
        assert other.kind == "spacy" and other.to_json() == tokenizer.to_json()
        assert [i.tolist() for i in other.encode_batch(texts)] == [i.tolist() for i in ids]
    small = Tokenizer.train(texts, "spacy", max_vocab=11, min_freq=1)
    assert small.vocab.words[9:] == ("cat", "the")
    with pytest.raises(ValueError, match="texts is empty"):
        Tokenizer.train([], "spacy")
    with pytest.raises(TypeError, match=r"texts\[1\] is 3"):
        Tokenizer.train(["a", 3], "spacy")


def test_no_form_in_hugging_face(no_words: Tokenizer) -> None:
    for call in (no_words.to_huggingface, lambda: no_words.ruled("a")):
        with pytest.raises(ValueError, match="kind 'spacy' has no form in Hugging Face's"):
            call()


def test_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, no_words: Tokenizer
) -> None:
    saved = no_words.to_json()
    monkeypatch.setitem(sys.modules, "spacy", None)
    for call in (
        lambda: Tokenizer.from_vocab(Vocab(["a"]), "spacy"),
        lambda: Tokenizer.train(["a"], "spacy"),
        lambda: Tokenizer.from_json(saved),
    ):
        with pytest.raises(ImportError, match=r"pip install 'ulmfit-fast\[spacy\]'"):
            call()
