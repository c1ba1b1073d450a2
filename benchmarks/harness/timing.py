"""Times of implementations that take turns in one run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

import torch

K = TypeVar("K", bound=Hashable)
# What an implementation may raise that cannot run on a device or at a size: other packages assert,
# and compile in their own ways. Every such error is noted in the report.
UNABLE = Exception
# Random inputs that a step rotates through.
INPUTS = 2
# A sample is of so many calls that it takes this long, seconds: less would time the clock.
_SAMPLE = 0.002
_WARM_UP = 0.05


class Times(NamedTuple):
    """Microseconds of one call.

    Attributes:
        median: of all samples.
        p10: tenth percentile.
        p90: ninetieth percentile.
        repeats: samples.
    """

    median: float
    p10: float
    p90: float
    repeats: int

    @classmethod
    def of(cls, samples: list[float]) -> Times:
        """Summarise samples."""
        ordered = sorted(samples)
        tenth = len(ordered) // 10
        median = statistics.median(ordered)
        return cls(median, ordered[tenth], ordered[-1 - tenth], len(ordered))


def captured(step: Callable[[int], object]) -> Callable[[int], object]:
    """Capture a step in CUDA graphs, one for each of the inputs that it rotates through.

    Without CUDA, in the dry run, the step is returned as it is.
    """
    if not torch.cuda.is_available():
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for turn in range(3):
            step(turn)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graphs = []
    for turn in range(INPUTS):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(turn)
        graphs.append(graph)
    return lambda turn: graphs[turn % INPUTS].replay()


def time_interleaved(
    steps: Mapping[K, Callable[[int], object]], *, repeats: int, cuda: bool, warm_up: bool = True
) -> tuple[dict[K, Times], dict[K, Exception]]:
    """Time steps in turns, so that whatever drifts hits all of them alike.

    Args:
        steps: functions of the number of the turn, by which they choose their input.
        repeats: samples of each.
        cuda: time with CUDA events.
        warm_up: run each first until the clocks have risen and caches are warm.

    Returns:
        The times, and what the others ended with.
    """
    calls, failed = {}, {}
    for key, step in steps.items():
        try:
            calls[key] = _warm_up(step, cuda) if warm_up else 1
        except UNABLE as error:
            # One that cannot run here must not take the others with it.
            failed[key] = error
    samples: dict[K, list[float]] = {key: [] for key in calls}
    for turn in range(repeats):
        for key in calls if turn % 2 == 0 else reversed(calls):
            if key in failed:
                continue
            try:
                samples[key].append(_sample(steps[key], turn, calls[key], cuda))
            except UNABLE as error:
                failed[key] = error
    times = {key: Times.of(values) for key, values in samples.items() if key not in failed}
    return times, failed


def _warm_up(step: Callable[[int], object], cuda: bool) -> int:
    """Run a step a few times and return how many calls make one sample."""
    fastest, start, turn = math.inf, time.perf_counter(), 0
    enough = 3 if cuda else 1
    while turn < enough or time.perf_counter() - start < _WARM_UP:
        before = time.perf_counter()
        step(turn)
        if cuda:
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - before)
        turn += 1
    return max(1, math.ceil(_SAMPLE / fastest))


def _sample(step: Callable[[int], object], turn: int, calls: int, cuda: bool) -> float:
    """Return the microseconds of one call, averaged over so many in a row."""
    if cuda:
        # What still runs would hide the launches of this sample behind it.
        torch.cuda.synchronize()
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for call in range(calls):
            step(turn + call)
        after.record()
        after.synchronize()
        return 1000 * before.elapsed_time(after) / calls
    start = time.perf_counter()
    for call in range(calls):
        step(turn + call)
    return 1e6 * (time.perf_counter() - start) / calls
