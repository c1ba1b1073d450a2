"""What a run reports of its steps and epochs, to its files."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ulmfit_fast.runs.metrics import MetricsFile, TensorBoard
from ulmfit_fast.system.distributed import world
from ulmfit_fast.training.cursor import Cursor

if TYPE_CHECKING:
    from ulmfit_fast.training.readings import Reading
    from ulmfit_fast.training.state import History

__all__ = ["Reports"]

# Its exponential is near the largest number there is.
_MOST_NATS = 700.0


class Reports:
    """Gather the losses of steps and write lines of them; of several processes the first writes.

    Args:
        directory: of the run.
        steps: steps to a line.
        tensorboard: write curves as well.

    Raises:
        ModuleNotFoundError: if TensorBoard is asked for and not installed.
    """

    def __init__(self, directory: Path, steps: int, *, tensorboard: bool) -> None:
        self._metrics = MetricsFile(directory)
        self._board = TensorBoard(directory) if tensorboard else None
        self._steps = steps

    def begin(self, stage: str, history: History, cursor: Cursor) -> None:
        """Report on a stage from here on.

        Args:
            stage: its name.
            history: of its steps.
            cursor: where it is.
        """
        self._stage, self._history, self._cursor = stage, history, cursor
        self._readings: list[Reading] = []
        self._since = time.monotonic()

    def keep_past(self) -> None:
        """Drop the lines of what the run will do again."""
        self._metrics.keep(self._is_past)

    def _is_past(self, report: dict[str, Any]) -> bool:
        """Tell whether a report is of another stage, or of what this run has behind it."""
        if report["stage"] != self._stage:
            return True
        if report.get("epoch_ended"):
            return bool(report["epoch"] <= self._cursor.epoch)
        return bool(report["step"] <= len(self._history.losses))

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
        tokens = sum(reading.tokens for reading in self._readings)
        now = time.monotonic()
        loss = sum(r.cross_entropy * r.tokens for r in self._readings) / max(1, tokens)
        items = "texts" if self._stage == "fit_classifier" else "tokens"
        report = {
            "stage": self._stage,
            "epoch": self._cursor.epoch + 1,
            "step": len(self._history.losses),
            "loss": loss,
            "regularisers": sum(r.regularisers for r in self._readings) / len(self._readings),
            "lr": self._readings[-1].lrs[-1],
            items: tokens,
            f"{items}_per_second": round(tokens / max(1e-9, now - self._since), 1),
        }
        if items == "tokens":
            report["perplexity"] = math.exp(min(loss, _MOST_NATS))
        self._write(report)
        self._readings.clear()
        self._since = now

    def epoch_ended(self, valid_loss: float | None) -> None:
        """Write a line of an epoch.

        Args:
            valid_loss: on the held-out documents, in nats, or None.
        """
        self.flush()
        report: dict[str, Any] = {
            "stage": self._stage,
            "epoch": self._cursor.epoch,
            "step": len(self._history.losses),
            "loss": self._history.epochs[-1].loss,
            "epoch_ended": True,
        }
        if valid_loss is not None:
            perplexity = math.exp(min(valid_loss, _MOST_NATS))
            report |= {"valid_loss": valid_loss, "valid_perplexity": perplexity}
        self._write(report)

    def sync(self) -> None:
        """See on the disk what there is to report, before a checkpoint counts it as done."""
        self.flush()
        self._metrics.sync()

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        if self._board is not None:
            self._board.close()

    def _write(self, report: dict[str, Any]) -> None:
        if world().rank == 0:
            self._metrics.write(report)
            if self._board is not None:
                self._board.write(report)
