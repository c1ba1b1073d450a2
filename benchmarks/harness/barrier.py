"""What a step of a persistent kernel costs at least: a barrier among all blocks of a launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from benchmarks.harness.settings import Settings
from benchmarks.harness.timing import time_interleaved
from ulmfit_fast.kernels.grid_barrier import COUNTER_STRIDE, arrive, wait  # noqa: TID251
from ulmfit_fast.kernels.launch import give_key  # noqa: TID251

_BARRIERS = (10, 1010)
_SPINS = 200_000


@triton.jit
def _barrier_kernel(counter, error, barriers, SPINS: tl.constexpr, INLINE_POLL: tl.constexpr):
    blocks = tl.num_programs(0)
    alive = 1
    for passed in range(barriers):
        arrive(counter)
        target = (passed + 1) * blocks
        alive = wait(counter, error, target, alive, SPINS, INLINE_POLL)


def synchronize(blocks: int, barriers: int, device: str) -> torch.Tensor:
    """Launch blocks that synchronize so often.

    Args:
        blocks: of the grid; they must fit on the device at once.
        barriers: how often.
        device: "cuda", or "cpu" in Triton's interpreter.

    Returns:
        A flag of one element, not 0 once a block has waited too long.
    """
    counter = torch.zeros(COUNTER_STRIDE.value, dtype=torch.int32, device=device)
    error = torch.zeros(1, dtype=torch.int32, device=device)
    options = {"num_warps": 4, "launch_cooperative_grid": True}
    give_key(_barrier_kernel)
    _barrier_kernel[(blocks,)](counter, error, barriers, _SPINS, device == "cuda", **options)
    return error


def barrier_us(settings: Settings) -> float:
    """Measure one barrier of one block on each multiprocessor, in microseconds.

    It is the difference of two launches with many and with few barriers. In Triton's interpreter,
    where the blocks run one after the other, a single block waits for itself.
    """
    few, many = _BARRIERS if settings.cuda else (1, 51)
    blocks = 1
    if settings.cuda:
        blocks = torch.cuda.get_device_properties(0).multi_processor_count

    if int(synchronize(blocks, many, settings.device)):
        settings.note("the cost of a barrier: the blocks did not synchronize")
        return 0.0

    def launch(barriers: int) -> None:
        synchronize(blocks, barriers, settings.device)

    steps = {count: lambda turn, count=count: launch(count) for count in (few, many)}
    times, failed = time_interleaved(steps, repeats=settings.repeats, cuda=settings.cuda)
    if failed:
        settings.note(f"the cost of a barrier: {next(iter(failed.values()))}")
        return 0.0
    return max(0.0, (times[many].median - times[few].median) / (many - few))
