"""What is formed of a text's outputs as they arrive in windows: pools, and AR and TAR."""

from __future__ import annotations

import torch
from torch import Tensor

from ulmfit_fast.nn.loss import at_least_float32, check_regularisers


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
        shape = (first.shape[0], like.shape[-1])
        self.last = torch.zeros(shape, dtype=dtype, device=like.device)  # (B, E)
        self.total = torch.zeros_like(self.last)
        self.maximum = torch.full_like(self.last, -torch.inf)

    def add(self, output: Tensor, start: int) -> None:
        """Take the outputs of one window in.

        Args:
            output: (T, B, E).
            start: time step of output[0].
        """
        output = output.to(self.total.dtype)
        outside = _outside(output, start, self.first, self.stop)  # (T, B, 1)
        self.total = self.total + output.masked_fill(outside, 0.0).sum(0)
        self.maximum = torch.maximum(self.maximum, output.masked_fill(outside, -torch.inf).amax(0))
        final = self.stop - 1 - start  # (B,)
        ends_here = (final >= 0) & (final < output.shape[0]) & (self.stop > self.first)
        rows = torch.arange(output.shape[1], dtype=torch.int64, device=output.device)  # (B,)
        at_end = output[final.clamp(0, output.shape[0] - 1), rows]  # (B, E)
        self.last = torch.where(ends_here.unsqueeze(1), at_end, self.last)  # (B, E)

    def result(self) -> Tensor:
        """Return the pools of all windows so far.

        Returns:
            [last, max, mean], (B, 3E); zeros for rows with an empty span.
        """
        count = (self.stop - self.first).unsqueeze(1)  # (B, 1)
        maximum = torch.where(count > 0, self.maximum, 0.0)  # (B, E)
        mean = self.total / count.clamp(min=1)  # (B, E)
        return torch.cat([self.last, maximum, mean], dim=1)  # (B, 3E)


class SpanRegularisers:
    """Form AR and TAR of the outputs of each row's span, window by window.

    They are means over the outputs that are pooled: padding adds nothing, and no row weighs more
    for being beside a longer one. TAR has the step from window to window too.

    Example:
        >>> import torch
        >>> sums = SpanRegularisers(alpha=2.0, beta=1.0)
        >>> sums.begin(torch.tensor([0]), torch.tensor([3]))
        >>> sums.add(torch.tensor([[[4.0]], [[1.0]]]), start=0)
        >>> sums.add(torch.tensor([[[1.0]], [[9.0]]]), start=2)  # the 9 is beyond the row's end
        >>> [part.item() for part in sums.result()]
        [12.0, 4.5]

    Args:
        alpha: weight of AR.
        beta: weight of TAR; a span of one step has none.

    Raises:
        ValueError: if alpha or beta is negative.

    Source:
        Merity et al. (2018), section 4.6, of the last layer's output, as in fastai's classifiers.
    """

    def __init__(self, *, alpha: float, beta: float) -> None:
        check_regularisers(alpha, beta)
        self.alpha = alpha
        self.beta = beta

    def begin(self, first: Tensor, stop: Tensor) -> None:
        """Start anew.

        Args:
            first: first time step of each row's span, (B,), int64.
            stop: time step after each row's span, (B,), int64.
        """
        self.first = first
        self.stop = stop
        self._squares = torch.zeros((), dtype=torch.float32, device=first.device)
        self._steps = self._squares
        self._before: Tensor | None = None
        self._width = 1

    def add(self, output: Tensor, start: int) -> None:
        """Take the outputs of one window in.

        Args:
            output: (T, B, E).
            start: time step of output[0].
        """
        output = at_least_float32(output)
        self._width = output.shape[-1]
        outside = _outside(output, start, self.first, self.stop)  # (T, B, 1)
        self._squares = self._squares + output.masked_fill(outside, 0.0).square().sum()
        if self._before is not None:
            output = torch.cat([self._before, output])  # (T + 1, B, E)
            start -= 1
        # Of two steps the later one is past the span's first, or the earlier is outside.
        apart = _outside(output[1:], start + 1, self.first + 1, self.stop)
        steps = (output[1:] - output[:-1]).masked_fill(apart, 0.0)  # (T - 1, B, E)
        self._steps = self._steps + steps.square().sum()
        self._before = output[-1:]  # (1, B, E)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return AR and TAR of all windows so far, each a scalar in at least float32."""
        outputs = (self.stop - self.first).sum().clamp(min=1) * self._width
        steps = (self.stop - self.first - 1).clamp(min=0).sum().clamp(min=1) * self._width
        return self.alpha * self._squares / outputs, self.beta * self._steps / steps


def _outside(output: Tensor, start: int, first: Tensor, stop: Tensor) -> Tensor:
    """Say of each step of a window whether it is outside a row's span, (T, B, 1)."""
    steps = torch.arange(start, start + output.shape[0], dtype=torch.int64, device=output.device)
    step = steps.unsqueeze(1)  # (T, 1)
    return ((step < first) | (step >= stop)).unsqueeze(-1)  # (T, B, 1)
