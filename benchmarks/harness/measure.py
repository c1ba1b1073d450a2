"""One group of rows: implementations of the same thing, checked, then timed in turns."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness import check, memory, show
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.timing import UNABLE, Times, captured, time_interleaved

Step = Callable[[int], object]


@dataclass
class Entry:
    """One implementation in a group.

    Attributes:
        name: what it is called in the report.
        passes: "forward", "training" or the part of a step.
        dtype: compute dtype.
        step: runs once, on the input that belongs to the number of the turn.
        error: runs it on known masks and returns the largest relative error; it serves all passes
            of the name. None for a part of what has been checked as a whole.
        replay: the step to capture in a CUDA graph, or None.
        weight_p: weight-drop.
        gate_p: gate dropout.
        floor_us: least time on this device.
        tokens: tokens in one call, for tokens per second.
        mask_bits: keep-bits in one call.
    """

    name: str
    passes: str
    dtype: torch.dtype
    step: Step
    error: Callable[[], float] | None = None
    replay: Step | None = None
    weight_p: float = 0.0
    gate_p: float = 0.0
    floor_us: float | None = None
    tokens: int | None = None
    mask_bits: int | None = None


def compare(
    entries: Sequence[Entry],
    settings: Settings,
    *,
    question: str,
    baseline: str,
    repeats: int | None = None,
    **shape: Any,
) -> list[Row]:
    """Check every entry, time those that are right, and print a row for each.

    Args:
        entries: the group.
        settings: of the run.
        question: of the rows.
        baseline: name of the entry whose time is divided by the others'.
        repeats: samples of each, where the settings' are too many.
        **shape: further fields of the rows.
    """
    rows: list[Row] = []
    steps: dict[tuple[int, str], Step] = {}
    errors: dict[str, float] = {}

    def made(entry: Entry, **values: Any) -> Row:
        return settings.row(
            question=question,
            implementation=entry.name,
            passes=entry.passes,
            dtype=str(entry.dtype).removeprefix("torch."),
            weight_p=entry.weight_p,
            gate_p=entry.gate_p,
            baseline=baseline,
            **{"error": _short(errors.get(_key(entry))), **shape, **values},
        )

    unable: set[str] = set()
    for index, entry in enumerate(entries):
        key = _key(entry)
        if key in unable:
            continue
        largest = check.tolerance(entry.dtype, settings.cuda)
        try:
            if key not in errors and entry.error is not None:
                errors[key] = entry.error()
            if not errors.get(key, 0.0) <= largest:
                rows.append(made(entry, right=False))
                settings.say(show.line(rows[-1]))
                continue
            if settings.gpu and entry.replay is not None:
                steps[index, "graph"] = captured(entry.replay)
        except UNABLE as problem:
            settings.note(f"{entry.name}, {question} {entry.passes}: {_first_line(problem)}")
            if entry.error is not None and key not in errors:
                # What raised in its check is not timed in any other pass either.
                unable.add(key)
                continue
        steps[index, "eager"] = entry.step
    times, failed = time_interleaved(
        steps,
        repeats=repeats or settings.repeats,
        cuda=settings.cuda,
        warm_up=not settings.tiny,
    )
    for (index, launched), problem in failed.items():
        name = f"{entries[index].name} ({launched})"
        settings.note(f"{name}, {question} {entries[index].passes}: {_first_line(problem)}")
    for (index, launched), time in times.items():
        entry = entries[index]
        base = _baseline(entry, launched, entries, times, baseline, settings)
        values = measured(entry, time, base)
        if settings.cuda and launched == "eager":
            values["peak_bytes"] = memory.peak_on_cuda(functools.partial(entry.step, 0))
        rows.append(made(entry, launched=launched, **values))
        settings.say(show.line(rows[-1]))
    if settings.cuda:
        # Each captured graph has memory of its own.
        steps.clear()
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def measured(entry: Entry, time: Times, base: float | None) -> dict[str, Any]:
    """Return the fields of a row that follow from its time.

    Args:
        entry: what was timed.
        time: its times.
        base: the baseline's median, or None.
    """
    rate = 1e6 / time.median
    return {
        "median_us": round(time.median, 2),
        "p10_us": round(time.p10, 2),
        "p90_us": round(time.p90, 2),
        "repeats": time.repeats,
        "times_as_fast": None if base is None else round(base / time.median, 3),
        "floor_us": None if entry.floor_us is None else round(entry.floor_us, 2),
        "achieved": None if entry.floor_us is None else round(entry.floor_us / time.median, 4),
        "tokens_per_second": entry.tokens and round(entry.tokens * rate, 1),
        "mask_bits_per_second": entry.mask_bits and round(entry.mask_bits * rate, 1),
    }


def _baseline(
    entry: Entry,
    launched: str,
    entries: Sequence[Entry],
    times: dict[tuple[int, str], Times],
    baseline: str,
    settings: Settings,
) -> float | None:
    """Return the median of the baseline that was launched alike.

    A group of several dtypes has the baseline in the run's own; else it is in the entry's.
    """
    found = {
        other.dtype: times[index, launched].median
        for index, other in enumerate(entries)
        if (index, launched) in times and (other.name, other.passes) == (baseline, entry.passes)
    }
    return found.get(settings.dtype, found.get(entry.dtype))


def _key(entry: Entry) -> str:
    return f"{entry.name} {entry.dtype}"


def _short(error: float | None) -> float | None:
    return None if error is None else float(f"{error:.3g}")


def _first_line(problem: Exception) -> str:
    text = str(problem).strip().split("\n")[0]
    return f"{type(problem).__name__}: {text[:160]}"
