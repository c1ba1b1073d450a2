"""Frames of polars, also lazy ones, and datasets of Hugging Face as texts and labels."""

from pathlib import Path

import pytest

from ulmfit_fast import ULMFiT
from ulmfit_fast.data import Tokenizer, TokenStore, read_labelled, read_texts
from ulmfit_fast.ulmfit.ensemble import Ensemble
from ulmfit_fast.ulmfit.sklearn_classifier import ULMFiTClassifier

datasets = pytest.importorskip("datasets")
pl = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pyarrow_dataset = pytest.importorskip("pyarrow.dataset")

TEXTS, BOOLS = ["a fine film", "a dull film"] * 12, [True, False] * 12
NAMES = ["+", "-"] * 12
SIZES = {"emb_size": 6, "hidden_size": 8, "num_layers": 2, "min_freq": 1}


def kinds(**columns) -> dict:
    dataset = datasets.Dataset.from_dict(columns)
    stream = dataset.to_iterable_dataset()
    return {
        "frame": pl.DataFrame(columns),
        "lazy": pl.DataFrame(columns).lazy(),
        "dataset": dataset,
        "formatted": dataset.with_format("numpy"),
        "stream": stream,
        "mapped": stream.map(lambda row: row),
    }


@pytest.fixture(scope="module")
def model() -> ULMFiT:
    return ULMFiT(**SIZES, progress=False).fit_classifier(TEXTS, BOOLS, epochs=1)


@pytest.mark.parametrize("kind", kinds(text=TEXTS))
def test_tables_are_read_by_column(model: ULMFiT, tmp_path: Path, kind: str) -> None:
    table = kinds(label=BOOLS, text=TEXTS)[kind]
    texts, labels = read_labelled(table)
    assert (texts, labels) == (TEXTS, BOOLS) and {type(label) for label in labels} == {bool}
    assert list(read_texts(table)) == TEXTS
    tokenizer = Tokenizer.train(table, min_freq=1)
    assert tokenizer.vocab == Tokenizer.train(TEXTS, min_freq=1).vocab
    assert len(tokenizer.encode_batch(table)) == len(tokenizer.encoder()(table)) == 24
    assert len(TokenStore.build(tmp_path / "store", table, tokenizer, workers=1)) == 24
    expected = model.predict(TEXTS)
    assert model.predict(table) == Ensemble([model]).predict(table) == expected
    assert len(model.explain(table)) == 24
    fitted = ULMFiTClassifier(epochs=1, fine_tune_lm=False, model_options=SIZES).fit(table, BOOLS)
    assert fitted.classes_.tolist() == [False, True]
    assert fitted.predict(table).tolist() == fitted.predict(TEXTS).tolist()
    own = ULMFiT(**SIZES, progress=False).fit_classifier(table, table, epochs=1)
    assert own.labels == [False, True]


@pytest.mark.parametrize("kind", kinds(text=TEXTS))
@pytest.mark.parametrize("name", ["features", "iter", "to_batches", "columns", "schema", "collect"])
def test_a_column_with_the_name_of_an_attribute(kind: str, name: str) -> None:
    table = kinds(**{name: NAMES, "text": TEXTS, "label": NAMES})[kind]
    assert read_labelled(table) == (TEXTS, NAMES)
    assert list(read_texts(table, text_column=name)) == NAMES


@pytest.mark.parametrize("kind", kinds(text=TEXTS))
def test_a_missing_column_is_told_with_all_and_the_nearest(kind: str) -> None:
    table = kinds(**{"Text ": TEXTS, "label": NAMES})[kind]
    message = r"has no column 'text'; its columns are 'Text ', 'label'; pass the name of one, such"
    for take in (read_labelled, lambda t: list(read_texts(t)), Tokenizer.train):
        with pytest.raises(ValueError, match=message) as caught:
            take(table)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", kinds(text=TEXTS))
