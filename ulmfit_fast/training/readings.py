"""Losses on their way from the device to the host."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from ulmfit_fast.nn import LMLoss
from ulmfit_fast.runs.metrics import Reading

__all__ = ["LossReadings", "not_finite"]

# Readings that may be under way; a host further ahead than this only fills the device's queue.
_AHEAD = 8


class LossReadings:
    """Bring the losses of steps to the host in order; on CUDA some steps later, without waiting.

    Example:
        >>> part = torch.tensor(0.5)
        >>> readings = LossReadings()
        >>> [r.cross_entropy for r in readings.add(LMLoss(part, part, part, 3 * part), [0.1], 7)]
        [0.5]

    Args:
        steps: steps taken before, for the error's message.
    """

    def __init__(self, steps: int = 0) -> None:
        self._count = steps
        self._pending: deque[tuple[torch.cuda.Event | None, Tensor, list[float], int]] = deque()

    def add(self, loss: LMLoss, lrs: list[float], tokens: int) -> Iterator[Reading]:
        """Take a step's loss in, and yield what has arrived.

        Args:
            loss: what the step returned.
            lrs: the learning rates it was taken with.
            tokens: tokens trained on, in all processes together.

        Raises:
            FloatingPointError: if a loss is not finite; the parameters are those before its step.
        """
        values = torch.stack([loss.cross_entropy, loss.activation + loss.temporal, loss.total])
        event = None
        if values.device.type == "cuda":
            host = torch.empty(3, dtype=values.dtype, device="cpu", pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # Of the device that copies, which need not be the current one.
            event.record(torch.cuda.current_stream(values.device))
            values = host
        self._pending.append((event, values, lrs, tokens))
        yield from self._ready(_AHEAD)

    def rest(self) -> Iterator[Reading]:
        """Wait for all steps and yield what is left.

        Raises:
            FloatingPointError: as `add`.
        """
        yield from self._ready(0)

    def _ready(self, ahead: int) -> Iterator[Reading]:
        while self._pending:
            event, values, lrs, tokens = self._pending[0]
            if event is not None and len(self._pending) <= ahead and not event.query():  # type: ignore[no-untyped-call]
                return
            if event is not None:
                event.synchronize()
            self._pending.popleft()
            cross_entropy, regularisers, total = values.tolist()
            if not math.isfinite(total):
                raise not_finite(total, self._count, lrs)
            self._count += 1
            yield Reading(cross_entropy, regularisers, lrs, tokens)


def not_finite(value: float, step: int, lrs: list[float]) -> FloatingPointError:
    """Return the error for a loss that is not finite."""
    return FloatingPointError(
        f"loss is {value} at step {step} with learning rates {lrs}; "
        "lower the learning rate or clip the gradient"
    )
