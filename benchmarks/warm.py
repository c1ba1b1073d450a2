"""Compiles the kernels of a GPU's report in several processes, before anything is timed.

    python -m benchmarks.warm WORKER WORKERS QUESTION...

runs one worker's share, each kernel once on two time steps: Triton keeps what it has compiled on
disk. One after the other they would take longer than all that is timed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from benchmarks.harness.machine import ROOT
from benchmarks.harness.settings import Settings

# Questions whose shapes and dropouts make new variants of the kernels, and serve the others too;
# and one that makes variants of its own.
_QUESTIONS, _IF_ASKED = ("layer", "dropout_cost", "scaling"), ("alternatives",)
_MOST, _LONGEST = 12, 180.0


@dataclass
class Share:
    """What one of several workers compiles.

    Attributes:
        worker: its number.
        workers: how many there are.
        seen: variants so far, whoever's they are.
    """

    worker: int
    workers: int
    seen: set[Hashable] = field(default_factory=set)

    def claims(self, variant: Hashable) -> bool:
        """Say whether a variant is new and this worker's."""
        if variant in self.seen:
            return False
        self.seen.add(variant)
        return len(self.seen) % self.workers == self.worker


def to_compile(asked: Sequence[str]) -> list[str]:
    """Return the questions to compile for.

    >>> to_compile(["alternatives"]), to_compile(["lm_step"])
    (['alternatives'], ['layer', 'dropout_cost', 'scaling'])
    """
    own = [question for question in (*_QUESTIONS, *_IF_ASKED) if question in asked]
    if set(asked) == set(own):
        return own
    return [*_QUESTIONS, *(question for question in own if question in _IF_ASKED)]


def compile_all(settings: Settings, asked: Sequence[str]) -> None:
    """Have all workers compile for the questions that are asked, and wait for them."""
    workers = max(1, min(_MOST, (os.cpu_count() or 1) - 2))
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.warm"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    questions = to_compile(asked)
    running = [
        subprocess.Popen([*command, str(i), str(workers), *questions], **quiet)
        for i in range(workers)
    ]
    failed = 0
    for process in running:
        try:
            left = max(0.1, start + _LONGEST - time.perf_counter())
            failed += process.wait(timeout=left) != 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            failed += 1
    if failed:
        settings.note(f"{failed} of {workers} processes that compile ahead did not finish")
    settings.say(f"compiled in {time.perf_counter() - start:.0f} s by {workers} processes")


def work(settings: Settings, questions: Sequence[str]) -> None:
    """Compile one worker's share."""
    from benchmarks.questions.all import ON_REQUEST, QUESTIONS

    known = {**QUESTIONS, **ON_REQUEST}
    for question in questions:
        known[question](settings)


if __name__ == "__main__":
    numbers = map(int, sys.argv[1:3])
    work(Settings.of("cuda", share=Share(*numbers), say=lambda line: None), sys.argv[3:])
