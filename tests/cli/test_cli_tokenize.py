"""The command `tokenize`, in this process."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ulmfit_fast.cli.program import app
from ulmfit_fast.data import Tokenizer, TokenStore
from ulmfit_fast.data.store import store as token_store
from ulmfit_fast.system.locks import directory_lock

LINES = ["The cat sat.", "The dog sat, the cat did not!"] * 4


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["tokenize", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_a_vocabulary_is_learnt_and_used(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "store"
    shown = run("--text", corpus, "--out", out, "--min-freq", 1, "--max-vocab", 15, "--workers", 1)
    assert "word tokenizer with a vocabulary of 15" in shown and "8 documents, " in shown
    expected = Tokenizer.train(LINES, min_freq=1, max_vocab=15)
    store = TokenStore(out, expected)
    assert [i.tolist() for i in store] == [i.tolist() for i in expected.encode_batch(LINES)]
    again = ("--text", corpus, "--out", out)
    message = run(*again, "--min-freq", 1, "--max-vocab", 15, code=2)
    assert "already; --overwrite replaces it" in message
    for anew in ("--overwrite", "--anew"):
        run(*again, "--min-freq", 1, anew)
        assert TokenStore(out).vocab_size > 15


def test_the_tokenizer_of_a_store_or_model(tmp_path: Path, corpus: Path) -> None:
    run("--text", corpus, "--out", tmp_path / "train", "--tokenizer", "subword", "--max-vocab", 40)
    valid = tmp_path / "valid.csv"
    valid.write_text('body\n"a cat, a dog"\n', encoding="utf-8")
    options = ["--text", valid, "--text-column", "body", "--model", tmp_path / "train"]
    run(*options, "--out", tmp_path / "valid")
    train, valid_store = TokenStore(tmp_path / "train"), TokenStore(tmp_path / "valid")
    assert train.tokenizer().kind == "subword"
    valid_store.require(train.tokenizer())
    message = run(*options[:4], "--model", tmp_path, "--out", tmp_path / "x", code=2)
    assert "has no tokenizer.json" in message


def test_a_tokenizer_json(tmp_path: Path, corpus: Path) -> None:
    own = Tokenizer.train(LINES, min_freq=1)
    (tmp_path / "own.json").write_text(own.to_json(), encoding="utf-8")
    theirs = own.to_huggingface()
    theirs.save(str(tmp_path / "theirs.json"))
    for name, kind in (("own", "word"), ("theirs", "huggingface")):
        run("--text", corpus, "--tokenizer", tmp_path / f"{name}.json", "--out", tmp_path / name)
        assert TokenStore(tmp_path / name).tokenizer().kind == kind


def test_layouts_and_folders(tmp_path: Path) -> None:
    raw = tmp_path / "wiki.train.raw"
    raw.write_text(" \n = A = \n \n a a a b\n \n = B = \n \n a b\n", encoding="utf-8")
    run("--text", raw, "--layout", "wikitext", "--min-freq", 1, "--out", tmp_path / "wiki")
    assert len(TokenStore(tmp_path / "wiki")) == 2
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text("a b\n\nc", encoding="utf-8")
    run("--text", folder, "--out", tmp_path / "files")
    assert len(TokenStore(tmp_path / "files")) == 3
    message = run("--text", raw, "--layout", "html", "--out", tmp_path / "x", code=2)
    assert "--layout is 'html', expected plain, wikitext" in message


def test_a_store_that_is_being_built_is_told_before_a_vocabulary_is_learnt(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "train", None)
    # The thread that holds a directory may hold it once more.
    with directory_lock(tmp_path / "store"), ThreadPoolExecutor() as pool:
        options = ("--text", corpus, "--out", tmp_path / "store")
        message = pool.submit(run, *options, code=2).result()
    assert "store is held by process" in message and message.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt"]


def test_an_interruption_leaves_nothing(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(directory: Path, *args: object, **options: object) -> None:
        (directory / "ids.bin").touch()
        raise KeyboardInterrupt

    options = ["--text", corpus, "--out", tmp_path / "store", "--min-freq", 1]
    monkeypatch.setattr(token_store, "write_store", interrupt)
    assert "interrupted; nothing is written" in run(*options, code=130)
    assert not (tmp_path / "store").exists()
    monkeypatch.undo()
    assert "8 documents" in run(*options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "missing.txt"], "missing.txt does not exist"),
        (["--tokenizer", "bpe"], "kind is 'bpe', expected 'word'"),
        (["--tokenizer", "missing.json"], "missing.json"),
        (["--workers", "0"], "workers is 0"),
        (["--max-vocab", "3"], "--max-vocab is 3"),
    ],
    ids=["missing", "kind", "json", "workers", "max-vocab"],
)
def test_bad_input_is_one_line(
    tmp_path: Path, corpus: Path, arguments: list[str], message: str
) -> None:
    options = ["--text", corpus, "--out", tmp_path / "store", "--min-freq", 1]
    shown = run(*options, *arguments, code=2)
    last = shown.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt"]


def test_meta_names_what_is_there(tmp_path: Path, corpus: Path) -> None:
    run("--text", corpus, "--out", tmp_path / "store", "--min-freq", 1)
    meta = json.loads((tmp_path / "store" / "meta.json").read_text(encoding="utf-8"))
    assert meta["documents"] == 8 and meta["kind"] == "word" and meta["dtype"] == "<u2"
