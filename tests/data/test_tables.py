"""Parquet files, Hugging Face datasets, Arrow tables and data frames as sources of texts."""

import sys
from pathlib import Path

import pytest

from ulmfit_fast.data import read_labelled, read_texts

TEXTS, NUMBERS, NAMES = ["good, yes", "", "bad\n"], [1, 0, 1], ["neg", "pos"]
LABELS = [NAMES[number] for number in NUMBERS]


@pytest.fixture
def dataset():
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    features = datasets.Features(
        {
            "body": datasets.Value("string"),
            "stars": datasets.ClassLabel(names=NAMES),
            "other": datasets.Value("float32"),
        }
    )
    rows = {"body": TEXTS, "stars": NUMBERS, "other": [0.5] * 3}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason="needs the package pyarrow")


def write_parquet(path: Path, table) -> Path:
    from pyarrow import parquet

    parquet.write_table(table, path)
    return path


def test_dataset(dataset) -> None:
    assert list(read_texts(dataset, text_column="body")) == TEXTS
    assert read_labelled(dataset, "body", "stars") == (TEXTS, LABELS)
    assert list(read_texts(dataset["body"])) == TEXTS
    assert read_labelled(dataset.with_format("numpy"), "body", "stars") == (TEXTS, LABELS)
    with pytest.raises(
        ValueError, match="the Dataset has no column 'text'; its columns are 'body'"
    ):
        list(read_texts(dataset))


def test_dataset_that_streams(dataset) -> None:
    stream = dataset.to_iterable_dataset()
    assert list(read_texts(stream, text_column="body")) == TEXTS
    assert read_labelled(stream, "body", "stars") == (TEXTS, LABELS)
    unknown = stream.map(lambda row: row)
    assert unknown.column_names is None or "body" in unknown.column_names
    assert list(read_texts(unknown, text_column="body")) == TEXTS
    with pytest.raises(ValueError, match="has no column 'text'"):
        list(read_texts(unknown))


def test_a_dictionary_of_datasets_is_refused(dataset) -> None:
    import datasets

    splits = datasets.DatasetDict({"train": dataset, "test": dataset})
    for read in (read_texts, read_labelled):
        with pytest.raises(TypeError, match=r"splits 'train', 'test', expected one of them; pass"):
            read(splits)


def test_rows_without_a_label_are_refused(dataset) -> None:
    rows = dataset.map(lambda row: {"stars": -1})
    with pytest.raises(ValueError, match=r"row 0: 'stars' is -1, expected 0 to 1 .* neg, pos"):
        read_labelled(rows, "body", "stars")


def test_parquet(tmp_path: Path, arrow) -> None:
    table = arrow.table({"label": NUMBERS, "text": TEXTS})
    path = write_parquet(tmp_path / "a.parquet", table)
    assert list(read_texts(path)) == list(read_texts(str(path))) == TEXTS
    assert read_labelled(path) == (TEXTS, NUMBERS)
    assert list(read_texts(table)) == TEXTS and read_labelled(table) == (TEXTS, NUMBERS)
    coded = arrow.table({"label": arrow.array(LABELS).dictionary_encode(), "text": TEXTS})
    write_parquet(tmp_path / "b.parquet", coded)
    assert read_labelled(tmp_path / "b.parquet") == (TEXTS, LABELS)
    with pytest.raises(
        ValueError, match=r"a.parquet has no column 'body'; its columns are 'label'"
    ):
        list(read_texts(path, text_column="body"))


def test_parquet_of_many_batches(tmp_path: Path, arrow) -> None:
    texts = [f"text {i}" for i in range(2_500)]
    path = write_parquet(tmp_path / "a.parquet", arrow.table({"text": texts}))
    assert list(read_texts(tmp_path)) == texts
    broken = arrow.table({"text": [*texts, None]})
    write_parquet(path, broken)
    found = read_texts(path)
    assert [next(found) for _ in texts] == texts
    with pytest.raises(ValueError, match=r"a.parquet, row 2500: 'text' is None, expected a string"):
        next(found)


def test_parquet_written_by_datasets_keeps_the_names_of_classes(tmp_path: Path, dataset) -> None:
    path = tmp_path / "a.parquet"
    dataset.to_parquet(path)
    assert read_labelled(path, "body", "stars") == (TEXTS, LABELS)


@pytest.mark.parametrize("content", [b"", b"PAR1 no more PAR1", b"text,label\n"])
def test_parquet_that_is_none(tmp_path: Path, arrow, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.parquet is no whole Parquet file .* fetch it anew"):
        list(read_texts(path))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match=r"pip install 'ulmfit-fast\[datasets\]'"):
        list(read_texts(tmp_path / "a.parquet"))


def test_data_frame() -> None:
    pandas = pytest.importorskip("pandas", reason="needs the package pandas")
    frame = pandas.DataFrame({"text": TEXTS, "label": NUMBERS}, index=[7, 5, 6])
    assert list(read_texts(frame)) == list(read_texts(frame["text"])) == TEXTS
    texts, labels = read_labelled(frame)
    assert (texts, labels) == (TEXTS, NUMBERS) and {type(label) for label in labels} == {int}
    named = frame.assign(label=pandas.Categorical(LABELS))
    assert read_labelled(named) == (TEXTS, LABELS)
    frame.loc[5, "text"] = None
    with pytest.raises(ValueError, match=r"the DataFrame, row 1: 'text' is (nan|None), expected a"):
        list(read_texts(frame))
    with pytest.raises(ValueError, match="the DataFrame has no column 'body'; its columns are"):
        read_labelled(frame, "body")
    with pytest.raises(ValueError, match="the corpus passed is empty"):
        list(read_texts(frame[:0]))
