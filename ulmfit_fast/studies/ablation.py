"""Run the ablation: one pre-training, then every way to go on from there, each on its own."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ulmfit_fast.studies.ablation_plan import (
    BASELINE,
    CLASSIFIER,
    LANGUAGE_MODEL,
    LM_WAYS,
    MAJORITY,
    PRETRAINED,
    SCRATCH,
    TFIDF,
    AblationSettings,
    Job,
    jobs,
)
from ulmfit_fast.studies.ablation_tables import Row, RowFile
from ulmfit_fast.studies.baselines import majority_baseline, tfidf_baseline
from ulmfit_fast.studies.tasks import Task
from ulmfit_fast.system.files import user_path, write_text
from ulmfit_fast.system.locks import directory_lock
from ulmfit_fast.ulmfit.estimator import ULMFiT
from ulmfit_fast.ulmfit.settings import checked_device

__all__ = ["run_ablation"]

_log = logging.getLogger("ulmfit_fast")


def run_ablation(
    task: Task,
    out: str | os.PathLike[str],
    settings: AblationSettings | None = None,
    *,
    seed: int = 0,
    device: str | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = _log.info,
) -> list[Row]:
    """Measure what each part of ULMFiT brings on a task.

    A run that was stopped goes on where it was: its rows and models are in the directory.

    Args:
        task: what to learn.
        out: directory for the rows (`ablation_<task>.csv`), the settings beside them and the
            models, created when missing.
        settings: what to compare; None for the defaults.
        seed: of the pre-training, and added to the others.
        device: "cpu", "cuda" or None for CUDA where there is any.
        workers: processes at a time; None is one for each core on a CPU, and one on a GPU.
        say: called with each line of progress.

    Returns:
        All rows.

    Raises:
        FileExistsError: if another process writes into the directory.
        ValueError: if the directory holds a run of other settings, or the task has too few texts.
        OSError: if the directory cannot be written.
    """
    settings = settings or AblationSettings()
    device = checked_device(device)
    directory = user_path(out).resolve()
    needed = max(settings.epochs) + settings.validation
    if needed > len(task.train_texts):
        raise ValueError(
            f"{max(settings.epochs)} labels and {settings.validation} texts to choose the rate on "
            f"need {needed} labelled texts, the task {task.name} has {len(task.train_texts)}; ask "
            "for fewer"
        )
    with directory_lock(directory):
        return _measured(task, directory, settings, seed, device, workers, say)


def _measured(
    task: Task,
    directory: Path,
    settings: AblationSettings,
    seed: int,
    device: str,
    workers: int | None,
    say: Callable[[str], None],
) -> list[Row]:
    _check_settings(directory / f"ablation_{task.name}.json", task, settings, seed)
    rows = RowFile(directory / f"ablation_{task.name}.csv")
    run = _Run(task, directory / f"models_{task.name}", settings, seed, device)
    if workers is None:
        workers = (os.cpu_count() or 1) if device == "cpu" else 1
    with _pool(workers) as pool:
        run.pretrain(say)
        _measure(run.fine_tune, run.missing_fine_tunings(rows), rows, pool, say)
        _measure(run.classify, run.missing_jobs(rows), rows, pool, say)
    for row in run.baselines():
        if row.key not in rows:
            rows.append(row)
    rows.sort()
    return rows.rows


def _check_settings(path: Path, task: Task, settings: AblationSettings, seed: int) -> None:
    """Keep rows of different settings apart."""
    own = json.loads(json.dumps({"task": task.name, "seed": seed, **asdict(settings)}))
    own["texts"] = {
        "labelled": len(task.train_texts),
        "test": len(task.test_texts),
        "general": len(task.general),
        "target": len(task.target),
    }
    if path.exists():
        other = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(name for name in own if other.get(name) != own[name])
        if differing:
            raise ValueError(
                f"{path} is of a run with another {differing[0]} ({other.get(differing[0])!r:.80}, "
                f"now {own[differing[0]]!r:.80}); choose another directory"
            )
        return
    write_text(path, json.dumps(own, indent=1) + "\n")


def _pool(workers: int) -> AbstractContextManager[Executor | None]:
    if workers == 1:
        return nullcontext()
    # Forking would copy the running threads' locks; a spawned worker starts clean.
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )


def _measure(
    function: Callable[[Any], list[Row]],
    work: Sequence[Any],
    rows: RowFile,
    pool: Executor | None,
    say: Callable[[str], None],
) -> None:
    results: Iterable[list[Row]] = map(function, work)
    if pool is not None:
        futures = [pool.submit(function, piece) for piece in work]
        results = (future.result() for future in as_completed(futures))
    try:
        for done, measured in enumerate(results, 1):
            for row in measured:
                rows.append(row)
                say(f"  {done}/{len(work)} {_described(row)}")
    except BaseException:
        if pool is not None:
            # What has not begun need not be waited for.
            pool.shutdown(wait=False, cancel_futures=True)
        raise


def _described(row: Row) -> str:
    if row.kind == LANGUAGE_MODEL:
        return (
            f"language model, {row.way}, seed {row.seed}: perplexity "
            f"{row.general_perplexity:.1f} on general, {row.target_perplexity:.1f} on target text"
        )
    return f"{row.labels} labels, {row.start} | {row.way}, seed {row.seed}: {row.accuracy:.1%}"


@dataclass(frozen=True)
class _Run:
    """Everything that a worker process needs; its methods are the pieces of work."""

    task: Task
    models: Path
    settings: AblationSettings
    seed: int
    device: str

    def pretrain(self, say: Callable[[str], None]) -> None:
        """Stage 1, once; in the vocabulary of the target, so that perplexities compare."""
        if (self.models / PRETRAINED).exists():
            return
        say("pre-train ...")
        model = ULMFiT(**self.settings.model, seed=self.seed, device=self.device)
        model.pretrain(self.task.general_split()[0], **self.settings.pretrain)
        model.use_vocabulary_of(self.task.target_split()[0])
        model.save(self.models / PRETRAINED)

    def missing_fine_tunings(self, rows: RowFile) -> list[tuple[str, int]]:
        """List the ways and seeds that have no row or no model."""
        return [
            (way, seed)
            for seed in range(self.settings.seeds)
            for way in (PRETRAINED, *LM_WAYS)
            if not (way == PRETRAINED and seed)
            and not (
                self._lm_row(way, seed, 0.0, None, 0.0).key in rows
                and (self.models / _start_directory(way, seed)).exists()
            )
        ]

    def fine_tune(self, work: tuple[str, int]) -> list[Row]:
        """Stage 2 in one way; the untouched model is measured as well."""
        way, seed = work
        model = self._load(PRETRAINED)
        seconds = 0.0
        arguments: dict[str, Any] = {"lr": 0.0}
        if way != PRETRAINED:
            model.seed = self.seed + seed
            arguments = self.settings.lm_arguments(way)
            start = time.perf_counter()
            model.fine_tune_lm(self.task.target_split()[0], **arguments)
            seconds = time.perf_counter() - start
            model.save(self.models / _start_directory(way, seed))
        return [self._lm_row(way, seed, arguments["lr"], model, seconds)]

    def _lm_row(self, way: str, seed: int, lr: float, model: ULMFiT | None, seconds: float) -> Row:
        general, target = (None, None) if model is None else self._perplexities(model)
        return Row(
            self.task.name, LANGUAGE_MODEL, PRETRAINED, way, 0, seed, lr, None, general, target,
            round(seconds, 1),
        )  # fmt: skip

    def _perplexities(self, model: ULMFiT) -> tuple[float, float]:
        general, target = self.task.general_split()[1], self.task.target_split()[1]
        return round(model.perplexity(general), 3), round(model.perplexity(target), 3)

    def missing_jobs(self, rows: RowFile) -> list[list[Job]]:
        """Group the jobs that share a choice of rate, the longest first, without what is done."""
        groups: dict[tuple[str, str, int], list[Job]] = {}
        for job in jobs(self.settings):
            groups.setdefault((job.start, job.way, job.labels), []).append(job)
        open_groups = [
            group
            for group in groups.values()
            if any(self._classifier_key(job) not in rows for job in group)
        ]
        return sorted(open_groups, key=lambda g: -g[0].labels * self.settings.epochs[g[0].labels])

    def _classifier_key(self, job: Job) -> tuple[str, str, str, str, int, int]:
        return (self.task.name, CLASSIFIER, job.start, job.way, job.labels, job.seed)

    def classify(self, group: list[Job]) -> list[Row]:
        """Stage 3 in one way, for all seeds; the rate is chosen on the first of them."""
        first = group[0]
        validation = self._validation(first)
        tried = [(self._fitted(first, lr), lr) for lr in self.settings.rates]
        # At equal accuracy the smaller rate, which is the safer one for other seeds.
        scores = [(_accuracy(model, *validation), -lr) for (model, _), lr in tried]
        lr = -max(scores)[1]
        rows = []
        for job in group:
            (model, seconds) = (
                tried[self.settings.rates.index(lr)][0] if job is first else self._fitted(job, lr)
            )
            general, target = self._retained_perplexities(model, job)
            accuracy = _accuracy(model, self.task.test_texts, self.task.test_labels)
            rows.append(
                Row(
                    self.task.name, CLASSIFIER, job.start, job.way, job.labels, job.seed, lr,
                    round(accuracy, 5), general, target, round(seconds, 1),
                )
            )  # fmt: skip
        return rows

    def _validation(self, job: Job) -> tuple[list[str], list[str]]:
        """Return labelled texts that the job does not learn from."""
        most = max(self.settings.epochs) + self.settings.validation
        texts, labels = self.task.subset(most, seed=self.seed + job.seed)
        return texts[-self.settings.validation :], labels[-self.settings.validation :]

    def _fitted(self, job: Job, lr: float) -> tuple[ULMFiT, float]:
        texts, labels = self.task.subset(job.labels, seed=self.seed + job.seed)
        if len(set(labels)) < 2:
            raise ValueError(
                f"the {job.labels} labels drawn with seed {job.seed} are all {labels[0]!r}, "
                "expected two or more; ask for more labels"
            )
        model = self._load(_start_directory(job.start, job.seed))
        if job.start == SCRATCH:
            model.language_model = None
        model.seed = self.seed + 1000 * (job.seed + 1)
        start = time.perf_counter()
        model.fit_classifier(
            texts, labels, **self.settings.classifier_arguments(job.way, job.labels, lr)
        )
        return model, time.perf_counter() - start

    def _retained_perplexities(self, model: ULMFiT, job: Job) -> tuple[float | None, float | None]:
        """Put the classifier's encoder under the language model's decoder, to see what it knows."""
        if job.start == SCRATCH:
            return None, None
        copied = model.copy()
        assert copied.language_model is not None and copied.classifier is not None
        copied.language_model.encoder.load_state_dict(copied.classifier.encoder.state_dict())
        return self._perplexities(copied)

    def _load(self, name: str) -> ULMFiT:
        return ULMFiT.load(self.models / name, device=self.device, progress=False)

    def baselines(self) -> list[Row]:
        """Score what needs no language model."""
        test = self.task.test_texts, self.task.test_labels
        rows = []
        for labels in self.settings.epochs:
            for seed in range(self.settings.seeds):
                texts, own = self.task.subset(labels, seed=self.seed + seed)
                scores = {
                    TFIDF: tfidf_baseline(texts, own, *test, ngrams=self.task.ngrams),
                    MAJORITY: majority_baseline(own, test[1]),
                }
                rows += [
                    Row(self.task.name, BASELINE, "", way, labels, seed, 0.0, round(score, 5),
                        None, None, 0.0)
                    for way, score in scores.items()
                ]  # fmt: skip
        return rows


def _start_directory(start: str, seed: int) -> str:
    """Name the directory of the model that a classifier starts from."""
    return f"{start} {seed}" if start in LM_WAYS else PRETRAINED


def _accuracy(model: ULMFiT, texts: Sequence[str], labels: Sequence[str]) -> float:
    predictions = model.predict(texts)
    return sum(p == label for p, label in zip(predictions, labels, strict=True)) / len(labels)
