"""The curve of a search for a learning rate, its plot, and what it suggests."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ulmfit_fast.system.files import file_in_place, user_path

__all__ = ["Curve", "LRFinderResult", "Suggestions", "suggest"]

# How much of the smoothed loss is that of the step before.
_SMOOTHING = 0.98
# Points left out at the end, where the loss is running away.
_SKIP_END = 5


@dataclass(frozen=True)
class Suggestions:
    """Learning rates read off a curve.

    Attributes:
        valley: half-way along the longest fall of the loss; the usual choice.
        steep: where the loss falls fastest against the logarithm of the rate.
        minimum: a tenth of the rate at the lowest loss.
    """

    valley: float
    steep: float
    minimum: float


@dataclass(frozen=True)
class LRFinderResult:
    """The curve of a search and what it suggests.

    Attributes:
        lrs: learning rate of the last layer group at each step.
        losses: cross entropy of each step, in nats.
        smoothed: its running mean, corrected for its start.
        suggestions: learning rates read off the smoothed curve.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestions: Suggestions

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the smoothed loss over the learning rate, which has a logarithmic axis.

        Args:
            path: of the picture; its ending names the format, such as .png or .svg.

        Returns:
            The path.

        Raises:
            ImportError: if matplotlib is not installed.
            ValueError: if the format is not one that matplotlib writes.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ImportError(
                "the plot needs matplotlib: pip install 'ulmfit-fast[demo]'"
            ) from error
        path = user_path(path)
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        kinds = figure.canvas.get_supported_filetypes()
        kind = path.suffix.lower().removeprefix(".")
        if kind not in kinds:
            raise ValueError(
                f"the plot's name {path.name!r} ends in {path.suffix!r}, expected one of "
                f"{', '.join(sorted(kinds))}"
            )
        axes = figure.subplots()
        axes.plot(self.lrs, self.smoothed)
        for name in ("valley", "steep", "minimum"):
            rate = getattr(self.suggestions, name)
            nearest = min(range(len(self.lrs)), key=lambda i: abs(math.log(self.lrs[i] / rate)))
            axes.plot(rate, self.smoothed[nearest], "o", label=f"{name} {rate:.1e}")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss, smoothed")
        axes.legend()
        with file_in_place(path) as file:
            figure.savefig(file, format=kind)
        return path


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> Suggestions:
    """Read learning rates off a curve.

    Example:
        >>> rates = [10.0 ** -n for n in range(7, 0, -1)]
        >>> suggest(rates, [5.0, 4.9, 4.0, 3.0, 2.9, 2.8, 9.0]).steep
        1e-05

    Args:
        lrs: rising learning rates.
        losses: the smoothed loss at each.

    Returns:
        The suggestions.

    Raises:
        ValueError: if there are fewer than two points, or not as many losses as rates.

    Source:
        Smith 2015 (arXiv:1506.01186) for the search; fastai 2.8.12, `callback.schedule`, for the
        three rules.
    """
    if len(lrs) != len(losses) or len(lrs) < 2:
        raise ValueError(
            f"the curve has {len(lrs)} rates and {len(losses)} losses, expected as many of each "
            "and at least 2"
        )
    slopes = [
        (losses[i + 1] - losses[i]) / (math.log(lrs[i + 1]) - math.log(lrs[i]))
        for i in range(len(lrs) - 1)
    ]
    return Suggestions(
        valley=lrs[_valley(losses)],
        steep=lrs[min(range(len(slopes)), key=slopes.__getitem__)],
        minimum=lrs[min(range(len(losses)), key=losses.__getitem__)] / 10,
    )


def _valley(losses: Sequence[float]) -> int:
    """Return the point in the middle of the second third of the longest fall."""
    # Length of the longest falling subsequence that ends at each point.
    falls: list[int] = []
    for i, loss in enumerate(losses):
        falls.append(1 + max((falls[j] for j in range(i) if losses[j] > loss), default=0))
    longest = max(falls)
    if longest == 1:
        return 0
    start = falls.index(longest) - longest
    third = longest / 3
    return start + int(third) + int(third / 2)


class Curve:
    """The points of a search, with the running mean of the loss.

    Args:
        stop_factor: where to stop, over the lowest smoothed loss.
    """

    def __init__(self, stop_factor: float) -> None:
        self.stop_factor = stop_factor
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self._mean = 0.0

    def add(self, lr: float, loss: float) -> bool:
        """Take a point in, and tell whether to go on.

        Args:
            lr: learning rate of the step.
            loss: cross entropy it began with; one that is not finite is the end.
        """
        if not math.isfinite(loss):
            return False
        self.lrs.append(lr)
        self.losses.append(loss)
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * loss
        self.smoothed.append(self._mean / (1 - _SMOOTHING ** len(self.losses)))
        return self.smoothed[-1] <= self.stop_factor * min(self.smoothed)

    def result(self, skip_start: int) -> LRFinderResult:
        """Return the curve with the rates read off it, but for its ends.

        Args:
            skip_start: points left out at the start.

        Raises:
            ValueError: if too little is left.
        """
        kept = slice(skip_start, max(0, len(self.lrs) - _SKIP_END))
        if len(self.lrs[kept]) < 2:
            raise ValueError(
                f"the loss ran away after {len(self.lrs)} steps, expected at least "
                f"{skip_start + _SKIP_END + 2} for a curve; pass a smaller start_lr or more steps"
            )
        suggestions = suggest(self.lrs[kept], self.smoothed[kept])
        return LRFinderResult(self.lrs, self.losses, self.smoothed, suggestions)
