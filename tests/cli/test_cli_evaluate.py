"""`fit-classifier` holds texts out, and `evaluate` says how good a classifier is."""

import csv
import json
import logging
import re

import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT
from ulmfit_fast.cli.program import app
from ulmfit_fast.ulmfit.ensemble import Ensemble

WORDS = {"good": "fine great superb".split(), "bad": "dull poor awful".split()}
ROWS = [
    (f"a {WORDS[y][n % 3]} film number {n}", y, int(n % 5 == 0))
    for n in range(30)
    for y in ("good", "bad")
]
FIT = "--epochs 2 --batch-size 8".split()


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def succeed(*args):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def refused(message, *args):
    result = run(*args)
    assert result.exit_code == 2 and re.search(message, result.stderr), result.output
    assert result.stderr.count("\n") == 1


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "is_valid"), *rows])
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files, a language model and a classifier."""
    folder = tmp_path_factory.mktemp("evaluate")
    rows, test = write(folder / "rows.csv", ROWS), write(folder / "test.csv", ROWS[:25])
    lm, classifier = folder / "lm", folder / "classifier"
    sizes = "--emb-size 8 --hidden-size 10 --num-layers 2 --min-freq 1 --bptt 10".split()
    succeed("pretrain", "--text", rows, "--out", lm, *FIT, *sizes)
    result = succeed("fit-classifier", "--model", lm, "--text", rows, "--out", classifier, *FIT)
    first, shown = result.stderr.split("\n", 1)
    assert first.endswith(f"after the last epoch; the model is in {classifier}")
    loaded = ULMFiT.load(classifier, progress=False)
    # 15 % of 60.
    assert loaded.validation.rows == 9 and shown == (
        f"{loaded.validation}\nnext: ulmfit-fast predict --model {classifier} --text new.csv\n"
    )
    assert loaded.baselines.counts in ((25, 26), (26, 25)) and test.exists()
    return folder


def fit(made, tmp_path, *options):
    command = ("fit-classifier", "--model", made / "lm", "--text", made / "rows.csv")
    result = succeed(*command, "--out", tmp_path / "out", *FIT, *options)
    return result, ULMFiT.load(tmp_path / "out", progress=False)


def test_the_numbers_are_those_of_scikit_learn(made):
    command = ("evaluate", "--model", made / "classifier", "--text", made / "test.csv")
    values = json.loads(succeed(*command, "--json").stdout)
    model = ULMFiT.load(made / "classifier", progress=False)
    truth, predicted = [y for _, y, _ in ROWS[:25]], model.predict([text for text, *_ in ROWS[:25]])
    assert values["scores"]["accuracy"]["value"] == pytest.approx(accuracy_score(truth, predicted))
    parts = precision_recall_fscore_support(truth, predicted, zero_division=0)
    for name, expected in zip(("precision", "recall", "f1", "support"), parts, strict=True):
        assert [own[name] or 0 for own in values["classes"]] == pytest.approx(list(expected))
    shown = succeed(*command)
    assert shown.stderr == "" and shown.stdout == f"{model.evaluate(made / 'test.csv')}\n"
    assert values["verdict"] in shown.stdout and "bag of words" in values["verdict"]


def test_into_a_file(made, tmp_path):
    command = ("evaluate", "--model", made / "classifier", "--text", made / "test.csv")
    out = tmp_path / "new" / "numbers.json"
    result = succeed(*command, "--json", "--out", out)
    values = json.loads(out.read_text())
    assert result.stdout == ""
    assert result.stderr == f"the numbers are in {out}. {values['verdict']}\n"
    refused("numbers.json is there already; --overwrite replaces it", *command, "--out", out)
    succeed(*command, "--out", out, "--overwrite")
    assert out.read_text() == succeed(*command).stdout


def test_bad_input_is_one_line(made, tmp_path):
    other = write(tmp_path / "other.csv", [("a fine film", "odd", 0), ("dull", "bad", 0)])
    refused("1 of 2 texts have labels .* 'odd'; its labels are", "evaluate", "--model",
            made / "classifier", "--text", other)  # fmt: skip
    refused("there is no classifier yet", "evaluate", "--model", made / "lm", "--text", other)
    refused("no column 'verdict'", "evaluate", "--model", made / "classifier", "--text", other,
            "--label-column", "verdict")  # fmt: skip


def test_an_ensemble(made, tmp_path):
    models = [ULMFiT.load(made / "classifier", progress=False) for _ in range(2)]
    Ensemble(models).save(tmp_path / "both")
    shown = succeed("evaluate", "--model", tmp_path / "both", "--text", made / "test.csv").stdout
    command = ("evaluate", "--model", made / "classifier", "--text", made / "test.csv")
    assert shown == succeed(*command).stdout


def test_nothing_is_held_out_where_that_is_asked_for(made, tmp_path):
    result, model = fit(made, tmp_path, "--no-valid")
    assert model.validation is None and result.stderr.count("\n") == 2
    assert model.baselines.counts == (30, 30) and model.baselines.bag_of_words is not None
    expected = ULMFiT.load(made / "lm", progress=False)
    expected.fit_classifier(made / "rows.csv", epochs=2, batch_size=8)
    texts = [text for text, *_ in ROWS]
    assert (model.predict_proba(texts) == expected.predict_proba(texts)).all()


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (("--valid", "0.3"), 18),
        (("--valid-column", "is_valid"), 12),
        (("--valid", "test.csv"), 25),
    ],
    ids=str,
)
def test_what_is_held_out(made, tmp_path, monkeypatch, options, rows):
    monkeypatch.chdir(made)
    _, model = fit(made, tmp_path, *options, "--no-baseline")
    assert model.validation.rows == rows and model.baselines.bag_of_words is None
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ends = [report for report in map(json.loads, lines) if "epoch_ended" in report]
    assert [{"valid_loss", "valid_accuracy", "valid_macro_f1"} <= set(own) for own in ends] == [
        True,
        True,
    ]


def test_the_best_epoch_and_all_rows(made, tmp_path):
    options = ("--patience", 1, "--refit", "--lr", "0.5", "--set", "epochs=6")
    _, model = fit(made, tmp_path, *options, "--keep-best")
    checkpoints = tmp_path / "out" / "checkpoints"
    stages = {
        path.name: json.loads((path / "run.json").read_text()) for path in checkpoints.iterdir()
    }
    chosen = {name: own["fingerprint"]["settings"] for name, own in stages.items()}
    assert chosen["fit_classifier"]["patience"] == 1 and chosen["fit_classifier"]["keep_best"]
    assert chosen["refit_classifier"]["patience"] == 0
    assert chosen["refit_classifier"]["epochs"] <= chosen["fit_classifier"]["epochs"] == 6
    assert model.baselines.counts == (30, 30) and model.validation.rows == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--no-valid", "--valid", "0.2"), "--no-valid and --valid are both given, expected one"),
        (("--no-valid", "--refit"), "--no-valid and --refit are both given, expected one"),
        (("--no-valid", "--keep-best"), "--no-valid and --keep-best are both given"),
        (("--valid", "0.2", "--valid-column", "x"), "--valid and --valid-column are both given"),
        (
            ("--valid", "15"),
            "--valid is 15, expected a share between 0 and 1 or a file; --no-valid",
        ),
        (("--valid", "none.csv"), "--valid is 'none.csv', expected a share such as 0.15 or a file"),
        (("--valid-column", "x"), "rows.csv has no column 'x'; its columns are 'text', 'label'"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(made, tmp_path, options, message):
    command = ("fit-classifier", "--model", made / "lm", "--text", made / "rows.csv")
    refused(message, *command, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_file_that_is_held_out_is_not_written_over(made, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    held = write(out / "metrics.jsonl.csv", ROWS[:9])
    command = ("fit-classifier", "--model", made / "lm", "--text", made / "rows.csv")
    refused(f"--out {out} holds", *command, "--out", out, "--valid", held)
    assert held.exists()


def test_the_shell_shows_a_line_an_epoch(monkeypatch):
    from ulmfit_fast.cli import program

    log = logging.getLogger("ulmfit_fast.progress")
    before = log.level
    monkeypatch.setattr(program, "app", lambda: None)
    try:
        program.main()
        assert log.isEnabledFor(logging.INFO)
        assert not logging.getLogger("ulmfit_fast.other").isEnabledFor(logging.INFO)
    finally:
        log.setLevel(before)
