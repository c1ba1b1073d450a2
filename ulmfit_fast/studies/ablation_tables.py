"""What the ablation measured: rows in a CSV file, and tables and plots of them.

The file is written a row at a time, and a stopped run goes on with it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from ulmfit_fast.report import aligned_table
from ulmfit_fast.studies.ablation_plan import (
    BASELINE,
    CLASSIFIER,
    CLASSIFIER_WAYS,
    LANGUAGE_MODEL,
    LM_WAYS,
    MAJORITY,
    PRETRAINED,
    SCRATCH,
    TFIDF,
    ULMFIT_LM,
    ULMFIT_WAY,
)
from ulmfit_fast.system.files import file_in_place, user_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Row", "RowFile", "format_ablation", "plot_ablation", "read_rows"]


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        task: name of the task.
        kind: "language model" or "classifier".
        start: where the encoder comes from.
        way: how it was fine-tuned, or the name of a baseline.
        labels: labelled texts; 0 for a language model.
        seed: of the run.
        lr: largest rate; 0 for a baseline.
        accuracy: share of the test texts that are right; None for a language model.
        general_perplexity: of the language model, or of one with the classifier's encoder, on
            general text that no model was trained on; None for a baseline.
        target_perplexity: the same on text like that of the task.
        seconds: time to train.
    """

    task: str
    kind: str
    start: str
    way: str
    labels: int
    seed: int
    lr: float
    accuracy: float | None
    general_perplexity: float | None
    target_perplexity: float | None
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, str, int, int]:
        """What makes it this measurement and no other."""
        return (self.task, self.kind, self.start, self.way, self.labels, self.seed)


_NAMES = [field.name for field in fields(Row)]
_INTEGERS = ("labels", "seed")
_TEXTS = ("task", "kind", "start", "way")


class RowFile:
    """Rows in a CSV file, each on disk before the next one is measured.

    Args:
        path: the file; what it holds already is read.

    Raises:
        ValueError: if it holds something other than such rows.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self.rows: list[Row] = []
        if self.path.exists():
            self.rows = read_rows(self.path)
            # A line that was cut off is measured again.
            if not self.path.read_bytes().endswith(b"\n"):
                self._rewrite()

    def __contains__(self, key: tuple[str, str, str, str, int, int]) -> bool:
        """Say whether a row with this key is there."""
        return any(row.key == key for row in self.rows)

    def append(self, row: Row) -> None:
        """Add a row and put it on disk."""
        self.rows.append(row)
        if not self.path.exists():
            self._rewrite()
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, _NAMES, lineterminator="\n").writerow(asdict(row))
            file.flush()
            os.fsync(file.fileno())

    def sort(self) -> None:
        """Put the rows in an order that does not depend on which was measured first."""
        self.rows.sort(key=lambda row: (row.kind, row.labels, row.start, row.way, row.seed))
        self._rewrite()

    def _rewrite(self) -> None:
        with (
            file_in_place(self.path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, _NAMES, lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, self.rows))


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read the rows of a file; an incomplete last line, of a run that was killed, is left out.

    Args:
        path: a CSV file that `RowFile` wrote.

    Raises:
        ValueError: if the file is something else.
    """
    lines = user_path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    reader = csv.DictReader(lines)
    if reader.fieldnames != _NAMES:
        raise ValueError(
            f"{path} has the columns {reader.fieldnames}, expected those of the ablation "
            f"({', '.join(_NAMES)}); choose another directory"
        )
    return [_parsed(path, reader.line_num, line) for line in reader]


def _parsed(path: str | os.PathLike[str], number: int, line: dict[str, Any]) -> Row:
    try:
        return Row(**{name: _value(name, line[name]) for name in _NAMES})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {number}: {error}; repair or remove it") from error


