"""Locked dropout of an LSTM's output together with the activation regularisers, in one pass.

The means are summed in a fixed order: every block writes its part, and the parts are added.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulmfit_fast.kernels.dropout import BLOCK, locked_dropout, locked_keep, time_rows, walk
from ulmfit_fast.kernels.launch import DropArguments, cdiv, launch

__all__ = ["backward", "dropout_and_means", "forward"]


@triton.jit
def _step(x, t, steps, stride, element, inside):
    """Load one step as float32; 0 before the first and after the last."""
    here = inside & (t >= 0) & (t < steps)
    return tl.load(x + t * stride + element, mask=here, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["steps"], do_not_specialize_on_alignment=["seed"])
def dropout_and_means_kernel(
    raw,
    dropped,
    parts,
    seed,
    steps,
    plane,
    stride,
    threshold,
    scale,
    square_weight,
    difference_weight,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    ON_RAW: tl.constexpr,
):
    """Drop, and write this block's weighted sums of squares and of squared differences."""
    block = tl.program_id(0)
    keep = locked_keep(tl.load(seed), block, threshold, scale, BLOCK)  # (BLOCK,)
    element = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    inside = element < plane
    first = (tl.program_id(1) * STEPS).to(tl.int64)
    squares = tl.zeros((BLOCK,), tl.float32)  # (BLOCK,)
    differences = tl.zeros((BLOCK,), tl.float32)
    before = _step(raw, first - 1, steps, stride, element, inside)  # (BLOCK,)
    for step in tl.static_range(STEPS):
        t = first + step
        value = _step(raw, t, steps, stride, element, inside)
        kept = (tl.where(keep, value, 0.0) * scale).to(dropped.dtype.element_ty)
        tl.store(dropped + t * plane + element, kept, mask=inside & (t < steps))
        active = value if ON_RAW else kept.to(tl.float32)
        squares += active * active
        difference = tl.where((t > 0) & (t < steps), value - before, 0.0)
        differences += difference * difference
        before = value
    part = tl.program_id(1) * tl.num_programs(0) + block
    count = tl.num_programs(0) * tl.num_programs(1)
    tl.store(parts + part, tl.sum(squares, 0) * square_weight)
    tl.store(parts + count + part, tl.sum(differences, 0) * difference_weight)


@triton.jit(do_not_specialize=["steps"], do_not_specialize_on_alignment=["seed"])
def dropout_and_means_backward_kernel(
    grad_dropped,
    grad_means,
    raw,
    grad_raw,
    seed,
    steps,
    plane,
    grad_stride,
    stride,
    threshold,
    scale,
    square_weight,
    difference_weight,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    ON_RAW: tl.constexpr,
    HAS_GRAD: tl.constexpr,
):
    """Add up the gradients that reach raw through the dropped output and both means."""
    block = tl.program_id(0)
    keep = locked_keep(tl.load(seed), block, threshold, scale, BLOCK)  # (BLOCK,)
    element = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    inside = element < plane
    first = (tl.program_id(1) * STEPS).to(tl.int64)
    of_square = 2.0 * square_weight * tl.load(grad_means)
    of_difference = 2.0 * difference_weight * tl.load(grad_means + 1)
    before = _step(raw, first - 1, steps, stride, element, inside)  # (BLOCK,)
    value = _step(raw, first, steps, stride, element, inside)
    for step in tl.static_range(STEPS):
        t = first + step
        after = _step(raw, t + 1, steps, stride, element, inside)
        total = tl.zeros((BLOCK,), tl.float32)
        if HAS_GRAD:
            total = _step(grad_dropped, t, steps, grad_stride, element, inside)
        if ON_RAW:
            total = tl.where(keep, total, 0.0) * scale + of_square * value
        else:
            # The forward squared the rounded value.
            kept = (tl.where(keep, value, 0.0) * scale).to(raw.dtype.element_ty).to(tl.float32)
            total = tl.where(keep, total + of_square * kept, 0.0) * scale
        slope = tl.where(t > 0, value - before, 0.0)
        slope -= tl.where(t + 1 < steps, after - value, 0.0)
        total += of_difference * slope
        here = inside & (t < steps)
        tl.store(grad_raw + t * plane + element, total.to(grad_raw.dtype.element_ty), mask=here)
        before = value
        value = after


