"""`ulmfit-fast predict`: formats, order, files that appear as a whole, and pipes."""

import contextlib
import csv
import io
import json
import os
import stat
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT
from ulmfit_fast.cli.program import app
from ulmfit_fast.serving import predictor, quantize

TEXTS = ["a fine film", "a dull, long story"] * 20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# What is written unbuffered needs no flush, and hides that there is none.
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model and the files that it classifies."""
    folder = tmp_path_factory.mktemp("predict")
    model = ULMFiT(
        emb_size=8, hidden_size=10, num_layers=2, min_freq=1, progress=False, device="cpu"
    )
    model.fit_classifier(TEXTS, [1, 0] * 20, epochs=4, lr=0.05, batch_size=8)
    model.save(folder / "model")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    (folder / "none.txt").write_text("\n")
    return folder


def command(folder, *options):
    return ["predict", "--model", folder / "model", "--text", folder / "texts.txt", *options]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def written(folder, *options):
    result = run(*command(folder, *options))
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def test_csv_with_every_class(made):
    model = ULMFiT.load(made / "model", device="cpu")
    rows = list(csv.reader(io.StringIO(written(made, "--all"))))
    assert rows[0] == ["label", "probability", "probability of 0", "probability of 1"]
    for row, scores in zip(rows[1:], model.predict_proba(TEXTS), strict=True):
        assert row[0] == str(model.labels[scores.argmax()])
        assert row[1:] == [f"{p:.4f}" for p in (scores.max(), *scores)]
    assert {row[0] for row in rows[1:]} == {"0", "1"}


def test_jsonl_keeps_the_kind_of_label(made):
    model = ULMFiT.load(made / "model", device="cpu")
    short = [json.loads(line) for line in written(made, "--format", "jsonl").splitlines()]
    full = [json.loads(line) for line in written(made, "--format", "jsonl", "--all").splitlines()]
    for row, more, found in zip(short, full, model.predict_stream(TEXTS), strict=True):
        assert row == {"label": found.label, "probability": pytest.approx(found.probability, 1e-3)}
        assert more.pop("probabilities") == pytest.approx(
            dict(zip("01", found.probabilities, strict=True)), abs=1e-4
        )
        assert more == row and type(row["label"]) is int


@pytest.mark.parametrize("options", [("--batch-size", 1), ("--chunk-size", 1, "--batch-size", 7)])
def test_sizes_change_no_row(made, options):
    expected = list(csv.reader(io.StringIO(written(made))))
    for row, want in zip(csv.reader(io.StringIO(written(made, *options))), expected, strict=True):
        assert row[0] == want[0]
        # The fourth digit of a number that lies on the edge may be rounded either way.
        assert row == want or float(row[1]) == pytest.approx(float(want[1]), abs=1.01e-4)


def test_int8(made):
    small = quantize(ULMFiT.load(made / "model", device="cpu"))
    rows = [json.loads(line) for line in written(made, "--int8", "--format", "jsonl").splitlines()]
    expected = [round(one.probability, 4) for one in small.predict_stream(TEXTS)]
    assert [row["probability"] for row in rows] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "tsv"), "--format is 'tsv', expected csv or jsonl"),
        (("--chunk-size", 0), "--chunk-size is 0, expected at least 1"),
        (("--batch-size", 0), "--batch-size is 0, expected at least 1"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(made, tmp_path, options, message):
    result = run(*command(made, "--out", tmp_path / "new" / "out.csv", *options))
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == f"error: {message}\n" and os.listdir(tmp_path) == []


def test_what_is_no_file_is_not_replaced(made, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = run(*command(made, "--out", pipe))
    assert result.exit_code == 2 and "is no regular file" in result.stderr
    assert stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


def test_a_file_appears_when_it_is_complete_and_behind_a_link(made, tmp_path, monkeypatch):
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_text("of old")
    link.symlink_to(target)
    real, seen = predictor.Predictor._prediction, []

    def watched(self, row):
        seen.append(target.read_text())
        return real(self, row)

    monkeypatch.setattr(predictor.Predictor, "_prediction", watched)
    result = run(*command(made, "--out", link))
    assert result.exit_code == 2 and "is there already; --overwrite replaces it" in result.stderr
    written(made, "--out", link, "--chunk-size", 2, "--overwrite")
    assert len(seen) == 40 and set(seen) == {"of old"}
    assert link.is_symlink() and len(target.read_text().splitlines()) == 41
    assert sorted(os.listdir(tmp_path)) == ["link.csv", "target.csv"]
    (tmp_path / "plain").touch()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("line 30 is wrong"), 2, "error: line 30 is wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted; {out} is not written\n"),
    ],
    ids=["error", "interruption"],
)
def test_what_ends_half_way_leaves_the_older_file(
    made, tmp_path, monkeypatch, error, code, message
):
    out, real, count = tmp_path / "out.csv", predictor.Predictor._prediction, iter(range(99))
    out.write_text("of old")

    def failing(self, row):
        if next(count) == 30:
            raise error
        return real(self, row)

    monkeypatch.setattr(predictor.Predictor, "_prediction", failing)
    result = run(*command(made, "--out", out, "--overwrite"))
    assert (result.exit_code, result.stderr) == (code, message.format(out=out))
    assert out.read_text() == "of old" and os.listdir(tmp_path) == ["out.csv"]


def test_an_interruption_of_a_stream_is_one_word(made, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor.Predictor, "_prediction", interrupted)
    result = run(*command(made))
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@contextlib.contextmanager
def started(*arguments, **pipes):
    """Run the command as a process of its own, which a test does not outlive."""
    whole = [sys.executable, "-m", "ulmfit_fast", *map(str, arguments)]
    with subprocess.Popen(
        whole, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, **pipes
    ) as process:
        killer = threading.Timer(120, process.kill)
        killer.start()
        try:
            yield process
        finally:
            killer.cancel()
            process.kill()


@pytest.mark.slow
def test_rows_come_out_while_texts_still_come_in(made, tmp_path):
    pipe = tmp_path / "endless.txt"
    os.mkfifo(pipe)
    arguments = ("predict", "--model", made / "model", "--text", pipe, "--chunk-size", 2)
    with started(*arguments) as process:
        with pipe.open("w") as texts:
            for turn in range(3):
                print("a fine film\na dull, long story", file=texts, flush=True)
                # Not one more text has been written, and the file has no end yet.
                read = [process.stdout.readline() for _ in range(2 if turn else 3)]
                assert all(read) and (turn or read[0] == "label,probability\n")
        assert process.wait(60) == 0 and process.stdout.read() == ""


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_quietly(made, tmp_path):
    many = tmp_path / "many.txt"
    many.write_text("a fine film\n" * 20_000)
    with started(*command(made, "--text", many), stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "label,probability\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141
