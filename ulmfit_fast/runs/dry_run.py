"""What a run would take, from its first steps."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from ulmfit_fast.runs.metrics import Reading

__all__ = ["DryRun", "Estimate", "StepTimes", "readable"]

# The first steps compile kernels, make the optimizer's buffers and warm caches.
_WARM_UP = 2
# A step is measured in these too, where the weights are float32.
_COMPARED = ("float32", "bfloat16")


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
        others: the same in other precisions, by their names.
    """

    parameters: int
    weights: int
    training_memory: int
    peak_memory: int
    epoch_steps: tuple[int, ...]
    items: float
    step_seconds: float
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long the steps of all epochs take; evaluation comes on top."""
        return sum(self.epoch_steps) * self.step_seconds

    def lines(self) -> list[str]:
        r"""Say it to a reader, a line each.

        Example:
            >>> others = {"bfloat16": 0.25}
            >>> estimate = Estimate(1000, 4000, 16000, 2**28, (50, 50), 640, 0.5, others)
            >>> print(*estimate.lines(), sep="\n")
            model: 1,000 parameters, 0.0 MB
            steps: 100 in 2 epochs, 640 tokens or texts each
            memory: 0.0 MB for weights, gradients and optimizer; 268.4 MB in use at most so far
            time: 50 s at 0.500 s a step, 1,280 tokens or texts a second
            in bfloat16: 25 s at 0.250 s a step, 2.0 times as fast
        """
        steps, epochs = sum(self.epoch_steps), len(self.epoch_steps)
        rate = self.items / max(1e-9, self.step_seconds)
        return [
            f"model: {self.parameters:,} parameters, {self.weights / 1e6:,.1f} MB",
            f"steps: {steps:,} in {epochs} epoch{'s' * (epochs != 1)}, "
            f"{self.items:,.0f} tokens or texts each",
            f"memory: {self.training_memory / 1e6:,.1f} MB for weights, gradients and optimizer; "
            f"{self.peak_memory / 1e6:,.1f} MB in use at most so far",
            f"time: {readable(self.seconds)} at {self.step_seconds:.3f} s a step, "
            f"{rate:,.0f} tokens or texts a second",
            *(
                f"in {name}: {readable(steps * seconds)} at {seconds:.3f} s a step, "
                f"{self.step_seconds / max(1e-9, seconds):.1f} times as fast"
                for name, seconds in self.others.items()
            ),
        ]


class StepTimes:
    """Take the time of the first steps of a training.

    Args:
        parameters: of the model.
        epoch_steps: steps of each epoch.
        copies: numbers in memory for each weight: itself, its gradient, the optimizer's.
        steps: to measure, beside some for warming up; fewer where an epoch has fewer.
    """

    def __init__(
        self, parameters: Sequence[Tensor], epoch_steps: Sequence[int], copies: int, steps: int = 8
    ) -> None:
        self._parameters, self._epoch_steps, self._copies = parameters, epoch_steps, copies
        # Before the end of the epoch, where the model would be shown and saved.
        self._enough = min(_WARM_UP + steps, epoch_steps[0])
        self._times = [time.perf_counter()]
        self._items: list[int] = []

    def add(self, items: int) -> Estimate | None:
        """Note the end of a step; return the estimate after the last one that is needed.

        Args:
            items: tokens or texts of the step.
        """
        self._times.append(time.perf_counter())
        self._items.append(items)
        if len(self._items) != self._enough:
            return None
        times = [after - before for before, after in pairwise(self._times)]
        weights = sum(p.numel() * p.element_size() for p in self._parameters)
        return Estimate(
            sum(p.numel() for p in self._parameters),
            weights,
            self._copies * weights,
            _peak_memory(self._parameters[0].device),
            tuple(self._epoch_steps),
            statistics.mean(self._items),
            statistics.median(times[_WARM_UP:] or times),
        )


class _Measured(Exception):
    """Ends a training that was only begun to be measured."""


class DryRun:
    """Begin a stage, measure some steps and stop; nothing is written.

    The steps are measured in the stage's precision, then in float32 and bfloat16, whichever it is
    not. Pass one in the place of a `Run`.

    Example:
        >>> import ulmfit_fast as uf
        >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, min_freq=1, progress=False)
        >>> dry = DryRun(steps=3)
        >>> with dry.measuring():
        ...     _ = model.pretrain(["a fine film"] * 300, epochs=2, batch_size=4, run=dry)
        >>> dry.estimate.epoch_steps, model.language_model is None
        ((5, 5), True)

    Args:
        steps: to measure in each precision, beside some for warming up.

    Attributes:
        estimate: what was found, once the block is over.

    Raises:
        ValueError: if steps is below 1.
    """

    estimate: Estimate
    # As `Run` has it: what there is to warn of is said.
    is_alone = True

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
        self._of = list(parameters), list(epoch_steps), copies

    def measure(self, precision: str, train: Callable[[str], object]) -> None:
        """Take the time of some steps, in other precisions too; then end the training.

        Args:
            precision: of the stage.
            train: trains in the precision of a name, and gives this its readings.
        """
        found = self._measured(precision, train)
        if self._of[0][0].dtype == torch.float32:
            names = [name for name in _COMPARED if name != precision]
            others = {name: self._measured(name, train).step_seconds for name in names}
            found = replace(found, others=others)
        self.estimate = found
        raise _Measured

    def _measured(self, precision: str, train: Callable[[str], object]) -> Estimate:
        self._times = StepTimes(*self._of, self._steps)
        with self.measuring():
            train(precision)
        return self._found

    def report(self, reading: Reading) -> None:
        """Take the time; the last one needed ends the training in a precision.

        Args:
            reading: the step's.
        """
        found = self._times.add(reading.items)
        if found is not None:
            self._found = found
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
