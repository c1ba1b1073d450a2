"""What a run reports of its steps and epochs: lines of JSON, and curves for TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from ulmfit_fast.system.directories import METRICS, TENSORBOARD
from ulmfit_fast.system.distributed import world
from ulmfit_fast.system.files import write_text

__all__ = ["Metrics", "Position", "Reading"]

# Its exponential is near the largest number there is.
_MOST_NATS = 700.0


class Reading(NamedTuple):
    """What a step came to, on the host.

    Attributes:
        cross_entropy: in nats.
        regularisers: AR + TAR.
        lrs: learning rate of each parameter group.
        items: tokens (language model) or texts (classifier) trained on, in all processes together.
    """

    cross_entropy: float
    regularisers: float
    lrs: list[float]
    items: int


class Position(Protocol):
    """What says how far it is: the steps taken, and the epochs finished."""

    @property
    def steps(self) -> int:
        """Steps taken."""

    @property
    def epoch(self) -> int:
        """Epochs finished."""


class Metrics:
    """Gather the losses of steps and write lines of them; of several processes rank zero writes.

    `metrics.jsonl` has an object on each line, `tensorboard` a curve for each number of a stage.

    Args:
        directory: of the run.
        steps: steps to a line.
        tensorboard: write curves as well.

    Raises:
        ModuleNotFoundError: if TensorBoard is asked for and not installed.
    """

    def __init__(self, directory: Path, steps: int, *, tensorboard: bool) -> None:
        self._file = _File(directory / METRICS)
        self._curves = _Curves(directory / TENSORBOARD) if tensorboard else None
        self._steps = steps

    def begin(self, stage: str, position: Position, unit: str) -> None:
        """Report on a stage from here on.

        Args:
            stage: its name.
            position: where it is, from now on.
            unit: "tokens" or "texts".
        """
        self._stage, self._position, self._unit = stage, position, unit
        self._readings: list[Reading] = []
        self._since = time.monotonic()

    def keep_past(self) -> None:
        """Drop the lines of steps that will be taken again, and a last one that is torn."""
        if not self._file.path.exists():
            return
        kept = []
        for line in self._file.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                report = json.loads(line)
            except json.JSONDecodeError:
                continue
            if self._is_past(report):
                kept.append(f"{line}\n")
        write_text(self._file.path, "".join(kept))

    def _is_past(self, report: dict[str, Any]) -> bool:
        """Return whether a report is of another stage, or of what this run has behind it."""
        if report["stage"] != self._stage:
            return True
        if report.get("epoch_ended"):
            return bool(report["epoch"] <= self._position.epoch)
        return bool(report["step"] <= self._position.steps)

    def add(self, reading: Reading) -> None:
        """Take a step's loss in, and write a line when it is time.

        Args:
            reading: the step's.
        """
        self._readings.append(reading)
        if len(self._readings) >= self._steps:
            self.flush()

    def flush(self) -> None:
        """Write a line of the steps that have none yet."""
        if not self._readings:
            return
        count = sum(reading.items for reading in self._readings)
        now = time.monotonic()
        loss = sum(r.cross_entropy * r.items for r in self._readings) / max(1, count)
        report = {
            "stage": self._stage,
            "epoch": self._position.epoch + 1,
            "step": self._position.steps,
            "loss": loss,
            "regularisers": sum(r.regularisers for r in self._readings) / len(self._readings),
            "lr": self._readings[-1].lrs[-1],
            self._unit: count,
            f"{self._unit}_per_second": round(count / max(1e-9, now - self._since), 1),
        }
        if self._unit == "tokens":
            report["perplexity"] = math.exp(min(loss, _MOST_NATS))
        self._write(report)
        self._readings.clear()
        self._since = now

    def epoch_ended(
        self, loss: float, valid_loss: float | None, scores: Mapping[str, float] | None = None
    ) -> None:
        """Write a line of an epoch.

        Args:
            loss: mean of its steps, in nats.
            valid_loss: on the held-out documents, in nats, or None.
            scores: of a classifier on them, by name; or None.
        """
        self.flush()
        report: dict[str, Any] = {
            "stage": self._stage,
            "epoch": self._position.epoch,
            "step": self._position.steps,
            "loss": loss,
            "epoch_ended": True,
        }
        if valid_loss is not None:
            report["valid_loss"] = valid_loss
            if self._unit == "tokens":
                report["valid_perplexity"] = math.exp(min(valid_loss, _MOST_NATS))
        report |= {f"valid_{name}": value for name, value in (scores or {}).items()}
        self._write(report)

    def sync(self) -> None:
        """Put on the disk what there is to report, before a checkpoint counts it as done."""
        self.flush()
        self._file.sync()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._curves is not None:
            self._curves.close()

    def _write(self, report: dict[str, Any]) -> None:
        if world().rank == 0:
            self._file.write(report)
            if self._curves is not None:
                self._curves.write(report)


class _File:
    """Append reports to a file, each an object on a line of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def write(self, report: dict[str, Any]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(report) + "\n")
        # A reader, or a run after this one was killed, finds whole lines.
        self._file.flush()

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Curves:
    """Write reports for TensorBoard."""

    def __init__(self, directory: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ModuleNotFoundError(
                "tensorboard is not installed; pip install 'ulmfit-fast[tensorboard]', or leave "
                "it out", name="tensorboard",
            )  # fmt: skip
        self._directory = directory
        self._writer: Any = None

    def write(self, report: dict[str, Any]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a run that was killed wrote beyond this step is not shown.
            self._writer = SummaryWriter(str(self._directory), purge_step=report["step"])
        epoch = "/epoch" if report.get("epoch_ended") else ""
        for name, value in report.items():
            if name not in ("stage", "step", "epoch", "epoch_ended"):
                self._writer.add_scalar(f"{report['stage']}{epoch}/{name}", value, report["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
