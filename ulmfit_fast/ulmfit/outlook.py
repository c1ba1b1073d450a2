"""How long a run of several stages will take, said while it runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ulmfit_fast.runs.dry_run import StepTimes, readable
from ulmfit_fast.runs.metrics import Reading
from ulmfit_fast.runs.run import Resumable, Run

__all__ = ["Outlook", "StageRun"]

# Without a terminal there is a line at least this often, so that a log is alive.
_SECONDS = 60.0
_SLOWER = (
    "lower layers are still frozen: steps get slower; what is left is said when all are trained"
)


class Outlook:
    """Say what a stage takes once it has taken some steps, and how far the whole run is.

    Stages that are to come are reckoned with the time for a token of the one at hand.

    Args:
        words: of each stage, about how many tokens it reads in all its epochs.
        say: called with each line.
    """

    def __init__(self, words: Mapping[str, float], say: Callable[[str], None]) -> None:
        self._words, self._say = dict(words), say

    def begin(
        self, stage: str, parameters: Sequence[Tensor], epoch_steps: Sequence[int], copies: int
    ) -> None:
        """Note what is to be trained.

        Args:
            stage: its name, one of those with words.
            parameters: of the model.
            epoch_steps: steps of each epoch.
            copies: numbers in memory for each weight, as for `StepTimes`.
        """
        self._stage, self._epoch_steps = stage, list(epoch_steps)
        self._parameters, self._times = parameters, StepTimes(parameters, epoch_steps, copies)
        self._begins, self._froze = True, False
        self._begun = self._said = time.monotonic()
        self._taken = 0

    def step(self, reading: Reading, steps: int) -> None:
        """Take a step in.

        Args:
            reading: the step's.
            steps: taken so far, before this process as well.
        """
        self._taken += 1
        if self._begins:
            estimate = self._times.add(reading.items)
            if estimate is not None:
                self._begins, self._froze = False, self._freezes()
                for line in estimate.lines():
                    self._say(f"  {line}")
                self._tell(f"  {_SLOWER if self._froze else self._left(steps)}")
        elif time.monotonic() - self._said >= _SECONDS and not _on_terminal():
            total = sum(self._epoch_steps)
            loss = f"loss {reading.cross_entropy:.3f}"
            self._tell(f"  step {steps:,} of {total:,}, {loss}; {self._left(steps)}")

    def epoch_ended(self, steps: int, epoch: int, loss: float, valid_loss: float | None) -> None:
        """Say what an epoch came to, unless it has been said with its scores.

        Args:
            steps: taken so far.
            epoch: its number, from 1.
            loss: mean of its steps.
            valid_loss: on what is held out, or None.
        """
        if valid_loss is None:
            of = f"epoch {epoch}/{len(self._epoch_steps)}"
            self._tell(f"  {of}: loss {loss:.4f}; {self._left(steps)}")
        elif time.monotonic() - self._said >= _SECONDS or (self._froze and not self._freezes()):
            self._tell(f"  {self._left(steps)}")
        if self._froze:
            # What is to come takes as long as the last epoch, not as the mean of all.
            self._froze, self._begun, self._taken = self._freezes(), time.monotonic(), 0

    def _freezes(self) -> bool:
        return not all(own.requires_grad for own in self._parameters)

    def _tell(self, line: str) -> None:
        self._say(line)
        self._said = time.monotonic()

    def _left(self, steps: int) -> str:
        own = (time.monotonic() - self._begun) / max(1, self._taken)
        total = sum(self._epoch_steps)
        of_stage = own * (total - steps)
        names = list(self._words)
        later = sum(self._words[name] for name in names[names.index(self._stage) + 1 :])
        whole = of_stage + later * own * total / max(1.0, self._words[self._stage])
        return f"about {readable(whole)} left of the whole run"


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


class StageRun(Run):
    """A run of one of several stages, which says how far the whole is.

    Args:
        directory: as for `Run`.
        stage: its name in the outlook.
        outlook: of all stages.
        options: of `Run`.
    """

    def __init__(
        self, directory: str | os.PathLike[str], stage: str, outlook: Outlook, **options: Any
    ) -> None:
        super().__init__(directory, **options)
        self._of, self._outlook = stage, outlook

    @contextmanager
    def training(
        self, stage: str, state: Resumable, fingerprint: dict[str, Any], **options: Any
    ) -> Iterator[None]:
        """Do what `Run.training` does, and begin to tell."""
        with super().training(stage, state, fingerprint, **options):
            kept: Any = state
            copies = 4 if "adam" in fingerprint["settings"]["optimizer"] else 2
            steps = fingerprint["steps_of_epochs"]
            self._outlook.begin(self._of, list(kept.model.parameters()), steps, copies)
            yield

    def report(self, reading: Reading) -> None:
        """Do what `Run.report` does, and tell."""
        super().report(reading)
        self._outlook.step(reading, self._state.steps)

    def epoch_ended(self, loss: float, valid_loss: float | None, **kept: Any) -> None:
        """Do what `Run.epoch_ended` does, and tell."""
        super().epoch_ended(loss, valid_loss, **kept)
        self._outlook.epoch_ended(self._state.steps, self._state.epoch, loss, valid_loss)
