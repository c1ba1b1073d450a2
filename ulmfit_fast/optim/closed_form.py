"""Schedules that are a share of each group's largest rate, told by the step alone."""

from __future__ import annotations

import numbers
from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["ClosedFormLR"]


class ClosedFormLR(LRScheduler):
    """Give each parameter group a share of its largest rate, one share to a step.

    The largest rate of a group is the one it had when the schedule was made. To resume, make the
    optimizer and the schedule anew and load the state of both, in any order.

    Args:
        optimizer: whose rates to schedule.
        total_steps: T, optimizer steps of the whole run.
        last_epoch: index of the last step taken when resuming, with the largest rates from the
            `initial_lr` of the optimizer's groups; -1 starts anew, from the present rates.

    Raises:
        ValueError: if a number of steps is not whole or out of range.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, last_epoch: int = -1) -> None:
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
        self.total_steps = int(total_steps)
        if last_epoch == -1 and isinstance(optimizer, Optimizer):
            # An earlier schedule leaves its own base rates here, and the parent would keep them.
            for group in optimizer.param_groups:
                group.pop("initial_lr", None)
        super().__init__(optimizer, int(last_epoch))

    @abstractmethod
    def share(self) -> float:
        """Return lr / lr_max at the present step."""

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of each group at the present step, from its lr_max alone."""
        share = self.share()
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
                f"the state has no {missing[0]!r}, expected that of a {type(self).__name__}; "
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
