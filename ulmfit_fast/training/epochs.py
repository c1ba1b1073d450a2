"""What an epoch comes to: every step of a run, and the books that are kept while it trains."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ulmfit_fast.nn.state import State
from ulmfit_fast.system.progress import Advance, progress_bar
from ulmfit_fast.training.cursor import Cursor
from ulmfit_fast.training.evaluation import SizedIterable
from ulmfit_fast.training.readings import Reading
from ulmfit_fast.training.state import EpochResult, History

if TYPE_CHECKING:
    from ulmfit_fast.runs import Run

__all__ = ["EpochBooks"]

_log = logging.getLogger("ulmfit_fast")


class EpochBooks:
    """The books of an epoch: its history, where it is, and what its run is told."""

    def __init__(
        self, history: History, cursor: Cursor, run: Run | None, items: str = "tokens"
    ) -> None:
        self.history, self.cursor, self.run = history, cursor, run
        self._items = items
        self._start = time.perf_counter() - cursor.seconds
        # Batches whose loss has not been read yet: one of them may turn out not to be finite.
        self._unread: deque[Any] = deque()
        self._advance: Advance = lambda note: None

    @contextmanager
    def batches(
        self, batches: SizedIterable, description: str, progress: bool
    ) -> Iterator[Iterable[Any]]:
        """Show a bar while the block trains on the batches that are left."""
        done, total = self.cursor.batch, len(batches)
        left = batches if not done else batches.after(done)  # type: ignore[attr-defined]
        try:
            with progress_bar(description, total, done=done, enabled=progress) as self._advance:
                yield self._noted(left)
        except FloatingPointError as error:
            if self.run is None:
                raise
            raise self.run.failed(error, self._unread[0]) from None

    def _noted(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            self._unread.append(batch)
            yield batch

    def take(self, reading: Reading) -> None:
        """Enter a step's loss."""
        self._unread.popleft()
        self.history.losses.append(reading.cross_entropy)
        self.history.regularisers.append(reading.regularisers)
        self.history.lrs.append(reading.lrs)
        self.cursor.loss_sum += reading.cross_entropy * reading.tokens
        self.cursor.items += reading.tokens
        self._advance(self._note(reading))
        if self.run is not None:
            self.run.report(reading)

    def _note(self, reading: Reading) -> str:
        """Say how it goes, for the progress bar."""
        seconds = max(1e-9, time.perf_counter() - self._start)
        speed = f"{self.cursor.items / seconds:,.0f} {self._items}/s"
        loss = f"loss {reading.cross_entropy:.3f}"
        if self._items == "texts":
            return f"{loss}, {speed}"
        return f"{loss}, perplexity {math.exp(min(reading.cross_entropy, 700.0)):,.1f}, {speed}"

    def stepped(self, steps: int) -> bool:
        """Count a batch; return whether a checkpoint is to be written."""
        self.cursor.batch += 1
        return self.run is not None and self.run.due(steps)

    def checkpoint(self, state: State | None) -> None:
        """Have the run write a checkpoint."""
        assert self.run is not None
        self.cursor.seconds = time.perf_counter() - self._start
        self.run.checkpoint(state)

    def result(self, description: str) -> EpochResult:
        """Close the books."""
        result = EpochResult(
            self.cursor.loss_sum / max(1, self.cursor.items),
            self.cursor.items,
            time.perf_counter() - self._start,
        )
        _log.info("%s: loss %.4f, %.0f s", description, result.loss, result.seconds)
        self.history.epochs.append(result)
        return result
