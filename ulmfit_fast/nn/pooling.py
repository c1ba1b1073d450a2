"""Concat pooling over texts that arrive in windows."""

from __future__ import annotations

import torch
from torch import Tensor


class ConcatPool:
    """Pool the outputs of each row's span into [last, max, mean], window by window.

    Only the running pools are kept, not the outputs. Half-precision outputs are pooled in float32.

    Example:
        >>> import torch
        >>> pool = ConcatPool(torch.tensor([0]), torch.tensor([3]), like=torch.empty(0, 1))
        >>> pool.add(torch.tensor([[[4.0]], [[1.0]]]), start=0)
        >>> pool.add(torch.tensor([[[1.0]], [[9.0]]]), start=2)  # the 9 is beyond the row's end
        >>> pool.result()
        tensor([[1., 4., 2.]])

    Args:
        first: first time step of each row's span, (B,), int64.
        stop: time step after each row's span, (B,), int64; an empty span pools to zeros.
        like: a floating tensor (..., E) of the width, dtype and device of the outputs.

    Source:
        Howard and Ruder (2018), section 3.3, "concat pooling".
    """

    def __init__(self, first: Tensor, stop: Tensor, like: Tensor) -> None:
        self.first = first
        self.stop = stop
        half = like.dtype in (torch.float16, torch.bfloat16)
        dtype = torch.float32 if half else like.dtype
        shape = (len(first), like.shape[-1])
        self.last = torch.zeros(shape, dtype=dtype, device=like.device)
        self.total = torch.zeros_like(self.last)
        self.maximum = torch.full_like(self.last, -torch.inf)

    def add(self, output: Tensor, start: int) -> None:
        """Take the outputs of one window in.

        Args:
            output: (T, B, E).
            start: time step of output[0].
        """
        output = output.to(self.total.dtype)
        step = torch.arange(start, start + len(output), device=output.device).unsqueeze(1)
        outside = ((step < self.first) | (step >= self.stop)).unsqueeze(-1)  # (T, B, 1)
        self.total = self.total + output.masked_fill(outside, 0.0).sum(0)
        self.maximum = torch.maximum(self.maximum, output.masked_fill(outside, -torch.inf).amax(0))
        final = self.stop - 1 - start
        ends_here = (final >= 0) & (final < len(output)) & (self.stop > self.first)
        rows = torch.arange(output.shape[1], device=output.device)
        at_end = output[final.clamp(0, len(output) - 1), rows]
        self.last = torch.where(ends_here.unsqueeze(1), at_end, self.last)

    def result(self) -> Tensor:
        """Return the pools of all windows so far.

        Returns:
            [last, max, mean], (B, 3E); zeros for rows with an empty span.
        """
        count = (self.stop - self.first).unsqueeze(1)
        maximum = torch.where(count > 0, self.maximum, 0.0)
        mean = self.total / count.clamp(min=1)
        return torch.cat([self.last, maximum, mean], dim=1)
