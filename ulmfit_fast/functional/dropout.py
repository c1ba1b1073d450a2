"""The steps of a language model around its LSTM, each in as few passes as the device allows.

On CUDA they are Triton kernels, on a CPU locked dropout and the loss are C kernels where there is a
compiler, elsewhere torch operations; all draw the same masks. A backend that is forced, by
`backend.use` or ULMFIT_FAST_BACKEND, rules here as well: "eager", "torch" and "reference" are torch
operations everywhere, the Triton ones are the kernels wherever they can run, Triton's interpreter
included. float64, forward-mode differentiation and torch.func's transforms
always take torch operations, and so does what needs a second derivative of the regularisers: ask
for "reference" there.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ulmfit_fast import backend as backends
from ulmfit_fast import rng
from ulmfit_fast.checks import as_seed, probability

__all__ = [
    "check_time_first",
    "dropout_and_regularisers",
    "embed_dropped",
    "locked_dropout",
    "scale_kept",
    "takes_c_kernels",
]


_IN_C = (torch.float32, torch.bfloat16)


def scale_kept(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """Multiply by a mask and by 1/(1-p); the bool mask may have axes of size 1."""
    # A half-precision mask would round the scale and so shift the mean, in bfloat16 by up to 0.4 %.
    mask = keep.to(torch.promote_types(x.dtype, torch.float32)) * rng.keep_scale(p)
    return (x * mask).to(x.dtype)


def takes_c_kernels(x: Tensor, *others: Tensor | None) -> bool:
    """Say whether the C kernels may compute a step on x, and on what else it reads or writes."""
    if torch.compiler.is_compiling() or x.dtype not in _IN_C:
        return False
    if backends.requested("auto")[0] not in ("auto", "native"):
        return False
    from ulmfit_fast.kernels.cpu import calls

    return bool(calls.can_access(x, *(other for other in others if other is not None)))


class _LockedInC(torch.autograd.Function):
    """Locked dropout by the C kernels; the gradient is dropped as x was."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, p: float) -> Tensor:
        from ulmfit_fast.kernels.cpu import masks

        ctx.seed, ctx.p = seed, p
        dropped: Tensor = masks.locked_dropout(x, seed, p)
        return dropped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _drop_locked(grads[0], ctx.seed, ctx.p), None, None


def _drop_locked(x: Tensor, seed: Tensor, p: float) -> Tensor:
    if takes_c_kernels(x):
        dropped: Tensor = _LockedInC.apply(x, seed, p)  # type: ignore[no-untyped-call]
        return dropped
    _, batch, features = x.shape
    keep = rng.keep_mask(seed, batch * features, p, kind=rng.KIND_LOCKED, device=x.device)
    return scale_kept(x, keep.view(1, batch, features), p)  # (T, B, F)


def _on(device: torch.device, seed: Tensor | None, p: float) -> Tensor | None:
    if p == 0.0:
        return None
    if seed is None:
        raise ValueError(f"seed is None, expected a 0-d int64 tensor for p = {p}: draw_seed() it")
    # Pageable memory is staged before the copy returns, so the seed may go at once.
    return as_seed(seed).to(device, non_blocking=True)


