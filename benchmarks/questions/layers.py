"""Groups of LSTM layers, checked against one truth and timed in turns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.compared import baselines, optional
from benchmarks.compared.baselines import TODAY, Implementation, Weights
from benchmarks.harness import check, roofline
from benchmarks.harness.measure import Entry, compare
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.timing import INPUTS, UNABLE

WEIGHT_P = 0.5
PASSES = ("forward", "training")
Make = Callable[[Sequence[Weights]], Implementation]


def compare_layers(
    settings: Settings,
    makers: Sequence[Make],
    *,
    question: str,
    widths: Sequence[int],
    batch_size: int,
    steps: int,
    passes: Sequence[str] = PASSES,
    baseline: str = TODAY,
    repeats: int | None = None,
) -> list[Row]:
    """Compare implementations of one stack of layers at one shape.

    Args:
        settings: of the run.
        makers: functions that make an implementation from the stack's parameters.
        question: of the rows.
        widths: E and the H of each layer.
        batch_size: B.
        steps: T.
        passes: "forward", "training" or both.
        baseline: name of the implementation that is the ratio's.
        repeats: samples, where the settings' are too many.
    """
    name = "->".join(map(str, widths))
    if settings.over(f"{question}: {name}, B={batch_size}, T={steps}"):
        return []
    settings.say(f" {name}, B={batch_size}, T={steps}")
    torch.manual_seed(0)
    weights = baselines.make_weights(widths, settings.device)
    if settings.share is not None:
        _compile(settings, makers, weights, batch_size)
        return []
    inputs = [torch.randn(steps, batch_size, widths[0]).to(settings.device) for _ in range(INPUTS)]
    grad = torch.randn(steps, batch_size, widths[-1]).to(settings.device)
    wanted = _Truths(settings, weights, inputs[0], grad)
    entries = []
    for make in makers:
        try:
            implementation = make(weights)
        except UNABLE as problem:
            settings.note(str(problem))
            continue
        for name in passes:
            cost = roofline.stack_cost(
                widths, batch_size, steps, implementation.dtype.itemsize, name == "training"
            )
            entries.append(
                Entry(
                    implementation.name,
                    name,
                    implementation.dtype,
                    step_of(implementation.run, implementation, inputs, grad, name),
                    functools.partial(wanted.error, implementation),
                    _replay(implementation, inputs, grad, name),
                    implementation.weight_p,
                    implementation.gate_p,
                    roofline.ceilings(settings).floor_us(cost, implementation.dtype),
                    steps * batch_size,
                )
            )
    shape = {
        "input_size": widths[0],
        "hidden_size": max(widths[1:]),
        "batch_size": batch_size,
        "steps": steps,
    }
    return compare(
        entries, settings, question=question, baseline=baseline, repeats=repeats, **shape
    )


def _compile(
    settings: Settings, makers: Sequence[Make], weights: Sequence[Weights], batch_size: int
) -> None:
    """Run each of this worker's kernels once, with and without a backward to come."""
    for make in makers:
        try:
            made = make(weights)
            sizes = frozenset(layer[1].shape[1] for layer in weights)
            drops = (bool(made.weight_p), bool(made.gate_p))
            if not made.kernels or not settings.share.claims(
                (made.name.split(",")[0], sizes, batch_size, made.dtype, drops)
            ):
                continue
            x = torch.randn(2, batch_size, weights[0][0].shape[1]).to(settings.device)
            grad = torch.randn(2, batch_size, weights[-1][1].shape[1]).to(settings.device)
            for passes in PASSES:
                step_of(made.run, made, [x], grad, passes)(0)
        except UNABLE:
            # The report itself will say so.
            continue


def step_of(
    run: Callable[[Tensor], Tensor],
    implementation: Implementation,
    inputs: Sequence[Tensor],
    grad: Tensor,
    passes: str,
) -> Callable[[int], object]:
    """Return a function of the turn that runs a forward, or a forward and backward."""
    own = [x.to(implementation.dtype).detach() for x in inputs]
    if passes == "forward":

        def forward(turn: int) -> None:
            with torch.no_grad(), implementation.within():
                run(own[turn % len(own)])

        return forward
    grad = grad.to(implementation.dtype)
    for x in own:
        x.requires_grad_()

    def training(turn: int) -> None:
        x = own[turn % len(own)]
        with implementation.within():
            torch.autograd.grad(run(x), [x, *implementation.parameters], grad)

    return training


def _replay(
    implementation: Implementation, inputs: Sequence[Tensor], grad: Tensor, passes: str
) -> Callable[[int], object] | None:
    if implementation.replays:
        return step_of(implementation.run, implementation, inputs, grad, passes)
    if implementation.name == baselines.REFERENCE:
        return None
    # A seed in the device's memory is read by the kernels; a training loop would write a new one.
    seed = torch.tensor(baselines.SEED, device=inputs[0].device)
    return step_of(lambda x: implementation.seeded(x, seed), implementation, inputs, grad, passes)


class _Truths:
    """The float64 results of a stack, one for each dtype and choice of dropouts."""

    def __init__(
        self, settings: Settings, weights: Sequence[Weights], x: Tensor, grad: Tensor
    ) -> None:
        # float64 on a CPU takes its time, and its rows and first steps show what all would.
        steps, rows = (70, None) if settings.cuda else (4, 8)
        self.weights = weights
        self.x, self.grad = x[:steps, :rows].contiguous(), grad[:steps, :rows].contiguous()
        self.known: dict[tuple[object, ...], list[Tensor]] = {}

    def error(self, implementation: Implementation) -> float:
        """Return the largest relative error of outputs and gradients."""
        got = baselines.results(implementation, self.x, self.grad)
        key = (implementation.dtype, implementation.weight_p, implementation.gate_p)
        if key not in self.known:
            self.known[key] = baselines.truth(implementation, self.weights, self.x, self.grad)
        return check.error_of(got, self.known[key])


def ours(settings: Settings, backend: str, dtype: torch.dtype | None = None, **drops) -> Make:
    """Return the maker of our layer on a backend; drops are weight_p and gate_p."""
    drops = drops or {"weight_p": WEIGHT_P}
    return lambda weights: baselines.ours(weights, backend, dtype or settings.dtype, **drops)


def today(settings: Settings, dtype: torch.dtype | None = None) -> Make:
    """Return the maker of weight-drop as it is written today."""
    return lambda weights: baselines.weight_dropped(weights, dtype or settings.dtype, WEIGHT_P)


def plain(settings: Settings, dtype: torch.dtype | None = None) -> Make:
    """Return the maker of PyTorch's LSTM without dropout."""
    return lambda weights: baselines.plain(weights, dtype or settings.dtype)


def others(settings: Settings) -> list[Make]:
    """Return the makers of other packages' layers; each raises when its package is missing."""
    if not settings.gpu:
        return [functools.partial(optional.fastai_layer, weight_p=WEIGHT_P)]
    dtype = settings.dtype
    return [
        functools.partial(optional.fastai_layer, weight_p=WEIGHT_P, dtype=dtype),
        functools.partial(optional.flashrnn_layer, dtype=dtype),
        functools.partial(optional.torchrl_layer, dtype=dtype),
    ]
