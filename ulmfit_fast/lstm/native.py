"""The C kernels' LSTM as an operator of PyTorch, joined to its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ulmfit_fast.lstm.eager import copy_as

__all__ = ["caching_weights", "cast", "lstm_native", "lstm_native_backward"]


@contextmanager
def caching_weights() -> Iterator[None]:
    """Cast and pack each weight once in the block, where nothing is trained and they stay.

    Of what a layer takes for few tokens that is most: it reads and writes all weights.
    """
    from ulmfit_fast.kernels.cpu import weight_cache

    with weight_cache.caching():
        yield


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight in a dtype, the same tensor at each call inside `caching_weights`."""
    if weight.dtype == dtype or weight.device.type != "cpu" or torch.compiler.is_compiling():
        return weight.to(dtype)
    from ulmfit_fast.kernels.cpu import calls, weight_cache

    if not calls.can_access(weight):
        return weight.to(dtype)
    made: Tensor = weight_cache.cached(dtype, weight, lambda: weight.to(dtype))
    return made


@torch.library.custom_op("ulmfit_fast::lstm_native", mutates_args=())
def lstm_native(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    seed: Tensor,
    weight_p: Sequence[float],
    gate_p: Sequence[float],
    sequence: bool,
    stream: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run one layer in one direction.

    Args:
        x: `(T, B, E)` float32 or bfloat16 on the CPU, as all tensors here.
        h0: `(B, H)`.
        c0: `(B, H)`, possibly of a wider dtype than x.
        w_ih: `(4H, E)`.
        w_hh: `(4H, H)`, undropped.
        b_ih: `(4H,)` or None.
        b_hh: `(4H,)` or None.
        lengths: `(B,)` int64 or None.
        seed: 0-d int64.
        weight_p: four probabilities of weight-drop.
        gate_p: four probabilities of gate dropout.
        sequence: one gate mask for all steps instead of one a step.
        stream: 2 * layer + reverse.
        keep: whether a backward follows.

    Returns:
        output `(T, B, H)`, h_n `(B, H)`, c_n `(B, H)` in the dtype of c0; and for the backward the
        activated, unmasked gates `(T, B, 4H)` and the cell states `(T, B, H)`, else empty.
    """
    from ulmfit_fast.kernels.cpu import lstm

    results = lstm.forward(
        x,
        h0,
        c0.to(torch.float32),
        (w_ih, w_hh),
        _sum_of_biases(b_ih, b_hh),
        lengths,
        lstm.Masks(int(seed), weight_p, gate_p, sequence, stream),
        keep=keep,
    )
    output, h_n, c_n, gates, cells = results
    return output, h_n, c_n.to(c0.dtype), gates, cells


@lstm_native.register_fake
def _(x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, *rest: Any) -> Any:
    steps, batch_size, _ = x.shape
    rows, hidden_size = w_hh.shape
    keep = rest[-1]
    return (
        x.new_empty(steps, batch_size, hidden_size),
        x.new_empty(batch_size, hidden_size),
        c0.new_empty(batch_size, hidden_size),
        x.new_empty((steps, batch_size, rows) if keep else 0),
        x.new_empty((steps, batch_size, hidden_size) if keep else 0, dtype=torch.float32),
    )


@torch.library.custom_op("ulmfit_fast::lstm_native_backward", mutates_args=())
def lstm_native_backward(
    grad_output: Tensor,
    grad_h_n: Tensor,
    grad_c_n: Tensor,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    lengths: Tensor | None,
    seed: Tensor,
    weight_p: Sequence[float],
    gate_p: Sequence[float],
    sequence: bool,
    stream: int,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiate `lstm_native`; the masks are drawn again from the seed.

    Args:
        grad_output: `(T, B, H)`.
        grad_h_n: `(B, H)`.
        grad_c_n: `(B, H)`.
        x: `(T, B, E)`, as given to the forward; so are those that follow, up to stream.
        h0: `(B, H)`.
        c0: `(B, H)`.
        w_ih: `(4H, E)`.
        w_hh: `(4H, H)`, undropped.
        lengths: `(B,)` int64 or None.
        seed: 0-d int64.
        weight_p: four probabilities of weight-drop.
        gate_p: four probabilities of gate dropout.
        sequence: one gate mask for all steps instead of one a step.
        stream: 2 * layer + reverse.
        output: `(T, B, H)` from the forward.
        gates: `(T, B, 4H)` from the forward.
        cells: `(T, B, H)` from the forward.
        needs: which of grad_x, grad_h0, grad_c0, grad_w_ih, grad_w_hh, grad_bias are wanted.

    Returns:
        Those six gradients, an empty tensor for each that is not wanted.
    """
    from ulmfit_fast.kernels.cpu import lstm

    # Or autocast would take the products over all steps.
    with torch.autocast("cpu", enabled=False):
        grads = lstm.backward(
            (grad_output, grad_h_n.to(torch.float32), grad_c_n.to(torch.float32)),
            x,
            h0,
            c0.to(torch.float32),
            (w_ih, w_hh),
            lengths,
            lstm.Masks(int(seed), weight_p, gate_p, sequence, stream),
            (output, gates, cells),
            needs,
        )
    dtypes = x.dtype, x.dtype, c0.dtype, w_ih.dtype, w_hh.dtype, torch.float32
    results = (
        grad.to(dtype) if need else x.new_empty(0)
        for grad, dtype, need in zip(grads, dtypes, needs, strict=True)
    )
    return tuple(results)  # type: ignore[return-value]


@lstm_native_backward.register_fake
def _(grad_output: Tensor, grad_h_n: Tensor, grad_c_n: Tensor, *rest: Any) -> Any:
    x, h0, c0, w_ih, w_hh = rest[:5]
    needs = rest[-1]
    bias = w_hh.new_empty(w_hh.shape[0], dtype=torch.float32)
    return tuple(
        torch.empty_like(like, memory_format=torch.contiguous_format) if need else x.new_empty(0)
        for like, need in zip((x, h0, c0, w_ih, w_hh, bias), needs, strict=True)
    )


def _sum_of_biases(b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor | None:
    biases = [bias.to(torch.float32) for bias in (b_ih, b_hh) if bias is not None]
    return copy_as(sum(biases[1:], biases[0]), torch.float32) if biases else None


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, seed, *scalars, _ = inputs
    out, _, _, gates, cells = output
    ctx.save_for_backward(x, h0, c0, w_ih, w_hh, lengths, seed, out, gates, cells)
    ctx.scalars = scalars
    ctx.bias_dtypes = [None if bias is None else bias.dtype for bias in (b_ih, b_hh)]
    ctx.mark_non_differentiable(gates, cells)
    # Or zeros would be made for the gates, the largest tensor of all.
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, output, gates, cells = ctx.saved_tensors
    _, h0, c0, *_ = inputs
    wanted = ctx.needs_input_grad
    needs = [*wanted[:5], wanted[5] or wanted[6]]
    given = (
        torch.zeros_like(like) if grad is None else grad
        for grad, like in zip(grads[:3], (output, h0, c0), strict=True)
    )
    results = lstm_native_backward(*given, *inputs, *ctx.scalars, output, gates, cells, needs)
    by_input = [grad if need else None for grad, need in zip(results, needs, strict=True)]
    grad_bias = by_input.pop()
    biases = [
        # Equal, but not one tensor: gradients are clipped and unscaled in place.
        None if grad_bias is None or not want else copy_as(grad_bias, dtype)
        for want, dtype in zip(wanted[5:7], ctx.bias_dtypes, strict=True)
    ]
    return (*by_input, *biases, *([None] * 7))


def _no_double_backward(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        'the C LSTM has no double backward; use backend="reference" for second derivatives'
    )


lstm_native.register_autograd(_gradients, setup_context=_save_for_backward)
lstm_native_backward.register_autograd(_no_double_backward)
