"""Cross entropy of large vocabularies: row losses, and the gradient in the place of the logits."""

import math

import torch
import triton
import triton.language as tl

from ulmfit_fast.kernels.launch import launch

__all__ = ["softmax_cross_entropy_"]

_BLOCK = 4096


@triton.jit(do_not_specialize=["ignore_index"], do_not_specialize_on_alignment=["targets"])
def cross_entropy_kernel(
    logits,
    targets,
    losses,
    stride_row,
    stride_column,
    ignore_index,
    confidence,
    share,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    SMOOTHING: tl.constexpr,
):
    """One row: a walk for maximum and sum, then one that overwrites the row with its gradient.

    stride_row counts ALIGNMENT elements; confidence is 1 - label smoothing, share the smoothing
    over VOCAB. VOCAB is a constant, and the row's offset a visible multiple, so that the loads of
    half precision are 16 bytes wide although 60,008 is no multiple of 16.
    """
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * stride_row * ALIGNMENT
    target = tl.load(targets + row)
    column = tl.arange(0, BLOCK).to(tl.int64)  # (BLOCK,)
    if target == ignore_index:
        tl.store(losses + row, 0.0)
        nothing = tl.zeros((BLOCK,), logits.dtype.element_ty)
        for start in range(0, VOCAB, BLOCK):
            at = start + column
            tl.store(base + at * stride_column, nothing, mask=at < VOCAB)
    else:
        known = (target >= 0) & (target < VOCAB)
        chosen = tl.load(base + target * stride_column, mask=known, other=0.0).to(tl.float32)
        # The mean over the vocabulary is taken of distances from here: no digits are lost to a
        # shift that all logits have in common.
        anchor = tl.where(tl.abs(chosen) < float("inf"), chosen, 0.0)
        peak = float("-inf")
        sums = tl.zeros((BLOCK,), tl.float32)  # (BLOCK,)
        distances = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, VOCAB, BLOCK):
            at = start + column
            inside = at < VOCAB
            x = tl.load(base + at * stride_column, mask=inside, other=float("-inf"))  # (BLOCK,)
            x = x.to(tl.float32)
            higher = tl.maximum(peak, tl.max(x, 0))
            # As long as all is -inf, a difference from the maximum would be NaN.
            finite = tl.where(higher == float("-inf"), 0.0, higher)
            sums = sums * tl.exp(peak - finite) + tl.exp(x - finite)
            if SMOOTHING:
                distances += tl.where(inside, x - anchor, 0.0)
            peak = higher
        peak = tl.where(peak == float("-inf"), 0.0, peak)
        total = tl.sum(sums, 0)  # a scalar
        log_total = tl.log(total)
        loss = confidence * (log_total - (chosen - peak))
        if SMOOTHING:
            loss += share * (VOCAB * (log_total - (anchor - peak)) - tl.sum(distances, 0))
        tl.store(losses + row, tl.where(known, loss, float("nan")))
        # A target that is no class must not train in silence.
        factor = tl.where(known, 1.0 / total, float("nan"))
        for start in range(0, VOCAB, BLOCK):
            at = start + column
            inside = at < VOCAB
            x = tl.load(base + at * stride_column, mask=inside, other=float("-inf"))  # (BLOCK,)
            gradient = tl.exp(x.to(tl.float32) - peak) * factor
            if SMOOTHING:
                gradient -= share
            gradient -= tl.where(at == target, confidence, 0.0)
            tl.store(base + at * stride_column, gradient.to(x.dtype), mask=inside)


def softmax_cross_entropy_(logits, targets, ignore_index, label_smoothing):
    """Return the rows' losses, and leave the gradient of their sum in the place of the logits.

    Args:
        logits: `(N, V)` of any strides; float32, bfloat16 or float16.
        targets: `(N,)` int64. One outside [0, V) that is not ignored reads nothing; its loss and
            its row of the gradient are NaN.
        ignore_index: target whose loss and gradient are 0.
        label_smoothing: share of the target spread evenly over the V classes.

    Returns:
        `(N,)` float32.
    """
    rows, vocab = logits.shape
    losses = logits.new_empty(rows, dtype=torch.float32)  # (N,)
    if not rows:
        return losses
    stride_row, stride_column = logits.stride()
    alignment = math.gcd(stride_row, 16)
    block = min(_BLOCK, max(128, triton.next_power_of_2(vocab)))
    launch(
        cross_entropy_kernel,
        (rows,),
        (
            logits,
            targets.contiguous(),
            losses,
            stride_row // alignment,
            stride_column,
            ignore_index,
            1.0 - label_smoothing,
            label_smoothing / vocab,
        ),
        {
            "VOCAB": vocab,
            "BLOCK": block,
            "ALIGNMENT": alignment,
            "SMOOTHING": label_smoothing > 0.0,
        },
        {"num_warps": 8 if block > 1024 else 4},
    )
    return losses
