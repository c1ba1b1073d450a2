"""Which layer groups train: gradual unfreezing, and the chain-thaw it is compared with."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ulmfit_fast.optim.groups import Group, layer_groups

__all__ = ["ChainThaw", "GradualUnfreezing", "Unfreezing"]


class Unfreezing(ABC):
    """A plan of stages, each of which trains some of the layer groups.

    Groups are opened and closed with `requires_grad_` alone: the optimizer's param groups never
    change, so a schedule made for them keeps running.

    Args:
        groups: parameters of each layer group, from input to output.
        epochs_per_stage: epochs of each stage but the last, which goes on to the end.
    """

    def __init__(self, groups: list[list[Tensor]], epochs_per_stage: list[int]) -> None:
        self._groups = groups
        self.epochs_per_stage = epochs_per_stage
        self.epoch = 0
        self._apply()

    def stage_at(self, epoch: int) -> int:
        """Return how many stages are over after so many epochs.

        Args:
            epoch: finished epochs.
        """
        finished, stage = 0, 0
        for epochs in self.epochs_per_stage:
            finished += epochs
            if epoch < finished:
                return stage
            stage += 1
        return stage

    @property
    def stage(self) -> int:
        """How many stages are over, from 0."""
        return self.stage_at(self.epoch)

    @property
    @abstractmethod
    def trainable_groups(self) -> list[list[Tensor]]:
        """The open groups, from input to output."""

    def step(self) -> None:
        """Count one finished epoch and open what its end opens."""
        self.epoch += 1
        self._apply()

    def _apply(self) -> None:
        opened = {id(parameter) for group in self.trainable_groups for parameter in group}
        for group in self._groups:
            for parameter in group:
                trainable = id(parameter) in opened
                parameter.requires_grad_(trainable)
                if not trainable:
                    # A stale gradient would let an optimizer with momentum go on moving it.
                    parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the progress, as plain numbers."""
        return {"epoch": self.epoch, "epochs_per_stage": list(self.epochs_per_stage)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume: open the groups that were open when the state was saved.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            ValueError: if it is no state of such a plan, or is of another one.
        """
        missing = sorted({"epoch", "epochs_per_stage"} - set(state_dict))
        if missing:
            raise ValueError(
                f"the state has no {missing[0]!r}, expected that of a {type(self).__name__}; "
                "pass what state_dict() returned"
            )
        epoch = state_dict["epoch"]
        if not isinstance(epoch, int) or epoch < 0:
            raise ValueError(
                f"epoch is {epoch!r} in the state, expected a whole number, at least 0; "
                "pass what state_dict() returned"
            )
        if list(state_dict["epochs_per_stage"]) != self.epochs_per_stage:
            raise ValueError(
                f"the saved plan is {state_dict['epochs_per_stage']}, expected "
                f"{self.epochs_per_stage}; build {type(self).__name__} with the saved plan"
            )
        self.epoch = epoch
        self._apply()


class GradualUnfreezing(Unfreezing):
    """Train the last layer group first, and one more group from stage to stage.

    Groups are opened and closed with `requires_grad_` alone: the optimizer's param groups never
    change, so a schedule made for them keeps running, and nothing is back-propagated below the
    lowest open group.

    Example:
        >>> import torch
        >>> layers = [torch.nn.Linear(2, 2) for _ in range(3)]
        >>> unfreezing = GradualUnfreezing(layers, epochs_per_stage=5)
        >>> trained = []
        >>> for epoch in range(15):
        ...     trained.append(len(unfreezing.trainable_groups))
        ...     unfreezing.step()
        >>> trained  # epochs 1-5 the last layer, 6-10 the next as well, 11-15 all
        [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3]

    Args:
        model_groups: a module with `layer_groups()`, or its layers (modules or parameter lists)
            from input to output.
        epochs_per_stage: epochs until the next group opens. A sequence gives each stage its own
            number, and after its last stage all groups open at once: `[1, 1]` trains the last
            group for an epoch, the last two for an epoch, then everything.

    Raises:
        ValueError: if there is no group, a number of epochs is below 1 or not whole, or there are
            more stages than groups.
        TypeError: if the model has no layer groups.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146), section 3.3.
    """

    def __init__(
        self,
        model_groups: nn.Module | Sequence[Group],
        epochs_per_stage: int | Sequence[int] = 1,
    ) -> None:
        groups = _checked_groups(model_groups)
        count = len(groups)
        stages = _checked_stages(epochs_per_stage)
        if not isinstance(epochs_per_stage, Iterable):
            stages = stages * (count - 1)
        if len(stages) > count:
            raise ValueError(
                f"epochs_per_stage has {len(stages)} stages for {count} groups, expected at most "
                f"{count}"
            )
        super().__init__(groups, stages)

    @property
    def trainable_groups(self) -> list[list[Tensor]]:
        """The open groups, from input to output."""
        count = len(self._groups)
        opened = self.stage + 1 if self.stage < len(self.epochs_per_stage) else count
        return self._groups[count - opened :]


class ChainThaw(Unfreezing):
    """Train the last layer group alone, then each other one alone from the first up, then all.

    Example:
        >>> layers = [nn.Linear(2, 2) for _ in range(3)]
        >>> thaw = ChainThaw(layers)
        >>> trained = []
        >>> for epoch in range(5):
        ...     trained.append([all(p.requires_grad for p in m.parameters()) for m in layers])
        ...     thaw.step()
        >>> [[index for index, open in enumerate(stage) if open] for stage in trained]
        [[2], [0], [1], [0, 1, 2], [0, 1, 2]]

    Args:
        model_groups: a module with `layer_groups()`, or its layers (modules or parameter lists)
            from input to output.
        epochs_per_stage: epochs that each group trains alone; a sequence gives each its own number,
            in the order in which they train.

    Raises:
        ValueError: if there is no group, a number of epochs is below 1 or not whole, or a sequence
            has not one number for each group.
        TypeError: if the model has no layer groups.

    Source:
        Felbo et al. 2017 (arXiv:1708.00524), section 3.3; compared with gradual unfreezing in
        Howard & Ruder 2018 (arXiv:1801.06146), table 7.
    """

    def __init__(
        self,
        model_groups: nn.Module | Sequence[Group],
        epochs_per_stage: int | Sequence[int] = 1,
    ) -> None:
        groups = _checked_groups(model_groups)
        stages = _checked_stages(epochs_per_stage)
        if not isinstance(epochs_per_stage, Iterable):
            stages = stages * len(groups)
        if len(stages) != len(groups):
            raise ValueError(
                f"epochs_per_stage has {len(stages)} stages for {len(groups)} groups, expected one "
                "for each"
            )
        super().__init__(groups, stages)

    @property
    def trainable_groups(self) -> list[list[Tensor]]:
        """The open groups: one, or at the end all, from input to output."""
        count = len(self._groups)
        return self._groups if self.stage >= count else [self._groups[self.stage - 1]]


def _checked_groups(model_groups: nn.Module | Sequence[Group]) -> list[list[Tensor]]:
    groups = layer_groups(model_groups)
    if not groups:
        raise ValueError("model_groups has 0 groups, expected at least one")
    return groups


def _checked_stages(epochs_per_stage: int | Sequence[int]) -> list[int]:
    stages = epochs_per_stage if isinstance(epochs_per_stage, Iterable) else [epochs_per_stage]
    try:
        whole = [operator.index(epochs) for epochs in stages]
    except TypeError:
        whole = [0]
    if any(epochs < 1 for epochs in whole):
        raise ValueError(
            f"epochs_per_stage is {epochs_per_stage!r}, expected at least 1 each, in whole "
            "numbers; 1 opens a group an epoch"
        )
    return whole
