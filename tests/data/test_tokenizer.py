import copy
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ulmfit_fast.data import SPECIALS, Tokenizer, Vocab
from ulmfit_fast.data.tokens import words as engines

TEXTS = ["The cat sat on the mat.", "The dog sat; the cat did not!", "A dog and a cat."] * 3
KINDS = pytest.mark.parametrize("kind", ["word", "subword"])


def words_only() -> Tokenizer:
    return Tokenizer.from_vocab(Vocab([]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "I AM SO HAPPY!!!! Soooooo good",
            "xxbos i xxup am xxup so xxup happy xxrep 4 ! s xxrep 6 o good",
        ),
        ("the the the the cat", "xxbos xxwrep 4 the cat"),
        (
            "It's John's U.S.A. NASA",
            "xxbos xxmaj it 's xxmaj john 's xxup u.s.a . xxup nasa",
        ),
        ('"Great" (Bad)', 'xxbos " great " ( bad )'),
        ("", "xxbos"),
    ],
    ids=["caps-rep", "wrep", "contractions", "punctuation", "empty"],
)
def test_reference_outputs(text: str, expected: str) -> None:
    assert " ".join(words_only().tokens(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("don't can't we\u2019ve", "do n't ca n't we \u2019ve", id="contractions"),
        pytest.param("cannot can canister", "can not can canister", id="cannot"),
        pytest.param("3.14, 1,250 10:30 2nd .5", "3.14 , 1,250 10:30 2nd . 5", id="numbers"),
        pytest.param("nn.linear a.b. e.g.", "nn.linear a.b . e.g .", id="dots"),
        pytest.param("well-known foo_bar x=y", "well - known foo_bar x = y", id="hyphens"),
        pytest.param("5% $9 a,b ...", "5 % $ 9 a , b xxrep 3 .", id="signs"),
        pytest.param("'tis 'quoted'", "' tis ' quoted '", id="quotes"),
        pytest.param(
            "na\u0301ve \u0938\u094d\u0924\u0947",
            "na\u0301ve \u0938\u094d\u0924\u0947",
            id="combining",
        ),
    ],
)
def test_word_splitting(text: str, expected: str) -> None:
    assert " ".join(words_only().tokens(text)) == f"xxbos {expected}"


