"""Rows that cannot be read: told with file and line, skipped only when asked, nothing else lost."""

import gzip
import itertools
import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ulmfit_fast.cli.program import app
from ulmfit_fast.data import Tokenizer, TokenStore, read_labelled, read_texts
from ulmfit_fast.data.reading.published import LAYOUTS, read_ag_news, read_imdb, read_wikitext
from ulmfit_fast.training.settings import TrainingSettings
from ulmfit_fast.training.stages import training_stream

# With accents in UTF-8, which make it the encoding of the files.
GOOD = ["first text", "second téxt"]


def line_file(kind: str, *bad: bytes) -> bytes:
    """A file with a good text on either side of the bad lines."""
    if kind == "txt":
        first, last = b"first text\n", "second téxt\n"
    elif kind == "csv":
        first, last = b"text,n\nfirst text,1\n", "second téxt,2\n"
    else:
        first, last = b'{"text": "first text"}\n', '{"text": "second téxt"}\n'
    return first + b"".join(bad) + last.encode()


# Name, content, and what is told of the one row that cannot be read between two good ones.
ROWS = [
    pytest.param(
        "a.txt",
        line_file("txt", b"caf\xe9\n"),
        r"a\.txt, line 2: byte 0xe9 is not UTF-8 \(offset 14 of the text\); save as UTF-8, or",
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\ufefffirst text\r\nsecond téxt\r\n".encode()),
        ("a.csv", "\ufefftext,n\r\nfirst text,1\r\nsecond téxt,2\r\n".encode()),
        ("a.jsonl", '\ufeff{"text": "first text"}\r\n{"text": "second téxt"}\r\n'.encode()),
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
        ("a.txt.gz", gzip.compress(b"", mtime=0)),
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
    with pytest.raises(
        ValueError, match="on_error is 'ignore', expected 'raise', 'skip' or 'skip_few'"
    ):
        read_texts(["a"], on_error="ignore")


@pytest.mark.parametrize(
    ("header", "message"), [(b"text\xff,n\n", "byte 0xff"), (b'"text,n\n', "unexpected end of dat")]
)
def test_a_csv_without_a_good_header(tmp_path: Path, header: bytes, message: str) -> None:
    path, good = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_bytes(header + "téxt,1\n".encode())
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


def test_a_store_that_stopped_at_a_bad_row_is_built_without_it(tmp_path: Path) -> None:
    texts = [f"text number {n}" for n in range(400)]
    path = tmp_path / "a.txt"
    encoded_texts = [text.encode() for text in texts]
    path.write_bytes(b"\n".join([*encoded_texts[:300], b"\xff", *encoded_texts[300:]]))
    tokenizer = Tokenizer.train(texts, min_freq=1)
    out = tmp_path / "store"
    with pytest.raises(ValueError, match="line 301: byte 0xff"):
        TokenStore.build(out, path, tokenizer, workers=1)
    assert not out.exists()
    store = TokenStore.build(out, path, tokenizer, workers=1, on_error="skip")
    assert [tokenizer.decode(ids) for ids in store] == texts


def test_the_command_skips_when_asked(tmp_path: Path, caplog) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(line_file("csv", b"caf\xe9,3\n"))
    options = ["tokenize", "--text", str(path), "--out", str(tmp_path / "store"), "--min-freq", "1"]
    told = CliRunner().invoke(app, options)
    assert told.exit_code == 2 and "a.csv, line 3: byte 0xe9 is not UTF-8" in told.output
    assert not (tmp_path / "store").exists()
    done = CliRunner().invoke(app, [*options, "--skip-bad-rows"])
    assert done.exit_code == 0 and "2 documents" in done.output
    assert "1 row skipped: " in caplog.text
    wiki = tmp_path / "wiki.train.raw"
    wiki.write_bytes(b" \n = A = \n \n one\n caf\xe9\n")
    options = ["tokenize", "--text", str(wiki), "--layout", "wikitext", "--min-freq", "1"]
    options += ["--out", str(tmp_path / "wiki")]
    assert CliRunner().invoke(app, options).exit_code == 2
    assert CliRunner().invoke(app, [*options, "--skip-bad-rows"]).exit_code == 0


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
