"""Known corpora, each in a tiny copy of its published layout."""

import gzip
import re
from pathlib import Path

import pytest

from ulmfit_fast.data import Tokenizer, Vocab
from ulmfit_fast.data.reading.published import (
    LAYOUTS,
    read_ag_news,
    read_class_csv,
    read_dbpedia,
    read_imdb,
    read_wikitext,
    read_yelp,
)

RAW = """ \n = Robert Boulter = \n \n Robert Boulter is an English film , television actor .
 He had a guest @-@ starring role in 2000 . \n \n = = Career = = \n \n = = = 2000 - 2005 = = = \n
 In 2006 , he earned $ 1 @,@ 500 @.@ 50 . \n \n \n = E = mc = \n \n A second article .
 = not a title = \n It goes on . \n \n"""
TOKENS = RAW.replace("Boulter", "<unk>")


@pytest.mark.parametrize("suffix", [".raw", ".tokens", ".tokens.gz"])
def test_wikitext(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"wiki.train{suffix}"
    text = RAW if suffix == ".raw" else TOKENS
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    first, second = read_wikitext(path)
    assert first.startswith(f" = Robert {'Boulter' if suffix == '.raw' else '<unk>'} = \n")
    assert "guest-starring" in first and "$ 1,500.50 . \n" in first and "= = Career = =" in first
    assert first.endswith("50 . \n") and second.startswith(" = E = mc = \n")
    assert " = not a title = \n It goes on . \n" in second
    assert list(read_wikitext(text.splitlines(keepends=True))) == [first, second]


def test_unknown_words_of_wikitext_are_unknown_to_the_tokenizer() -> None:
    lines = ["\n", " = A <unk> = \n", "\n", " a <unk> @-@ b , <unk> 's <unk> . \n"]
    tokenizer = Tokenizer.from_vocab(Vocab(["a", "b", "-", "=", ",", "'s", "."]))
    (article,) = read_wikitext(lines)
    shown = " ".join(tokenizer.tokens(article))
    assert shown == "xxbos = a xxunk = a xxunk - b , xxunk 's xxunk ."


def test_text_before_the_first_title_is_kept_and_a_last_title_too() -> None:
    lines = ["before\n", "\n", " = A = \n", "\n", "x\n", "\n", " = B = \n"]
    assert list(read_wikitext(lines)) == ["before\n", " = A = \n\nx\n", " = B = \n"]


def test_wikitext_in_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs the package pyarrow")
    from pyarrow import parquet

    lines = RAW.splitlines(keepends=True)
    parquet.write_table(arrow.table({"text": lines}), tmp_path / "a.parquet")
    assert list(read_wikitext(tmp_path / "a.parquet")) == list(read_wikitext(lines))


def test_what_is_no_wikitext(tmp_path: Path) -> None:
    path = tmp_path / "wiki.train.raw"
    path.write_text("One line.\n = T = \nAnother.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"wiki.train.raw has no title such as"):
        list(read_wikitext(path))
    path.write_bytes(b" = T = \n\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"wiki.train.raw, line 3: byte 0xe9 is not UTF-8"):
        list(read_wikitext(path))
    with pytest.raises(FileNotFoundError, match=r"none.raw does not exist"):
        read_wikitext(tmp_path / "none.raw")


def make_imdb(root: Path) -> Path:
    for name in ("neg/10_2.txt", "neg/9_1.txt", "pos/0_9.txt", "unsup/0_0.txt", "unsup/1_0.txt"):
        path = root / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Review {name}.<br /><br />Two lines.", encoding="utf-8")
    (root / "train" / "urls_neg.txt").write_text("http://x\n", encoding="utf-8")
    (root / "train" / "labeledBow.feat").write_text("9 0:9\n", encoding="utf-8")
    return root


def test_imdb(tmp_path: Path) -> None:
    root = make_imdb(tmp_path / "aclImdb")
    rows = list(read_imdb(root))
    assert [row.label for row in rows] == ["neg", "neg", "pos"]
    assert [row.text[7:19] for row in rows] == ["neg/9_1.txt.", "neg/10_2.txt", "pos/0_9.txt."]
    assert rows[0].text == "Review neg/9_1.txt.<br /><br />Two lines."
    assert {row.label for row in read_imdb(root, classes=("unsup",))} == {"unsup"}
    assert len(list(LAYOUTS["imdb"](root))) == 5
    with pytest.raises(FileNotFoundError, match="neg is no directory, expected the reviews"):
        read_imdb(root, "test")
    (root / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no .txt file"):
        read_imdb(root, classes=("neg", "empty"))


def write_split(directory: Path, content: str, classes: str = "") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "train.csv").write_text(content, encoding="utf-8")
    if classes:
        (directory / "classes.txt").write_text(classes, encoding="utf-8")
    return directory


AG = (
    '"3","Bears Claw (Reuters)","Street\'s dwindling\\band of #36;46 ""ultra""-cynics"\n'
    '"1","Venezuelans, Vote","Peace\\nations"\n'
)


def test_ag_news(tmp_path: Path) -> None:
    directory = write_split(tmp_path / "ag_news_csv", AG, "World\nSports\nBusiness\nSci/Tech\n\n")
    rows = list(read_ag_news(directory))
    assert [row.label for row in rows] == ["Business", "World"]
    expected = 'Bears Claw (Reuters) Street\'s dwindling band of #36;46 "ultra"-cynics'
    assert [row.text for row in rows] == [expected, "Venezuelans, Vote Peace nations"]
    (directory / "classes.txt").unlink()
    assert [row.label for row in read_ag_news(directory)] == ["Business", "World"]
    assert list(LAYOUTS["ag_news"](directory)) == [row.text for row in rows]


def test_dbpedia(tmp_path: Path) -> None:
    classes = "Company\nEducationalInstitution\n"
    content = '1,"E. D. Abbott Ltd"," Abbott of Farnham was a ""coachbuilder"".\\n"\n2,"A"," B"\n'
    rows = list(read_dbpedia(write_split(tmp_path / "dbpedia_csv", content, classes)))
    assert rows == [
        ('E. D. Abbott Ltd Abbott of Farnham was a "coachbuilder".\\n', "Company"),
        ("A B", "EducationalInstitution"),
    ]


def test_yelp(tmp_path: Path) -> None:
    content = '"5","dr. goldberg offers\\n\\neverything, \\""really\\""."\n"2","no"\n'
    directory = write_split(tmp_path / "yelp_review_full_csv", content)
    expected = [('dr. goldberg offers\n\neverything, "really".', "5"), ("no", "2")]
    assert list(read_yelp(directory)) == expected
    (directory / "test.csv.gz").write_bytes(gzip.compress(content.encode()))
    assert list(read_yelp(directory, "test")) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param('"1","a","b"\n"2","a"\n', "train.csv, line 2: 2 fields, expected 3", id="few"),
        pytest.param('"1","a","b"\n"1"\n', "line 2: 1 fields, expected 3", id="one"),
        pytest.param(
            'label,title,text\n"1","a","b"\n',
            "line 1: the class is 'label', .* no header",
            id="head",
        ),
        pytest.param(
            '"5","a\nb","c"\n',
            r"line 1: the class is '5', expected .* 1 to 4 \(World to",
            id="five",
        ),
        pytest.param('"0","a","b"\n', "the class is '0'", id="zero"),
        pytest.param('"²","a","b"\n', "the class is '²'", id="superscript"),
        pytest.param('"1","a\n', "line 1: unexpected end of data", id="open-quote"),
        pytest.param("", "train.csv is empty", id="empty"),
    ],
)
def test_bad_class_csv(tmp_path: Path, content: str, message: str) -> None:
    directory = write_split(tmp_path / "ag_news_csv", content)
    with pytest.raises(ValueError, match=message):
        list(read_ag_news(directory))


def test_class_csv_of_ones_own(tmp_path: Path) -> None:
    directory = write_split(tmp_path / "own", '"2","x","y","z"\n')
    assert list(read_class_csv(directory / "train.csv")) == [("x y z", "2")]
    assert list(read_class_csv(directory / "train.csv", ["no", "yes"])) == [("x y z", "yes")]
    with pytest.raises(FileNotFoundError, match=re.escape("test.csv does not exist")):
        read_class_csv(directory / "test.csv")
    (directory / "train.csv").write_bytes(b'"1","a"\n"2","caf\xe9"\n')
    with pytest.raises(ValueError, match=r"train.csv, line 2: byte 0xe9"):
        list(read_class_csv(directory / "train.csv"))
