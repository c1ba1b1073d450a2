"""Tables decide their columns in one way: exactly one match, or a refusal that names all of them.

Of pandas, pyarrow, NumPy and Python here; those of polars and `datasets` in tests/interop.
"""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import dataset as arrow_datasets
from pyarrow import parquet
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT, ULMFiTClassifier
from ulmfit_fast.cli.program import app
from ulmfit_fast.data import (
    ClassifierBatches,
    Tokenizer,
    TokenStore,
    concatenate_documents,
    read_labelled,
    read_texts,
)
from ulmfit_fast.data.reading.published import read_wikitext
from ulmfit_fast.serving.saliency import explain
from ulmfit_fast.ulmfit.ensemble import Ensemble, fit_ensemble

TEXTS, NAMES = ["a fine film", "a dull film"], ["+", "-"]
PAIRS = (TEXTS, NAMES)
BOOLS = [True, False]
SMALL = {"emb_size": 6, "hidden_size": 8, "num_layers": 2, "min_freq": 1, "progress": False}


def named(names, *columns):
    """The same columns under these names in each kind of table that can hold a name twice."""
    table = pa.table(list(columns), names=list(names))
    frame = pd.concat([pd.Series(column) for column in columns], axis=1)
    frame.columns = list(names)
    return {
        "frame": frame,
        "Table": table,
        "RecordBatch": table.combine_chunks().to_batches()[0],
        "RecordBatchReader": table.to_reader(),
        "InMemoryDataset": arrow_datasets.dataset(table),
    }


KINDS = list(named(["text"], TEXTS))


