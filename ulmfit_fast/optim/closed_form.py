"""Schedules that are a share of each group's largest rate, a function of the step alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ulmfit_fast.checks import number

__all__ = ["ClosedFormLR"]

# What the last schedule of ours to set an optimizer's rates has given each group: the rate, and
# what it is made of, lr_max * share * factor. The factor is what others have made of the rate.
_Part = dict[str, float]
_LAST: WeakKeyDictionary[Optimizer, list[_Part]] = WeakKeyDictionary()


class ClosedFormLR(LRScheduler):
    """Give each parameter group a share of its largest rate, one share to a step.

    The largest rate of a group is its `initial_lr`, as in PyTorch's own schedules: the rate it had
    when its first schedule was made. What others make of a rate in between (another member of a
    ChainedScheduler, ReduceLROnPlateau, a line of one's own) stays in it as a factor; an earlier
    schedule of this kind alone leaves none. To resume, make the optimizer and the schedule anew
    and load the state of both, in any order.

    Args:
        optimizer: whose rates to schedule; all its parameter groups are in it already.
        total_steps: T, optimizer steps of the whole run.
        last_epoch: index of the last step taken when resuming, -1 to start anew.

    Raises:
        ValueError: if a number of steps is not whole or out of range.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, last_epoch: int = -1) -> None:
        expected = "a whole number, at least 1; pass epochs * len(batches)"
        self.total_steps = int(number("total_steps", total_steps, expected, at_least=1, whole=True))
        expected = "a whole number, at least -1; -1 starts anew"
        last_epoch = int(number("last_epoch", last_epoch, expected, at_least=-1, whole=True))
        self._parts: list[_Part] = []
        if last_epoch == -1 and isinstance(optimizer, Optimizer):
            _undo_earlier_schedule(optimizer)
        super().__init__(optimizer, last_epoch)

    @abstractmethod
    def share(self) -> float:
        """Return lr / lr_max at the present step."""

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the rate of each group at the present step, with what others made of it."""
        if self.last_epoch > 0 and not self._parts:  # resumed by last_epoch: lr_max alone is known
            return self._get_closed_form_lr()
        groups, parts = self._groups(), self._parts
        if self.last_epoch == 0 and self._get_lr_called_within_step:
            # It starts, perhaps for the second time, in a SequentialLR: nothing is its own yet.
            parts = [{"rate": float(b), "share": 1.0, "factor": 1.0} for b in self.base_lrs]
        return self._rates(
            [
                _factor(group["lr"], float(base), part)
                for group, base, part in zip(groups, self.base_lrs, parts, strict=True)
            ]
        )

    def _get_closed_form_lr(self) -> list[float]:
        """Return the rate of each group at the present step from its lr_max alone.

        PyTorch takes it for `step(epoch)`, and where a SequentialLR comes to this schedule.
        """
        return self._rates([1.0] * len(self._groups()))

    def _rates(self, factors: Sequence[float]) -> list[float]:
        share = self.share()
        self._parts = [
            {"rate": float(base) * share * factor, "share": share, "factor": factor}
            for base, factor in zip(self.base_lrs, factors, strict=True)
        ]
        _LAST[self.optimizer] = self._parts
        return [part["rate"] for part in self._parts]

    def _groups(self) -> list[dict[str, Any]]:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.base_lrs):
            raise ValueError(
                f"the optimizer has {len(groups)} parameter groups, but had {len(self.base_lrs)} "
                f"when the {type(self).__name__} was made; give the optimizer all groups, frozen "
                "ones too, before that, or make a new schedule after add_param_group"
            )
        return groups

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the rates, as plain values."""
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return {**super().state_dict(), "rates": rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume: go on at the saved step, and give the optimizer the rates that it had there.

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
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "rates"})
        rates = state_dict.get("rates")
        if rates is None:  # of an earlier version, whose rates were made by the schedule alone
            rates = self._get_closed_form_lr()
        _LAST[self.optimizer] = self._parts = [dict(part) for part in self._parts]
        # Making this schedule gave the optimizer the first rate, perhaps after its own state was
        # loaded; without this the next step would be taken with it.
        for group, base, rate in zip(groups, self.base_lrs, rates, strict=True):
            group["initial_lr"] = _copied(base)
            _set_rate(group, rate)


def _undo_earlier_schedule(optimizer: Optimizer) -> None:
    """Take out of the rates what an earlier schedule of ours left there, if it is as it left it.

    Otherwise a schedule after another one, or made twice, would start from the last rate of the
    first one as if that were what somebody else had made of lr_max.
    """
    for group, part in zip(optimizer.param_groups, _LAST.get(optimizer, ()), strict=False):
        if "initial_lr" in group and float(group["lr"]) == _rounded_like(part["rate"], group["lr"]):
            part["rate"] = float(group["initial_lr"]) * part["factor"]
            part["share"] = 1.0  # the earlier one may go on beside the new one, and multiplies then
            _set_rate(group, part["rate"])


def _factor(rate: float | Tensor, base: float, part: _Part) -> float:
    """Return what others have made of a rate that lr_max and our share alone explain otherwise."""
    if float(rate) == _rounded_like(part["rate"], rate):
        return part["factor"]
    own = base * part["share"]
    # Nothing can be read off a rate of zero.
    return float(rate) / own if own else part["factor"]


def _rounded_like(value: float, rate: float | Tensor) -> float:
    """Return a rate as the optimizer holds it, which rounds it where the rates are tensors."""
    if isinstance(rate, Tensor):
        return torch.tensor(value, dtype=rate.dtype, device="cpu").item()
    return value


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _copied(rate: float | Tensor) -> float | Tensor:
    return rate.clone() if isinstance(rate, Tensor) else rate
