"""How much faster do several processes train a language model than one?

    python -m benchmarks.process_scaling

`torchrun -m ulmfit_fast pretrain` runs as a user would start it, with 1, 2, ... processes of one
thread each, up to a core a process, and in turn, several times over. Each process has the same
batch of its own (weak scaling), so n processes have n times the tokens to a step. What is compared
is `tokens_per_second` of `metrics.jsonl`, all processes together, without the first steps; the
efficiency is the median's share of n times that of one process. On a CPU the processes share
memory bandwidth, caches and, where it has one, the clock's turbo: what they lose to those is in the
efficiency beside the cost of exchanging gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.harness import machine
from benchmarks.harness.rows import RESULTS, write_records

STEPS, WARM_UP = 30, 6
SIZES = {"emb-size": 200, "hidden-size": 400, "num-layers": 2, "batch-size": 16, "bptt": 35}


@dataclass(frozen=True)
class Scaling:
    """The speed of one number of processes; the order of the fields is that of the CSV.

    Attributes:
        processes: that trained together, with a thread each.
        emb_size: E of the language model, so are hidden_size, num_layers and vocab_size.
        hidden_size: see emb_size.
        num_layers: see emb_size.
        vocab_size: see emb_size.
        batch_size: rows of a batch of one process.
        bptt: tokens of a row.
        tokens_per_second: of all processes together, the median over steps and runs.
        p10: tenth percentile.
        p90: ninetieth percentile.
        times_as_fast: as one process.
        efficiency: times_as_fast over the number of processes.
        runs: how often they were started.
        steps: behind the median.
    """

    processes: int
    emb_size: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    batch_size: int
    bptt: int
    tokens_per_second: float
    p10: float
    p90: float
    times_as_fast: float
    efficiency: float
    runs: int
    steps: int


def write_text(path: Path, tokens: int, words: int, seed: int = 0) -> None:
    """Write lines of drawn words, the first ones more frequent, each of them at least once."""
    draw = random.Random(seed)
    names = [f"w{number}" for number in range(words)]
    weights = [1 / (rank + 10) for rank in range(words)]
    drawn = draw.choices(names, weights, k=tokens)
    drawn[:words] = names
    lines = (" ".join(drawn[start : start + 100]) for start in range(0, tokens, 100))
    path.write_text("\n".join(lines), encoding="utf-8")


def speeds(text: Path, out: Path, processes: int, sizes: dict[str, int]) -> list[float]:
    """Train for an epoch, and return the tokens a second of each step after the warm-up.

    Args:
        text: to train on.
        out: directory that is not there yet.
        processes: how many.
        sizes: options of `pretrain`.

    Raises:
        RuntimeError: if training fails.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "ulmfit_fast", "pretrain"]
    command += ["--text", str(text), "--out", str(out), "--epochs", "1", "--min-freq", "1"]
    command += ["--max-vocab", "60000", "--device", "cpu", "--preset", "paper"]
    for name, value in sizes.items():
        command += [f"--{name}", str(value)]
    # One thread a process, so that a process more is a core more; no name to look up.
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run(
        command, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        # The launcher's traceback, at the end, is the longer the newer Python is.
        raise RuntimeError(f"{processes} processes failed: {ended.stderr[-20_000:]}")
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    reports = [json.loads(line) for line in lines]
    return [r["tokens_per_second"] for r in reports if "tokens_per_second" in r][WARM_UP:]


def measure(
    counts: Sequence[int],
    runs: int,
    *,
    steps: int = STEPS,
    words: int = 6_000,
    sizes: dict[str, int] = SIZES,
) -> list[Scaling]:
    """Measure each number of processes, in turn, and return a row for each.

    Args:
        counts: numbers of processes, 1 the first.
        runs: how often each is started.
        steps: of each run.
        words: of the vocabulary.
        sizes: options of `pretrain`.
    """
    found: dict[int, list[float]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs):
            for count in counts:
                text, out = Path(folder, f"{count}.txt"), Path(folder, f"{count}-{run}")
                tokens = count * sizes["batch-size"] * sizes["bptt"] * (steps + 1)
                write_text(text, max(tokens, words), words)
                found[count] += speeds(text, out, count, sizes)
                print(f" {count} process(es): {statistics.median(found[count]):,.0f} tokens/s")
    one = statistics.median(found[counts[0]])
    rows = []
    for count, values in found.items():
        cuts = statistics.quantiles(values, n=10)
        times = statistics.median(values) / one
        rows.append(
            Scaling(
                count,
                sizes["emb-size"],
                sizes["hidden-size"],
                sizes["num-layers"],
                words,
                sizes["batch-size"],
                sizes["bptt"],
                round(statistics.median(values), 1),
                round(cuts[0], 1),
                round(cuts[-1], 1),
                round(times, 3),
                round(times / count, 3),
                runs,
                len(values),
            )
        )
    return rows


def write(path: Path, rows: Sequence[Scaling]) -> None:
    """Write rows to a CSV file, with what they depend on."""
    facts = {**machine.facts("cpu"), "threads": 1}
    names = [*(field.name for field in fields(Scaling)), *facts]
    write_records(path, names, ({**asdict(each), **facts} for each in rows))


def main() -> None:
    """Measure, write the CSV and print the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    cores = os.cpu_count() or 1
    parser.add_argument("--processes", type=int, default=min(8, cores), help="at most; a core each")
    parser.add_argument("--runs", type=int, default=3, help="of each number of processes")
    parser.add_argument("--out", type=Path, default=RESULTS / "process_scaling_cpu.csv")
    options = parser.parse_args()
    if options.processes < 2:
        parser.error(f"--processes is {options.processes}, expected at least 2 to compare with 1")
    counts = [2**n for n in range(options.processes.bit_length()) if 2**n <= options.processes]
    rows = measure(counts, options.runs)
    write(options.out, rows)
    for row in rows:
        print(
            f"{row.processes} process(es): {row.tokens_per_second:,.0f} tokens/s, "
            f"{row.times_as_fast:.2f} x one, efficiency {row.efficiency:.0%}"
        )


if __name__ == "__main__":
    main()
