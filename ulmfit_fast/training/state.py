"""Where a training is: every step so far, its position, and all that decides how it goes on."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.amp import GradScaler

from ulmfit_fast.nn.state import State
from ulmfit_fast.system.distributed import gathered, world
from ulmfit_fast.training.plan import Model, TrainingPlan

__all__ = [
    "Cursor",
    "EpochResult",
    "History",
    "NumberRows",
    "Numbers",
    "Training",
    "restore",
    "snapshot",
]


class Numbers(Sequence[float]):
    """Numbers that can be appended to, in eight bytes each; a list takes thirty-two.

    Example:
        >>> losses = Numbers([3.5])
        >>> losses.append(2.25)
        >>> losses, losses[-1], losses[:1], losses == [3.5, 2.25]
        ([3.5, 2.25], 2.25, [3.5], True)

    Args:
        values: the first ones.
    """

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._values = array("d", values)

    def append(self, value: float) -> None:
        """Add a number at the end."""
        self._values.append(value)

    def tolist(self) -> list[float]:
        """Return them as a list."""
        return self._values.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        # Always a copy: a view would keep more numbers from being appended.
        return np.array(self._values, dtype)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> float: ...

    @overload
    def __getitem__(self, index: slice) -> list[float]: ...

    def __getitem__(self, index: int | slice) -> float | list[float]:
        found = self._values[index]
        return found.tolist() if isinstance(found, array) else found

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbers):
            return self._values == other._values
        return self.tolist() == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.tolist())


class NumberRows(Sequence[list[float]]):
    """Rows of equally many numbers that can be appended to, in eight bytes a number.

    Example:
        >>> rates = NumberRows([[0.1, 0.2]])
        >>> rates.append([0.3, 0.4])
        >>> rates, rates[-1], len(rates)
        ([[0.1, 0.2], [0.3, 0.4]], [0.3, 0.4], 2)

    Args:
        rows: the first ones.
    """

    def __init__(self, rows: Iterable[Sequence[float]] = ()) -> None:
        self._values, self._width = array("d"), 0
        for row in rows:
            self.append(row)

    def append(self, row: Sequence[float]) -> None:
        """Add a row at the end.

        Raises:
            ValueError: if it is of another length than those before it.
        """
        if self._values and len(row) != self._width:
            raise ValueError(f"a row of {len(row)} numbers, expected {self._width} as before")
        self._width = len(row)
        self._values.extend(row)

    def tolist(self) -> list[list[float]]:
        """Return them as a list of lists."""
        return list(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._values, dtype).reshape(len(self), self._width)

    def __len__(self) -> int:
        return len(self._values) // self._width if self._width else 0

    @overload
    def __getitem__(self, index: int) -> list[float]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[float]]: ...

    def __getitem__(self, index: int | slice) -> list[float] | list[list[float]]:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        start = range(len(self))[index] * self._width
        return self._values[start : start + self._width].tolist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, NumberRows):
            return (self._width, self._values) == (other._width, other._values)
        return self.tolist() == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.tolist())


class EpochResult(NamedTuple):
    """What one epoch of training came to.

    Attributes:
        loss: mean cross entropy in nats, without regularisers.
        items: tokens (language model) or texts (classifier) trained on.
        seconds: wall time.
    """

    loss: float
    items: int
    seconds: float


@dataclass
class History:
    """Every step of a run, for its report.

    The numbers of a step are kept in eight bytes each: a run of a million steps with four layer
    groups takes 48 MB. `tolist` makes lists of them.

    Attributes:
        losses: cross entropy of each step, in nats, with label smoothing and weights of texts
            where there are any.
        regularisers: AR + TAR of each step.
        lrs: learning rate of each layer group at each step, as the step was taken with it.
        epochs: result of each epoch.
        unfreeze_steps: first step of each stage of gradual unfreezing.
        valid_losses: cross entropy on the held-out documents after each epoch, in nats.
        average_step: number of steps after which NT-ASGD began to average, or None.
    """

    losses: Numbers = field(default_factory=Numbers)
    regularisers: Numbers = field(default_factory=Numbers)
    lrs: NumberRows = field(default_factory=NumberRows)
    epochs: list[EpochResult] = field(default_factory=list)
    unfreeze_steps: list[int] = field(default_factory=list)
    valid_losses: list[float] = field(default_factory=list)
    average_step: int | None = None


@dataclass
class Cursor:
    """The position of a run, and what its present epoch has come to so far.

    Attributes:
        epoch: finished epochs.
        batch: finished batches of the epoch after those.
        loss_sum: of these batches, cross entropy times items.
        items: tokens (language model) or texts (classifier) of these batches.
        seconds: time spent on them.
        best_loss: lowest validation loss of a finished epoch, or None.
        epochs_since_best: epochs finished since then.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    items: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    epochs_since_best: int = 0

    def next_epoch(self) -> None:
        """Count the present epoch as finished."""
        self.epoch += 1
        self.batch, self.loss_sum, self.items, self.seconds = 0, 0.0, 0, 0.0

    def validated(self, loss: float) -> bool:
        """Take the validation loss of an epoch in; return whether it is the lowest so far.

        Args:
            loss: in nats.
        """
        best = self.best_loss is None or loss < self.best_loss
        self.best_loss = loss if best else self.best_loss
        self.epochs_since_best = 0 if best else self.epochs_since_best + 1
        return best


