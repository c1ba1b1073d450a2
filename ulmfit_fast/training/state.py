"""Where a training is: every step so far, its position, and all that decides how it goes on."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.amp import GradScaler

from ulmfit_fast.nn.state import State
from ulmfit_fast.runs.metrics import Reading
from ulmfit_fast.system.distributed import gathered, world
from ulmfit_fast.training.plan import TrainingPlan

__all__ = ["EpochResult", "History", "NumberRows", "Numbers", "TrainingState"]

# What of a state says where it is; each is kept under its name.
_POSITION = ("epoch", "batch", "loss_sum", "items", "seconds", "best_loss", "epochs_since_best")


class Numbers(Sequence[Any]):
    """Numbers that can be appended to, in eight bytes each; a list takes thirty-two.

    Example:
        >>> losses = Numbers([3.5])
        >>> losses.append(2.25)
        >>> losses, losses[-1], losses[:1], losses == [3.5, 2.25]
        ([3.5, 2.25], 2.25, [3.5], True)

    Args:
        values: the first ones.
    """

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._values = array("d")
        for value in values:
            self.append(value)

    def append(self, value: Any) -> None:
        """Add a number at the end."""
        self._values.append(value)

    def tolist(self) -> list[Any]:
        """Return them as a list."""
        found: list[Any] = self[:]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        # Always a copy: a view would keep more numbers from being appended.
        return np.array(self._values, dtype)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        found = self._values[index]
        return found.tolist() if isinstance(found, array) else found

    def __eq__(self, other: object) -> bool:
        return self.tolist() == (other.tolist() if isinstance(other, Numbers) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.tolist())


class NumberRows(Numbers):
    """Rows of equally many numbers that can be appended to, in eight bytes a number.

    Example:
        >>> rates = NumberRows([[0.1, 0.2]])
        >>> rates.append([0.3, 0.4])
        >>> rates, rates[-1], len(rates)
        ([[0.1, 0.2], [0.3, 0.4]], [0.3, 0.4], 2)

    Args:
        values: the first rows.
    """

    _width = 0

    def append(self, value: Sequence[float]) -> None:
        """Add a row at the end.

        Raises:
            ValueError: if it is of another length than those before it.
        """
        if self._values and len(value) != self._width:
            raise ValueError(f"a row of {len(value)} numbers, expected {self._width} as before")
        self._width = len(value)
        self._values.extend(value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return super().__array__(dtype).reshape(len(self), self._width)

    def __len__(self) -> int:
        return len(self._values) // self._width if self._width else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        start = range(len(self))[index] * self._width
        return self._values[start : start + self._width].tolist()


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
        valid_scores: of a classifier, accuracy and macro F1 on them, by name.
        average_step: number of steps after which NT-ASGD began to average, or None.
    """

    losses: Numbers = field(default_factory=Numbers)
    regularisers: Numbers = field(default_factory=Numbers)
    lrs: NumberRows = field(default_factory=NumberRows)
    epochs: list[EpochResult] = field(default_factory=list)
    unfreeze_steps: list[int] = field(default_factory=list)
    valid_losses: list[float] = field(default_factory=list)
    valid_scores: list[dict[str, float]] = field(default_factory=list)
    average_step: int | None = None

    def rows(self) -> list[dict[str, float]]:
        """Return what each epoch came to, by name.

        >>> History(epochs=[EpochResult(1.5, 10, 2.0)], valid_losses=[1.25]).rows()
        [{'epoch': 1, 'loss': 1.5, 'valid_loss': 1.25, 'seconds': 2.0}]
        """
        rows = []
        for place, result in enumerate(self.epochs):
            row: dict[str, float] = {"epoch": place + 1, "loss": result.loss}
            if place < len(self.valid_losses):
                row["valid_loss"] = self.valid_losses[place]
            if place < len(self.valid_scores):
                row |= self.valid_scores[place]
            rows.append({**row, "seconds": result.seconds})
        return rows

    def _repr_html_(self) -> str:
        """Show a row for each epoch in a notebook."""
        rows = self.rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        head = "".join(f"<th>{name}</th>" for name in names)
        lines = [
            "".join(f"<td>{row[name]:.4g}</td>" if name in row else "<td></td>" for name in names)
            for row in rows
        ]
        return (
            f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
        )


