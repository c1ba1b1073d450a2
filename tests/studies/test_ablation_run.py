"""The ablation from task to table, at tiny sizes, stopped in the middle and gone on with."""

import csv
import json
import re

import pytest
import torch
from typer.testing import CliRunner

from ulmfit_fast.cli.program import app
from ulmfit_fast.studies import ablation as ablation_run
from ulmfit_fast.studies.ablation import run_ablation
from ulmfit_fast.studies.ablation_plan import (
    CLASSIFIER,
    CLASSIFIER_WAYS,
    LANGUAGE_MODEL,
    LM_WAYS,
    TFIDF,
    ULMFIT_LM,
    ULMFIT_WAY,
    AblationSettings,
    Job,
    jobs,
)
from ulmfit_fast.studies.ablation_tables import Row, RowFile, format_ablation, plot_ablation
from ulmfit_fast.studies.tasks import Task

GOOD, BAD = "what a fine and moving film", "a long and very dull evening"


def texts(count):
    return [f"{(GOOD, BAD)[i % 2]} number {i % 7}" for i in range(count)]


@pytest.fixture(scope="module")
def task():
    labels = ["good", "bad"]
    return Task(
        "films",
        texts(40),
        [labels[i % 2] for i in range(40)],
        texts(20),
        [labels[i % 2] for i in range(20)],
        texts(80),
        texts(81),
    )


def small(**changes):
    options = {
        "model": {"emb_size": 8, "hidden_size": 8, "num_layers": 1, "min_freq": 1},
        "pretrain": {"epochs": 1, "lr": 1e-2, "batch_size": 4, "bptt": 10},
        "fine_tune": {"epochs": 1, "lr": 1e-2, "batch_size": 4, "bptt": 10},
        "epochs": {8: 1, 16: 1},
        "rates": (1e-3, 1e-2),
        "batch_size": 4,
        "seeds": 1,
        "validation": 8,
        "ways": ("full", "last layer"),
    }
    return AblationSettings(**{**options, **changes})


def test_every_question_has_its_jobs():
    listed = jobs(AblationSettings())
    assert len(listed) == len(set(listed))
    at = {(job.start, job.way) for job in listed if job.labels == 100 and job.seed == 0}
    assert {way for start, way in at if start == ULMFIT_LM} == set(CLASSIFIER_WAYS)
    assert {start for start, way in at if way == ULMFIT_WAY} == {
        "from scratch",
        "pre-trained",
        *LM_WAYS,
    }
    assert {job.seed for job in listed} == {0, 1, 2}


