"""Locked dropout: one mask for all time steps, in one pass.

A block draws its part of the locked mask once and walks over several time steps with it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulmfit_fast.kernels.launch import DropArguments, cdiv, launch
from ulmfit_fast.kernels.philox import threshold_bits

__all__ = [
    "BLOCK",
    "KIND_LOCKED",
    "drop_locked",
    "four_words",
    "kept",
    "locked_dropout",
    "locked_keep",
    "side_by_side",
    "time_rows",
    "walk",
]

KIND_LOCKED: tl.constexpr = tl.constexpr(3)

# Elements of one step and steps of a block. A mask costs ten rounds for every four elements, which
# eight steps of loads and stores hide; longer walks would leave too few blocks at (70, 64, 400).
BLOCK, STEPS = 1024, 8
# Along the second and third axes of a grid CUDA takes no more.
MOST_BLOCKS = 65_535


@triton.jit
def kept(word, threshold, scale):
    """Whether a word keeps its element; a scale of 0, that of p = 1, keeps none."""
    return (word.to(tl.uint32, bitcast=True) >= threshold_bits(threshold)) & (scale > 0.0)


@triton.jit
def four_words(seed, quad, KIND: tl.constexpr):
    """One Philox call a counter, as `rng.philox`."""
    zero = quad * 0
    return tl.philox(seed, quad, zero, zero, zero + KIND)


@triton.jit
def side_by_side(r_0, r_1, r_2, r_3, SHAPE: tl.constexpr):
    """The words of each counter as four neighbours."""
    return tl.reshape(tl.join(tl.join(r_0, r_2), tl.join(r_1, r_3)), SHAPE)


@triton.jit
def locked_keep(seed, block, threshold, scale, BLOCK: tl.constexpr):
    """Which elements of a block of a plane (B F,) are kept; four of them share one Philox call."""
    quad = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)  # (BLOCK // 4,)
    r_0, r_1, r_2, r_3 = four_words(seed, quad, KIND_LOCKED)
    return kept(side_by_side(r_0, r_1, r_2, r_3, (BLOCK,)), threshold, scale)  # (BLOCK,)


@triton.jit(do_not_specialize=["steps"], do_not_specialize_on_alignment=["seed"])
def locked_dropout_kernel(
    x, y, seed, steps, plane, stride, threshold, scale, BLOCK: tl.constexpr, STEPS: tl.constexpr
):
    """Multiply every step of (T, plane) by one mask of (plane,)."""
    block = tl.program_id(0)
    keep = locked_keep(tl.load(seed), block, threshold, scale, BLOCK)  # (BLOCK,)
    element = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    inside = element < plane
    for step in tl.static_range(STEPS):
        t = (tl.program_id(1) * STEPS + step).to(tl.int64)
        here = inside & (t < steps)
        value = tl.load(x + t * stride + element, mask=here, other=0.0).to(tl.float32)
        # Selected before it is scaled: what is dropped is 0, were it infinite before.
        value = tl.where(keep, value, 0.0) * scale
        tl.store(y + t * plane + element, value.to(y.dtype.element_ty), mask=here)


def walk(steps):
    """Return how many of T steps a block takes: a power of two, as each is compiled for itself."""
    steps_each = min(STEPS, triton.next_power_of_2(steps))
    return max(steps_each, triton.next_power_of_2(cdiv(steps, MOST_BLOCKS)))


def time_rows(x):
    """Return `(T, B, F)` with each step's plane contiguous, copied only where it is not."""
    return x if x.shape[0] and x[0].is_contiguous() else x.contiguous()


def drop_locked(x, seed, p):
    """Launch the kernel; see `locked_dropout`."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)  # (T, B, F)
    if x.numel():
        x = time_rows(x)
        steps, plane = x.shape[0], x.shape[1] * x.shape[2]
        launch(
            locked_dropout_kernel,
            (cdiv(plane, BLOCK), cdiv(steps, walk(steps))),
            (x, y, seed, steps, plane, x.stride(0), *DropArguments.of([p]).arguments),
            {"BLOCK": BLOCK, "STEPS": walk(steps)},
            {"num_warps": 4},
        )
    return y


@torch.library.custom_op("ulmfit_fast::locked_dropout", mutates_args=())
def locked_dropout(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """Drop the same features at every step.

    Args:
        x: `(T, B, F)`, or a gradient of it.
        seed: 0-d int64 on x's device.
        p: probability in [0, 1].

    Returns:
        `(T, B, F)`, the dtype of x.
    """
    return drop_locked(x, seed, p)


@locked_dropout.register_fake
def _(x, seed, p):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_seed(ctx, inputs, output):
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _locked_gradient(ctx, grad):
    # Masking is linear and its own transpose.
    return locked_dropout(grad, ctx.saved_tensors[0], ctx.p), None, None


locked_dropout.register_autograd(_locked_gradient, setup_context=_save_seed)
