import csv
import gzip
import json
from pathlib import Path

import pytest

from ulmfit_fast.data import read_labelled, read_texts


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param("a.txt", "one\n\n  \ntwo \r\nthree", ["one", "two ", "three"], id="txt"),
        pytest.param("a.TXT", "a\u2028b\n", ["a\u2028b"], id="txt-separator"),
        pytest.param("a.txt", b"\xef\xbb\xbfone\n", ["one"], id="txt-bom"),
        pytest.param("a.csv", 'id,text\n1,"a, b"\n\n2,\n', ["a, b", ""], id="csv"),
        pytest.param("a.csv", 'text\n"one\ntwo ""x"""\n', ['one\ntwo "x"'], id="csv-quoted"),
        pytest.param("a.csv", b"\xef\xbb\xbftext,n\r\na,1\r\n", ["a"], id="csv-bom"),
        pytest.param("a.jsonl", '{"text": "a\\nb"}\n\n{"text": ""}', ["a\nb", ""], id="jsonl"),
        pytest.param("a.txt", "one\r\r \rtwo\rthree\r", ["one", "two", "three"], id="txt-cr"),
        pytest.param("a.txt", "one\rtwo\nthree\r\nfour", "one two three four".split(), id="mixed"),
        pytest.param(
            "a.txt", "one\r\ntwo\rthree\r\r\nfour", "one two three four".split(), id="odd"
        ),
        pytest.param("a.txt", b"\xef\xbb\xbfone\rtwo", ["one", "two"], id="txt-bom-cr"),
        pytest.param(
            "a.txt", "a\x0bb\x0cc\x85d\u2028e\rf", ["a\x0bb\x0cc\x85d\u2028e", "f"], id="vt"
        ),
        pytest.param("a.csv", 'id,text\r1,"a, b"\r\r2,\r', ["a, b", ""], id="csv-cr"),
        pytest.param("a.csv", 'text,n\n"one\rtwo\r\nthree",1\n', ["one\rtwo\r\nthree"], id="csv-q"),
        pytest.param("a.csv", 'text\r"one\rtwo"\rthree\r', ["one\rtwo", "three"], id="csv-q-cr"),
        pytest.param("a.jsonl", '{"text": "a\\r"}\r{"text": "b"}\r', ["a\r", "b"], id="jsonl-cr"),
        pytest.param("a.txt.gz", gzip.compress(b"one\rtwo\r"), ["one", "two"], id="txt-gz-cr"),
        pytest.param("a.txt.gz", gzip.compress(b"one\n\ntwo"), ["one", "two"], id="txt-gz"),
        pytest.param("a.csv.GZ", gzip.compress(b'text\n"a\nb"\n'), ["a\nb"], id="csv-gz"),
        pytest.param("a.jsonl.gz", gzip.compress(b'{"text": "a"}'), ["a"], id="jsonl-gz"),
    ],
)
def test_read_texts(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    path = write(tmp_path / name, content)
    assert list(read_texts(path)) == expected
    assert list(read_texts(str(path))) == expected
    assert list(read_texts([path, path])) == expected * 2
    assert list(read_texts(p for p in [path])) == expected


def test_iterables_pass_through() -> None:
    assert list(read_texts(["a", ""])) == ["a", ""]
    assert list(read_texts(text for text in ("a", "b"))) == ["a", "b"]


def test_long_fields_leave_the_limit_of_the_csv_module(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = write(tmp_path / "a.csv", f"text\n{'x' * (limit + 1)}\nshort\n")
    texts = read_texts(path)
    assert len(next(texts)) == limit + 1
    assert csv.field_size_limit() == limit
    assert list(texts) == ["short"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(
            "a.csv", "id,body\n1,x\n", "no column 'text'; its columns are 'id', 'body'", id="column"
        ),
        pytest.param(
            "a.jsonl",
            '{"body": 1}\n',
            "line 1 has no column 'text'; its columns are 'body'",
            id="key",
        ),
        pytest.param(
            "a.txt", b"\xc3\xa9\ncaf\xe9\n", "a.txt, line 2: byte 0xe9 .* encoding=", id="latin-1"
        ),
        pytest.param(
            "a.csv", b"text\n\xc3\xa9\ncaf\xe9\n", "a.csv, line 3: .* as UTF-8", id="csv-latin-1"
        ),
        pytest.param("a.txt", "x".encode("utf-16") + b"y", "line 1: not UTF-16", id="utf-16"),
        pytest.param(
            "a.csv", "text,id\na,1\nb, c,2\n", "line 3: 3 fields, expected 2", id="fields"
        ),
        pytest.param("a.csv", 'text\n"open\n', "line 2: unexpected end of data", id="open-quote"),
        pytest.param("a.jsonl", '{"text": "a"}\n{"text"\n', "line 2: not valid JSON", id="json"),
        pytest.param("a.jsonl", '["a"]\n', "line 1: .* expected a JSON object", id="json-list"),
        pytest.param(
            "a.jsonl", '{"text": 3}\n', "line 1: 'text' is 3, expected a string", id="json-type"
        ),
        pytest.param("a.jsonl", '{"text": ' + "9" * 5000 + "}\n", "line 1", id="json-number"),
        pytest.param(
            "a.md", "text", "ends in '.md', expected one of .txt, .csv, .tsv, .jsonl", id="suffix"
        ),
        pytest.param(
            "a.txt.gz",
            gzip.compress(b"\xc3\xa9\ncaf\xe9"),
            "a.txt.gz, line 2: byte 0xe9",
            id="gz-latin-1",
        ),
        pytest.param(
            "a.txt.gz", gzip.compress(b"one\n" * 999)[:-9], "not a whole gzip file", id="gz-cut"
        ),
        pytest.param("a.txt.gz", "plain", "line 1: not a whole gzip file", id="gz-plain"),
        pytest.param("a.parquet.gz", "x", "ends in '.gz', expected one of .txt", id="parquet-gz"),
        pytest.param("a.txt", " \n", "a.txt is empty, expected at least one text", id="blank"),
        pytest.param("a.csv", "", "is empty, expected", id="empty-csv"),
        pytest.param("a.csv", "text\n", "is empty, expected", id="header-only"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_texts(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("a fine film", ValueError, "got the string 'a fine film'; pass a list of texts or an"),
        ("x" * 10_000, ValueError, "got the string 'xxx"),
        ("a\0b", ValueError, "got the string"),
        ("missing.csv", FileNotFoundError, "missing.csv does not exist"),
        ([Path("missing.txt")], FileNotFoundError, "missing.txt does not exist"),
        ([], ValueError, "the corpus passed is empty"),
        (["a", 3], TypeError, r"texts\[1\] is 3 \(int\), expected a str"),
        (b"bytes", TypeError, "source is b'bytes'"),
        ({"text": "a"}, TypeError, r"has 'a' \(str\) in 'text', expected a list of values"),
        (None, TypeError, "source is None"),
    ],
    ids=[
        "text", "long", "nul", "missing", "missing-in-list", "empty", "number", "bytes", "dict",
        "none",
    ],
)  # fmt: skip
def test_bad_sources(source, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(read_texts(source))


def test_paths_are_checked_before_the_first_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_texts([write(tmp_path / "a.txt", "a"), tmp_path / "b.txt"])


def test_name_of_a_file_among_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a")
    with pytest.raises(ValueError, match=r"texts\[0\] is .* name of a file; pass pathlib.Path"):
        list(read_texts([str(path)]))


def test_labelled(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.csv", 'label,text\npos,"good, yes"\nneg,bad\n')
    lines = "\n".join(json.dumps({"text": t, "label": y}) for t, y in [("x", 1), ("y", "pos")])
    objects = write(tmp_path / "a.jsonl", lines)
    assert read_labelled(rows) == (["good, yes", "bad"], ["pos", "neg"])
    assert read_labelled([str(rows), objects])[1] == ["pos", "neg", 1, "pos"]
    renamed = write(tmp_path / "b.csv", "y,x\n1,a\n")
    assert read_labelled(renamed, "x", "y") == (["a"], ["1"])


def test_labels_that_look_alike_are_refused(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.csv", "text,label\nx,0\ny,1\n")
    objects = write(tmp_path / "a.jsonl", '{"text": "x", "label": 2}\n{"text": "y", "label": 1}\n')
    message = r"a.jsonl, line 2: 'label' is 1 and '1' in .*a.csv, line 3.*as strings"
    with pytest.raises(ValueError, match=message) as caught:
        read_labelled([rows, objects])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"a.csv, line 3: 'label' is '1' and 1 in .*a.jsonl"):
        read_labelled([objects, rows])
    assert read_labelled([objects, objects])[1] == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(
            "a.csv", 'text,label\n"a\nb",x\nc,\n', "a.csv, line 4: 'label' is empty", id="empty"
        ),
        pytest.param(
            "a.csv", "text\na\n", "no column 'label'; its columns are 'text'", id="column"
        ),
        pytest.param("a.jsonl", '{"text": "a"}\n', "line 1 has no column 'label'", id="key"),
        pytest.param(
            "a.jsonl", '{"text": "a", "label": null}', "line 1: 'label' is None", id="null"
        ),
        pytest.param(
            "a.jsonl", '{"text": "a", "label": 1.5}', "a string, an integer or a b", id="float"
        ),
        pytest.param("a.txt", "a\n", "a.txt has no labels", id="txt"),
        pytest.param(
            "a.csv", "text,label\n", "a.csv is empty, expected at least one text", id="no-rows"
        ),
    ],
)
def test_bad_labels(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labelled(write(tmp_path / name, content))


def test_a_folder_has_one_text_a_file(tmp_path: Path) -> None:
    write(tmp_path / "b" / "2.txt", "second\n\nfile\n")
    write(tmp_path / "a.txt", b"\xef\xbb\xbffirst")
    write(tmp_path / "c.txt.gz", gzip.compress(b"third"))
    write(tmp_path / ".cache" / "x.txt", "hidden")
    write(tmp_path / "README.md", "of another kind")
    expected = ["first", "second\n\nfile\n", "third"]
    assert list(read_texts(tmp_path)) == list(read_texts(str(tmp_path))) == expected
    assert list(read_texts([tmp_path / "b", tmp_path / "a.txt"])) == [expected[1], "first"]


def test_a_folder_of_tables_is_read_file_by_file(tmp_path: Path) -> None:
    write(tmp_path / "2.csv", "text,label\nc,x\n")
    write(tmp_path / "1.csv", "text,label\na,x\nb,y\n")
    assert list(read_texts(tmp_path)) == ["a", "b", "c"]
    assert read_labelled(tmp_path) == (["a", "b", "c"], ["x", "y", "x"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt", "b.csv"], "is a directory with files of the kinds .csv, .txt, expected one"),
        (["a.md"], "is a directory with files of none of .txt, .csv, .tsv, .jsonl, .parquet"),
    ],
    ids=["two-kinds", "unknown-kind"],
)
def test_bad_folders(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        write(tmp_path / name, "x")
    with pytest.raises(ValueError, match=message):
        list(read_texts(tmp_path))
    with pytest.raises(ValueError, match=message):
        read_labelled(tmp_path)


def test_a_text_of_its_own_file_keeps_its_line_ends(tmp_path: Path) -> None:
    text = "first\rsecond\r\n\rthird\nlast\r"
    write(tmp_path / "pos" / "a.txt", text)
    assert list(read_texts(tmp_path)) == [text]
    assert read_labelled(tmp_path) == ([text], ["pos"])


def test_errors_count_lines_that_end_with_a_carriage_return(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\rtwo\rcaf\xe9\r\xc3\xa9\r")
    with pytest.raises(ValueError, match=r"a.txt, line 3: byte 0xe9 is not UTF-8 .offset 11 of"):
        list(read_texts(path))
    assert list(read_texts(path, on_error="skip")) == ["one", "two", "é"]


def test_folders_are_the_labels_of_their_files(tmp_path: Path) -> None:
    for name in ("pos/2.txt", "neg/deep/1.txt", "pos/1.txt"):
        write(tmp_path / name, f"text of {name}")
    texts, labels = read_labelled(tmp_path)
    assert texts == ["text of neg/deep/1.txt", "text of pos/1.txt", "text of pos/2.txt"]
    assert labels == ["neg", "pos", "pos"]
    write(tmp_path / "urls.txt", "astray")
    with pytest.raises(ValueError, match=r"urls.txt lies in no folder of a class, expected"):
        read_labelled(tmp_path)


def test_a_latin_1_file_in_a_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "fine")
    write(tmp_path / "b.txt", b"one\ncaf\xe9")
    with pytest.raises(ValueError, match=r"b.txt, line 2: byte 0xe9 is not UTF-8"):
        list(read_texts(tmp_path))


def test_files_are_read_as_they_come(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\ntwo\ncaf\xe9\n")
    texts = read_texts(path)
    assert [next(texts), next(texts)] == ["one", "two"]