def test_a_missing_label_is_named_with_its_row(kind: str, caplog) -> None:
    table = kinds(text=TEXTS, label=[*NAMES[:19], None, *NAMES[20:]])[kind]
    if kind == "formatted":
        table = table.with_format(None)
    with pytest.raises(ValueError, match="row 19: 'label' is None, expected a label; fill it in"):
        read_labelled(table)
    assert read_labelled(table, on_error="skip")[1] == [*NAMES[:19], *NAMES[20:]]
    assert "1 row skipped" in caplog.text


@pytest.mark.parametrize("kind", kinds(text=TEXTS))
def test_floats_that_a_missing_label_made_of_integers(kind: str) -> None:
    labels = [1.0, 0.0] * 11 + [None, 1.0]
    if kind == "formatted":
        labels[22] = float("nan")
    table = kinds(text=TEXTS, label=labels)[kind]
    with pytest.raises(ValueError, match=r"row 22: 'label' is (None|nan), expected a label; fill"):
        read_labelled(table)
    kept = read_labelled(table, on_error="skip")[1]
    assert kept == [*labels[:22], 1] and {type(label) for label in kept} == {int}


def test_labels_of_polars_beside_the_texts() -> None:
    for labels in (pl.Series(BOOLS), pl.DataFrame({"label": BOOLS, "x": BOOLS})):
        model = ULMFiT(**SIZES, progress=False).fit_classifier(TEXTS, labels, epochs=1)
        assert [(type(x), x) for x in model.labels] == [(bool, False), (bool, True)]
    with pytest.raises(ValueError, match=r"labels\[23\] is None, expected a label"):
        ULMFiT(**SIZES).fit_classifier(TEXTS, pl.Series([*BOOLS[:23], None]))
    with pytest.raises(ValueError, match=r"y\[23\] is None, expected a label"):
        ULMFiTClassifier(model_options=SIZES).fit(TEXTS, pl.Series([*BOOLS[:23], None]))


def test_names_of_classes_come_with_labels_in_a_dataset_of_their_own() -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["neg", "pos"])})
    labels = datasets.Dataset.from_dict({"label": [1, 0] * 12}, features=features)
    model = ULMFiT(**SIZES, progress=False).fit_classifier(TEXTS, labels, epochs=1)
    assert model.labels == ["neg", "pos"]


def test_names_that_are_patterns_to_polars() -> None:
    frame = pl.DataFrame({"^t.*$": TEXTS, "text": NAMES, "*": NAMES})
    for table in (frame, frame.lazy()):
        assert read_labelled(table, "^t.*$", "*") == (TEXTS, NAMES)
        with pytest.raises(ValueError, match=r"no column '\^.*\$'; its columns are '\^t"):
            list(read_texts(table, text_column="^.*$"))


def test_a_dictionary_of_datasets_is_refused(model: ULMFiT) -> None:
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})})
    for take in (read_labelled, read_texts, Tokenizer.train, model.predict, model.explain):
        with pytest.raises(TypeError, match="splits 'train', expected one of them; pass source"):
            take(splits)
    with pytest.raises(ValueError, match="no column 'text'; its columns are 'train'; pass the"):
        read_labelled(dict(splits))
    assert read_labelled(splits["train"].add_column("label", NAMES)) == (TEXTS, NAMES)


def test_several_frames_are_refused_in_one_line() -> None:
    frame = pl.DataFrame({"text": TEXTS})
    for take in (read_labelled, lambda t: list(read_texts(t)), Tokenizer.train):
        with pytest.raises(TypeError, match="pass a single table, several joined") as caught:
            take([frame, frame])
        assert "\n" not in str(caught.value)


def shouted(batch: dict) -> dict:
    return {
        "text": [
            f"{title}: {text.upper()}"
            for title, text in zip(batch["title"], batch["text"], strict=True)
        ],
        "label": [not label for label in batch["label"]],
    }


SHOUTED = [f"x: {text.upper()}" for text in TEXTS]


