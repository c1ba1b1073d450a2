"""Is a training step of the eager LSTM with weight-drop faster than what people write today?

The baseline is `F.dropout` on the recurrent weight, then PyTorch's own fused LSTM: the same layer,
the same probability, the same shapes. Both take turns in one process, and the ratio of the medians
is what counts.

    python -m benchmarks.bench_weight_drop --out benchmarks/results/weight_drop_cpu.csv
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import ulmfit_fast as uf

STEPS, WIDTH, WEIGHT_P = 70, 1152, 0.5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Row:
    """One shape, one backend against the baseline; the order of the fields is that of the CSV."""

    backend: str
    dtype: str
    batch_size: int
    steps: int
    hidden_size: int
    weight_p: float
    median_ms: float
    baseline_ms: float
    ratio: float
    repeats: int
    processor: str
    cores: int
    threads: int
    torch: str
    python: str
    commit: str


def baseline(layer: uf.LSTM) -> Callable[[Tensor], Tensor]:
    """Return weight-drop as it is written without this package, on the same parameters."""

    def run(x: Tensor) -> Tensor:
        dropped = F.dropout(layer.weight_hh_l0, WEIGHT_P)
        zeros = x.new_zeros(1, x.shape[1], layer.hidden_size)
        weights = [layer.weight_ih_l0, dropped, layer.bias_ih_l0, layer.bias_hh_l0]
        output, _, _ = torch.lstm(x, [zeros, zeros], weights, True, 1, 0.0, True, False, False)
        return output

    return run


def seconds(function: Callable[[Tensor], Tensor], x: Tensor, layer: uf.LSTM) -> float:
    """Time one forward and backward."""
    layer.zero_grad()
    start = time.perf_counter()
    function(x).float().square().mean().backward()
    return time.perf_counter() - start


def check(layer: uf.LSTM, x: Tensor) -> None:
    """Refuse to time a layer that does not compute what the baseline computes, masks included."""
    seed = 11
    mask = uf.dropout_masks(seed, hidden_size=WIDTH, weight_p=WEIGHT_P, dtype=x.dtype).weight
    zeros = x.new_zeros(1, x.shape[1], WIDTH)
    weights = [layer.weight_ih_l0, layer.weight_hh_l0 * mask, layer.bias_ih_l0, layer.bias_hh_l0]
    with torch.no_grad():
        expected, _, _ = torch.lstm(x, [zeros, zeros], weights, True, 1, 0.0, True, False, False)
        actual, _ = layer(x, seed=seed)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 3e-2}[x.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def measure(backend: str, dtype: str, batch_size: int, repeats: int) -> Row:
    """Let one backend and the baseline take turns at one shape."""
    torch.manual_seed(0)
    layer = uf.LSTM(WIDTH, WIDTH, weight_p=WEIGHT_P, backend=backend, dtype=DTYPES[dtype])
    inputs = [
        torch.randn(STEPS, batch_size, WIDTH).to(DTYPES[dtype]).requires_grad_() for _ in range(2)
    ]
    check(layer, inputs[0].detach()[:4])

    def ours(x: Tensor) -> Tensor:
        output: Tensor = layer(x)[0]
        return output

    theirs = baseline(layer)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(repeats + 1):
        x = inputs[turn % len(inputs)]
        pair = {"ours": seconds(ours, x, layer), "theirs": seconds(theirs, x, layer)}
        if turn > 0:  # the first turn warms up
            for name, value in pair.items():
                times[name].append(value)
    median, base = (1000 * statistics.median(times[name]) for name in ("ours", "theirs"))
    return Row(
        backend=backend,
        dtype=dtype,
        batch_size=batch_size,
        steps=STEPS,
        hidden_size=WIDTH,
        weight_p=WEIGHT_P,
        median_ms=round(median, 1),
        baseline_ms=round(base, 1),
        ratio=round(base / median, 3),
        repeats=repeats,
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        commit=_commit(),
    )


def read_rows(path: Path) -> list[Row]:
    """Read what a run wrote."""
    kinds = {field.name: field.type for field in fields(Row)}
    convert = {"int": int, "float": float, "str": str}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(**{name: convert[str(kinds[name])](value) for name, value in record.items()})
            for record in csv.DictReader(file)
        ]


def format_table(rows: list[Row]) -> str:
    """Write the rows as the README shows them."""
    lines = [
        "| backend | dtype    | batch | forward + backward | F.dropout + nn.LSTM | times as fast |",
        "| :------ | :------- | ----: | -----------------: | ------------------: | ------------: |",
    ]
    for row in rows:
        lines.append(
            f"| {row.backend:<7} | {row.dtype:<8} | {row.batch_size:>5} | "
            f"{row.median_ms:>15,.0f} ms | {row.baseline_ms:>16,.0f} ms | {row.ratio:>13.2f} |"
        )
    return "\n".join(lines)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"


def main() -> None:
    """Measure every shape, print the rows and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--half-repeats", type=int, default=1)
    parser.add_argument("--backends", nargs="+", default=["eager", "torch"])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16, 64])
    options = parser.parse_args()
    rows = []
    for dtype in options.dtypes:
        for batch_size in options.batch_sizes:
            for backend in options.backends if dtype == "float32" else ["eager"]:
                # Half precision takes the baseline most of a minute a step on some processors.
                repeats = options.repeats if dtype == "float32" else options.half_repeats
                row = measure(backend, dtype, batch_size, repeats)
                rows.append(row)
                print(format_table(rows).splitlines()[-1], flush=True)
    if options.out is not None:
        with options.out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