def written(path: Path, names, rows) -> Path:
    """The same rows as a file; the names may repeat."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.table([list(c) for c in zip(*rows, strict=True)], list(names)), path)
    elif path.suffix == ".csv":
        path.write_text("".join(f"{','.join(line)}\n" for line in [names, *rows]))
    else:
        pairs = [zip(map(json.dumps, names), map(json.dumps, row), strict=True) for row in rows]
        lines = (", ".join(map(": ".join, row)) for row in pairs)
        path.write_text("".join(f"{{{line}}}\n" for line in lines))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_read_by_column(kind: str) -> None:
    for names, columns in ((["label", "text"], [NAMES, TEXTS]), (["x", "y"], [TEXTS, NAMES])):
        own = ["x", "y"] if "x" in names else ["text", "label"]
        assert read_labelled(named(names, *columns)[kind], *own) == PAIRS
        assert list(read_texts(named(names, *columns)[kind], text_column=own[0])) == TEXTS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (["text", "text", "label"], "text"),
        (["text", "label", "label"], "label"),
        (["label", "text", "text"], "text"),
    ],
    ids=",".join,
)
def test_a_column_that_is_there_twice_is_refused(kind: str, names: list, wrong: str) -> None:
    shown = ", ".join(repr(name) for name in names)
    message = rf"has the column '{wrong}' 2 times; its columns are {shown}; rename or drop all but"

    def new():
        return named(names, *[TEXTS if name == "text" else NAMES for name in names])[kind]

    with pytest.raises(ValueError, match=message) as caught:
        read_labelled(new(), on_error="skip")
    assert "\n" not in str(caught.value)
    if wrong == "text" or kind == "InMemoryDataset":
        with pytest.raises(ValueError, match=message):
            read_texts(new())
    else:
        assert list(read_texts(new())) == TEXTS


@pytest.mark.parametrize("kind", KINDS)
def test_another_column_may_be_there_twice(kind: str) -> None:
    names = ["id", "text", "id", "label"]
    if kind == "InMemoryDataset":
        with pytest.raises(ValueError, match="the column 'id' 2 times; its columns are 'id', 'te"):
            read_texts(named(names, NAMES, TEXTS, NAMES, NAMES)[kind])
        return
    assert list(read_texts(named(names, NAMES, TEXTS, NAMES, NAMES)[kind])) == TEXTS
    assert read_labelled(named(names, NAMES, TEXTS, NAMES, NAMES)[kind]) == PAIRS


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_with_a_column_twice(tmp_path: Path, suffix: str, caplog) -> None:
    message = r"has the column 'text' 2 times; its columns are 'text', 'text', 'label'; rename"
    rows = [("a", "b", "+"), ("c", "d", "-")]
    path = written(tmp_path / f"a{suffix}", ["text", "text", "label"], rows)
    for read in (read_labelled, lambda source: list(read_texts(source))):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path = written(tmp_path / f"b{suffix}", ["id", "text", "id", "label"], [("1", "a", "2", "+")])
    assert read_labelled(path) == (["a"], ["+"])


def test_one_object_with_a_key_twice_is_a_row_that_cannot_be_read(tmp_path: Path, caplog) -> None:
    path = tmp_path / "a.jsonl"
    good = '{"text": "a", "label": "+", "more": {"text": 1, "text": 2}}\n'
    path.write_text(good + '{"text": "b", "label": "+", "te\\u0078t": "c"}\n')
    with pytest.raises(ValueError, match=r"line 2 has the column 'text' 2 times; its columns are"):
        read_labelled(path)
    assert read_labelled(path, on_error="skip") == (["a"], ["+"])
    assert "1 row skipped" in caplog.text


@pytest.mark.parametrize("header", ["Text", " text", "text ", "TEXT", "\ufefftext", "te xt"])
def test_a_name_that_differs_by_blanks_or_case_is_told(tmp_path: Path, header: str) -> None:
    # The first mark at the start of a file belongs to the encoding, the second to the name.
    path = tmp_path / "a.csv"
    path.write_text(f"\ufeff{header},label\na,+\n", encoding="utf-8")
    sources = [path, *named([header, "label"], TEXTS, NAMES).values(), {header: TEXTS, "label": 1}]
    for source in sources:
        with pytest.raises(ValueError, match="has no column 'text'") as caught:
            list(read_texts(source))
        argument = " as text_column=" if source is path else ""
        assert str(caught.value).endswith(
            f"its columns are {header!r}, 'label'; pass the name of one{argument}, "
            f"such as {header!r}"
        )
    assert read_labelled(path, header) == (["a"], ["+"])


def test_the_exact_name_wins_over_one_that_looks_like_it() -> None:
    frame = pd.DataFrame({"Text": ["x", "y"], "text": TEXTS, "text ": ["x", "y"], "label": NAMES})
    assert read_labelled(frame) == PAIRS


# Names that tell kinds of tables apart, or that are attributes of one of them.
ATTRIBUTES = [
    *("features", "iter", "to_batches", "columns", "schema", "shape", "column_names", "names"),
    *("num_columns", "slice", "read_next_batch", "scanner", "collect", "collect_schema", "dtype"),
    *("select_columns", "with_format", "to_pylist", "hasnans", "iloc", "values", "index"),
    *("__len__", "__class__", "keys"),
]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_column_with_the_name_of_an_attribute(name: str) -> None:
    frame = pd.DataFrame({name: ["x", "y"], "text": TEXTS, "label": NAMES})
    assert read_labelled(frame) == PAIRS and list(read_texts(frame)) == TEXTS
    swapped = frame.drop(columns="text").rename(columns={name: "text"}).assign(**{name: TEXTS})
    assert list(read_texts(swapped, text_column=name)) == TEXTS
    records = np.array(list(zip(NAMES, *PAIRS, strict=True)), dtype=[(name, "U9"), *FIELDS])
    for source in (records, records.view(np.recarray)):
        assert read_labelled(source) == PAIRS
    for table in named([name, "text", "label"], NAMES, TEXTS, NAMES).values():
        assert read_labelled(table) == PAIRS
    assert read_labelled({name: NAMES, "text": TEXTS, "label": NAMES}) == PAIRS


FIELDS = [("text", "U20"), ("label", "U9")]


def test_columns_with_the_names_of_all_attributes_at_once() -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": NAMES, **dict.fromkeys(ATTRIBUTES, NAMES)})
    assert read_labelled(frame) == PAIRS and list(read_texts(frame)) == TEXTS
    assert "film" in Tokenizer.train(frame, min_freq=1).vocab
    for name, table in named(frame.columns, *[frame[c].tolist() for c in frame]).items():
        assert read_labelled(table) == PAIRS, name


def test_dicts_records_and_structured_arrays() -> None:
    columns = {"text": np.array(TEXTS), "label": pd.Series(NAMES), "id": 7}
    records = [{"text": text, "label": name} for text, name in zip(*PAIRS, strict=True)]
    array = np.array(list(zip(*PAIRS, strict=True)), dtype=FIELDS)
    for source in (columns, records, (r for r in records), tuple(records), array):
        assert read_labelled(source) == PAIRS
    for source in (columns, records, (r for r in records), array):
        assert list(read_texts(source)) == TEXTS
    assert list(read_texts([*records, "a text"])) == [*TEXTS, "a text"]
    assert [type(text) for text in read_texts(columns)] == [str] * 2
    many = pa.table({"text": [f"text {n}" for n in range(2_500)]})
    assert list(read_texts(many)) == list(read_texts(many["text"])) == many["text"].to_pylist()


def test_records_that_cannot_be_read(caplog) -> None:
    records = [{"text": "a", "label": "+"}, {"Text": "b", "label": "+"}, {"text": 3, "label": "-"}]
    with pytest.raises(ValueError, match=r"texts.1. has no column 'text'; .*, such as 'Text'"):
        list(read_texts(records))
    with pytest.raises(ValueError, match=r"record 1 has no column 'text'; its columns are 'Text'"):
        read_labelled(records)
    assert list(read_texts(records, on_error="skip")) == ["a"]
    assert read_labelled(records, on_error="skip") == (["a"], ["+"])
    assert "2 rows skipped" in caplog.text and "'text' is 3, expected a string" in caplog.text


TWO_LEVELS = pd.DataFrame({("text", "en"): TEXTS, ("label", ""): NAMES})


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ({"text": "a film", "label": "+"}, TypeError, r"has 'a film' .str. in 'text', expected a"),
        ({"text": TEXTS, "label": ["+"]}, ValueError, "2 values in 'text' and 1 values in 'label'"),
        ({"text": pd.DataFrame({"a": TEXTS}), "label": NAMES}, TypeError, r".DataFrame. in 'text'"),
        ({"text": dict(enumerate(TEXTS)), "label": NAMES}, TypeError, r".dict. in 'text', expect"),
        ({"train": TEXTS, "test": TEXTS}, ValueError, "its columns are 'train', 'test'; pass the"),
        ([pd.DataFrame({"text": TEXTS})] * 2, TypeError, "pass a single table, several joined"),
        (pa.table({"text": TEXTS}).to_batches(), TypeError, "pass a single table, several joined"),
        (TWO_LEVELS, ValueError, r"its columns are .'text', 'en'., .'label', ''.; pass"),
        (pd.DataFrame([TEXTS]), ValueError, "no column 'text'; its columns are 0, 1; pass"),
        (pd.DataFrame(), ValueError, "no column 'text'; its columns are none"),
        (pd.DataFrame({"text": [], "label": []}), ValueError, "is empty, expected at least one"),
        (pa.table({"text": pa.array([], "string"), "label": []}), ValueError, "is empty, expected"),
        (pd.DataFrame(columns=range(150)), ValueError, "97, 98, 99 and 50 more; pass the name"),
        (np.array([TEXTS]), TypeError, "array.*ndarray"),
        (3, TypeError, r"source is 3 .int., expected a path or texts"),
        (b"text", TypeError, "source is b'text'"),
        (list(zip(*PAIRS, strict=True)), TypeError, r"'a fine film', '\+'"),
    ],
    ids=[
        "one record", "lengths", "frame in a dict", "dict in a dict", "dict of splits", "frames",
        "batches", "two levels", "numbers", "no columns", "no rows", "no rows of Arrow", "many",
        "array", "number", "bytes", "pairs",
    ],
)  # fmt: skip
def test_what_is_no_table_of_texts(source, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        read_labelled(source)
    assert "\n" not in str(caught.value)
    if "label" not in message:
        with pytest.raises(error) as caught:
            list(read_texts(source))
        assert "\n" not in str(caught.value)


def test_an_array_of_one_value_alone_is_no_list(model: ULMFiT) -> None:
    one, number = np.array("abc"), torch.tensor(3)
    for call in (
        lambda: read_texts(one),
        lambda: read_texts(number),
        lambda: read_labelled({"text": one, "label": NAMES}),
        lambda: read_labelled({"text": TEXTS, "label": number}),
        lambda: Tokenizer.train(one),
        lambda: model.fit_classifier(TEXTS, one, epochs=1),
        lambda: model.fit_classifier(TEXTS, number, epochs=1),
    ):
        with pytest.raises(TypeError, match=r"(array\('abc'.*|tensor\(3\)).*, expected a "):
            call()


@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_records_of_numpy_stand_in_one_row(shape: tuple[int, ...]) -> None:
    """The letters of one record alone were texts."""
    kinds = [("text", "U3"), ("label", "U3")]
    records = np.array([("abc", "xyz"), ("def", "uvw")], kinds)
    given = np.array(("abc", "xyz"), kinds) if shape == () else records.reshape(shape)
    for read in (read_labelled, lambda source: list(read_texts(source))):
        with pytest.raises(ValueError, match=r"ndarray has shape \(.*\), expected \(N,\), a rec"):
            read(given)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_has_no_order_in_which_values_belong_together(model: ULMFiT, kind: type) -> None:
    own, what = kind(TEXTS), f"{kind.__name__}, which has no order, expected a list"
    with pytest.raises(TypeError, match=f"'text' of the dict is a {what}"):
        read_labelled({"text": own, "label": NAMES})
    with pytest.raises(TypeError, match=f"'label' of the dict is a {what}"):
        read_labelled({"text": TEXTS, "label": kind(NAMES)})
    for name, arguments in (
        ("texts", (own, NAMES)),
        ("labels", (TEXTS, kind(NAMES))),
        ("sample_weight", (TEXTS, NAMES, kind([1.0, 2.0]))),
    ):
        texts, labels, *weights = arguments
        given = dict(zip(["sample_weight"], weights, strict=False))
        with pytest.raises(TypeError, match=f"{name} is a {what}"):
            model.fit_classifier(texts, labels, epochs=1, **given)
    with pytest.raises(TypeError, match=f"X is a {what}"):
        ULMFiTClassifier(model).fit(own, NAMES)
    # Alone they are texts, and keys are in order.
    assert sorted(read_texts(own)) == sorted(TEXTS)
    assert read_labelled({"text": dict.fromkeys(TEXTS).keys(), "label": NAMES}) == PAIRS


def test_any_name_that_a_frame_has_can_be_passed() -> None:
    assert read_labelled(TWO_LEVELS, ("text", "en"), ("label", "")) == PAIRS
    odd = pd.DataFrame([["x", *pair] for pair in zip(*PAIRS, strict=True)], columns=[pd.NA, 0, 1])
    assert read_labelled(odd, 0, 1) == PAIRS
    with pytest.raises(ValueError, match=r"no column \['text'\]; its columns are <NA>, 0, 1; pass"):
        list(read_texts(odd, text_column=["text"]))


@pytest.fixture(scope="module")
def model() -> ULMFiT:
    fitted = ULMFiT(**SMALL).pretrain(TEXTS * 12, epochs=1, batch_size=4, bptt=5)
    return fitted.fit_classifier(TEXTS * 12, BOOLS * 12, epochs=1)


LM = {"epochs": 1, "batch_size": 4, "bptt": 5}
# Whatever takes texts, and something that shows what it saw.
TAKERS = {
    "pretrain": lambda m, t, p: m.copy().pretrain(t, **LM).histories["pretrain"].losses,
    "fine_tune_lm": lambda m, t, p: m.copy().fine_tune_lm(t, **LM).histories["fine_tune_lm"].losses,
    "use_vocabulary_of": lambda m, t, p: m.copy().use_vocabulary_of(t).tokenizer.vocab.words,
    "fit_classifier": lambda m, t, p: m.copy().fit_classifier(t, NAMES * 12, epochs=1).labels,
    "perplexity": lambda m, t, p: m.perplexity(t),
    "predict": lambda m, t, p: m.predict(t),
    "predict_proba": lambda m, t, p: m.predict_proba(t).tolist(),
    "predict_stream": lambda m, t, p: list(m.predict_stream(t)),
    "explain": lambda m, t, p: m.explain(t),
    "saliency.explain": lambda m, t, p: explain(m, t),
    "Ensemble": lambda m, t, p: Ensemble([m]).predict(t),
    "fit_ensemble": lambda m, t, p: fit_ensemble(
        t, NAMES * 12, pretrain_texts=t, fine_tune_texts=t, pretrain=LM, fine_tune_lm=LM,
        fit_classifier={"epochs": 1}, **SMALL
    ).labels,
    "TokenStore": lambda m, t, p: len(TokenStore.build(p / "store", t, m.tokenizer, workers=1)),
    "Tokenizer.train": lambda m, t, p: Tokenizer.train(t, min_freq=1).vocab.words,
    "subwords": lambda m, t, p: sorted(Tokenizer.train(t, "subword", max_vocab=40).vocab.words),
    "encode_batch": lambda m, t, p: [ids.tolist() for ids in m.tokenizer.encode_batch(t)],
    "encoder": lambda m, t, p: [ids.tolist() for ids in m.tokenizer.encoder()(t)],
    "read_wikitext": lambda m, t, p: list(read_wikitext(t)),
}  # fmt: skip


@pytest.mark.parametrize("taker", TAKERS)
def test_whatever_takes_texts_reads_a_table_by_column(model: ULMFiT, tmp_path: Path, taker) -> None:
    texts = TEXTS * 12
    if taker == "read_wikitext":
        texts = ["\n", " = Film = \n", "\n", *TEXTS]
    take = TAKERS[taker]
    label = ["+"] * len(texts)
    expected = take(model, texts, tmp_path / "0")
    frame = pd.DataFrame({"label": label, "text": texts, "features": label})
    assert take(model, frame, tmp_path / "1") == expected
    assert take(model, pa.table(frame), tmp_path / "2") == expected
    assert take(model, {"text": texts}, tmp_path / "3") == expected
    assert take(model, pa.array(texts), tmp_path / "4") == expected
    twice = pd.concat([frame, frame[["text"]]], axis=1)
    with pytest.raises(ValueError, match="the column 'text' 2 times; its columns are 'label', 't"):
        take(model, twice, tmp_path / "5")
    with pytest.raises(ValueError, match="no column 'text'; its columns are 'label', 'features'"):
        take(model, frame.drop(columns="text"), tmp_path / "6")


def test_tokenizers_take_the_name_of_the_column() -> None:
    frame = pd.DataFrame({"body": TEXTS, "text": ["x", "y"]})
    tokenizer = Tokenizer.train(frame, min_freq=1, text_column="body")
    assert "film" in tokenizer.vocab and "x" not in tokenizer.vocab
    assert list(map(len, tokenizer.encode_batch(frame, text_column="body"))) == [4, 4]
    with pytest.raises(TypeError, match=r"texts.0. is .*DataFrame.*a single table"):
        Tokenizer.train([frame, frame])
    with pytest.raises(TypeError, match=r"texts is .*Path.*, expected a list of texts"):
        Tokenizer.train(Path("a.txt"))


def test_a_table_is_no_list_of_documents() -> None:
    frame = pd.DataFrame({0: TEXTS, 1: TEXTS})
    for take in (ClassifierBatches, concatenate_documents):
        with pytest.raises(TypeError, match=r"documents are .*DataFrame.*, expected the token ids"):
            take(frame)


def boolean_sources(tmp_path: Path) -> dict:
    table = pa.table({"text": TEXTS, "label": BOOLS})
    parquet.write_table(table, tmp_path / "a.parquet")
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, BOOLS, strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    frame = table.to_pandas()
    return {
        "frame": frame,
        "object": frame.astype({"label": object}),
        "nullable": frame.convert_dtypes(),
        "of Arrow": frame.convert_dtypes(dtype_backend="pyarrow"),
        "category": frame.astype({"label": "category"}),
        "Table": table,
        "dict": {"text": TEXTS, "label": np.array(BOOLS)},
        "records": rows,
        "structured": np.array(list(zip(TEXTS, BOOLS, strict=True)), [FIELDS[0], ("label", "?")]),
        "parquet": tmp_path / "a.parquet",
        "jsonl": tmp_path / "a.jsonl",
    }


def test_booleans_are_labels_in_every_table(tmp_path: Path) -> None:
    for name, source in boolean_sources(tmp_path).items():
        texts, labels = read_labelled(source)
        assert (texts, labels) == (TEXTS, BOOLS), name
        assert {type(label) for label in labels} == {bool}, name


@pytest.mark.parametrize(
    "labels",
    [
        BOOLS * 12,
        np.array(BOOLS * 12),
        torch.tensor(BOOLS * 12),
        pa.array(BOOLS * 12),
        pa.chunked_array([BOOLS] * 12),
        pd.Series(BOOLS * 12),
        pd.Series(BOOLS * 12, dtype="boolean"),
        pd.Series(BOOLS * 12, dtype=object),
        pd.DataFrame({"x": NAMES * 12, "label": BOOLS * 12}),
        {"label": BOOLS * 12},
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_booleans_are_labels_beside_the_texts(labels) -> None:
    model = ULMFiT(**SMALL).fit_classifier(TEXTS * 12, labels, epochs=1)
    assert [(type(x), x) for x in model.labels] == [(bool, False), (bool, True)]


def test_booleans_come_back(model: ULMFiT, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = ULMFiT.load(tmp_path / "model")
    assert [(type(x), x) for x in loaded.labels] == [(bool, False), (bool, True)]
    found = loaded.predict(TEXTS)
    assert {type(label) for label in found} == {bool}
    assert json.loads(json.dumps(found)) == found == model.predict(TEXTS)
    assert loaded.explain(TEXTS[:1], True)[0].label is True
    assert Ensemble([loaded]).predict(TEXTS) == found


def test_booleans_on_the_command_line(model: ULMFiT, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    (tmp_path / "a.txt").write_text("\r".join(TEXTS))
    base = ["--model", str(tmp_path / "model"), "--text", str(tmp_path / "a.txt"), "--out"]
    expected = model.predict(TEXTS)
    for kind in ("csv", "jsonl"):
        out = tmp_path / f"out.{kind}"
        done = CliRunner().invoke(app, ["predict", *base, str(out), "--format", kind, "--all"])
        assert done.exit_code == 0, done.output
        if kind == "jsonl":
            rows = [json.loads(line) for line in out.read_text().splitlines()]
            assert [row["label"] for row in rows] == expected
            assert all(list(row["probabilities"]) == ["False", "True"] for row in rows)
        else:
            assert pd.read_csv(out)["label"].tolist() == expected
    page = ["explain", *base, str(tmp_path / "a.html"), "--label", "True"]
    assert CliRunner().invoke(app, page).exit_code == 0
    (tmp_path / "b.csv").write_text("text,label,text\na,+,b\n")
    base[3] = str(tmp_path / "b.csv")
    done = CliRunner().invoke(app, ["fit-classifier", *base, str(tmp_path / "no")])
    assert done.exit_code == 2 and "'text' 2 times; its columns are 'text', 'lab" in done.output
    assert not (tmp_path / "no").exists()


def test_true_is_neither_1_nor_a_word(tmp_path: Path) -> None:
    for labels in ([True, 1], [1, True], [0, False], [False, 0], [True, "True"], ["False", False]):
        with pytest.raises(ValueError, match=r"labels\[1\] is the \w+ .*, and labels\[0\] the"):
            ULMFiT(**SMALL).fit_classifier(TEXTS, labels)
        with pytest.raises(ValueError, match=r"row 1: 'label' is .* in the dict, row 0, expected"):
            read_labelled({"text": TEXTS, "label": labels})
    assert read_labelled({"text": TEXTS, "label": [True, 2]})[1] == [True, 2]


NAN = float("nan")
MISSING = [None, NAN, pd.NA, pd.NaT, np.datetime64("NaT"), np.float32("nan"), ""]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_a_missing_label_is_named_with_its_row(missing, caplog) -> None:
    texts, labels = TEXTS * 2, ["+", "-", "+", missing]
    what = "empty" if isinstance(missing, str) else ".*"
    with pytest.raises(ValueError, match=rf"labels\[3\] is {what}, expected a label; fill") as own:
        ULMFiT(**SMALL).fit_classifier(texts, labels)
    assert isinstance(own.value, TypeError), "as a label of another kind is"
    frame = pd.DataFrame({"text": texts, "label": pd.Series(labels, dtype=object)})
    records = frame.to_dict("records")
    for source, place in ((frame, "row 3"), (records, "record 3"), (dict(frame), "row 3")):
        with pytest.raises(
            ValueError, match=rf"{place}: 'label' is {what}, expected a label; fill"
        ):
            ULMFiT(**SMALL).fit_classifier(source)
        assert read_labelled(source, on_error="skip") == (texts[:3], labels[:3])
        assert "1 row skipped" in caplog.text
        caplog.clear()


def test_a_missing_label_among_numbers_is_the_one_that_is_named(caplog) -> None:
    frame = pd.DataFrame({"text": TEXTS * 2, "label": [1, 0, None, 1]})
    assert frame["label"].dtype == float
    with pytest.raises(ValueError, match="row 2: 'label' is nan, expected a label"):
        read_labelled(frame)
    assert read_labelled(frame, on_error="skip")[1] == [1, 0, 1]
    for labels in (frame["label"], frame["label"].tolist(), torch.tensor(frame["label"].tolist())):
        with pytest.raises(ValueError, match=r"labels\[2\] is nan, expected a label"):
            ULMFiT(**SMALL).fit_classifier(TEXTS * 2, labels)
    for values, row, fault in (([1.0, 0.0], 0, 1.0), ([1.5, None], 0, 1.5), ([0, 1.5], 1, 1.5)):
        with pytest.raises(
            ValueError, match=rf"row {row}: 'label' is {fault}, expected a string, an integer or"
        ):
            read_labelled(pd.DataFrame({"text": TEXTS, "label": values}))
    with pytest.raises(TypeError, match=r"labels\[0\] is 1.0 .float., expected a str, an int or a"):
        ULMFiT(**SMALL).fit_classifier(TEXTS, [1.0, 0.0])


def test_floats_that_a_missing_label_made_of_integers(tmp_path: Path, caplog) -> None:
    texts, labels = ["a", "b", "", "c"], [1.0, 0.0, None, 1.0]
    frame = pd.DataFrame({"text": texts, "label": labels})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    # Not as pandas writes them, which leaves out the ".0".
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.jsonl").write_text((tmp_path / "b.jsonl").read_text().replace("null", "NaN"))
    fields = [FIELDS[0], ("label", "f8")]
    for source, place in (
        (rows, "record 2"),
        (frame.to_dict("list"), "the dict, row 2"),
        (frame, "the DataFrame, row 2"),
        (frame.astype({"label": "float32"}), "row 2"),
        (frame.astype({"label": object}), "row 2"),
        (frame.astype({"label": "Float64"}), "row 2"),
        (pa.table({"text": texts, "label": labels}), "the Table, row 2"),
        (np.array(list(zip(texts, frame["label"], strict=True)), fields), "the ndarray, row 2"),
        (tmp_path / "a.parquet", "a.parquet, row 2"),
        (tmp_path / "a.jsonl", "a.jsonl, line 3"),
        (tmp_path / "b.jsonl", "b.jsonl, line 3"),
        (tmp_path / "c.jsonl", "c.jsonl, line 3"),
    ):
        with pytest.raises(ValueError, match=f"{place}: 'label' is .*, expected a label; fill"):
            read_labelled(source)
        caplog.clear()
        found = read_labelled(source, on_error="skip")
        assert found == (["a", "b", "c"], [1, 0, 1]) and {type(n) for n in found[1]} == {int}
        assert "1 row skipped: " in caplog.text and f"{place}: 'label' is" in caplog.text
    # A row of which nothing is there, as at the end of many a sheet.
    frame.loc[2, "text"] = None
    assert read_labelled(frame, on_error="skip")[1] == [1, 0, 1]
    with pytest.raises(ValueError, match=r"row 0: 'label' is 1.0, expected a string, an integer"):
        read_labelled(frame.drop(index=2), on_error="skip")


@pytest.mark.parametrize(
    "info",
    [
        {"features": {"label": {"names": 5}}},
        {"features": {"label": {"names": [1, 2]}}},
        {"features": {"label": {"names": {"a": 1}}}},
        {"features": {"label": 3}},
        {"features": "label"},
        {"features": []},
        None,
    ],
    ids=str,
)
def test_metadata_that_name_no_classes_are_left_alone(tmp_path: Path, info) -> None:
    metadata = {b"huggingface": json.dumps({"info": info}).encode()}
    table = pa.table({"text": TEXTS, "label": [0, 1]}).replace_schema_metadata(metadata)
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_labelled(table) == read_labelled(tmp_path / "a.parquet") == (TEXTS, [0, 1])


def test_labels_in_a_table_are_read_by_column() -> None:
    frame = pd.DataFrame({"text": TEXTS * 12, "label": NAMES * 12, "other": ["x"] * 24})

    def new(labels):
        return ULMFiT(**SMALL).fit_classifier(frame, labels, epochs=1).labels

    assert new(frame[["label"]]) == new(frame) == ["+", "-"]
    with pytest.raises(
        ValueError, match="no column 'label'; its columns are 'text', 'other'; pass"
    ):
        new(frame[["text", "other"]])
    with pytest.raises(ValueError, match="the column 'label' 2 times; its columns are 'label', 'l"):
        new(frame[["label", "label"]])
    with pytest.raises(TypeError, match=r"labels is 3 .int., expected a label for each text"):
        new(3)


def test_a_table_is_refused_before_anything_is_read(caplog) -> None:
    caplog.set_level(logging.DEBUG)
    for source in (pd.DataFrame({"body": TEXTS}), pa.table({"body": TEXTS}), {"body": TEXTS}):
        with pytest.raises(ValueError, match="no column 'text'; its columns are 'body'"):
            read_texts(source)
