"""A run that was stopped anywhere goes on with the very losses of one that never was."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import documents, make

import ulmfit_fast as uf
from ulmfit_fast import directories
from ulmfit_fast.data import Tokenizer
from ulmfit_fast.pipeline import TrainingSettings, fit_classifier, train_language_model
from ulmfit_fast.runs import Run
from ulmfit_fast.runs.stage import StageRun
from ulmfit_fast.runs.state_file import read_state

TOKENIZER = Tokenizer.train(["a fine film"] * 3, min_freq=1)
BASE = TrainingSettings(batch_size=3, bptt=5, lr=0.02, epochs=4)
LM = {
    "plain": BASE,
    "held out": replace(BASE, valid_share=0.3, clip=0.2, weight_decay=0.1),
    "random lengths": replace(BASE, random_bptt=True, bptt=8, optimizer="adam"),
    "averaging": replace(BASE, optimizer="nt_asgd", nonmono=1, lr=5.0, valid_share=0.3, epochs=6),
    "one cycle a stage": replace(
        BASE, schedule="one_cycle", schedule_per="stage", gradual_unfreezing=(1, 2),
        reset_optimizer=True, lr_decay=0.5, no_decay_on_bias_and_norm=True, weight_decay=0.01,
    ),
    "cosine": replace(BASE, schedule="cosine", gradual_unfreezing=1, chain_thaw=True),
    "patience": replace(BASE, valid_share=0.3, patience=1, epochs=9, lr=0.4),
    "bfloat16": replace(BASE, precision="bfloat16", label_smoothing=0.1),
}  # fmt: skip
CLASSIFIER = {
    "paper": replace(BASE, gradual_unfreezing=1, epochs=5),
    "regularised": replace(BASE, alpha=2.0, beta=1.0, schedule="one_cycle", max_len=4),
    "thaw": replace(BASE, chain_thaw=True, gradual_unfreezing=1, optimizer="sgd", alpha=0, beta=0),
}
CASES = [("language model", name) for name in LM] + [("classifier", name) for name in CLASSIFIER]


class Died(BaseException):
    """What stands for a process that is gone."""


class MortalRun(Run):
    """Die at a step, before or after its loss is entered, or at the end of an epoch."""

    def __init__(self, directory, at=None, epoch=None, **options):
        super().__init__(directory, **options)
        self.at, self.epoch = at, epoch

    def report(self, reading):
        super().report(reading)
        if len(self._training.history.losses) == self.at:
            raise Died

    def epoch_ended(self, loss, *, best):
        if self._training.cursor.epoch == self.epoch:
            raise Died
        super().epoch_ended(loss, best=best)


def settings_of(kind, name):
    return (LM if kind == "language model" else CLASSIFIER)[name]


def fit(kind, settings, run=None, **options):
    """Train from the start, or go on; return the model and its history."""
    model = make(kind)
    stage = "pretrain" if kind == "language model" else "fit_classifier"
    run = None if run is None else StageRun(run, stage, TOKENIZER)
    torch.manual_seed(11)
    docs = documents(40)
    if kind == "language model":
        return model, train_language_model(
            model, docs, settings, seed=3, progress=False, run=run, **options
        )
    labels = torch.arange(40) % 2
    return model, fit_classifier(
        model, docs, labels, settings, seed=3, progress=False, run=run, **options
    )


def assert_equal_runs(a, b):
    (model, history), (other, again) = a, b
    for name in ("losses", "regularisers", "lrs", "unfreeze_steps", "valid_losses"):
        assert getattr(history, name) == getattr(again, name), name
    assert history.average_step == again.average_step
    assert [e[:2] for e in history.epochs] == [e[:2] for e in again.epochs]
    own = other.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name]), name


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_run_killed_over_and_over_equals_one_that_was_not(tmp_path, kind, name):
    settings = settings_of(kind, name)
    expected = fit(kind, settings)
    steps = len(expected[1].losses)
    deaths, an_epoch = 0, steps // len(expected[1].epochs)
    # The first before any checkpoint, some right behind one, some at the end of an epoch.
    for n, at in enumerate([2, 3, 7, 8, 11, *range(13, steps, 9), steps]):
        run = MortalRun(tmp_path, at, checkpoint_steps=4, resume=n > 0)
        with pytest.raises(Died):
            fit(kind, settings, run)
        deaths += 1
    for epoch in range(1, len(expected[1].epochs) + 1):
        run = MortalRun(tmp_path, epoch=epoch, checkpoint_steps=an_epoch, resume=True)
        try:
            fit(kind, settings, run)
        except Died:
            deaths += 1
    assert deaths >= 8
    assert_equal_runs(expected, fit(kind, settings, Run(tmp_path, resume=True)))
    # And a run that came to its end is there once more.
    assert_equal_runs(expected, fit(kind, settings, Run(tmp_path, resume=True)))
    fit(kind, settings, Run(tmp_path / "whole"))
    assert untimed(tmp_path) == untimed(tmp_path / "whole")
    losses = [report["loss"] for report in reports(tmp_path) if "epoch_ended" not in report]
    assert losses == pytest.approx(expected[1].losses, rel=1e-12)


def reports(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def untimed(directory):
    return [
        {name: value for name, value in report.items() if not name.endswith("_per_second")}
        for report in reports(directory)
    ]


def test_the_hidden_state_and_the_generator_are_part_of_it(tmp_path, monkeypatch):
    """Without either the losses differ: this says that the test above can see it."""
    settings = LM["plain"]
    expected = fit("language model", settings)[1].losses
    for lost in ("states", "rng", "scheduler"):
        directory = tmp_path / lost
        with pytest.raises(Died):
            fit("language model", settings, MortalRun(directory, 6, checkpoint_steps=4))
        run = Run(directory, resume=True)
        with monkeypatch.context() as patch:
            from ulmfit_fast.runs import run as module

            restore = module.restore

            def forget(training, values, lost=lost, restore=restore):
                other = {"states": None, "rng": [torch.get_rng_state()]}
                if lost == "scheduler":
                    other = {"scheduler": training.plan.scheduler}
                    values["optimizer"]["param_groups"][0]["lr"] = 9.0
                    training.plan.begin_epoch(0)
                    other = {"scheduler": training.plan.scheduler.state_dict()}
                return restore(training, {**values, lost: other.get(lost)})

            patch.setattr(module, "restore", forget)
            losses = fit("language model", settings, run)[1].losses
        assert losses[:4] == expected[:4] and losses != expected, lost


def test_patience_stops_and_keeps_the_best(tmp_path):
    model, history = fit("language model", LM["patience"])
    best = int(np.argmin(history.valid_losses))
    assert len(history.epochs) == best + 2 < 9
    short = replace(LM["patience"], patience=0)
    seen = []

    def keep(epoch, history):
        seen.append({k: v.clone() for k, v in trained.state_dict().items()})

    trained = make("language model")
    torch.manual_seed(11)
    train_language_model(trained, documents(40), short, seed=3, progress=False, after_epoch=keep)
    for name, value in model.state_dict().items():
        assert torch.equal(value, seen[best][name])
    with pytest.raises(ValueError, match=r"patience is 1.* nothing to evaluate on"):
        fit("language model", replace(BASE, patience=1))


def test_the_best_checkpoint_is_kept(tmp_path):
    _, history = fit("language model", LM["patience"], Run(tmp_path, keep=1, checkpoint_steps=1))
    best = int(np.argmin(history.valid_losses)) + 1
    steps = len(history.losses) // len(history.epochs)
    files = sorted((tmp_path / "checkpoints" / "pretrain").glob("*.safetensors"))
    assert [int(path.stem.removeprefix("step-")) for path in files] == [
        best * steps,
        len(history.losses),
    ]
    assert read_state(files[0])["cursor"]["best_loss"] == min(history.valid_losses)


def stopped(directory, at=6, **options):
    with pytest.raises(Died):
        fit("language model", BASE, MortalRun(directory, at, checkpoint_steps=4, **options))


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
    run = StageRun(Run(tmp_path, resume=True), "pretrain", TOKENIZER)
    with pytest.raises(ValueError, match="first_documents is"):
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
    from ulmfit_fast.runs import state_file

    fsync, calls = os.fsync, []

    def fill(handle):
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(state_file.os, "fsync", fill)
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
    run = StageRun(Run(tmp_path, checkpoint_steps=2), stage, TOKENIZER)
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
            if len(self._training.history.losses) == 5:
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


TEXTS = [f"a {w} film and a {v} end" for w in ("fine", "dull", "long") for v in ("good", "bad")]


def estimator(**options):
    return uf.ULMFiT(emb_size=8, hidden_size=12, min_freq=1, progress=False, **options)


def test_all_stages_of_the_estimator_resume(tmp_path):
    def stages(directory, wrap):
        model = estimator(checkpoint_dir=directory)
        wrap(lambda run: model.pretrain(TEXTS * 20, epochs=2, batch_size=4, bptt=10, run=run))
        wrap(lambda run: model.fine_tune_lm(TEXTS * 9, epochs=2, batch_size=4, bptt=10, run=run))
        labels = [text.endswith("good end") for text in TEXTS * 9]
        wrap(
            lambda run: model.fit_classifier(
                TEXTS * 9, list(map(int, labels)), epochs=3, batch_size=4, run=run
            )
        )
        return model

    whole = stages(tmp_path / "a", lambda stage: stage(Run(tmp_path / "a")))

    def dying(stage):
        for at in (3, 5):
            run = MortalRun(tmp_path / "b", at, checkpoint_steps=2, resume=at > 3)
            with pytest.raises(Died):
                stage(run)
        stage(Run(tmp_path / "b", resume=True))

    survived = stages(tmp_path / "b", dying)
    for name, history in whole.histories.items():
        assert history.losses == survived.histories[name].losses, name
    assert np.array_equal(whole.predict_proba(TEXTS), survived.predict_proba(TEXTS))
    # The model stands beside the run that made it.
    again = uf.ULMFiT.load(tmp_path / "b", progress=False)
    assert np.array_equal(again.predict_proba(TEXTS), whole.predict_proba(TEXTS))
    assert sorted({r["stage"] for r in reports(tmp_path / "b")}) == [
        "fine_tune_lm", "fit_classifier", "pretrain",
    ]  # fmt: skip


def test_the_tokenizer_of_the_run_is_used_again(tmp_path, monkeypatch):
    with pytest.raises(Died):
        estimator(tokenizer="subword").pretrain(
            TEXTS * 9, epochs=1, batch_size=4, run=MortalRun(tmp_path, 2, checkpoint_steps=1)
        )
    # Learning a unigram vocabulary anew need not give the same pieces.
    monkeypatch.setattr(Tokenizer, "train", None)
    model = estimator(tokenizer="subword")
    model.pretrain(TEXTS * 9, epochs=1, batch_size=4, run=Run(tmp_path, resume=True))
    assert len(model.histories["pretrain"].losses) > 2


def test_a_crash_between_the_files_of_a_model_leaves_a_model(tmp_path, monkeypatch):
    model = estimator(checkpoint_dir=tmp_path)
    model.pretrain(TEXTS * 9, epochs=1, batch_size=4, run=Run(tmp_path))
    old = model.language_model.decoder.bias.detach().clone()
    with torch.no_grad():
        model.language_model.decoder.bias.add_(1.0)
    replace_, moved = os.replace, []

    def crash(source, target):
        if Path(source).parent.name == ".incoming":
            moved.append(source)
            if len(moved) == 2:
                raise Died
        replace_(source, target)

    monkeypatch.setattr(directories.os, "replace", crash)
    with pytest.raises(Died):
        model.save(tmp_path)
    monkeypatch.undo()
    found = uf.ULMFiT.load(tmp_path, progress=False)
    assert torch.equal(found.language_model.decoder.bias, old + 1.0)
    assert not list(tmp_path.glob(".incoming*"))

    def before(source, target):
        raise Died

    monkeypatch.setattr(directories.os, "replace", before)
    with torch.no_grad():
        model.language_model.decoder.bias.add_(1.0)
    with pytest.raises(Died):
        model.save(tmp_path)
    monkeypatch.undo()
    found = uf.ULMFiT.load(tmp_path, progress=False)
    assert torch.equal(found.language_model.decoder.bias, old + 1.0)


@pytest.mark.slow
def test_killed_at_random_more_than_twenty_times(tmp_path):
    """Real processes and SIGKILL; see kill_loop.py."""
    command = [sys.executable, str(Path(__file__).with_name("kill_loop.py")), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]
    kills, equal = json.loads(result.stdout.splitlines()[-1])
    assert kills >= 20 and equal
