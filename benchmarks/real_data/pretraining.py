"""What accuracy an hour of pre-training buys: general models of several sizes, and what they bring.

    python -m benchmarks.real_data.pretraining --data FOLDER --out DIR \
        --sizes 96/192/2,128/256/3,200/400/3 --hours 0.5 --sets trec6,mr

Each size (E/H/layers, and with a further /V the largest vocabulary) is pre-trained on as much of
the recipe's corpus as the hours or the words allow, and the method ulmfit measured on the
validation rows of the sets. `DIR/pretraining.csv` has a row for each size and set. A run that was
killed goes on where it was. Hours are reckoned from some steps in the beginning, so that the
schedule comes to its end in time; `budgets.json` keeps what they came to. Several processes may
share DIR if each has sets of its own; models are shared. Other choices, such as a subword
vocabulary, several passes, another batch or rate, are settings: `--set model.tokenizer=subword`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import read_records, write_records
from benchmarks.real_data.models import Models, waiting
from benchmarks.real_data.recipes import Recipe, digest_of, recipe_of
from benchmarks.real_data.runs import Row, measure
from benchmarks.real_data.sets import Set, corpus
from ulmfit_fast.runs.dry_run import DryRun
from ulmfit_fast.system.files import parse_json, write_text

# Words that some steps are measured on.
_SAMPLE = 400_000
# Budgets are kept in round numbers of words.
_ROUND = 50_000


@dataclass(frozen=True)
class Size:
    """A general model and what it brings to a set; the order of the fields is that of the CSV.

    Attributes:
        emb_size: E.
        hidden_size: H.
        layers: LSTM layers.
        vocabulary: tokens in it.
        tokenizer: its kind.
        words: read in a pass.
        passes: over them.
        batch_size: streams side by side.
        bptt: tokens of a step.
        lr: largest rate.
        drop_mult: factor on the dropouts.
        seconds: of the pre-training.
        tokens_per_second: of the same.
        perplexity: on the general validation text, in the model's vocabulary.
        set: that the model was fine-tuned on.
        labels: of the classifiers.
        draws: of these.
        accuracy: of the method ulmfit on the validation rows, mean of the draws.
        spread: their standard deviation.
        bag_of_words: accuracy of TF-IDF there.
        recipe: name.
        digest: of all settings.
        commit: of this repository.
        cpu: its name.
        threads: of PyTorch.
    """

    emb_size: int
    hidden_size: int
    layers: int
    vocabulary: int
    tokenizer: str
    words: int
    passes: int
    batch_size: int
    bptt: int
    lr: float
    drop_mult: float
    seconds: float
    tokens_per_second: float | None
    perplexity: float
    set: str
    labels: str
    draws: int
    accuracy: float
    spread: float
    bag_of_words: float
    recipe: str
    digest: str
    commit: str
    cpu: str
    threads: int


def sized(recipe: Recipe, size: str) -> Recipe:
    """Return the recipe with a model of another size, "E/H/layers" or "E/H/layers/V".

    Raises:
        ValueError: if the size is none.
    """
    names = ("emb_size", "hidden_size", "num_layers", "max_vocab")
    parts = size.split("/")
    if len(parts) not in (3, 4) or not all(part.isdigit() for part in parts):
        raise ValueError(f"size is {size!r}, expected E/H/layers or E/H/layers/V")
    pairs = zip(names, parts, strict=False)
    return recipe.changed([f"model.{name}={part}" for name, part in pairs])


def words_in_time(models: Models, seconds: float) -> int:
    """Return how many words of the corpus a pre-training reads in so many seconds."""
    recipe = models.recipe
    own = recipe.corpus
    texts = corpus(models.data, own["files"], unit=own["unit"], words=_SAMPLE)
    words = sum(len(text.split()) for text in texts)
    arguments = {**recipe.lm_arguments("pretrain", words), "epochs": 1}
    dry = DryRun()
    with dry.measuring():
        models.new(recipe.seed).pretrain(texts, run=dry, **arguments)
    passes = models.new(0).settings.stage("pretrain", **recipe.pretrain)[0].epochs
    wanted = words * seconds / (dry.estimate.seconds * passes)
    return max(_ROUND, int(wanted) // _ROUND * _ROUND)


def within(models: Models, out: Path, hours: float) -> Recipe:
    """Return the recipe with the words that are read in so many hours, reckoned once."""
    path = out / "budgets.json"
    name = digest_of([models.recipe.settings(), hours])
    out.mkdir(parents=True, exist_ok=True)
    with waiting(out / ".budgets.lock"):
        budgets: dict[str, int] = {}
        if path.exists():
            budgets = parse_json(path.read_text(encoding="utf-8"), path)
        if name not in budgets:
            budgets[name] = words_in_time(models, 3600 * hours)
            write_text(path, json.dumps(budgets, indent=1) + "\n")
    return models.recipe.changed([f"corpus.words={budgets[name]}"])


def general_perplexity(models: Models, out: Path) -> float:
    """Return the perplexity of the general model on the validation text, measured once."""
    path = models.general()
    file = out / "perplexities" / f"{path.name}.json"
    if not file.exists():
        found = models.load(path).perplexity(models.general_texts("valid"))
        write_text(file, json.dumps(round(found, 2)) + "\n")
    value: float = parse_json(file.read_text(encoding="utf-8"), file)
    return value


def curve(models: Models, out: Path, rows: Sequence[Row], fixed: Sequence[Row]) -> list[Size]:
    """Return the rows of a size, one for each set and number of labels.

    Args:
        models: of the size.
        out: folder of the results.
        rows: of the method ulmfit.
        fixed: of the bag of words.
    """
    path = models.general()
    note, perplexity = models.note(path), general_perplexity(models, out)
    assert note is not None
    model = models.load(path).settings
    found = []
    for name, labels in dict.fromkeys((row.set, row.labels) for row in rows):
        own = [row for row in rows if (row.set, row.labels) == (name, labels)]
        bag = [row.accuracy for row in fixed if (row.set, row.labels) == (name, labels)]
        shares = [row.accuracy for row in own]
        found.append(
            Size(
                *(model.emb_size, model.hidden_size, model.num_layers, note["vocabulary"]),
                *(model.tokenizer, note["words"], note["epochs"], note["batch_size"]),
                *(note["bptt"], note["lr"], note["drop_mult"], note["seconds"]),
                *(note["tokens_per_second"], perplexity, name, labels, len(own)),
                accuracy=round(statistics.fmean(shares), 4),
                spread=round(statistics.stdev(shares), 4) if len(shares) > 1 else 0.0,
                bag_of_words=round(statistics.fmean(bag), 4),
                recipe=models.recipe.name,
                digest=models.digest,
                **{name: getattr(own[0], name) for name in ("commit", "cpu", "threads")},
            )
        )
    return found


def add(out: Path, sizes: Sequence[Size]) -> None:
    """Write rows into the file of all sizes, in the place of older ones of the same."""

    def key(size: Size) -> tuple[Any, ...]:
        return size.seconds, size.digest, size.set, size.labels

    path = out / "pretraining.csv"
    new = {(own.digest, own.set, own.labels) for own in sizes}
    with waiting(out / ".pretraining.lock"):
        old = read_records(path, Size) if path.exists() else []
        kept = [own for own in old if (own.digest, own.set, own.labels) not in new]
        rows = sorted([*kept, *sizes], key=key)
        write_records(path, [field.name for field in fields(Size)], map(asdict, rows))


def main(arguments: list[str] | None = None, say: Callable[[str], object] = print) -> None:
    """Pre-train, measure and write a row for each size and set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", required=True, help="E/H/layers[/V], with commas between")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--hours", type=float, help="of the pre-training of each size")
    budget.add_argument("--words", type=int, help="of the corpus; default: the recipe's")
    parser.add_argument("--sets", default="trec6,mr")
    parser.add_argument("--labels", default="100", help="of the classifiers")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--recipe", help="as for benchmarks.real_data")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    asked = parser.parse_args(arguments)
    sets = asked.sets.split(",")
    for size in asked.sizes.split(","):
        recipe = sized(recipe_of(sets[0], asked.recipe, asked.changes), size)
        if asked.words is not None:
            recipe = recipe.changed([f"corpus.words={asked.words}"])
        if asked.hours is not None:
            recipe = within(Models(asked.data, asked.out, recipe), asked.out, asked.hours)
        models = Models(asked.data, asked.out, recipe, say=say)
        say(f"{recipe.name}: perplexity {general_perplexity(models, asked.out):.1f}")
        for name in sets:
            rows = measure(
                *(models, Set(asked.data, name, "validation"), asked.out),
                labels=asked.labels.split(","),
                draws=asked.draws,
                methods=["tfidf", "ulmfit"],
                say=say,
            )
            rows = [row for row in rows if row.part == "validation"]
            ours = [r for r in rows if r.method == "ulmfit" and r.digest == models.digest]
            add(
                asked.out,
                curve(models, asked.out, ours, [row for row in rows if row.method == "tfidf"]),
            )


if __name__ == "__main__":
    main()
