"""The demo: its two files say the same, no test sentence was read before, and errors come early."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest

from ulmfit_fast import ULMFiT
from ulmfit_fast.report import Metrics, format_score, scores
from ulmfit_fast.studies import demo as experiment
from ulmfit_fast.studies.baselines import majority_baseline, tfidf_baseline
from ulmfit_fast.studies.demo import run_demo
from ulmfit_fast.studies.docstrings import read_docstrings
from ulmfit_fast.studies.prose import sentence_key
from ulmfit_fast.studies.settings import QUICK
from ulmfit_fast.studies.swapped_words import LABELS, SwapTask

# Packages of the standard library that are read in a second and hold a few hundred sentences. The
# target is among the general ones, too: what is held out must be left out of both.
SETTINGS = replace(
    QUICK,
    general=("asyncio", "email"),
    target=("email",),
    held_out=44,
    label_counts=(20, 60),
    seeds=1,
    model={**QUICK.model, "emb_size": 12, "hidden_size": 16, "num_layers": 2, "max_vocab": 400},
    epochs=(1, 4),
)
METHODS = 6


class Demo(NamedTuple):
    out: Path
    metrics: Metrics
    said: list[str]
    task: SwapTask
    read: dict[str, list[str]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Demo:
    """One run, with a note of the task and of what each stage of the language model reads."""
    out, said, tasks, read = tmp_path_factory.mktemp("demo") / "new" / "out", [], [], {}
    build_task = experiment.build_task

    def noted_task(*args: object, **options: object) -> SwapTask:
        tasks.append(build_task(*args, **options))
        return tasks[-1]

    def noting(stage: str):
        method = getattr(ULMFiT, stage)

        def noted(self: ULMFiT, texts: list[str], **options: object) -> ULMFiT:
            read[stage] = list(texts)
            return method(self, texts, **options)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "build_task", noted_task)
        for stage in ("pretrain", "fine_tune_lm"):
            patch.setattr(ULMFiT, stage, noting(stage))
        metrics = run_demo(out, seed=5, settings=SETTINGS, say=said.append)
    (task,) = tasks
    return Demo(out, metrics, said, task, read)


def table(page: str, heading: str, number: int = 0) -> dict[str, list[str]]:
    """Cells of each row of one table of a section, by the row's head."""
    section = page[page.index(heading) :]
    found = re.findall(r"<tbody>.*?</tbody>", section, re.DOTALL)[number]
    rows = ElementTree.fromstring(found.replace("<br/>", " ")).findall("tr")
    texts = [["".join(cell.itertext()) for cell in row] for row in rows]
    return {head: cells for head, *cells in texts}


@pytest.mark.slow
def test_demo_writes_what_it_returns(demo: Demo) -> None:
    assert sorted(os.listdir(demo.out)) == ["metrics.json", "report.html"]
    assert json.loads((demo.out / "metrics.json").read_text()) == demo.metrics
    assert demo.metrics["seed"] == 5 and demo.metrics["quick"] is False
    assert demo.metrics["settings"]["general"] == ["asyncio", "email"]
    accuracy = demo.metrics["accuracy"]
    runs = {(entry["method"], entry["labels"], entry["seed"]) for entry in accuracy}
    assert len(runs) == len(accuracy) == METHODS * 2
    for entry in accuracy:  # Of 44 test sentences, half of either class.
        assert entry["accuracy"] * 44 == pytest.approx(round(entry["accuracy"] * 44), abs=1e-3)
    assert {e["accuracy"] for e in accuracy if e["method"] == experiment.MAJORITY} == {0.5}


