"""How does the time of a layer grow with the batch, the sequence and the width?"""

from __future__ import annotations

from benchmarks.compared.baselines import KERNELS
from benchmarks.harness.cli import run_question
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.questions.layers import compare_layers, ours, plain, today

QUESTION = "scaling"


def shapes(settings: Settings) -> list[tuple[int, int, int]]:
    """Return (H, B, T): from one shape, each size in turn."""
    hidden, batch_size, steps = settings.sized((400, 16, 70), (1152, 64, 70), (16, 2, 2))
    batches = settings.sized((8, 32, 64), (16, 32, 128, 256), (3,))
    lengths = settings.sized((35, 140, 280), (35, 140, 280, 560, 1120), (1,))
    widths = settings.sized((200, 800, 1152), (400, 768, 1024, 2048), (8,))
    return [
        (hidden, batch_size, steps),
        *((hidden, b, steps) for b in batches),
        *((hidden, batch_size, t) for t in lengths),
        *((h, batch_size, steps) for h in widths),
    ]


def run(settings: Settings) -> list[Row]:
    """Measure layers of E = H, forward with backward."""
    rows = []
    names = KERNELS if settings.gpu else ("auto", "torch", "eager")
    makers = [today(settings), plain(settings), *(ours(settings, name) for name in names)]
    for hidden, batch_size, steps in shapes(settings):
        rows += compare_layers(
            settings,
            makers,
            question=QUESTION,
            widths=(hidden, hidden),
            batch_size=batch_size,
            steps=steps,
            passes=("training",),
            repeats=settings.sized(min(3, settings.repeats), settings.repeats, settings.repeats),
        )
    return rows


if __name__ == "__main__":
    run_question(run, __doc__)