def _sizes(raw, p):
    """Return the grid's sizes and what both kernels take after the strides."""
    steps, plane = raw.shape[0], raw.shape[1] * raw.shape[2]
    # A sequence of one step has no difference, and its mean is 0.
    weights = (1.0 / (steps * plane), 1.0 / ((steps - 1) * plane) if steps > 1 else 0.0)
    return steps, plane, (*DropArguments.of([p]).arguments, *weights)


def forward(raw, seed, p, on_raw):
    """Launch the forward; see `dropout_and_means`."""
    raw = time_rows(raw)
    steps, plane, rest = _sizes(raw, p)
    grid = (cdiv(plane, BLOCK), cdiv(steps, walk(steps)))
    dropped = torch.empty_like(raw, memory_format=torch.contiguous_format)  # (T, B, F)
    parts = raw.new_empty(2, grid[0] * grid[1], dtype=torch.float32)  # (2, blocks)
    launch(
        dropout_and_means_kernel,
        grid,
        (raw, dropped, parts, seed, steps, plane, raw.stride(0), *rest),
        {"BLOCK": BLOCK, "STEPS": walk(steps), "ON_RAW": on_raw},
        {"num_warps": 4},
    )
    return dropped, parts.sum(1)  # (T, B, F), (2,)


def backward(grad_dropped, grad_means, raw, seed, p, on_raw):
    """Launch the backward; grad_dropped may be None, grad_means is `(2,)`."""
    raw = time_rows(raw)
    steps, plane, rest = _sizes(raw, p)
    grad = None if grad_dropped is None else time_rows(grad_dropped)
    grad_raw = torch.empty_like(raw, memory_format=torch.contiguous_format)  # (T, B, F)
    strides = (0 if grad is None else grad.stride(0), raw.stride(0))
    launch(
        dropout_and_means_backward_kernel,
        (cdiv(plane, BLOCK), cdiv(steps, walk(steps))),
        (grad, grad_means.contiguous(), raw, grad_raw, seed, steps, plane, *strides, *rest),
        {"BLOCK": BLOCK, "STEPS": walk(steps), "ON_RAW": on_raw, "HAS_GRAD": grad is not None},
        {"num_warps": 4},
    )
    return grad_raw


@torch.library.custom_op("ulmfit_fast::dropout_and_means", mutates_args=())
def dropout_and_means(raw: Tensor, seed: Tensor, p: float, on_raw: bool) -> tuple[Tensor, Tensor]:
    """Drop the same features at every step, and take the means of the activation regularisers.

    Args:
        raw: `(T, B, F)`, not empty.
        seed: 0-d int64 on raw's device.
        p: probability in [0, 1].
        on_raw: take the squares before the dropout.

    Returns:
        The dropped output, the dtype of raw; and `(2,)` float32, the mean square and the mean
        squared difference of successive steps of raw, 0 for T = 1.
    """
    return forward(raw, seed, p, on_raw)


@dropout_and_means.register_fake
def _(raw, seed, p, on_raw):
    dropped = torch.empty_like(raw, memory_format=torch.contiguous_format)  # (T, B, F)
    return dropped, raw.new_empty(2, dtype=torch.float32)


@torch.library.custom_op("ulmfit_fast::dropout_and_means_backward", mutates_args=())
def _dropout_and_means_backward(
    grad_dropped: Tensor | None,
    grad_means: Tensor,
    raw: Tensor,
    seed: Tensor,
    p: float,
    on_raw: bool,
) -> Tensor:
    return backward(grad_dropped, grad_means, raw, seed, p, on_raw)


@_dropout_and_means_backward.register_fake
def _(grad_dropped, grad_means, raw, seed, p, on_raw):
    return torch.empty_like(raw, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    raw, seed, ctx.p, ctx.on_raw = inputs
    ctx.save_for_backward(raw, seed)
    # Or zeros would be made for a dropped output that nothing was computed from.
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_dropped, grad_means):
    raw, seed = ctx.saved_tensors
    if grad_means is not None:
        grad = _dropout_and_means_backward(grad_dropped, grad_means, raw, seed, ctx.p, ctx.on_raw)
    else:
        grad = None if grad_dropped is None else locked_dropout(grad_dropped, seed, ctx.p)
    return grad, None, None, None


def _no_double_backward(ctx, *grads):
    raise NotImplementedError(
        "the fused dropout with regularisers has no second derivative; compute it in "
        'backend.use("reference")'
    )


dropout_and_means.register_autograd(_gradients, setup_context=_save)
_dropout_and_means_backward.register_autograd(_no_double_backward)
