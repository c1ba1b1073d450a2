"""The decoder and its loss as one step, in as few rows at a time as there is room for logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ulmfit_fast import backend as backends
from ulmfit_fast.checks import probability
from ulmfit_fast.functional.dropout import takes_c_kernels
from ulmfit_fast.system.seeds import initialize_vector_functions

__all__ = ["linear_cross_entropy", "softmax_cross_entropy_"]

# Logits held at once, and the fewest rows: each chunk reads the whole weight and adds to the whole
# of its gradient, so short ones are slow. Two chunks of 560 rows beat any others on 2 cores.
_LOGITS = 1 << 23
_MIN_ROWS = 512
# Share of a device's memory for them.
_SHARE = 64


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
) -> Tensor:
    """Compute the mean cross entropy of x W^T + b in chunks of rows.

    The gradients are made chunk by chunk in the forward, where the logits are at hand, and kept for
    the backward instead of the logits: memory of the size of x and W, not of N x V.

    Example:
        >>> x, weight = torch.zeros(3, 4, requires_grad=True), torch.ones(10, 4)
        >>> round(linear_cross_entropy(x, weight, None, torch.tensor([1, 2, -100])).item(), 4)
        2.3026

    Equivalent to:
        `F.cross_entropy(F.linear(x, weight, bias), targets)`, but 0 where no target counts.

    Args:
        x: `(N, E)`.
        weight: `(V, E)`.
        bias: `(V,)` or None.
        targets: `(N,)` int64.
        ignore_index: target that does not count.
        label_smoothing: share of the target spread evenly over all V classes, in [0, 1].
        chunk_rows: rows of logits held at once; None chooses by V and the memory of the device.

    Returns:
        The mean over the targets that count, 0-d, in at least float32. Under autocast the products
        are in its dtype, and the weight's gradient is summed over the chunks in that of the weight.
        It has no second derivative but under `backend.use("reference")` and torch.func, where the
        logits are held.

    Raises:
        TypeError: if targets are not int64 or x is not floating.
        ValueError: if a shape, label_smoothing or chunk_rows does not fit, or a target on the CPU
            is no class.
    """
    _check(x, weight, bias, targets, chunk_rows)
    smoothing = probability("label_smoothing", label_smoothing)
    count = (targets != ignore_index).sum().clamp(min=1)
    # Under autocast nothing is converted here: the weight's gradient would be rounded on its way.
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    if backends.choose("auto", backends.step_request(x)).name == "reference":
        logits = F.linear(x, weight, bias)  # (N, V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        keywords: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": smoothing}
        return F.cross_entropy(logits, targets, reduction="sum", **keywords) / count
    recording = torch.is_grad_enabled()
    needs = [recording and t is not None and t.requires_grad for t in (x, weight, bias)]
    summed, *_ = _summed_loss(
        x, weight, bias, targets, ignore_index, smoothing, chunk_rows or 0, dtype, needs
    )
    mean: Tensor = summed / count
    return mean


def _even_chunks(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return the rows of chunks of like size: a short one at the end would cost as much."""
    held = _LOGITS
    if device.type == "cuda":
        held = torch.cuda.get_device_properties(device).total_memory // _SHARE // dtype.itemsize
    chunks = round(rows * classes / held)
    chunks = max(1, min(chunks, rows // _MIN_ROWS))
    return max(1, -(-rows // chunks))


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk_rows: int | None
) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}, expected a floating dtype: convert it first")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 ids, got {targets.dtype}: convert with .long()")
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, expected (N, E) and "
            "(V, E): flatten (T, B, E) with flatten(0, 1)"
        )
    if targets.shape != x.shape[:1]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, expected ({x.shape[0]},) like the rows of "
            "x: flatten both alike"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},), one for each class"
        )
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}: None chooses")


