"""A barrier among the blocks of one launch, whose co-residency the launch guarantees.

Counters start at 0 and only grow: the s-th meeting of n blocks is over at (s + 1) n. Nothing is
reset inside a kernel. README.md beside this file argues why this is correct.
"""

import triton
import triton.language as tl

__all__ = ["COUNTER_STRIDE", "MAX_SPINS", "arrive", "wait"]

# Counters in int32, each on its own 128-byte line.
COUNTER_STRIDE: tl.constexpr = tl.constexpr(32)
# Some 0.2 s of polls: far beyond any step, far below a watchdog.
MAX_SPINS = 200_000


@triton.jit
def arrive(counter):
    """Make what this block has stored visible to the device, then count it in."""
    # All warps' stores precede the release of the one thread that does the atomic.
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def _poll(counter, INLINE_POLL: tl.constexpr):
    if INLINE_POLL:
        # Every thread polls for itself: no broadcast through shared memory, no bar.sync a poll.
        return tl.inline_asm_elementwise(
            "ld.acquire.gpu.global.b32 $0, [$1];",
            "=r,l",
            [counter],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        return tl.atomic_add(counter, 0, sem="acquire", scope="gpu")


@triton.jit
def wait(counter, error, target, alive, MAX_SPINS: tl.constexpr, INLINE_POLL: tl.constexpr):
    """Spin until the counter reaches the target, but not for ever.

    Returns alive, or 0 once a block has given up: it then sets the error flag and never spins
    again, so a launch ends whatever happens.
    """
    limit = alive * MAX_SPINS
    seen = _poll(counter, INLINE_POLL)
    spins = 0
    while (seen < target) & (spins < limit):
        seen = _poll(counter, INLINE_POLL)
        spins += 1
    tl.store(error, 1, mask=seen < target)
    tl.debug_barrier()
    return alive * (seen >= target).to(tl.int32)
