"""The shell on tables as people have them: found forms are said, errors are in flags."""

import json
import logging
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT
from ulmfit_fast.cli import program
from ulmfit_fast.cli.app import TableOptions, flat, guarded
from ulmfit_fast.cli.program import app

SIZES = {"emb_size": 4, "hidden_size": 6, "num_layers": 2, "min_freq": 1, "progress": False}
ROWS = [(f"não é um texto {n % 7}", ("bom", "mau")[n % 2], n) for n in range(40)]


def run(command: str, folder: Path):
    return CliRunner().invoke(app, command.replace("@", f"{folder}/").split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    content = "texto;classe;número\n" + "".join(";".join(map(str, row)) + "\n" for row in ROWS)
    (folder / "latin.csv").write_text(content, encoding="cp1252")
    (folder / "cp850.csv").write_text(content.replace(";", ":"), encoding="cp850")
    (folder / "gone.csv").write_text("texto,classe\n" + "a,b\n" * 12 + "a\n" * 388)
    (folder / "good.txt").write_text("a text\n" * 40)
    model = ULMFiT(**SIZES, device="cpu")
    model.pretrain([row[0] for row in ROWS], epochs=1, batch_size=4).save(folder / "lm")
    labels = [row[1] for row in ROWS]
    model.fit_classifier([row[0] for row in ROWS], labels, epochs=1).save(folder / "model")
    return folder


READERS = {
    "pretrain": "pretrain --text {} --out @new --batch-size 4 --epochs 1 --emb-size 4 "
    "--hidden-size 6 --num-layers 2 --min-freq 1",
    "fine-tune": "fine-tune --model @lm --text {} --out @new --batch-size 4 --epochs 1",
    "fit-classifier": "fit-classifier --model @lm --text {} --out @new --epochs 1",
    "predict": "predict --model @model --text {}",
    "explain": "explain --model @model --text {} --out @new/a.html",
    "tokenize": "tokenize --text {} --out @new --min-freq 1 --workers 1",
    "find-lr": "find-lr --model @lm --text {} --out @new/a.svg --batch-size 4 --steps 20",
    "check": "check {}",
}


@pytest.mark.parametrize("command", READERS)
def test_every_command_reads_what_is_named_and_tells_of_columns_in_flags(
    folder: Path, tmp_path: Path, command: str
) -> None:
    there = folder / "cp850.csv"
    line = READERS[command].replace("@new", str(tmp_path / "new")).format(there)
    form = "--delimiter : --encoding cp850"
    done = run(f"{line} {form}", folder)
    assert done.exit_code == 2
    assert done.stderr.endswith(
        f"error: {there} has no column 'text'; its columns are 'texto', 'classe', 'número'; pass "
        "the name of one as --text-column, such as 'texto'\n"
    )
    labels = "--label-column classe" if command in ("fit-classifier", "check") else ""
    done = run(f"{line} {form} --text-column texto {labels}", folder)
    assert done.exit_code == 0, done.output
    if labels:
        done = run(f"{line} {form} --text-column texto --label-column clase --overwrite", folder)
        if command == "check":
            done = run(f"{line} {form} --text-column texto --label-column clase", folder)
        assert "one as --label-column, such as 'classe'" in done.stderr
    done = run(f"{line} --encoding utf9", folder)
    assert "--encoding is 'utf9'" in done.stderr or "--out" in done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict --model @lm --text @good.txt", "yet; run ulmfit-fast fit-classifier first"),
        ("generate --model @lm --top-k 0", "--top-k is 0"),
        ("check @latin.csv --text-column texto --delimiter ab", "--delimiter is 'ab', expected"),
        ("fit-classifier --model @lm --text @latin.csv --text-column texto --label-column número "
         "--out @no", "pass another column as --label-column"),
        ("pretrain --text @good.txt --out @no --batch-size 4 --set bptts=3",
         "there is no setting 'bptts'; pass one of epochs"),
        ("pretrain --text @good.txt --out @no --batch-size 4 --set chain_thaw=true",
         "pass --set gradual_unfreezing=1"),
        ("pretrain --text @good.txt --out @no --batch-size 4 --set clip=-1", "--set clip is -1"),
        ("fine-tune --model @lm --text @good.txt --out @no --batch-size 4000",
         "--batch-size 4000"),
    ],
)  # fmt: skip
def test_errors_are_in_the_words_of_the_shell(folder: Path, command: str, message: str) -> None:
    done = run(command, folder)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert message in done.stderr, done.stderr
    assert "(" not in done.stderr.split(";")[-1] and "__init__" not in done.stderr


