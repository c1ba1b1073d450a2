"""Tables as people have them: delimiters, encodings and Excel's files, found or named."""

import csv
import gzip
import io
import logging
import os
import sys
import threading
from pathlib import Path

import pytest

from ulmfit_fast import ULMFiT
from ulmfit_fast.data import Tokenizer, TokenStore, read_labelled, read_texts, read_weighted
from ulmfit_fast.data.reading import lines
from ulmfit_fast.data.reading.corpus import read_rows
from ulmfit_fast.data.reading.records import delimiter_of

ROWS = [
    ("id", "texto", "classe"),
    ("1", "Não consigo entrar, nem com a senha nova; ajude-me", "acesso"),
    ("2", 'O produto veio "errado"\ne com defeito', "produto"),
    ("3", "Cobrança em dobro, vocês já sabem", "cobrança"),
]
TEXTS, LABELS = ([row[n] for row in ROWS[1:]] for n in (1, 2))
COLUMNS = {"text_column": "texto", "label_column": "classe"}


def table(rows=ROWS, delimiter: str = ",", ends: str = "\r\n") -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=ends).writerows(rows)
    return file.getvalue()


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv"])
@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_what_is_found(tmp_path: Path, name: str, sign: str, encoding: str, caplog) -> None:
    path = write(tmp_path / name, table(delimiter=sign), encoding)
    assert read_labelled(path, **COLUMNS) == (TEXTS, LABELS)
    usual = "\t" if name == "a.tsv" else ","
    said = [repr(sign)] * (sign != usual) + [repr(encoding)] * (not encoding.startswith("utf-8"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * bool(said)
    assert all(part in caplog.text for part in said) and str(path) in (caplog.text or str(path))
    caplog.clear()
    # What was named is not said.
    form = {"delimiter": sign, "encoding": encoding}
    assert list(read_texts(path, text_column="texto", **form)) == TEXTS
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "columns", "sign"),
    [
        ("text\na; b\nc; d\n", ["text"], ","),
        ("text\n", ["text"], ","),
        ("", ["text"], ","),
        ("a;b\n1;2\n", ["text"], ";"),
        ("a,b;c\n1,2;3\n", ["b;c"], ","),
        ("text;n\n" + "a, b, c;1\n" * 9, ["text"], ";"),
        ("text;n,m\n" + "a, b;1,2\n" * 9, ["text"], ";"),
        ('text,n\n"a;b;c",1\n"a;b\nc",2\n', ["text"], ","),
        ('"text";"n"\n"a ""b"", c";1\n', ["text"], ";"),
        ('text|n\n"a|b|c"|1\nopen "quote|2\n', ["text"], "|"),
        # The names alone, as of a pipe of which no more has come.
        ("text\tn\n", ["text"], "\t"),
        # A sign in the one column's name is none between columns.
        ("my|text\na\nb\n", ["text"], ","),
    ],
)
def test_the_delimiter_by_the_first_lines(text: str, columns: list, sign: str) -> None:
    assert delimiter_of(list(io.StringIO(text, newline="")), columns) == sign


def test_what_separates_is_named_where_the_guess_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a;b,text\n1;2,3\n")
    assert list(read_texts(path)) == ["3"]
    assert list(read_texts(path, text_column="b,text", delimiter=";")) == ["2,3"]
    write(path, "a:text\n1:x\n")
    assert list(read_texts(path, delimiter=":")) == ["x"]
    write(path, "a\ttext\n1\tx\n")
    assert list(read_texts(path, delimiter=r"\t")) == ["x"]


def test_excels_line_that_names_the_delimiter_is_no_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sep=;\r\ntext;n\r\na, b;1\r\n")
    assert list(read_texts(path)) == ["a, b"]
    with pytest.raises(ValueError, match="line 3: 3 fields, expected 2"):
        list(read_texts(write(path, "sep=;\r\ntext;n\r\na;b;1\r\n")))
    # A file whose first line cannot be read on has none.
    path.write_bytes("sep=;\n".encode("utf-32") + b"\xff\xff\xff\x7f")
    with pytest.raises(ValueError, match="cannot be read on"):
        list(read_texts(path))
    assert list(read_texts([path, write(tmp_path / "b.txt", "good")], on_error="skip")) == ["good"]
    # A text is none, nor is a column of that name.
    assert list(read_texts(write(path, "text\nsep=;\n"))) == ["sep=;"]


def test_cp1252_is_decided_once_a_file(tmp_path: Path) -> None:
    broken, whole = "não é\n".encode("cp1252"), "não é\n".encode()
    path = tmp_path / "a.txt"
    path.write_bytes(b"no accent\n" * 50 + broken * 20)
    assert list(read_texts(path))[-1] == "não é"
    # One line in a file of UTF-8 does not change how the others are read.
    path.write_bytes(whole * 20 + broken + whole)
    with pytest.raises(ValueError, match="line 21: byte 0xe3 is not UTF-8"):
        list(read_texts(path))
    assert list(read_texts(path, on_error="skip")) == ["não é"] * 21
    # Half and half is neither.
    path.write_bytes(whole * 20 + broken * 20)
    assert len(list(read_texts(path, on_error="skip"))) == 20
    path.write_bytes("é: à vista, “já” 5 €\n".encode("cp1252") * 3)
    assert list(read_texts(path)) == ["é: à vista, “já” 5 €"] * 3
    # All of it is cp1252, also what would be UTF-8 by chance.
    path.write_bytes(broken * 20 + "Ã©\n".encode("cp1252"))
    assert list(read_texts(path))[-1] == "Ã©"


