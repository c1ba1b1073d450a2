"""The command line: the stages one after the other, and one line for whatever is wrong."""

import csv
import functools
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import ulmfit_fast as uf
from ulmfit_fast import ULMFiT
from ulmfit_fast.cli.program import app
from ulmfit_fast.system.directories import is_run_file
from ulmfit_fast.training import stages

SMALL = "--epochs 1 --batch-size 8".split()
SIZES = "--emb-size 8 --hidden-size 10 --num-layers 2 --min-freq 1 --bptt 10".split()
TEXTS = ["a fine film", "a dull, long story"] * 20
# Threads of a second process and of this one would wait for each other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def succeed(*args: object):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def write_files(folder: Path) -> Path:
    rows = [(text, "bad" if "dull" in text else "good") for text in TEXTS]
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("body", "verdict"), *rows])
    lines = [json.dumps({"text": text, "label": int(y == "good")}) for text, y in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The files, and the models `lm`, `tuned` and `classifier` made of them by the commands."""
    folder = write_files(tmp_path_factory.mktemp("cli"))
    lm, tuned, classifier = (folder / name for name in ("lm", "tuned", "classifier"))
    text, rows = folder / "texts.txt", folder / "rows.csv"
    columns = ("--text-column", "body", "--label-column", "verdict")
    out = [
        succeed("pretrain", "--text", text, "--out", lm, *SMALL, *SIZES),
        succeed("fine-tune", "--model", lm, "--text", text, "--out", tuned, *SMALL, "--bptt", 10),
        succeed(
            "fit-classifier", "--model", tuned, "--text", rows, "--out", classifier, *columns,
            "--epochs", 4, "--batch-size", 8, "--lr", 0.05,
        ),
    ]  # fmt: skip
    following = (
        f"fine-tune --model {lm} --text texts.csv --out {lm}-tuned",
        f"fit-classifier --model {tuned} --text labelled.csv --out {tuned}-classifier",
        f"predict --model {classifier} --text new.csv --text-column body --out answers.csv",
    )
    for result, path, command in zip(out, (lm, tuned, classifier), following, strict=True):
        assert result.stdout == ""
        assert re.fullmatch(
            rf"loss \d+\.\d{{4}} after the last epoch; the model is in {path}\n"
            rf"next: ulmfit-fast {command}\n",
            result.stderr,
        )
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"directory"
        for path in sorted(folder.rglob("*"))
    }


def test_stages_go_on_from_each_other(made: Path) -> None:
    lm, tuned, classifier = (ULMFiT.load(made / name) for name in ("lm", "tuned", "classifier"))
    assert lm.settings.emb_size == 8 and lm.classifier is None
    before, after = (m.language_model.decoder.bias for m in (lm, tuned))
    assert before.shape == after.shape and not before.equal(after)
    assert classifier.language_model.decoder.bias.equal(after)
    assert classifier.labels == ["bad", "good"]


def test_no_checkpoint_stays_when_a_stage_is_over(folder: Path) -> None:
    text, out = ("--text", folder / "texts.txt"), folder / "kept"
    tune = ("fine-tune", "--model", folder / "lm", *text, *SMALL, "--bptt", 10, "--out")
    assert [path.name for path in checkpoints(folder / "lm")] == []
    steps = ("--checkpoint-steps", 2)
    succeed(*tune, out, *steps)
    assert [path.name for path in checkpoints(out)] == []
    before = contents(out)
    again = succeed(*tune, out, *steps, "--resume")
    assert contents(out) == before, "nothing is trained once more"
    assert again.stderr.splitlines()[0].startswith("next: ulmfit-fast fit-classifier")
    other = run(*tune, out, *steps, "--resume", "--lr", 0.1)
    assert other.exit_code == 2 and "lr is 0.1, and 0.004 in the run in" in other.stderr
    succeed(*tune, out, *steps, "--overwrite", "--keep-checkpoints")
    assert len(checkpoints(out)) == 2


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("checkpoints/*/step-*"))


def test_predict_writes_a_row_for_each_text_in_order(made: Path, tmp_path: Path) -> None:
    command = ["predict", "--model", made / "classifier", "--text", made / "texts.txt"]
    result = succeed(*command)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    model = ULMFiT.load(made / "classifier")
    assert [row["label"] for row in rows] == model.predict(TEXTS)
    assert [row["probability"] for row in rows] == [
        f"{p.max():.4f}" for p in model.predict_proba(TEXTS)
    ]
    assert result.stderr == ""
    out = tmp_path / "new" / "predictions.csv"
    assert succeed(*command, "--out", out, "--batch-size", 3).output == ""
    assert out.read_text() == result.stdout
    assert os.listdir(out.parent) == ["predictions.csv"]


def test_columns_files_and_kinds_of_labels(folder: Path) -> None:
    rows, out = folder / "rows.jsonl", folder / "new"
    succeed("fit-classifier", "--model", folder / "lm", "--text", rows, "--out", out, *SMALL)
    assert ULMFiT.load(out).labels == [0, 1]
    result = succeed("predict", "--model", out, "--text", rows, "--text", folder / "texts.txt")
    assert len(result.stdout.splitlines()) == 81
    csv_rows = ("--text", folder / "rows.csv", "--text-column", "body")
    assert len(succeed("predict", "--model", out, *csv_rows).stdout.splitlines()) == 41


def test_a_model_is_replaced_when_that_is_asked_for_and_never_its_own_source(
    folder: Path,
) -> None:
    old = contents(folder / "tuned")
    command = ("fine-tune", "--text", folder / "texts.txt", "--out", folder / "tuned", *SMALL)
    result = run(*command, "--model", folder / "lm", "--bptt", 10)
    assert result.exit_code == 2 and "--resume goes on with it, --overwrite" in result.stderr
    result = run(*command, "--model", folder / "tuned", "--bptt", 10, "--overwrite")
    assert result.exit_code == 2 and "tuned is read, and would be written over" in result.stderr
    assert contents(folder / "tuned") == old
    succeed(*command, "--model", folder / "lm", "--bptt", 9, "--overwrite")
    new = contents(folder / "tuned")
    assert old.keys() == new.keys() and old != new


def test_same_seed_same_model(folder: Path) -> None:
    command = ["pretrain", "--text", folder / "texts.txt", *SMALL, *SIZES, "--out", folder / "new"]
    succeed(*command)
    assert model_of(folder / "new") == model_of(folder / "lm")
    succeed(*command, "--seed", 1, "--overwrite")
    assert model_of(folder / "new") != model_of(folder / "lm")


def model_of(directory: Path) -> dict[str, bytes]:
    """Return the files of a model, without those of the run that made it."""
    return {n: data for n, data in contents(directory).items() if not is_run_file(n.split("/")[0])}


def test_info_names_versions_device_and_backend() -> None:
    lines = succeed("info").stdout.splitlines()
    starts = [line.split()[0] for line in lines]
    assert starts == [
        "ulmfit-fast",
        "tokenizers",
        "python",
        "device:",
        "C",
        *["LSTM"] * 4,
        "--precision",
    ]
    assert (
        f"torch {torch.__version__.split('+')[0]}" in lines[0] and "not installed" not in lines[1]
    )
    assert lines[4] == f"C kernels: {uf.backend.native_status()}"
    layer = uf.LSTM(400, 1152, gate_p=0.5, dtype=torch.bfloat16)
    reason = uf.backend.explain(layer, torch.zeros(1, 1, 400, dtype=torch.bfloat16))
    assert lines[-2] == f"LSTM with gate_p, bfloat16: {reason}"
    gain = re.match(
        r"--precision bfloat16 trains (\d+\.\d) times as fast as float32 here, ", lines[-1]
    )
    assert gain and 0.02 < float(gain[1]) < 50


@pytest.mark.parametrize(
    "command",
    [
        "pretrain --text {0}/texts.txt --emb-size 8 --hidden-size 12 --bptt 10 --batch-size 4",
        "fine-tune --model {0}/lm --text {0}/texts.txt --bptt 10 --batch-size 4",
        "fit-classifier --model {0}/lm --text {0}/rows.jsonl",
    ],
)
def test_the_precision_is_that_of_the_training(folder: Path, command: str) -> None:
    command = command.format(folder) + f" --out {folder}/new --epochs 1"
    succeed(*command.split(), "--precision", "bfloat16")
    (described,) = folder.glob("new/checkpoints/*/run.json")
    settings = json.loads(described.read_text())["fingerprint"]["settings"]
    assert settings["precision"] == "bfloat16"
    result = run(*command.split(), "--overwrite", "--precision", "int4")
    assert result.exit_code == 2
    assert "precision is 'int4', expected one of float32, bfloat16, float16" in result.stderr


@pytest.mark.parametrize(
    ("command", "unit"),
    [
        ("pretrain --text {0}/texts.txt --emb-size 8 --hidden-size 12 --bptt 10", "tokens"),
        ("fine-tune --model {0}/lm --text {0}/texts.txt --bptt 10", "tokens"),
        ("fit-classifier --model {0}/lm --text {0}/rows.jsonl", "texts"),
    ],
)
def test_a_dry_run_says_what_a_run_would_take_and_writes_nothing(
    folder: Path, command: str, unit: str
) -> None:
    before = contents(folder)
    command = f"{command} --out {{0}}/new --epochs 7 --batch-size 4 --dry-run"
    lines = succeed(*command.format(folder).split()).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("model", "steps", "memory", "time", "in bfloat16"),
    ]
    pattern = r"in bfloat16: \d.* at \d+\.\d{3} s a step, \d+\.\d times as fast"
    assert re.fullmatch(pattern, lines[-1])
    steps = int(lines[1].split()[1].replace(",", ""))
    assert steps % 7 == 0 and steps >= 7 and "in 7 epochs" in lines[1]
    assert contents(folder) == before
    # The run itself takes as many.
    result = succeed(*command.format(folder).replace("--dry-run", "--report-steps 1").split())
    reports = [json.loads(n) for n in (folder / "new" / "metrics.jsonl").read_text().splitlines()]
    assert sum("epoch_ended" not in report for report in reports) == steps
    assert unit in reports[0] and "the model is in" in result.stderr


def in_words(shown: str) -> str:
    """Return what a help says, without its frames and line ends."""
    return " ".join("".join(c if c.isascii() else " " for c in shown).split())


def test_help_names_every_command_in_its_group_with_an_example() -> None:
    shown = succeed("--help").stdout
    for command in app.registered_commands:
        assert command.rich_help_panel in ("Start", "Stages", "Use", "Data", "Study")
        assert f" {command.rich_help_panel} " in shown and command.name in shown
        own = in_words(succeed(command.name, "--help").stdout)
        assert "--" in own and f"Example: ulmfit-fast {command.name}" in own


def test_without_a_command_the_help_ends_with_the_workflow() -> None:
    result = run()
    lines = [line.split()[:2] for line in result.output.splitlines() if line.strip()]
    way = ("check", "train", "evaluate", "predict")
    assert lines[-4:] == [["ulmfit-fast", command] for command in way]
    assert lines == [
        line.split()[:2] for line in succeed("--help").stdout.splitlines() if line.strip()
    ]


def test_the_examples_of_the_help_can_be_parsed(monkeypatch) -> None:
    called = []
    for command in app.registered_commands:
        (example,) = re.findall("Example: ulmfit-fast (.*)", command.epilog)
        monkeypatch.setattr(command, "callback", replaced(command.callback, called.append))
        succeed(*shlex.split(example))
    assert len(called) == len(app.registered_commands)


def replaced(command, instead):
    """Return a command with the same options that does something else with them."""

    @functools.wraps(command)
    def run_instead(**options: object) -> None:
        instead(options)

    return run_instead


def test_the_version() -> None:
    assert succeed("--version").output == f"ulmfit-fast {uf.__version__}\n"


def test_the_next_command_is_quoted_and_has_the_same_files(folder: Path) -> None:
    (folder / "two words.csv").write_text((folder / "rows.csv").read_text())
    text = ("--text", folder / "two words.csv", "--text-column", "body")
    out = folder / "my model"
    command = ("fine-tune", "--model", folder / "lm", *text, "--out", out, *SMALL, "--bptt", 10)
    result = succeed(*command)
    (line,) = [n for n in result.stderr.splitlines() if n.startswith("next: ulmfit-fast ")]
    parts = shlex.split(line.removeprefix("next: ulmfit-fast "))
    assert parts[:3] == ["fit-classifier", "--model", str(out)]
    # As it stands, but for the label's column, which stage 2 does not know.
    succeed(*parts, "--label-column", "verdict", *SMALL)
    assert ULMFiT.load(f"{out}-classifier").labels == ["bad", "good"]
    assert "next: " not in run(*command, "--overwrite", "--dry-run").output


@pytest.mark.slow
def test_the_shell_tells_how_much_of_the_text_a_model_knows(folder: Path) -> None:
    options = ("--text", folder / "texts.txt", "--out", folder / "new", *SMALL, "--bptt", 10)
    command = ("fine-tune", "--model", folder / "lm", *options)
    done = subprocess.run(
        [sys.executable, "-m", "ulmfit_fast", *map(str, command)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = done.stderr.splitlines()
    assert said[0].startswith("the language model takes 3 steps (batch size 8, 1 epoch); on as")
    assert said[3].startswith("  steps: 3 in ")
    assert said[1].startswith("the model's vocabulary lacks 0.0% of the text's running words")
    # What the stage takes, how long it will be, and what it came to.
    assert [line.split()[0].rstrip(":") for line in said[1:]] == [
        *("the", "model", "steps", "memory", "time", "about", "epoch", "loss", "next"),
    ]
    assert said[6].endswith(" left of the stage")


PRETRAIN = "pretrain --text {0}/texts.txt --out {0}/new/model --batch-size 8"
TUNE = "fine-tune --model {0}/lm --text {0}/texts.txt --out {0}/new/model"
FIT = "fit-classifier --model {0}/lm --text {0}/rows.jsonl --out {0}/new/model"
PREDICT = "predict --model {0}/classifier --text {0}/texts.txt"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{PRETRAIN} --lr 0", "error: --lr is 0.0, expected a positive number"),
        (f"{PRETRAIN} --lr nan", "lr is nan"),
        (f"{PRETRAIN} --epochs 0", "error: --epochs is 0, expected a whole number"),
        (f"{PRETRAIN} --tokenizer char", "tokenizer is 'char', expected"),
        (f"{PRETRAIN} --max-vocab 5", "--max-vocab is 5, expected at least 9"),
        (f"{PRETRAIN} --min-freq 99", "lower --min-freq"),
        (f"{PRETRAIN} --emb-size 0", "--emb-size must be at least 1, got 0"),
        (f"{PRETRAIN} --drop-mult 9", "input_p is 2.25, expected a probability"),
        (f"{PRETRAIN} --device gpu", "device is 'gpu', expected cpu, or cuda"),
        (f"{PRETRAIN} --batch-size 999", "expected at least 1000 for --batch-size 999"),
        (f"{PRETRAIN} --text {{0}}/none.txt", "none.txt does not exist"),
        (f"{PRETRAIN} --text {{0}}/rows.csv", "rows.csv has no column 'text'"),
        ("pretrain --text {0}/empty.txt --out {0}/new", "empty.txt is empty, expected"),
        (
            "pretrain --text {0}/lm/checkpoints --out {0}/new",
            "is a directory with files of none of",
        ),
        (f"{PRETRAIN} --out {{0}}/rows.csv", "rows.csv is a file, expected a directory"),
        (f"{PRETRAIN} --out {{0}}/rows.csv/a/b", "rows.csv, which is a file"),
        (f"{PRETRAIN} --out {{0}}", "holds something other than a model"),
        (f"{TUNE} --model {{0}}/none", "none is no directory; give the directory of a saved"),
        (f"{TUNE} --model {{0}}/incomplete", "has no language_model.safetensors"),
        (f"{TUNE} --model {{0}}/newer", "has format version 2, this ulmfit_fast reads up to 1"),
        (f"{TUNE} --model {{0}}/damaged", "does not fit its config.json"),
        (f"{TUNE} --text {{0}}/rows.csv", "has no column 'text'"),
        (f"{TUNE} --out ..", "--out .. holds "),
        (f"{FIT} --text {{0}}/texts.txt", "texts.txt has no labels"),
        (
            "fit-classifier --text {0}/rows.jsonl --out {0}/new",
            "--model is missing, expected the directory of a language model; to begin with one of "
            "the preset small, which suits a CPU: ulmfit-fast train ",
        ),
        (f"{FIT} --label-column verdict", "has no column 'verdict'; its columns are 'text', 'lab"),
        (f"{FIT} --text-column label", "'label' is 1, expected a string"),
        (f"{FIT} --lr -1", "lr is -1.0"),
        (f"{FIT} --out {{0}}/new/../rows.csv", "is a file, expected a directory"),
        (f"{PREDICT} --model {{0}}/lm", "there is no classifier yet"),
        (f"{PREDICT} --text {{0}}/rows.csv", "has no column 'text'"),
        (f"{PREDICT} --batch-size 0", "--batch-size is 0"),
        (f"{PREDICT} --out {{0}}/lm", "lm is a directory, expected a file"),
        (f"{PREDICT} --out {{0}}/rows.csv/new.csv", "rows.csv, which is a file"),
        ("demo --quick --out {0}/rows.csv", "rows.csv"),
    ],
    ids=lambda value: " ".join(value.split()[:1] + value.split()[-2:]) if "{0}" in value else "",
)
def test_bad_input_is_one_line(folder: Path, monkeypatch, command: str, message: str) -> None:
    for name in ("incomplete", "newer", "damaged"):
        shutil.copytree(folder / "lm", folder / name)
    (folder / "incomplete" / "language_model.safetensors").unlink()
    (folder / "damaged" / "language_model.safetensors").write_bytes(b"no tensors")
    config = (folder / "newer" / "config.json").read_text()
    newer = config.replace('"format_version": 1', '"format_version": 2')
    (folder / "newer" / "config.json").write_text(newer)
    (folder / "nothing").mkdir()
    before = contents(folder)
    monkeypatch.chdir(folder / "nothing")
    result = run(*command.format(folder).split())
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr and "Traceback" not in result.output
    assert result.stdout == "" and contents(folder) == before


def test_error_of_several_lines_is_one_line() -> None:
    result = run("predict", "--model", "no\nsuch", "--text", "texts.txt")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: no such is no directory")


def test_failing_disk_leaves_no_half_of_the_predictions(folder: Path, monkeypatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    before = contents(folder)
    monkeypatch.setattr(os, "replace", fail)
    result = run(*f"{PREDICT} --out {folder}/predictions.csv".format(folder).split())
    assert (result.exit_code, result.stderr) == (2, "error: no space left on device\n")
    assert contents(folder) == before


@pytest.mark.parametrize("epoch", [1, 2])
def test_interruption_exits_with_130_and_keeps_the_last_epoch(
    folder: Path, monkeypatch, epoch: int
) -> None:
    train, calls = stages.train_epoch, []

    def interrupt(*args: object, **options: object):
        calls.append(1)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(stages, "train_epoch", interrupt)
    names, out = set(os.listdir(folder)), folder / "new"
    text = ("--text", folder / "texts.txt", "--out", out)
    result = run("pretrain", *text, *SIZES, "--epochs", 3, "--batch-size", 8)
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted; ") and result.stderr.count("\n") == 1
    assert set(os.listdir(folder)) - names == {"new"}
    assert (out / "config.json").exists() == (epoch == 2)
    assert epoch == 1 or ULMFiT.load(out).perplexity(TEXTS) > 1


def test_presets_and_settings_reach_the_model(folder: Path) -> None:
    out, text = folder / "new", ("--text", folder / "texts.txt")
    plan = ("--preset", "fastai_v2", "--backwards", "--set", "precision=bfloat16")
    succeed("pretrain", *text, "--out", out, *plan, *SMALL, *SIZES, "--set", "betas=[0.8, 0.9]")
    model = ULMFiT.load(out)
    assert model.settings.preset.name == "fastai_v2" and model.settings.backwards
    assert model.settings.emb_size == 8
    tuned = folder / "new-tuned"
    succeed(
        *("fine-tune", "--model", out, *text, "--out", tuned, "--bptt", 10, "--batch-size", 8),
        *("--epochs", 2, "--drop-mult", 0.5, "--set", "gradual_unfreezing=0"),
    )
    assert ULMFiT.load(tuned).language_model.config.input_p == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("precision", "--set is 'precision', expected NAME=VALUE"),
        ("precision=half", "--precision is 'half', expected one of float32, bfloat16, float16"),
        ("speed=9", "there is no setting 'speed'; pass one of epochs"),
    ],
)
def test_wrong_settings_are_one_line(folder: Path, assignment: str, message: str) -> None:
    result = run(
        *("pretrain", "--text", folder / "texts.txt", "--out", folder / "new", *SMALL, *SIZES),
        *("--set", assignment),
    )
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not (folder / "new").exists()


def start(*args: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ulmfit_fast", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell's background jobs ignore interruptions, and their children inherit it.
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes, **options)
    finally:
        signal.signal(signal.SIGINT, interrupted)


@pytest.mark.slow
def test_real_interruption(folder: Path) -> None:
    out, many = folder / "new", folder / "many.txt"
    # Enough text that the signal comes while the model trains, not while it is saved.
    many.write_text("\n".join(TEXTS * 20))
    text = ("--text", many, "--out", out)
    process = start("pretrain", *text, *SIZES, "--epochs", 100_000, "--batch-size", 8)
    deadline = time.monotonic() + 120
    while (
        not (out / "config.json").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        output, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output) == (130, ""), error
    *told, first, last = error.splitlines()
    # What the run takes and how far it is.
    assert told[0].startswith("  model: ") and told[4].endswith("left of the stage")
    assert first.startswith("stopping after this step") and last.startswith("interrupted; ")
    assert last.endswith("; --resume goes on with it")
    assert ULMFiT.load(out).perplexity(TEXTS) > 1


def test_a_backend_that_cannot_run_is_one_line(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("ULMFIT_FAST_BACKEND", "triton")
    result = run(*PRETRAIN.format(folder).split())
    assert result.exit_code == 2, result.output
    assert (
        result.stderr.startswith("error: triton was asked for") and result.stderr.count("\n") == 1
    )


def test_texts_are_written_in_a_precision(made: Path, monkeypatch) -> None:
    real, seen = uf.ULMFiT.generate, []

    def generate(self, *args, **kwargs):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(uf.ULMFiT, "generate", generate)
    for options in ((), ("--precision", "bfloat16")):
        succeed("generate", "--model", made / "lm", "--max-tokens", 3, *options)
    assert seen == [False, torch.bfloat16]
