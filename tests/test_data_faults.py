"""Rows that cannot be read: told with file and line, skipped only when asked, nothing else lost."""

import dataclasses
import gzip
import itertools
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import memory_flat
from ulmfit_fast import cli
from ulmfit_fast.data import Tokenizer, TokenStore, lines, read_labelled, read_texts
from ulmfit_fast.data.formats import LAYOUTS, read_ag_news, read_imdb, read_wikitext
from ulmfit_fast.lm_stage import training_stream
from ulmfit_fast.settings import TrainingSettings

GOOD = ["first text", "second text"]


def line_file(kind: str, *bad: bytes) -> bytes:
    """A file with a good text on either side of the bad lines."""
    if kind == "txt":
        first, last = b"first text\n", b"second text\n"
    elif kind == "csv":
        first, last = b"text,n\nfirst text,1\n", b"second text,2\n"
    else:
        first, last = b'{"text": "first text"}\n', b'{"text": "second text"}\n'
    return first + b"".join(bad) + last


# Name, content, and what is told of the one row that cannot be read between two good ones.
ROWS = [
    pytest.param(
        "a.txt",
        line_file("txt", b"caf\xe9\n"),
        r"a\.txt, line 2: byte 0xe9 is not UTF-8 \(offset 14 of the text\); save as UTF-8",
        id="txt-utf8",
    ),
    pytest.param("a.csv", line_file("csv", b"caf\xe9,3\n"), "line 3: byte 0xe9", id="csv-utf8"),
    pytest.param(
        "a.csv",
        line_file("csv", b'"one\ncaf\xe9\nthree",3\n'),
        r"line 4: byte 0xe9 is not UTF-8 \(offset 28",
        id="csv-utf8-within-quotes",
    ),
    pytest.param(
        "a.jsonl", line_file("jsonl", b'{"text": "\xff"}\n'), "line 2: byte 0xff", id="jsonl-utf8"
    ),
    pytest.param(
        "a.txt.gz",
        gzip.compress(line_file("txt", b"caf\xe9\n")),
        r"a\.txt\.gz, line 2: byte 0xe9 .*offset 14 of the text",
        id="gz-utf8",
    ),
    pytest.param("a.txt", line_file("txt", b"\xed\xa0\x80\n"), "byte 0xed", id="utf8-surrogate"),
    pytest.param(
        "a.txt", line_file("txt", b"a\0b\n"), r"line 2: a NUL byte \(offset 12 .*remove", id="nul"
    ),
    pytest.param("a.csv", line_file("csv", b"a\0b,3\n"), "line 3: a NUL byte", id="csv-nul"),
    pytest.param("a.jsonl", line_file("jsonl", b"\0\0\0\n"), "line 2: a NUL byte", id="jsonl-nul"),
    pytest.param("a.jsonl", line_file("jsonl", b'{"text"\n'), "line 2: not valid JSON", id="json"),
    pytest.param(
        "a.jsonl", line_file("jsonl", b"[" * 100_000 + b"\n"), "line 2: not valid JSON", id="deep"
    ),
    pytest.param("a.jsonl", line_file("jsonl", b'["a"]\n'), "expected a JSON object", id="list"),
    pytest.param(
        "a.jsonl",
        line_file("jsonl", b'{"body": "a"}\n'),
        "line 2 has no column 'text'; its columns are 'body'",
        id="no-column",
    ),
    pytest.param(
        "a.jsonl",
        line_file("jsonl", b'{"text": null}\n'),
        "line 2: 'text' is None, expected a string",
        id="null",
    ),
    pytest.param(
        "a.jsonl", line_file("jsonl", b'{"text": 3}\n'), "line 2: 'text' is 3", id="number"
    ),
    pytest.param(
        "a.csv", line_file("csv", b"a,b,c\n"), "line 3: 3 fields, expected 2 as in the", id="fields"
    ),
    pytest.param("a.csv", line_file("csv", b"alone\n"), "line 3: 1 fields, expected 2", id="field"),
    pytest.param(
        "a.csv",
        line_file("csv", b'"open,3\n'),
        "line 3: unexpected end of data up to line 4; close the quote",
        id="open-quote",
    ),
    pytest.param("a.csv", line_file("csv", b'"a"b,3\n'), "line 3: ',' expected", id="quote-within"),
]