@dataclass
class Training:
    """What changes while a run trains.

    Attributes:
        model: the language model or classifier.
        plan: its optimizer, schedule and stages of unfreezing.
        history: of the steps so far.
        cursor: where the run is.
        scaler: of gradients in float16, or None.
        best_weights: the model's at its lowest validation loss, where they are kept.
    """

    model: Model
    plan: TrainingPlan
    history: History
    cursor: Cursor
    scaler: GradScaler | None = None
    best_weights: dict[str, Tensor] | None = None


def snapshot(training: Training, state: State | None) -> dict[str, Any]:
    """Return a training as plain values and tensors.

    Args:
        training: what to keep.
        state: the hidden state that goes into the next batch; None at the start of an epoch.
    """
    plan, history = training.plan, training.history
    device = next(training.model.parameters()).device
    return {
        "model": _weights(training.model),
        "optimizer": plan.optimizer.state_dict(),
        "scheduler": None if plan.scheduler is None else plan.scheduler.state_dict(),
        "scaler": None if training.scaler is None else training.scaler.state_dict(),
        "history": {
            "losses": torch.from_numpy(np.array(history.losses)),
            "regularisers": torch.from_numpy(np.array(history.regularisers)),
            "lrs": torch.from_numpy(np.array(history.lrs)),
            "epochs": [list(result) for result in history.epochs],
            "unfreeze_steps": history.unfreeze_steps,
            "valid_losses": history.valid_losses,
            "average_step": history.average_step,
        },
        "cursor": asdict(training.cursor),
        # Of every process its own; all else is the same in all of them.
        "states": None if state is None else [list(map(gathered, pair)) for pair in state],
        "rng": gathered(torch.get_rng_state()),
        "cuda_rng": gathered(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
        "best_weights": training.best_weights,
    }


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return what the state_dict holds, a shared tensor under the first of its names alone."""
    kept = model.state_dict()
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: kept[name] for name, _ in named if name in kept}


def restore(training: Training, values: dict[str, Any]) -> State | None:
    """Put a training back to where `snapshot` found it.

    Args:
        training: made as the one that was kept, with no step taken.
        values: what `snapshot` returned.

    Returns:
        The hidden state that goes into the next batch, or None.

    Raises:
        ValueError: if it is of another model or optimizer.
    """
    model, plan = training.model, training.plan
    device = next(model.parameters()).device
    for own in fields(Cursor):
        setattr(training.cursor, own.name, values["cursor"][own.name])
    _load_weights(model, values["model"])
    # As the first run came here: stage after stage, for what each leaves behind.
    for epoch in range(training.cursor.epoch + (training.cursor.batch > 0)):
        plan.begin_epoch(epoch)
    plan.optimizer.load_state_dict(values["optimizer"])
    if plan.scheduler is not None:
        plan.scheduler.load_state_dict(values["scheduler"])
    if training.scaler is not None:
        training.scaler.load_state_dict(values["scaler"])
    _restore_history(training.history, values["history"])
    training.best_weights = values["best_weights"]
    # Last: making and loading what is above may itself have drawn numbers.
    rank = world().rank
    torch.set_rng_state(values["rng"][rank])
    if device.type == "cuda" and values["cuda_rng"] is not None:
        torch.cuda.set_rng_state(values["cuda_rng"][rank], device)
    states = values["states"]
    return None if states is None else [(h[rank].to(device), c[rank].to(device)) for h, c in states]


def _load_weights(model: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    for name, own in _weights(model).items():
        # Copied into another dtype, it would be rounded without a word.
        if name in weights and weights[name].dtype != own.dtype:
            raise ValueError(
                f"the checkpoint is of another model: {name} has {weights[name].dtype}, expected "
                f"{own.dtype}"
            )
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is of another model: {error}") from error
    tied = set(missing) - set(_weights(model))
    wrong = [*unexpected, *(set(missing) - tied)]
    if wrong:
        raise ValueError(f"the checkpoint is of another model: {wrong[0]} does not fit")


def _restore_history(history: History, values: dict[str, Any]) -> None:
    history.losses = Numbers(values["losses"].tolist())
    history.regularisers = Numbers(values["regularisers"].tolist())
    history.lrs = NumberRows(values["lrs"].tolist())
    history.epochs[:] = [EpochResult(*result) for result in values["epochs"]]
    history.unfreeze_steps[:] = values["unfreeze_steps"]
    history.valid_losses[:] = values["valid_losses"]
    history.average_step = values["average_step"]