@torch.library.custom_op("ulmfit_fast::linear_cross_entropy", mutates_args=())
def _summed_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    chunk_rows: int,
    dtype: torch.dtype,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sum of the losses and its gradients; those that are not needed are empty."""
    from ulmfit_fast.kernels.cpu import cross_entropy
    from ulmfit_fast.kernels.cpu.matmul import add_matmul
    from ulmfit_fast.kernels.cpu.sums import add_column_sums

    needs_x, needs_weight, needs_bias = needs
    wide = torch.promote_types(dtype, torch.float32)
    classes = weight.shape[0]
    if not chunk_rows:
        chunk_rows = _even_chunks(x.shape[0], classes, dtype, x.device)
    rows = min(chunk_rows, max(1, x.shape[0]))
    w = weight.to(dtype)
    b = None if bias is None else bias.to(dtype)
    summed = x.new_zeros((), dtype=wide)
    grad_x = x.new_empty(x.shape if needs_x else 0)
    # In half precision the sum over the chunks would be rounded at each.
    grad_weight = x.new_zeros(weight.shape if needs_weight else 0, dtype=wide)
    grad_bias = x.new_zeros(classes if needs_bias else 0, dtype=wide)
    held = x.new_empty(rows, classes, dtype=dtype)  # of a chunk, (R, V)
    native = takes_c_kernels(held, targets, bias)
    for start in range(0, x.shape[0], rows):
        part = x[start : start + rows].to(dtype)  # (R, E)
        chosen = targets[start : start + rows]  # (R,)
        logits = held[: len(part)]  # (R, V)
        if native:
            add_matmul(logits, part, w.t(), fresh=True)
        elif b is None or x.device.type == "cpu":
            torch.mm(part, w.t(), out=logits)
            if b is not None:
                # On a CPU quicker than addmm, which fills the whole with the bias first.
                logits += b
        else:
            torch.addmm(b, part, w.t(), out=logits)
        if native:
            _check_logits(logits, chosen, ignore_index)
            # The bias is added on the way: a pass of its own would read and write all logits.
            summed += cross_entropy.softmax_cross_entropy_(
                logits, chosen, bias, ignore_index, label_smoothing, gradient=any(needs)
            ).sum()
        elif any(needs):
            losses = softmax_cross_entropy_(
                logits, chosen, ignore_index=ignore_index, label_smoothing=label_smoothing
            )  # (R,); the logits are their gradient, (R, V)
            summed += losses.sum()
        else:
            keywords: dict[str, Any] = {"ignore_index": ignore_index, "reduction": "sum"}
            keywords["label_smoothing"] = label_smoothing
            summed += F.cross_entropy(logits.to(wide), chosen, **keywords)
        if needs_x:
            add_matmul(grad_x[start : start + rows], logits, w, fresh=True)  # (R, E)
        if needs_weight:
            add_matmul(grad_weight, logits.t(), part)  # (V, E)
        if needs_bias and native:
            add_column_sums(grad_bias, logits)
        elif needs_bias:
            grad_bias += logits.sum(0, dtype=wide)
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return summed, grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias_dtype)


@_summed_loss.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    chunk_rows: int,
    dtype: torch.dtype,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    summed = x.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    grad_x = x.new_empty(x.shape if needs[0] else 0)
    grad_weight = weight.new_empty(weight.shape if needs[1] else 0)
    like = weight if bias is None else bias
    return summed, grad_x, grad_weight, like.new_empty(weight.shape[0] if needs[2] else 0)


@torch.library.custom_op("ulmfit_fast::linear_cross_entropy_backward", mutates_args=())
def _scaled(
    grad: Tensor, gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Scale a kept gradient; of the inputs a second derivative would be asked for here."""
    # In place would be wrong for a second backward over a retained graph.
    return gradient * grad.to(gradient.dtype)


