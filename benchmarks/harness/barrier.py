"""What a step of a persistent kernel costs at least: a barrier among all blocks of a launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from benchmarks.harness.settings import Settings
from benchmarks.harness.timing import take_turns
from ulmfit_fast.kernels.grid_barrier import COUNTER_STRIDE, arrive, wait  # noqa: TID251

_MEETINGS = (10, 1010)
_SPINS = 200_000


@triton.jit
def _meet_kernel(counter, error, meetings, SPINS: tl.constexpr, INLINE_POLL: tl.constexpr):
    blocks = tl.num_programs(0)
    alive = 1
    for meeting in range(meetings):
        arrive(counter)
        target = (meeting + 1) * blocks
        alive = wait(counter, error, target, alive, SPINS, INLINE_POLL)


def meet(blocks: int, meetings: int, device: str) -> torch.Tensor:
    """Launch blocks that meet so often.

    Args:
        blocks: of the grid; they must fit on the device at once.
        meetings: how often.
        device: "cuda", or "cpu" in Triton's interpreter.

    Returns:
        A flag of one element, not 0 once a block has waited too long.
    """
    counter = torch.zeros(COUNTER_STRIDE.value, dtype=torch.int32, device=device)
    error = torch.zeros(1, dtype=torch.int32, device=device)
    options = {"num_warps": 4, "launch_cooperative_grid": True}
    _meet_kernel[(blocks,)](counter, error, meetings, _SPINS, device == "cuda", **options)
    return error


def meeting_us(settings: Settings) -> float:
    """Measure one meeting of one block on each multiprocessor, in microseconds.

    It is the difference of two launches with many and with few meetings. In Triton's interpreter,
    where the blocks run one after the other, a single block meets itself.
    """
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