def locked_dropout(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """Drop the same features at every time step of a sequence.

    Example:
        >>> y = locked_dropout(torch.ones(4, 1, 6), torch.tensor(7), 0.5)
        >>> y[0].tolist(), bool((y == y[0]).all())
        ([[2.0, 0.0, 0.0, 2.0, 0.0, 2.0]], True)

    Args:
        x: `(T, B, F)`, any floating dtype.
        seed: 0-d int64, on the CPU or on x's device, as `system.seeds.draw_seed` draws one.
        p: probability of dropping a feature, in [0, 1]; 0 returns x itself, 1 gives zeros.

    Returns:
        `(T, B, F)`, the dtype of x; kept values are scaled by 1/(1-p).

    Raises:
        ValueError: if x is not three-dimensional, p is outside [0, 1], or the seed does not fit.

    Source:
        Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
        Networks" (2016), section 4.
    """
    check_time_first(x)
    if probability("p", p) == 0.0:
        return x
    if backends.choose("auto", backends.step_request(x)).name == "triton":
        from ulmfit_fast.kernels import dropout

        dropped: Tensor = dropout.locked_dropout(x, _on(x.device, seed, p), p)
        return dropped
    return _drop_locked(x, as_seed(seed), p)


def embed_dropped(
    weight: Tensor,
    tokens: Tensor,
    seed_embedding: Tensor | None,
    p_embedding: float,
    seed_locked: Tensor | None,
    p_locked: float,
    padding_idx: int | None = None,
) -> Tensor:
    """Look tokens up, drop whole word types, and then the same features at every time step.

    Example:
        >>> tokens = torch.tensor([[5], [4], [5]])
        >>> y = embed_dropped(torch.ones(6, 2), tokens, torch.tensor(7), 0.5, None, 0.0)
        >>> y[:, 0].tolist()
        [[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]

    Equivalent to:
        `locked_dropout` of `F.embedding`, whose rows are multiplied by `rng.embedding_keep` of
        their tokens over 1 - p_embedding; in half precision the kernel rounds once, not twice.

    Args:
        weight: `(V, E)`.
        tokens: `(T, B)`, int64 or int32. In the kernel one outside [0, V) gives NaN and reads
            nothing; without it PyTorch's own lookup decides.
        seed_embedding: 0-d int64, on the CPU or on weight's device; may be None at p = 0.
        p_embedding: probability of dropping a word type, in [0, 1].
        seed_locked: as seed_embedding.
        p_locked: probability of dropping a feature, in [0, 1].
        padding_idx: row of weight that gets no gradient; None for none.

    Returns:
        `(T, B, E)`, the dtype of weight.

    Raises:
        ValueError: if tokens are not two-dimensional or on another device, a probability is
            outside [0, 1], or a seed does not fit.

    Source:
        Gal and Ghahramani (2016), section 4.2; Merity, Keskar & Socher 2018 (arXiv:1708.02182),
        sections 4.2 and 4.3.
    """
    if tokens.dim() != 2:
        raise ValueError(
            f"tokens must be (T, B), time first, got shape {tuple(tokens.shape)}: "
            "one text alone is tokens.unsqueeze(1)"
        )
    if tokens.device != weight.device:
        raise ValueError(
            f"tokens are on {tokens.device}, the embedding is on {weight.device}: move one of them"
        )
    drops = [probability("p_embedding", p_embedding), probability("p_locked", p_locked)]
    if any(drops) and backends.choose("auto", backends.step_request(weight)).name == "triton":
        from ulmfit_fast.kernels import embedding

        seeds = [
            _on(weight.device, seed, p)
            for seed, p in zip((seed_embedding, seed_locked), drops, strict=True)
        ]
        # PyTorch counts a negative one from the end; the kernels' -1 is none.
        padding = -1 if padding_idx is None else padding_idx % weight.shape[0]
        embedded: Tensor = embedding.embed_dropped(
            weight, tokens, seeds[0], drops[0], seeds[1], drops[1], padding
        )
        return embedded
    vectors = F.embedding(tokens, weight, padding_idx)  # (T, B, E)
    seed = _on(tokens.device, seed_embedding, p_embedding)
    if seed is not None:
        keep = rng.embedding_keep(seed, tokens, p_embedding)  # (T, B)
        vectors = scale_kept(vectors, keep.unsqueeze(-1), p_embedding)  # (T, B, E)
    seed = _on(tokens.device, seed_locked, p_locked)
    return vectors if seed is None else locked_dropout(vectors, seed, p_locked)


def dropout_and_regularisers(
    raw: Tensor, seed: Tensor | None, p: float, *, ar_on: Literal["dropped", "raw"] = "dropped"
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply locked dropout, and take the means that the activation regularisers are made of.

    Example:
        >>> raw = torch.tensor([1.0, 2.0]).view(2, 1, 1)
        >>> dropped, square, difference = dropout_and_regularisers(raw, torch.tensor(7), 0.5)
        >>> dropped.flatten().tolist(), square.item(), difference.item()
        ([2.0, 4.0], 10.0, 1.0)

    Args:
        raw: `(T, B, F)`, any floating dtype.
        seed: 0-d int64, on the CPU or on raw's device; may be None at p = 0.
        p: probability of dropping a feature, in [0, 1].
        ar_on: take the squares after ("dropped") or before ("raw") the dropout.

    Returns:
        The dropped output `(T, B, F)` in the dtype of raw; the mean of its squares, or of raw's;
        and the mean of (raw[t+1] - raw[t])**2, 0 for T = 1. Both means are 0-d, float32 (float64
        for float64), and raw can be differentiated through all three.

    Raises:
        ValueError: if raw is not three-dimensional or is empty, p is outside [0, 1], the seed does
            not fit, or ar_on is another word.

    Source:
        Merity et al. (2018), section 4.6.
    """
    check_time_first(raw)
    probability("p", p)
    if ar_on not in ("dropped", "raw"):
        raise ValueError(f"ar_on must be 'dropped' or 'raw', got {ar_on!r}")
    if raw.numel() == 0:
        raise ValueError(
            f"raw has shape {tuple(raw.shape)}, expected at least one element: a mean over none is "
            "not a number; leave the batch out"
        )
    if backends.choose("auto", backends.step_request(raw)).name == "triton":
        from ulmfit_fast.kernels import regularisers

        placed = _on(raw.device, seed, p)
        if placed is None:
            placed = torch.zeros((), dtype=torch.int64, device=raw.device)
        dropped, means = regularisers.dropout_and_means(raw, placed, p, ar_on == "raw")
        mean_square, mean_difference = means.unbind(0)  # of (2,)
        return dropped, mean_square, mean_difference
    placed = _on(raw.device, seed, p)
    dropped = raw if placed is None else locked_dropout(raw, placed, p)
    wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
    mean_square = (wide if ar_on == "raw" else dropped.to(wide.dtype)).square().mean()
    if raw.shape[0] == 1:
        return dropped, mean_square, wide.new_zeros(())
    differences = wide[1:] - wide[:-1]  # (T - 1, B, F)
    return dropped, mean_square, differences.square().mean()


def check_time_first(x: Tensor) -> None:
    """Refuse what is not `(T, B, F)`.

    Raises:
        ValueError: naming the shape.
    """
    if x.dim() != 3:
        raise ValueError(
            f"locked dropout expected a (T, B, F) tensor, got shape {tuple(x.shape)}: "
            "add the missing axis with unsqueeze"
        )
