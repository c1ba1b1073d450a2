"""A run and its row, and the files of rows that a stopped measurement goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from benchmarks.harness import machine
from benchmarks.harness.rows import read_records, write_records
from benchmarks.real_data.methods import answers, is_fixed
from benchmarks.real_data.models import Models
from benchmarks.real_data.sets import Set
from ulmfit_fast.nn.vocabulary import with_vocabulary
from ulmfit_fast.system.locks import directory_lock
from ulmfit_fast.training.scores import scores_of

ALL = "all"


@dataclass(frozen=True)
class Row:
    """One method, fitted once; the order of the fields is that of the CSV.

    Attributes:
        set: its name.
        labels: asked for, "all" for the whole pool.
        rows: that were fitted to.
        draw: of the rows, from 0.
        part: measured on, "validation" or "test".
        method: a name of `METHODS`.
        accuracy: a share.
        macro_f1: a share.
        log_loss: nats.
        seconds: to fit the classifiers and to answer, without language models.
        seed: of the classifier.
        recipe: its name, with what was changed in it; empty where the method knows none.
        digest: of all its settings.
        commit: of this repository, with a "+" where tracked files differed.
        cpu: its name.
        threads: of PyTorch.
    """

    set: str
    labels: str
    rows: int
    draw: int
    part: str
    method: str
    accuracy: float
    macro_f1: float
    log_loss: float
    seconds: float
    seed: int
    recipe: str
    digest: str
    commit: str
    cpu: str
    threads: int

    @property
    def key(self) -> tuple[str, float, str, str, str, int]:
        """What there is one row of, in the order of a file."""
        return self.set, count_of(self.labels), self.part, self.method, self.digest, self.draw


@dataclass(frozen=True)
class Perplexity:
    """A language model on texts that it has not read.

    Attributes:
        set: that it is fine-tuned on.
        part: "validation" or "test".
        direction: "forward" or "backward".
        model: "general"; "general, set's vocabulary", which compares with "fine-tuned".
        general: perplexity on the general test text.
        own: perplexity on the measured rows of the set.
        vocabulary: tokens in it.
        seconds: of the fine-tuning.
        recipe: as of `Row`.
        digest: as of `Row`.
        commit: as of `Row`.
        cpu: as of `Row`.
        threads: as of `Row`.
    """

    set: str
    part: str
    direction: str
    model: str
    general: float
    own: float
    vocabulary: int
    seconds: float
    recipe: str
    digest: str
    commit: str
    cpu: str
    threads: int

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What there is one row of, in the order of a file."""
        return self.set, self.part, self.direction, self.digest, self.model


Kind = TypeVar("Kind", Row, Perplexity)


class RowFile(Generic[Kind]):
    """Rows of one set in `out/NAME-SET.csv`, written as a whole after each.

    Args:
        out: folder of the results.
        name: of the files, "runs" or "forgetting".
        task: name of the set.
        kind: of the rows.
    """

    def __init__(self, out: Path, name: str, task: str, kind: type[Kind]) -> None:
        self._path, self._kind = out / f"{name}-{task}.csv", kind
        self.rows = read_records(self._path, kind) if self._path.exists() else []

    def __contains__(self, key: object) -> bool:
        return any(row.key == key for row in self.rows)

    def append(self, row: Kind) -> None:
        """Add a row; the file is complete with it, or as it was before."""
        self.rows.append(row)
        self.rows.sort(key=lambda own: own.key)
        names = [own.name for own in fields(self._kind)]
        write_records(self._path, names, map(asdict, self.rows))


def read_all(out: Path, name: str = "runs", kind: type[Kind] = Row) -> list[Kind]:
    """Return the rows of all sets in a folder, or of one file."""
    paths = sorted(out.glob(f"{name}-*.csv")) if out.is_dir() else [out]
    return [row for path in paths for row in read_records(path, kind)]


def count_of(labels: str) -> float:
    """Return a number of labels, infinity for all."""
    return float("inf") if labels == ALL else float(labels)


@cache
def _machine() -> dict[str, Any]:
    facts = machine.facts("cpu")
    commit = facts["commit"] + "+" * facts["dirty"]
    return {"commit": commit, "cpu": facts["device"], "threads": facts["threads"]}


