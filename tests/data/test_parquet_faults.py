"""Rows and files of Parquet that cannot be read: told, or skipped when asked."""

from pathlib import Path

import pytest

from ulmfit_fast.data import read_texts

GOOD = ["first text", "second text"]


@pytest.fixture
def parquet():
    pytest.importorskip("pyarrow", reason="needs the package pyarrow")
    from pyarrow import parquet

    return parquet


def test_rows_of_parquet(tmp_path: Path, parquet, caplog) -> None:
    import pyarrow

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["first text", None, "second text"]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: 'text' is None, expected a string"):
        list(read_texts(path))
    assert list(read_texts(path, on_error="skip")) == GOOD
    # Strings whose bytes nobody has looked at.
    raw = pyarrow.array([b"first text", b"caf\xe9", b"second text"])
    parquet.write_table(pyarrow.table({"text": raw.view(pyarrow.string())}), path)
    with pytest.raises(ValueError, match=r"row 1: 'text' is b'caf\\xe9', expected a string"):
        list(read_texts(path))
    assert list(read_texts(path, on_error="skip")) == GOOD
    assert list(read_texts(parquet.read_table(path), on_error="skip")) == GOOD
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(ValueError, match=r"a\.parquet is empty, expected at least one text"):
        list(read_texts(path))


def test_damaged_parquet(tmp_path: Path, parquet, caplog) -> None:
    import pyarrow

    path, good = tmp_path / "a.parquet", tmp_path / "b.parquet"
    texts = [f"text {n} {n * n}" for n in range(3_000)]
    options = {"row_group_size": 1_000, "compression": "gzip", "use_dictionary": False}
    parquet.write_table(pyarrow.table({"text": texts}), path, **options)
    parquet.write_table(pyarrow.table({"text": ["good"]}), good)
    whole = path.read_bytes()
    middle = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    start = middle.data_page_offset + middle.total_compressed_size // 2
    path.write_bytes(whole[:start] + bytes(40) + whole[start + 40 :])
    with pytest.raises(ValueError, match=r"row group 1 \(rows 1000 to 1999\): .*; fetch it anew"):
        list(read_texts(path))
    assert list(read_texts(path, on_error="skip")) == texts[:1_000] + texts[2_000:]
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"a\.parquet is no whole Parquet file .* fetch it anew"):
        list(read_texts(path))
    assert list(read_texts([path, good], on_error="skip")) == ["good"]


def test_names_of_columns_that_are_no_utf_8(tmp_path: Path, parquet) -> None:
    import pyarrow

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a"], "label": [1]})
    parquet.write_table(table, path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"label", b"lab\x82l"))
    with pytest.raises(ValueError, match=r"a\.parquet is no whole Parquet file \('utf-8' codec"):
        list(read_texts(path))


def test_an_error_of_the_system_is_no_damage(tmp_path: Path, parquet, monkeypatch) -> None:
    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(parquet, "ParquetFile", denied)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(PermissionError):
        list(read_texts(tmp_path / "a.parquet", on_error="skip"))


def test_long_texts_of_parquet_come_in_small_batches(tmp_path: Path, parquet, monkeypatch) -> None:
    import pyarrow

    path, sizes = tmp_path / "a.parquet", []
    texts = [f"{n % 10}" * 200_000 + str(n) for n in range(400)]
    parquet.write_table(pyarrow.table({"text": texts}), path, use_dictionary=False)
    real = parquet.ParquetFile.iter_batches

    def watched(self, **options):
        for batch in real(self, **options):
            sizes.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", watched)
    assert list(read_texts(path)) == texts
    assert sum(sizes) > 80_000_000 and max(sizes) < 20_000_000
