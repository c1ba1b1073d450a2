"""The goals, as ratios of one run: met or missed, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.compared.baselines import KERNELS, PLAIN, TODAY
from benchmarks.harness.rows import Row
from benchmarks.questions import dropout_cost, layer, lm_step, masks

_OURS = lm_step.OURS
_KERNEL = f"ulmfit_fast {KERNELS[0]}"


@dataclass(frozen=True)
class Goal:
    """A ratio that is wanted.

    Attributes:
        what: in words.
        wanted: the ratio.
        ours: fields of the row that is judged.
        theirs: fields of the row that it is held against, beside those of `ours` but the name.
        measure: "time", theirs over ours; "memory", ours over theirs, at most `wanted`; "floor",
            ours over its floor, and "cost", ours over theirs, likewise.
    """

    what: str
    wanted: float
    ours: dict[str, object]
    theirs: dict[str, object]
    measure: str = "time"


def _layer(
    widths: tuple[int, int],
    batch_size: int,
    dtype: str,
    wanted: float,
    name: str = TODAY,
    beside: str = "",
) -> Goal:
    beside = beside or dtype
    questions = {"float32": layer.QUESTION, "bfloat16": layer.BFLOAT16}
    sizes = {"input_size": widths[0], "hidden_size": widths[1], "batch_size": batch_size}
    ours = {"question": questions[dtype], "passes": "training", "dtype": dtype, **sizes}
    what = (
        f"CPU, layer {widths[0]}→{widths[1]}, B={batch_size}, forward + backward with weight_p, "
        f"{dtype}, beside {name} in {beside}"
    )
    theirs = {"question": questions[beside], "implementation": name, "dtype": beside}
    return Goal(what, wanted, {**ours, "implementation": "ulmfit_fast auto"}, theirs)


def _step(
    where: str,
    wanted: float,
    vocab_size: int,
    name: str,
    dtype: str,
    theirs: str = "",
    **fields: Any,
) -> Goal:
    theirs = theirs or dtype
    shape = {"question": "lm_step", "passes": "step", "vocab_size": vocab_size, "dtype": dtype}
    sizes = "".join(f", {key[0].upper()}={value}" for key, value in fields.items() if key[1] != "u")
    what = f"{where}, LM step, V={vocab_size:,}{sizes}, {dtype}, beside {name} in {theirs}"
    other = {"implementation": name, "dtype": theirs}
    return Goal(what, wanted, {**shape, **fields, "implementation": _OURS}, other)


_STACK = {
    "question": layer.STACK,
    "passes": "training",
    "input_size": 400,
    "implementation": _KERNEL,
    "dtype": "bfloat16",
    "launched": "eager",
}
_LM = {"question": "lm_step", "passes": "step", "vocab_size": 60_008, "dtype": "bfloat16"}

_SIZES = {"question": lm_step.SIZES}

GOALS = [
    *(
        _step("CPU", wanted, 15_008, lm_step.FASTAI, dtype, theirs)
        for dtype, theirs, wanted in (
            ("float32", "float32", 1.4),
            ("bfloat16", "bfloat16", 2.0),
            ("bfloat16", "float32", 2.5),
        )
    ),
    *(
        _step("CPU", wanted, 15_008, lm_step.FASTAI, dtype, theirs, batch_size=64, **_SIZES)
        for dtype, theirs, wanted in (
            ("float32", "float32", 1.4),
            ("bfloat16", "bfloat16", 2.2),
            ("bfloat16", "float32", 4.5),
        )
    ),
    *(
        _step("CPU", 2.0, vocab_size, lm_step.FASTAI, dtype, hidden_size=hidden, **_SIZES)
        for vocab_size, hidden in ((6_000, 192), (20_000, 256))
        for dtype in ("float32", "bfloat16")
    ),
    *(
        _layer(widths, batch_size, "float32", wanted)
        for widths in ((400, 1152), (1152, 1152))
        for batch_size, wanted in ((16, 1.3), (64, 1.12))
    ),
    *(
        _layer((400, 1152), batch_size, "float32", wanted, "fastai WeightDropout")
        for batch_size, wanted in ((16, 1.3), (64, 1.12))
    ),
    *(
        _layer(widths, batch_size, "bfloat16", wanted, beside=beside)
        for widths in ((400, 1152), (1152, 1152))
        for batch_size, beside, wanted in (
            (16, "bfloat16", 2.5),
            (64, "bfloat16", 1.8),
            (16, "float32", 4.0),
            (64, "float32", 4.0),
        )
    ),
    Goal(
        "CPU, a weight of H=1152 dropped, beside F.dropout",
        10.0,
        {"question": masks.QUESTION, "passes": "drop", "implementation": "ulmfit_fast Philox"},
        {"implementation": "F.dropout"},
    ),
    *(
        Goal(
            f"CPU, layer 400→1152, B=16, float32, {variant} against p=0",
            1.1,
            {
                **{"question": "dropout_cost", "passes": "training", "dtype": "float32"},
                "implementation": dropout_cost.name_of("auto", variant),
            },
            {"implementation": dropout_cost.name_of("auto", "p=0")},
            "cost",
        )
        for variant in ("weight_p", "gate_p", "both")
    ),
    Goal(f"GPU, stack beside {TODAY}", 3.0, _STACK, {"implementation": TODAY}),
    Goal(
        f"GPU, stack beside {PLAIN} in float16 without dropout",
        2.0,
        _STACK,
        {"implementation": PLAIN, "dtype": "float16"},
    ),
    Goal("GPU, stack over its floor", 1.6, _STACK, {}, "floor"),
    *(
        _step("GPU", 3.0, 60_008, lm_step.TODAY, "bfloat16", theirs)
        for theirs in ("bfloat16", "float16")
    ),
    Goal(
        "GPU, LM step's peak memory beside fastai-style",
        0.5,
        {**_LM, "implementation": _OURS},
        {"implementation": lm_step.TODAY},
        "memory",
    ),
    *(
        Goal(
            f"GPU, persistent form, {variant} against p=0, {passes}",
            1.03,
            {
                "question": "dropout_cost",
                "passes": passes,
                "launched": "eager",
                "dtype": "bfloat16",
                "implementation": dropout_cost.name_of(KERNELS[0], variant),
            },
            {"implementation": dropout_cost.name_of(KERNELS[0], "p=0")},
            "cost",
        )
        for variant in ("weight_p", "gate_p", "both")
        for passes in ("forward", "training")
    ),
]


def lines(rows: Sequence[Row]) -> list[str]:
    """Say of each goal whose rows are there whether it is met."""
    found = []
    for goal in GOALS:
        value = ratio(goal, rows)
        if value is None:
            continue
        low = goal.measure == "time"
        met = value >= goal.wanted if low else value <= goal.wanted
        distance = abs(value / goal.wanted - 1)
        verdict = "met" if met else "missed"
        sign = ">=" if low else "<="
        found.append(
            f"{goal.what}: {value:.2f}, wanted {sign} {goal.wanted:g}: {verdict} by {distance:.0%}"
        )
    return found


def ratio(goal: Goal, rows: Sequence[Row]) -> float | None:
    """Return what a goal is about, or None where its rows are not there."""
    ours = _find(rows, goal.ours)
    if ours is None:
        return None
    if goal.measure == "floor":
        return ours.median_us / ours.floor_us if ours.median_us and ours.floor_us else None
    theirs = _find(rows, {**goal.ours, **goal.theirs})
    if theirs is None:
        return None
    if goal.measure == "memory":
        known = ours.peak_bytes is not None and theirs.peak_bytes
        return ours.peak_bytes / theirs.peak_bytes if known else None
    if not ours.median_us or not theirs.median_us:
        return None
    times = theirs.median_us / ours.median_us
    return times if goal.measure == "time" else 1 / times


def _find(rows: Sequence[Row], fields: dict[str, object]) -> Row | None:
    for row in rows:
        if all(getattr(row, name) == value for name, value in fields.items()):
            return row
    return None
