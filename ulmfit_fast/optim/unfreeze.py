"""Which layer groups train: gradual unfreezing, and the chain-thaw it is compared with."""

from __future__ import annotations

import gc
import logging
import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from ulmfit_fast.optim.groups import Group, layer_groups

__all__ = ["ChainThaw", "GradualUnfreezing", "Unfreezing"]

_log = logging.getLogger("ulmfit_fast")

# The parameters that some plan has closed: their names, by module. Any other that is closed was
# closed by the user. By module, for torch.utils.swap_tensors takes no tensor that has weak
# references; a parameter that is in no module stands for itself.
_CLOSED: MutableMapping[Any, set[str]] = WeakIdKeyDictionary()
# The plans that opened parameters which no optimizer has been seen to train yet.
_WATCHING: WeakSet[Unfreezing] = WeakSet()


class _Slot:
    """A parameter by the modules and names that it has, under which there may be another later.

    Args:
        parameter: what stands there now.
        places: module and name, for each module that has it; none where no module does.
    """

    def __init__(self, parameter: Tensor, places: list[tuple[nn.Module, str]]) -> None:
        self._places: list[tuple[nn.Module | Tensor, str]] = [*places] or [(parameter, "")]
        self.tensors = [parameter]

    def refresh(self) -> list[Tensor]:
        """Take what stands in the places now, and return what stood there and is left behind.

        A parameter in several modules is several ones once each was given its own.
        """
        before = self.tensors
        found = {
            id(tensor): tensor
            for holder, name in self._places
            for tensor in ([holder] if isinstance(holder, Tensor) else _tensors_of(holder, name))
        }
        # One that is gone without another was renamed, as pruning does.
        self.tensors = list(found.values()) or before
        return [tensor for tensor in before if all(tensor is not now for now in self.tensors)]

    @property
    def closed(self) -> bool:
        """Whether a plan has closed it."""
        return any(name in _CLOSED.get(holder, ()) for holder, name in self._places)

    @closed.setter
    def closed(self, closed: bool) -> None:
        for holder, name in self._places:
            names = _CLOSED.setdefault(holder, set())
            names.discard(name)
            if closed:
                names.add(name)
            elif not names:
                del _CLOSED[holder]

    @property
    def trains(self) -> bool:
        """Whether it is open, or held closed by a plan that will open it."""
        return self.closed or any(tensor.requires_grad for tensor in self.tensors)

    def requires_grad_(self, wanted: bool) -> bool:
        """Open or close it, and say whether it was not so before."""
        changed = [tensor for tensor in self.tensors if tensor.requires_grad != wanted]
        for tensor in changed:
            tensor.requires_grad_(wanted)
        return bool(changed)


def _tensors_of(module: nn.Module, name: str) -> list[Tensor]:
    """Return the parameter of a name, or those that a parametrization computes it from."""
    holder, names = module, [name]
    parametrized = module._modules.get("parametrizations")
    if isinstance(parametrized, nn.ModuleDict) and name in parametrized:
        holder = parametrized[name]
        names = list(holder._parameters)
    found = (holder._parameters.get(own) for own in names)
    return [tensor for tensor in found if tensor is not None]


def _slots(groups: list[list[Tensor]]) -> list[list[_Slot]]:
    places: dict[int, list[tuple[nn.Module, str]]] = {
        id(parameter): [] for group in groups for parameter in group
    }
    # A list of parameters does not say whose they are, so all modules there are get asked.
    for module in gc.get_objects():
        # isinstance would ask the object, which may be a lazy one.
        if not issubclass(type(module), nn.Module):
            continue
        own = module.__dict__.get("_parameters")
        if isinstance(own, dict):  # a scripted module has something else
            for name, parameter in list(own.items()):
                if id(parameter) in places:
                    places[id(parameter)].append((module, name))
    return [[_Slot(parameter, places[id(parameter)]) for parameter in group] for group in groups]


