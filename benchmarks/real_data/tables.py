"""The tables and plots of real data, from the rows that `python -m benchmarks.real_data` wrote.

python -m benchmarks.real_data.tables --rows DIR --collect benchmarks/results/real_data.csv
python -m benchmarks.real_data.tables --rows benchmarks/results/real_data.csv --plot FILE.png
python -m benchmarks.real_data.tables --rows DIR --forgetting
python -m benchmarks.real_data.tables --rows DIR --part validation --hypotheses
python -m benchmarks.real_data.tables --curve DIR/pretraining.csv --plot FILE.png
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import read_records, write_records
from benchmarks.harness.show import table
from benchmarks.real_data.methods import METHODS
from benchmarks.real_data.pretraining import Size
from benchmarks.real_data.runs import ALL, Perplexity, Row, count_of, read_all
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
    compares = part == "test" and measure == "accuracy"
    # A method that knows no recipe stands beside each of them.
    several = len({row.digest for row in chosen if row.digest}) > 1
    lines = []
    for (name, labels), own in _groups(chosen):
        for digest in sorted({row.digest for row in own if row.digest}) or [""]:
            cells = []
            for method in methods:
                fits = [r for r in own if r.method == method and r.digest in ("", digest)]
                cells.append(spread([getattr(r, measure) for r in fits]) if fits else "-")
            published = PUBLISHED.get(name, "") if labels == ALL else ""
            beside = [_goal(name, labels), published] if compares else []
            lines.append([name, labels, *([f"`{digest}`"] if several else []), *cells, *beside])
    head = ["set", "labels", *(["recipe"] if several else []), *methods]
    head += ["aimed at", "published"] if compares else []
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
    _save(figure, path)


def hypotheses(rows: Sequence[Row], part: str = "validation", method: str = "ulmfit") -> str:
    """Write a table: a line for each recipe, by what was changed, a column a set and labels.

    Args:
        rows: of any parts and methods.
        part: whose rows are shown.
        method: whose rows are shown.
    """
    groups = _groups([row for row in rows if (row.part, row.method) == (part, method)])
    # One recipe may have several names; what repeats a default is left out in the shortest.
    names: dict[str, str] = {}
    for row in (row for _, own in groups for row in own):
        names[row.digest] = min(names.get(row.digest, row.recipe), row.recipe, key=len)
    lines = []
    for digest, name in sorted(names.items(), key=lambda item: (len(item[1].split()), item[1])):
        base, *changes = name.split()
        cells = []
        for _, own in groups:
            values = [row.accuracy for row in own if row.digest == digest]
            cells.append(spread(values) if values else "-")
        lines.append([", ".join(f"`{own}`" for own in changes) or base, *cells])
    return table(["changed", *(", ".join(column) for column, _ in groups)], lines)


def forgetting(rows: Sequence[Perplexity]) -> str:
    """Write perplexities of general models and of those fine-tuned, on general and own text."""
    order = ("general", "general, set's vocabulary", "fine-tuned")

    def place(row: Perplexity) -> tuple[str, str, str, int]:
        return row.set, row.direction, row.digest, order.index(row.model)

    lines = [
        [row.set, row.direction, row.model, f"{row.general:,.1f}", f"{row.own:,.1f}"]
        for row in sorted(rows, key=place)
    ]
    head = ["set", "direction", "language model", "on general text", "on the set's text"]
    return table(head, lines, left=3)


def curve(sizes: Sequence[Size]) -> str:
    """Write what each general model took, and the accuracies that it brings."""
    columns = list(dict.fromkeys((own.set, own.labels) for own in sizes))
    lines = []
    for digest in dict.fromkeys(own.digest for own in sizes):
        found = {(own.set, own.labels): own for own in sizes if own.digest == digest}
        first = next(iter(found.values()))
        cells = [
            f"{100 * found[column].accuracy:.1f} ({100 * found[column].spread:.1f})"
            if column in found
            else "-"
            for column in columns
        ]
        lines.append(
            [
                *(_size(first), f"{first.vocabulary:,}", first.tokenizer),
                *(
                    f"{first.words:,} \N{MULTIPLICATION SIGN} {first.passes}",
                    f"{first.batch_size}",
                    f"{first.lr:g}",
                ),
                *(f"{first.seconds / 60:.1f}", f"{first.tokens_per_second or 0:,.0f}"),
                *(f"{first.perplexity:.1f}", *cells),
            ]
        )
    head = ["E/H/layers", "V", "tokens", "words", "batch", "rate", "minutes", "tokens/s"]
    head += ["perplexity", *(f"{name}, {labels}" for name, labels in columns)]
    return table(head, lines)


def _size(own: Size) -> str:
    return f"{own.emb_size}/{own.hidden_size}/{own.layers}"


def draw_curve(sizes: Sequence[Size], path: Path) -> None:
    """Draw accuracy by the minutes of pre-training, a panel for each set, a line for each size.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    columns = list(dict.fromkeys((own.set, own.labels) for own in sizes))
    figure = Figure(figsize=(4 * len(columns), 3.2), layout="constrained")
    for place, (name, labels) in enumerate(columns, 1):
        axes = figure.add_subplot(1, len(columns), place)
        chosen = [own for own in sizes if (own.set, own.labels) == (name, labels)]
        for size in dict.fromkeys(map(_size, chosen)):
            points = sorted(
                (own.seconds / 60, 100 * own.accuracy, 100 * own.spread)
                for own in chosen
                if _size(own) == size
            )
            x, y, sd = zip(*points, strict=True)
            axes.errorbar(x, y, yerr=sd, marker="o", markersize=3, capsize=2, label=size)
        axes.axhline(100 * chosen[0].bag_of_words, color="grey", linestyle=":", label="tfidf")
        axes.set(xscale="log", xlabel="minutes of pre-training", ylabel="accuracy, %")
        axes.set_title(f"{name}, {labels} labels", fontsize=10)
        axes.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with file_in_place(path) as file:
        # Without its version and date the same rows give the same file.
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def main(arguments: list[str] | None = None, say: Callable[[str], object] = print) -> None:
    """Write the table, and what else the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--rows", type=Path, help="a folder of runs, or a CSV of them")
    source.add_argument(
        "--curve", type=Path, help="a CSV that benchmarks.real_data.pretraining wrote"
    )
    parser.add_argument("--forgetting", action="store_true", help="perplexities, not accuracies")
    parser.add_argument("--hypotheses", action="store_true", help="a line for each recipe")
    parser.add_argument("--part", choices=PARTS, default="test")
    parser.add_argument("--digest", action="append", help="of these recipes alone")
    parser.add_argument("--measure", choices=["accuracy", "macro_f1"], default="accuracy")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--collect", type=Path, help="CSV to write the rows of all sets to")
    asked = parser.parse_args(arguments)
    if asked.curve:
        sizes = read_records(asked.curve, Size)
        if asked.plot:
            draw_curve(sizes, asked.plot)
        say(curve(sizes))
        return
    if asked.forgetting:
        perplexities = read_all(asked.rows, "forgetting", Perplexity)
        say(forgetting([row for row in perplexities if row.part == asked.part]))
        return
    rows = read_all(asked.rows)
    if asked.digest:
        rows = [row for row in rows if row.digest in ("", *asked.digest)]
    if asked.collect:
        own = sorted((r for r in rows if r.part == asked.part), key=lambda row: row.key)
        write_records(asked.collect, [field.name for field in fields(Row)], map(asdict, own))
    if asked.plot:
        draw(rows, asked.plot, asked.part)
    if asked.hypotheses:
        say(hypotheses(rows, asked.part))
        return
    say(accuracies(rows, asked.part, asked.measure))


if __name__ == "__main__":
    main()
