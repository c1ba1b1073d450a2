"""An embedding whose word types and features are dropped while it is looked up, in one pass.

A block draws its part of the locked mask once and walks over several time steps with it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ulmfit_fast.kernels.dropout import KIND_LOCKED, four_words, kept, side_by_side, walk
from ulmfit_fast.kernels.launch import DropArguments, cdiv, launch

__all__ = ["embed_dropped", "mask_rows"]

KIND_EMBEDDING: tl.constexpr = tl.constexpr(2)

_ROWS, _COLUMNS = 16, 64


@triton.jit(
    do_not_specialize=["steps", "batch", "vocab"],
    do_not_specialize_on_alignment=["tokens", "word_seed", "locked_seed"],
)
def embed_kernel(
    source,
    tokens,
    target,
    word_seed,
    locked_seed,
    steps,
    batch,
    vocab,
    stride,
    word_threshold,
    word_scale,
    locked_threshold,
    locked_scale,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
    WORDS: tl.constexpr,
    LOCKED: tl.constexpr,
    GATHER: tl.constexpr,
):
    """Mask the rows of the tokens (T, B): GATHER reads the embedding's, else a gradient's."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    row = rows[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]  # (1, COLUMNS)
    if LOCKED:
        if WIDTH % 4 == 0:
            quad = row * (WIDTH // 4) + (
                tl.program_id(1) * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)[None, :]
            )
            r_0, r_1, r_2, r_3 = four_words(tl.load(locked_seed), quad, KIND_LOCKED)
            word = side_by_side(r_0, r_1, r_2, r_3, (ROWS, COLUMNS))  # (ROWS, COLUMNS)
        else:
            # Counters straddle rows: a call an element, of which one word is used.
            element = row * WIDTH + column  # (ROWS, COLUMNS)
            r_0, r_1, r_2, r_3 = four_words(tl.load(locked_seed), element // 4, KIND_LOCKED)
            low = tl.where(element % 2 == 0, r_0, r_1)
            word = tl.where(element % 4 < 2, low, tl.where(element % 2 == 0, r_2, r_3))
        keep_feature = kept(word, locked_threshold, locked_scale)
    if WORDS:
        key = tl.load(word_seed)
    for step in tl.static_range(STEPS):
        t = (tl.program_id(2) * STEPS + step).to(tl.int64)
        here = (rows < batch) & (t < steps)
        token = tl.load(tokens + t * batch + rows, mask=here, other=0).to(tl.int64)  # (ROWS,)
        known = ((token >= 0) & (token < vocab))[:, None]  # (ROWS, 1)
        place = t * batch + row
        inside = here[:, None] & (column < WIDTH)  # (ROWS, COLUMNS)
        if GATHER:
            at, readable = source + token[:, None] * stride + column, inside & known
        else:
            at, readable = source + place * stride + column, inside
        value = tl.load(at, mask=readable, other=0.0).to(tl.float32)  # (ROWS, COLUMNS)
        if WORDS:
            words = four_words(key, token.to(tl.int32), KIND_EMBEDDING)
            keep_word = kept(words[0], word_threshold, word_scale)[:, None]  # (ROWS, 1)
            value = tl.where(keep_word, value, 0.0) * word_scale
        if LOCKED:
            value = tl.where(keep_feature, value, 0.0) * locked_scale
        if GATHER:
            value = tl.where(known, value, float("nan"))
        tl.store(target + place * WIDTH + column, value.to(target.dtype.element_ty), mask=inside)


def mask_rows(source, tokens, vocab, masks, *, gather):
    """Return the masked rows `(T, B, E)` of the embedding, or of a gradient of that shape."""
    word_seed, word_p, locked_seed, locked_p = masks
    steps, batch, width = *tokens.shape, source.shape[-1]
    target = source.new_empty(steps, batch, width)  # (T, B, E)
    if not target.numel():
        return target
    rows = min(_ROWS, triton.next_power_of_2(batch))
    launch(
        embed_kernel,
        (cdiv(batch, rows), cdiv(width, _COLUMNS), cdiv(steps, walk(steps))),
        (
            source,
            tokens.contiguous(),
            target,
            word_seed,
            locked_seed,
            steps,
            batch,
            vocab,
            source.stride(-2),
            *DropArguments.of([word_p]).arguments,
            *DropArguments.of([locked_p]).arguments,
        ),
        {
            "WIDTH": width,
            "ROWS": rows,
            "COLUMNS": _COLUMNS,
            "STEPS": walk(steps),
            "WORDS": word_p > 0.0,
            "LOCKED": locked_p > 0.0,
            "GATHER": gather,
        },
        {"num_warps": 4},
    )
    return target


@torch.library.custom_op("ulmfit_fast::embed_dropped", mutates_args=())
def embed_dropped(
    weight: Tensor,
    tokens: Tensor,
    word_seed: Tensor | None,
    word_p: float,
    locked_seed: Tensor | None,
    locked_p: float,
    padding_idx: int,
) -> Tensor:
    """Look tokens up, drop whole word types and then the same features at every step.

    Args:
        weight: `(V, E)`.
        tokens: `(T, B)` int64 or int32; one outside [0, V) gives NaN, and reads nothing.
        word_seed: 0-d int64 on weight's device; None for word_p = 0.
        word_p: probability of dropping a word type.
        locked_seed: 0-d int64 on weight's device; None for locked_p = 0.
        locked_p: probability of dropping a feature.
        padding_idx: row without a gradient, or -1.

    Returns:
        `(T, B, E)`, the dtype of weight.
    """
    masks = word_seed, word_p, locked_seed, locked_p
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    return mask_rows(weight, tokens, weight.shape[0], masks, gather=True)


@embed_dropped.register_fake
def _(weight, tokens, word_seed, word_p, locked_seed, locked_p, padding_idx):
    return weight.new_empty(*tokens.shape, weight.shape[1])


@torch.library.custom_op("ulmfit_fast::mask_embedded", mutates_args=())
def _mask_embedded(
    grad: Tensor,
    tokens: Tensor,
    word_seed: Tensor | None,
    word_p: float,
    locked_seed: Tensor | None,
    locked_p: float,
) -> Tensor:
    """Multiply a gradient of `embed_dropped`'s output by both masks."""
    masks = word_seed, word_p, locked_seed, locked_p
    return mask_rows(grad.contiguous(), tokens, 0, masks, gather=False)


@_mask_embedded.register_fake
def _(grad, tokens, word_seed, word_p, locked_seed, locked_p):
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _save_masks(ctx, inputs, output):
    _, tokens, word_seed, ctx.word_p, locked_seed, ctx.locked_p = inputs[:6]
    ctx.save_for_backward(tokens, word_seed, locked_seed)


def _mask_gradient(ctx, grad):
    tokens, word_seed, locked_seed = ctx.saved_tensors
    return _mask_embedded(grad, tokens, word_seed, ctx.word_p, locked_seed, ctx.locked_p)


def _save_lookup(ctx, inputs, output):
    _save_masks(ctx, inputs, output)
    ctx.vocab, ctx.padding_idx = inputs[0].shape[0], inputs[6]


def _lookup_gradient(ctx, grad):
    masked, tokens = _mask_gradient(ctx, grad), ctx.saved_tensors[0]
    # PyTorch's kernel trusts the ids; one that is not in the vocabulary has given NaN already.
    tokens = tokens.clamp(0, ctx.vocab - 1)
    rows = torch.ops.aten.embedding_dense_backward(  # (V, E)
        masked, tokens, ctx.vocab, ctx.padding_idx, False
    )
    return rows, *([None] * 6)


_mask_embedded.register_autograd(
    lambda ctx, grad: (_mask_gradient(ctx, grad), *([None] * 5)), setup_context=_save_masks
)
embed_dropped.register_autograd(_lookup_gradient, setup_context=_save_lookup)
