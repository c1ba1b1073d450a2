"""`train`: one command from a table to a classifier and its numbers."""

import csv
import json
import re

import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from typer.testing import CliRunner

from ulmfit_fast.cli.program import app
from ulmfit_fast.runs.dry_run import DryRun

# In Python from 3.11 on.
tomllib = pytest.importorskip("tomllib")

WORDS = {"elogio": "ótimo ágil excelente".split(), "reclamação": "péssimo ruído avaria".split()}
ROWS = [
    (f"o {WORDS[y][n % 3]} serviço à mão número {n}", y, int(n % 5 == 0))
    for n in range(20)
    for y in WORDS
]
QUICK = "--preset small --epochs 1 --lm-epochs 1".split()


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
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "is_valid"), *rows])
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A table, the model and what was said."""
    folder = tmp_path_factory.mktemp("train")
    table, out = write(folder / "rows.csv", ROWS), folder / "out"
    result = succeed("train", table, "--out", out, "--valid-column", "is_valid", *QUICK)
    return table, out, result.stderr


def test_it_ends_with_numbers_a_verdict_and_what_comes_next(made):
    _, out, said = made
    lines = said.splitlines()
    assert lines[-1] == f"next: ulmfit-fast predict --model {out} --text new.csv"
    assert lines[-2] == f"the model is in {out}, what it can do in {out / 'report.html'}"
    record = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert record["verdict"] in lines and "8 texts, 2 classes" in lines
    assert record["command"].startswith("ulmfit-fast")


def test_an_independent_computation_finds_the_same_numbers(made, tmp_path):
    _, out, _ = made
    held_out = [row for row in ROWS if row[2]]
    test, answers = write(tmp_path / "test.csv", held_out), tmp_path / "answers.csv"
    succeed("predict", "--model", out, "--text", test, "--out", answers)
    with answers.open(encoding="utf-8", newline="") as file:
        predicted = [row["label"] for row in csv.DictReader(file)]
    truth = [label for _, label, _ in held_out]
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))["evaluation"]
    assert found["rows"] == len(held_out) == 8 and found["labels"] == list(WORDS)
    assert found["scores"]["accuracy"]["value"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["confusion"] == confusion_matrix(truth, predicted, labels=list(WORDS)).tolist()
    every = precision_recall_fscore_support(truth, predicted, labels=list(WORDS), zero_division=0)
    assert [own["f1"] or 0 for own in found["classes"]] == pytest.approx(every[2].tolist())
    assert found["scores"]["macro_f1"]["value"] == pytest.approx(every[2].mean())
    result = succeed("evaluate", "--model", out, "--text", test, "--json")
    assert json.loads(result.stdout)["confusion"] == found["confusion"]


def test_a_run_that_is_over_is_not_repeated(made):
    table, out, _ = made
    options = ("train", table, "--out", out, "--valid-column", "is_valid", *QUICK)
    said = succeed(*options, "--resume").stderr
    assert "is over already; nothing is left to do" in said and "1/2" not in said
    refused("holds .* already; --resume goes on with it, --overwrite replaces it", *options)


def test_another_setting_on_the_way_on_is_named_as_the_shell_does(made):
    table, out, _ = made
    options = ("train", table, "--out", out, "--valid-column", "is_valid", "--preset", "small")
    for other in ("--lm-epochs", "--epochs"):
        given = {"--epochs": 1, "--lm-epochs": 1, other: 2}
        asked = [part for own in given.items() for part in own]
        said = run(*options, "--resume", *asked).stderr
        assert said.startswith(f"error: {other} is 2, and 1 in the run in ")
        assert said.endswith("or begin anew (--overwrite)\n")


def test_what_it_would_take_is_said_and_nothing_written(made, tmp_path):
    table, *_ = made
    result = succeed("train", table, "--out", tmp_path / "out", *QUICK, "--dry-run")
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")][:2] == [
        "pre-training a language model:",
        "fitting the classifier:",
    ]
    assert lines[-1].startswith("the whole run: ")
    assert sum(line.startswith("  steps: ") for line in lines) == 2
    assert list(tmp_path.iterdir()) == []


def test_time_is_told_of_steps_that_train_all_layers(made, tmp_path, monkeypatch):
    frozen = []

    class Watched(DryRun):
        def report(self, reading):
            frozen.append(any(not own.requires_grad for own in self._of[0]))
            super().report(reading)

    monkeypatch.setattr("ulmfit_fast.ulmfit.job.DryRun", Watched)
    table, *_ = made
    sizes = ("--preset", "small", "--lm-epochs", 1, "--epochs", 6)
    succeed("train", table, "--out", tmp_path / "out", *sizes, "--dry-run")
    assert frozen and not any(frozen)
    said = succeed("train", table, "--out", tmp_path / "out", *sizes).stderr
    lines = said[said.index("2/2 fitting") :].splitlines()
    told = [n for n, line in enumerate(lines) if line.endswith("left of the whole run")]
    slower = next(n for n, line in enumerate(lines) if "lower layers are still frozen" in line)
    assert lines[slower - 1].startswith("  time: ")
    assert len(told) == 1 and told[0] > slower


def test_what_is_printed_is_what_a_config_says(made, tmp_path):
    table, *_ = made
    asked = ("train", table, "--out", tmp_path / "out", "--valid", "0.2", "--lr", "0.02")
    asked += ("--class-weight", "elogio=2", "--text-column", "text")
    text = succeed(*asked, "--print-config").stdout
    found = tomllib.loads(text)
    assert (found["valid"], found["lr"], found["data"]) == (0.2, 0.02, [str(table)])
    assert found["class_weight"] == ["elogio=2.0"]
    assert found["preset"] == "small" and found["batch_size"] == 8 and found["epochs"] == 20
    assert "# fit_classifier.gradual_unfreezing = 1" in text.splitlines()
    config = tmp_path / "run.toml"
    config.write_text(text, encoding="utf-8")
    assert succeed("train", "--config", config, "--print-config").stdout == text
    changed = succeed("train", "--config", config, "--epochs", "3", "--print-config").stdout
    assert tomllib.loads(changed) == {**found, "epochs": 3}
    assert not (tmp_path / "out").exists()


def test_weights_of_texts_count(made, tmp_path):
    table = tmp_path / "weighted.csv"
    lines = made[0].read_text(encoding="utf-8").splitlines()
    weights = ["weight", *("3" if "elogio" in line else "1" for line in lines[1:])]
    table.write_text("".join(f"{line},{own}\n" for line, own in zip(lines, weights, strict=True)))
    options = ("--valid-column", "is_valid", *QUICK)
    asked = ("train", table, "--out", tmp_path / "out", "--weight-column", "weight", *options)
    succeed(*asked)
    weighed, plain = (
        json.loads((out / "report.json").read_text())["stages"][1]["epochs"][0]["loss"]
        for out in (tmp_path / "out", made[1])
    )
    assert weighed != plain
    table.write_text(table.read_text().replace(",3\n", ",2\n"))
    refused("began with other texts", *asked, "--resume")


STAGES = {
    "pretrain": ("--preset", "small"),
    "fine-tune": ("--lr", "0.01", "--set", "clip=0.5"),
    "fit-classifier": ("--epochs", "3", "--valid-column", "is_valid"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_single_stage_has_a_config_too(made, tmp_path, stage):
    table, model, _ = made
    asked = (stage, "--text", table, "--out", tmp_path / "out", *STAGES[stage])
    asked += () if stage == "pretrain" else ("--model", model)
    text = succeed(*asked, "--print-config").stdout
    found = tomllib.loads(text)
    assert found["text"] == [str(table)] and found["precision"] == "float32"
    assert {
        "pretrain": lambda: (found["emb_size"], found["epochs"], found["bptt"]) == (96, 5, 40),
        "fine-tune": lambda: (
            (found["lr"], found["set"], found["batch_size"]) == (0.01, ["clip=0.5"], 16)
        ),
        # The number of rows says in how large batches.
        "fit-classifier": lambda: found["epochs"] == 3 and "# batch_size =" in text.splitlines(),
    }[stage]()
    assert f"# {stage.replace('-', '_')}" in text.replace("fine_tune_lm", "fine_tune")
    config = tmp_path / "run.toml"
    config.write_text(text, encoding="utf-8")
    assert succeed(stage, "--config", config, "--print-config").stdout == text
    assert not (tmp_path / "out").exists()
    config.write_text("epoch = 3")
    refused(f"expected options of {stage}, such as 'epochs'", *asked, "--config", config)


def test_a_config_that_does_not_fit(made, tmp_path):
    table, *_ = made
    config = tmp_path / "run.toml"
    asked = ("train", table, "--out", tmp_path / "out", "--config", config)
    refused(r"run\.toml does not exist, expected a \.toml file", *asked)
    config.write_text("epoch = 3")
    refused(r"has 'epoch', expected options of train, such as 'epochs': batch_size", *asked)
    config.write_text("epochs = ")
    refused(r"run\.toml is not valid TOML", *asked)


def test_options_that_exclude_each_other(made, tmp_path):
    table, model, _ = made
    asked = ("train", table, "--out", tmp_path / "out")
    refused("--no-valid and --refit are both given", *asked, "--no-valid", "--refit")
    refused("--lm and --preset are both given", *asked, "--lm", model, "--preset", "small")
    refused("none.csv does not exist", "train", "none.csv", "--out", tmp_path / "out")
    refused("--valid and --valid-column are both", *asked, "--valid", 0.1, "--valid-column", "a")
    refused("holds something other than a model", "train", table, "--out", table.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = true", "lr is true, expected a number"),
        ("epochs = 2.5", "epochs is 2.5, expected a whole number"),
        ('epochs = "3"', 'epochs is "3", expected a whole number'),
        ("epochs = 2026-01-01", 'epochs is "2026-01-01", expected a whole number'),
        ("seed = false", "seed is false, expected a whole number"),
        ("refit = 1", "refit is 1, expected true or false"),
        ("label_column = true", "label_column is true, expected a string"),
        ("valid = [0.2]", r"valid is \[0.2\], expected a string"),
        ("unlabelled = [3]", "unlabelled is 3, expected a string"),
        ("[class_weight]\ngood = 3", 'class_weight is {"good": 3}, expected a string'),
        ("batch-size = 4\nbatch_size = 8", "has 'batch_size' twice"),
        ("[fit_classifier]\nepochs = 3", "has 'fit_classifier', expected options of train"),
    ],
)
def test_a_value_of_a_config_that_is_of_another_kind(made, tmp_path, text, message):
    table, *_ = made
    config = tmp_path / "run.toml"
    config.write_text(text)
    asked = ("train", table, "--out", tmp_path / "out", "--config", config, "--print-config")
    refused(f"--config {re.escape(str(config))}.*{message}", *asked)
    refused(f"{re.escape(str(tmp_path))} is a directory", *asked[:-2], tmp_path)


def test_a_config_of_one_value_for_a_list_and_with_a_mark(made, tmp_path):
    table, *_ = made
    config = tmp_path / "run.toml"
    config.write_text('class-weight = "balanced"\nvalid = 0.25\n', encoding="utf-8-sig")
    asked = ("train", table, "--out", tmp_path / "out", "--config", config, "--print-config")
    text = succeed(*asked).stdout
    assert 'class_weight = ["balanced"]' in text and "valid = 0.25" in text


@pytest.mark.parametrize(
    ("file", "given", "expected"),
    [
        ("valid = 0.25", "--no-valid", "no_valid = true"),
        ("valid = 0.25", "--valid-column is_valid", 'valid_column = "is_valid"'),
        ('valid_column = "is_valid"', "--valid 0.5", "valid = 0.5"),
        ("no_valid = true", "--valid 0.5", "valid = 0.5"),
        ("resume = true", "--overwrite", "valid = 0.15"),
    ],
)
def test_what_is_given_takes_the_place_of_what_excludes_it(made, tmp_path, file, given, expected):
    table, *_ = made
    config = tmp_path / "run.toml"
    config.write_text(file)
    asked = ("train", table, "--out", tmp_path / "out", "--print-config", "--config", config)
    for options in ((*asked, *given.split()), (*asked[:1], *given.split(), *asked[1:])):
        assert expected in succeed(*options).stdout.splitlines()


def test_a_preset_of_a_config_gives_way_to_a_language_model(made, tmp_path):
    table, out, _ = made
    config = tmp_path / "run.toml"
    config.write_text(succeed("train", table, "--out", tmp_path / "out", "--print-config").stdout)
    text = succeed("train", "--config", config, "--lm", out, "--print-config").stdout
    assert f"lm = {json.dumps(str(out))}" in text and "# preset =" in text


@pytest.mark.parametrize("preset", ["fastai07", "multifit", "small"])
@pytest.mark.parametrize("given", [(), ("--drop-mult", "0.7")])
def test_a_config_of_pretrain_keeps_the_dropout_of_the_model(tmp_path, preset, given):
    texts = tmp_path / 'a "b\\\x7f é.txt'
    texts.write_text("a fine film\na dull film\n" * 50)
    asked = ("pretrain", "--text", texts, "--out", tmp_path / "out", "--preset", preset, *given)
    text = succeed(*asked, "--print-config").stdout
    config = tmp_path / "run.toml"
    config.write_text(text, encoding="utf-8")
    assert succeed("pretrain", "--config", config, "--print-config").stdout == text
    model, own = "drop_mult = 0.7" in text, "# pretrain.drop_mult = " in text
    assert (model, own) == (bool(given), not given)


def test_a_setting_that_has_an_option_as_well_counts_more(made, tmp_path):
    table, out, _ = made
    asked = ("fit-classifier", "--model", out, "--text", table, "--out", tmp_path / "out")
    given = ("--set", "patience=3", "--set", "keep_best=true", "--patience", 2, "--keep-best")
    text = succeed(*asked, *given, "--print-config").stdout
    config = tmp_path / "run.toml"
    config.write_text(text, encoding="utf-8")
    assert succeed("fit-classifier", "--config", config, "--print-config").stdout == text


def test_weights_are_looked_at_before_a_language_model_is_trained(tmp_path):
    rows = [f"a {'fine' if n % 2 else 'dull'} film,{n % 2},{n % 2}" for n in range(40)]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(["text,label,weight", *rows]) + "\n")
    asked = ("train", table, "--out", tmp_path / "out", *QUICK)
    for dry in ((), ("--dry-run",)):
        refused("--class-weight has 'goood'", *asked, "--class-weight", "goood=2", *dry)
        refused(r"a weight above 0 are of the classes", *asked, "--weight-column", "weight", *dry)
    assert not (tmp_path / "out").exists()
    table.write_text("text,label,weight\n" + "a film,0,0\nfine,1,0\n" * 20)
    refused("error: --weight-column is 0 for all texts", *asked, "--weight-column", "weight")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_of_marks_or_weights_that_is_not_there_is_named_by_its_option(tmp_path, kind):
    table = tmp_path / f"rows.{kind}"
    rows = [{"text": f"a film {n}", "label": n % 2, "is_valid": n % 2} for n in range(20)]
    lines = [json.dumps(row) for row in rows]
    if kind == "csv":
        lines = ["text,label,is_valid", *(",".join(map(str, row.values())) for row in rows)]
    table.write_text("\n".join(lines) + "\n")
    asked = ("train", table, "--out", tmp_path / "out", *QUICK)
    refused("pass the name of one as --valid-column", *asked, "--valid-column", "nope")
    marks = ("--valid-column", "is_valid", "--weight-column", "nope")
    refused("pass the name of one as --weight-column", *asked, *marks)
    refused("pass the name of one as --weight-column", *asked, *marks[2:])


def test_the_loss_that_is_said_in_the_end_is_that_of_the_model_that_is_left(made, tmp_path):
    table, model, _ = made
    asked = ("fit-classifier", "--model", model, "--text", table, "--out", tmp_path / "out")
    said = succeed(*asked, "--epochs", 2, "--valid", 0.25, "--refit").stderr
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    *_, last = (own for own in map(json.loads, lines) if "epoch_ended" in own)
    assert last["stage"] == "refit_classifier"
    assert f"loss {last['loss']:.4f} after the last epoch" in said