@KINDS
def test_ids_agree_with_tokens(kind: str) -> None:
    tokenizer = Tokenizer.train(TEXTS, kind, max_vocab=80, min_freq=1)
    texts = ["The CAT sat the the the mat!!!", "", "unseen words \u2603 here"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.dtype == np.int32 and ids.flags.writeable
        assert ids.tolist() == [tokenizer.vocab.index(token) for token in tokenizer.tokens(text)]
    assert tokenizer.encode_batch([""])[0].tolist() == [2]
    assert tokenizer.encode_batch([]) == []


@KINDS
@pytest.mark.parametrize(
    "text",
    [
        "The cat, the DOG and Nasa.",
        "Oh no no no!!! I don't",
        "\u00c9t\u00e9 (a cat); it's the mat:",
    ],
    ids=["capitals", "repeats", "brackets"],
)
def test_decode_gives_the_text_back(kind: str, text: str) -> None:
    tokenizer = Tokenizer.train([*TEXTS, text, text], kind, max_vocab=80, min_freq=1)
    (ids,) = tokenizer.encode_batch([text])
    # A capital that is a word of its own leaves no mark.
    expected = text.replace("I don", "i don")
    assert tokenizer.decode(ids) == expected
    assert tokenizer.decode(torch.from_numpy(ids)) == tokenizer.decode(ids.tolist()) == expected


@KINDS
def test_specials_in_a_text_are_unknown_words(kind: str) -> None:
    spelled = " ".join(
        [*SPECIALS, *(s.upper() for s in SPECIALS), "xxpad's (xxbos) \uff58\uff58pad"]
    )
    tokenizer = Tokenizer.train([*TEXTS, spelled, spelled, spelled], kind, max_vocab=90)
    assert tokenizer.vocab.words[:9] == SPECIALS
    (ids,) = tokenizer.encode_batch([spelled])
    assert ids[0] == 2
    # Upper case is marked by a rule; no other special may come from the words of a text.
    assert not set(ids[1:].tolist()) & {1, 2, 3, 4, 5, 6, 8}
    assert (ids == 7).sum() == len(SPECIALS)
    assert not set(tokenizer.tokens(spelled)[1:]) & set(SPECIALS[1:7])
    twin = Tokenizer.from_json(tokenizer.to_json())
    assert twin.encode_batch([spelled])[0].tolist() == ids.tolist()


def test_word_vocabulary() -> None:
    tokenizer = Tokenizer.train(["b a b. a b, c a? d Ab"], min_freq=2, max_vocab=11)
    assert tokenizer.vocab.words[9:] == ("a", "b")


def run_python(script: str, **env: str) -> str:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    env = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"} | env
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_vocabularies_do_not_depend_on_the_hash_seed() -> None:
    script = f"""
import sys
from ulmfit_fast.data import Tokenizer, Vocab
texts = {TEXTS!r} + [chr(97 + i) * 2 + chr(98 + i) for i in range(20)]
for kind in ("word", "subword"):
    print(Tokenizer.train(texts, kind, max_vocab=60, min_freq=1).to_json())
print(Vocab.build({{word: 3 for word in {{str(n) for n in range(500)}}}}, max_size=200).words)
"""
    first, second = (run_python(script, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first == second and len(first) > 2_000


def test_the_same_texts_give_the_same_subwords_each_time() -> None:
    """Also the characters that no piece covers, which the trainer takes in the order of a hash."""
    texts = ["a fine film", "a dull film", "what a long and tiresome evening"] * 6
    trained = {Tokenizer.train(texts, "subword", min_freq=1).to_json() for _ in range(10)}
    assert len(trained) == 1


def test_subwords_without_blanks() -> None:
    sentences = [
        "\u6211\u559c\u6b22\u8bfb\u4e66\u3002",
        "\u6211\u559c\u6b22\u559d\u8336\u3002",
        "\u4ed6\u559c\u6b22\u8bfb\u4e66\u3002",
    ] * 4
    tokenizer = Tokenizer.train(sentences, "subword", max_vocab=40)
    ids = tokenizer.encode_batch(sentences)
    assert [tokenizer.decode(i) for i in ids] == sentences
    assert all(0 not in i for i in ids)
    assert len(ids[0]) < len(sentences[0]) + 1
    assert 0 in tokenizer.encode_batch(["\u6211\u2603"])[0]


@KINDS
def test_json_pickle_and_copy(kind: str) -> None:
    tokenizer = Tokenizer.train(TEXTS, kind, max_vocab=60)
    expected = [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)]
    for other in (
        Tokenizer.from_json(tokenizer.to_json()),
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
    ):
        assert other.kind == kind and other.vocab == tokenizer.vocab
        assert [ids.tolist() for ids in other.encode_batch(TEXTS)] == expected
        assert other.to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", r"starts with '\[1\]'"),
        ('{"format": "ulmfit_fast tokenizer", "version": 2}', "version 2, expected 1; update"),
        ('{"format": "ulmfit_fast tokenizer", "version": 1, "words": ["a"]}', "xxunk, xxpad"),
    ],
    ids=["broken", "other", "newer", "words"],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_json(text)


def test_json_without_scores() -> None:
    text = Tokenizer.from_vocab(Vocab(["a"])).to_json().replace('"word"', '"subword"')
    with pytest.raises(ValueError, match="with a score for each piece"):
        Tokenizer.from_json(text)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(texts="a text"), TypeError, "the string 'a text', expected a list"),
        (dict(texts=["a", None]), TypeError, r"texts\[1\] is None \(NoneType\), expected a str"),
        (dict(texts=["a", float("nan")]), TypeError, r"texts\[1\] is nan \(float\)"),
        (dict(texts=[]), ValueError, "texts is empty"),
        (dict(texts=[], kind="subword"), ValueError, "texts is empty"),
        (dict(texts=["one two"]), ValueError, "no word of the 1 texts .* lower min_freq"),
        (dict(texts=[""], kind="subword"), ValueError, "no word of the 1 texts"),
        (dict(texts=["a"], kind="bpe"), ValueError, "kind is 'bpe', expected 'word', 'subword'"),
        (dict(texts=["a"], max_vocab=8), ValueError, "max_vocab is 8, expected at least 9"),
        (dict(texts=["a"], min_freq=0), ValueError, "min_freq is 0, expected at least 1"),
        (dict(texts=["abcdef"], kind="subword", max_vocab=12), ValueError, "raise max_vocab"),
    ],
    ids=[
        "string", "none", "nan", "empty", "empty-subword", "rare", "blank", "kind", "small",
        "min-freq", "characters",
    ],
)  # fmt: skip
def test_bad_training(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tokenizer.train(**arguments)


def test_bad_encoding_and_decoding() -> None:
    tokenizer = words_only()
    with pytest.raises(TypeError, match=r"texts\[2\] is b'x' \(bytes\), expected a str"):
        tokenizer.encode_batch(["a", "b", b"x"])
    with pytest.raises(TypeError, match="the string 'a b', expected a list of texts"):
        tokenizer.encode_batch("a b")
    for index in (9, -1):
        with pytest.raises(
            ValueError, match=f"id {index} is outside the vocabulary, expected 0 to 8"
        ):
            tokenizer.decode([index])


def test_only_subwords_are_normalised() -> None:
    wide = "\uff43\uff41\uff54"
    for kind in ("word", "subword"):
        tokenizer = Tokenizer.train(TEXTS, kind, max_vocab=60)
        first, second = (ids.tolist() for ids in tokenizer.encode_batch([wide, "cat"]))
        assert (first == second) == (kind == "subword")


@KINDS
def test_odd_texts(kind: str) -> None:
    tokenizer = Tokenizer.train(TEXTS, kind, max_vocab=60)
    (ids,) = tokenizer.encode_batch(["cat\0cat \ud800 \U0001f600"])
    words = [index for index in ids.tolist() if index]
    assert words == tokenizer.encode_batch(["cat cat"])[0].tolist() or kind == "subword"
    assert tokenizer.decode(ids).startswith("cat cat")


@pytest.mark.parametrize(
    "text", ["ab" * 300_000, "a-" * 300_000, "n't" * 200_000, "a b " * 200_000, "a" * 1_000_000]
)
def test_long_lines_take_linear_time(text: str) -> None:
    start = time.perf_counter()
    (ids,) = words_only().encode_batch([text])
    # Quadratic time would be hours.
    assert time.perf_counter() - start < 20 and len(ids) > 1


def test_blocks_and_cache_do_not_change_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*TEXTS, "the the the cat", "A!!! B??? Cc DD"]
    tokenizer = Tokenizer.train(texts, min_freq=1)
    expected = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    monkeypatch.setattr("ulmfit_fast.data.tokens.texts.BLOCK_CHARACTERS", 30)
    monkeypatch.setattr("ulmfit_fast.data.tokens.words._CACHED_CHUNKS", 12)
    assert [ids.tolist() for ids in tokenizer.encode_batch(iter(texts))] == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_fork_is_quiet_and_works() -> None:
    script = f"""
import os
from ulmfit_fast.data import Tokenizer
texts = {TEXTS!r} * 50
tokenizers = [Tokenizer.train(texts, kind, max_vocab=60) for kind in ("word", "subword")]
encode = lambda: [[ids.tolist() for ids in t.encode_batch(texts)] for t in tokenizers]
before = encode()
child = os.fork()
if child == 0:
    os._exit(0 if encode() == before and os.environ["TOKENIZERS_PARALLELISM"] == "false" else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert "TOKENIZERS_PARALLELISM" not in os.environ
"""
    assert run_python(script) == ""


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    engines.library.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'ulmfit-fast\[text\]'"):
        Tokenizer.train(["a"])
