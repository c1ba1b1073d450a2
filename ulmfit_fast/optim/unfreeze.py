"""Which layer groups train: gradual unfreezing, and the chain-thaw it is compared with."""

from __future__ import annotations

import logging
import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from ulmfit_fast.optim.groups import Group, layer_groups

__all__ = ["ChainThaw", "GradualUnfreezing", "Unfreezing"]

_log = logging.getLogger("ulmfit_fast")

# The parameters that some plan has closed. Any other that is closed was closed by the user.
_CLOSED = WeakTensorKeyDictionary()
# The plans that opened parameters which no optimizer has been seen to train yet.
_WATCHING: WeakSet[Unfreezing] = WeakSet()


class Unfreezing(ABC):
    """A plan of stages, each of which trains some of the layer groups.

    Groups are opened and closed with `requires_grad_` alone: the optimizer's param groups never
    change, so a schedule made for them keeps running. A plan opens only what a plan has closed:
    what was frozen before, or is frozen in an open group meanwhile, stays frozen.

    Args:
        groups: parameters of each layer group, from input to output.
        epochs_per_stage: epochs of each stage but the last, which goes on to the end.

    Raises:
        ValueError: if all parameters are frozen already, or one of them is no leaf.
    """

    def __init__(self, groups: list[list[Tensor]], epochs_per_stage: list[int]) -> None:
        _check_parameters(groups)
        self._groups = groups
        self.epochs_per_stage = epochs_per_stage
        self.epoch = 0
        self._untrained: list[Tensor] = []
        self._stepped: set[int] = set()
        self._warned = False
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

    def idle_stage(self) -> int | None:
        """Return the first stage, from 0, in which none but frozen layers would train, if any."""
        epoch = self.epoch
        try:
            for stage in range(len(self.epochs_per_stage) + 1):
                self.epoch = sum(self.epochs_per_stage[:stage])
                if not any(_trains(p) for group in self.trainable_groups for p in group):
                    return stage
        finally:
            self.epoch = epoch
        return None

    def step(self) -> None:
        """Count one finished epoch and open what its end opens."""
        if self._stepped:
            self._warn(stacklevel=3)
        self.epoch += 1
        self._apply()

    def finish(self) -> None:
        """Open what the plan still holds closed, wherever it has come to."""
        for parameter in self._parameters():
            if parameter in _CLOSED:
                del _CLOSED[parameter]
                parameter.requires_grad_(True)
        self._stop_watching()

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._groups for parameter in group]

    def _apply(self) -> None:
        trainable = {id(parameter) for group in self.trainable_groups for parameter in group}
        opened = []
        for parameter in self._parameters():
            if id(parameter) not in trainable:
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    _CLOSED[parameter] = True
                # A stale gradient would let an optimizer with momentum go on moving it.
                parameter.grad = None
            elif parameter in _CLOSED:
                del _CLOSED[parameter]
                if not parameter.requires_grad:
                    parameter.requires_grad_(True)
                    opened.append(parameter)
        if opened and not self._warned:
            self._untrained += opened
            _watch(self)

    def _saw_step(self, optimizer: Optimizer) -> None:
        """Warn where an optimizer trains this plan's layers, but none those opened last.

        It waits for an optimizer's second step or the end of the epoch, so that another one may
        have had its turn.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._untrained = [p for p in self._untrained if id(p) not in held]
        if not self._untrained:
            self._stop_watching()
        elif id(optimizer) in self._stepped:
            self._warn(stacklevel=5)
        elif any(id(p) in held for p in self._parameters()):
            self._stepped.add(id(optimizer))

    def _warn(self, stacklevel: int) -> None:
        count, self._warned = len(self._untrained), True
        self._stop_watching()
        warnings.warn(
            f"{count} parameters that {type(self).__name__} opened are in no optimizer that takes "
            "steps, so they are not trained; make the optimizer of all layers, as "
            "torch.optim.Adam(discriminative_groups(layers, lr)) does, and not of those alone that "
            "require a gradient when it is made",
            stacklevel=stacklevel,
        )

    def _stop_watching(self) -> None:
        _WATCHING.discard(self)
        self._untrained, self._stepped = [], set()

    def state_dict(self) -> dict[str, Any]:
        """Return the progress, as plain numbers."""
        return {
            "epoch": self.epoch,
            "epochs_per_stage": list(self.epochs_per_stage),
            "closed": self._closed(),
        }

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
        self._hold(state_dict.get("closed", ()))
        self._apply()

    def _closed(self) -> list[int]:
        return [i for i, parameter in enumerate(self._parameters()) if parameter in _CLOSED]

    def _hold(self, closed: Iterable[int]) -> None:
        """Take as closed by a plan what was so in another life of the same parameters.

        A model that was copied or kept whole has its layers closed, as if by the user.
        """
        parameters = self._parameters()
        for index in closed:
            if index < len(parameters) and not parameters[index].requires_grad:
                _CLOSED[parameters[index]] = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_untrained": [], "_stepped": set(), "closed": self._closed()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        closed = state.pop("closed")
        self.__dict__.update(state)
        self._hold(closed)


class GradualUnfreezing(Unfreezing):
    """Train the last layer group first, and one more group from stage to stage.

    Groups are opened and closed with `requires_grad_` alone: the optimizer's param groups never
    change, so a schedule made for them keeps running, and nothing is back-propagated below the
    lowest open group. It opens only what it has closed itself: a layer that you froze before, or
    freeze once it is open, stays frozen.

    Make the optimizer of all layers, as `discriminative_groups` gives them. One that is made of the
    open parameters alone never trains the lower ones, of which there is a warning once a group has
    opened and such an optimizer takes steps.

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
        model_groups: a module with `layer_groups()`, or its layers (modules, parameters or lists of
            them) from input to output.
        epochs_per_stage: epochs until the next group opens. A sequence gives each stage its own
            number, and after its last stage all groups open at once: `[1, 1]` trains the last
            group for an epoch, the last two for an epoch, then everything.

    Raises:
        ValueError: if there is no group, all parameters are frozen already, a number of epochs is
            below 1 or not whole, or there are more stages than groups.
        TypeError: if the model has no layer groups, or there is no parameter in their place.

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
        model_groups: a module with `layer_groups()`, or its layers (modules, parameters or lists of
            them) from input to output.
        epochs_per_stage: epochs that each group trains alone; a sequence gives each its own number,
            in the order in which they train.

    Raises:
        ValueError: if there is no group, all parameters are frozen already, a number of epochs is
            below 1 or not whole, or a sequence has not one number for each group.
        TypeError: if the model has no layer groups, or there is no parameter in their place.

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
        # True is no number of epochs.
        whole = [0 if isinstance(epochs, bool) else operator.index(epochs) for epochs in stages]
    except TypeError:
        whole = [0]
    if any(epochs < 1 for epochs in whole):
        raise ValueError(
            f"epochs_per_stage is {epochs_per_stage!r}, expected at least 1 each, in whole "
            "numbers; 1 opens a group an epoch"
        )
    return whole


