"""What a step of a persistent kernel costs at least: a barrier among all blocks of a launch."""

from __future__ import annotations

import torch

from benchmarks.settings import Settings
from benchmarks.timing import take_turns

_MEETINGS = (10, 1010)


def meeting_us(settings: Settings) -> float:
    """Measure one meeting of one block on each multiprocessor, in microseconds.

    It is the difference of two launches with many and with few meetings. In Triton's interpreter,
    where the blocks run one after the other, a single block meets itself.
    """
    from benchmarks.barrier_kernel import meet

    few, many = _MEETINGS if settings.cuda else (1, 3)
    blocks = 1
    if settings.cuda:
        blocks = torch.cuda.get_device_properties(0).multi_processor_count

    if int(meet(blocks, many, settings.device)):
        settings.note("the cost of a barrier: the blocks did not meet")
        return 0.0

    def launch(meetings: int) -> None:
        meet(blocks, meetings, settings.device)

    steps = {count: lambda turn, count=count: launch(count) for count in (few, many)}
    times, failed = take_turns(steps, repeats=settings.repeats, cuda=settings.cuda)
    if failed:
        settings.note(f"the cost of a barrier: {next(iter(failed.values()))}")
        return 0.0
    return max(0.0, (times[many].median - times[few].median) / (many - few))