@pytest.mark.parametrize(("name", "content", "message"), ROWS)
def test_a_row_is_told_or_skipped_and_its_neighbours_are_read(
    tmp_path: Path, name: str, content: bytes, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    texts = read_texts(path)
    with pytest.raises(ValueError, match=message) as caught:
        list(texts)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert list(read_texts([path, path], on_error="skip")) == GOOD * 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "ulmfit_fast"
    told = record.getMessage()
    assert told.startswith("2 rows skipped: ") and told.count(str(path)) == 2
    assert str(caught.value) in told


def test_rows_before_the_bad_one_were_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(line_file("csv", b"caf\xe9,3\n"))
    texts = read_texts(path)
    assert next(texts) == "first text"


def test_only_the_first_few_are_told_in_full(tmp_path: Path, caplog) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" + b"\xff\n" * 1_234)
    assert list(read_texts(path, on_error="skip")) == ["good"]
    told = caplog.records[0].getMessage()
    assert told.startswith("1,234 rows skipped, the first 5: ")
    assert "line 6:" in told and "line 7:" not in told
    caplog.clear()
    assert list(read_texts(["a"], on_error="skip")) == ["a"] and not caplog.records


def test_a_quote_that_does_not_end_costs_its_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f'"text {n}\nsecond line",{n}\n' for n in range(50)]
    path.write_text("text,n\n" + "".join(rows[:25]) + '"open,0\n' + "".join(rows[25:]))
    expected = [f"text {n}\nsecond line" for n in range(50)]
    assert list(read_texts(path, on_error="skip")) == expected
    with pytest.raises(ValueError, match=r"line 52: .* up to line 53; close the quote"):
        list(read_texts(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_utf_16(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes('{"text": "first"}\ntext\n'.encode(encoding))
    with pytest.raises(ValueError, match=r"line 1: the file is in UTF-16, .*iconv -f UTF-16"):
        list(read_texts(tmp_path / name))
    good = tmp_path / "b.txt"
    good.write_text("good")
    assert list(read_texts([tmp_path / name, good], on_error="skip")) == ["good"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"\xef\xbb\xbffirst text\r\nsecond text\r\n"),
        ("a.csv", b"\xef\xbb\xbftext,n\r\nfirst text,1\r\nsecond text,2\r\n"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "first text"}\r\n{"text": "second text"}\r\n'),
    ],
)
def test_marks_of_utf_8_and_windows_line_ends(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(read_texts(tmp_path / name)) == GOOD


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b""),
        ("a.txt", b"\n  \n\r\n"),
        ("a.csv", b""),
        ("a.csv", b"text,n\n"),
        ("a.jsonl", b"\n\n"),
        ("a.txt.gz", gzip.compress(b"")),
        ("folder/a.txt", b" \n"),
    ],
)
def test_a_file_without_a_text_is_told_among_others_too(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path, good = tmp_path / name, tmp_path / "folder" / "b.txt"
    good.parent.mkdir()
    path.write_bytes(content)
    good.write_text("good")
    source = [good.parent] if path.parent == good.parent else [path, good]
    with pytest.raises(ValueError, match=rf"{path} is empty, expected at least one text; fill or"):
        list(read_texts(source))
    assert list(read_texts(source, on_error="skip")) == ["good"]
    with pytest.raises(ValueError, match=r"corpus of .* is empty"):
        list(read_texts([path, path], on_error="skip"))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_what_is_never_skipped(tmp_path: Path, on_error: str) -> None:
    (tmp_path / "a.csv").write_text("body\nx\n")
    with pytest.raises(ValueError, match=r"a\.csv has no column 'text'"):
        list(read_texts(tmp_path / "a.csv", on_error=on_error))
    with pytest.raises(FileNotFoundError):
        list(read_texts([tmp_path / "b.txt"], on_error=on_error))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is a directory with files of none of \.txt"):
        list(read_texts(tmp_path / "empty", on_error=on_error))
    with pytest.raises(ValueError, match="on_error is 'ignore', expected 'raise' or 'skip'"):
        read_texts(["a"], on_error="ignore")


@pytest.mark.parametrize(
    ("header", "message"), [(b"text\xff,n\n", "byte 0xff"), (b'"text,n\n', "unexpected end of dat")]
)
def test_a_csv_without_a_good_header(tmp_path: Path, header: bytes, message: str) -> None:
    path, good = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_bytes(header + b"first text,1\n")
    good.write_bytes(b"text\ngood\n")
    with pytest.raises(ValueError, match=f"line 1: {message}"):
        list(read_texts(path))
    # No row of the file is taken for its header.
    assert list(read_texts([path, good], on_error="skip")) == ["good"]


def test_half_a_character_in_an_escape(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "cut \\ud83d", "label": "x"}\n{"text": "\\ud83d\\ude00"}\n')
    assert list(read_texts(path)) == ["cut \ufffd", "\U0001f600"]
    path.write_text('{"text": "b", "label": "x"}\n{"text": "a", "label": "\\udc00"}\n')
    with pytest.raises(ValueError, match=r"line 2: 'label' is '\\udc00', half a character"):
        read_labelled(path)
    assert read_labelled(path, on_error="skip") == (["b"], ["x"])


def test_rows_without_a_label(tmp_path: Path, caplog) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,x\nb,\nc,y\n")
    with pytest.raises(ValueError, match="line 3: 'label' is empty"):
        read_labelled(path)
    assert read_labelled(path, on_error="skip") == (["a", "c"], ["x", "y"])
    assert "1 row skipped" in caplog.text
    path.write_text("text,label\na,\n")
    with pytest.raises(ValueError, match=r"corpus of .*a\.csv is empty, expected at least one lab"):
        read_labelled(path, on_error="skip")
    for name in ("x/1.txt", "y/1.txt", "y/2.txt"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(b"\xff" if name == "y/1.txt" else b"a")
    assert read_labelled(tmp_path / "folder", on_error="skip") == (["a", "a"], ["x", "y"])


def test_a_gzip_that_was_cut(tmp_path: Path) -> None:
    written = [f"text {n} {n * n}" for n in range(5_000)]
    path, good = tmp_path / "a.txt.gz", tmp_path / "b.txt"
    path.write_bytes(gzip.compress("\n".join(written).encode())[:-1_000])
    good.write_text("good")
    with pytest.raises(ValueError, match=r"line \d+: not a whole gzip file .* fetch it anew"):
        list(read_texts(path))
    found = list(read_texts([path, good], on_error="skip"))
    assert found[-1] == "good" and found[:-1] == written[: len(found) - 1] and len(found) > 1_000


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


def test_a_line_above_the_limit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lines, "_LINE_BYTES", 100)
    path = tmp_path / "a.txt"
    path.write_bytes(b"first text\n" + b"x" * 99 + b"\n" + b"y" * 450 + b"\nsecond text\n")
    with pytest.raises(ValueError, match=r"line 3: longer than 100 bytes, expected a text; put"):
        list(read_texts(path))
    found = list(read_texts(path, on_error="skip"))
    assert found == ["first text", "x" * 99, "second text"]
    path.write_bytes(b"first text\n" + b"y" * 450 + b"\n\xff\n")
    with pytest.raises(ValueError, match=r"line 2: longer than"):
        list(read_texts(path))


def test_the_layouts(tmp_path: Path, caplog) -> None:
    wiki = tmp_path / "wiki.train.raw"
    wiki.write_bytes(b" \n = A = \n \n one\n caf\xe9\n two\n \n = B = \n \n three\n")
    with pytest.raises(ValueError, match="line 5: byte 0xe9"):
        list(read_wikitext(wiki))
    articles = list(LAYOUTS["wikitext"](wiki, on_error="skip"))
    assert len(articles) == 2 and "one\n two" in articles[0]
    for name, content in {"neg/1_1": b"good", "pos/1_9": b"\xff", "pos/2_9": b""}.items():
        path = tmp_path / "imdb" / "train" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert list(read_imdb(tmp_path / "imdb", on_error="skip")) == [("good", "neg")]
    ag = tmp_path / "ag" / "train.csv"
    ag.parent.mkdir()
    ag.write_bytes(b'"1","a","b"\n"9","a","b"\n"x"\n"2","a\0","b"\n"3","c","d"\n')
    with pytest.raises(ValueError, match="line 2: the class is '9'"):
        list(read_ag_news(ag.parent))
    caplog.clear()
    rows = list(read_ag_news(ag.parent, on_error="skip"))
    assert rows == [("a b", "World"), ("c d", "Business")]
    assert "3 rows skipped: " in caplog.text
    ag.write_bytes(b'"9","a","b"\n')
    with pytest.raises(ValueError, match="is empty but for the 1 rows skipped"):
        list(LAYOUTS["ag_news"](ag.parent, on_error="skip"))


def test_a_store_that_stopped_at_a_bad_row_goes_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ulmfit_fast.data.texts.BLOCK_CHARACTERS", 100)
    texts = [f"text number {n}" for n in range(400)]
    path = tmp_path / "a.txt"
    encoded_texts = [text.encode() for text in texts]
    path.write_bytes(b"\n".join([*encoded_texts[:300], b"\xff", *encoded_texts[300:]]))
    tokenizer = Tokenizer.train(texts, min_freq=1)
    out = tmp_path / "store"
    with pytest.raises(ValueError, match="line 301: byte 0xff"):
        TokenStore.build(out, path, tokenizer, workers=1)
    begun = json.loads((tmp_path / ".store.partial" / "state.json").read_text())["documents"]
    assert begun > 200
    encoded = []
    real = type(tokenizer._engine).encoder

    def watched(engine):
        encode = real(engine)
        return lambda block: encoded.extend(block) or encode(block)

    monkeypatch.setattr(type(tokenizer._engine), "encoder", watched)
    store = TokenStore.build(out, path, tokenizer, workers=1, on_error="skip")
    assert [tokenizer.decode(ids) for ids in store] == texts and encoded == texts[begun:]
    # The same call again finds the same texts.
    TokenStore.build(out, path, tokenizer, on_error="skip")


def test_the_command_skips_when_asked(tmp_path: Path, caplog) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(line_file("csv", b"caf\xe9,3\n"))
    options = ["tokenize", "--text", str(path), "--out", str(tmp_path / "store"), "--min-freq", "1"]
    told = CliRunner().invoke(cli.app, options)
    assert told.exit_code == 2 and "a.csv, line 3: byte 0xe9 is not UTF-8" in told.output
    assert not (tmp_path / "store").exists()
    done = CliRunner().invoke(cli.app, [*options, "--skip-bad-rows"])
    assert done.exit_code == 0 and "2 documents" in done.output
    assert "1 row skipped: " in caplog.text
    wiki = tmp_path / "wiki.train.raw"
    wiki.write_bytes(b" \n = A = \n \n one\n caf\xe9\n")
    options = ["tokenize", "--text", str(wiki), "--layout", "wikitext", "--min-freq", "1"]
    options += ["--out", str(tmp_path / "wiki")]
    assert CliRunner().invoke(cli.app, options).exit_code == 2
    assert CliRunner().invoke(cli.app, [*options, "--skip-bad-rows"]).exit_code == 0


LONG_LINE = """
import resource, sys, time
from pathlib import Path
from ulmfit_fast.data import Tokenizer, read_texts
from ulmfit_fast.data.vocab import Vocab

path = Path(sys.argv[1])
tokenizer = Tokenizer.from_vocab(Vocab(["the", "cat"]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = peak(), time.perf_counter()
tokens = sum(map(len, tokenizer.encode_batch(read_texts(path))))
print(tokens, (peak() - before) / 1024, time.perf_counter() - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "unit", "least"),
    [
        pytest.param("a.txt", "the cat ", 2_400_000, id="words"),
        pytest.param("a.csv", "the cat ", 2_400_000, id="words-csv"),
        pytest.param("a.jsonl", "the cat ", 2_400_000, id="words-jsonl"),
        pytest.param("a.txt", "ab", 100, id="one-word"),
        pytest.param("a.txt", "a", 100, id="one-letter"),
        pytest.param("a.txt", "1,", 100, id="digits"),
        pytest.param("a.txt", "a-", 9_000_000, id="dashes"),
        pytest.param("a.txt", "\u4e2d\u6587", 30, id="chinese"),
    ],
)
def test_a_line_of_10_mb(tmp_path: Path, name: str, unit: str, least: int) -> None:
    text = unit * (10_000_000 // len(unit.encode()))
    written = {"a.txt": text, "a.csv": f"text\n{text}", "a.jsonl": json.dumps({"text": text})}
    (tmp_path / name).write_text(written[name], encoding="utf-8")
    command = [sys.executable, "-c", LONG_LINE, str(tmp_path / name)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    tokens, megabytes, seconds = map(float, shown.split())
    assert tokens >= least
    assert megabytes < 600 and seconds < 60


def test_a_word_of_millions_of_letters_is_cut(monkeypatch) -> None:
    tokenizer = Tokenizer.train(["ab cd"], min_freq=1)
    monkeypatch.setattr("ulmfit_fast.data.rules._LONGEST_CHUNK", 4)
    shown = ["xxbos", "abcd", "xxup", "abcd", "xxrep", "4", "x", "cd"]
    assert tokenizer.tokens("abcd ABCDxxxxcd") == shown
    (ids,) = tokenizer.encode_batch(["abcdab"])
    assert len(ids) == 3 and ids[2] == tokenizer.vocab.index("ab")


def test_long_chunks_are_not_remembered() -> None:
    encode = Tokenizer.train(["ab cd"], min_freq=1).encoder()
    first = encode(["ab " + "x" * 50 + " " + "cd," * 100])[0].tolist()
    assert max(len(chunk) for chunk in encode._known if isinstance(chunk, str)) == 50
    assert encode(["ab " + "x" * 50 + " " + "cd," * 100])[0].tolist() == first


@pytest.mark.parametrize("kind", ["list", "store"])
def test_each_epoch_has_an_order_of_its_own_from_the_seed(tmp_path: Path, kind: str) -> None:
    documents = [np.full(3, 10 + n) for n in range(40)]
    if kind == "store":
        texts = [" ".join([f"w{n}"] * 2) for n in range(40)]
        documents = TokenStore.build(
            tmp_path / "store", texts, Tokenizer.train(texts, min_freq=1), workers=1
        )
    settings = TrainingSettings(batch_size=1, bptt=1_000)
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (0, 2), (1, 0)):
        (batch,) = training_stream(documents, settings, seed, epoch, torch.device("cpu"))
        orders[seed, epoch] = batch[0].flatten().tolist()
        (again,) = training_stream(documents, settings, seed, epoch, torch.device("cpu"))
        assert again[0].flatten().tolist() == orders[seed, epoch]
    assert len({tuple(order) for order in orders.values()}) == 4
    words = {int(documents[n][-1]) for n in range(40)}
    for order in orders.values():
        assert len(set(order) & words) == 40
        # No document is torn.
        assert sum(a != b for a, b in itertools.pairwise(order)) <= 2 * 40


def test_reading_takes_no_time_for_what_is_not_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + '"a ""quoted"" text, and\nmore"\n' * 100_000)
    start = time.perf_counter()
    assert sum(1 for _ in read_texts(path)) == 100_000
    assert time.perf_counter() - start < 5


GROWTH = """
import os, sys
from pathlib import Path
from benchmarks import memory_flat
kept = []
for name, each_step in (("plain", None), ("leak", lambda: kept.append(os.urandom(20_000)))):
    tokens = 50 * memory_flat.BATCH_SIZE * memory_flat.BPTT
    store = memory_flat.make_store(Path(sys.argv[1]) / name, tokens)
    assert len(store.ids) * 8 > 40 * memory_flat.BATCH_SIZE * memory_flat.BPTT
    samples = memory_flat.measure(store, 15, each_step=each_step, say=lambda line: None)
    print(memory_flat.growth(samples))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_memory_stays_flat_and_a_leak_would_show(tmp_path: Path) -> None:
    """The whole measurement, of 10,000 steps, is `python -m benchmarks.memory_flat`."""
    # In a process of its own: what other tests have freed would take a leak in unseen.
    result = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    plain, leak = map(float, result.stdout.split())
    assert plain < 5_000 < 15_000 < leak < 25_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_the_measurement_of_memory_is_written(tmp_path: Path) -> None:
    store = memory_flat.make_store(tmp_path / "store", 5_000)
    samples = memory_flat.measure(store, 3, say=lambda line: None)
    assert [sample.epoch for sample in samples] == [1, 2, 3]
    assert samples[2].step == 3 * samples[0].step > 30
    memory_flat.write(tmp_path / "a.csv", samples)
    header, *rows = (tmp_path / "a.csv").read_text().splitlines()
    assert header.startswith("step,epoch,resident_bytes,mapped_bytes,own_bytes") and len(rows) == 3
    grown = [dataclasses.replace(samples[0], step=n, own_bytes=n * 700) for n in range(10)]
    assert memory_flat.growth(grown) == 700
