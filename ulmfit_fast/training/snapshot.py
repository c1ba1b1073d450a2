"""Everything that decides how a run goes on, as plain values and tensors, and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.amp import GradScaler

from ulmfit_fast.nn.state import State
from ulmfit_fast.system.distributed import gathered, world
from ulmfit_fast.training.cursor import Cursor
from ulmfit_fast.training.state import EpochResult, History, NumberRows, Numbers

if TYPE_CHECKING:
    from ulmfit_fast.training.plan import Model, TrainingPlan

__all__ = ["Training", "restore", "snapshot"]


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
    for field in fields(Cursor):
        setattr(training.cursor, field.name, values["cursor"][field.name])
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
