"""What the ablation measured, a row at a time, in a CSV file that a stopped run goes on with."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from ulmfit_fast.system.files import file_in_place, user_path

__all__ = ["Row", "RowFile"]


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        task: name of the task.
        kind: "language model" or "classifier".
        start: where the encoder comes from.
        way: how it was fine-tuned, or the name of a baseline.
        labels: labelled texts; 0 for a language model.
        seed: of the run.
        lr: largest rate; 0 for a baseline.
        accuracy: share of the test texts that are right; None for a language model.
        general_perplexity: of the language model, or of one with the classifier's encoder, on
            general text that no model was trained on; None for a baseline.
        target_perplexity: the same on text like that of the task.
        seconds: time to train.
    """

    task: str
    kind: str
    start: str
    way: str
    labels: int
    seed: int
    lr: float
    accuracy: float | None
    general_perplexity: float | None
    target_perplexity: float | None
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, str, int, int]:
        """What makes it this measurement and no other."""
        return (self.task, self.kind, self.start, self.way, self.labels, self.seed)


_NAMES = [field.name for field in fields(Row)]
_INTEGERS = ("labels", "seed")
_TEXTS = ("task", "kind", "start", "way")


class RowFile:
    """Rows in a CSV file, each on disk before the next one is measured.

    Args:
        path: the file; what it holds already is read.

    Raises:
        ValueError: if it holds something other than such rows.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self.rows: list[Row] = []
        if self.path.exists():
            self.rows = read_rows(self.path)
            # A line that was cut off is measured again.
            if not self.path.read_bytes().endswith(b"\n"):
                self._rewrite()

    def __contains__(self, key: tuple[str, str, str, str, int, int]) -> bool:
        """Say whether a row with this key is there."""
        return any(row.key == key for row in self.rows)

    def append(self, row: Row) -> None:
        """Add a row and put it on disk."""
        self.rows.append(row)
        if not self.path.exists():
            self._rewrite()
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, _NAMES, lineterminator="\n").writerow(asdict(row))
            file.flush()
            os.fsync(file.fileno())

    def sort(self) -> None:
        """Put the rows in an order that does not tell which was measured first."""
        self.rows.sort(key=lambda row: (row.kind, row.labels, row.start, row.way, row.seed))
        self._rewrite()

    def _rewrite(self) -> None:
        with (
            file_in_place(self.path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, _NAMES, lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, self.rows))


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read the rows of a file; an incomplete last line, of a run that was killed, is left out.

    Args:
        path: a CSV file that `RowFile` wrote.

    Raises:
        ValueError: if the file is something else.
    """
    lines = user_path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    reader = csv.DictReader(lines)
    if reader.fieldnames != _NAMES:
        raise ValueError(
            f"{path} has the columns {reader.fieldnames}, expected those of the ablation "
            f"({', '.join(_NAMES)}); choose another directory"
        )
    return [_parsed(path, reader.line_num, line) for line in reader]


def _parsed(path: str | os.PathLike[str], number: int, line: dict[str, Any]) -> Row:
    try:
        return Row(**{name: _value(name, line[name]) for name in _NAMES})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {number}: {error}; repair or remove it") from error


def _value(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    if name in _INTEGERS:
        return int(text)
    return float(text) if text else None
