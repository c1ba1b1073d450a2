"""Tokenizers of Hugging Face on their way in, and ours on their way out."""

import copy
import json
import random
from pathlib import Path

import pytest

from ulmfit_fast.data import SPECIALS, Tokenizer

TEXTS = [
    "Der Hund schl\u00e4ft; die Katze schl\u00e4ft nicht!",
    "Die KATZE sa\u00df auf der Matte, der Hund nicht.",
    "Ein Hund und eine Katze: 3 Hunde, 14 Katzen.",
] * 4
ODD = [
    "",
    " ",
    "unbekannt \u2603 \U0001f600",
    "zwei  Leer\nzeichen",
    "\ud800 x",
    "AAAA!!!! so so so so",
]
THEIR_SPECIALS = ["<s>", "</s>", "<pad>", "<unk>"]


def make_theirs(model: str):
    hf = pytest.importorskip("tokenizers")
    models, trainers, pre = hf.models, hf.trainers, hf.pre_tokenizers
    options = dict(special_tokens=THEIR_SPECIALS, show_progress=False)
    if model == "wordpiece":
        theirs = hf.Tokenizer(models.WordPiece(unk_token="<unk>"))
        theirs.normalizer = hf.normalizers.BertNormalizer(strip_accents=False)
        theirs.pre_tokenizer, theirs.decoder = pre.BertPreTokenizer(), hf.decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=120, **options)
    elif model == "bpe":
        theirs = hf.Tokenizer(models.BPE(unk_token="<unk>"))
        theirs.pre_tokenizer = pre.Whitespace()
        trainer = trainers.BpeTrainer(vocab_size=120, **options)
    elif model == "byte-level":
        theirs = hf.Tokenizer(models.BPE())
        theirs.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        theirs.decoder = hf.decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320, initial_alphabet=pre.ByteLevel.alphabet(), **options
        )
    elif model == "unigram":
        theirs = hf.Tokenizer(models.Unigram())
        theirs.normalizer = hf.normalizers.NFKC()
        theirs.pre_tokenizer, theirs.decoder = pre.Metaspace(), hf.decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=100, unk_token="<unk>", **options)
    else:
        theirs = hf.Tokenizer(models.WordLevel(unk_token="<unk>"))
        theirs.pre_tokenizer = pre.Whitespace()
        trainer = trainers.WordLevelTrainer(vocab_size=60, **options)
    theirs.train_from_iterator(TEXTS, trainer)
    theirs.post_processor = hf.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    theirs.enable_padding(pad_id=2, pad_token="<pad>", length=64)
    theirs.enable_truncation(4)
    return theirs


def plain(theirs):
    twin = copy.deepcopy(theirs)
    twin.no_padding()
    twin.no_truncation()
    return twin


MODELS = pytest.mark.parametrize(
    "model", ["wordpiece", "bpe", "byte-level", "unigram", "wordlevel"]
)


@MODELS
def test_words_are_those_of_the_file(model: str, tmp_path: Path) -> None:
    theirs = make_theirs(model)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_huggingface(tmp_path / "tokenizer.json")
    assert ours.kind == "huggingface" and ours.vocab.words[:9] == SPECIALS
    assert not set(THEIR_SPECIALS) & set(ours.vocab.words)
    order = sorted(theirs.get_vocab(), key=theirs.get_vocab().get)
    assert list(ours.vocab.words[9:]) == [word for word in order if word not in THEIR_SPECIALS]
    twin = plain(theirs)
    texts = [*TEXTS[:3], *ODD]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        tokens = twin.encode(text.replace("\ud800", "\ufffd"), add_special_tokens=False).tokens
        expected = ["xxbos", *("xxunk" if token == "<unk>" else token for token in tokens)]
        assert ours.tokens(text) == expected
        assert ids.tolist() == [ours.vocab.index(token) for token in expected]
    (ids,) = ours.encode_batch(TEXTS[:1])
    expected_text = twin.decode(twin.encode(TEXTS[0], add_special_tokens=False).ids)
    assert ours.decode([*ids, 1, 1, 3]) == expected_text
    # The source is as it was.
    assert theirs.padding is not None and len(theirs.encode("a b")) == 64


