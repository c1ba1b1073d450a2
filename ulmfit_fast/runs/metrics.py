"""What a run reports of its steps and epochs: lines of JSON, and curves for TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ulmfit_fast.system.directories import METRICS, TENSORBOARD
from ulmfit_fast.system.distributed import world
from ulmfit_fast.system.files import write_text

if TYPE_CHECKING:
    from ulmfit_fast.training.readings import Reading
    from ulmfit_fast.training.state import Cursor, History

__all__ = ["MetricsFile", "Reports", "TensorBoard"]

# Its exponential is near the largest number there is.
_MOST_NATS = 700.0


class MetricsFile:
    """Append reports to `metrics.jsonl`, each an object on a line of its own.

    Args:
        directory: where the file is.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / METRICS
        self._file: IO[str] | None = None

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines of steps that will be taken again, and a last one that is torn.

        Args:
            wanted: says of a report whether it stays.
        """
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                report = json.loads(line)
            except json.JSONDecodeError:
                continue
            if wanted(report):
                kept.append(line)
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, report: dict[str, Any]) -> None:
        """Append one report.

        Args:
            report: plain values, `loss` among them.

        Raises:
            OSError: if it cannot be written.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(report) + "\n")
        # A reader, or a run after this one was killed, finds whole lines.
        self._file.flush()

    def sync(self) -> None:
        """See on the disk what has been written, before a checkpoint counts it as done."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoard:
    """Write reports for TensorBoard, a curve for each number of a stage.

    Args:
        directory: gains the directory `tensorboard`.

    Raises:
        ModuleNotFoundError: if TensorBoard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ModuleNotFoundError(
                "tensorboard is not installed; pip install 'ulmfit-fast[tensorboard]', or leave "
                "it out", name="tensorboard",
            )  # fmt: skip
        self._directory = directory / TENSORBOARD
        self._writer: Any = None

    def write(self, report: dict[str, Any]) -> None:
        """Add a report's numbers to the curves.

        Args:
            report: as for `MetricsFile.write`.
        """
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a run that was killed wrote beyond this step is not shown.
            self._writer = SummaryWriter(str(self._directory), purge_step=report["step"])
        epoch = "/epoch" if report.get("epoch_ended") else ""
        for name, value in report.items():
            if name not in ("stage", "step", "epoch", "epoch_ended"):
                self._writer.add_scalar(f"{report['stage']}{epoch}/{name}", value, report["step"])

    def close(self) -> None:
        """Close the files, if there are any."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


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
