"""Weight-drop as kernels of their own: the dropped weight, and its gradient.

The interleaved order has row 4 unit + gate, where PyTorch has gate H + unit.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulmfit_fast.kernels.launch import DropArguments, cdiv, launch
from ulmfit_fast.kernels.philox import weight_scales

__all__ = ["drop_weight", "drop_weight_triton", "interleave", "unmix_gradient"]


@triton.jit(do_not_specialize=["mask_stream"], do_not_specialize_on_alignment=["seed"])
def weight_drop_kernel(
    source,
    target,
    seed,
    mask_stream,
    drop,
    HIDDEN: tl.constexpr,
    UNITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DROP: tl.constexpr,
    SOURCE_INTERLEAVED: tl.constexpr,
    TARGET_INTERLEAVED: tl.constexpr,
):
    """Multiply a (4H, H) matrix by the weight mask and change the order of its rows."""
    unit = (tl.program_id(0) * UNITS + tl.arange(0, UNITS))[:, None]  # (UNITS, 1)
    k = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]  # (1, COLUMNS)
    inside = (unit < HIDDEN) & (k < HIDDEN)  # (UNITS, COLUMNS)
    if DROP:
        scales = weight_scales(tl.load(seed), unit, k, mask_stream, drop, HIDDEN)
    for gate in tl.static_range(4):
        row_in = 4 * unit + gate if SOURCE_INTERLEAVED else gate * HIDDEN + unit
        row_out = 4 * unit + gate if TARGET_INTERLEAVED else gate * HIDDEN + unit
        value = tl.load(source + row_in * HIDDEN + k, mask=inside, other=0.0).to(tl.float32)
        if DROP:
            # Not a product: what is dropped is 0, were it infinite before.
            value = tl.where(scales[gate] > 0.0, value * scales[gate], 0.0)
        tl.store(target + row_out * HIDDEN + k, value.to(target.dtype.element_ty), mask=inside)


def _run(source, drop, seed, mask_stream, *, source_interleaved, target_interleaved):
    hidden = source.shape[1]
    target = torch.empty_like(source, memory_format=torch.contiguous_format)  # (4H, H)
    units, columns = 16, 64
    launch(
        weight_drop_kernel,
        (cdiv(hidden, units), cdiv(hidden, columns)),
        (source.contiguous(), target, seed, mask_stream, drop.arguments),
        {
            "HIDDEN": hidden,
            "UNITS": units,
            "COLUMNS": columns,
            "DROP": drop.active,
            "SOURCE_INTERLEAVED": source_interleaved,
            "TARGET_INTERLEAVED": target_interleaved,
        },
        {"num_warps": 4},
    )
    return target


def drop_weight(weight, drop, seed, mask_stream):
    """Return the dropped recurrent weight `(4H, H)` in interleaved order.

    Args:
        weight: `(4H, H)` in PyTorch's order.
        drop: `DropArguments` of weight_p.
        seed: 0-d int64 on the device.
        mask_stream: 2 * layer + reverse.
    """
    return _run(weight, drop, seed, mask_stream, source_interleaved=False, target_interleaved=True)


def unmix_gradient(grad, drop, seed, mask_stream):
    """Return an interleaved gradient `(4H, H)` masked, in PyTorch's order; see `drop_weight`."""
    return _run(grad, drop, seed, mask_stream, source_interleaved=True, target_interleaved=False)


def interleave(matrix, dtype):
    """Reorder the rows of a `(4H, ...)` weight or bias, so that a unit's gates are adjacent."""
    by_unit = matrix.unflatten(0, (4, -1)).transpose(0, 1)  # (H, 4, ...)
    return by_unit.to(dtype, copy=True, memory_format=torch.contiguous_format).flatten(0, 1)


@torch.library.custom_op("ulmfit_fast::drop_weight_triton", mutates_args=())
def drop_weight_triton(weight: Tensor, seed: Tensor, p: Sequence[float], stream: int) -> Tensor:
    """Apply weight-drop to a `(4H, H)` weight in PyTorch's order, for PyTorch's own LSTM.

    Args:
        weight: `(4H, H)`, or a gradient of it.
        seed: 0-d int64 on weight's device.
        p: four drop probabilities.
        stream: 2 * layer + reverse.

    Returns:
        `(4H, H)`, the dtype of weight.
    """
    drop = DropArguments.of(p)
    return _run(weight, drop, seed, stream, source_interleaved=False, target_interleaved=False)


@drop_weight_triton.register_fake
def _(weight, seed, p, stream):
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _save_seed(ctx, inputs, output):
    _, seed, ctx.p, ctx.stream = inputs
    ctx.save_for_backward(seed)


def _mask_gradient(ctx, grad):
    # Masking is linear and its own transpose.
    (seed,) = ctx.saved_tensors
    return drop_weight_triton(grad, seed, ctx.p, ctx.stream), None, None, None


drop_weight_triton.register_autograd(_mask_gradient, setup_context=_save_seed)