def test_arguments_of_the_ways():
    settings = AblationSettings()
    full = settings.lm_arguments("full")
    assert (full["schedule"], full["factor"], full["lr"]) == ("constant", 1.0, 2e-3)
    assert settings.lm_arguments(ULMFIT_LM) == settings.fine_tune
    assert settings.classifier_arguments("last layer", 300, 0.01) == {
        "epochs": 10,
        "lr": 0.01,
        "batch_size": 32,
        "schedule": "constant",
        "factor": 1.0,
        "gradual_unfreezing": 10,
    }
    assert settings.classifier_arguments(ULMFIT_WAY, 300, 0.01)["gradual_unfreezing"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": ("half",)}, "ways has 'half', expected some of full"),
        ({"seeds": 0}, "seeds is 0"),
        ({"rates": ()}, "epochs and rates are empty"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        AblationSettings(**changes)


def test_all_ways_run(task, tmp_path):
    settings = small(ways=tuple(CLASSIFIER_WAYS), epochs={8: 2})
    rows = run_ablation(task, tmp_path, settings, workers=1)
    models = [row for row in rows if row.kind == LANGUAGE_MODEL]
    assert {row.way for row in models} == {"pre-trained", *LM_WAYS}
    assert all(row.general_perplexity > 1 and row.target_perplexity > 1 for row in models)
    fitted = [row for row in rows if row.kind == CLASSIFIER]
    assert len(fitted) == len(jobs(settings))
    assert all(0 <= row.accuracy <= 1 and row.lr in settings.rates for row in fitted)
    # An encoder that was not trained still knows all that the language model knew.
    before = next(row for row in models if row.way == ULMFIT_LM)
    last = next(row for row in fitted if row.way == "last layer")
    assert last.general_perplexity == pytest.approx(before.general_perplexity, rel=1e-4)
    full = next(row for row in fitted if (row.start, row.way) == (ULMFIT_LM, "full"))
    assert full.general_perplexity != pytest.approx(before.general_perplexity, rel=1e-4)
    scratch = next(row for row in fitted if row.start == "from scratch")
    assert scratch.general_perplexity is None
    tfidf = next(row for row in rows if row.way == TFIDF)
    assert tfidf.accuracy == 1.0


def test_the_smallest_rate_that_does_best_on_the_validation_texts_is_kept(
    task, tmp_path, monkeypatch
):
    settings, score = small(rates=(1e-3, 1e-2, 1e-1)), {1e-3: 0.4, 1e-2: 0.8, 1e-1: 0.8}

    def accuracy(rate, texts, labels):
        # The test texts would have it otherwise.
        return score[rate] if len(texts) == settings.validation else 1 - score[rate]

    monkeypatch.setattr(ablation_run, "_accuracy", accuracy)
    monkeypatch.setattr(ablation_run._Run, "_fitted", lambda self, job, lr: (lr, 1.0))
    monkeypatch.setattr(ablation_run._Run, "_retained_perplexities", lambda *_: (None, None))
    run = ablation_run._Run(task, tmp_path, settings, 0, "cpu")
    rows = run.classify([Job("pre-trained", ULMFIT_WAY, 8, seed) for seed in (0, 1)])
    assert [(row.seed, row.lr) for row in rows] == [(0, 1e-2), (1, 1e-2)]


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """The rows of a run in one process that nothing stopped."""
    return run_ablation(task, tmp_path_factory.mktemp("whole"), small(ways=()), workers=1)


def test_a_stopped_run_goes_on(task, whole, tmp_path, monkeypatch):
    settings, fitted = small(ways=()), ablation_run._Run.classify
    calls = []

    def interrupted(self, group):
        calls.append(group)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fitted(self, group)

    monkeypatch.setattr(ablation_run._Run, "classify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(task, tmp_path / "a", settings, workers=1)
    path = tmp_path / "a" / "ablation_films.csv"
    begun = path.read_text()
    # As a run that was killed in the middle of a line leaves it.
    path.write_text(begun + "films,classifier,pre-tr")
    monkeypatch.setattr(ablation_run._Run, "classify", fitted)
    monkeypatch.setattr(ablation_run._Run, "pretrain", lambda self, say: None)
    rows = run_ablation(task, tmp_path / "a", settings, workers=1)

    def values(rows):
        return [(row.key, row.lr, row.accuracy, row.target_perplexity) for row in rows]

    assert values(rows) == values(whole)
    assert {line.rsplit(",", 1)[0] for line in begun.splitlines()} <= {
        line.rsplit(",", 1)[0] for line in path.read_text().splitlines()
    }


@pytest.mark.slow
def test_processes_give_the_same_rows(task, whole, tmp_path):
    rows = run_ablation(task, tmp_path, small(ways=()), workers=2)
    assert [(row.key, row.accuracy, row.lr) for row in rows] == [
        (row.key, row.accuracy, row.lr) for row in whole
    ]


def test_another_run_is_not_mixed_in(task, tmp_path):
    settings = small(epochs={8: 1}, rates=(1e-2,), ways=())
    run_ablation(task, tmp_path, settings, workers=1)
    with pytest.raises(ValueError, match=r"a run with another seeds .* choose another directory"):
        run_ablation(task, tmp_path, small(epochs={8: 1}, rates=(1e-2,), ways=(), seeds=2))


def test_too_few_texts_are_refused_before_any_work(task, tmp_path):
    with pytest.raises(ValueError, match="need 48 labelled texts, the task films has 40"):
        run_ablation(task, tmp_path, small(epochs={40: 1}))
    assert not (tmp_path / "models_films").exists()


def row(**changes):
    values = {
        "task": "films",
        "kind": CLASSIFIER,
        "start": ULMFIT_LM,
        "way": ULMFIT_WAY,
        "labels": 100,
        "seed": 0,
        "lr": 0.01,
        "accuracy": 0.5,
        "general_perplexity": None,
        "target_perplexity": None,
        "seconds": 1.5,
    }
    return Row(**{**values, **changes})


def test_rows_survive_the_file(tmp_path):
    file = RowFile(tmp_path / "rows.csv")
    rows = [row(), row(seed=1, general_perplexity=12.25), row(way='a, "b"', labels=3)]
    for one in rows:
        file.append(one)
    again = RowFile(tmp_path / "rows.csv")
    assert again.rows == rows and rows[1].key in again
    assert row(seed=7).key not in again


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected those of the ablation"):
        RowFile(path)
    RowFile(tmp_path / "good.csv").append(row())
    text = (tmp_path / "good.csv").read_text().replace(",100,", ",many,")
    path.write_text(text)
    with pytest.raises(ValueError, match="line 2: invalid literal"):
        RowFile(path)


def test_tables_say_what_the_rows_say(tmp_path):
    rows = [row(seed=seed, accuracy=0.5 + seed / 10) for seed in (0, 1, 2)]
    rows += [row(start="", way=TFIDF, kind="baseline", accuracy=0.4)]
    rows += [row(way="full", accuracy=0.25, general_perplexity=90.0, target_perplexity=80.0)]
    rows += [
        row(kind=LANGUAGE_MODEL, start="pre-trained", way=way, labels=0, accuracy=None,
            general_perplexity=value, target_perplexity=2 * value)
        for way, value in (("pre-trained", 70.0), ("full", 75.5))
    ]  # fmt: skip
    table = format_ablation(rows)
    lines = [re.sub(" +", " ", line) for line in table.splitlines()]
    assert "| + LM fine-tuned, discr + STLR | 60.0 ± 10.0 |" in lines
    assert f"| {TFIDF} | 40.0 |" in lines
    assert "| full | 25.0 |" in lines
    assert "| LM fine-tuned, full | 75.5 | 151.0 |" in lines
    assert "| encoder of the classifier, full | 90.0 | 80.0 |" in lines
    assert not any(line.startswith("| chain-thaw") for line in lines)
    plot_ablation(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="rows are of the tasks"):
        format_ablation([row(), row(task="other")])


def command(*args):
    return CliRunner().invoke(app, ["ablate", *map(str, args)])


def test_the_command_on_files_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ulmfit_fast.studies.ablation_plan.AblationSettings", lambda: small(seeds=1)
    )
    with (tmp_path / "films.csv").open("w", newline="") as file:
        labelled = [(text, "good" if "fine" in text else "bad") for text in texts(100)]
        labelled = [(f"{text} {i}", label) for i, (text, label) in enumerate(labelled)]
        csv.writer(file).writerows([("text", "label"), *labelled])
    (tmp_path / "general.txt").write_text("\n".join(f"{t} and more" for t in texts(120)))
    out = tmp_path / "out"
    options = ("--task", tmp_path / "films.csv", "--general", tmp_path / "general.txt")
    sizes = ("--emb-size", 8, "--hidden-size", 8, "--test", 10, "--seeds", 1, "--labels", "8")
    result = command(*options, *sizes, "--out", out, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout == (out / "ablation_films.md").read_text()
    assert (out / "ablation_films.png").exists()
    settings = json.loads((out / "ablation_films.json").read_text())
    assert settings["epochs"] == {"8": 1} and settings["texts"]["test"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "nothing.csv"), "--task is 'nothing.csv', expected one of swap"),
        (("--task", "types", "--general", "a.txt"), "--general and --target are for a task"),
        (("--labels", "many"), "--labels is 'many', expected numbers such as"),
        (("--labels", "1"), "--labels is '1', expected numbers such as"),
    ],
)
def test_wrong_options_end_in_one_line(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(*options)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_the_threads_of_the_caller_stay(task, tmp_path, monkeypatch):
    """Also where the caller is itself a process that another one started."""
    monkeypatch.setattr(ablation_run.multiprocessing, "parent_process", object)
    run = ablation_run._Run(task, tmp_path, small(), 0, "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        run.pretrain(print)
        run.fine_tune((ablation_run.PRETRAINED, 0))
        run.classify([Job("pre-trained", "full", 8, 0)])
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
