"""The slanted triangular learning rate."""

from __future__ import annotations

import math
import numbers
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["SlantedTriangularLR"]


class SlantedTriangularLR(LRScheduler):
    r"""Raise the learning rate for a short while, then lower it for a long one, both linearly.

    With T = total_steps, c = cut_frac and t the steps taken:

        p = t / (T c)            for t <= T c
        p = (T - t) / (T (1-c))  after that
        lr = lr_max (1 + p (ratio - 1)) / ratio

    Each parameter group keeps its own lr_max, the rate it had when the schedule was made, so
    discriminative rates stay in proportion. `ratio=math.inf` is lr_max p, which starts and ends
    at zero. After T steps the rate stays at its last value.

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
        last_epoch: index of the last step taken when resuming, with lr_max from the `initial_lr`
            of the optimizer's groups; -1 starts anew, from the present rates.

    Raises:
        ValueError: if an argument lies outside its range, or a number of steps is not whole.

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
        if not _is_whole(total_steps) or total_steps < 1:
            raise ValueError(
                f"total_steps is {total_steps!r}, expected a whole number, at least 1; "
                "pass epochs * len(batches)"
            )
        if not _is_whole(last_epoch) or last_epoch < -1:
            raise ValueError(
                f"last_epoch is {last_epoch!r}, expected a whole number, at least -1; "
                "-1 starts anew"
            )
        if not 0.0 < cut_frac < 1.0:
            raise ValueError(f"cut_frac is {cut_frac}, expected a share between 0 and 1")
        if not ratio >= 1.0:
            raise ValueError(f"ratio is {ratio}, expected 1 or more (math.inf allowed)")
        self.total_steps = int(total_steps)
        self.cut_frac = cut_frac
        self.ratio = ratio
        if last_epoch == -1 and isinstance(optimizer, Optimizer):
            # An earlier schedule leaves its own base rates here, and the parent would keep them.
            for group in optimizer.param_groups:
                group.pop("initial_lr", None)
        super().__init__(optimizer, int(last_epoch))

    def _share(self) -> float:
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

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of each group at the present step, from its lr_max alone."""
        share = self._share()
        return [float(base) * share for base in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume: go on at the saved step, and give the optimizer the rates of that step.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            ValueError: if it is no state of this schedule, or of another number of groups.
        """
        missing = sorted({"base_lrs", "last_epoch", "total_steps"} - set(state_dict))
        if missing:
            raise ValueError(
                f"the state has no {missing[0]!r}, expected that of a SlantedTriangularLR; "
                "pass what state_dict() returned"
            )
        groups = self.optimizer.param_groups
        if len(state_dict["base_lrs"]) != len(groups):
            raise ValueError(
                f"the state has {len(state_dict['base_lrs'])} rates, expected {len(groups)}, one a "
                "parameter group; make the optimizer with the saved groups"
            )
        super().load_state_dict(state_dict)
        # Making this schedule gave the optimizer the first rate, perhaps after its own state was
        # loaded; without this the next step would be taken with it.
        for group, base, rate in zip(groups, self.base_lrs, self.get_lr(), strict=True):
            group["initial_lr"] = _copied(base)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = [_copied(group["lr"]) for group in groups]


def _copied(rate: float | Tensor) -> float | Tensor:
    return rate.clone() if isinstance(rate, Tensor) else rate


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Real) and float(value).is_integer()
