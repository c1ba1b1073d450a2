"""Does a language model learn as well in bfloat16 as in float32?

    python -m benchmarks.loss_curves

The same model trains on the same docstrings, in both precisions with the same seeds: weights, order
and masks are the same, so that the curves differ by rounding alone. A difference is held against
that of two seeds in float32. The rows and a picture go to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ulmfit_fast as uf
from benchmarks.harness import machine
from benchmarks.harness.rows import RESULTS, write_records
from ulmfit_fast.studies.docstrings import read_docstrings
from ulmfit_fast.studies.tasks import split_off
from ulmfit_fast.system.files import file_in_place

PRECISIONS = ("float32", "bfloat16")
SIZES = {"emb_size": 128, "hidden_size": 256, "num_layers": 3, "max_vocab": 6000, "min_freq": 2}
SETTINGS = {"lr": 3e-3, "batch_size": 16, "bptt": 70}
# Losses of single steps jump with their texts.
_WINDOW = 20


class Curve(NamedTuple):
    """One training.

    Attributes:
        precision: "float32" or "bfloat16".
        seed: of weights, order and masks.
        losses: cross entropy of each step, nats.
        held_out: perplexity on texts that were not trained on, computed in float32.
    """

    precision: str
    seed: int
    losses: list[float]
    held_out: float


def train(
    texts: Sequence[str], held_out: Sequence[str], precision: str, seed: int, **values: Any
) -> Curve:
    """Train one model from scratch, once through the texts.

    Args:
        texts: to train on.
        held_out: for the perplexity.
        precision: "float32" or "bfloat16".
        seed: of weights, order and masks.
        **values: other sizes and settings than the module's.
    """
    sizes, settings = ({n: values.get(n, v) for n, v in own.items()} for own in (SIZES, SETTINGS))
    model = uf.ULMFiT(**sizes, drop_mult=0.5, device="cpu", seed=seed, progress=False)
    model.pretrain(texts, epochs=1, precision=precision, **settings)
    losses = model.histories["pretrain"].losses
    return Curve(precision, seed, losses, model.perplexity(held_out))


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the mean of each stretch of losses.

    >>> smoothed([1.0] * 20 + [3.0] * 20)
    [1.0, 3.0]
    """
    stretches = range(0, len(losses) - _WINDOW + 1, _WINDOW)
    return [statistics.fmean(losses[start : start + _WINDOW]) for start in stretches]


def farthest(one: Curve, other: Curve) -> float:
    """Return the largest distance of two smoothed curves, nats."""
    pairs = zip(smoothed(one.losses), smoothed(other.losses), strict=True)
    return max(abs(a - b) for a, b in pairs)


def write(folder: Path, curves: Sequence[Curve]) -> None:
    """Write a row for each stretch of steps, and draw the curves."""
    from matplotlib.figure import Figure

    facts = machine.facts("cpu")
    names = ["precision", "seed", "step", "loss", "held_out_perplexity", *facts]
    rows = [
        {
            **{"precision": curve.precision, "seed": curve.seed},
            **{"step": (place + 1) * _WINDOW, "loss": round(loss, 4)},
            "held_out_perplexity": round(curve.held_out, 2),
            **facts,
        }
        for curve in curves
        for place, loss in enumerate(smoothed(curve.losses))
    ]
    write_records(folder / "loss_curves.csv", names, rows)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        losses = smoothed(curve.losses)
        steps = [(place + 1) * _WINDOW for place in range(len(losses))]
        style = "-" if curve.precision == "float32" else "--"
        axes.plot(steps, losses, style, label=f"{curve.precision}, seed {curve.seed}")
    axes.set(xlabel="step", ylabel=f"loss, nats, mean of {_WINDOW} steps")
    axes.legend()
    with file_in_place(folder / "loss_curves.png") as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def main(arguments: list[str] | None = None, say: Callable[[str], object] = print) -> int:
    """Train, write and say how far the curves are apart; 1 where they are too far."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV and the plot")
    parser.add_argument("--packages", nargs="+", default=["stdlib", "sympy"])
    parser.add_argument("--tiny", action="store_true", help="few texts: run, measure nothing")
    options = parser.parse_args(arguments)
    texts = [document.text for name in options.packages for document in read_docstrings(name)]
    values = {"emb_size": 8, "hidden_size": 8, "bptt": 8} if options.tiny else {}
    texts, held_out = split_off(texts[:150] if options.tiny else texts)
    curves = []
    for seed in (0, 1):
        for precision in PRECISIONS:
            curve = train(texts, held_out, precision, seed, **values)
            say(
                f"{precision}, seed {seed}: {len(curve.losses)} steps, held-out perplexity "
                f"{curve.held_out:.2f}"
            )
            curves.append(curve)
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out, curves)
    rounding = max(farthest(curves[0], curves[1]), farthest(curves[2], curves[3]))
    seeds = farthest(curves[0], curves[2])
    say(f"float32 and bfloat16 are {rounding:.4f} nats apart at most, two seeds {seeds:.4f}")
    return int(rounding > seeds)


if __name__ == "__main__":
    raise SystemExit(main())
