"""What a run refuses, what it leaves when something fails, and what it reports."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mortal_runs import BASE, assert_equal_runs, fit, reports, settings_of, stopped
from small_models import documents, make

from ulmfit_fast.runs import Run
from ulmfit_fast.runs.state_file import read_state
from ulmfit_fast.training.stages import fit_classifier, train_language_model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.03}, r"lr is 0\.03, and 0\.02 in the run"),
        ({"epochs": 5}, "epochs is 5, and 4 in the run"),
        ({"batch_size": 2}, "batch_size is 2"),
    ],
)
def test_another_run_is_not_gone_on_with(tmp_path, change, message):
    stopped(tmp_path)
    with pytest.raises(ValueError, match=message):
        fit("language model", replace(BASE, **change), Run(tmp_path, resume=True))
    fit("language model", BASE, Run(tmp_path, resume=True))


def test_other_texts_are_another_run(tmp_path):
    stopped(tmp_path)
    docs = documents(40)
    docs[1] = docs[1][::-1].copy()
    run = Run(tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"the texts, .* are others than those of the run in"):
        train_language_model(make("language model"), docs, BASE, seed=3, run=run)


def test_an_unfinished_run_is_not_run_over(tmp_path):
    stopped(tmp_path)
    with pytest.raises(FileExistsError, match="did not come to its end; resume it"):
        fit("language model", BASE, Run(tmp_path))
    run = Run(tmp_path, resume=True)
    assert not run.finished("pretrain")
    fit("language model", BASE, run)
    assert run.finished("pretrain") and not run.finished("fine_tune_lm")
    # One that is over makes room.
    fit("language model", replace(BASE, epochs=1), Run(tmp_path))
    assert {report["epoch"] for report in reports(tmp_path)} == {1}


def test_too_small_a_disk_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="MB free, 3 checkpoints need about"):
        fit("language model", BASE, Run(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_disk_that_fills_up_later_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def fill(handle):
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OSError, match=r"could be written .* the last good one is .*step-0") as info:
        fit("language model", BASE, Run(tmp_path, checkpoint_steps=2))
    monkeypatch.undo()
    last = Path(str(info.value).rsplit(" is ", 1)[1])
    assert read_state(last)["cursor"]["batch"] > 0
    assert_equal_runs(
        fit("language model", BASE), fit("language model", BASE, Run(tmp_path, resume=True))
    )


def test_a_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError):
        fit("language model", BASE, Run(tmp_path / "file" / "out"))


@pytest.mark.parametrize(("kind", "name"), [("language model", "plain"), ("classifier", "paper")])
def test_a_loss_that_is_not_finite_keeps_its_batch(tmp_path, kind, name):
    calls = []

    def break_it(module, args, output):
        if torch.is_grad_enabled():
            calls.append(1)
        return output * (float("nan") if len(calls) == 7 else 1.0)

    model = make(kind)
    last = model.decoder if kind == "language model" else model.head
    last.register_forward_hook(break_it)
    stage = "pretrain" if kind == "language model" else "fit_classifier"
    run = Run(tmp_path, checkpoint_steps=2)
    train = train_language_model
    arguments = (documents(40), settings_of(kind, name))
    if kind == "classifier":
        train, arguments = fit_classifier, (arguments[0], torch.arange(40) % 2, arguments[1])
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 6 .* last good checkpoint"):
        train(model, *arguments, progress=False, run=run)
    (path,) = tmp_path.glob("failed-step-*")
    found = read_state(path)
    assert found["stage"] == stage and found["step"] == 6
    assert found["tensor_0"].dtype == torch.int64 and found["tensor_0"].dim() == 2
    assert f"step-{6:09d}" in max(p.name for p in (tmp_path / "checkpoints" / stage).iterdir()
                                  if p.name.startswith("step"))  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step(tmp_path, number):
    before = signal.getsignal(number)

    class Signalled(Run):
        def report(self, reading):
            super().report(reading)
            if self._state.steps == 5:
                os.kill(os.getpid(), number)

    wanted = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(wanted) as info:
        fit("language model", BASE, Signalled(tmp_path))
    if number == signal.SIGTERM:
        assert info.value.code == 143
    assert signal.getsignal(number) is before
    assert len(reports(tmp_path)) == 5
    assert_equal_runs(
        fit("language model", BASE), fit("language model", BASE, Run(tmp_path, resume=True))
    )


def test_a_second_signal_does_not_wait(tmp_path):
    class Impatient(Run):
        def report(self, reading):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("still here")

    with pytest.raises(KeyboardInterrupt):
        fit("language model", BASE, Impatient(tmp_path))


def test_other_threads_train_without_signals(tmp_path):
    found = []

    def work():
        found.append(fit("language model", BASE, Run(tmp_path)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 1


def test_reports_of_several_steps_are_their_mean(tmp_path):
    _, history = fit("language model", BASE, Run(tmp_path, report_steps=4))
    lines = [r for r in reports(tmp_path) if "epoch_ended" not in r]
    per_epoch = len(history.losses) // 4
    assert [r["step"] for r in lines][:2] == [4, min(8, per_epoch)]
    first = lines[0]
    assert first["tokens"] == 4 * 15
    assert first["loss"] == pytest.approx(np.mean(history.losses[:4]))
    assert first["perplexity"] == pytest.approx(np.exp(first["loss"]))
    assert sum(r["tokens"] for r in lines) == sum(e.items for e in history.epochs)


def test_a_torn_line_of_metrics_is_dropped(tmp_path):
    stopped(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "pretrain", "st')
    fit("language model", BASE, Run(tmp_path, resume=True))
    steps = [r["step"] for r in reports(tmp_path) if "epoch_ended" not in r]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"checkpoint_steps": 0},
        {"checkpoint_steps": 1.5},
        {"report_steps": 0},
        {"checkpoint_minutes": 0.0},
        {"checkpoint_minutes": float("nan")},
        {"keep": 0},
    ],
)
def test_wrong_numbers_are_refused_at_once(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        Run(tmp_path, **wrong)


def test_minutes_decide_as_well(tmp_path):
    fit("language model", BASE, Run(tmp_path, checkpoint_minutes=1e-9, keep=99))
    assert len(list((tmp_path / "checkpoints" / "pretrain").glob("step-*"))) > 8
