"""The goals, as ratios of one run: met or missed, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.compared.baselines import KERNELS, PLAIN, TODAY
from benchmarks.harness.rows import Row
from benchmarks.questions import dropout_cost, layer, lm_step

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


def _layer(batch_size: int, wanted: float, name: str) -> Goal:
    shape = {"question": "layer", "passes": "training", "dtype": "float32", "steps": 70}
    ours = {**shape, "input_size": 400, "hidden_size": 1152, "batch_size": batch_size}
    what = f"CPU, layer 400→1152, B={batch_size}, forward + backward with weight_p, beside {name}"
    return Goal(
        what, wanted, {**ours, "implementation": "ulmfit_fast auto"}, {"implementation": name}
    )


def _weight_drop(batch_size: int, dtype: str) -> Goal:
    question = "layer" if dtype == "float32" else "layer_bfloat16"
    shape = {"question": question, "passes": "training", "dtype": dtype}
    ours = {**shape, "batch_size": batch_size, "input_size": 1152, "hidden_size": 1152, "steps": 70}
    what = f"CPU, eager beside {TODAY}, 1152→1152, B={batch_size}, {dtype}"
    return Goal(
        what, 1.0, {**ours, "implementation": "ulmfit_fast eager"}, {"implementation": TODAY}
    )


def _step(
    where: str, wanted: float, vocab_size: int, name: str, dtype: str, theirs: str = ""
) -> Goal:
    theirs = theirs or dtype
    shape = {"question": "lm_step", "passes": "step", "vocab_size": vocab_size, "dtype": dtype}
    what = f"{where}, LM step, V={vocab_size:,}, {dtype}, beside {name} in {theirs}"
    other = {"implementation": name, "dtype": theirs}
    return Goal(what, wanted, {**shape, "implementation": _OURS}, other)


_STACK = {
    "question": layer.STACK,
    "passes": "training",
    "input_size": 400,
    "implementation": _KERNEL,
    "dtype": "bfloat16",
    "launched": "eager",
}
_LM = {"question": "lm_step", "passes": "step", "vocab_size": 60_008, "dtype": "bfloat16"}

GOALS = [
    *(
        _step("CPU", wanted, 15_008, name, dtype)
        for dtype, wanted in (("float32", 1.3), ("bfloat16", 1.6))
        for name in (lm_step.TODAY, lm_step.FASTAI)
    ),
    *(
        _layer(batch_size, wanted, name)
        for batch_size, wanted in ((64, 1.1), (16, 1.3))
        for name in (TODAY, "fastai WeightDropout")
    ),
    *(_weight_drop(b, dtype) for dtype in ("float32", "bfloat16") for b in (16, 64)),
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
