"""Packed batches to padded ones and back, also where torch.compile takes the code whole."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

__all__ = ["packed_data", "padded"]


def padded(packed: PackedSequence, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return the rows of a packed batch in its sorted order, `(T, B, E)`, and their lengths.

    Under torch.compile, which has no rule for PyTorch's own functions, by indices. What is past a
    row's length is then not zero but another row's.

    Args:
        packed: data `(N, E)`.
        hx: the state that it comes with, whose shape gives B.

    Returns:
        `(T, B, E)`, and `(B,)` int64.
    """
    if not torch.compiler.is_compiling():
        return pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
    data, batch_sizes = packed.data, packed.batch_sizes
    if packed.sorted_indices is not None:
        rows = packed.sorted_indices.shape[0]
    elif hx is not None:
        rows = hx[0].shape[1]
        torch._assert_async(batch_sizes[0] == rows, "h_0 has another B than the PackedSequence")
    else:
        rows = cast("int", batch_sizes[0].item())  # torch.export refuses int()
    sizes = batch_sizes.to(data.device)  # (T,)
    row = torch.arange(rows, dtype=torch.int64, device=data.device)  # (N,)
    inside = row < sizes[:, None]  # (T, B)
    index = (sizes.cumsum(0) - sizes)[:, None] + row  # (T, B)
    return data[index.masked_fill(~inside, 0)], inside.sum(0)


def packed_data(output: Tensor, lengths: Tensor, packed: PackedSequence) -> Tensor:
    """Return the data of a packed batch that is packed as another one is.

    Args:
        output: `(T, B, H)`, the rows in sorted order.
        lengths: `(B,)`, those of `padded`.
        packed: the other one.

    Returns:
        `(N, H)`.
    """
    if not torch.compiler.is_compiling():
        return pack_padded_sequence(output, lengths).data
    ends = packed.batch_sizes.to(output.device).cumsum(0)  # (T,)
    place = torch.arange(packed.data.shape[0], dtype=torch.int64, device=output.device)
    step = torch.searchsorted(ends, place, right=True)  # (N,)
    starts = torch.cat([ends.new_zeros(1), ends])  # (T + 1,)
    return output[step, place - starts[step]]
