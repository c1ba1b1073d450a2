"""The whole job: what it reads, what it goes on from, and what its record says."""

import json
import os
import re
import signal
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from kill_loop import forked
from mortal_runs import Died

import ulmfit_fast as uf
from ulmfit_fast import data, presets, report
from ulmfit_fast.ulmfit import job as jobs
from ulmfit_fast.ulmfit.estimator import ULMFiT
from ulmfit_fast.ulmfit.job import Job
from ulmfit_fast.ulmfit.record import RunRecord, loss_curve, worst_examples
from ulmfit_fast.ulmfit.sizing import classifier_sizes, language_model_sizes

WORDS = {"elogio": "ótimo ágil excelente".split(), "reclamação": "péssimo ruído avaria".split()}
TEXTS = [f"o {WORDS[y][n % 3]} serviço à mão número {n}" for n in range(20) for y in WORDS]
LABELS = list(WORDS) * 20
TINY = replace(
    presets.small(),
    model={**presets.small().model, "emb_size": 8, "hidden_size": 10, "min_freq": 1},
)
QUICK = {"preset": TINY, "epochs": 2, "lm_epochs": 1, "batch_size": 8, "progress": False}
STAGES = ["pretrain", "fit_classifier", "refit_classifier"]


def said(**options):
    lines = []
    model = Job(TEXTS, LABELS, say=lines.append, **{**QUICK, **options}).run()
    return model, lines


def weights(model):
    return {**model.classifier.state_dict(), **model.language_model.state_dict()}


def assert_equal(model, other):
    own = weights(other)
    for name, value in weights(model).items():
        assert torch.equal(value, own[name]), name
    assert model.validation == other.validation