@pytest.mark.slow
def test_confusion_and_examples_are_those_of_the_reported_classifier(demo: Demo) -> None:
    counts = demo.metrics["confusion"]["counts"]
    assert [sum(row) for row in counts] == [22, 22]
    (accuracy,) = (
        entry["accuracy"]
        for entry in demo.metrics["accuracy"]
        if entry["method"] == experiment.SCHEDULE and entry["labels"] == 60
    )
    assert (counts[0][0] + counts[1][1]) / 44 == pytest.approx(accuracy, abs=1e-5)
    examples = demo.metrics["examples"]
    assert [(e["text"], e["label"]) for e in examples] == list(
        zip(demo.task.test_texts, demo.task.test_labels, strict=True)
    )[: len(examples)]
    for example in examples:
        assert max(abs(word["score"]) for word in example["words"]) > 0.3
        # Words of mixed case, and a capital alone, have no mark: their case is lost.
        text = example["text"].replace(" ", "")
        assert "".join(w["word"] for w in example["words"]).lower() == text.lower()
    assert len(examples) >= 10 and all(0.5 <= e["probability"] <= 1 for e in examples)


@pytest.mark.slow
def test_report_has_the_numbers_of_the_metrics(demo: Demo) -> None:
    page = (demo.out / "report.html").read_text(encoding="utf-8")
    assert page.count('class="word for"') > 5 < page.count('class="word against"')
    shown = table(page, "Accuracy by method")
    expected = scores(demo.metrics["accuracy"])
    assert shown == {
        method: [format_score(row[20]), format_score(row[60])] for method, row in expected.items()
    }
    for corpus, cells in table(page, "The language model").items():
        values = [e["perplexity"] for e in demo.metrics["perplexity"] if e["corpus"] == corpus]
        assert cells[:2] == [f"{value:,.1f}" for value in values] and len(values) == 2
    sizes = demo.metrics["corpora"]
    assert table(page, "The language model", 1) == {
        name: [f"{size['documents']:,}", f"{size['tokens']:,}"] for name, size in sizes.items()
    }
    (right, _), (_, swapped) = table(page, "Confusion matrix").values()
    counts = demo.metrics["confusion"]["counts"]
    assert (int(right.split()[0]), int(swapped.split()[0])) == (counts[0][0], counts[1][1])
    assert "Quick run." not in page


@pytest.mark.slow
def test_report_shows_where_each_layer_group_is_unfrozen(demo: Demo) -> None:
    (trace,) = (t for name, t in demo.metrics["lr_traces"].items() if name.startswith("classif"))
    assert trace["groups"] == ["embedding", "layer 1", "layer 2", "head"]
    steps = len(trace["steps"]) // 4
    assert trace["unfreeze_steps"] == [0, steps, 2 * steps, 3 * steps] and steps >= 1
    assert {len(rates) for rates in trace["lrs"]} == {4}
    page = (demo.out / "report.html").read_text(encoding="utf-8")
    shown = ", ".join(map(str, trace["unfreeze_steps"]))
    assert f"embedding, layer 1, layer 2, head, unfrozen at steps {shown}" in page


@pytest.mark.slow
def test_no_language_model_reads_a_test_sentence_or_its_document(demo: Demo) -> None:
    assert set(demo.read) == {"pretrain", "fine_tune_lm"}
    held_out = [sentence_key(sentence) for sentence in demo.task.held_out]
    assert len(held_out) == 44
    corpora = {name: [sentence_key(text) for text in texts] for name, texts in demo.read.items()}
    for name, texts in corpora.items():
        assert len(texts) > 100
        for sentence in held_out:
            assert not any(sentence in text for text in texts), (name, sentence)
    documents = [sentence_key(document.text) for document in read_docstrings("email")]
    own = {text for text in documents if any(sentence in text for sentence in held_out)}
    assert len(own) > 5 and own.isdisjoint(corpora["fine_tune_lm"])
    assert set(corpora["fine_tune_lm"]) < set(documents)
    # What is learned from and what is tested on are apart, too.
    train = {sentence_key(text) for text in demo.task.train_texts}
    assert train.isdisjoint(sentence_key(text) for text in demo.task.test_texts)


# The quick demo with fewer texts and a smaller model; `make examples` runs it as it is.
SHELL = """
from dataclasses import replace
from ulmfit_fast.studies import settings
settings.QUICK = replace(settings.QUICK, **{changes!r})
if __name__ == "__main__":
    from ulmfit_fast.cli.program import main
    main()
"""


