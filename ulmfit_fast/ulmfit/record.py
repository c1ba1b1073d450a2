"""What a run of `train` was and found, as plain values for its report."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ulmfit_fast import report
from ulmfit_fast.serving.saliency import WithClassifier, explain
from ulmfit_fast.system.files import parse_json, user_path, write_text
from ulmfit_fast.training.state import History
from ulmfit_fast.ulmfit.evaluation import Mistake

__all__ = ["RunRecord", "loss_curve", "stage_record", "worst_examples"]

_KEYS = frozenset({"version", "command", "created", "stages", "data", "evaluation"})
_EXAMPLES = 12


class RunRecord(dict[str, Any]):
    """A run: its command, machine, settings, data, stages, evaluation and worst mistakes.

    Example:
        >>> import tempfile
        >>> path = user_path(tempfile.mkdtemp()) / "report.json"
        >>> record = RunRecord.fromkeys(sorted(_KEYS))
        >>> record.save(path)
        >>> RunRecord.load(path) == record
        True
    """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to an .html file, or the record to any other one.

        Args:
            path: of the file.

        Raises:
            ModuleNotFoundError: if a package that the page needs is not installed.
            OSError: if it cannot be written.
        """
        if user_path(path).suffix == ".html":
            write_page(self, path)
        else:
            write_text(path, json.dumps(self, indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunRecord:
        """Read a record.

        Args:
            path: of its JSON.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is something else.
        """
        found = parse_json(user_path(path).read_text(encoding="utf-8"), path)
        if not isinstance(found, dict) or not found.keys() >= _KEYS:
            raise ValueError(f"{path} is no record of a run, expected what `train` writes")
        return cls(found)


def write_page(record: RunRecord, path: str | os.PathLike[str]) -> None:
    """Write the page of a run.

    Args:
        record: of the run.
        path: of the .html file.

    Raises:
        ModuleNotFoundError: if this version has no such page, or a package that it needs is not
            installed.
    """
    write: Any = getattr(report, "write_run_report", None)
    if write is None:
        raise ModuleNotFoundError("this version has no page for a run; its JSON has all numbers")
    write(record, path)


def loss_curve(losses: Sequence[float], points: int = 100) -> list[dict[str, float]]:
    """Average losses over stretches of a run, so that a curve has some hundred points.

    >>> loss_curve([4.0, 2.0, 1.0, 1.0], points=2)
    [{'step': 0, 'loss': 3.0}, {'step': 2, 'loss': 1.0}]

    Args:
        losses: of each step.
        points: about how many.
    """
    stretch = max(1, len(losses) // points)
    return [
        {"step": start, "loss": round(float(np.mean(losses[start : start + stretch])), 4)}
        for start in range(0, len(losses), stretch)
    ]


def stage_record(name: str, history: History, seconds: float) -> dict[str, Any]:
    """Return what a stage was, as plain values.

    Args:
        name: of the stage.
        history: of its training.
        seconds: that it took, all in all.
    """
    epochs = []
    for n, own in enumerate(history.epochs):
        scores = history.valid_scores[n] if n < len(history.valid_scores) else {}
        epochs.append(
            {
                "loss": own.loss,
                "valid_loss": history.valid_losses[n] if n < len(history.valid_losses) else None,
                "accuracy": scores.get("accuracy"),
                "macro_f1": scores.get("macro_f1"),
                "seconds": round(own.seconds, 2),
            }
        )
    return {
        "name": name,
        # Of a run that was gone on with, the epochs before have been in another process.
        "seconds": round(max(seconds, sum(own.seconds for own in history.epochs)), 1),
        "steps": len(history.losses),
        "epochs": epochs,
        "losses": loss_curve(history.losses),
    }


def worst_examples(model: WithClassifier, mistakes: Sequence[Mistake]) -> list[dict[str, Any]]:
    """Return the most certain of the wrong answers, each word with what it adds to them.

    Args:
        model: whose answers they are.
        mistakes: the most certain first.
    """
    worst = list(mistakes[:_EXAMPLES])
    return [
        {
            "text": own.text,
            "label": str(own.label),
            "prediction": str(own.predicted),
            "probability": round(own.probability, 3),
            "words": [{"word": w.token, "score": round(w.score, 3)} for w in found.words],
        }
        for own in worst
        for found in explain(model, [own.text], own.predicted)
    ]
