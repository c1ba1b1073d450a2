"""A barrier among the blocks of one launch, whose co-residency the launch guarantees.

Counters start at 0 and only grow: the s-th barrier of n blocks is passed at (s + 1) n. Nothing is
reset inside a kernel. README.md beside this file argues why this is correct.
"""

import torch
import triton
import triton.language as tl

__all__ = ["COUNTER_STRIDE", "MAX_SPINS", "arrive", "make_counters", "wait"]

# Counters in int32, each on its own 128-byte line.
COUNTER_STRIDE: tl.constexpr = tl.constexpr(32)
# How long a block waits. On a device a poll counts for 15 us, whatever one takes: three seconds,
# far beyond a peer that straggles behind another process, below the 4.2 of the clock's lower half.
MAX_SPINS = 200_000


def make_counters(launches, count, device):
    """Return counters for each launch and an error flag for all of them, all 0.

    For one call and never shared with another stream; a captured graph makes them 0 again.
    """
    stride = COUNTER_STRIDE.value
    zeros = torch.zeros(launches * count + 1, stride, dtype=torch.int32, device=device)
    return zeros[:-1].view(launches, count * stride), zeros[-1, :1]


@triton.jit
def arrive(counter):
    """Make what this block has stored visible to the device, then count it in."""
    # All warps' stores precede the release of the one thread that does the atomic.
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


# One warp polls, until the counter is there or the time is over; what it found, all threads hear of
# at a barrier of the block.
_WAIT: tl.constexpr = tl.constexpr("""
{
.reg .pred mine, more, late;
.reg .b32 thread, seen, begun, now, limit;
mov.u32 thread, %tid.x;
mov.b32 seen, $2;
setp.lt.u32 mine, thread, 32;
@!mine bra found;
mul.lo.u32 limit, $3, 15000;
mov.u32 begun, %globaltimer_lo;
look:
ld.acquire.gpu.global.b32 seen, [$1];
setp.ge.s32 more, seen, $2;
@more bra found;
mov.u32 now, %globaltimer_lo;
sub.u32 now, now, begun;
setp.lt.u32 more, now, limit;
@more bra look;
found:
setp.lt.s32 late, seen, $2;
barrier.red.or.pred late, 0, late;
selp.b32 $0, 0, 1, late;
}
""")


@triton.jit
def wait(counter, error, target, alive, MAX_SPINS: tl.constexpr, INLINE_POLL: tl.constexpr):
    """Wait until the counter reaches the target, but not for ever.

    Returns alive, or 0 once a block has given up: it then sets the error flag and never waits
    again, so a launch ends whatever happens.
    """
    if INLINE_POLL:
        arrived = tl.inline_asm_elementwise(
            _WAIT,
            "=r,l,r,r",
            [counter, target, alive * MAX_SPINS],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        limit = alive * MAX_SPINS
        seen = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
        spins = 0
        while (seen < target) & (spins < limit):
            seen = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
            spins += 1
        arrived = (seen >= target).to(tl.int32)
        tl.debug_barrier()
    tl.store(error, 1, mask=arrived == 0)
    return alive * arrived
