"""The table and the plot of accuracies, from rows that `python -m benchmarks.real_data` wrote.

python -m benchmarks.real_data.tables --rows DIR --collect benchmarks/results/real_data.csv
python -m benchmarks.real_data.tables --rows benchmarks/results/real_data.csv --plot FILE.png
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from benchmarks.harness.rows import write_records
from benchmarks.harness.show import table
from benchmarks.real_data.methods import METHODS
from benchmarks.real_data.runs import ALL, Row, count_of, read_all
from benchmarks.real_data.sets import PARTS
from ulmfit_fast.system.files import file_in_place

# Accuracy in percent on the same test rows, with all labels; MR and SUBJ on ten folds.
PUBLISHED = {
    "trec6": "96.4 ULMFiT",
    "imdb": "95.4 ULMFiT",
    "mr": "81.5 CNN",
    "subj": "93.4 CNN",
    "banking77": "93.4 USE+ConveRT",
    "de_germeval2018": "79.5 best system",
}
# What is aimed at: with 100, 500 and all labels.
GOALS: dict[str, tuple[float | None, float | None, float]] = {
    "trec6": (72, 84, 95),
    "mr": (65, 72, 79),
    "subj": (84, 89, 93),
    "imdb": (82, 87, 92),
    "banking77": (35, 68, 91),
    "sms_spam": (94, 97.5, 98.5),
    "pt_b2w_polarity": (62, 68, 76),
    "pt_hatebr": (71, 77, 85),
    "de_germeval2018": (None, None, 71),
}


def spread(values: Sequence[float]) -> str:
    """Write mean and standard deviation of shares, in percent.

    >>> spread([0.5, 0.6]), spread([0.5])
    ('55.0 (7.1)', '50.0')
    """
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ({100 * statistics.stdev(values):.1f})"


def accuracies(rows: Sequence[Row], part: str = "test", measure: str = "accuracy") -> str:
    """Write a table: a line for each set, number of labels and recipe, a column for each method.

    Args:
        rows: of any parts, sets and recipes.
        part: whose rows are shown.
        measure: "accuracy" or "macro_f1".
    """
    chosen = [row for row in rows if row.part == part]
    methods = [name for name in METHODS if any(row.method == name for row in chosen)]
    # A method that knows no recipe stands beside each of them.
    several = len({row.digest for row in chosen if row.digest}) > 1
    lines = []
    for (name, labels), own in _groups(chosen):
        for digest in sorted({row.digest for row in own if row.digest}) or [""]:
            cells = []
            for method in methods:
                fits = [r for r in own if r.method == method and r.digest in ("", digest)]
                cells.append(spread([getattr(r, measure) for r in fits]) if fits else "-")
            beside = PUBLISHED.get(name, "") if labels == ALL and measure == "accuracy" else ""
            recipe = [f"`{digest}`"] if several else []
            lines.append([name, labels, *recipe, *cells, _goal(name, labels), beside])
    head = ["set", "labels", *(["recipe"] if several else []), *methods, "aimed at", "published"]
    return table(head, lines, left=2 + several)


def _groups(rows: Sequence[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    """Return the rows of each set and number of labels, the sets with a goal first."""
    order = list(GOALS)

    def place(row: Row) -> tuple[int, str, float]:
        known = order.index(row.set) if row.set in order else len(order)
        return known, row.set, count_of(row.labels)

    groups = itertools.groupby(sorted(rows, key=place), lambda row: (row.set, row.labels))
    return [(name, list(own)) for name, own in groups]


def _goal(name: str, labels: str) -> str:
    columns = ("100", "500", ALL)
    goal = GOALS[name][columns.index(labels)] if name in GOALS and labels in columns else None
    return "" if goal is None else f"{goal:g}"


def draw(rows: Sequence[Row], path: Path, part: str = "test") -> None:
    """Draw accuracy by labels, a panel for each set, with the spread of the draws.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no row of this part.
    """
    from matplotlib.figure import Figure

    chosen = [row for row in rows if row.part == part]
    groups = dict(_groups(chosen))
    sets = list(dict.fromkeys(name for name, _ in groups))
    if not sets:
        raise ValueError(f"there is no row of the part {part}")
    columns = min(3, len(sets))
    lines = -(-len(sets) // columns)
    figure = Figure(figsize=(4 * columns, 3 * lines), layout="constrained")
    for place, name in enumerate(sets, 1):
        axes = figure.add_subplot(lines, columns, place)
        labels = [count for own, count in groups if own == name]
        shown = {
            (row.method, row.digest)
            for count in labels
            for row in groups[name, count]
            if row.method != "majority"
        }
        for method, digest in sorted(shown, key=lambda own: (list(METHODS).index(own[0]), own[1])):
            points = []
            for position, count in enumerate(labels):
                own = [
                    100 * row.accuracy
                    for row in groups[name, count]
                    if (row.method, row.digest) == (method, digest)
                ]
                if own:
                    sd = statistics.stdev(own) if len(own) > 1 else 0.0
                    points.append((position, statistics.fmean(own), sd))
            x, y, sd = zip(*points, strict=True)
            axes.errorbar(x, y, yerr=sd, marker="o", markersize=3, capsize=2, label=method)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_title(name, fontsize=10)
        if place == 1:
            axes.legend(fontsize=7)
        if place % columns == 1 or columns == 1:
            axes.set_ylabel("accuracy, %")
    with file_in_place(path) as file:
        # Without its version and date the same rows give the same file.
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def main(arguments: list[str] | None = None, say: Callable[[str], object] = print) -> None:
    """Write the table, and what else the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, required=True, help="a folder of runs, or a CSV")
    parser.add_argument("--part", choices=PARTS, default="test")
    parser.add_argument("--digest", action="append", help="of these recipes alone")
    parser.add_argument("--measure", choices=["accuracy", "macro_f1"], default="accuracy")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--collect", type=Path, help="CSV to write the rows of all sets to")
    asked = parser.parse_args(arguments)
    rows = read_all(asked.rows)
    if asked.digest:
        rows = [row for row in rows if row.digest in ("", *asked.digest)]
    if asked.collect:
        own = sorted((r for r in rows if r.part == asked.part), key=lambda row: row.key)
        write_records(asked.collect, [field.name for field in fields(Row)], map(asdict, own))
    if asked.plot:
        draw(rows, asked.plot, asked.part)
    say(accuracies(rows, asked.part, asked.measure))


if __name__ == "__main__":
    main()
