"""How fast is one LSTM layer with weight-drop on a GPU, beside what people write today?

The baselines are `torch.nn.LSTM` as it is and `F.dropout` on the recurrent weight followed by it,
each launched eagerly and replayed from a CUDA graph, beside both forms of the kernels. Every
implementation is compared with nn.LSTM on the same dropped weight before it is timed; one that
fails has no times.

    python -m benchmarks.bench_lstm_gpu --out benchmarks/results/lstm_gpu.csv

`--rehearse` runs all of it at tiny shapes without a GPU, the kernels in Triton's interpreter
(TRITON_INTERPRET=1).
"""

from __future__ import annotations

import argparse
import csv
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

import ulmfit_fast as uf

WEIGHT_P = 0.5
# Input size, hidden size, batch size, dtype: the three layers of an AWD-LSTM, then what varies.
SHAPES = [
    (1152, 1152, 64, torch.bfloat16),
    (400, 1152, 64, torch.bfloat16),
    (1152, 400, 64, torch.bfloat16),
    (1152, 1152, 128, torch.bfloat16),
    (1152, 1152, 64, torch.float16),
    (1152, 1152, 64, torch.float32),
]
TINY_SHAPES = [(8, 16, 3, torch.float16), (8, 32, 3, torch.float32)]
BASELINE = "F.dropout + nn.LSTM"
KERNELS = ("triton-persistent", "triton-stepwise")
# Largest difference from nn.LSTM, as a share of its largest value.
TOLERANCES = {torch.float32: 2e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass
class Row:
    """One implementation at one shape; the order of the fields is that of the CSV."""

    implementation: str
    launched: str
    passes: str
    input_size: int
    hidden_size: int
    batch_size: int
    steps: int
    dtype: str
    weight_p: float
    error: float
    median_us: float
    p10_us: float
    p90_us: float
    us_per_step: float
    times_as_fast: float
    device: str
    driver: str
    torch: str
    triton: str
    cudnn: str
    commit: str


def implementations(layer: uf.LSTM) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return everything that is timed, on the same parameters."""

    def fused(x: Tensor, w_hh: Tensor) -> Tensor:
        zeros = x.new_zeros(1, x.shape[1], layer.hidden_size)
        weights = [layer.weight_ih_l0, w_hh, layer.bias_ih_l0, layer.bias_hh_l0]
        output, _, _ = torch.lstm(x, [zeros, zeros], weights, True, 1, 0.0, True, False, False)
        return output

    def kernel(name: str) -> Callable[[Tensor], Tensor]:
        seed = torch.tensor(5, device=layer.weight_hh_l0.device)

        def run(x: Tensor) -> Tensor:
            layer.backend = name
            output: Tensor = layer(x, seed=seed)[0]
            return output

        return run

    return {
        BASELINE: lambda x: fused(x, F.dropout(layer.weight_hh_l0, WEIGHT_P)),
        "nn.LSTM": lambda x: fused(x, layer.weight_hh_l0),
        **{name: kernel(name) for name in KERNELS},
    }


def error_of(name: str, run: Callable[[Tensor], Tensor], layer: uf.LSTM, x: Tensor) -> float:
    """Return the largest difference from nn.LSTM with the same mask, forward and gradient."""
    if name not in KERNELS:
        return 0.0
    mask = uf.dropout_masks(5, hidden_size=layer.hidden_size, weight_p=WEIGHT_P, dtype=x.dtype)
    dropped = layer.weight_hh_l0 * mask.weight.to(x.device)
    zeros = x.new_zeros(1, x.shape[1], layer.hidden_size)
    weights = [layer.weight_ih_l0, dropped, layer.bias_ih_l0, layer.bias_hh_l0]
    expected, _, _ = torch.lstm(x, [zeros, zeros], weights, True, 1, 0.0, True, False, False)
    errors = []
    results = []
    for output in (expected, run(x)):
        grads = torch.autograd.grad(output.float().square().sum(), [x, layer.weight_hh_l0])
        results.append([output.detach(), *grads])
    for want, got in zip(*results, strict=True):
        scale = want.float().abs().max().clamp_min(1e-30)
        errors.append(float((want.float() - got.float()).abs().max() / scale))
    return max(errors)


def step_of(run: Callable[[Tensor], Tensor], x: Tensor, layer: uf.LSTM, passes: str):
    """Return a function without arguments that runs one forward, or forward and backward."""
    if passes == "forward":

        def forward() -> None:
            with torch.no_grad():
                run(x)

        return forward
    grad = torch.randn(x.shape[0], x.shape[1], layer.hidden_size).to(x)
    inputs = [x, *layer.parameters()]

    def training() -> None:
        torch.autograd.grad(run(x), inputs, grad)

    return training


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return the replay of a CUDA graph of the step."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def microseconds(step: Callable[[], None], repeats: int, cuda: bool) -> list[float]:
    """Time a step, after a warm-up of 50 ms that lets the clocks rise."""
    start = time.perf_counter()
    while True:
        step()
        if cuda:
            torch.cuda.synchronize()
        if time.perf_counter() - start > 0.05:
            break
    if not cuda:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            times.append(1e6 * (time.perf_counter() - start))
        return sorted(times)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for before, after in events:
        before.record()
        step()
        after.record()
    torch.cuda.synchronize()
    return sorted(1000 * before.elapsed_time(after) for before, after in events)


def measure(shape: tuple, steps: int, repeats: int, device: str, facts: dict) -> list[Row]:
    """Check and time every implementation at one shape."""
    input_size, hidden_size, batch_size, dtype = shape
    torch.manual_seed(0)
    layer = uf.LSTM(input_size, hidden_size, weight_p=WEIGHT_P, device=device, dtype=dtype)
    x = torch.randn(steps, batch_size, input_size).to(device, dtype).requires_grad_()
    rows = []
    for name, run in implementations(layer).items():
        try:
            error = error_of(name, run, layer, x)
        except RuntimeError as problem:
            print(f"{name:20} {shape}: {problem}", flush=True)
            continue
        if not error <= TOLERANCES[dtype]:
            print(f"{name:20} {shape}: WRONG by {error:.2e}, not timed", flush=True)
            continue
        for passes in ("forward", "training"):
            for launched in ("eager", "graph") if device == "cuda" else ("eager",):
                step = step_of(run, x, layer, passes)
                if launched == "graph":
                    step = captured(step)
                times = microseconds(step, repeats, device == "cuda")
                median = statistics.median(times)
                same = [
                    row.median_us
                    for row in rows
                    if (row.implementation, row.launched, row.passes)
                    == (BASELINE, launched, passes)
                ]
                row = Row(
                    implementation=name,
                    launched=launched,
                    passes=passes,
                    input_size=input_size,
                    hidden_size=hidden_size,
                    batch_size=batch_size,
                    steps=steps,
                    dtype=str(dtype).removeprefix("torch."),
                    weight_p=0.0 if name == "nn.LSTM" else WEIGHT_P,
                    error=float(f"{error:.3g}"),
                    median_us=round(median, 1),
                    p10_us=round(times[len(times) // 10], 1),
                    p90_us=round(times[-1 - len(times) // 10], 1),
                    us_per_step=round(median / steps, 3),
                    times_as_fast=round(same[0] / median, 3) if same else 1.0,
                    **facts,
                )
                rows.append(row)
                print(format_row(row), flush=True)
    return rows


def format_row(row: Row) -> str:
    """Write one row for the terminal."""
    return (
        f"{row.implementation:20} {row.launched:5} {row.passes:8} {row.input_size:>5}->"
        f"{row.hidden_size:<5} B={row.batch_size:<4} {row.dtype:9} {row.median_us:>10.1f} us "
        f"{row.us_per_step:>8.3f} us/step {row.times_as_fast:>6.2f}x"
    )


def facts_of(device: str) -> dict[str, str]:
    """Return what a number depends on besides the code."""
    driver = ""
    if device == "cuda" and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        driver = result.stdout.split("\n")[0].strip()
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": str(torch.backends.cudnn.version()) if device == "cuda" else "",
        "commit": commit or "unknown",
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure every shape, print the rows and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    device = "cpu" if options.rehearse else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --rehearse runs without one")
    shapes = TINY_SHAPES if options.rehearse else SHAPES
    steps, repeats = (2, 2) if options.rehearse else (options.steps, options.repeats)
    facts, rows = facts_of(device), []
    for shape in shapes:
        rows += measure(shape, steps, repeats, device, facts)
        if options.out is not None:
            with options.out.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Row)])
                writer.writeheader()
                writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
