"""How large a batch, and how many epochs, does a classifier of few labels need?

    python -m benchmarks.label_sizes trec6.csv subj.csv --preset small --out label_sizes.csv

Each file has the columns text and label. 800 rows, drawn by the seed, are measured on; of the
others so many as `--labels` says, or all, train a model of the preset: a language model on these
texts alone (batch 8, 20 epochs, or as many as take 1,000 steps), then a classifier for each of
`--batches` and `--epochs`. The bag of words is TF-IDF of words and pairs with logistic regression.
What stands in `--out` is not measured again. In the end the table is printed that
docs/small-data.md has of `benchmarks/results/label_sizes.csv`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

import ulmfit_fast as uf
from benchmarks import tables
from benchmarks.harness.rows import RESULTS, write_records
from ulmfit_fast.data import read_labelled
from ulmfit_fast.ulmfit.baselines import Baselines
from ulmfit_fast.ulmfit.sizing import words_in

BATCHES, EPOCHS, TEST = (8, 16, 32, 64), (5, 10, 20), 800
_NAMES = {"trec6": "TREC-6", "subj": "SUBJ", "pt_hatebr": "HateBR"}
# Batch size and epochs of the columns.
_SHOWN = ((64, 5), (64, 10), (16, 10), (64, 20), (16, 20), (8, 20))


@dataclass(frozen=True)
class Fit:
    """A classifier; the order of the fields is that of the CSV.

    Attributes:
        set: name of the file.
        preset: of the model.
        labels: texts that it was fitted to.
        batch_size: of these.
        epochs: passes over them.
        steps: in all.
        accuracy: on the 800 texts.
        bag_of_words: accuracy of that one.
    """

    set: str
    preset: str
    labels: int
    batch_size: int
    epochs: int
    steps: int
    accuracy: float
    bag_of_words: float


def read_fits(path: Path = RESULTS / "label_sizes.csv") -> list[Fit]:
    """Read the rows of a file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Fit(
                *(row["set"], row["preset"]),
                *(int(row[name]) for name in ("labels", "batch_size", "epochs", "steps")),
                *(float(row[name]) for name in ("accuracy", "bag_of_words")),
            )
            for row in csv.DictReader(file)
        ]


def table(fits: Sequence[Fit]) -> str:
    """Write the accuracies: a line for so many labels of a set, a column for a size and epochs."""

    def line_of(fit: Fit) -> tuple[str, str, int]:
        return fit.preset, fit.set, fit.labels

    lines = []
    for (preset, name, labels), group in itertools.groupby(fits, line_of):
        own = list(group)
        found = {(fit.batch_size, fit.epochs): f"{fit.accuracy:.3f}" for fit in own}
        cells = [*(found.get(shown, "-") for shown in _SHOWN), f"{own[0].bag_of_words:.3f}"]
        lines.append([preset, _NAMES.get(name, name), f"{labels:,}", *cells])
    sizes = (f"{size} \N{MULTIPLICATION SIGN} {epochs}" for size, epochs in _SHOWN)
    return tables.table(["preset", "set", "labels", *sizes, "bag of words"], lines)


def measure(
    path: Path, preset: str, count: int | None, sizes: Sequence[tuple[int, int]], precision: str
) -> Iterator[Fit]:
    corpus, own = read_labelled(path)
    order = np.random.default_rng(0).permutation(len(corpus)).tolist()
    test, train = order[:TEST], order[TEST : None if count is None else TEST + count]
    texts, labels = [corpus[n] for n in train], [own[n] for n in train]
    others, truth = [corpus[n] for n in test], np.array([str(own[n]) for n in test])
    classes = sorted({str(label) for label in labels})
    positions = [classes.index(str(label)) for label in labels]
    baselines = Baselines.fit(texts, positions, len(classes), bag_of_words=True)
    bag = np.array(classes)[baselines.predict_proba(others)["bag of words"].argmax(1)]
    steps = words_in(texts) / (8 * 40)
    start = uf.ULMFiT(preset=preset, progress=False).pretrain(
        texts,
        epochs=min(20, max(1, math.ceil(1000 / steps))),
        batch_size=8,
        precision=precision,
    )
    for batch_size, epochs in sizes:
        model = start.copy().fit_classifier(
            texts, labels, epochs=epochs, batch_size=batch_size, precision=precision
        )
        predicted = np.array([str(label) for label in model.predict(others)])
        taken = epochs * math.ceil(len(texts) / batch_size)
        accuracy = float((predicted == truth).mean())
        yield Fit(
            *(path.stem, preset, len(texts), batch_size, epochs, taken),
            *(round(accuracy, 4), round(float((bag == truth).mean()), 4)),
        )


def main() -> None:
    def number(text: str) -> int | None:
        return None if text == "all" else int(text)

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--labels", type=number, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--epochs", type=int, nargs="+", default=EPOCHS)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    rows = read_fits(asked.out) if asked.out.exists() else []
    for path, count in itertools.product(asked.files, asked.labels):
        number_of = len(read_labelled(path)[0]) - TEST if count is None else count
        known = {
            (row.batch_size, row.epochs)
            for row in rows
            if (row.set, row.preset, row.labels) == (path.stem, asked.preset, number_of)
        }
        sizes = [
            (batch_size, epochs)
            for epochs, batch_size in itertools.product(asked.epochs, asked.batches)
            if (batch_size, epochs) not in known
        ]
        if not sizes:
            continue
        for row in measure(path, asked.preset, count, sizes, asked.precision):
            rows.append(row)
            rows.sort(key=lambda fit: (fit.preset != "small", _order(fit.set), fit.labels))
            print(row, flush=True)
            write_records(asked.out, [own.name for own in fields(Fit)], map(asdict, rows))
    print(table(rows))


def _order(name: str) -> int:
    return list(_NAMES).index(name) if name in _NAMES else len(_NAMES)


if __name__ == "__main__":
    main()
