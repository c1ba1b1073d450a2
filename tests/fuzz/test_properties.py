"""Properties that hold for any text and any bytes."""

import copy
import csv
import io
import json
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from targets import TARGETS, TEXTS, model_files, seeds, store_files, tokenizers

from ulmfit_fast.compat.files import read_words
from ulmfit_fast.data import SPECIALS, Tokenizer, TokenStore, Vocab, read_labelled, read_texts
from ulmfit_fast.data.tokens.rules import apply_rules, restore_text, split_chunks
from ulmfit_fast.data.tokens.vocab import BOS
from ulmfit_fast.ulmfit.model_files import load_model

hypothesis = pytest.importorskip("hypothesis", reason="needs the package hypothesis")
from hypothesis import HealthCheck, assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# The same examples in every run; `run.py` is for looking further.
settings.register_profile(
    "tests",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tests")

# Lone surrogates among them; blanks, marks and signs more often than by chance.
ANY_TEXT = st.text(
    st.one_of(st.characters(), st.sampled_from(" \t\n\0AaBb&;<>#/\\@-.,'1\u2581\ud800é\u0130ß"))
)
TEXT = st.one_of(
    ANY_TEXT,
    st.lists(st.sampled_from(["a", "A", "xxrep", "xxmaj", "3", "<unk>", "&amp;", "n't"])).map(
        " ".join
    ),
)
# What a file in UTF-8 holds.
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"))


@given(TEXT)
def test_rules_take_any_text(text: str) -> None:
    pieces = apply_rules(text)
    for piece in pieces:
        assert piece in range(len(SPECIALS)) if isinstance(piece, int) else piece.strip()
    restore_text(pieces).encode("utf-8")
    # Blanks between words are all one.
    assert split_chunks(f"  {text}\n") == split_chunks(text)


@given(TEXT)
def test_ids_are_those_of_the_tokens_and_in_range(text: str) -> None:
    for tokenizer in tokenizers():
        ids, again = (found.tolist() for found in tokenizer.encode_batch([text, f" {text}"]))
        assert ids[0] == BOS and 0 <= min(ids) <= max(ids) < len(tokenizer.vocab)
        assert ids == [tokenizer.vocab.index(token) for token in tokenizer.tokens(text)]
        if tokenizer.kind != "huggingface":
            assert ids == again
        tokenizer.decode(ids).encode("utf-8")


WORDS = st.sampled_from(["the", "cat", "The", "CAT", "sat", "dog", "mat", "mat!!!!", "isn't"])


@given(st.lists(WORDS, max_size=12).map(" ".join))
def test_known_words_come_back(text: str) -> None:
    """As documented: words, capitals and repetitions come back; blanks count as one."""
    tokenizer = Tokenizer.train(["the cat sat dog mat ! isn't 4 3 5 6 7 8 9 10 11 12"], min_freq=1)
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


@given(st.lists(st.integers(0, 30)))
def test_any_ids_can_be_decoded(ids: list[int]) -> None:
    for tokenizer in tokenizers():
        known = [index % len(tokenizer.vocab) for index in ids]
        assert tokenizer.decode(np.array(known, dtype=np.int64)) == tokenizer.decode(known)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True))
def test_a_vocabulary_comes_back(words: list[str]) -> None:
    assume(not set(words) & set(SPECIALS))
    vocab = Vocab(words)
    assert Vocab.from_json(vocab.to_json()) == vocab
    assert [vocab.index(word) for word in words] == list(range(9, 9 + len(words)))
    assert Tokenizer.from_json(Tokenizer.from_vocab(vocab).to_json()).vocab == vocab


@given(st.lists(PLAIN.filter(str.strip), min_size=1))
def test_lines_are_read_back(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8", newline="")
    assert list(read_texts(path)) == [texts[0].removeprefix("\ufeff"), *texts[1:]] or not (
        texts[0].removeprefix("\ufeff").strip()
    )


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
            PLAIN.filter(bool),
        ),
        min_size=1,
    )
)
def test_rows_are_read_back(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path, lines = tmp_path / "a.csv", tmp_path / "a.jsonl"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "label"), *rows])
    for ascii_alone in (True, False):
        lines.write_text(
            "\n".join(
                json.dumps({"text": t, "label": y}, ensure_ascii=ascii_alone) for t, y in rows
            ),
            encoding="utf-8",
        )
        assert read_labelled(lines) == ([t for t, _ in rows], [y for _, y in rows])
    assert read_labelled(path) == ([t for t, _ in rows], [y for _, y in rows])
    assert list(read_texts(path, on_error="skip")) == [t for t, _ in rows]


