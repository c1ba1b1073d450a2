"""Kill a training run with SIGKILL at random moments until it is through, and compare its losses.

    python tests/kill_loop.py DIRECTORY [SEED]

Prints the number of kills, and whether losses and weights are those of a run that was let be.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import ulmfit_fast as uf

TEXTS = [f"the {a} film had {b} scenes" for a in ("fine", "dull", "long") for b in ("two", "no")]
MOST_KILLS = 300


def train(directory: Path, **options: object) -> None:
    model = uf.ULMFiT(
        emb_size=24, hidden_size=48, min_freq=1, checkpoint_dir=directory, progress=False
    )
    run = uf.Run(directory, checkpoint_steps=3, **options)
    model.pretrain(TEXTS * 100, epochs=3, batch_size=8, bptt=12, valid_share=0.1, run=run)


def killed(directory: Path, reports: int, delay: float) -> bool:
    """Go on with the run in a process of its own; kill it some time after so many new reports."""
    metrics = directory / "metrics.jsonl"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(directory, resume=True)
            code = 0
        finally:
            os._exit(code)
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    seen = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        now = metrics.stat().st_mtime_ns if metrics.exists() else 0
        seen, before = seen + (now != before), now
        if seen >= reports:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1] == signal.SIGKILL
        time.sleep(0.0005)
    return False


def losses(directory: Path) -> list[float]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [report["loss"] for report in map(json.loads, lines)]


def main() -> None:
    directory = Path(sys.argv[1])
    draw = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    # A forked process has none of the threads that PyTorch would wait for.
    torch.set_num_threads(1)
    kills = 0
    while kills < MOST_KILLS and killed(
        directory / "killed", draw.randint(2, 9), draw.uniform(0.0, 0.01)
    ):
        kills += 1
    child = os.fork()
    if child == 0:
        train(directory / "whole")
        os._exit(0)
    os.waitpid(child, 0)
    weights = [
        uf.ULMFiT.load(directory / name, progress=False).language_model.state_dict()
        for name in ("killed", "whole")
    ]
    equal = losses(directory / "killed") == losses(directory / "whole")
    equal &= all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # Nor is anything left behind of what was being written.
    left = [p.name for p in (directory / "killed").rglob(".*")]
    print(json.dumps([kills, equal and not left]))


if __name__ == "__main__":
    main()