def untimed(record):
    found = json.loads(json.dumps(record))
    del found["created"]
    for stage in found["stages"]:
        del stage["seconds"]
        for epoch in stage["epochs"]:
            del epoch["seconds"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped, and its directory."""
    out = tmp_path_factory.mktemp("job") / "whole"
    return uf.train(TEXTS, LABELS, out=out, refit=True, **QUICK), out


def test_a_run_ends_with_a_model_and_its_record(whole):
    model, out = whole
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "report.json", "validation.json"} <= names
    # Nor are checkpoints left.
    assert "checkpoints" not in names and not [name for name in names if name.startswith(".")]
    assert model.checkpoint_dir is None
    loaded = ULMFiT.load(out, progress=False)
    assert_equal(model, loaded)
    assert loaded.predict(TEXTS) == model.predict(TEXTS)
    record = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert record == model.report == RunRecord.load(out / "report.json")
    assert set(record) == {
        *("version", "command", "created", "machine", "settings", "stages", "data"),
        *("evaluation", "verdict", "examples", "full_settings"),
    }
    assert record["settings"]["fit_classifier.batch_size"] == 8
    assert not any(isinstance(value, (dict, list)) for value in record["settings"].values())
    found = record["data"]
    assert (found["rows"], found["trained_on"], found["held_out"]) == (40, 34, 6)
    assert found["classes"] == [{"label": y, "count": 20, "share": 0.5} for y in WORDS]
    assert [stage["name"] for stage in record["stages"]] == STAGES
    fit = record["stages"][1]
    assert fit["steps"] == 2 * 5 and len(fit["losses"]) == 10
    assert [set(epoch) for epoch in fit["epochs"]] == [
        {"loss", "valid_loss", "accuracy", "macro_f1", "seconds"}
    ] * 2
    assert record["evaluation"] == model.validation.to_dict()
    assert record["verdict"] == model.validation.verdict and "bag of words" in record["verdict"]
    assert list(model.histories) == STAGES


def test_the_classifier_that_is_kept_is_fitted_to_all_texts(whole):
    model, _ = whole
    refit = model.report["stages"][2]
    # As the one that was measured.
    assert len(refit["epochs"]) == 2 and refit["steps"] == 2 * 5
    assert "fitted anew to all 40 texts, in 2 epochs" in model.validation.notes[-1]


def test_with_patience_it_is_made_anew_in_its_best_epochs():
    model, _ = said(refit=True, patience=1, epochs=6, lr=0.2)
    measured, refit = model.report["stages"][1:]
    losses = [epoch["valid_loss"] for epoch in measured["epochs"]]
    assert len(refit["epochs"]) == losses.index(min(losses)) + 1 < len(losses)


class Mortal(jobs.Run):
    """Dies in a stage, after a step or after its last one."""

    place = ("", 0)

    def report(self, reading):
        super().report(reading)
        if (self.directory.name, self._state.steps) == type(self).place:
            raise Died


@pytest.mark.parametrize(
    "place",
    [("pretrain", 2), ("fit_classifier", 3), ("fit_classifier", 7), ("refit_classifier", 4)],
)
def test_a_run_that_is_killed_goes_on_to_the_same_end(place, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = {"out": out, "refit": True, "checkpoint_minutes": 1e-9}
    monkeypatch.setattr(Mortal, "place", place)
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "Run", Mortal)
        with pytest.raises(Died):
            said(**options)
    assert not (out / "report.json").exists()
    model, lines = said(**options, resume=True)
    over = [line for line in lines if line.endswith("is over already")]
    assert len(over) == STAGES.index(place[0])
    assert_equal(model, whole[0])
    expected = untimed(whole[0].report)
    assert untimed(model.report) == expected


def test_a_run_that_dies_between_its_stages_repeats_none(whole, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def die(*_, **__):
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(Job, "_record", die)
        with pytest.raises(Died):
            said(out=out, refit=True)
    model, lines = said(out=out, refit=True, resume=True)
    assert sum(line.endswith("is over already") for line in lines) == 3
    assert_equal(model, whole[0])
    assert untimed(model.report) == untimed(whole[0].report)


@pytest.mark.slow
def test_a_run_that_is_killed_by_the_system_goes_on(whole, tmp_path):
    out = tmp_path / "out"
    options = {"out": out, "refit": True, "checkpoint_minutes": 1e-9, "resume": True}
    for delay in (0.05, 0.3, 0.6):
        child = forked(lambda: (torch.set_num_threads(1), said(**options)))
        while not (out / "checkpoints" / "train.json").exists():
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (out / "report.json").exists():
            break
    model, _ = said(**options)
    assert_equal(model, whole[0])


def test_a_run_that_is_over_is_left_alone(whole, monkeypatch):
    model, out = whole
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr(Job, "_stages", None)
    again, lines = said(out=out, refit=True, resume=True)
    assert lines == [f"the run in {out} is over already; nothing is left to do"]
    assert again.report == model.report and again.predict(TEXTS) == model.predict(TEXTS)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_run_goes_on_with_what_it_began_with_alone(whole):
    _, out = whole
    with pytest.raises(ValueError, match=r"^epochs is 3, and 2 in the run"):
        said(out=out, refit=True, resume=True, epochs=3)
    with pytest.raises(ValueError, match="began with other texts"):
        Job([*TEXTS[:-1], "outro"], LABELS, out=out, refit=True, resume=True, **QUICK).run()
    with pytest.raises(FileExistsError, match=r"holds .* already; resume=True"):
        said(out=out)


def test_a_run_that_was_killed_before_it_began_begins(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileExistsError, match="holds checkpoints already"):
        said(out=tmp_path)
    assert (said(out=tmp_path, resume=True)[0].report) is not None
    other = tmp_path / "other"
    (other / "checkpoints" / "pretrain").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="no run of train to go on with"):
        said(out=other, resume=True)


def test_overwrite_begins_anew(tmp_path):
    out = tmp_path / "out"
    said(out=out)
    model, _ = said(out=out, overwrite=True, seed=1, keep_checkpoints=True)
    assert model.report["settings"]["seed"] == 1
    assert RunRecord.load(out / "report.json") == model.report
    kept = out / "checkpoints"
    assert (kept / "pretrain" / "config.json").exists() and (kept / "train.json").exists()


@pytest.mark.parametrize(("name", "text"), [("report.json", "{}"), ("report.html", "of a user")])
def test_a_file_of_the_user_is_not_replaced(name, text, tmp_path):
    ULMFiT(emb_size=8, hidden_size=10, min_freq=1, progress=False).pretrain(
        TEXTS, epochs=1, batch_size=2, bptt=5
    ).save(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(FileExistsError, match=f"{name} is (of something else|no record)"):
        said(out=tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == text


def test_the_language_model_reads_nothing_that_is_held_out(monkeypatch):
    read = []
    whole = ULMFiT.pretrain

    def spy(self, texts, **options):
        read.extend(texts)
        return whole(self, texts, **options)

    monkeypatch.setattr(ULMFiT, "pretrain", spy)
    held_out = [TEXTS[0], TEXTS[3]], [LABELS[0], LABELS[3]]
    own = [n for n in range(40) if n not in (0, 3)]
    lines = []
    model = Job(
        [TEXTS[n] for n in own],
        [LABELS[n] for n in own],
        # A copy of a held-out text in other case and with blanks is one as well.
        unlabelled=["mais um serviço", f" {TEXTS[0].upper()} ", TEXTS[3]],
        valid=held_out,
        say=lines.append,
        **QUICK,
    ).run()
    assert read == [*(TEXTS[n] for n in own), "mais um serviço"]
    assert "2 of the 3 unlabelled texts are held out as well, and left out" in lines
    assert model.report["data"]["unlabelled"] == 1 and model.validation.rows == 2


def test_a_language_model_that_is_given_is_fine_tuned(whole, tmp_path):
    model, lines = said(preset=None, lm=whole[1], out=tmp_path / "out", valid=None)
    assert [stage["name"] for stage in model.report["stages"]] == ["fine_tune_lm", "fit_classifier"]
    assert model.settings.emb_size == 8 and model.validation is None
    assert model.report["evaluation"] is None and model.report["verdict"] is None
    assert model.report["data"]["held_out"] == 0
    assert not any("no language model is given" in line for line in lines)
    with pytest.raises(ValueError, match="beside lm, whose sizes and preset are its own"):
        Job(TEXTS, LABELS, lm=whole[1], preset="small")


def test_what_a_stage_takes_is_said_and_what_is_left(whole):
    _, lines = said()
    assert any("one of the preset 'small' is pre-trained" in line for line in lines)
    assert "1/2 pre-training a language model, 1 epoch in batches of 3" in lines
    for start in ("  model: ", "  steps: ", "  memory: ", "  time: "):
        assert sum(line.startswith(start) for line in lines) >= 2, start
    # The classifier's layers are frozen at first, and its first steps say too little.
    after = {before.strip().partition(":")[0]: line for before, line in pairwise(lines)}
    assert after["time"].startswith("  lower layers are still frozen")
    assert any(line.startswith("  about ") for line in lines)
    assert any(
        line.startswith("  epoch 1/1: loss ") and "left of the whole" in line for line in lines
    )


def test_a_log_is_alive_between_epochs(monkeypatch):
    monkeypatch.setattr("ulmfit_fast.runs.outlook._SECONDS", 0.0)
    _, lines = said()
    assert any(line.startswith("  step ") and " of 10, loss " in line for line in lines)


def test_a_preset_for_the_device_is_taken_and_said():
    lines = []
    job = Job(TEXTS, LABELS, device="cpu", say=lines.append)
    assert job.settings()["preset"] == "small"
    assert "one of the preset 'small', for a CPU, is pre-trained" in job._opening()[1]


def test_estimates_cover_every_stage_and_write_nothing(tmp_path):
    out = tmp_path / "out"
    job = Job(TEXTS, LABELS, out=out, refit=True, **QUICK)
    found = job.estimates()
    assert list(found) == STAGES
    assert found["fit_classifier"].epoch_steps == (5, 5)
    assert not out.exists()


def test_sizes_go_by_the_texts_unless_a_recipe_is_published():
    assert Job(TEXTS, LABELS, preset="small").stages["fit_classifier"] == dict(
        zip(("batch_size", "epochs"), classifier_sizes(34), strict=True)
    )
    assert Job(TEXTS, LABELS, preset="paper").stages == {"pretrain": {}, "fit_classifier": {}}
    given = Job(TEXTS, LABELS, preset="small", batch_size=3, epochs=4, lr=0.5, lm_epochs=6).stages
    assert given["fit_classifier"] == {"batch_size": 3, "epochs": 4, "lr": 0.5}
    assert given["pretrain"]["epochs"] == 6


@pytest.mark.parametrize("rows", [1, 30, 100, 600, 5000, 10**6])
def test_a_classifier_takes_enough_steps_wherever_it_can(rows):
    batch_size, epochs = classifier_sizes(rows)
    assert 8 <= batch_size <= 64 and 5 <= epochs <= 20
    assert epochs * rows / batch_size >= 1500 or (batch_size, epochs) == (8, 20)


def test_a_language_model_takes_enough_steps_wherever_it_can():
    for words in (10, 500, 5000, 10**5, 10**7):
        batch_size, epochs = language_model_sizes(words)
        assert epochs * words / (40 * batch_size) >= 1000 or epochs == 20
        assert batch_size == 1 or words >= 2 * 40 * batch_size


def test_too_few_steps_and_texts_are_warned_of():
    found = Job(TEXTS, LABELS, **QUICK).warnings()
    assert any(re.match(r"the classifier takes 10 steps .*, 100 did better", w) for w in found)
    assert not any("steps" in w for w in Job(TEXTS, LABELS, preset="small").warnings())
    (said,) = (w for w in Job(TEXTS, LABELS, **QUICK).warnings() if "steps" in w)
    assert said.endswith("leave batch size and epochs out to take these")
    # A published preset has its own where they are left out.
    found = Job(TEXTS, LABELS, preset="paper", epochs=1).warnings()
    (said,) = (w for w in found if re.match(r"the classifier takes 1 step .*, 1 epoch\)", w))
    assert said.endswith("did better (batch size 8, 20 epochs): pass these two")
    labels = ["raro" if n < 4 else y for n, y in enumerate(LABELS)]
    found = Job(TEXTS, labels, valid=None, **QUICK).warnings()
    assert any("fewer than 10 texts to train on are of 'raro' (4)" in w for w in found)


@pytest.mark.parametrize("epochs", [0, 2.5, True, "3"])
def test_epochs_of_the_language_model_are_named_as_they_are_passed(epochs):
    with pytest.raises(ValueError, match=r"^lm_epochs is "):
        Job(TEXTS, LABELS, lm_epochs=epochs)


def test_what_cannot_be_learnt_is_found_before_the_language_model_trains(monkeypatch):
    monkeypatch.setattr(ULMFiT, "pretrain", None)
    with pytest.raises(ValueError, match="expected at least two classes"):
        Job(TEXTS, ["um"] * 40, **QUICK).run()
    with pytest.raises(ValueError, match="labels that the model does not know, 'outro'"):
        Job(TEXTS, LABELS, valid=(["um texto"], ["outro"]), **QUICK).run()


def test_what_a_table_check_says_is_heard(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    rows = zip(TEXTS, LABELS, strict=True)
    path.write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in rows), encoding="utf-8")

    class Found:
        faults = ()
        warnings = ("two texts are the same",)

    monkeypatch.setattr(data, "check_table", lambda *_, **__: Found, raising=False)
    assert "a.csv: two texts are the same" in Job(path, **QUICK).warnings()
    monkeypatch.setattr(Found, "faults", ("every label is another one",))
    with pytest.raises(ValueError, match="every label is another one"):
        Job(path, **QUICK).run()


def test_a_page_is_written_where_there_is_one(whole, tmp_path, monkeypatch):
    def write(record, path):
        path.write_text(record["version"])

    monkeypatch.setattr(report, "write_run_report", write, raising=False)
    model, _ = said(out=tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_text() == uf.__version__
    model.report.save(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == uf.__version__


def test_the_worst_mistakes_are_shown_with_their_words(whole):
    model, _ = whole
    wrong = model.evaluate(TEXTS, LABELS[::-1]).mistakes
    shown = worst_examples(model, wrong)
    assert len(shown) == 12
    for example, mistake in zip(shown, wrong, strict=False):
        assert (example["text"], example["label"]) == (mistake.text, mistake.label)
        assert example["prediction"] == mistake.predicted
        assert "".join(w["word"] for w in example["words"]) == mistake.text.replace(" ", "")


def test_a_curve_has_some_hundred_points():
    assert len(loss_curve([1.0] * 1234)) == 103
    assert loss_curve([]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": True, "overwrite": True, "out": "x"}, "both asked for"),
        ({"resume": True}, "resume is True without out"),
        ({"refit": True, "valid": None}, "no text is held out"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        uf.train(TEXTS, LABELS, **options)
