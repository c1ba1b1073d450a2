"""What a run reports, a line of JSON at a time."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ulmfit_fast.system.directories import METRICS, TENSORBOARD
from ulmfit_fast.system.files import write_text

__all__ = ["MetricsFile", "TensorBoard"]


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
