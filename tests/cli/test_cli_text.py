"""The commands that write and explain text."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT
from ulmfit_fast.cli.program import app
from ulmfit_fast.cli.text import explain, generate

TEXTS = ["a fine film", "a dull film"] * 20


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    model = ULMFiT(emb_size=8, hidden_size=10, num_layers=2, min_freq=1, progress=False)
    model.pretrain(TEXTS, epochs=1, batch_size=8, bptt=10)
    model.fit_classifier(TEXTS, [1, 0] * 20, epochs=1)
    path = tmp_path_factory.mktemp("models") / "model"
    model.save(path)
    return path


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands_are_registered() -> None:
    names = {command.callback.__name__ for command in app.registered_commands}
    assert {generate.__name__, explain.__name__} <= names


def test_generate_writes_texts_that_the_seed_decides(directory: Path) -> None:
    arguments = ("generate", "--model", directory, "--prompt", "A fine", "--max-tokens", 5)
    result = run(*arguments, "--count", 3, "--min-tokens", 2, "--seed", 4)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("A fine") for line in lines)
    again = run(*arguments, "--min-tokens", 2, "--seed", 5)
    assert again.stdout.splitlines() == lines[1:2]
    greedy = [run(*arguments, "--temperature", 0, "--seed", s).stdout for s in (0, 1)]
    assert greedy[0] == greedy[1]


def test_explain_writes_a_page(directory: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "texts.txt", tmp_path / "deep" / "page.html"
    text.write_text("a <b>fine</b> film & more\na dull film\na film\n")
    result = run("explain", "--model", directory, "--text", text, "--out", out, "--limit", 2)
    assert result.exit_code == 0, result.output
    assert "shows 2 texts, more are left out by --limit" in result.stderr
    page = out.read_text()
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    words = [e.text for e in root.iter() if e.get("class", "").startswith("word")]
    assert "fine" in words and "<" in words and "&" in words
    assert "<b>" not in page and page.count("<article>") == 2
    result = run(
        "explain", "--model", directory, "--text", text, "--out", out, "--label", 1,
        "--method", "intrinsic_attention", "--overwrite",
    )  # fmt: skip
    assert result.exit_code == 0 and out.read_text().count("<strong>1</strong>") == 3
    assert out.read_text().count('class="word against"') == 1, "the legend's: there is no sign"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--temperature", -1), "temperature is -1.0, expected a number"),
        (("generate", "--count", 0), "--count is 0, expected at least 1"),
        (("explain", "--label", "odd"), "label is 'odd', expected one of the classes 0, 1"),
        (("explain", "--method", "odd"), "method is 'odd', expected one of gradient_x_input"),
        (("explain", "--limit", 0), "--limit is 0, expected at least 1"),
        (("explain", "--out", "."), "--out . is a directory, expected a file"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(directory: Path, tmp_path: Path, arguments, message: str) -> None:
    command, *options = arguments
    text = tmp_path / "texts.txt"
    text.write_text("a fine film\n")
    needed = ["--text", text] if command == "explain" else []
    if command == "explain" and "--out" not in options:
        needed += ["--out", tmp_path / "page.html"]
    result = run(command, "--model", directory, *needed, *options)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "page.html").exists()
