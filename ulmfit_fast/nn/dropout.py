"""Dropout with masks that live longer than one element: whole time axes and whole word types."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulmfit_fast import rng
from ulmfit_fast.checks import probability, unwrap_vmap
from ulmfit_fast.functional import dropout as fused
from ulmfit_fast.system.seeds import draw_seed


class LockedDropout(nn.Module):
    """Drop the same features at every time step of a sequence.

    One mask of shape (1, B, F) is drawn per forward in training mode and used for all T; kept
    values are scaled by 1/(1-p). In evaluation mode, and at p = 0, the input is returned as it is.

    Example:
        >>> import torch
        >>> drop = LockedDropout(0.5)
        >>> y = drop(torch.ones(4, 2, 3))
        >>> bool((y == y[0]).all()), sorted(set(y.flatten().tolist()) | {0.0, 2.0})
        (True, [0.0, 2.0])

    Args:
        p: probability of dropping a feature, in [0, 1]; 1 gives zeros.

    Raises:
        ValueError: if p is not in [0, 1].

    Source:
        Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
        Networks" (2016), section 4; used as in Merity et al. (2018), section 4.2.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = probability("p", p)

    def forward(self, x: Tensor) -> Tensor:
        """Drop features of x.

        Args:
            x: (T, B, F), any floating dtype.

        Returns:
            (T, B, F), the dtype of x.

        Raises:
            ValueError: if x is not three-dimensional.
        """
        fused.check_time_first(x)
        if not self.training or self.p == 0.0:
            return x
        return fused.locked_dropout(x, draw_seed(), self.p)

    def extra_repr(self) -> str:
        """Show p in the module's printed form."""
        return f"p={self.p}"


class EmbeddingDropout(nn.Module):
    """Look tokens up in an embedding and drop whole word types.

    A token id has one fate in a forward, wherever it occurs. Only the fates of the tokens at hand
    are computed: the (V, E) weight is neither copied nor dropped from, so a decoder tied to it sees
    it undropped.

    Example:
        >>> import torch
        >>> lookup = EmbeddingDropout(torch.nn.Embedding(5, 2), p=0.5)
        >>> y = lookup(torch.tensor([[3], [3], [1]]))
        >>> tuple(y.shape), torch.equal(y[0], y[1])
        ((3, 1, 2), True)

    Args:
        embedding: the embedding to look up in, with all its options: its `padding_idx` row gets no
            gradient from here, `max_norm` shortens rows in place before the dropout.
        p: probability of dropping a word type, in [0, 1]; 1 gives zeros.

    Raises:
        ValueError: if p is not in [0, 1].

    Source:
        Gal and Ghahramani (2016), section 4.2; Merity et al. (2018), section 4.3.
    """

    def __init__(self, embedding: nn.Embedding, p: float) -> None:
        super().__init__()
        self.embedding = embedding
        self.p = probability("p", p)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens.

        Args:
            tokens: token ids, (T, B), int64 or int32.

        Returns:
            (T, B, E), the dtype of the embedding.

        Raises:
            TypeError: if the tokens are not integers.
            ValueError: if a token on the CPU is outside [0, V).
        """
        return embed(self.embedding, tokens, self.p if self.training else 0.0)

    def extra_repr(self) -> str:
        """Show p in the module's printed form."""
        return f"p={self.p}"


def embed(embedding: nn.Embedding, tokens: Tensor, p: float, *, locked_p: float = 0.0) -> Tensor:
    """Embed tokens, dropping each word type with probability p, and then features of the vectors.

    The function under `EmbeddingDropout`, for modules that own the embedding themselves. With
    locked_p it is `LockedDropout(locked_p)` of that, seeds drawn in this order, and on a GPU one
    pass.

    Example:
        >>> import torch
        >>> embed(torch.nn.Embedding(5, 2), torch.tensor([[3], [1]]), p=1.0).abs().sum().item()
        0.0

    Args:
        embedding: the embedding to look up in.
        tokens: token ids, (T, B), int64 or int32.
        p: probability in [0, 1]; 0 for no dropout.
        locked_p: probability of dropping a feature at all time steps, in [0, 1].

    Returns:
        (T, B, E), the dtype of the embedding.

    Raises:
        TypeError: if the tokens are not integers.
        ValueError: if a token on the CPU is outside [0, V).
    """
    _check_tokens(tokens, embedding.num_embeddings)
    word_seed = draw_seed() if p > 0.0 else None
    locked_seed = draw_seed() if locked_p > 0.0 else None
    special = embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse
    if not special and tokens.dim() == 2:
        return fused.embed_dropped(
            embedding.weight, tokens, word_seed, p, locked_seed, locked_p, embedding.padding_idx
        )
    vectors = F.embedding(
        tokens,
        embedding.weight,
        embedding.padding_idx,
        embedding.max_norm,
        embedding.norm_type,
        embedding.scale_grad_by_freq,
        embedding.sparse,
    )  # (T, B, E)
    if word_seed is not None:
        keep = rng.embedding_keep(word_seed, tokens, p)  # (T, B)
        vectors = fused.scale_kept(vectors, keep.unsqueeze(-1), p)  # (T, B, E)
    return vectors if locked_seed is None else fused.locked_dropout(vectors, locked_seed, locked_p)


def _check_tokens(tokens: Tensor, vocab_size: int) -> None:
    if tokens.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"tokens must be int64 or int32 ids, got {tokens.dtype}: convert them with .long()"
        )
    # On an accelerator reading the extremes would wait for the device.
    if tokens.device.type != "cpu" or tokens.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = (int(extreme) for extreme in torch.aminmax(unwrap_vmap(tokens)))
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"token id {low if low < 0 else high} is outside the vocabulary [0, {vocab_size}): "
            "encode the text with the vocabulary of this model"
        )
