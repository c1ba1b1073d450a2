"""A training step of a language model as a CUDA graph."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ulmfit_fast.nn import LMLoss, resize_state
from ulmfit_fast.nn.state import State
from ulmfit_fast.system.seeds import draw_seed, seeds_from

if TYPE_CHECKING:
    from ulmfit_fast.training.lm_step import LanguageModelStep

__all__ = ["CapturedStep"]


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
        self.places: list[int] = []

    @property
    def step(self) -> LanguageModelStep:
        """The step, which calls this alone."""
        step = self._step()
        assert step is not None
        return step

    def is_of(self, trained: list[bool]) -> bool:
        """Say whether a graph of these tensors and groups, or one to come, trains what is there.

        Args:
            trained: of each parameter, whether it requires a gradient.
        """
        groups = self.step.optimizer.param_groups
        # load_state_dict leaves groups and a state of its own behind.
        same = groups is self.groups and len(groups) == len(self.lrs) and trained == self.trained
        return same and (self.replay is None or self.places == self._places())

    def _places(self) -> list[int]:
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

    def _first(self) -> LMLoss:
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
        self.places = self._places()
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
            return self._first(), self.state
        if self.replay is None:
            self.replay = self._capture(self.seeds)
        self._refuse_other_numbers()
        if len(self.seeds):
            seeds = torch.stack([draw_seed() for _ in range(len(self.seeds))])
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
