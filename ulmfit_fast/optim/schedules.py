"""The slanted triangular learning rate."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from ulmfit_fast.checks import number
from ulmfit_fast.optim.closed_form import ClosedFormLR

__all__ = ["SlantedTriangularLR"]


class SlantedTriangularLR(ClosedFormLR):
    r"""Raise the learning rate for a short while, then lower it for a long one, both linearly.

    With T = total_steps, c = cut_frac and t the steps taken:

        p = t / (T c)            for t <= T c
        p = (T - t) / (T (1-c))  after that
        lr = lr_max (1 + p (ratio - 1)) / ratio

    Each parameter group keeps its own lr_max, so discriminative rates stay in proportion: its
    `initial_lr`, which is the rate that it had when its first schedule was made, as for PyTorch's
    schedules. `ratio=math.inf` is lr_max p, which starts and ends at zero. After T steps the rate
    stays at its last value.

    It stands in a `SequentialLR`, a `ChainedScheduler` or beside `ReduceLROnPlateau` as PyTorch's
    own do: what they make of the rate stays in it as a factor. In a chain one that starts at zero
    comes last, for a rate of zero keeps no factor. A group added to the optimizer later is
    refused; give the optimizer the frozen layers from the start.

    To resume, make the optimizer and the schedule anew and load the state of both, in any order.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
        >>> scheduler = SlantedTriangularLR(optimizer, total_steps=1000, ratio=math.inf)
        >>> rates = []
        >>> for _ in range(501):
        ...     rates.append(scheduler.get_last_lr()[0])
        ...     optimizer.step()
        ...     scheduler.step()
        >>> round(rates[50], 6), round(rates[100], 6), round(rates[500], 6)
        (0.005, 0.01, 0.005556)

    Args:
        optimizer: whose rates to schedule.
        total_steps: T, optimizer steps of the whole run.
        cut_frac: c, the share of the steps on which the rate rises, in (0, 1).
        ratio: lr_max over the smallest rate, at least 1; `math.inf` allowed.
        last_epoch: index of the last step taken when resuming, for an optimizer whose groups have
            their `initial_lr`; -1 starts anew.

    Raises:
        ValueError: if an argument lies outside its range, or a number of steps is not whole; in
            `step()`, if the optimizer got another number of groups.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146), equation 3. Where T c is a whole number the values
        are the paper's; elsewhere the paper's denominator would let the rate fall below zero.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        cut_frac: float = 0.1,
        ratio: float = 32,
        last_epoch: int = -1,
    ) -> None:
        expected = "a share between 0 and 1"
        self.cut_frac = number("cut_frac", cut_frac, expected, above=0, below=1)
        expected = "a number, at least 1 (math.inf allowed)"
        self.ratio = number("ratio", ratio, expected, at_least=1, below=None)
        super().__init__(optimizer, total_steps, last_epoch)

    def share(self) -> float:
        """Return lr / lr_max at the present step."""
        step = min(self.last_epoch, self.total_steps)
        cut = self.total_steps * self.cut_frac
        if step <= cut:
            p = step / cut
        else:
            p = (self.total_steps - step) / (self.total_steps - cut)
        if math.isinf(self.ratio):
            return p
        return (1.0 + p * (self.ratio - 1.0)) / self.ratio
