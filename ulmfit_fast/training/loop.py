"""The training loop: one epoch of a language model or a classifier."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from ulmfit_fast.runs import DryRun, Run
from ulmfit_fast.runs.metrics import Reading
from ulmfit_fast.runs.outlook import Outlook
from ulmfit_fast.system.progress import progress_bar
from ulmfit_fast.training.evaluation import SizedIterable
from ulmfit_fast.training.state import EpochResult, TrainingState
from ulmfit_fast.training.step import TrainingStep

__all__ = ["train_epoch"]

_log = logging.getLogger("ulmfit_fast")


def train_epoch(
    step: TrainingStep[Any],
    batches: SizedIterable,
    state: TrainingState | None = None,
    *,
    run: Run | DryRun | Outlook | None = None,
    description: str = "training",
    progress: bool = True,
) -> EpochResult:
    """Train on one pass over batches, from where the state is in them.

    Args:
        step: of a language model or a classifier, which is put into training mode.
        batches: what the step takes; of a language model in the order of the streams, of a
            classifier the same in all processes.
        state: gains a record of each step and of the epoch; None begins one.
        run: is given every reading, and keeps checkpoints; or None.
        description: shown beside the progress bar.
        progress: show the bar.

    Returns:
        The mean cross entropy, weighted where there are weights, the tokens or texts of all
        processes, and the time taken.

    Raises:
        FloatingPointError: if the loss is not finite; the parameters are those before the step.
    """
    step.model.train()
    if state is None:
        state = TrainingState(step.model)
    step.steps, step.state = state.steps, state.hidden
    begun = time.perf_counter() - state.seconds
    # Batches whose loss has not been read yet: one of them may turn out not to be finite.
    unread: deque[Any] = deque()
    done = state.batch
    left = batches if not done else batches.after(done)  # type: ignore[attr-defined]
    try:
        with progress_bar(description, len(batches), done=done, enabled=progress) as advance:

            def record(readings: Iterator[Reading]) -> None:
                for reading in readings:
                    unread.popleft()
                    state.add(reading)
                    speed = state.items / max(1e-9, time.perf_counter() - begun)
                    advance(_progress_text(reading, step.unit, speed))
                    if run is not None:
                        run.report(reading)

            for batch in left:
                unread.append(batch)
                record(step.train_on(batch))
                state.batch += 1
                if isinstance(run, Run) and run.due(step.steps):
                    record(step.rest())
                    state.hidden, state.seconds = step.state, time.perf_counter() - begun
                    run.checkpoint()
            record(step.rest())
    except FloatingPointError as error:
        if not isinstance(run, Run):
            raise
        raise run.failed(error, unread[0]) from None
    result = EpochResult(
        state.loss_sum / max(1, state.items), state.items, time.perf_counter() - begun
    )
    _log.info("%s: loss %.4f, %.0f s", description, result.loss, result.seconds)
    state.history.epochs.append(result)
    return result


def _progress_text(reading: Reading, unit: str, speed: float) -> str:
    """Say how it goes, for the progress bar."""
    loss = f"loss {reading.cross_entropy:.3f}"
    if unit == "tokens":
        loss += f", perplexity {math.exp(min(reading.cross_entropy, 700.0)):,.1f}"
    return f"{loss}, {speed:,.0f} {unit}/s"
