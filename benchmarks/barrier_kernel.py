"""A kernel that does nothing but meet, with the barrier of the persistent LSTM."""

import torch
import triton
import triton.language as tl

from ulmfit_fast.kernels.grid_barrier import COUNTER_STRIDE, arrive, wait  # noqa: TID251
from ulmfit_fast.kernels.launch import give_key  # noqa: TID251

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
    give_key(_meet_kernel)
    _meet_kernel[(blocks,)](counter, error, meetings, _SPINS, device == "cuda", **options)
    return error
