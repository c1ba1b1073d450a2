"""A training step of a language model that never waits for the device."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ulmfit_fast import rng
from ulmfit_fast.nn import LanguageModel, LMLoss, detach_state
from ulmfit_fast.nn.state import State

__all__ = ["LanguageModelStep", "LossReadings", "Reading", "trainable"]

# Steps before a capture: the first ones compile kernels and make the optimizer's buffers.
_WARM_UP = 3
# Readings that may be under way; a host further ahead than this only fills the device's queue.
_AHEAD = 8


def trainable(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of an optimizer that require a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


class LanguageModelStep:
    """Train a language model on one batch after another; the state goes from each to the next.

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
        alpha: weight of the activation regulariser AR.
        beta: weight of the temporal regulariser TAR.
        clip: largest gradient norm, or None.
        autocast: dtype of autocast, bfloat16 or float16, or None for none. Gradients are not
            scaled, so float16 is for models whose gradients stand it.
        capture: on CUDA, capture the step in a CUDA graph after the first few, the update with it,
            and replay it for every batch of that shape. The masks are those of a run without it;
            the optimizer's state_dict then says `capturable`.

    Attributes:
        state: what goes into the next batch; None at the start of texts.
        steps: updates so far.

    Raises:
        ValueError: if autocast is another dtype, or capture is asked for without CUDA or with an
            optimizer that is not fused.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        *,
        alpha: float = 2.0,
        beta: float = 1.0,
        clip: float | None = None,
        autocast: torch.dtype | None = None,
        capture: bool = False,
    ) -> None:
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"autocast is {autocast}, expected torch.bfloat16, torch.float16, or None for none"
            )
        self.device = next(model.parameters()).device
        if capture and self.device.type != "cuda":
            raise ValueError(
                f"capture needs a model on a CUDA device, this one is on {self.device}: leave it "
                "out"
            )
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.alpha, self.beta, self.clip = alpha, beta, clip
        self.autocast, self.capture = autocast, capture
        self.state: State | None = None
        self.steps = 0
        fused = all(group.get("fused") for group in optimizer.param_groups)
        if capture and not fused:
            raise ValueError(
                f"capture needs a fused optimizer, this {type(optimizer).__name__} is not: pass "
                "fused=True to it"
            )
        self.waits = self.device.type != "cuda" or not fused
        self._failed = torch.zeros((), device=self.device)
        self._graph: _CapturedStep | None = None
        self._warm = 0

    def reset(self) -> None:
        """Forget the state: the next batch is the start of its texts."""
        self.state = None

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
            loss, self.state = self.forward_backward(inputs, targets, self.state)
            self._warm += 1
            self._look_at(loss)
            self.update(loss)
        if self.scheduler is not None:
            self.scheduler.step()
        self.steps += 1
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
        context: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self.autocast is not None:
            # A captured graph must convert the weights anew at each replay.
            context = torch.autocast(
                self.device.type, self.autocast, cache_enabled=not self.capture
            )
        with context:
            loss, state = self.model.loss(inputs, targets, state, alpha=self.alpha, beta=self.beta)
        loss.total.backward()  # type: ignore[no-untyped-call]
        if self.clip is not None:
            nn.utils.clip_grad_norm_(trainable(self.optimizer), self.clip)
        return LMLoss(*(part.detach() for part in loss)), detach_state(state)

    def _look_at(self, loss: LMLoss) -> None:
        value = float(loss.total) if self.waits else 0.0
        if not math.isfinite(value):
            lrs = [group["lr"] for group in self.optimizer.param_groups]
            raise not_finite(value, self.steps, lrs)

    def update(self, loss: LMLoss) -> None:
        """Step the optimizer, unless this loss or an earlier one is not finite.

        Args:
            loss: of this step.
        """
        if self.waits:
            self.optimizer.step()
            return
        # Once set it stays set: the state of the model is not finite either from here on.
        self._failed.logical_or_(~torch.isfinite(loss.total))
        self.optimizer.found_inf = self._failed  # type: ignore[attr-defined]
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf  # type: ignore[attr-defined]

    def _replayed(self, inputs: Tensor, targets: Tensor) -> LMLoss | None:
        """Replay the graph, made first when it is time; None for what it does not fit."""
        trained = [p.requires_grad for p in self.model.parameters()]
        if self._graph is not None and self._graph.trained != trained:
            self._graph, self._warm = None, 0
        if self._graph is None:
            if self._warm < _WARM_UP or self.state is None:
                return None
            self._graph = _CapturedStep(self, inputs, targets, self.state, trained)
        if inputs.shape != self._graph.inputs.shape:
            return None
        loss, self.state = self._graph(inputs, targets, self.state)
        return loss