def measure(
    models: Models,
    task: Set,
    out: Path,
    *,
    labels: Sequence[str],
    draws: int,
    methods: Iterable[str],
    say: Callable[[str], object] = print,
) -> list[Row]:
    """Measure what has no row yet.

    Args:
        models: of the recipe.
        task: the set.
        out: folder of the results, which no other process may use for this set meanwhile.
        labels: numbers of labels, "all" among them.
        draws: of the rows, for each number.
        methods: names of `METHODS`.
        say: takes each line of progress.

    Returns:
        The set's rows, those that were there included.

    Raises:
        FileExistsError: if another process measures this set.
    """
    out.mkdir(parents=True, exist_ok=True)
    models.keep_recipe()
    with directory_lock(out, out / f".{task.name}.lock"):
        file = RowFile(out, "runs", task.name, Row)
        for count in labels:
            for draw in range(draws):
                for method in methods:
                    if _key(models, task, count, draw, method) not in file:
                        row = _row(models, task, out, count, draw, method)
                        file.append(row)
                        say(
                            f"{row.set} {row.labels} draw {row.draw} {row.method}: "
                            f"{row.accuracy:.4f}, {row.seconds:.0f} s"
                        )
        return file.rows


def _digest(models: Models, method: str) -> str:
    return "" if is_fixed(method) else models.digest


def _key(models: Models, task: Set, labels: str, draw: int, method: str) -> tuple[Any, ...]:
    digest = _digest(models, method)
    return task.name, count_of(labels), task.part, method, digest, draw


def _row(models: Models, task: Set, out: Path, labels: str, draw: int, method: str) -> Row:
    count = None if labels == ALL else int(labels)
    found = answers(method, models, task, count, draw, out / "answers")
    truth = np.array([task.classes.index(label) for label in task.measured.labels])
    scores = scores_of(truth, found.probabilities)
    fixed = is_fixed(method)
    return Row(
        set=task.name,
        labels=labels,
        rows=len(task.draw(count, draw).texts),
        draw=draw,
        part=task.part,
        method=method,
        accuracy=round(scores["accuracy"], 5),
        macro_f1=round(scores["macro_f1"], 5),
        log_loss=round(scores["log_loss"], 5),
        seconds=round(found.seconds, 1),
        seed=0 if fixed else 1000 * models.recipe.seed + draw,
        recipe="" if fixed else models.recipe.name,
        digest=_digest(models, method),
        **_machine(),
    )


def measure_forgetting(
    models: Models, task: Set, out: Path, directions: Sequence[bool] = (False,)
) -> list[Perplexity]:
    """Measure what fine-tuning costs on general text, and brings on the set's own.

    Perplexities compare in one vocabulary alone: the general model is measured in its own, and in
    that of the fine-tuned one.
    """
    general = models.general_texts("test")
    with directory_lock(out, out / f".{task.name}.lock"):
        file = RowFile(out, "forgetting", task.name, Perplexity)
        for backwards in directions if general else ():
            direction = "backward" if backwards else "forward"
            path = models.tuned(task, backwards)
            tuned, before = models.load(path), models.load(models.general(backwards))
            carried = models.load(models.general(backwards))
            assert tuned.tokenizer is not None and carried.tokenizer is not None
            carried.language_model = with_vocabulary(
                carried.language_model, carried.tokenizer.vocab, tuned.tokenizer.vocab
            )
            carried.tokenizer = tuned.tokenizer
            three = {
                "general": before,
                "general, set's vocabulary": carried,
                "fine-tuned": tuned,
            }
            for name, model in three.items():
                if (task.name, task.part, direction, models.digest, name) in file:
                    continue
                assert model.tokenizer is not None
                file.append(
                    Perplexity(
                        *(task.name, task.part, direction, name),
                        general=round(model.perplexity(general), 2),
                        own=round(model.perplexity(task.measured.texts), 2),
                        vocabulary=len(model.tokenizer.vocab),
                        seconds=(models.note(path) or {})["seconds"] * (name == "fine-tuned"),
                        recipe=models.recipe.name,
                        digest=models.digest,
                        **_machine(),
                    )
                )
        return file.rows
