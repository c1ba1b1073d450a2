"""A training step of a language model that never waits for the device."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ulmfit_fast.nn import LanguageModel, LMLoss, detach_state, resize_state
from ulmfit_fast.nn.state import State
from ulmfit_fast.optim import NTASGD
from ulmfit_fast.runs.metrics import Reading
from ulmfit_fast.system import distributed
from ulmfit_fast.system.seeds import draw_seed, seeds_from
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.precision import autocast
from ulmfit_fast.training.readings import LossReadings, not_finite
from ulmfit_fast.training.step import TrainingStep

__all__ = ["LanguageModelStep"]

# Steps before those of a graph: the first ones compile kernels and make the optimizer's buffers.
_WARM_UP = 2
_DEFAULT = Objective()


def _loss(model: LanguageModel, *args: Any, **kwargs: Any) -> tuple[LMLoss, State]:
    return model.loss(*args, **kwargs)


class LanguageModelStep(TrainingStep[LanguageModel]):
    """Train a language model on one batch after another; the state goes from each to the next.

    With several processes each passes batches of its own; gradients and losses
    are the means over all of them.

    On a GPU nothing here waits for the device, given a fused optimizer: the loss stays there, and
    one that is not finite keeps the optimizer from this and all later updates. Elsewhere, and with
    other optimizers, each loss is looked at before its update.

    Example:
        >>> from ulmfit_fast.nn import AWDLSTMConfig
        >>> model = LanguageModel(AWDLSTMConfig(10, emb_size=4, hidden_size=6))
        >>> step = LanguageModelStep(model, torch.optim.Adam(model.parameters(), fused=True))
        >>> text = torch.randint(10, (8, 3))
        >>> step(text[:-1], text[1:]).total.requires_grad
        False

    Args:
        model: the language model; its training mode is the caller's.
        optimizer: of the model's parameters.
        scheduler: steps after every batch, or None.
        objective: what is minimised.
        capture: on CUDA, capture the step in a CUDA graph after the first few, the update with it,
            and replay it for every batch of that shape; anew where other parameters are trained, or
            the optimizer was given another state. The masks are those of a run without it; the
            optimizer's state_dict then says `capturable`. A schedule may change the learning rate,
            and nothing else.

    Attributes:
        unit: "tokens".
        state: what goes into the next batch; None at the start of texts.
        steps: updates so far.

    Raises:
        ValueError: if capture is asked for without CUDA, with an optimizer that is not fused or is
            an NTASGD, with rescaled rates or with scaled gradients.
    """

    unit = "tokens"

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        *,
        objective: Objective = _DEFAULT,
        capture: bool = False,
    ) -> None:
        super().__init__(model, optimizer, scheduler, objective)
        if capture and self.device.type != "cuda":
            raise ValueError(
                f"capture needs a model on a CUDA device, this one is on {self.device}: leave it "
                "out"
            )
        self.capture = capture
        fused = all(group.get("fused") for group in optimizer.param_groups)
        if capture and not fused:
            raise ValueError(
                f"capture needs a fused optimizer, this {type(optimizer).__name__} is not: pass "
                "fused=True to it"
            )
        if capture and isinstance(optimizer, NTASGD):
            raise ValueError(
                "capture and NTASGD are both given, and a graph cannot count the steps of its "
                "average: leave capture out, or take Adam, AdamW or SGD"
            )
        if capture and self._processes > 1:
            raise ValueError(
                f"capture is for one process, here there are {self._processes}: leave it out"
            )
        rescaled = objective.rescale_to is not None
        if capture and (rescaled or objective.precision.scaler is not None):
            name = "rescale_to" if rescaled else "scaler"
            raise ValueError(
                f"capture and {name} are both given, and a graph has neither: leave one of them out"
            )
        self.waits = self.device.type != "cuda" or not fused
        self._failed = torch.zeros((), dtype=torch.float32, device=self.device)
        self._graph: CapturedStep | None = None
        self._warm = 0
        self._readings: LossReadings | None = None

    def train_on(self, batch: tuple[Tensor, Tensor]) -> Iterator[Reading]:
        """Take a step, and yield the readings that have arrived: on CUDA those of earlier steps.

        Args:
            batch: inputs and targets, each `(T, B)`, on any device.

        Raises:
            FloatingPointError: if a loss is not finite; the parameters are those before its step.
        """
        if self._readings is None:
            self._readings = LossReadings(self.steps)
        inputs, targets = (ids.to(self.device, non_blocking=True) for ids in batch)  # (T, B)
        lrs = self.rates(len(inputs))
        loss = self(inputs, targets)
        yield from self._readings.add(loss, lrs, targets.numel() * self._processes)

    def rest(self) -> Iterator[Reading]:
        """Wait for all steps and yield the readings that are left."""
        return iter(()) if self._readings is None else self._readings.rest()

    def __call__(self, inputs: Tensor, targets: Tensor) -> LMLoss:
        """Train on one batch.

        Args:
            inputs: token ids, `(T, B)`, int64 or int32, on the model's device.
            targets: token ids, `(T, B)`, int64.

        Returns:
            The parts of the loss, without a graph, on the device.

        Raises:
            FloatingPointError: if the loss is not finite, where the step waits for it; the
                parameters are those before the step. Elsewhere `LossReadings` raises it.
        """
        loss = self._replayed(inputs, targets) if self.capture else None
        if loss is None:
            self.optimizer.zero_grad(set_to_none=True)
            loss, state = self.forward_backward(inputs, targets, self.state)
            self._warm += 1
            self._check_finite(loss)
            with self._rescaled(len(inputs)):
                self.update(loss)
            # Only now: a step that failed is taken again from where it began.
            self.state = state
        self._stepped()
        return loss

    def forward_backward(
        self, inputs: Tensor, targets: Tensor, state: State | None
    ) -> tuple[LMLoss, State]:
        """Compute the loss, leave its clipped gradients, and return it with the new state.

        Args:
            inputs: token ids, `(T, B)`.
            targets: token ids, `(T, B)`.
            state: the state before.
        """
        own, scaler = self.objective, self.objective.precision.scaler
        # A captured graph must convert the weights anew at each replay.
        with autocast(self.device, own.precision.dtype, cache_enabled=not self.capture):
            loss, state = self._of_model(_loss)(
                inputs,
                targets,
                state,
                alpha=own.alpha,
                beta=own.beta,
                label_smoothing=own.label_smoothing,
            )
        if scaler is None:
            loss.total.backward()  # type: ignore[no-untyped-call]
        else:
            # The scaler skips a step by its gradients: a loss that is not finite has to show there.
            self._record_failure(loss)
            guard = torch.where(self._failed > 0, torch.nan, torch.ones_like(self._failed))
            scaler.scale(loss.total * guard).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(self.optimizer)
        self._clip()
        parts = [part.detach() for part in loss]
        if self._processes > 1:
            parts = list(distributed.mean_(torch.stack(parts)).unbind())
        return LMLoss(*parts), detach_state(state)

    @contextmanager
    def _rescaled(self, length: int) -> Iterator[None]:
        """Multiply the rates for one step; the schedule never sees it."""
        groups = self.optimizer.param_groups
        rates, scale = [group["lr"] for group in groups], self._scale(length)
        try:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate if scale == 1.0 else rate * scale
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def _check_finite(self, loss: LMLoss) -> None:
        value = float(loss.total) if self.waits else 0.0
        if not math.isfinite(value):
            raise not_finite(value, self.steps, self.rates())

    def _record_failure(self, loss: LMLoss) -> None:
        # Once set it stays set: the state of the model is not finite either from here on.
        # NaN but for a number: three launches, where isfinite takes five.
        self._failed.logical_or_(loss.total.detach() * 0 != 0)

    def update(self, loss: LMLoss) -> None:
        """Step the optimizer, unless this loss or an earlier one is not finite.

        Args:
            loss: of this step, whose gradients are there.
        """
        scaler = self.objective.precision.scaler
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
            return
        if self.waits:
            self.optimizer.step()
            return
        self._record_failure(loss)
        self.optimizer.found_inf = self._failed  # type: ignore[attr-defined]
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf  # type: ignore[attr-defined]

    def _replayed(self, inputs: Tensor, targets: Tensor) -> LMLoss | None:
        """Replay the graph, made first when it is time; None for what it does not fit."""
        trained = [p.requires_grad for p in self.model.parameters()]
        if self._graph is not None and not self._graph.matches(trained):
            self._graph, self._warm = None, 0
        if self._graph is None:
            if self._warm < _WARM_UP or self.state is None:
                return None
            self._graph = CapturedStep(self, inputs, targets, self.state, trained)
        if inputs.shape != self._graph.inputs.shape:
            return None
        loss, self.state = self._graph(inputs, targets, self.state)
        return loss


class CapturedStep:
    """A whole step as a CUDA graph, with the tensors that it reads and writes.

    Its first batch runs as it is, on the tensors of the graph: what has to be compiled and loaded
    for them, which is forbidden during a capture, is then there, and the seeds are counted.
    """

    def __init__(
        self,
        step: LanguageModelStep,
        inputs: Tensor,
        targets: Tensor,
        state: State,
        trained: list[bool],
    ) -> None:
        # Not held, as the step holds this: a cycle would keep the graph's memory until Python looks
        # for cycles, and the next epoch's graph be made beside it.
        self._step, self.trained = weakref.ref(step), trained
        self.inputs, self.targets = inputs.clone(), targets.clone()
        self.state = [(h.clone(), c.clone()) for h, c in state]
        # A learning rate that is a number would be the same one at each replay.
        self.groups = step.optimizer.param_groups
        lr = torch.zeros((), dtype=torch.float32, device=inputs.device)
        self.lrs = [lr.clone() for _ in self.groups]
        for group in self.groups:
            group["capturable"] = True
        self.parameters = [p for p in step.model.parameters() if p.requires_grad]
        # So would a seed that is drawn on the host.
        self.seeds: Tensor | None = None
        self.replay: Callable[[], LMLoss] | None = None
        # What the graph holds.
        self.numbers: list[dict[str, object]] = []
        self.grads: list[Tensor | None] = []
        self.addresses: list[int] = []

    @property
    def step(self) -> LanguageModelStep:
        """The step, which calls this alone."""
        step = self._step()
        assert step is not None
        return step

    def matches(self, trained: list[bool]) -> bool:
        """Say whether a graph of these tensors and groups, or one to come, trains what is there.

        Args:
            trained: of each parameter, whether it requires a gradient.
        """
        groups = self.step.optimizer.param_groups
        # load_state_dict leaves groups and a state of its own behind.
        same = groups is self.groups and len(groups) == len(self.lrs) and trained == self.trained
        return same and (self.replay is None or self.addresses == self._addresses())

    def _addresses(self) -> list[int]:
        """Return where in memory the parameters are, and the optimizer's state of them."""
        parameters = list(self.step.model.parameters())
        states = (self.step.optimizer.state.get(p, {}).values() for p in parameters)
        tensors = [value for state in states for value in state if isinstance(value, Tensor)]
        return [tensor.data_ptr() for tensor in (*parameters, *tensors)]

    def _body(self, source: Callable[[], Tensor]) -> LMLoss:
        with seeds_from(source):
            loss, state = self.step.forward_backward(self.inputs, self.targets, self.state)
        numbers = [group["lr"] for group in self.groups]
        try:
            for group, lr in zip(self.groups, self.lrs, strict=True):
                group["lr"] = lr
            self.step.update(loss)
        finally:
            for group, number in zip(self.groups, numbers, strict=True):
                group["lr"] = number
        _copy(self.state, state)
        return loss

    def _run_uncaptured(self) -> LMLoss:
        """Run a batch without a graph, and count the seeds that it draws."""
        count = 0

        def counting() -> Tensor:
            nonlocal count
            count += 1
            return draw_seed(torch.default_generator).to(self.inputs.device, non_blocking=True)

        self.step.optimizer.zero_grad(set_to_none=True)
        loss = self._body(counting)
        self.seeds = torch.zeros(count, dtype=torch.int64, device=self.inputs.device)
        return loss

    def _capture(self, seeds: Tensor) -> Callable[[], LMLoss]:
        self.step.optimizer.zero_grad(set_to_none=True)
        self.numbers = self._numbers()
        replay = record(lambda: self._body(iter(seeds.unbind()).__next__), seeds.device)
        self.grads = [p.grad for p in self.parameters]
        self.addresses = self._addresses()
        return replay

    def _numbers(self) -> list[dict[str, object]]:
        """Return what else of the optimizer's settings the graph holds."""
        left_out = ("params", "lr", "initial_lr")
        return [{k: v for k, v in group.items() if k not in left_out} for group in self.groups]

    def _refuse_other_numbers(self) -> None:
        for held, now in zip(self.numbers, self._numbers(), strict=True):
            for name, value in held.items():
                if now[name] is not value and now[name] != value:
                    raise ValueError(
                        f"{name} is {now[name]}, and the captured graph holds {value}: leave "
                        "capture out, or have the schedule change the learning rate alone, as "
                        "moms=None does"
                    )

    def __call__(
        self, inputs: Tensor, targets: Tensor, state: State | None
    ) -> tuple[LMLoss, State]:
        """Run a batch of the captured shape.

        Raises:
            ValueError: if a number that the graph holds has changed since its capture.
        """
        for group, lr in zip(self.groups, self.lrs, strict=True):
            lr.fill_(group["lr"])
        self.inputs.copy_(inputs, non_blocking=True)
        self.targets.copy_(targets, non_blocking=True)
        if state is None:
            torch._foreach_zero_([tensor for pair in self.state for tensor in pair])
        elif state is not self.state:
            # A batch of another size may have come in between.
            _copy(self.state, resize_state(state, inputs.shape[1]))
        if self.seeds is None:
            return self._run_uncaptured(), self.state
        if self.replay is None:
            self.replay = self._capture(self.seeds)
        self._refuse_other_numbers()
        if len(self.seeds):
            seeds = torch.stack([draw_seed() for _ in range(len(self.seeds))])  # (seeds,)
            if self.seeds.device.type == "cuda":
                seeds = seeds.pin_memory()
            self.seeds.copy_(seeds, non_blocking=True)
        # A step of another shape has put its own gradients there.
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad
        loss = self.replay()
        return LMLoss(*(part.clone() for part in loss)), self.state


def _copy(into: State, state: State) -> None:
    for mine, new in zip(into, state, strict=True):
        for tensor, value in zip(mine, new, strict=True):
            tensor.copy_(value)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a device's stream for captures; PyTorch's is of the first device that has one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def record(body: Callable[[], LMLoss], device: torch.device) -> Callable[[], LMLoss]:
    """Capture a function in a CUDA graph and return its replay; the result stays in place.

    Args:
        body: reads and writes tensors that stay where they are.
        device: where they are.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, stream=_capture_stream(device)):
                result = body()
        finally:
            # A capture that failed leaves its own one behind.
            torch.cuda.set_stream(stream)

    def replay() -> LMLoss:
        with torch.cuda.device(device):
            graph.replay()
        return result

    return replay
