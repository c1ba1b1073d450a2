"""What `check_table` finds in a table, and what it holds against it."""

import json
from pathlib import Path
from typing import Any

import pytest

from ulmfit_fast import ULMFiT
from ulmfit_fast.data import Tokenizer, check_table
from ulmfit_fast.data.columns import several_labels

SENTENCES = {
    "Portuguese": "não sei o que aconteceu com o meu pedido e você também não sabe",
    "English": "the order was not on time and this is all that they have to say",
    "Spanish": "el pedido no llegó y la caja estaba abierta pero es muy tarde",
    "French": "je ne sais pas si le colis est dans la boîte et vous non plus",
    "German": "das Paket ist nicht da und ich habe es auch nicht mit der Post",
}


def rows_of(count: int) -> list[tuple]:
    labels = ["bom", "mau", "ruim"]
    return [(n, f"texto número {n} de todos", labels[n % 3], "pt") for n in range(count)]


def write(path: Path, rows, sign: str = ";", encoding: str = "utf-8") -> Path:
    lines = [("id", "texto", "classe", "idioma"), *rows]
    path.write_bytes("".join(sign.join(map(str, row)) + "\n" for row in lines).encode(encoding))
    return path


def check(path: Path, label_column: str | None = "classe", **options):
    return check_table(path, text_column="texto", label_column=label_column, **options)