def _value(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    if name in _INTEGERS:
        return int(text)
    return float(text) if text else None


# What each row of the tables is called, and where it starts and how it goes on.
_STARTS = {
    "from scratch, all layers at one rate": (SCRATCH, "full"),
    "from scratch": (SCRATCH, ULMFIT_WAY),
    "pre-trained": (PRETRAINED, ULMFIT_WAY),
    **{f"+ LM fine-tuned, {way}": (way, ULMFIT_WAY) for way in LM_WAYS},
}
_WAYS = {way: (ULMFIT_LM, way) for way in CLASSIFIER_WAYS}
_BASELINES = {TFIDF: ("", TFIDF), MAJORITY: ("", MAJORITY)}


def _spread(values: Sequence[float], digits: int = 1) -> str:
    """Write the mean and, of several values, the standard deviation."""
    if not values:
        return "\N{EN DASH}"
    text = f"{mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {stdev(values):.{digits}f}"


def _values(
    rows: Sequence[Row], start: str, way: str, labels: int, read: Callable[[Row], float | None]
) -> list[float]:
    found = [read(row) for row in rows if (row.start, row.way, row.labels) == (start, way, labels)]
    return [value for value in found if value is not None]


def _accuracy(row: Row) -> float | None:
    return None if row.accuracy is None else 100 * row.accuracy


def _accuracies(rows: Sequence[Row], head: str, entries: dict[str, tuple[str, str]]) -> str:
    fitted = [row for row in rows if row.kind in (CLASSIFIER, BASELINE)]
    counts = sorted({row.labels for row in fitted})
    table = [[head, *(f"{count:,} labels" for count in counts)]]
    for name, (start, way) in entries.items():
        cells = [_spread(_values(fitted, start, way, count, _accuracy)) for count in counts]
        if any(cell != "\N{EN DASH}" for cell in cells):
            table.append([name, *cells])
    return aligned_table(table)


def _forgetting(rows: Sequence[Row]) -> str:
    models = [row for row in rows if row.kind == LANGUAGE_MODEL]
    table = [["perplexity on held-out text", "general", "target"]]

    def add(name: str, chosen: Sequence[Row], start: str, way: str, labels: int) -> None:
        general = _values(chosen, start, way, labels, lambda row: row.general_perplexity)
        target = _values(chosen, start, way, labels, lambda row: row.target_perplexity)
        if general:
            table.append([name, _spread(general), _spread(target)])

    for way in (PRETRAINED, *LM_WAYS):
        name = way if way == PRETRAINED else f"LM fine-tuned, {way}"
        add(name, models, PRETRAINED, way, 0)
    fitted = [row for row in rows if row.kind == CLASSIFIER]
    most = max((row.labels for row in fitted), default=0)
    for way in CLASSIFIER_WAYS:
        add(f"encoder of the classifier, {way}", fitted, ULMFIT_LM, way, most)
    return aligned_table(table)


def format_ablation(rows: Sequence[Row]) -> str:
    """Write what a run measured as markdown tables, means over seeds with their spread.

    Args:
        rows: of one task.

    Returns:
        Three tables: what the language model brings, how the classifier is best fitted, and what
        is left of the general corpus.

    Raises:
        ValueError: if there are no rows, or rows of several tasks.
    """
    tasks = sorted({row.task for row in rows})
    if len(tasks) != 1:
        raise ValueError(f"the rows are of the tasks {tasks}, expected those of one task")
    fitted = [row.labels for row in rows if row.kind == CLASSIFIER]
    encoder = f", the classifiers with {max(fitted):,} labels" if fitted else ""
    return "\n\n".join(
        [
            f"Task {tasks[0]}: what the language model brings, held-out accuracy in %, classifier "
            f"fitted with {ULMFIT_WAY}",
            _accuracies(rows, "encoder", {**_STARTS, **_BASELINES}),
            f"How the classifier is fitted, on the language model fine-tuned with {ULMFIT_LM}",
            _accuracies(rows, "way", {**_WAYS, **_BASELINES}),
            f"What is left of what pre-training learned{encoder}",
            _forgetting(rows),
        ]
    )


def plot_ablation(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Draw accuracy over the number of labels, and perplexities after each way of fine-tuning.

    Args:
        rows: of one task.
        path: the PNG to write.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matplotlib is not installed; pip install 'ulmfit-fast[demo]'", name=error.name
        ) from error
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_accuracies(left, rows)
    _draw_perplexities(right, rows)
    figure.suptitle(f"task: {rows[0].task}")
    with file_in_place(path) as file:
        # Without its version and date the same rows give the same file.
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def _draw_accuracies(axes: Axes, rows: Sequence[Row]) -> None:
    fitted = [row for row in rows if row.kind in (CLASSIFIER, BASELINE)]
    counts = sorted({row.labels for row in fitted})
    shown = {
        "from scratch": _STARTS["from scratch"],
        "pre-trained": _STARTS["pre-trained"],
        "ULMFiT": (ULMFIT_LM, ULMFIT_WAY),
        TFIDF: _BASELINES[TFIDF],
    }
    for name, (start, way) in shown.items():
        values = [_values(fitted, start, way, count, _accuracy) for count in counts]
        measured = [(count, own) for count, own in zip(counts, values, strict=True) if own]
        axes.errorbar(
            [count for count, _ in measured],
            [mean(own) for _, own in measured],
            [stdev(own) if len(own) > 1 else 0.0 for _, own in measured],
            marker="o",
            capsize=3,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("labels")
    axes.set_ylabel("held-out accuracy, %")
    axes.legend()


def _draw_perplexities(axes: Axes, rows: Sequence[Row]) -> None:
    models = [row for row in rows if row.kind == LANGUAGE_MODEL]
    names = [way for way in (PRETRAINED, *LM_WAYS) if any(row.way == way for row in models)]
    width = 0.4
    for side, corpus in enumerate(("general", "target")):
        read = [
            [getattr(row, f"{corpus}_perplexity") for row in models if row.way == way]
            for way in names
        ]
        axes.bar(
            [place + (side - 0.5) * width for place in range(len(names))],
            [mean(values) for values in read],
            width,
            yerr=[stdev(values) if len(values) > 1 else 0.0 for values in read],
            capsize=3,
            label=f"{corpus} text",
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("held-out perplexity of the language model")
    axes.legend()
