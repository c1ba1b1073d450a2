"""A batch of texts whose rows the processes of a training divide among them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ulmfit_fast.system.distributed import world

__all__ = ["SharedBatch"]


class SharedBatch:
    """The rows of a batch that fall to this process, and how the rows of all come together.

    Of `size` processes, process r takes the rows r, r + size, r + 2 size, ...: batches are sorted
    by length, so that all of them have about as much to do. One process has all rows.

    Example:
        >>> tokens, lengths = torch.tensor([[2, 2], [5, 7]]), torch.tensor([2, 1])
        >>> batch = SharedBatch(tokens, lengths)
        >>> batch.lengths
        tensor([2, 1])
        >>> batch.join(torch.tensor([[0.5], [0.25]]))
        tensor([[0.5000],
                [0.2500]])

    Args:
        tokens: `(T, B)`, of the whole batch, the same in all processes.
        lengths: `(B,)`, on the CPU.

    Attributes:
        tokens: `(T', B')` of this process; each has some text, so that each has a gradient.
        lengths: `(B',)`.
    """

    def __init__(self, tokens: Tensor, lengths: Tensor) -> None:
        self._rank, self._size = world()
        self._all = lengths
        self._own = len(range(self._rank, len(lengths), self._size))
        self.tokens, self.lengths = tokens, lengths
        if self._size == 1:
            return
        self.tokens = tokens[:, self._rank :: self._size]  # (T, B')
        self.lengths = lengths[self._rank :: self._size]  # (B',)
        if not self.lengths.any():
            # DistributedDataParallel waits for a gradient of every process: read some text, and
            # leave its features out.
            longest = int(lengths.argmax())
            self.tokens = torch.cat([self.tokens, tokens[:, longest : longest + 1]], 1)
            self.lengths = torch.cat([self.lengths, lengths[longest : longest + 1].clamp(min=1)])
        self.tokens = self.tokens[: int(self.lengths.max())]  # (T', B')

    def join(self, features: Tensor) -> Tensor:
        """Return the features of the whole batch, in its order.

        The gradient of a row is the sum of what all processes make of it.

        Args:
            features: `(B', F)`, of the rows of this process.

        Returns:
            `(B, F)`.
        """
        if self._size == 1:
            return features
        count = len(self._all)
        most = -(-count // self._size)
        own = F.pad(features[: self._own], (0, 0, 0, most - self._own))  # (most, F)
        found: Tensor = _Gather.apply(own)  # type: ignore[no-untyped-call]
        return found.flatten(0, 1)[:count]  # (most, size, F) to (B, F)

    def weights_of_means(self, max_len: int) -> tuple[float, float]:
        """Return by what the means over this process's outputs are to be multiplied.

        The average of all processes' products is then the mean over the outputs of the batch.

        Args:
            max_len: outputs of a text, from its end, that count.

        Returns:
            The factor of means over outputs, and of means over steps from one to the next.
        """
        if self._size == 1:
            return 1.0, 1.0
        outputs = self._all.clamp(max=max_len)  # (B,)
        steps = (outputs - 1).clamp(min=0)
        own = slice(self._rank, None, self._size)
        outputs_share = float(outputs[own].sum()) / max(1, int(outputs.sum()))
        steps_share = float(steps[own].sum()) / max(1, int(steps.sum()))
        return self._size * outputs_share, self._size * steps_share


class _Gather(torch.autograd.Function):
    """Rows of every process, `(B', F)` to `(B', processes, F)`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, size = world()
        ctx.rank = rank
        rows = rows.contiguous()
        found = [torch.empty_like(rows) for _ in range(size)]
        dist.all_gather(found, rows)
        return torch.stack(found, 1)  # (B', processes, F)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()  # (B', processes, F)
        dist.all_reduce(grad)
        own: Tensor = grad[:, ctx.rank]  # (B', F)
        return own
