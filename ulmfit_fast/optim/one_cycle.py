"""The one-cycle learning rate, with the momentum against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from ulmfit_fast.checks import NumberError, number
from ulmfit_fast.optim.closed_form import ClosedFormLR

__all__ = ["OneCycleLR"]


class OneCycleLR(ClosedFormLR):
    r"""Raise the learning rate and lower it again along cosines, and the momentum the other way.

    With T = total_steps, t the steps taken, q = t / T and cos(a, b, x) the half cosine from a (at
    x = 0) to b (at x = 1):

        lr = cos(lr_max / div, lr_max, q / pct_start)                          for q < pct_start
        lr = cos(lr_max, lr_max / div_final, (q - pct_start) / (1 - pct_start))  after that

    and the momentum likewise through the three values of `moms`. Each parameter group keeps its own
    lr_max, its `initial_lr`, and other schedulers around it or beside it are taken as
    `SlantedTriangularLR` takes them. To resume, make the optimizer and the schedule anew and load
    the state of both, in any order.

    `torch.optim.lr_scheduler.OneCycleLR` places its peak one step earlier and reaches its end with
    the last step; the values here are those of fastai.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
        >>> scheduler = OneCycleLR(optimizer, total_steps=100)
        >>> seen = []
        >>> for _ in range(100):
        ...     seen.append((scheduler.get_last_lr()[0], optimizer.param_groups[0]["betas"][0]))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> [(round(lr, 6), round(momentum, 4)) for lr, momentum in (seen[0], seen[25], seen[50])]
        [(0.0004, 0.8), (0.01, 0.7), (0.0075, 0.725)]

    Args:
        optimizer: whose rates to schedule.
        total_steps: T, optimizer steps of the whole cycle.
        pct_start: share of the steps on which the rate rises, in (0, 1).
        div: lr_max over the rate at the start, at least 1.
        div_final: lr_max over the rate at the end, at least 1.
        moms: momentum at the start, at the peak of the rate and at the end: the first of `betas`,
            or `momentum` where the optimizer has that; None leaves it alone.
        last_epoch: index of the last step taken when resuming, for an optimizer whose groups have
            their `initial_lr`; -1 starts anew.

    Raises:
        ValueError: if an argument lies outside its range, a number of steps is not whole, or the
            optimizer has no momentum; in `step()`, if it got another number of groups.

    Source:
        Smith 2018 (arXiv:1803.09820); fastai 2.8.12, `Learner.fit_one_cycle`, for the form.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        pct_start: float = 0.25,
        div: float = 25.0,
        div_final: float = 1e5,
        moms: Sequence[float] | None = (0.8, 0.7, 0.8),
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        expected = "a share between 0 and 1"
        self.pct_start = number("pct_start", pct_start, expected, above=0, below=1)
        expected = "a number, at least 1"
        self.div = number("div", div, expected, at_least=1)
        self.div_final = number("div_final", div_final, expected, at_least=1)
        self.moms = None if moms is None else _checked_moms(moms)
        if moms is not None:
            for group in optimizer.param_groups:
                if "betas" not in group and "momentum" not in group:
                    raise ValueError(
                        f"the {type(optimizer).__name__} has neither betas nor momentum, expected "
                        "one of them to schedule; pass moms=None"
                    )
        super().__init__(optimizer, total_steps, last_epoch)

    def _between(self, start: float, peak: float, end: float) -> float:
        """Return the value at the present step of what goes along the two cosines."""
        done = min(self.last_epoch / self.total_steps, 1.0)
        if done < self.pct_start:
            return _half_cosine(start, peak, done / self.pct_start)
        return _half_cosine(peak, end, (done - self.pct_start) / (1.0 - self.pct_start))

    def share(self) -> float:
        """Return lr / lr_max at the present step."""
        return self._between(1.0 / self.div, 1.0, 1.0 / self.div_final)

    def _rates(self, factors: Sequence[float]) -> list[float]:
        # Here, and not in step(): a SequentialLR comes to a schedule by another way.
        if self.moms is not None:
            momentum = self._between(*self.moms)
            for group in self._groups():
                _set_momentum(group, momentum)
        return super()._rates(factors)

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the rates and the momentum, as plain values."""
        groups = self.optimizer.param_groups if self.moms is not None else []
        momenta = [float(g["betas"][0] if "betas" in g else g["momentum"]) for g in groups]
        return {**super().state_dict(), "momenta": momenta}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume: go on at the saved step, with the rates and the momentum of the optimizer there.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            ValueError: if it is no state of this schedule, or of another number of groups.
        """
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "momenta"})
        for group, momentum in zip(
            self.optimizer.param_groups, state_dict.get("momenta", ()), strict=False
        ):
            _set_momentum(group, momentum)


def _checked_moms(moms: Sequence[float]) -> tuple[float, ...]:
    expected = "three numbers in [0, 1): start, peak, end; None leaves the momentum alone"
    if isinstance(moms, str) or not isinstance(moms, Sequence) or len(moms) != 3:
        raise NumberError(f"moms is {moms!r:.60}, expected {expected}")
    names = (f"moms[{position}]" for position in range(3))
    return tuple(
        number(name, value, expected, at_least=0, below=1)
        for name, value in zip(names, moms, strict=True)
    )


def _set_momentum(group: dict[str, Any], momentum: float) -> None:
    if "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    else:
        group["momentum"] = momentum


def _half_cosine(start: float, end: float, position: float) -> float:
    return start + (end - start) * (1.0 - math.cos(math.pi * position)) / 2.0
