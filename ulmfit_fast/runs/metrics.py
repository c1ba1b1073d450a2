"""What a run reports, a line of JSON at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ulmfit_fast.directories import METRICS

__all__ = ["MetricsFile"]


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
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)

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

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