@_scaled.register_fake
def _(grad: Tensor, gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(gradient)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gradients = output[1:]
    ctx.needs = inputs[8]
    kept = (g for g, need in zip(gradients, ctx.needs, strict=True) if need)
    ctx.save_for_backward(*inputs[:3], *kept)
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    results: list[Tensor | None] = [None] * 9
    if grad is not None:
        x, weight, bias, *kept = ctx.saved_tensors
        wanted = (index for index, need in enumerate(ctx.needs) if need)
        for index, gradient in zip(wanted, kept, strict=True):
            results[index] = _scaled(grad, gradient, x, weight, bias)
    # `needs` is a list of bools, none of which has a gradient.
    return (*results[:8], None)


def _no_double_backward(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "linear_cross_entropy in chunks has no second derivative; compute it in "
        'backend.use("reference")'
    )


_summed_loss.register_autograd(_gradients, setup_context=_save)
_scaled.register_autograd(_no_double_backward)


def softmax_cross_entropy_(
    logits: Tensor, targets: Tensor, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """Compute each row's cross entropy, and overwrite the logits with the gradient of their sum.

    No second tensor of the size of the logits is made on CUDA, nor by the C kernel of a CPU. It is
    a step of a hand-written backward: autograd does not see it.

    Example:
        >>> logits = torch.zeros(2, 4)
        >>> losses = softmax_cross_entropy_(logits, torch.tensor([1, -100]))
        >>> [round(loss, 4) for loss in losses.tolist()], logits.tolist()
        ([1.3863, 0.0], [[0.25, -0.75, 0.25, 0.25], [0.0, 0.0, 0.0, 0.0]])

    Equivalent to:
        `F.cross_entropy(logits, targets, reduction="none")` and the gradient of its sum.

    Args:
        logits: `(N, V)` float32, float64, bfloat16 or float16, of any strides. Overwritten, in its
            own dtype; the arithmetic is in float32, or float64 for float64.
        targets: `(N,)` int64. On CUDA one that is neither in [0, V) nor ignore_index makes its
            row's loss and gradient NaN in the kernel.
        ignore_index: target whose loss and gradient are 0.
        label_smoothing: share of the target spread evenly over all V classes, in [0, 1].

    Returns:
        `(N,)` float32, or float64 for float64.

    Raises:
        TypeError: if targets are not int64 or logits are not floating.
        ValueError: if a shape or label_smoothing does not fit, or a target on the CPU is no class.
        RuntimeError: if logits require a gradient while autograd records.
    """
    _check_logits(logits, targets, ignore_index)
    smoothing = probability("label_smoothing", label_smoothing)
    kernels = backends.choose("auto", backends.step_request(logits)).name == "triton"
    losses: Tensor = _softmax_cross_entropy(logits, targets, ignore_index, smoothing, kernels)
    return losses


@torch.library.custom_op("ulmfit_fast::softmax_cross_entropy_", mutates_args={"logits"})
def _softmax_cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float, kernels: bool
) -> Tensor:
    if kernels:
        from ulmfit_fast.kernels import cross_entropy

        losses: Tensor = cross_entropy.softmax_cross_entropy_(
            logits, targets, ignore_index, label_smoothing
        )
        return losses
    if takes_c_kernels(logits, targets):
        from ulmfit_fast.kernels.cpu import cross_entropy

        if cross_entropy.can_read(logits):
            losses = cross_entropy.softmax_cross_entropy_(
                logits, targets, None, ignore_index, label_smoothing
            )
            return losses
    initialize_vector_functions()
    wide = torch.promote_types(logits.dtype, torch.float32)
    if logits.device.type == "cpu" and logits.dtype == wide and logits.is_contiguous():
        # In place, row by row: new memory of this size costs more than the arithmetic.
        log_p = torch.log_softmax(logits, 1, out=logits)
    else:
        log_p = torch.log_softmax(logits, 1, dtype=wide)
    ignored = targets == ignore_index
    chosen = targets.masked_fill(ignored, 0)[:, None]  # (N, 1)
    losses = log_p.gather(1, chosen).squeeze(1).mul_(label_smoothing - 1.0)  # (N,)
    if label_smoothing > 0.0:
        losses.sub_(log_p.mean(1), alpha=label_smoothing)
    # In half precision all is subtracted before the one rounding.
    grad = torch.exp(log_p, out=logits if logits.dtype == wide else log_p)
    if label_smoothing > 0.0:
        grad.sub_(label_smoothing / logits.shape[1])
    grad.scatter_add_(1, chosen, grad.new_full(chosen.shape, label_smoothing - 1.0))
    if grad is not logits:
        logits.copy_(grad)
    if logits.device.type != "cpu" or bool(ignored.any()):
        logits.masked_fill_(ignored[:, None], 0.0)
    return losses.masked_fill_(ignored, 0.0)


@_softmax_cross_entropy.register_fake
def _(
    logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float, kernels: bool
) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty(logits.shape[0], dtype=wide)


def _check_logits(logits: Tensor, targets: Tensor, ignore_index: int) -> None:
    """Refuse logits and targets that do not fit each other.

    Raises:
        TypeError: if targets are not int64 or logits are not floating.
        ValueError: if a shape does not fit, or a target on the CPU is no class.
        RuntimeError: if the logits require a gradient while autograd records.
    """
    if not logits.is_floating_point():
        raise TypeError(f"logits are {logits.dtype}, expected a floating dtype: convert them first")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 ids, got {targets.dtype}: convert with .long()")
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, expected (N, V) with at least one class: "
            "flatten (T, B, V) with flatten(0, 1)"
        )
    if targets.shape != logits.shape[:1] or targets.device != logits.device:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} on {targets.device}, expected "
            f"({logits.shape[0]},) on {logits.device} like the logits' rows"
        )
    if logits.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "the logits require a gradient, and are overwritten with one that autograd would not "
            "see: pass logits.detach(), or use torch.nn.functional.cross_entropy"
        )
    # On an accelerator looking at the targets would wait for the device.
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = targets[(targets != ignore_index) & ((targets < 0) | (targets >= logits.shape[1]))]
    if len(wrong):
        raise ValueError(
            f"target {int(wrong[0])} is outside [0, {logits.shape[1]}): encode the text with the "
            f"vocabulary of this model, or mark what does not count with {ignore_index}"
        )
