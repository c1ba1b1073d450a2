"""What the training steps of a language model and of a classifier have in common."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.nn.state import State
from ulmfit_fast.optim.groups import layer_rates, trainable
from ulmfit_fast.runs.metrics import Reading
from ulmfit_fast.system import distributed
from ulmfit_fast.training.objective import Objective

__all__ = ["TrainingStep"]

Model = TypeVar("Model", LanguageModel, TextClassifier)
Result = TypeVar("Result")


class _Loss(nn.Module):
    """A model's loss as a forward, which is what DistributedDataParallel runs."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._loss(self.model, *args, **kwargs)


class TrainingStep(ABC, Generic[Model]):
    """Train a model on one batch after another; calling it with a batch takes the step.

    Args:
        model: its training mode is the caller's.
        optimizer: of the model's parameters.
        scheduler: steps after every batch, or None.
        objective: what is minimised.

    Attributes:
        unit: what `items` of a reading are, "tokens" or "texts".
        state: the hidden state that goes into the next batch, or None.
        steps: updates so far.
    """

    unit: ClassVar[str]

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        objective: Objective,
    ) -> None:
        self.model: Model = model
        self.optimizer, self.scheduler, self.objective = optimizer, scheduler, objective
        self.device = next(model.parameters()).device
        self.state: State | None = None
        self.steps = 0
        self._processes = distributed.world().size
        self._parallel: DistributedDataParallel | None = None
        self._trained: list[bool] = []

    @abstractmethod
    def train_on(self, batch: Any) -> Iterator[Reading]:
        """Take a step, and yield the readings that have arrived, of this step or earlier ones.

        Args:
            batch: as the data has it, on any device.

        Raises:
            FloatingPointError: if a loss is not finite; the parameters are those before its step.
        """

    def rest(self) -> Iterator[Reading]:
        """Wait for all steps and yield the readings that are left.

        Raises:
            FloatingPointError: as `train_on`.
        """
        return iter(())

    def reset(self) -> None:
        """Forget the state: the next batch is the start of its texts."""
        self.state = None

    def rates(self, length: int | None = None) -> list[float]:
        """Return the learning rate of each layer group for a step.

        Args:
            length: T of its batch; None leaves the rates of the schedule as they are.
        """
        scale = self._scale(length)
        return [rate * scale for rate in layer_rates(self.optimizer)]

    def _scale(self, length: int | None) -> float:
        to = self.objective.rescale_to
        return 1.0 if to is None or length is None else length / to

    def _stepped(self) -> None:
        if self.scheduler is not None:
            self.scheduler.step()
        self.steps += 1

    def _clip(self) -> None:
        if self.objective.clip is not None:
            nn.utils.clip_grad_norm_(trainable(self.optimizer), self.objective.clip)

    def _of_model(self, loss: Callable[..., Result]) -> Callable[..., Result]:
        """Return a loss of the model, through DistributedDataParallel where there are processes.

        Args:
            loss: of the model and a batch; no method of the step, which it would keep in a cycle.
        """
        if self._processes == 1:
            return functools.partial(loss, self.model)
        trained = [p.requires_grad for p in self.model.parameters()]
        if self._parallel is None or self._trained != trained:
            # The old one is gone before there is another on the same parameters.
            self._parallel, self._trained = None, trained
            self._parallel = distributed.parallel(_Loss(self.model, loss))
        return self._parallel
