"""A run that was stopped anywhere goes on with the very losses of one that never was."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mortal_runs import (
    BASE,
    CASES,
    LM,
    Died,
    MortalRun,
    assert_equal_runs,
    fit,
    reports,
    settings_of,
    stopped,
    untimed,
)
from small_models import documents, make
from torch.amp import GradScaler

import ulmfit_fast as uf
from ulmfit_fast.data import Tokenizer
from ulmfit_fast.runs import Run
from ulmfit_fast.runs.state_file import read_state
from ulmfit_fast.system import directories
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.stages import fit_classifier, train_language_model
from ulmfit_fast.training.state import TrainingState


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


def test_a_checkpoint_has_the_names_that_runs_of_before_have(tmp_path):
    stopped(tmp_path)
    found = read_state(max((tmp_path / "checkpoints" / "pretrain").glob("step-*")))
    assert sorted(found) == [
        "best_step", "best_weights", "cuda_rng", "cursor", "history", "model", "optimizer", "rng",
        "scaler", "scheduler", "states",
    ]  # fmt: skip
    assert sorted(found["cursor"]) == [
        "batch", "best_loss", "epoch", "epochs_since_best", "items", "loss_sum", "seconds",
    ]  # fmt: skip
    assert sorted(found["history"]) == [
        "average_step", "epochs", "losses", "lrs", "regularisers", "unfreeze_steps", "valid_losses",
        "valid_scores",
    ]  # fmt: skip


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
            load = TrainingState.load_state_dict

            def forget(state, values, lost=lost, load=load):
                other = {"states": None, "rng": [torch.get_rng_state()]}
                if lost == "scheduler":
                    values["optimizer"]["param_groups"][0]["lr"] = 9.0
                    state.plan.begin_epoch(0)
                    other = {"scheduler": state.plan.scheduler.state_dict()}
                load(state, {**values, lost: other.get(lost)})

            patch.setattr(TrainingState, "load_state_dict", forget)
            losses = fit("language model", settings, run)[1].losses
        assert losses[:4] == expected[:4] and losses != expected, lost


@pytest.mark.parametrize("kind", ["language model", "classifier"])
def test_the_scale_of_gradients_is_part_of_it(tmp_path, monkeypatch, kind):
    """As on CUDA in float16; here the gradients are float32, which a CPU can scale as well."""
    made = []

    def scaled(cls, name, device):
        made.append(GradScaler("cpu", init_scale=2.0**4, growth_interval=3))
        return cls(None, made[-1])

    monkeypatch.setattr(Precision, "of", classmethod(scaled))
    whole = fit(kind, BASE, Run(tmp_path / "whole"))
    with pytest.raises(Died):
        fit(kind, BASE, MortalRun(tmp_path / "killed", 9, checkpoint_steps=4))
    again = fit(kind, BASE, Run(tmp_path / "killed", resume=True))
    assert_equal_runs(whole, again)
    unbroken, killed, resumed = (scaler.state_dict() for scaler in made)
    assert killed["scale"] == 2.0 ** (4 + 3) and resumed == unbroken
    assert resumed["scale"] == 2.0 ** (4 + len(whole[1].losses) // 3)


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


@pytest.mark.parametrize("name", ["patience", "keep best"])
def test_a_classifier_keeps_the_epoch_of_the_lowest_validation_loss(tmp_path, name, caplog):
    settings = settings_of("classifier", name)
    caplog.set_level("INFO", "ulmfit_fast.progress")
    model, history = fit("classifier", settings, Run(tmp_path))
    best = int(np.argmin(history.valid_losses))
    assert f"classifier: the weights of epoch {best + 1} are kept" in caplog.text
    assert best + 1 < len(history.epochs), "the last epoch is not the best, or nothing is shown"
    stops = {"patience": best + 1 + settings.patience, "keep best": settings.epochs}
    assert len(history.epochs) == stops[name] == len(history.valid_scores)
    seen = []

    def keep(epoch, history):
        seen.append({k: v.clone() for k, v in trained.state_dict().items()})

    # Without a look at what is held out the losses are the same, bit for bit.
    trained = make("classifier")
    torch.manual_seed(11)
    plain = fit_classifier(
        *(trained, documents(40), torch.arange(40) % 2),
        replace(settings, patience=0, keep_best=False),
        seed=3,
        progress=False,
        after_epoch=keep,
    )
    assert plain.losses[: len(history.losses)] == history.losses and plain.valid_losses == []
    for key, value in model.state_dict().items():
        assert torch.equal(value, seen[best][key])
    lines = [report for report in reports(tmp_path) if "epoch_ended" in report]
    for line, loss, scores in zip(lines, history.valid_losses, history.valid_scores, strict=True):
        assert line["valid_loss"] == loss and "valid_perplexity" not in line
        assert line["valid_accuracy"] == scores["accuracy"]
        assert line["valid_macro_f1"] == scores["macro_f1"]


def test_other_texts_held_out_are_another_run(tmp_path):
    settings = settings_of("classifier", "keep best")
    fit("classifier", settings, Run(tmp_path, checkpoint_steps=4))
    labels = torch.arange(12) % 2
    for valid in ((documents(52)[40:], labels.flip(0)), (documents(51)[39:], labels)):
        model, run = make("classifier"), Run(tmp_path, resume=True)
        with pytest.raises(ValueError, match=r"valid is '12 texts, \w+', and '12 texts, \w+' in"):
            fit_classifier(
                *(model, documents(40), torch.arange(40) % 2, settings),
                **{"valid": valid, "seed": 3, "progress": False, "run": run},
            )


def test_a_run_of_before_knows_nothing_of_what_is_held_out(tmp_path):
    fit("classifier", BASE, Run(tmp_path, checkpoint_steps=4))
    path = tmp_path / "checkpoints" / "fit_classifier" / "run.json"
    fingerprint = json.loads(path.read_text())["fingerprint"]
    assert "keep_best" not in fingerprint["settings"] and fingerprint["valid"] is None


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


def test_a_stage_that_is_over_is_taken_as_it_was_left(tmp_path, caplog):
    texts = [f"{text} {'x' * n}" for text in TEXTS for n in range(4)]
    labels = ["good" if "good end" in text else "bad" for text in texts]
    options = {"epochs": 2, "batch_size": 4, "valid": 0.25}

    def fit(model, **more):
        run = Run(tmp_path, resume=True, checkpoint_steps=2)
        return model.fit_classifier(texts, labels, **options, **more, run=run)

    first = fit(estimator(checkpoint_dir=tmp_path))
    assert not list(tmp_path.rglob("step-*"))
    caplog.set_level("INFO", "ulmfit_fast.progress")
    second = fit(estimator(checkpoint_dir=tmp_path))
    assert f"the run in {tmp_path} is over already; nothing is left to do" in caplog.text
    assert second.histories == {}
    assert np.array_equal(second.predict_proba(TEXTS), first.predict_proba(TEXTS))
    assert second.validation.to_dict() == first.validation.to_dict()
    assert second.labels == first.labels
    with pytest.raises(FileExistsError, match="is over already, and was without refit"):
        fit(estimator(checkpoint_dir=tmp_path), refit=True)
    with pytest.raises(ValueError, match=r"drop_mult is 0.5|lr is 0.5"):
        fit(estimator(checkpoint_dir=tmp_path), lr=0.5)


def test_without_a_model_beside_it_a_run_keeps_its_checkpoints(tmp_path):
    estimator().pretrain(TEXTS * 20, epochs=1, batch_size=4, run=Run(tmp_path, checkpoint_steps=5))
    assert list(tmp_path.rglob("step-*")), "nowhere else is what was trained"


def test_a_stage_says_what_it_takes_and_how_far_it_is(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "ulmfit_fast.progress")
    monkeypatch.setattr("ulmfit_fast.runs.outlook._SECONDS", 0.0)
    model = uf.ULMFiT(emb_size=8, hidden_size=12, min_freq=1)
    options = {"epochs": 2, "batch_size": 4, "bptt": 5}
    for run in (None, Run(tmp_path)):
        caplog.clear()
        model.pretrain(TEXTS * 20, **options, run=run)
        said = [line for line in caplog.messages if line.startswith("  ")]
        starts = ["  model: ", "  steps: ", "  memory: ", "  time: ", "  about ", "  step 11 of "]
        assert [line.startswith(start) for line, start in zip(said, starts, strict=False)] == [
            True
        ] * 6
        assert sum(line.startswith("  epoch ") for line in said) == 2
        assert all("left of the stage" in line for line in said[4:])
    caplog.clear()
    estimator().pretrain(TEXTS * 20, **options)
    assert not [line for line in caplog.messages if line.startswith("  ")], "progress=False"


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
        if Path(source).name == ".incoming-linked":
            moved.append(source)
            if len(moved) == 2:
                raise Died
        replace_(source, target)

    monkeypatch.setattr(directories.os, "replace", crash)
    with pytest.raises(Died):
        model.save(tmp_path)
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = uf.ULMFiT.load(tmp_path, progress=False)
    assert torch.equal(found.language_model.decoder.bias, old + 1.0)
    # The reader has moved nothing; the next writer does.
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with torch.no_grad():
        model.language_model.decoder.bias.copy_(old + 1.0)
    model.save(tmp_path)
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
@pytest.mark.parametrize(
    ("least", "options"),
    [
        (8, ("--epochs", "1")),
        (8, ("--threads", "2", "--epochs", "1")),
        (5, ("--threads", "2", "--epochs", "1", "--loaded")),
    ],
    ids=["one-thread", "two-threads", "loaded"],
)
def test_killed_at_random_over_and_over(tmp_path, least, options):
    """Real processes and SIGKILL; see kill_loop.py."""
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "helpers" / "kill_loop.py"),
        str(tmp_path),
    ]
    # Threads that spin while they wait for one another stand still where others want the cores.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    result = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=400, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    kills, equal = json.loads(result.stdout.splitlines()[-1])
    assert kills >= least and equal


def fitted(directory, model=None, labels=("good", "bad"), texts=None, **options):
    texts = [f"{text} {'x' * n}" for text in texts or TEXTS for n in range(4)]
    names = [labels["bad end" in text] for text in texts]
    run = {
        name: options.pop(name)
        for name in ("resume", "overwrite", "keep_checkpoints", "checkpoint_steps")
        if name in options
    }
    options = {"epochs": 2, "batch_size": 4, "valid": 0.25, **options}
    model = model or estimator()
    model.checkpoint_dir = directory
    return model.fit_classifier(texts, names, **options, run=Run(directory, **run))


def test_a_model_in_the_place_of_the_one_that_a_run_left_is_not_taken_for_it(tmp_path):
    fitted(tmp_path)
    fitted(tmp_path, epochs=1).save(tmp_path / "other")
    expected = fitted(tmp_path).predict_proba(TEXTS)
    assert np.array_equal(fitted(tmp_path, resume=True).predict_proba(TEXTS), expected)
    other = uf.ULMFiT.load(tmp_path / "other", progress=False)
    other.save(tmp_path)
    with pytest.raises(FileExistsError, match="another model has taken the place of its own"):
        fitted(tmp_path, resume=True)
    again = uf.ULMFiT.load(tmp_path, progress=False)
    assert np.array_equal(again.predict_proba(TEXTS), other.predict_proba(TEXTS))
    assert np.array_equal(fitted(tmp_path, overwrite=True).predict_proba(TEXTS), expected)


def test_a_run_that_is_over_is_of_its_texts_labels_and_language_model(tmp_path):
    fitted(tmp_path)
    with pytest.raises(ValueError, match="names is "):
        fitted(tmp_path, resume=True, labels=("g", "b"))
    with pytest.raises(
        ValueError, match=r"(valid is|the texts, .* are others than those of the run in )"
    ):
        fitted(tmp_path, resume=True, labels=("bad", "good"))
    with pytest.raises(
        ValueError, match=r"(valid is|the texts, .* are others than those of the run in )"
    ):
        fitted(tmp_path, resume=True, texts=[*TEXTS[:-1], "a long dull and a bad end"])
    model = estimator().pretrain(TEXTS * 20, epochs=1, batch_size=4)
    with pytest.raises(ValueError, match=r"the words that the model knows of them, are others"):
        fitted(tmp_path, model.copy(), resume=True)

    fitted(tmp_path / "tuned", model.copy())
    other = estimator(seed=1).pretrain(TEXTS * 20, epochs=1, batch_size=4).copy(seed=0)
    with pytest.raises(FileExistsError, match="began with another language model"):
        fitted(tmp_path / "tuned", other, resume=True)
    assert fitted(tmp_path / "tuned", model.copy(), resume=True).histories.keys() == {"pretrain"}


def test_a_stage_in_the_directory_that_it_goes_on_from_is_over_as_well(tmp_path):
    estimator(checkpoint_dir=tmp_path).pretrain(TEXTS * 20, epochs=1, batch_size=4)
    for resume in (False, True):
        model = uf.ULMFiT.load(tmp_path, progress=False)
        model.checkpoint_dir = tmp_path
        model.fine_tune_lm(TEXTS * 9, epochs=2, batch_size=4, run=Run(tmp_path, resume=resume))
        assert ("fine_tune_lm" in model.histories) != resume


def test_a_run_that_is_over_was_with_refit_or_without(tmp_path):
    fitted(tmp_path, refit=True)
    taken = fitted(tmp_path, refit=True, resume=True)
    assert "fitted anew" in taken.validation.notes[-1] and taken.histories == {}
    for kept in (False, True):
        fitted(tmp_path, refit=True, keep_checkpoints=kept, checkpoint_steps=2)
        with pytest.raises(FileExistsError, match="is over already, and was with refit"):
            fitted(tmp_path, resume=True)
    # What an earlier run was refit to is not of this one.
    fitted(tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match="is over already, and was without refit"):
        fitted(tmp_path, refit=True, resume=True)


def test_a_refit_of_an_earlier_run_is_not_taken_for_that_of_the_one_at_hand(tmp_path):
    fitted(tmp_path, refit=True, keep_checkpoints=True, checkpoint_steps=2)
    expected = fitted(tmp_path / "other", refit=True, lr=0.1)
    model = estimator()
    model.checkpoint_dir = tmp_path
    texts = [f"{text} {'x' * n}" for text in TEXTS for n in range(4)]
    labels = ["bad" if "bad end" in text else "good" for text in texts]
    options = {"epochs": 2, "batch_size": 4, "valid": 0.25, "refit": True, "lr": 0.1}
    with pytest.raises(Died):
        run = MortalRun(tmp_path, 3, checkpoint_steps=2, overwrite=True)
        model.fit_classifier(texts, labels, **options, run=run)
    found = fitted(tmp_path, refit=True, lr=0.1, resume=True)
    assert np.array_equal(found.predict_proba(TEXTS), expected.predict_proba(TEXTS))


def test_what_holds_nothing_out_is_not_refit_and_is_over(tmp_path):
    frame = {"text": [*TEXTS, *TEXTS], "label": ["good", "bad"] * 6, "is_valid": [False] * 12}
    options = {"valid_column": "is_valid", "refit": True, "epochs": 1, "batch_size": 4}
    for resume in (False, True):
        model = estimator(checkpoint_dir=tmp_path)
        model.fit_classifier(frame, **options, run=Run(tmp_path, resume=resume))
        assert (model.histories == {}) == resume


def test_a_removal_of_checkpoints_that_was_cut_short_is_taken_up(tmp_path, monkeypatch):
    unlink, dead = Path.unlink, []

    def die(path, **options):
        if path.name.startswith("step-") and path.parent.name == "fit_classifier" and dying:
            dead.append(path)
            raise Died
        unlink(path, **options)

    dying = False
    monkeypatch.setattr(Path, "unlink", die)
    tidy = Run.tidy

    def dies(run, *stages):
        nonlocal dying
        dying = True
        tidy(run, *stages)

    monkeypatch.setattr(Run, "tidy", dies)
    with pytest.raises(Died):
        fitted(tmp_path, refit=True, checkpoint_steps=2)
    assert dead and list(tmp_path.rglob("step-*"))
    monkeypatch.undo()
    left = uf.ULMFiT.load(tmp_path, progress=False)
    taken = fitted(tmp_path, refit=True, resume=True)
    assert np.array_equal(taken.predict_proba(TEXTS), left.predict_proba(TEXTS))
    assert taken.histories == {} and not list(tmp_path.rglob("step-*"))


def test_checkpoints_that_were_set_aside_are_removed_as_well(tmp_path):
    fitted(tmp_path, keep_checkpoints=True, checkpoint_steps=2)
    *_, newest = sorted(tmp_path.rglob("step-*"))
    newest.write_bytes(newest.read_bytes()[:-9])
    fitted(tmp_path, resume=True)
    assert not list(tmp_path.rglob("step-*"))


def test_what_goes_on_and_what_begins_anew_is_said(tmp_path, caplog):
    caplog.set_level("INFO", "ulmfit_fast.progress")
    fitted(tmp_path, resume=True)
    said = [record.getMessage() for record in caplog.records]
    assert not [line for line in said if "going on" in line or "anew" in line]
    for steps, expected in ((None, "has no checkpoint yet; beginning anew"), (2, "after step 2")):
        model = estimator()
        model.checkpoint_dir = tmp_path
        texts = [f"{text} {'x' * n}" for text in TEXTS for n in range(4)]
        options = {"epochs": 2, "batch_size": 4}
        with pytest.raises(Died):
            run = MortalRun(tmp_path, 3, checkpoint_steps=steps, overwrite=True)
            model.fit_classifier(texts, ["good", "bad"] * 12, **options, run=run)
        caplog.clear()
        model.fit_classifier(texts, ["good", "bad"] * 12, **options, run=Run(tmp_path, resume=True))
        said = [record.getMessage() for record in caplog.records if "progress" in record.name]
        assert [line for line in said if expected in line]