@dataclass
class TrainingState:
    """Where a training is, and all that decides how it goes on.

    Attributes:
        model: the language model or classifier.
        plan: its optimizer, schedule and stages of unfreezing; None for an epoch by itself, which
            cannot be kept.
        scaler: of gradients in float16, or None.
        history: of the steps so far.
        hidden: the hidden state that goes into the next batch; None at the start of an epoch.
        best_weights: the model's at its lowest validation loss, where they are kept.
        epoch: finished epochs.
        batch: finished batches of the epoch after those.
        loss_sum: of these batches, cross entropy times items.
        items: tokens (language model) or texts (classifier) of these batches.
        seconds: time spent on them.
        best_loss: lowest validation loss of a finished epoch, or None.
        epochs_since_best: epochs finished since then.
    """

    model: nn.Module
    plan: TrainingPlan | None = None
    scaler: GradScaler | None = None
    history: History = field(default_factory=History)
    hidden: State | None = None
    best_weights: dict[str, Tensor] | None = None
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    items: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    epochs_since_best: int = 0

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.history.losses)

    def add(self, reading: Reading) -> None:
        """Take a step's loss in.

        Args:
            reading: the step's.
        """
        self.history.losses.append(reading.cross_entropy)
        self.history.regularisers.append(reading.regularisers)
        self.history.lrs.append(reading.lrs)
        self.loss_sum += reading.cross_entropy * reading.items
        self.items += reading.items

    def next_epoch(self) -> None:
        """Count the present epoch as finished."""
        self.epoch += 1
        self.hidden = None
        self.batch, self.loss_sum, self.items, self.seconds = 0, 0.0, 0, 0.0

    def record_validation(self, loss: float) -> bool:
        """Take the validation loss of an epoch in; return whether it is the lowest so far.

        Args:
            loss: in nats.
        """
        self.history.valid_losses.append(loss)
        best = self.best_loss is None or loss < self.best_loss
        self.best_loss = loss if best else self.best_loss
        self.epochs_since_best = 0 if best else self.epochs_since_best + 1
        return best

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain values and tensors."""
        plan, history, hidden = self.plan, self.history, self.hidden
        assert plan is not None
        device = next(self.model.parameters()).device
        return {
            "model": _weights(self.model),
            "optimizer": plan.optimizer.state_dict(),
            "scheduler": None if plan.scheduler is None else plan.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "history": {
                "losses": torch.from_numpy(np.array(history.losses)),
                "regularisers": torch.from_numpy(np.array(history.regularisers)),
                "lrs": torch.from_numpy(np.array(history.lrs)),
                "epochs": [list(result) for result in history.epochs],
                "unfreeze_steps": history.unfreeze_steps,
                "valid_losses": history.valid_losses,
                "valid_scores": history.valid_scores,
                "average_step": history.average_step,
            },
            "cursor": {name: getattr(self, name) for name in _POSITION},
            # Of every process its own; all else is the same in all of them.
            "states": None if hidden is None else [list(map(gathered, pair)) for pair in hidden],
            "rng": gathered(torch.get_rng_state()),
            "cuda_rng": (
                gathered(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None
            ),
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Go to where `state_dict` was called, from a start with no step taken.

        Args:
            values: what it returned.

        Raises:
            ValueError: if it is of another model or optimizer.
        """
        plan = self.plan
        assert plan is not None
        device = next(self.model.parameters()).device
        for name in _POSITION:
            setattr(self, name, values["cursor"][name])
        _load_weights(self.model, values["model"])
        # As the first run came here: stage after stage, for what each leaves behind.
        for epoch in range(self.epoch + (self.batch > 0)):
            plan.begin_epoch(epoch)
        plan.optimizer.load_state_dict(values["optimizer"])
        if plan.scheduler is not None:
            plan.scheduler.load_state_dict(values["scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(values["scaler"])
        found, history = values["history"], self.history
        history.losses = Numbers(found["losses"].tolist())
        history.regularisers = Numbers(found["regularisers"].tolist())
        history.lrs = NumberRows(found["lrs"].tolist())
        history.epochs[:] = [EpochResult(*result) for result in found["epochs"]]
        history.unfreeze_steps[:] = found["unfreeze_steps"]
        history.valid_losses[:] = found["valid_losses"]
        # Checkpoints of before have none.
        history.valid_scores[:] = found.get("valid_scores", [])
        history.average_step = found["average_step"]
        self.best_weights = values["best_weights"]
        rank, hidden = world().rank, values["states"]
        if hidden is not None:
            self.hidden = [(h[rank].to(device), c[rank].to(device)) for h, c in hidden]
        # Last: making and loading what is above may itself have drawn numbers.
        torch.set_rng_state(values["rng"][rank])
        if device.type == "cuda" and values["cuda_rng"] is not None:
            torch.cuda.set_rng_state(values["cuda_rng"][rank], device)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return what the state_dict holds, a shared tensor under the first of its names alone."""
    kept = model.state_dict()
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: kept[name] for name, _ in named if name in kept}


def _load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
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
