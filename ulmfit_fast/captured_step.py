"""A training step of a language model as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ulmfit_fast.nn import LMLoss, resize_state
from ulmfit_fast.nn.state import State
from ulmfit_fast.seeds import draw_seed, seeds_from

if TYPE_CHECKING:
    from ulmfit_fast.lm_step import LanguageModelStep

__all__ = ["CapturedStep"]


class CapturedStep:
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
        lr = torch.zeros((), dtype=torch.float32, device=inputs.device)
        self.lrs = [lr.clone() for _ in self.groups]
        for group in self.groups:
            group["capturable"] = True
        step.optimizer.zero_grad(set_to_none=True)
        self.parameters = [p for p in step.model.parameters() if p.requires_grad]

        def body() -> LMLoss:
            with seeds_from(iter(self.seeds.unbind()).__next__):
                loss, state = step.forward_backward(self.inputs, self.targets, self.state)
            numbers = [group["lr"] for group in self.groups]
            try:
                for group, lr in zip(self.groups, self.lrs, strict=True):
                    group["lr"] = lr
                step.update(loss)
            finally:
                for group, number in zip(self.groups, numbers, strict=True):
                    group["lr"] = number
            _copy(self.state, state)
            return loss

        self.replay = record(body)
        self.grads = [p.grad for p in self.parameters]

    def __call__(
        self, inputs: Tensor, targets: Tensor, state: State | None
    ) -> tuple[LMLoss, State]:
        """Run a batch of the captured shape."""
        drawn = [int(draw_seed()) for _ in range(len(self.seeds))]
        seeds = torch.tensor(drawn, dtype=torch.int64, device="cpu")
        if self.seeds.device.type == "cuda":
            seeds = seeds.pin_memory()
        self.seeds.copy_(seeds, non_blocking=True)
        for group, lr in zip(self.groups, self.lrs, strict=True):
            lr.fill_(group["lr"])
        self.inputs.copy_(inputs, non_blocking=True)
        self.targets.copy_(targets, non_blocking=True)
        if state is None:
            torch._foreach_zero_([tensor for pair in self.state for tensor in pair])
        elif state is not self.state:
            # A batch of another size may have come in between.
            _copy(self.state, resize_state(state, inputs.shape[1]))
        # A step of another shape has put its own gradients there.
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad
        loss = self.replay()
        return LMLoss(*(part.clone() for part in loss)), self.state


def _copy(into: State, state: State) -> None:
    for mine, new in zip(into, state, strict=True):
        for tensor, value in zip(mine, new, strict=True):
            tensor.copy_(value)


def _seeds_of(step: LanguageModelStep) -> int:
    """Count the seeds that a step draws, by the dropouts that are on."""
    count = 0

    def counting() -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros((), dtype=torch.int64, device="cpu")

    tokens = torch.zeros(1, 1, dtype=torch.int64, device=step.device)
    with seeds_from(counting), torch.no_grad():
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
