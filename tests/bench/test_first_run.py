"""The staged first run on a GPU: what fails, hangs or is killed takes nothing else with it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import first_run
from benchmarks.first_run import Stage, main
from benchmarks.harness.settings import Settings
from benchmarks.questions import lm_step as bench_lm_step

ROOT = Path(__file__).parents[2]
ONCE = ("timeit", "-n", "1", "-r", "1")


def summary(directory):
    return json.loads((directory / first_run.SUMMARY).read_text())


def left_over(directory):
    """Return whether a process of a run of this directory is still there, a second later."""
    time.sleep(1.0)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return any("--stage" in line and str(directory) in line for line in listed.stdout.split("\n"))


def test_stages_after_one_that_fails_or_hangs_run(tmp_path, monkeypatch):
    stages = {
        "fails": Stage(30.0, (*ONCE, "1 / 0")),
        "hangs": Stage(5.0, (*ONCE, "-s", "import time", "time.sleep(60)")),
        "is well": Stage(30.0, (*ONCE, "pass")),
    }
    monkeypatch.setattr(first_run, "STAGES", stages)
    start = time.monotonic()
    assert main(["--out", str(tmp_path)]) == 1
    assert time.monotonic() - start < 50.0
    ended = {name: stage["ended"] for name, stage in summary(tmp_path).items()}
    assert ended == {
        "fails": "with exit code 1: see fails.log",
        "hangs": "stopped after 5 s",
        "is well": "well",
    }
    assert "ZeroDivisionError" in (tmp_path / "fails.log").read_text()


def test_no_stage_begins_when_the_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setattr(first_run, "STAGES", {"one": Stage(30.0, (*ONCE, "pass"))})
    assert main(["--out", str(tmp_path), "--seconds", "3"]) == 1
    assert summary(tmp_path)["one"]["ended"].startswith("left out")


def test_a_run_takes_no_other_runs_place(tmp_path, monkeypatch):
    monkeypatch.setattr(first_run, "STAGES", {"one": Stage(30.0, (*ONCE, "pass"))})
    assert main(["--out", str(tmp_path)]) == 0
    with pytest.raises(SystemExit, match="holds a run already"):
        main(["--out", str(tmp_path)])


def test_a_wrong_result_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(first_run, "STAGES", {"one": Stage(30.0, (*ONCE, "pass"))})
    rows = ['{"form": "a", "right": true}', '{"form": "b", "right": false}']
    # What raised has no row, and what is not ours may be missing.
    rows += ['{"note": "ulmfit_fast, step: made up"}', '{"note": "fastai is missing"}', '{"form']
    (tmp_path / "one.jsonl").write_text("\n".join(rows))
    assert main(["--out", str(tmp_path)]) == 1
    assert summary(tmp_path)["one"]["ended"].startswith("with 2 wrong")


def test_a_cache_may_be_moved(tmp_path):
    kernel = tmp_path / "there" / "KEY"
    kernel.mkdir(parents=True)
    (kernel / "a.cubin").write_bytes(b"code")
    group = {"child_paths": {"a.cubin": str(kernel / "a.cubin")}}
    (kernel / "__grp__a.json").write_text(json.dumps(group))
    moved = (tmp_path / "there").rename(tmp_path / "here")
    first_run.relocate(moved)
    named = json.loads((moved / "KEY" / "__grp__a.json").read_text())["child_paths"]
    assert Path(named["a.cubin"]).read_bytes() == b"code"


class Trained:
    """What `capture` takes for a training step, with losses that are given."""

    def __init__(self, losses):
        self.losses = iter(losses)

    def __call__(self, inputs, targets):
        return torch.tensor(next(self.losses))


@pytest.mark.parametrize(
    ("captured", "right"),
    [([3.0, 2.0], True), ([3.0, float("nan")], False), ([float("nan"), 2.0], False)],
)
def test_a_replay_that_gives_nan_is_not_right(captured, right, monkeypatch):
    made = iter(2 * [[3.0, 2.0, 1.0], [*captured, 1.0]])
    monkeypatch.setattr(bench_lm_step, "make_ours", lambda *_: (Trained(next(made)), {}))
    rows = []
    first_run.capture(Settings(gpu=True, tiny=True), rows.append)
    assert [row["right"] for row in rows] == [right, right]


def test_a_loss_of_zero_can_be_compared(monkeypatch):
    monkeypatch.setattr(bench_lm_step, "make_ours", lambda *_: (Trained(3 * [0.0]), {}))
    rows = []
    first_run.capture(Settings(gpu=True, tiny=True), rows.append)
    assert [row["largest_difference"] for row in rows] == [0.0, 0.0]


def test_what_a_stage_remarks_is_there_when_it_is_stopped(tmp_path, monkeypatch):
    """And is told with the results: the row of what failed is missing there."""

    def stage(settings, write):
        settings.note("something: RuntimeError: made up")
        raise KeyboardInterrupt

    monkeypatch.setattr(first_run, "STAGES", {"one": Stage(30.0, stage)})
    monkeypatch.setattr(first_run, "ctypes", mock.MagicMock())
    # Both are set for good, in what is a process of its own elsewhere.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
    monkeypatch.setattr("triton.knobs.compilation.listener", None)
    with pytest.raises(KeyboardInterrupt):
        main(["--out", str(tmp_path), "--stage", "one", "--dry-run"])
    told = first_run.highlights(tmp_path, {"one": {"ended": "stopped after 30 s"}})
    assert "something: RuntimeError: made up" in next(told)


@pytest.mark.slow
def test_a_killed_run_keeps_what_it_has(tmp_path):
    command = [sys.executable, "-m", "benchmarks.first_run", "--dry-run", "--out", str(tmp_path)]
    run = subprocess.Popen([*command, "--only", "values", "steps"], cwd=ROOT)
    file, end = tmp_path / "values.jsonl", time.monotonic() + 120
    try:
        while not (file.exists() and len(file.read_text().splitlines()) >= 2):
            assert run.poll() is None and time.monotonic() < end
            time.sleep(0.1)
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert not left_over(tmp_path)
    rows = [json.loads(line) for line in file.read_text().splitlines()[:2]]
    assert all(row["right"] and row["error"] < 1e-2 for row in rows)


@pytest.mark.slow
def test_the_dry_run_walks_the_path(tmp_path):
    command = [sys.executable, "-m", "benchmarks.first_run", "--dry-run", "--out", str(tmp_path)]
    stages = ["steps", "capture"]
    result = subprocess.run(
        [*command, "--only", *stages], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert {stage["ended"] for stage in summary(tmp_path).values()} == {"well"}
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    timed = {(row["implementation"], row["launched"]) for row in rows if row.get("median_us")}
    assert {("nn.LSTM", "graph"), ("ulmfit_fast triton-stepwise", "graph")} <= timed
