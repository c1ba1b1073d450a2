"""The demo: the whole of ULMFiT on the docstrings of this machine, each stage beside the last."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from ulmfit_fast.report import (
    Accuracy,
    Example,
    Json,
    LrTrace,
    Metrics,
    Perplexity,
    WordScore,
    write_report,
)
from ulmfit_fast.serving.saliency import explain
from ulmfit_fast.studies.ablation_plan import MAJORITY, PRETRAINED, SCRATCH, TFIDF
from ulmfit_fast.studies.baselines import majority_baseline, tfidf_baseline
from ulmfit_fast.studies.docstrings import read_docstrings
from ulmfit_fast.studies.settings import FULL, QUICK, DemoSettings
from ulmfit_fast.studies.swapped_words import LABELS, SwapTask, build_task, without_sentences
from ulmfit_fast.studies.tasks import split_off
from ulmfit_fast.system.files import user_path, write_text
from ulmfit_fast.system.locks import directory_lock
from ulmfit_fast.system.machine import machine
from ulmfit_fast.system.version import __version__
from ulmfit_fast.training.state import History
from ulmfit_fast.ulmfit.estimator import ULMFiT
from ulmfit_fast.ulmfit.record import loss_curve

__all__ = ["run_demo"]

_log = logging.getLogger("ulmfit_fast")

FINE_TUNED = "+ LM fine-tuned"
SCHEDULE = "+ ULMFiT schedule"

_EXAMPLES = 12
_MOST_WORKERS = 6


class _Run:
    """One run of the demo; its methods are the stages, in order."""

    def __init__(
        self,
        settings: DemoSettings,
        seed: int,
        progress: bool,
        say: Callable[[str], None],
        pool: Executor,
    ) -> None:
        self.settings, self.seed, self.progress, self.say = settings, seed, progress, say
        self.pool = pool
        self.seconds: dict[str, float] = {}
        self.tokens_per_second: dict[str, float] = {}
        self.perplexities: list[Perplexity] = []
        self.accuracies: list[Accuracy] = []

    def timed(self, stage: str, function: Callable[[], Any]) -> Any:
        self.say(f"{stage} ...")
        start = time.perf_counter()
        result = function()
        self.seconds[stage] = round(time.perf_counter() - start, 1)
        return result

    def read(self) -> None:
        """Read both corpora; nothing that a language model reads has a test sentence in it."""
        packages = (*self.settings.general, *self.settings.target)
        documents = dict(zip(packages, self.pool.map(read_docstrings, packages), strict=True))
        general = [d for name in self.settings.general for d in documents[name]]
        target = [d for name in self.settings.target for d in documents[name]]
        self.task: SwapTask = build_task(
            target,
            held_out=self.settings.held_out,
            train=max(self.settings.label_counts),
            seed=self.seed,
        )
        general = without_sentences(general, self.task.held_out)
        self.general = split_off([document.text for document in general])
        self.target = split_off([document.text for document in self.task.lm_documents])

    def pretrain(self) -> None:
        """Stage 1 on the general corpus."""
        model = ULMFiT(**self.settings.model, seed=self.seed, progress=self.progress)
        self.pretrained = model.pretrain(self.general[0], **self.settings.pretrain)
        self._record_speed("pretrain", self.pretrained)

    def fine_tune(self) -> None:
        """Stage 2 on the target corpus, its perplexities measured in one vocabulary."""
        texts, _ = self.target
        # Before and after are comparable in one vocabulary only: that of the target corpus.
        self.pretrained.use_vocabulary_of(texts)
        self._record_perplexities("before", self.pretrained)
        self.fine_tuned = self.pretrained.copy().fine_tune_lm(texts, **self.settings.fine_tune)
        self._record_perplexities("after", self.fine_tuned)
        self._record_speed("fine_tune_lm", self.fine_tuned)

    def _record_perplexities(self, when: str, model: ULMFiT) -> None:
        for corpus, (_, held_out) in (("general", self.general), ("target", self.target)):
            value = model.perplexity(held_out)
            self.perplexities.append(Perplexity(corpus=corpus, when=when, perplexity=value))

    def _record_speed(self, stage: str, model: ULMFiT) -> None:
        epochs = model.histories[stage].epochs
        count, seconds = sum(e.items for e in epochs), sum(e.seconds for e in epochs)
        self.tokens_per_second[stage] = round(count / seconds)

    def classify(self) -> None:
        """Stage 3, for every number of labels, seed and method: independent fits, one a core."""
        jobs = [
            _Job(method, labels, epochs, seed)
            for labels, epochs in zip(self.settings.label_counts, self.settings.epochs, strict=True)
            for seed in range(self.settings.seeds)
            for method in (SCRATCH, PRETRAINED, FINE_TUNED, SCHEDULE)
        ]
        # The long ones first, so that no core idles at the end.
        jobs.sort(key=lambda job: -job.labels * job.epochs)
        with tempfile.TemporaryDirectory() as models:
            self.pretrained.save(Path(models, PRETRAINED))
            self.fine_tuned.save(Path(models, FINE_TUNED))
            work = _Work(models, self.task, self.settings, self.seed)
            results = {}
            for job, (accuracy, classifier) in zip(jobs, self.pool.map(work, jobs), strict=True):
                results[job] = accuracy
                self.say(f"  {job.labels} labels, seed {job.seed}, {job.method}: {accuracy:.1%}")
                if classifier is not None:
                    self.classifier = classifier
        for job in sorted(results, key=lambda job: (job.labels, job.seed)):
            self._record_accuracy(job.method, job.labels, job.seed, results[job])
        self._baselines()

    def _baselines(self) -> None:
        test = self.task.test_texts, self.task.test_labels
        for labels in self.settings.label_counts:
            for seed in range(self.settings.seeds):
                texts, targets = self.task.subset(labels, seed=self.seed + seed)
                tfidf = tfidf_baseline(texts, targets, *test)
                self._record_accuracy(TFIDF, labels, seed, tfidf)
                majority = majority_baseline(targets, self.task.test_labels)
                self._record_accuracy(MAJORITY, labels, seed, majority)

    def _record_accuracy(self, method: str, labels: int, seed: int, accuracy: float) -> None:
        self.accuracies.append(
            Accuracy(method=method, labels=labels, seed=seed, accuracy=round(accuracy, 5))
        )


class _Job(NamedTuple):
    """One classifier to fit."""

    method: str
    labels: int
    epochs: int
    seed: int


@dataclass(frozen=True)
class _Work:
    """Fits one classifier in a worker process."""

    models: str
    task: SwapTask
    settings: DemoSettings
    seed: int

    def __call__(self, job: _Job) -> tuple[float, ULMFiT | None]:
        """Return the accuracy on the test sentences, and the classifier that the report shows."""
        texts, targets = self.task.subset(job.labels, seed=self.seed + job.seed)
        start = PRETRAINED if job.method in (SCRATCH, PRETRAINED) else FINE_TUNED
        model = ULMFiT.load(Path(self.models, start), device="cpu", progress=False)
        if job.method == SCRATCH:
            model.language_model = None
        model.seed = self.seed + 1000 * (job.seed + 1)
        settings = self.settings.schedule if job.method == SCHEDULE else self.settings.plain
        model.fit_classifier(texts, targets, epochs=job.epochs, **settings)
        predictions = model.predict(self.task.test_texts)
        right = [p == t for p, t in zip(predictions, self.task.test_labels, strict=True)]
        shown = _Job(SCHEDULE, max(self.settings.label_counts), job.epochs, 0)
        return sum(right) / len(right), model if job == shown else None


def run_demo(
    out: str | os.PathLike[str],
    *,
    quick: bool = False,
    seed: int = 0,
    progress: bool = True,
    settings: DemoSettings | None = None,
    say: Callable[[str], None] = _log.info,
) -> Metrics:
    """Run the demo and write `metrics.json` and `report.html`.

    Args:
        out: directory for the two files, created when missing.
        quick: a small model, corpus and table, to see it work within a minute.
        seed: fixes the split, the models and the order of the texts.
        progress: show progress bars on a terminal.
        settings: what to run instead of the full or the quick demo.
        say: called with each line of progress.

    Returns:
        What was measured.

    Raises:
        ModuleNotFoundError: if a package whose docstrings are read is not installed.
        FileExistsError: if another process writes into the directory.
        OSError: if the files cannot be written; known before any training.
    """
    directory = user_path(out).resolve()
    settings = settings or (QUICK if quick else FULL)
    with directory_lock(directory):
        tempfile.TemporaryFile(dir=directory).close()
        return _measured(directory, settings, quick, seed, progress, say)


def _measured(
    directory: Path,
    settings: DemoSettings,
    quick: bool,
    seed: int,
    progress: bool,
    say: Callable[[str], None],
) -> Metrics:
    start = time.perf_counter()
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    # Forking would copy the running threads' locks; a spawned worker starts clean.
    context = multiprocessing.get_context("spawn")
    one_thread: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(workers, mp_context=context, **one_thread) as pool:
        run = _Run(settings, seed, progress, say, pool)
        run.timed("read the docstrings", run.read)
        run.timed("pre-train", run.pretrain)
        run.timed("fine-tune the language model", run.fine_tune)
        run.timed("fit the classifiers", run.classify)
    run.seconds["total"] = round(time.perf_counter() - start, 1)
    metrics = _metrics(run, quick)
    write_text(directory / "metrics.json", json.dumps(metrics, indent=1))
    write_report(metrics, directory / "report.html")
    return metrics


def _metrics(run: _Run, quick: bool) -> Metrics:
    curve: Any = loss_curve
    histories = {**run.fine_tuned.histories, **run.classifier.histories}
    probabilities = run.classifier.predict_proba(run.task.test_texts)
    return Metrics(
        version=__version__,
        seed=run.seed,
        quick=quick,
        machine=cast("dict[str, Json]", machine()),
        settings=cast("dict[str, Json]", json.loads(json.dumps(asdict(run.settings)))),
        seconds=run.seconds,
        tokens_per_second=run.tokens_per_second,
        corpora={
            "general": _size(run.pretrained, run.general[0]),
            "target": _size(run.fine_tuned, run.target[0]),
        },
        perplexity=run.perplexities,
        lm_curves={
            "pretrain": curve(histories["pretrain"].losses),
            "fine_tune": curve(histories["fine_tune_lm"].losses),
        },
        lr_traces={
            "language-model fine-tuning": _trace(histories["fine_tune_lm"], lm=True),
            f"classifier, {max(run.settings.label_counts):,} labels": _trace(
                histories["fit_classifier"], lm=False
            ),
        },
        accuracy=run.accuracies,
        confusion=_confusion(run, probabilities),
        examples=_examples(run),
    )


def _size(model: ULMFiT, texts: Sequence[str]) -> Any:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    return {"documents": len(texts), "tokens": sum(map(len, tokenizer.encode_batch(texts)))}


def _trace(history: History, *, lm: bool) -> LrTrace:
    count = len(history.lrs[0])
    layers = [f"layer {i}" for i in range(1, count if lm else count - 1)]
    return LrTrace(
        groups=["embedding", *layers] if lm else ["embedding", *layers, "head"],
        steps=list(range(len(history.lrs))),
        lrs=history.lrs.tolist(),
        unfreeze_steps=history.unfreeze_steps,
    )


def _confusion(run: _Run, probabilities: np.ndarray[Any, Any]) -> Any:
    names = list(LABELS)
    counts = [[0] * len(names) for _ in names]
    for truth, row in zip(run.task.test_labels, probabilities, strict=True):
        prediction = str(run.classifier.labels[int(row.argmax())])
        counts[names.index(truth)][names.index(prediction)] += 1
    return {"labels": names, "counts": counts}


def _examples(run: _Run) -> list[Example]:
    explained = explain(run.classifier, run.task.test_texts[:_EXAMPLES])
    return [
        Example(
            text=found.text,
            label=label,
            prediction=str(found.label),
            probability=round(found.probability, 3),
            words=[WordScore(word=word.token, score=round(word.score, 3)) for word in found.words],
        )
        for found, label in zip(explained, run.task.test_labels, strict=False)
    ]