@pytest.mark.parametrize("content", ["", "texto;classe\n"])
def test_a_file_without_rows_says_that_and_no_more(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    found = check(path, "classe" if content else None)
    assert len(found.lines()) == 1
    (fault,) = found.faults
    assert fault == f"{path} is empty, expected at least one text; fill or remove it"


def test_texts_without_letters_may_be_of_another_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", rows_of(60))
    found = check_table(path, text_column="id", label_column="classe")
    wrong = "60 texts in 'id' have no letter; where that is the wrong column, pass text_column="
    assert wrong in found.warnings and "letter" not in "".join(check(path).warnings)


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_a_delimiter_that_divides_nothing_is_named(tmp_path: Path, sign: str) -> None:
    path = write(tmp_path / "a.csv", rows_of(20), sign)
    with pytest.raises(ValueError, match=r"no column 'texto'.*; pass delimiter=") as error:
        check(path, delimiter=":")
    assert f"pass delimiter={sign!r} or the name of one as text_column=" in str(error.value)
    with pytest.raises(ValueError, match="; pass the name of one as text_column="):
        check_table(path, text_column="text")


def test_a_table_with_nothing_wrong(tmp_path: Path) -> None:
    rows = [row[:3] for row in rows_of(60)]
    path = tmp_path / "a.csv"
    path.write_bytes(
        "".join(
            ";".join(map(str, row)) + "\n" for row in [("id", "texto", "classe"), *rows]
        ).encode("cp1252")
    )
    found = check(path)
    assert (found.rows, found.bad_rows, found.delimiter, found.encoding) == (60, 0, ";", "cp1252")
    assert found.columns == ("id", "texto", "classe")
    assert found.classes == {"bom": 20, "mau": 20, "ruim": 20}
    assert found.characters == (24, 24, 24)
    assert found.tokens == (6, 6, 6)
    assert found.faults == found.warnings == () and found.unknown_tokens is None
    lines = str(found).splitlines()
    assert lines[0] == f"{path}: 60 rows, delimiter ';', encoding 'cp1252'"
    assert lines[-4:] == [
        "labels in 'classe': 3 classes",
        "  bom        20   33.3%",
        "  mau        20   33.3%",
        "  ruim       20   33.3%",
    ]
    assert json.loads(found.to_json())["classes"] == {"bom": 20, "mau": 20, "ruim": 20}


def test_what_should_be_looked_at(tmp_path: Path) -> None:
    rows = rows_of(60)
    rows[10] = (10, "  ", "mau", "pt")
    rows[20] = (20, "texto número 3 de todos ", "bom", "en")
    rows[30] = (30, "texto número 4 de todos", "raro", "pt")
    rows[40] = (40, "um", "campo a menos")
    rows[50] = (50, "sem classe", "", "pt")
    found = check(write(tmp_path / "a.csv", rows))
    assert (found.rows, found.bad_rows) == (58, 2)
    assert (found.empty_texts, found.duplicate_texts, found.conflicting_texts) == (1, 2, 1)
    assert found.constant_columns == () and found.faults == ()
    assert [warning.split(", the first")[0] for warning in found.warnings] == [
        "2 rows cannot be read",
        "1 empty text (1.7%)",
        "2 duplicate texts (3.4%)",
        "1 text with another label than the same text above: line 6 says 'mau' and line 32 'raro'",
        "fewer than 10 texts of raro",
    ]
    assert "line 42: 3 fields, expected 4" in found.warnings[0]


def test_a_column_of_one_value_is_told(tmp_path: Path) -> None:
    rows = rows_of(300)
    rows[0] = (*rows[0][:3], "en")
    found = check(write(tmp_path / "a.csv", rows))
    assert found.constant_columns == ("idioma",)
    assert "one value alone in the column 'idioma'" in found.warnings[-1]


def test_columns_that_are_no_label_are_refused_and_those_that_fit_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", rows_of(60))
    (fault,) = check(path, "id").faults
    assert fault == (
        "'id' holds 60 different values in 60 rows, such as '0', expected classes that many rows "
        "share; those that would fit are 'classe' (3 values); pass label_column="
    )
    (fault,) = check(path, "idioma").faults
    assert fault.startswith("'idioma' holds the one class 'pt', expected at least two; those that")
    assert str(check(path, "idioma")).endswith(f"error: {fault}")
    found = check(path, None)
    assert found.label_column is None and found.classes == {} and found.faults == ()
    assert found.warnings[-1].startswith("no column 'label'; those that would fit are 'classe'")
    # Of few rows each may have a class of its own.
    assert check(write(path, rows_of(20)), "id").faults == ()


def test_a_table_that_cannot_be_used(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [*rows_of(12), *(("x", "y"),) * 388])
    (fault,) = check(path).faults
    assert fault.startswith("388 of 400 rows cannot be read: ") and "line 14: 2 fields" in fault
    (fault,) = check(write(path, [(1, " ", "bom", "pt")] * 3), None).faults
    assert "has no text in 'texto'" in fault
    with pytest.raises(ValueError, match=r"no column 'text'; .*as text_column=, such as 'texto'"):
        check_table(path)
    with pytest.raises(ValueError, match=r"no column 'klasse'; .*label_column=, such as 'classe'"):
        check(path, "klasse")
    with pytest.raises(ValueError, match="is a directory, expected a file"):
        check(tmp_path)
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "none.csv")


def test_labels_that_are_several_in_one_are_a_fault(tmp_path: Path) -> None:
    rows = [(n, f"texto {n}", ("preço|prazo", "preço", "prazo")[n % 3], "pt") for n in range(60)]
    (fault,) = check(write(tmp_path / "a.csv", rows)).faults
    assert fault.startswith("'classe': 20 of 60 labels are several in one, such as 'preço|prazo'")


@pytest.mark.parametrize(
    "labels",
    [
        ("price;quality", "price", "quality"),
        ("price, quality", "price", "quality"),
        ("price | quality", "price", "quality"),
        ("a|b", "b|c", "a|c"),
        ("1|2", "1", "2"),
    ],
)
def test_labels_that_are_several_in_one(labels: tuple[str, ...]) -> None:
    assert several_labels(dict.fromkeys(labels, 20)) is not None


@pytest.mark.parametrize(
    "labels",
    [
        ("sports|tennis", "sports|golf", "news|world"),
        ("a|b|c", "a|b|d", "x|b|c"),
        ("sports", "sports|tennis", "news"),
        ("yes", "yes, definitely", "no"),
        ("R&B/Soul", "Soul", "Rock/Pop", "Pop"),
        ("1", "1,5", "2", "2,5", "5"),
        ("a|", "b|", "|"),
        ("C|C++", "Python"),
        (1, 2),
    ],
)
def test_labels_that_are_one_class_each(labels: tuple[Any, ...]) -> None:
    assert several_labels(dict.fromkeys(labels, 20)) is None


