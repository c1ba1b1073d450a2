"""The custom operators of PyTorch that the LSTM is made of, each joined to its backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ulmfit_fast import rng
from ulmfit_fast.lstm.eager import lstm_eager
from ulmfit_fast.lstm.eager_backward import lstm_eager_backward
from ulmfit_fast.lstm.native import lstm_native

__all__ = ["LayerCall", "drop_weight", "lstm_eager", "lstm_eager_backward", "lstm_native"]


class LayerCall(NamedTuple):
    """One layer in one direction: the arguments of `lstm_eager`, in its order."""

    x: Tensor
    h0: Tensor
    c0: Tensor
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    lengths: Tensor | None
    seed: Tensor
    weight_p: Sequence[float]
    gate_p: Sequence[float]
    sequence: bool
    stream: int
    weight_mask: Tensor | None
    gate_mask: Tensor | None


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h0, c0, w_ih, w_hh, _, _, lengths, seed, *scalars, weight_mask, gate_mask = inputs
    out, _, _, gates, cells, dropped = output
    ctx.save_for_backward(
        x, h0, c0, w_ih, w_hh, lengths, seed, weight_mask, gate_mask, out, gates, cells, dropped
    )
    ctx.scalars = scalars
    ctx.mark_non_differentiable(gates, cells, dropped)
    # Or zeros would be made for the gates, the largest tensor of all.
    ctx.set_materialize_grads(False)


def _lstm_eager_gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, weight_mask, gate_mask, output, gates, cells, dropped = ctx.saved_tensors
    _, h0, c0, *_ = inputs
    wanted = ctx.needs_input_grad
    needs = [*wanted[:5], wanted[5] or wanted[6]]
    given = (
        torch.zeros_like(like) if grad is None else grad
        for grad, like in zip(grads[:3], (output, h0, c0), strict=True)
    )
    masks, kept = (weight_mask, gate_mask), (output, gates, cells, dropped)
    results = lstm_eager_backward(*given, *inputs, *ctx.scalars, *masks, *kept, needs)
    by_input = [grad if need else None for grad, need in zip(results, needs, strict=True)]
    grad_bias = by_input.pop()
    grad_b_ih, grad_b_hh = (grad_bias if want else None for want in wanted[5:7])
    if grad_b_ih is not None and grad_b_hh is not None:
        # Equal, but not one tensor: gradients are clipped and unscaled in place.
        grad_b_hh = grad_b_hh.clone()
    return (*by_input, grad_b_ih, grad_b_hh, *([None] * 8))


def _no_double_backward(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        'the eager LSTM has no double backward; use backend="reference" for second derivatives'
    )


lstm_eager.register_autograd(_lstm_eager_gradients, setup_context=_save_for_backward)
lstm_eager_backward.register_autograd(_no_double_backward)


@torch.library.custom_op("ulmfit_fast::drop_weight", mutates_args=())
def drop_weight(weight: Tensor, seed: Tensor, p: Sequence[float], stream: int) -> Tensor:
    """Apply weight-drop; its gradient is masked by the same seed. See `rng.drop_weight`."""
    return rng.drop_weight(weight, seed, p, stream=stream)


@drop_weight.register_fake
def _(weight: Tensor, seed: Tensor, p: Sequence[float], stream: int) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _save_dropped(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, seed, ctx.p, ctx.stream = inputs
    # No memory of its own: whatever is computed from the dropped weight keeps it alive as well.
    ctx.save_for_backward(weight, seed, output)


def _drop_weight_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    weight, seed, dropped = ctx.saved_tensors
    return _drop_weight_backward(grad, weight, seed, dropped, ctx.p, ctx.stream), None, None, None


@torch.library.custom_op("ulmfit_fast::drop_weight_backward", mutates_args=())
def _drop_weight_backward(
    grad: Tensor, weight: Tensor, seed: Tensor, dropped: Tensor, p: Sequence[float], stream: int
) -> Tensor:
    return rng.mask_gradient(grad, weight, dropped, seed, p, stream=stream)


@_drop_weight_backward.register_fake
def _(
    grad: Tensor, weight: Tensor, seed: Tensor, dropped: Tensor, p: Sequence[float], stream: int
) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _save_mask_source(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, seed, dropped, ctx.p, ctx.stream = inputs
    ctx.save_for_backward(weight, seed, dropped)


def _drop_weight_second_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Masking is linear and its own transpose.
    return _drop_weight_backward(grad, *ctx.saved_tensors, ctx.p, ctx.stream), *([None] * 5)


drop_weight.register_autograd(_drop_weight_gradient, setup_context=_save_dropped)
_drop_weight_backward.register_autograd(
    _drop_weight_second_gradient, setup_context=_save_mask_source
)