def test_a_package_that_is_missing_is_one_line(folder: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "a.xlsx").write_bytes(b"x")
    done = run(f"predict --model @model --text {tmp_path}/a.xlsx", folder)
    assert done.exit_code == 2 and done.stderr.endswith("pip install 'ulmfit-fast[excel]'\n")


def test_an_error_of_the_system_has_no_number(folder: Path, monkeypatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "a.txt")

    monkeypatch.setattr(ULMFiT, "load", fails)
    done = run("predict --model @model --text @good.txt", folder)
    assert done.stderr == "error: a.txt: no such file or directory\n" and done.exit_code == 2


@pytest.mark.parametrize("command", ["pretrain", "fine-tune", "fit-classifier", "tokenize"])
def test_most_of_the_rows_are_not_skipped(folder: Path, tmp_path: Path, command: str) -> None:
    line = READERS[command].replace("@new", str(tmp_path / "new")).format(folder / "gone.csv")
    done = run(f"{line} --text-column texto --skip-bad-rows", folder)
    labels = "--label-column classe" if command == "fit-classifier" else ""
    done = run(f"{line} --text-column texto {labels} --skip-bad-rows", folder)
    assert done.exit_code == 2 and not (tmp_path / "new").exists()
    assert "error: 388 of 400 rows cannot be read, expected at most 5 %: " in done.stderr
    assert "pass the --delimiter or --encoding of the files" in done.stderr


def test_check_ends_with_0_and_warnings_or_with_2_and_faults(folder: Path) -> None:
    line = "check @latin.csv --text-column texto"
    done = run(f"{line} --label-column classe --model @model", folder)
    assert done.exit_code == 0 and done.stderr == ""
    assert f"{folder}/latin.csv: 40 rows, delimiter ';', encoding 'cp1252'" in done.stdout
    assert "unknown to the model: 0.0%" in done.stdout and "  bom       20" in done.stdout
    assert "warning: 33 duplicate texts" in done.stdout
    done = run(line, folder)
    assert done.exit_code == 0 and "'classe'; pass --label-column\n" in done.stdout
    done = run(f"{line} --label-column número", folder)
    assert done.exit_code == 2 and done.stderr.startswith("error: 'número' holds 40 different")
    assert "error" not in done.stdout
    done = run(f"{line} --label-column número --json", folder)
    found = json.loads(done.stdout)
    assert done.exit_code == 2 and found["rows"] == 40 and len(found["faults"]) == 1


def test_what_was_assumed_reaches_standard_error_once_and_in_flags(
    folder: Path, capsys, monkeypatch
) -> None:
    root, log = logging.getLogger(), logging.getLogger("ulmfit_fast")
    monkeypatch.setattr(root, "handlers", [])

    @guarded
    @flat
    def twice(*, rows: TableOptions) -> None:
        for _ in range(2):
            log.warning("a.csv is read with delimiter ';'; where that is wrong, pass delimiter=")

    monkeypatch.setattr(
        program, "app", lambda: twice(text_column="a", delimiter=None, encoding=None)
    )
    monkeypatch.setattr(program, "_open_standard_streams", lambda: None)
    program.main()
    told = "a.csv is read with delimiter ';'; where that is wrong, pass --delimiter\n"
    assert capsys.readouterr().err == told


def test_the_next_command_reads_the_files_likewise(folder: Path, tmp_path: Path) -> None:
    form = "--delimiter : --encoding cp850 --text-column texto"
    line = READERS["fine-tune"].replace("@new", str(tmp_path / "new"))
    done = run(f"{line.format('@cp850.csv')} {form}", folder)
    assert done.exit_code == 0, done.output
    (following,) = [part for part in done.stderr.splitlines() if part.startswith("next: ")]
    assert " --text-column texto --delimiter : --encoding cp850 --out " in following
    done = run(f"{following.removeprefix('next: ulmfit-fast ')} --label-column classe", folder)
    assert done.exit_code == 0, done.output