def test_other_kinds_of_files(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {n}", "label": n % 2, "more": n, "tags": ["a"], "kind": n % 3}
        for n in range(30)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check_table(path)
    assert found.label_column == "label" and found.classes == {0: 15, 1: 15}
    assert (found.delimiter, found.encoding) == (None, "utf-8")
    assert found.columns == ("text", "label", "more", "tags", "kind")
    assert (found.constant_columns, found.label_candidates) == (("tags",), ("kind",))
    assert json.loads(found.to_json())["classes"] == {"0": 15, "1": 15}
    path = tmp_path / "a.txt"
    path.write_text("não\n\né isso\n", encoding="cp1252")
    found = check_table(path)
    assert (found.rows, found.encoding, found.columns) == (2, "cp1252", ())
    with pytest.raises(ValueError, match="has no columns, expected one of labels"):
        check_table(path, label_column="label")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = check_table(path)
    assert found.classes == {0: 15, 1: 15} and found.encoding is None
    assert (found.constant_columns, found.label_candidates) == (("tags",), ("kind",))
    assert check_table(path, label_column="more").faults


def test_an_excel_file(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl reads Excel's files")
    book = openpyxl.Workbook()
    for row in [("id", "texto", "classe", "idioma"), *rows_of(60)]:
        book.active.append(row)
    book.active.append((61, "texto número 1 de todos", "bom", "pt"))
    path = tmp_path / "a.xlsx"
    book.save(path)
    found = check(path)
    assert found.rows == 61 and "row 3 says 'mau' and row 62 'bom'" in found.warnings[1]
    assert (found.delimiter, found.encoding) == (None, None)
    assert check(path, None).label_candidates == ("classe",)


def test_what_a_model_does_not_know(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [(n, "cat Dog dog", "ab"[n % 2], "en") for n in range(20)])
    tokenizer = Tokenizer.train(["cat sat"], min_freq=1)
    found = check(path, tokenizer=tokenizer)
    # xxbos, cat, xxmaj, dog, dog
    assert found.unknown_tokens == 2 / 5 and found.unknown_words == 1 / 2
    assert "the model does not know 40.0% of the tokens" in found.warnings[-1]
    assert "unknown to the model: 40.0% of the tokens, 50.0% of the different words" in str(found)
    pieces = Tokenizer.train(["cat dog"] * 9, "subword", max_vocab=30)
    assert check(path, tokenizer=pieces).unknown_words is None


@pytest.mark.parametrize("language", SENTENCES)
def test_the_language_by_its_commonest_words(tmp_path: Path, language: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"{SENTENCES[language]}\n" * 3)
    assert check_table(path).language == language
    path.write_text("lorem ipsum dolor sit amet\n")
    assert check_table(path).language is None


def test_nothing_is_logged(tmp_path: Path, caplog) -> None:
    check(write(tmp_path / "a.csv", rows_of(9), encoding="cp1252"))
    assert not caplog.records


def test_a_classifier_refuses_labels_that_nearly_all_differ() -> None:
    model = ULMFiT(emb_size=4, hidden_size=6, num_layers=2, min_freq=1, progress=False)
    texts = ["a fine film"] * 25
    with pytest.raises(ValueError, match=r"labels hold 21 different values in 25 rows.*label_col"):
        model.fit_classifier(texts, [n % 21 for n in range(25)], epochs=1)
    assert model.classifier is None
    # Few labels of many classes, as in BANKING77: 77 in 100 rows.
    labels = [n % 20 for n in range(25)]
    assert model.fit_classifier(texts, labels, epochs=1).labels == list(range(20))
    labels = list(range(20))
    assert model.fit_classifier(texts[:20], labels, epochs=1).labels == labels