@MODELS
def test_json_and_the_way_out(model: str) -> None:
    ours = Tokenizer.from_huggingface(make_theirs(model))
    twin = Tokenizer.from_json(ours.to_json())
    exported = ours.to_huggingface()
    again = Tokenizer.from_huggingface(exported)
    texts = [*TEXTS[:3], *(text for text in ODD if "\ud800" not in text)]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        for other in (twin, again, copy.deepcopy(ours)):
            assert other.vocab == ours.vocab
            assert other.encode_batch([text])[0].tolist() == ids.tolist()
        assert exported.encode(ours.ruled(text)).ids == ids.tolist()
    exported.add_tokens(["neu"])
    assert "neu" not in ours.to_huggingface().get_vocab()


@MODELS
def test_specials_in_a_text_do_not_become_marks(model: str) -> None:
    ours = Tokenizer.from_huggingface(make_theirs(model))
    (ids,) = ours.encode_batch([" ".join([*SPECIALS, "<s>", "</s>", "<pad>"])])
    assert ids[0] == 2 and not set(ids[1:].tolist()) & set(range(1, 9))
    assert not set(ours.tokens("xxpad xxbos")[1:]) & set(SPECIALS[1:])


def test_words_added_later_are_kept() -> None:
    theirs = make_theirs("bpe")
    theirs.add_tokens(["Haustier", "Katzenklo"])
    ours = Tokenizer.from_huggingface(theirs)
    assert ours.vocab.words[-2:] == ("Haustier", "Katzenklo")
    assert ours.tokens("ein Katzenklo")[-1] == "Katzenklo"
    assert ours.encode_batch(["Haustier"])[0].tolist() == [2, len(ours.vocab) - 2]
    assert Tokenizer.from_json(ours.to_json()).vocab == ours.vocab


def test_what_carries_a_tokenizer_is_accepted() -> None:
    class Fast:
        backend_tokenizer = make_theirs("bpe")

    assert (
        Tokenizer.from_huggingface(Fast()).vocab
        == Tokenizer.from_huggingface(Fast.backend_tokenizer).vocab
    )


def test_bad_sources(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_huggingface(path)
    for content in ("{", '{"model": {}}', "[]"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(
            ValueError, match=r"tokenizer.json is no tokenizer.json \(.*save it anew"
        ):
            Tokenizer.from_huggingface(path)
    with pytest.raises(TypeError, match=r"source is 3 \(int\), expected the path of a"):
        Tokenizer.from_huggingface(3)
    with pytest.raises(
        ValueError, match=r"a tokenizer.json comes in by Tokenizer.from_huggingface"
    ):
        Tokenizer.train(["a"], "huggingface")


def test_damaged_json() -> None:
    content = json.loads(Tokenizer.from_huggingface(make_theirs("bpe")).to_json())
    with pytest.raises(ValueError, match=r"is damaged: its words are .*save it anew"):
        Tokenizer.from_json(json.dumps({**content, "words": content["words"][:-1]}))
    with pytest.raises(ValueError, match=r"is damaged \(.*\); save it anew"):
        Tokenizer.from_json(json.dumps({**content, "huggingface": None}))


WORDS = (
    "The the NASA cat's don't Can't 3.14 1,000 (Bad) and/or #1 A I yesss AAAA !!! no no no"
    " McDonald xxmaj naive \u00c9t\u00e9 <unk> xxpad xxpad's XXBOS \u2603 U.S.A. well-known ..."
    " foo_bar \u4f60\u597d"
).split(" ")


@pytest.mark.parametrize("kind", ["word", "subword"])
def test_our_own_model_on_its_way_out(kind: str) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=8)) for _ in range(300)] + ["", "a  b\nc", *TEXTS[:3]]
    tokenizer = Tokenizer.train(texts, kind, max_vocab=150, min_freq=1)
    exported = tokenizer.to_huggingface()
    assert exported.get_vocab_size() == len(tokenizer.vocab)
    same = 0
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        found = exported.encode(tokenizer.ruled(text)).ids
        if kind == "word" or not any(special in text.lower() for special in SPECIALS):
            assert found == ids.tolist(), text
            same += 1
        # A mark that the text spells is a mark on neither side.
        for mark in range(1, 9):
            assert found.count(mark) == ids.tolist().count(mark)
    assert same > 60