class Unfreezing(ABC):
    """A plan of stages, each of which trains some of the layer groups.

    Groups are opened and closed with `requires_grad_` alone: the optimizer's param groups never
    change, so a schedule made for them keeps running. A plan opens only what a plan has closed:
    what was frozen before, or is frozen in an open group meanwhile, stays frozen. Where a module
    is given another tensor for a parameter the plan goes on with that one.

    Args:
        groups: parameters of each layer group, from input to output.
        epochs_per_stage: epochs of each stage but the last, which goes on to the end.

    Raises:
        ValueError: if all parameters are frozen already, or one of them is no leaf.
    """

    def __init__(self, groups: list[list[Tensor]], epochs_per_stage: list[int]) -> None:
        self._slots = _slots(groups)
        _check_slots(self._slots)
        self.epochs_per_stage = epochs_per_stage
        self.epoch = 0
        # What was opened, or replaced while open, and no optimizer has been seen to train yet.
        self._untrained: list[_Slot] = []
        # What was replaced: an optimizer that has it was made before.
        self._left: list[Tensor] = []
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
                if not any(slot.trains for slot in self._open_slots()):
                    return stage
        finally:
            self.epoch = epoch
        return None

    def step(self) -> None:
        """Count one finished epoch and open what its end opens."""
        self._refresh_slots()
        if self._stepped:
            self._warn(stacklevel=3)
        self.epoch += 1
        self._apply()

    def finish(self) -> None:
        """Open what the plan still holds closed, wherever it has come to."""
        self._refresh_slots()
        for slot in self._all_slots():
            if slot.closed:
                slot.closed = False
                slot.requires_grad_(True)
        self._stop_watching()

    @property
    def _groups(self) -> list[list[Tensor]]:
        return [[tensor for slot in group for tensor in slot.tensors] for group in self._slots]

    def _all_slots(self) -> list[_Slot]:
        return [slot for group in self._slots for slot in group]

    def _open_slots(self) -> list[_Slot]:
        trainable = {id(parameter) for group in self.trainable_groups for parameter in group}
        return [s for s in self._all_slots() if any(id(t) in trainable for t in s.tensors)]

    def _refresh_slots(self) -> None:
        """Take the tensors that the modules have by now."""
        left = {id(slot): slot.refresh() for slot in self._all_slots()}
        replaced = [slot for slot in self._open_slots() if left[id(slot)]]
        if replaced and not self._warned:
            self._left += [tensor for tensors in left.values() for tensor in tensors]
            self._untrained += [slot for slot in replaced if slot.trains]
            _watch(self)

    def _apply(self) -> None:
        open_slots = {id(slot) for slot in self._open_slots()}
        opened = []
        for slot in self._all_slots():
            if id(slot) not in open_slots:
                if slot.requires_grad_(False):
                    slot.closed = True
                # A stale gradient would let an optimizer with momentum go on moving it.
                for tensor in slot.tensors:
                    tensor.grad = None
            elif slot.closed:
                slot.closed = False
                if slot.requires_grad_(True):
                    opened.append(slot)
        if opened and not self._warned:
            self._untrained += opened
            _watch(self)

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        """Warn where an optimizer trains this plan's layers, but none those opened last.

        It waits for an optimizer's second step or the end of the epoch, so that another one may
        have had its turn.
        """
        self._refresh_slots()
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._untrained = [
            slot for slot in self._untrained if any(id(t) not in held for t in slot.tensors)
        ]
        if not self._untrained:
            self._stop_watching()
        elif id(optimizer) in self._stepped:
            self._warn(stacklevel=5)
        elif any(id(t) in held for t in [*self._left, *(t for g in self._groups for t in g)]):
            self._stepped.add(id(optimizer))

    def _warn(self, stacklevel: int) -> None:
        count, self._warned = sum(len(slot.tensors) for slot in self._untrained), True
        self._stop_watching()
        warnings.warn(
            f"{count} parameters that {type(self).__name__} opened are in no optimizer that takes "
            "steps, so they are not trained; make the optimizer of all layers, as "
            "torch.optim.Adam(discriminative_groups(layers, lr)) does, and not of those alone that "
            "require a gradient when it is made; and make it after what gives the model other "
            "parameters, such as load_state_dict(assign=True)",
            stacklevel=stacklevel,
        )

    def _stop_watching(self) -> None:
        _WATCHING.discard(self)
        self._untrained, self._left, self._stepped = [], [], set()

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
        self._refresh_slots()
        self._mark_closed(state_dict.get("closed", ()))
        self._apply()

    def _closed(self) -> list[int]:
        return [index for index, slot in enumerate(self._all_slots()) if slot.closed]

    def _mark_closed(self, closed: Iterable[int]) -> None:
        """Take as closed by a plan what was so in another life of the same parameters.

        A model that was copied or kept whole has its layers closed, as if by the user.
        """
        slots = self._all_slots()
        for index in closed:
            if index < len(slots) and not any(t.requires_grad for t in slots[index].tensors):
                slots[index].closed = True

    def __getstate__(self) -> dict[str, Any]:
        passing: dict[str, Any] = {"_untrained": [], "_left": [], "_stepped": set()}
        return {**self.__dict__, **passing, "closed": self._closed()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        closed = state.pop("closed")
        self.__dict__.update(state)
        self._mark_closed(closed)


class GradualUnfreezing(Unfreezing):
    """Train the last layer group first, and one more group from stage to stage.

    Groups are opened and closed with `requires_grad_` alone: the optimizer's param groups never
    change, so a schedule made for them keeps running, and nothing is back-propagated below the
    lowest open group. It opens only what it has closed itself: a layer that you froze before, or
    freeze once it is open, stays frozen.

    Make the optimizer of all layers, as `discriminative_groups` gives them. One that is made of the
    open parameters alone never trains the lower ones, of which there is a warning once a group has
    opened and such an optimizer takes steps. If the modules are given other parameters meanwhile,
    as by `load_state_dict(assign=True)`, the plan goes on with these; make the optimizer anew.

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


def _check_slots(groups: list[list[_Slot]]) -> None:
    slots = [slot for group in groups for slot in group]
    for slot in slots:
        (parameter,) = slot.tensors
        if not parameter.is_leaf:
            raise ValueError(
                f"a group has a tensor of shape {tuple(parameter.shape)} that is computed from "
                "others, expected parameters; pass the parameter that it is computed from"
            )
    if slots and not any(slot.trains for slot in slots):
        raise ValueError(
            f"all {len(slots)} parameters of the groups are frozen and a plan opens none but "
            "those that it closes itself, expected some with requires_grad; call "
            "requires_grad_(True) on the layers that are to be trained"
        )
    frozen = [i for i, group in enumerate(groups) if group and not any(s.trains for s in group)]
    if frozen:
        _log.warning(
            "layer groups %s of %d were frozen before and stay so; call requires_grad_(True) on "
            "them first if they are to be trained",
            ", ".join(map(str, frozen)),
            len(groups),
        )
    empty = [index for index, group in enumerate(groups) if not group]
    if empty:
        _log.warning(
            "layer groups %s of %d have no parameters, so that nothing opens with them; leave them "
            "out, or put each into a list with a layer that has some",
            ", ".join(map(str, empty)),
            len(groups),
        )


def _watch(plan: Unfreezing) -> None:
    global _hook_registered
    if not _hook_registered:
        # For good: a hook cannot be taken away while hooks run, and without plans it does nothing.
        register_optimizer_step_post_hook(_after_step)
        _hook_registered = True
    _WATCHING.add(plan)


_hook_registered = False


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for plan in list(_WATCHING):
        plan._check_optimizer(optimizer)