@st.composite
def changed(draw, content: bytes) -> bytes:
    """Good bytes, cut, with a piece put in, left out or written over."""
    place = draw(st.integers(0, len(content)))
    length = draw(st.integers(0, 40))
    return draw(
        st.sampled_from(
            [
                content[:place],
                content[:place] + draw(st.binary(max_size=40)) + content[place:],
                content[:place] + content[place + length :],
                content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place + 8 :],
            ]
        )
    )


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "parquet"])
@given(data=st.data())
@settings(max_examples=60)
def test_changed_files_end_in_the_documented_errors(target: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(seeds(target)), label="seed")
    TARGETS[target](data.draw(st.one_of(changed(seed), st.binary(max_size=200)), label="content"))


@pytest.mark.parametrize("target", ["txt", "csv", "jsonl"])
@given(st.lists(st.binary(max_size=30), max_size=6))
def test_skipping_loses_no_line_that_can_be_read(
    tmp_path: Path, target: str, lines: list[bytes]
) -> None:
    """Good lines between any bytes come through: the bytes hold no line end, nor a quote."""
    noise = [line.translate(None, b'\n\r"') for line in lines]
    good = {
        "txt": [b"good %d" % n for n in range(len(noise))],
        "csv": [b"good %d,1" % n for n in range(len(noise))],
        "jsonl": [b'{"text": "good %d"}' % n for n in range(len(noise))],
    }[target]
    first = {"txt": b"first", "csv": b"text,n", "jsonl": b'{"text": "first"}'}[target]
    mixed = [part for pair in zip(noise, good, strict=True) for part in pair]
    path = tmp_path / f"a.{target}"
    path.write_bytes(b"\n".join([first, *mixed, good[0] if good else first]))
    with suppress(ValueError):
        found = list(read_texts(path, on_error="skip"))
        assert [t for t in found if t in {f"good {n}" for n in range(9)}][: len(good)] == [
            f"good {n}" for n in range(len(good))
        ]
        return
    assert target == "csv" and not good


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def document(draw, good: object) -> object:
    """A JSON document in which one value is another one, or gone."""
    whole = copy.deepcopy(good)
    inner = whole
    while True:
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        key = draw(st.sampled_from(list(keys)))
        if isinstance(inner[key], (dict, list)) and inner[key] and draw(st.booleans()):
            inner = inner[key]
            continue
        if draw(st.booleans()):
            inner[key] = draw(JSON)
        else:
            del inner[key]
        return whole


@pytest.mark.parametrize("kind", range(3), ids=["word", "subword", "huggingface"])
@given(data=st.data())
def test_changed_tokenizers_are_refused_or_work(kind: int, data: st.DataObject) -> None:
    good = json.loads(tokenizers()[kind].to_json())
    TARGETS["tokenizer_json"](json.dumps(data.draw(document(good))).encode())


@given(data=st.data())
def test_changed_tokenizers_of_hugging_face_are_refused_or_work(data: st.DataObject) -> None:
    good = json.loads(tokenizers()[1].to_huggingface().to_str())
    TARGETS["huggingface_json"](json.dumps(data.draw(document(good))).encode())


@given(data=st.data())
def test_changed_descriptions_of_a_store_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    directory = tmp_path / "store"
    directory.mkdir(exist_ok=True)
    for name, content in store_files().items():
        (directory / name).write_bytes(content)
    meta = data.draw(document(json.loads(store_files()["meta.json"])))
    (directory / "meta.json").write_text(json.dumps(meta))
    with suppress(ValueError):
        found = TokenStore(directory)
        assert len(found) == len(TEXTS) * 3 and len(found.stream()[:]) == len(found.ids)


def _all_pickles() -> st.SearchStrategy[bytes]:
    values = st.recursive(
        st.one_of(st.none(), st.integers(), st.text(max_size=5), st.binary(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.tuples(inner, inner),
            st.dictionaries(st.text(max_size=3), inner, max_size=2),
            st.sets(st.integers(), max_size=2),
        ),
        max_leaves=8,
    )
    return st.tuples(values, st.integers(0, 5)).map(lambda p: pickle.dumps(p[0], protocol=p[1]))


@given(_all_pickles())
def test_of_pickles_only_lists_of_strings_are_taken(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "itos.pkl"
    path.write_bytes(content)
    value = pickle.load(io.BytesIO(content))
    if type(value) is list and all(type(word) is str for word in value):
        assert read_words(path) == value
    else:
        with pytest.raises(ValueError, match="is refused: "):
            read_words(path)


@given(data=st.data())
def test_changed_descriptions_of_a_model_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    directory = tmp_path / "model"
    directory.mkdir(exist_ok=True)
    for name, content in model_files().items():
        (directory / name).write_bytes(content)
    config = data.draw(document(json.loads(model_files()["config.json"])))
    (directory / "config.json").write_text(json.dumps(config))
    try:
        load_model(directory)
    except (ValueError, FileNotFoundError) as error:
        assert str(directory) in str(error), error