def test_damage_and_other_alphabets_are_not_taken_for_cp1252(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" * 50 + b"\xff\n")
    with pytest.raises(ValueError, match="line 51: byte 0xff is not UTF-8"):
        list(read_texts(path))
    for text, encoding in (
        ("мы и они в доме, но мир не в нём", "cp1251"),
        ("Ολα είναι καλά και η μέρα", "cp1253"),
        ("我不知道发生了什么,请帮助我", "gb18030"),
        ("これは日本語のテキストです", "shift_jis"),
    ):
        path.write_bytes(f"{text}\n".encode(encoding) * 9)
        message = r"not UTF-8 .* or pass the encoding= of the whole file"
        with pytest.raises(ValueError, match=message):
            list(read_texts(path))
        assert list(read_texts(path, encoding=encoding)) == [text] * 9
    path.write_bytes("não\n".encode("cp1252") + b"\0\n")
    with pytest.raises(ValueError, match="line 1: byte 0xe3 is not UTF-8"):
        list(read_texts(path))


def test_no_more_than_the_start_decides(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lines, "_START_BYTES", 40)
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789\n" * 9 + "não\n".encode("cp1252"))
    with pytest.raises(ValueError, match="line 10: byte 0xe3 is not UTF-8"):
        list(read_texts(path))
    # A character in two halves is whole.
    path.write_bytes(b"x" * 39 + "é\n".encode() + b"y\n")
    assert list(read_texts(path)) == ["x" * 39 + "é", "y"]


def test_a_byte_without_a_character_in_cp1252_is_that_of_latin_1(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 \x80 \x81\n")
    assert list(read_texts(path)) == ["café € \x81"]
    assert list(read_texts(path, encoding="latin-1")) == ["café \x80 \x81"]


def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    os.mkfifo(path)
    go_on = threading.Event()

    def writer() -> None:
        with path.open("wb", buffering=0) as file:
            file.write("classe;texto\na;não\n".encode("cp1252"))
            go_on.wait(30)
            file.write("b;é isto\n".encode("cp1252"))

    thread = threading.Thread(target=writer)
    thread.start()
    texts = read_texts(path, text_column="texto")
    assert next(texts) == "não"
    go_on.set()
    assert list(texts) == ["é isto"]
    thread.join()


def test_half_a_character_in_utf_16_costs_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe" + "one\ntwo \ud83d\nthree\n".encode("utf-16-le", "surrogatepass"))
    with pytest.raises(ValueError, match="line 2: byte 0xed is not UTF-16"):
        list(read_texts(path))
    assert list(read_texts(path, on_error="skip")) == ["one", "three"]
    # Half a unit at the end: the file cannot be read on.
    path.write_bytes("one\ntwo\nthree\n".encode("utf-16") + b"x")
    with pytest.raises(ValueError, match=r"not UTF-16 .* cannot be read on"):
        list(read_texts(path))
    good = write(tmp_path / "b.txt", "good\n")
    assert list(read_texts([path, good], on_error="skip"))[-1] == "good"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"encoding": "utf-99"}, ValueError, "encoding is 'utf-99', which is none that Python"),
        ({"encoding": "base64"}, ValueError, "encoding is 'base64', which is none"),
        ({"encoding": 8}, TypeError, r"encoding is 8 \(int\), expected a name"),
        ({"delimiter": ";;"}, ValueError, "delimiter is ';;', expected one character"),
        ({"delimiter": ""}, ValueError, "delimiter is '', expected one character"),
        ({"delimiter": '"'}, ValueError, "delimiter is '\"', expected one character"),
    ],
)
def test_wrong_names_are_refused(given: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_texts(["a"], **given)


def test_a_folder_of_many_is_said_in_few_lines(tmp_path: Path, caplog) -> None:
    for number in range(9):
        write(tmp_path / f"{number}.txt", "não\n", "cp1252")
    assert list(read_texts(tmp_path)) == ["não\n"] * 9
    assert len(caplog.records) == 6 and "4 more files are read so" in caplog.text


SIZES = {"emb_size": 4, "hidden_size": 6, "num_layers": 2, "min_freq": 1, "progress": False}


def test_everything_that_reads_files_takes_the_form(tmp_path: Path) -> None:
    rows = [("n", "texto", "classe")] + [(1, f"não {n} é", "ab"[n % 2]) for n in range(40)]
    path = write(tmp_path / "a.csv", table(rows, ":"), "cp850")
    texts = [row[1] for row in rows[1:]]
    form = {"text_column": "texto", "delimiter": ":", "encoding": "cp850"}
    model, short = ULMFiT(**SIZES, device="cpu"), {"epochs": 1, "batch_size": 4}
    model.pretrain(path, **short, **form)
    assert "não" in model.tokenizer.vocab
    model.fine_tune_lm(path, **short, **form)
    assert "não" in model.tokenizer.vocab
    model.use_vocabulary_of(path, **form)
    assert "não" in model.tokenizer.vocab
    model.fit_classifier(path, label_column="classe", epochs=1, weight_column="n", **form)
    assert model.predict(path, **form) == model.predict(texts)
    assert (model.predict_proba(path, **form) == model.predict_proba(texts)).all()
    assert len(list(model.predict_stream(path, **form))) == 40
    assert [e.text for e in model.explain(path, **form)] == texts
    assert model.perplexity(path, **form) == model.perplexity(texts)
    store = TokenStore.build(tmp_path / "s", path, model.tokenizer, workers=1, **form)
    assert len(store) == 40
    weighted = read_weighted(path, label_column="classe", weight_column="n", **form)
    assert weighted[0] == texts and set(weighted[2]) == {1.0}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
@pytest.mark.parametrize("kind", [io.BytesIO, lambda raw: io.BufferedReader(io.BytesIO(raw))])
def test_standard_input_stays_open(monkeypatch, kind, encoding: str) -> None:
    file = kind("não é\num\n".encode(encoding))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
    rows = read_rows([lines.STANDARD_INPUT], ["id"])
    assert list(rows) == [("não é", (None,)), ("um", (None,))]
    assert not file.closed and file.read() == b""


def workbook(path: Path, rows, *more) -> Path:
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl reads Excel's files")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for name in more:
        book.create_sheet(name).append(["other", "sheet"])
    book.save(path)
    return path


def test_the_first_sheet_of_an_excel_file(tmp_path: Path) -> None:
    rows = [*ROWS, (), (4, 2024, "acesso"), (5, None, "produto")]
    path = workbook(tmp_path / "a.xlsx", rows, "more")
    # Excel makes a number of a text of digits; a blank row is none.
    assert read_labelled(path, **COLUMNS) == (
        [*TEXTS, "2024", ""],
        [*LABELS, "acesso", "produto"],
    )
    assert list(read_texts(tmp_path, text_column="texto"))[:3] == TEXTS
    with pytest.raises(ValueError, match=r"a.xlsx has no column 'text'; .* such as 'texto'"):
        list(read_texts(path))


def test_labels_of_excel_are_what_they_are_elsewhere(tmp_path: Path, caplog) -> None:
    import datetime

    when = datetime.datetime(2024, 5, 1)
    rows = [("text", "label"), ("a", 1), ("b", 2), ("c", None), ("d", when)]
    path = workbook(tmp_path / "a.xlsx", rows)
    with pytest.raises(ValueError, match=r"a.xlsx, row 4: 'label' is None, expected a label"):
        read_labelled(path)
    assert read_labelled(path, on_error="skip") == (["a", "b"], [1, 2])
    assert "row 5: 'label' is datetime.datetime(2024" in caplog.text


def test_what_is_no_excel_file(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [])
    with pytest.raises(ValueError, match=r"a.xlsx is empty, expected at least one text"):
        list(read_texts(path))
    path.write_bytes(b"text;label\n")
    with pytest.raises(ValueError, match=r"is no whole Excel file .* save it anew as \.xlsx"):
        list(read_texts(path))
    good = write(tmp_path / "good.txt", "good\n")
    assert list(read_texts([path, good], on_error="skip")) == ["good"]


def test_excel_without_its_reader_names_the_extra(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "a.xlsx").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"pip install 'ulmfit-fast\[excel\]'"):
        list(read_texts(tmp_path / "a.xlsx"))


