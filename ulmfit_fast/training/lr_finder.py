"""Find a learning rate: train with one that grows until the loss runs away."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.system.files import file_in_place, user_path
from ulmfit_fast.system.progress import progress_bar
from ulmfit_fast.system.seeds import own_generators
from ulmfit_fast.training.classifier_step import ClassifierStep, relative_weights
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.plan import TrainingPlan
from ulmfit_fast.training.settings import TrainingSettings
from ulmfit_fast.training.stages import Documents, classifier_batches, training_stream
from ulmfit_fast.training.step import TrainingStep

__all__ = ["LRFinderResult", "Suggestions", "find_lr", "suggest"]

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

        It begins where the loss starts to move and ends where it is back where it was, if those
        are on the curve; all suggestions are shown.

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
        points = {}
        for name in ("valley", "steep", "minimum"):
            rate = getattr(self.suggestions, name)
            points[name] = min(
                range(len(self.lrs)), key=lambda i: abs(math.log(self.lrs[i] / rate))
            )
        moving = _moving(self.smoothed)
        shown = slice(
            min(moving.start, *points.values()), max(moving.stop, *(i + 1 for i in points.values()))
        )
        axes.plot(self.lrs[shown], self.smoothed[shown])
        for name, nearest in points.items():
            rate = getattr(self.suggestions, name)
            axes.plot(rate, self.smoothed[nearest], "o", label=f"{name} {rate:.1e}")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss, smoothed")
        axes.legend()
        with file_in_place(path) as file:
            figure.savefig(file, format=kind)
        return path


def _moving(losses: Sequence[float]) -> slice:
    """Return the part of a curve that shows something, with a little of what is before it.

    >>> _moving([5.0] * 10 + [4.9, 4.0, 3.0, 2.9, 4.0, 6.0, 9.0, 20.0])
    slice(10, 16, None)
    """
    first, bottom = losses[0], min(range(len(losses)), key=losses.__getitem__)
    if not bottom:
        return slice(0, len(losses))
    small = 0.05 * (first - losses[bottom])
    start = next((i for i in range(bottom) if losses[i] < first - small), bottom)
    end = next((i for i in range(bottom, len(losses)) if losses[i] > first + small), len(losses))
    return slice(max(0, start - len(losses) // 10), min(len(losses), end + 1))


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


class _Curve:
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
        """Take a point in, and return whether to go on.

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


def find_lr(
    model: LanguageModel | TextClassifier,
    documents: Documents,
    settings: TrainingSettings,
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    steps: int = 100,
    stop_factor: float = 4.0,
    seed: int = 0,
    progress: bool = True,
) -> LRFinderResult:
    """Train a copy of a model with a growing learning rate, and read off a good one.

    The rate of the last layer group grows exponentially from step to step, the other groups' in
    proportion. The search ends early where the smoothed loss is `stop_factor` times its lowest.
    With an unfreezing plan the groups of its first stage train. The model and the states of all
    random generators are left as they were.

    Example:
        >>> import numpy as np
        >>> from ulmfit_fast.nn import AWDLSTMConfig
        >>> model = LanguageModel(AWDLSTMConfig(12, emb_size=4, hidden_size=6))
        >>> documents = [np.arange(2, 12, dtype=np.int32)] * 10
        >>> result = find_lr(model, documents, TrainingSettings(batch_size=2, bptt=5), steps=50)
        >>> 1e-7 <= result.suggestions.valley <= 10
        True

    Args:
        model: a language model, or a classifier.
        documents: token ids of each document, int32; read again from the start where they are few.
        settings: how the training is meant to be; its rate, schedule and epochs do not count.
        labels: `(N,)` int64, for a classifier.
        weights: `(N,)`, of a classifier's texts, as for `stages.fit_classifier`; or None.
        start_lr: smallest learning rate.
        end_lr: largest learning rate.
        steps: at most so many.
        stop_factor: where to stop, over the lowest smoothed loss.
        seed: of the masks and of the order of the documents.
        progress: show a bar.

    Returns:
        The curve and the suggested rates.

    Raises:
        TypeError: if the model is neither of the two.
        ValueError: if an argument does not fit, or the loss ran away before there was a curve.
    """
    if not (0.0 < start_lr < end_lr and math.isfinite(end_lr)):
        raise ValueError(
            f"start_lr is {start_lr} and end_lr is {end_lr}, expected 0 < start_lr < end_lr"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 10:
        raise ValueError(f"steps is {steps!r}, expected a whole number, at least 10")
    if not stop_factor > 1.0:
        raise ValueError(f"stop_factor is {stop_factor}, expected a number above 1")
    is_classifier = isinstance(model, TextClassifier)
    if not is_classifier and not isinstance(model, LanguageModel):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a LanguageModel or a TextClassifier: of "
            "a ULMFiT, pass its language_model or its classifier"
        )
    if is_classifier != (labels is not None):
        expected = "labels for each text" if is_classifier else "labels=None"
        raise ValueError(f"the model is a {type(model).__name__}, expected {expected}")
    if len(documents) == 0:
        raise ValueError("there are 0 documents, expected at least one; pass more text")
    if weights is not None and not is_classifier:
        raise ValueError("the model is a LanguageModel, expected weights=None")
    weights = relative_weights(weights, len(documents))
    curve = _Curve(stop_factor)
    own = replace(settings, schedule="constant", capture=False)
    with (
        own_generators(seed, next(model.parameters()).device),
        progress_bar("learning rate", steps, enabled=progress) as advance,
    ):
        copied = copy.deepcopy(model).train()
        plan = TrainingPlan(copied, own, [steps] * settings.epochs)
        with plan.unfreezing_groups():
            plan.begin_epoch(0)
            shares = [group["lr"] / settings.lr for group in plan.optimizer.param_groups]
            losses = _losses(*_step_and_batches(copied, documents, labels, weights, plan, seed))
            for i in range(steps):
                rate = start_lr * (end_lr / start_lr) ** (i / (steps - 1))
                for group, share in zip(plan.optimizer.param_groups, shares, strict=True):
                    group["lr"] = rate * share
                try:
                    loss = next(losses)
                except FloatingPointError:
                    loss = math.nan
                advance(f"lr {rate:.1e}, loss {loss:.3f}")
                if not curve.add(rate, loss):
                    break
    return curve.result(skip_start=steps // 10)


def _step_and_batches(
    model: LanguageModel | TextClassifier,
    documents: Documents,
    labels: Tensor | None,
    weights: Tensor | None,
    plan: TrainingPlan,
    seed: int,
) -> tuple[TrainingStep[Any], Callable[[int], Iterable[Any]]]:
    settings, device = plan.settings, next(model.parameters()).device
    objective = Objective.of(settings, device)
    if isinstance(model, LanguageModel):
        stream = partial(training_stream, documents, settings, seed, device=device)
        return LanguageModelStep(model, plan.optimizer, objective=objective), stream
    batches_of = classifier_batches(model, documents, labels, settings.batch_size, seed)
    return ClassifierStep(model, plan.optimizer, objective=objective, weights=weights), batches_of


def _losses(step: TrainingStep[Any], batches_of: Callable[[int], Iterable[Any]]) -> Iterator[float]:
    """Take a step each time the next loss is asked for, over and over the texts."""
    for epoch in itertools.count():
        step.reset()
        for batch in batches_of(epoch):
            for reading in (*step.train_on(batch), *step.rest()):
                yield reading.cross_entropy
