"""ULMFiT on real labelled sets, beside a bag of words: accuracy with few labels, and with all.

    python -m benchmarks.real_data --data FOLDER --sets trec6,mr --labels 100,500,all --out DIR
    python -m benchmarks.real_data ... --part validation --set fit_classifier.lr=0.01
    python -m benchmarks.real_data.tables --rows DIR

One recipe serves all sets of a language; settings are chosen on `--part validation`, rows of the
training file that nothing else sees, never on the test file. DIR gains `runs-SET.csv` with a row a
run; what has a row is not run again, and the language models, the classifiers' answers and the
recipes (`recipes/DIGEST.json`) are kept there too. Several processes may share DIR if each has sets
of its own. Rows of another commit are not told apart: what changes the code takes another DIR.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.real_data.methods import METHODS
from benchmarks.real_data.models import Models
from benchmarks.real_data.recipes import recipe_of
from benchmarks.real_data.runs import ALL, measure, measure_forgetting
from benchmarks.real_data.sets import PARTS, Set


def names(text: str) -> list[str]:
    """Return what stands between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def counts(text: str) -> list[str]:
    """Return numbers of labels."""
    found = names(text)
    for name in found:
        if name != ALL and not (name.isdigit() and int(name)):
            raise argparse.ArgumentTypeError(f"{name!r} is neither a number of labels nor {ALL!r}")
    return found


def methods(text: str) -> list[str]:
    """Return names of methods."""
    found = names(text)
    for name in found:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(METHODS)}")
    return found


def main(arguments: list[str] | None = None, say: Callable[[str], object] = print) -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets and texts")
    parser.add_argument("--sets", type=names, required=True, help="names, with commas between")
    parser.add_argument("--labels", type=counts, default=["100", "500", ALL])
    parser.add_argument("--draws", type=int, default=3, help="of the labels, default 3")
    parser.add_argument("--methods", type=methods, default=["tfidf", "scratch", "ulmfit"])
    parser.add_argument("--part", choices=PARTS, default="test", help="what is measured on")
    parser.add_argument("--recipe", help="a name or a .toml; default: that of the set's language")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="STAGE.NAME=VALUE",
        help="change a setting; may be given several times",
    )
    parser.add_argument(
        "--general",
        type=Path,
        action="append",
        default=[],
        help="directory of a general model that is there already, one for each direction",
    )
    parser.add_argument("--forgetting", action="store_true", help="measure perplexities as well")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(arguments)
    recipes = {name: recipe_of(name, asked.recipe, asked.changes) for name in asked.sets}
    for name, recipe in recipes.items():
        models = Models(asked.data, asked.out, recipe, asked.general, say)
        task = Set(asked.data, name, asked.part)
        measure(
            *(models, task, asked.out),
            labels=asked.labels,
            draws=asked.draws,
            methods=asked.methods,
            say=say,
        )
        if asked.forgetting:
            directions = (False, True) if "ulmfit_both" in asked.methods else (False,)
            measure_forgetting(models, task, asked.out, directions)


if __name__ == "__main__":
    main()