def _check_parameters(groups: list[list[Tensor]]) -> None:
    parameters = [parameter for group in groups for parameter in group]
    for parameter in parameters:
        if not parameter.is_leaf:
            raise ValueError(
                f"a group has a tensor of shape {tuple(parameter.shape)} that is computed from "
                "others, expected parameters; pass the parameter that it is computed from"
            )
    if parameters and not any(map(_trains, parameters)):
        raise ValueError(
            f"all {len(parameters)} parameters of the groups are frozen and a plan opens none but "
            "those that it closes itself, expected some with requires_grad; call "
            "requires_grad_(True) on the layers that are to be trained"
        )
    frozen = [i for i, group in enumerate(groups) if group and not any(map(_trains, group))]
    if frozen:
        _log.warning(
            "layer groups %s of %d were frozen before and stay so; call requires_grad_(True) on "
            "them first if they are to be trained",
            ", ".join(map(str, frozen)),
            len(groups),
        )


def _trains(parameter: Tensor) -> bool:
    """Whether a parameter is open, or held closed by a plan that will open it."""
    return parameter.requires_grad or parameter in _CLOSED


def _watch(plan: Unfreezing) -> None:
    global _hooked
    if not _hooked:
        # For good: a hook cannot be taken away while hooks run, and without plans it does nothing.
        register_optimizer_step_post_hook(_after_step)
        _hooked = True
    _WATCHING.add(plan)


_hooked = False


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for plan in list(_WATCHING):
        plan._saw_step(optimizer)