class _CapturedStep:
    """A whole step as a CUDA graph, with the tensors that it reads and writes."""

    def __init__(
        self,
        step: LanguageModelStep,
        inputs: Tensor,
        targets: Tensor,
        state: State,
        trained: list[bool],
    ) -> None:
        self.trained = trained
        self.inputs, self.targets = inputs.clone(), targets.clone()
        self.state = [(h.clone(), c.clone()) for h, c in state]
        # A seed that is drawn on the host would be the same one at each replay.
        self.seeds = torch.zeros(_seeds_of(step), dtype=torch.int64, device=inputs.device)
        # So would a learning rate that is a number.
        self.groups = step.optimizer.param_groups
        self.lrs = [torch.zeros((), device=inputs.device) for _ in self.groups]
        for group in self.groups:
            group["capturable"] = True
        step.optimizer.zero_grad(set_to_none=True)
        self.parameters = trainable(step.optimizer)

        def body() -> LMLoss:
            with rng.seeds_from(iter(self.seeds.unbind()).__next__):
                loss, state = step.forward_backward(self.inputs, self.targets, self.state)
            numbers = [group["lr"] for group in self.groups]
            try:
                for group, lr in zip(self.groups, self.lrs, strict=True):
                    group["lr"] = lr
                step.update(loss)
            finally:
                for group, number in zip(self.groups, numbers, strict=True):
                    group["lr"] = number
            for mine, new in zip(self.state, state, strict=True):
                for tensor, value in zip(mine, new, strict=True):
                    tensor.copy_(value)
            return loss

        self.replay = record(body)
        self.grads = [p.grad for p in self.parameters]

    def __call__(
        self, inputs: Tensor, targets: Tensor, state: State | None
    ) -> tuple[LMLoss, State]:
        """Run a batch of the captured shape."""
        seeds = torch.stack([rng.draw_seed() for _ in range(len(self.seeds))])
        if self.seeds.device.type == "cuda":
            seeds = seeds.pin_memory()
        self.seeds.copy_(seeds, non_blocking=True)
        for group, lr in zip(self.groups, self.lrs, strict=True):
            lr.fill_(group["lr"])
        self.inputs.copy_(inputs, non_blocking=True)
        self.targets.copy_(targets, non_blocking=True)
        if state is not self.state:
            for index, mine in enumerate(self.state):
                for which, tensor in enumerate(mine):
                    if state is None:
                        tensor.zero_()
                    else:
                        tensor.copy_(state[index][which])
        # A step of another shape has put its own gradients there.
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad
        loss = self.replay()
        return LMLoss(*(part.clone() for part in loss)), self.state


def _seeds_of(step: LanguageModelStep) -> int:
    """Count the seeds that a step draws, by the dropouts that are on."""
    count = 0

    def counting() -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros((), dtype=torch.int64)

    tokens = torch.zeros(1, 1, dtype=torch.int64, device=step.device)
    with rng.seeds_from(counting), torch.no_grad():
        step.model.loss(tokens, tokens, alpha=step.alpha, beta=step.beta)
    return count


def record(body: Callable[[], LMLoss]) -> Callable[[], LMLoss]:
    """Capture a function in a CUDA graph and return its replay; the result stays in place.

    Args:
        body: reads and writes tensors that stay where they are.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = body()

    def replay() -> LMLoss:
        graph.replay()
        return result

    return replay


class Reading(NamedTuple):
    """What a step came to, on the host.

    Attributes:
        cross_entropy: in nats.
        regularisers: AR + TAR.
        lrs: learning rate of each parameter group.
        tokens: tokens trained on.
    """

    cross_entropy: float
    regularisers: float
    lrs: list[float]
    tokens: int


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
            tokens: tokens trained on.

        Raises:
            FloatingPointError: if a loss is not finite; the parameters are those before its step.
        """
        values = torch.stack([loss.cross_entropy, loss.activation + loss.temporal, loss.total])
        event = None
        if values.device.type == "cuda":
            host = torch.empty(3, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            values = host
        self._pending.append((event, values, lrs, tokens))
        yield from self._arrived(_AHEAD)

    def rest(self) -> Iterator[Reading]:
        """Wait for all steps and yield what is left.

        Raises:
            FloatingPointError: as `add`.
        """
        yield from self._arrived(0)

    def _arrived(self, ahead: int) -> Iterator[Reading]:
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
