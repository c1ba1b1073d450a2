"""How much memory does a layer take, and how much does its forward keep for the backward?

What is kept is counted as allocated. The highest use on a CPU counts pages that were written to, so
it can be the smaller number where a workspace is not filled.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch

from benchmarks.compared import baselines
from benchmarks.compared.baselines import KERNELS, TODAY
from benchmarks.harness import memory
from benchmarks.harness.cli import run_question
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.show import line
from benchmarks.harness.timing import UNABLE
from benchmarks.questions.layers import Make, ours, plain, step_of, today

QUESTION = "memory"


def makers(settings: Settings) -> dict[str, Make]:
    """Return what is compared, by name."""
    names = KERNELS if settings.gpu else ("auto", "eager", "reference")
    found = {TODAY: today(settings), baselines.PLAIN: plain(settings)}
    return {**found, **{f"ulmfit_fast {name}": ours(settings, name) for name in names}}


def steps_of(
    name: str, input_size: int, hidden_size: int, batch_size: int, steps: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a training step on the CPU, and one of the same kind on a single token."""
    make = makers(Settings())[name]
    weights = baselines.make_weights((input_size, hidden_size), "cpu")
    implementation = make(weights)

    def step(rows: int, times: int) -> Callable[[], object]:
        x, grad = torch.randn(times, rows, input_size), torch.randn(times, rows, hidden_size)
        run = step_of(implementation.run, implementation, [x], grad, "training")
        return lambda: run(0)

    return step(batch_size, steps), step(1, 1)


def run(settings: Settings) -> list[Row]:
    """Measure each implementation at one shape."""
    if settings.over(QUESTION):
        return []
    input_size, hidden_size = settings.sized((400, 1152), (1152, 1152), (6, 16))
    batch_size, steps = settings.sized((64, 70), (64, 70), (3, 3))
    settings.say(f" {input_size}->{hidden_size}, B={batch_size}, T={steps}")
    weights = baselines.make_weights((input_size, hidden_size), settings.device)
    x = torch.randn(steps, batch_size, input_size).to(settings.device, settings.dtype)
    grad = torch.randn(steps, batch_size, hidden_size).to(settings.device)
    rows = []
    for name, make in makers(settings).items():
        try:
            implementation = make(weights)
            start = x.detach().requires_grad_()
            known = [start, *implementation.parameters]
            saved = memory.saved_bytes(lambda: implementation.run(start), known)  # noqa: B023
            step = step_of(implementation.run, implementation, [x], grad, "training")
            if settings.cuda:
                step(0)
                peak = memory.peak_on_cuda(lambda: step(0))  # noqa: B023
            elif settings.gpu:
                peak = None
            else:
                sizes = (input_size, hidden_size, batch_size, steps)
                peak = memory.peak_of_process(name, *sizes)
        except UNABLE as problem:
            settings.note(f"{name}, {QUESTION}: {problem}")
            continue
        row = settings.row(
            question=QUESTION,
            implementation=name,
            passes="training",
            input_size=input_size,
            hidden_size=hidden_size,
            batch_size=batch_size,
            steps=steps,
            dtype=str(implementation.dtype).removeprefix("torch."),
            weight_p=implementation.weight_p,
            baseline=TODAY,
            peak_bytes=peak,
            saved_bytes=saved,
        )
        rows.append(row)
        settings.say(line(row))
    return rows


def _one_step(name: str, *sizes: str) -> None:
    step, small = steps_of(name, *map(int, sizes))
    # What a first call loads is not the call's memory.
    small()
    print(json.dumps(memory.peak_on_cpu(step)))


if __name__ == "__main__":
    if "--one" in sys.argv:
        _one_step(*sys.argv[2:])
    else:
        run_question(run, __doc__)