def test_few_rows_are_skipped_and_many_refused(tmp_path: Path, caplog) -> None:
    def path(good: int, bad: int) -> Path:
        rows = "good,1\n" * good + "bad\n" * bad
        return write(tmp_path / "a.csv", "text,n\n" + rows)

    for good, bad in ((9, 1), (1, 3), (95, 5)):
        assert len(list(read_texts(path(good, bad), on_error="skip_few"))) == good
        assert "skipped" in caplog.text
        caplog.clear()
    for good, bad in ((94, 6), (1, 4), (12, 388)):
        message = (
            rf"{bad} of {good + bad} rows cannot be read, expected at most 5 %: .*line \d+: 1 f"
        )
        with pytest.raises(ValueError, match=message):
            list(read_texts(path(good, bad), on_error="skip_few"))
        assert len(list(read_texts(path(good, bad), on_error="skip"))) == good
        labelled = path(good, bad).rename(tmp_path / "b.csv")
        with pytest.raises(ValueError, match=f"{bad} of {good + bad} rows"):
            read_labelled(labelled, "text", "n", on_error="skip_few")


def test_a_store_is_not_built_of_few_of_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,n\n" + "good,1\n" * 12 + "bad\n" * 9)
    tokenizer = Tokenizer.train(["good"], min_freq=1)
    with pytest.raises(ValueError, match="9 of 21 rows"):
        TokenStore.build(tmp_path / "s", path, tokenizer, workers=1, on_error="skip_few")
    assert not (tmp_path / "s").exists()
