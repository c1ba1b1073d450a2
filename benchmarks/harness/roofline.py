"""The least time a device could take: its measured ceilings against bytes and operations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from benchmarks.harness import machine
from benchmarks.harness.settings import Settings
from benchmarks.harness.timing import time_interleaved


class Cost(NamedTuple):
    """What a call cannot do without.

    Attributes:
        operations: multiplications and additions of its matrix products.
        moved: bytes read and written, each operand once, nothing between them.
        barriers: steps that wait for the step before them.
    """

    operations: float
    moved: float
    barriers: int

    def __add__(self, other: object) -> Cost:
        assert isinstance(other, Cost)
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


def layer_cost(
    input_size: int, hidden_size: int, batch_size: int, steps: int, itemsize: int, training: bool
) -> Cost:
    """Return the cost of one LSTM layer.

    Forward: parameters and input are read, the output is written. Backward: twice the operations;
    parameters, input and output are read again with the output's gradient, and the gradients of
    parameters and input are written. What lies between, gates and cells, could be computed again
    and counts nothing. The recurrence synchronizes once a step and pass.
    """
    weights = 4 * hidden_size * (input_size + hidden_size + 2) * itemsize
    ends = steps * batch_size * (input_size + hidden_size) * itemsize
    operations = 2.0 * steps * batch_size * 4 * hidden_size * (input_size + hidden_size)
    if not training:
        return Cost(operations, weights + ends, steps)
    return Cost(3 * operations, 3 * weights + 3 * ends, 2 * steps)


def stack_cost(
    widths: Sequence[int], batch_size: int, steps: int, itemsize: int, training: bool
) -> Cost:
    """Return the cost of layers of widths E, H, ..., one after the other."""
    total = Cost(0.0, 0.0, 0)
    for width_in, width_out in itertools.pairwise(widths):
        total += layer_cost(width_in, width_out, batch_size, steps, itemsize, training)
    return total


def decoder_cost(tokens: int, emb_size: int, vocab_size: int, itemsize: int) -> Cost:
    """Return the cost of a tied decoder with cross entropy, forward and backward.

    Three products; weight and input are read in both passes and their gradients written. The
    logits need never leave the chip.
    """
    operations = 3 * 2.0 * tokens * emb_size * vocab_size
    return Cost(operations, 3.0 * itemsize * emb_size * (vocab_size + tokens), 0)


def embedding_cost(tokens: int, emb_size: int, vocab_size: int) -> Cost:
    """Return the cost of a lookup in float32 and its gradient, which is dense.

    The rows are read and written, their gradient is read, and that of the weight is written.
    """
    return Cost(0.0, 4.0 * emb_size * (3 * tokens + vocab_size), 0)


def adam_cost(parameters: int) -> Cost:
    """Return the cost of an Adam step in float32: four reads and three writes a parameter."""
    return Cost(0.0, 7.0 * 4 * parameters, 0)


@dataclass
class Ceilings:
    """What a device does at most.

    Attributes:
        settings: of the run that measures them.
        copied: bytes read and written in a second by a large copy.
        barrier_us: microseconds of one barrier among all blocks of a launch; 0 on a CPU.
        rates: operations a second of a large matrix product, by dtype.
    """

    settings: Settings
    copied: float
    barrier_us: float
    rates: dict[torch.dtype, float] = field(default_factory=dict)

    def rate(self, dtype: torch.dtype) -> float:
        """Return the rate of a dtype, measured when it is first asked for."""
        if dtype not in self.rates:
            self.rates[dtype] = product_rate(self.settings, dtype)
        return self.rates[dtype]

    def floor_us(self, cost: Cost, dtype: torch.dtype) -> float | None:
        """Return the least time in microseconds.

        None for bfloat16 on a CPU that emulates it: its products take minutes to measure, and who
        computes in float32 is far below their floor.
        """
        if dtype == torch.bfloat16 and not self.settings.cuda and machine.why_no_bfloat16():
            return None
        return floor_us(cost, self.copied, self.rate(dtype), self.barrier_us)

    def __str__(self) -> str:
        rates = ", ".join(
            f"{str(dtype).removeprefix('torch.')} {rate / 1e9:,.0f} GFLOP/s"
            for dtype, rate in self.rates.items()
        )
        barrier = f", barrier {self.barrier_us:.2f} us" if self.barrier_us else ""
        return f"copy {self.copied / 1e9:,.1f} GB/s, {rates}{barrier}"


def floor_us(cost: Cost, copied: float, rate: float, barrier_us: float) -> float:
    """Return the least time in microseconds: the busier of memory and arithmetic, and the waiting.

    >>> floor_us(Cost(2e9, 1e6, 10), copied=1e9, rate=1e12, barrier_us=1.5)
    2015.0
    """
    return 1e6 * max(cost.moved / copied, cost.operations / rate) + cost.barriers * barrier_us


def ceilings(settings: Settings) -> Ceilings:
    """Return the device's ceilings, measured once a run."""
    if "ceilings" not in settings.measured:
        settings.measured["ceilings"] = measure(settings)
    found: Ceilings = settings.measured["ceilings"]
    return found


def measure(settings: Settings) -> Ceilings:
    """Measure the ceilings of the device."""
    # Triton is not on every machine with a CPU alone.
    from benchmarks.harness import barrier

    count = settings.sized(64 << 20, 512 << 20, 1 << 12)
    source = torch.rand(count // 4, device=settings.device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda turn: target.copy_(source), settings)
    waited = barrier.barrier_us(settings) if settings.gpu else 0.0
    found = Ceilings(settings, 2 * count / seconds, waited)
    found.rate(settings.dtype)
    return found


def product_rate(settings: Settings, dtype: torch.dtype) -> float:
    """Measure operations a second of a square product; float32 takes TF32, as nn.LSTM does.

    On a CPU it is the better one of PyTorch's product and ours: no floor is to lie above what runs.
    """
    size = settings.sized(2048, 8192, 16)
    a, b = (torch.randn(size, size, device=settings.device).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    if settings.cuda:
        torch.set_float32_matmul_precision("high")
    try:
        seconds = _seconds(lambda turn: a @ b, settings)
        if settings.device == "cpu":
            from ulmfit_fast.kernels.cpu.matmul import add_matmul  # noqa: TID251

            out = torch.empty_like(a)
            ours = _seconds(lambda turn: add_matmul(out, a, b, fresh=True), settings)
            seconds = min(seconds, ours)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2.0 * size**3 / seconds


def _seconds(step, settings: Settings) -> float:
    """Return the tenth percentile: a ceiling is what the device does undisturbed."""
    times, failed = time_interleaved({0: step}, repeats=settings.repeats, cuda=settings.cuda)
    if failed:
        raise failed[0]
    return times[0].p10 / 1e6