@pytest.mark.slow
def test_quick_demo_in_the_shell_is_the_function(demo: Demo, tmp_path: Path) -> None:
    changes = {name: value for name, value in vars(SETTINGS).items() if value != vars(QUICK)[name]}
    # A file, as the demo's workers read again what has started them.
    (tmp_path / "shell.py").write_text(SHELL.format(changes=changes))
    process = subprocess.run(
        [sys.executable, "shell.py", "demo", "--quick", "--seed", "5", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["metrics.json", "report.html"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["quick"] is True
    assert "Quick run." in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for name in ("accuracy", "perplexity", "confusion", "settings"):
        assert metrics[name] == demo.metrics[name]
    for method, row in scores(metrics["accuracy"]).items():
        (line,) = (line for line in process.stdout.splitlines() if f"| {method} " in f"| {line}")
        assert all(format_score(score) in line for score in row.values())
    assert "report.html" in process.stdout and "Traceback" not in process.stderr
    assert "Warning" not in process.stderr


@pytest.fixture
def no_work(monkeypatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("work has begun")

    for name in ("ProcessPoolExecutor", "read_docstrings", "ULMFiT"):
        monkeypatch.setattr(experiment, name, refuse)


@pytest.mark.parametrize("below", ["", "/out", "/deep/out"], ids=["file", "below", "far below"])
def test_unwritable_directory_fails_before_any_work(tmp_path: Path, no_work, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    said: list[str] = []
    with pytest.raises(OSError, match="file"):
        run_demo(f"{tmp_path}/file{below}", settings=SETTINGS, say=said.append)
    assert said == [] and (tmp_path / "file").read_text() == "mine"


def test_read_only_directory_fails_before_any_work(tmp_path: Path, no_work, monkeypatch) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied", options["dir"])

    monkeypatch.setattr(experiment.tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError, match="denied"):
        run_demo(tmp_path, settings=SETTINGS)


def test_rows_of_the_confusion_are_the_truth() -> None:
    truth = ["intact", "intact", "intact", "swapped"]
    run = SimpleNamespace(
        task=SimpleNamespace(test_labels=truth), classifier=SimpleNamespace(labels=LABELS)
    )
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    assert experiment._confusion(run, scores)["counts"] == [[1, 2], [0, 1]]


class Here:
    """A pool without processes."""

    def __init__(self, *args: object, **options: object) -> None:
        self.map = map

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"held_out": 3}, ValueError, "held_out=3 must be even"),
        ({"held_out": 100_000}, ValueError, "pass more documents or ask for fewer"),
        ({"target": ("no_such_package",)}, ModuleNotFoundError, "'no_such_package' is not"),
    ],
    ids=["odd", "too many", "package"],
)  # fmt: skip
def test_failing_demo_leaves_no_file(
    tmp_path: Path, monkeypatch, change, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(experiment, "ProcessPoolExecutor", Here)
    settings = replace(SETTINGS, general=("json",), target=("json",))
    with pytest.raises(error, match=message):
        run_demo(tmp_path, settings=replace(settings, **change))
    assert os.listdir(tmp_path) == []


def test_majority_baseline_answers_the_most_frequent_training_label() -> None:
    assert majority_baseline(["b", "b", "a"], ["b", "a", "a", "a"]) == 0.25
    assert majority_baseline(["b", "a"], ["a", "b", "a"]) == pytest.approx(2 / 3), "first in a tie"
    assert majority_baseline(["b"], ["a"]) == 0.0


def test_tfidf_sees_pairs_of_words_and_punctuation() -> None:
    texts = ["it was a film, a fine one", "a film it was, a fine one"] * 10
    labels = ["intact", "swapped"] * 10
    assert tfidf_baseline(texts, labels, texts, labels) == 1.0
    assert tfidf_baseline(texts, labels, texts, labels, ngrams=(1, 1)) == 0.5
    assert tfidf_baseline(["so a", "so b"], ["x", "y"], ["so a", "so b"], ["x", "y"]) == 1.0
    assert tfidf_baseline(["yes !", "yes ."], ["x", "y"], ["yes .", "yes !"], ["x", "y"]) == 0.0


def test_tfidf_without_scikit_learn_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ModuleNotFoundError, match="scikit-learn is not installed; pip install"):
        tfidf_baseline(["a"], ["x"], ["a"], ["x"])
