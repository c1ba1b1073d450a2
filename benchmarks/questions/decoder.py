"""How fast is the tied decoder with its cross entropy, and how much memory does it take?

The plain way holds all logits; PyTorch's own `linear_cross_entropy` cuts them into chunks where it
has that option (2.12), and so does ours. On a CPU the highest use is that of one step in a process
of its own, at 60,008 words and 4,480 tokens, whose time is that one step's.

    python -m benchmarks.questions.decoder
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import check, memory, roofline
from benchmarks.harness.cli import run_question
from benchmarks.harness.machine import ROOT
from benchmarks.harness.measure import Entry, compare
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.show import line
from ulmfit_fast.functional.cross_entropy import linear_cross_entropy

QUESTION = "decoder"
PLAIN, CHUNKED, OURS = "F.linear, F.cross_entropy", "F.linear_cross_entropy", "ulmfit_fast"
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def losses() -> dict[str, Loss]:
    """Return what is compared, by name: mean losses of (input, weight, bias, targets)."""
    found: dict[str, Loss] = {
        PLAIN: lambda x, w, b, t: F.cross_entropy(F.linear(x, w, b).float(), t),
        OURS: linear_cross_entropy,
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        found[CHUNKED] = lambda x, w, b, t: F.linear_cross_entropy(
            x, w, t, linear_bias=b, options=options
        )
    return found


def problem(settings: Settings, tokens: int, emb_size: int, vocab_size: int) -> list[Tensor]:
    """Draw input, weight, bias and targets."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, emb_size, generator=drawn)
    weight = 0.05 * torch.randn(vocab_size, emb_size, generator=drawn)
    targets = torch.randint(vocab_size, (tokens,), generator=drawn)
    values = [x, weight, torch.zeros(vocab_size)]
    placed = [v.to(settings.device, settings.dtype).requires_grad_() for v in values]
    return [*placed, targets.to(settings.device)]


def gradients(loss: Loss, tensors: list[Tensor]) -> list[Tensor]:
    """Return the loss and its three gradients."""
    value = loss(*tensors)
    return [value.detach().reshape(1), *torch.autograd.grad(value, tensors[:3])]


def run(settings: Settings) -> list[Row]:
    """Time each way, and measure its memory."""
    if settings.over(QUESTION):
        return []
    emb_size, vocab_size = settings.sized((400, 15_008), (400, 60_008), (6, 40))
    batch_size, steps = settings.sized((16, 70), (64, 70), (3, 5))
    settings.say(f" V={vocab_size:,}, {batch_size * steps:,} tokens")
    tensors = problem(settings, batch_size * steps, emb_size, vocab_size)
    cost = roofline.decoder_cost(batch_size * steps, emb_size, vocab_size, settings.dtype.itemsize)
    entries = [
        Entry(
            name,
            "training",
            settings.dtype,
            lambda turn, loss=loss: gradients(loss, tensors),
            lambda loss=loss: _error(loss, tensors),
            floor_us=roofline.ceilings(settings).floor_us(cost, settings.dtype),
            tokens=batch_size * steps,
        )
        for name, loss in losses().items()
    ]
    shape = {
        "input_size": emb_size,
        "vocab_size": vocab_size,
        "batch_size": batch_size,
        "steps": steps,
    }
    rows = compare(entries, settings, question=QUESTION, baseline=PLAIN, **shape)
    return rows if settings.gpu else rows + _in_processes(settings)


def _error(loss: Loss, tensors: list[Tensor]) -> float:
    truth = [t.detach().double().requires_grad_() for t in tensors[:3]]
    wanted = gradients(losses()[PLAIN], [*truth, tensors[3]])
    return check.error_of(gradients(loss, tensors), wanted)


def _in_processes(settings: Settings) -> list[Row]:
    """Measure time and memory of one large step each, on a CPU."""
    emb_size, vocab_size = settings.sized((400, 60_008), (400, 60_008), (6, 40))
    batch_size, steps = settings.sized((64, 70), (64, 70), (3, 5))
    settings.say(f" V={vocab_size:,}, {batch_size * steps:,} tokens, one step in a process each")
    rows: list[Row] = []
    for name in (PLAIN, OURS):
        sizes = (batch_size * steps, emb_size, vocab_size)
        command = [sys.executable, "-m", "benchmarks.questions.decoder", "--one", name]
        result = subprocess.run(
            [*command, *map(str, sizes)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if result.returncode:
            settings.note(f"{name}, {QUESTION}: {result.stderr.strip().splitlines()[-1]}")
            continue
        peak, seconds = json.loads(result.stdout)
        first = rows[0].median_us if rows else 1e6 * seconds
        row = settings.row(
            question=QUESTION,
            implementation=name,
            passes="training",
            dtype="float32",
            input_size=emb_size,
            vocab_size=vocab_size,
            batch_size=batch_size,
            steps=steps,
            baseline=PLAIN,
            **dict.fromkeys(("median_us", "p10_us", "p90_us"), 1e6 * seconds),
            times_as_fast=None if first is None else round(first / (1e6 * seconds), 3),
            peak_bytes=peak,
            repeats=1,
        )
        rows.append(row)
        settings.say(line(row))
    return rows


def _one_step(name: str, *sizes: str) -> None:
    settings, loss = Settings(), losses()[name]
    # What a first call loads is not the call's memory.
    gradients(loss, problem(settings, 3, 4, 5))
    tensors = problem(settings, *map(int, sizes))
    start = time.perf_counter()
    peak = memory.peak_on_cpu(lambda: gradients(loss, tensors))
    print(json.dumps([peak, time.perf_counter() - start]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _one_step(*sys.argv[2:])
    else:
        run_question(run, __doc__)
