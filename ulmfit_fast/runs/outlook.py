"""How long a run will take, said while it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ulmfit_fast.runs.dry_run import StepTimes, readable
from ulmfit_fast.runs.metrics import Reading
from ulmfit_fast.system.distributed import world
from ulmfit_fast.system.progress import is_watched

__all__ = ["Outlook"]

# What the shell shows while a stage runs.
_log = logging.getLogger("ulmfit_fast.progress")

# Where nobody watches there is a line at least this often, so that a log is alive.
_SECONDS = 60.0
_SLOWER = (
    "lower layers are still frozen: steps get slower; what is left is said when all are trained"
)


class Outlook:
    """Say what a stage takes once it has taken some steps, and how far the whole run is.

    Of several processes rank zero says it. Stages that are to come are reckoned with the time for a
    token of the one at hand.

    Args:
        words: of each stage, about how many tokens it reads in all its epochs; None for a stage
            that is run alone.
        say: called with each line.
    """

    def __init__(
        self, words: Mapping[str, float] | None = None, say: Callable[[str], None] = _log.info
    ) -> None:
        self._words, self._say = dict(words or {"": 1.0}), say
        self._stage = next(iter(self._words))

    def enter(self, stage: str) -> None:
        """Go on to a stage.

        Args:
            stage: its name, one of those with words.
        """
        self._stage = stage

    def begin(
        self,
        parameters: Sequence[Tensor],
        epoch_steps: Sequence[int],
        *,
        copies: int,
        steps: int = 0,
        epoch: int = 0,
    ) -> None:
        """Note what is to be trained.

        Args:
            parameters: of the model.
            epoch_steps: steps of each epoch.
            copies: numbers in memory for each weight, as for `StepTimes`.
            steps: taken before.
            epoch: epochs finished before.
        """
        self._epoch_steps = list(epoch_steps)
        self._parameters, self._times = parameters, StepTimes(parameters, epoch_steps, copies)
        self._steps, self._epoch = steps, epoch
        self._begins, self._froze = True, False
        self._begun = self._said = time.monotonic()
        self._taken = 0

    def report(self, reading: Reading) -> None:
        """Take a step in.

        Args:
            reading: the step's.
        """
        self._taken += 1
        self._steps += 1
        if self._begins:
            estimate = self._times.add(reading.items)
            if estimate is not None:
                self._begins, self._froze = False, self._freezes()
                for line in estimate.lines():
                    self._tell(f"  {line}")
                self._tell(f"  {_SLOWER if self._froze else self._left()}")
        elif time.monotonic() - self._said >= _SECONDS and not is_watched():
            total = sum(self._epoch_steps)
            loss = f"loss {reading.cross_entropy:.3f}"
            self._tell(f"  step {self._steps:,} of {total:,}, {loss}; {self._left()}")

    def epoch_ended(self, loss: float, valid_loss: float | None) -> None:
        """Say what an epoch came to, unless it has been said with its scores.

        Args:
            loss: mean of its steps.
            valid_loss: on what is held out, or None.
        """
        self._epoch += 1
        if valid_loss is None:
            of = f"epoch {self._epoch}/{len(self._epoch_steps)}"
            self._tell(f"  {of}: loss {loss:.4f}; {self._left()}")
        elif time.monotonic() - self._said >= _SECONDS or (self._froze and not self._freezes()):
            self._tell(f"  {self._left()}")
        if self._froze:
            # What is to come takes as long as the last epoch, not as the mean of all.
            self._froze, self._begun, self._taken = self._freezes(), time.monotonic(), 0

    def _freezes(self) -> bool:
        return not all(own.requires_grad for own in self._parameters)

    def _tell(self, line: str) -> None:
        if world().rank == 0:
            self._say(line)
        self._said = time.monotonic()

    def _left(self) -> str:
        own = (time.monotonic() - self._begun) / max(1, self._taken)
        total = sum(self._epoch_steps)
        of_stage = own * (total - self._steps)
        names = list(self._words)
        later = sum(self._words[name] for name in names[names.index(self._stage) + 1 :])
        whole = of_stage + later * own * total / max(1.0, self._words[self._stage])
        return f"about {readable(whole)} left of the {'whole run' if len(names) > 1 else 'stage'}"
