"""Kill a training run with SIGKILL at random moments until it is through, and compare its losses.

    python tests/helpers/kill_loop.py DIRECTORY [--seed N] [--threads N] [--epochs N] [--loaded]

Prints the number of kills, and whether losses and weights are those of runs that were let be, of
which there are two: they have to equal each other as well. `--loaded` keeps a core busy with
something else meanwhile.
"""

import argparse
import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # what an optimizer imports, once for all children

import ulmfit_fast as uf

# So many words that the decoder's products are worth several threads.
_DRAW = random.Random(0)
TEXTS = [" ".join(f"w{_DRAW.randrange(1500)}" for _ in range(7)) for _ in range(600)]
MOST_KILLS = 300


def train(directory: Path, threads: int, epochs: int, **options: object) -> None:
    # The parent has multiplied nothing, so the threads that PyTorch waits for are the child's own.
    torch.set_num_threads(threads)
    model = uf.ULMFiT(
        emb_size=24, hidden_size=48, min_freq=1, checkpoint_dir=directory, progress=False
    )
    run = uf.Run(directory, checkpoint_steps=3, **options)
    model.pretrain(TEXTS, epochs=epochs, batch_size=8, bptt=12, valid_share=0.1, run=run)


def forked(work: Callable[[], object]) -> int:
    """Do something in a process of its own, and return its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def killed(directory: Path, threads: int, epochs: int, reports: int, delay: float) -> bool:
    """Go on with the run in a process of its own; kill it some time after so many new reports."""
    metrics = directory / "metrics.jsonl"
    child = forked(lambda: train(directory, threads, epochs, resume=True))
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    seen = 0
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        now = metrics.stat().st_mtime_ns if metrics.exists() else 0
        seen, before = seen + (now != before), now
        if seen >= reports:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1] == signal.SIGKILL
        time.sleep(0.0005)
    assert ended[1] == 0, "the training ended with an error"
    return False


def burn() -> None:
    while True:
        pass


def losses(directory: Path) -> list[float]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [report["loss"] for report in map(json.loads, lines)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--loaded", action="store_true")
    asked = parser.parse_args()
    directory, threads, epochs = asked.directory, asked.threads, asked.epochs
    draw = random.Random(asked.seed)
    others = [forked(burn) for _ in range(asked.loaded)]
    kills = 0
    while kills < MOST_KILLS and killed(
        directory / "killed", threads, epochs, draw.randint(2, 9), draw.uniform(0.0, 0.01)
    ):
        kills += 1
    for name in ("whole", "again"):
        ended = os.waitpid(forked(lambda name=name: train(directory / name, threads, epochs)), 0)
        assert ended[1] == 0, "the training ended with an error"
    for other in others:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    equal = True
    truth = uf.ULMFiT.load(directory / "whole", progress=False).language_model.state_dict()
    for name in ("killed", "again"):
        found = uf.ULMFiT.load(directory / name, progress=False).language_model.state_dict()
        equal &= losses(directory / name) == losses(directory / "whole")
        equal &= all(torch.equal(value, truth[name]) for name, value in found.items())
    # Nor is anything left behind of what was being written.
    left = [p.name for p in (directory / "killed").rglob(".*")]
    print(json.dumps([kills, equal and not left]))


if __name__ == "__main__":
    main()
