"""What a run would take, from its first steps."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ulmfit_fast.runs.metrics import Reading

__all__ = ["DryRun", "Estimate", "readable"]

# The first steps compile kernels, make the optimizer's buffers and warm caches.
_WARM_UP = 2


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        parameters: of the model, the tied embedding once.
        weights: their bytes.
        training_memory: bytes of weights, gradients and, for Adam, two moments.
        peak_memory: bytes in use at most so far: on CUDA what PyTorch has allocated, elsewhere the
            whole process, with its corpus; 0 where the system does not say.
        epoch_steps: steps of each epoch.
        items: tokens (language model) or texts (classifier) of a step.
        step_seconds: median time of a step.
    """

    parameters: int
    weights: int
    training_memory: int
    peak_memory: int
    epoch_steps: tuple[int, ...]
    items: float
    step_seconds: float

    @property
    def seconds(self) -> float:
        """How long the steps of all epochs take; evaluation comes on top."""
        return sum(self.epoch_steps) * self.step_seconds

    def lines(self) -> list[str]:
        r"""Say it to a reader, a line each.

        Example:
            >>> estimate = Estimate(1000, 4000, 16000, 2**28, (50, 50), 640, 0.5)
            >>> print(*estimate.lines(), sep="\n")
            model: 1,000 parameters, 0.0 MB
            steps: 100 in 2 epochs, 640 tokens or texts each
            memory: 0.0 MB for weights, gradients and optimizer; 268.4 MB in use at most so far
            time: 50 s at 0.500 s a step, 1,280 tokens or texts a second
        """
        steps, epochs = sum(self.epoch_steps), len(self.epoch_steps)
        rate = self.items / max(1e-9, self.step_seconds)
        return [
            f"model: {self.parameters:,} parameters, {self.weights / 1e6:,.1f} MB",
            f"steps: {steps:,} in {epochs} epochs, {self.items:,.0f} tokens or texts each",
            f"memory: {self.training_memory / 1e6:,.1f} MB for weights, gradients and optimizer; "
            f"{self.peak_memory / 1e6:,.1f} MB in use at most so far",
            f"time: {readable(self.seconds)} at {self.step_seconds:.3f} s a step, "
            f"{rate:,.0f} tokens or texts a second",
        ]


class _Measured(Exception):
    """Ends a training that was only begun to be measured."""


class DryRun:
    """Begin a stage, measure some steps and stop; nothing is written.

    Pass one in the place of a `Run`.

    Example:
        >>> import ulmfit_fast as uf
        >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, min_freq=1, progress=False)
        >>> dry = DryRun(steps=3)
        >>> with dry.measuring():
        ...     _ = model.pretrain(["a fine film"] * 300, epochs=2, batch_size=4, run=dry)
        >>> dry.estimate.epoch_steps, model.language_model is None
        ((5, 5), True)

    Args:
        steps: to measure, beside some for warming up.

    Attributes:
        estimate: what was found, once the block is over.

    Raises:
        ValueError: if steps is below 1.
    """

    estimate: Estimate

    def __init__(self, steps: int = 8) -> None:
        if steps < 1:
            raise ValueError(f"steps is {steps}, expected at least 1")
        self._steps = steps

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Let a stage run in the block, as far as it is needed."""
        try:
            yield
        except _Measured:
            return

    def begin(
        self, parameters: Sequence[Tensor], epoch_steps: Sequence[int], *, copies: int
    ) -> None:
        """Note what is to be trained.

        Args:
            parameters: of the model.
            epoch_steps: steps of each epoch.
            copies: numbers in memory for each weight: itself, its gradient, the optimizer's.
        """
        self._parameters, self._epoch_steps, self._copies = parameters, epoch_steps, copies
        self._times = [time.perf_counter()]
        self._items: list[int] = []

    def report(self, reading: Reading) -> None:
        """Take the time; the last one needed ends the training.

        Args:
            reading: the step's.
        """
        self._times.append(time.perf_counter())
        self._items.append(reading.items)
        # Before the end of the epoch, where the model would be shown and saved.
        if len(self._items) < min(_WARM_UP + self._steps, self._epoch_steps[0]):
            return
        times = [after - before for before, after in pairwise(self._times)]
        weights = sum(p.numel() * p.element_size() for p in self._parameters)
        self.estimate = Estimate(
            sum(p.numel() for p in self._parameters),
            weights,
            self._copies * weights,
            _peak_memory(self._parameters[0].device),
            tuple(self._epoch_steps),
            statistics.mean(self._items),
            statistics.median(times[_WARM_UP:] or times),
        )
        raise _Measured


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def readable(seconds: float) -> str:
    """Return a time for a reader.

    >>> readable(90), readable(600)
    ('90 s', '10 min')

    Args:
        seconds: the time.
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