def test_a_transform_decides_what_a_dataset_gives(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_dict({"title": ["x"] * 24, "text": TEXTS, "label": BOOLS})
    rows = dataset.with_transform(shouted)
    dataset.set_transform(shouted)
    arrow = dataset.with_transform(lambda batch: pa.table(shouted(batch)))
    frames = dataset.with_transform(lambda batch: pl.DataFrame(shouted(batch)))
    flipped = [not label for label in BOOLS]
    for table in (rows, dataset, arrow, frames):
        assert read_labelled(table) == (SHOUTED, flipped)
        assert list(read_texts(table)) == SHOUTED
        tokenizer = Tokenizer.train(table, min_freq=1)
        assert tokenizer.vocab == Tokenizer.train(SHOUTED, min_freq=1).vocab
        assert len(TokenStore.build(tmp_path / "s", table, tokenizer, workers=1)) == 24
        own = ULMFiT(**SIZES, progress=False).fit_classifier(table, table, epochs=1)
        assert own.predict(table) == own.predict(SHOUTED)
        (tmp_path / "s").rename(tmp_path / f"{id(table)}")
    chosen = dataset.with_format("custom", columns=["text"], transform=dict)
    assert list(read_texts(chosen)) == TEXTS
    with pytest.raises(ValueError, match="the Dataset after its transform has no column 'label'"):
        read_labelled(chosen)
    for given in (["words"], [{"text": "a"}]):
        with pytest.raises(
            TypeError, match=r"the Dataset after its transform gives .*, expected a"
        ):
            read_labelled(dataset.with_transform(lambda batch, given=given: given))


def test_the_labels_of_a_transform_are_not_renamed() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["1", "2", "3"])}
    )
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 2] * 12}, features=features)
    liked = dataset.with_transform(lambda b: {**b, "label": [int(n > 1) for n in b["label"]]})
    assert read_labelled(liked)[1] == [0, 1] * 12
    assert read_labelled(dataset)[1] == ["1", "3"] * 12


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("kind", ["arrow", "polars", "pandas", "numpy", "torch", None])
def test_a_stream_of_unknown_columns_in_any_format(kind: str | None) -> None:
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "label": BOOLS})
    stream = dataset.to_iterable_dataset()
    generated = datasets.IterableDataset.from_generator(lambda: iter(dataset))
    for table in (
        stream.map(lambda row: row).with_format(kind),
        stream.with_format(kind).map(lambda rows: rows, batched=True),
        generated.with_format(kind),
    ):
        assert table.column_names is None
        texts, labels = read_labelled(table)
        assert (texts, labels) == (TEXTS, BOOLS) and {type(label) for label in labels} == {bool}
        assert list(read_texts(table)) == TEXTS
        with pytest.raises(ValueError, match="no column 'body'; its columns are 'text', 'label'"):
            list(read_texts(table, text_column="body"))


def test_names_of_classes_in_arrow_as_in_a_file(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    numbers = [1, 0] * 12
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "label": numbers}, features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    expected = read_labelled(tmp_path / "a.parquet")
    assert expected[1][:2] == ["pos", "neg"]
    table = parquet.read_table(tmp_path / "a.parquet")
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
    scanned = pyarrow_dataset.dataset(tmp_path / "a.parquet")
    for source in (table, table.to_batches()[0], reader, scanned, dataset.with_format("arrow")[:]):
        assert read_labelled(source) == expected
    model = ULMFiT(**SIZES, progress=False).fit_classifier(TEXTS, table, epochs=1)
    assert model.labels == ["neg", "pos"]
    fitted = ULMFiTClassifier(epochs=1, fine_tune_lm=False, model_options=SIZES)
    assert fitted.fit(table, table["label"]).classes_.tolist() == [0, 1], "a column has no names"
    with pytest.raises(ValueError, match=r"row 0: 'label' is 7, expected 0 to 1 for the classes"):
        read_labelled(table.set_column(1, "label", pa.array([7] * 24)))
