"""How fast is a layer with weight-drop in bfloat16 on a CPU?

Without instructions for bfloat16 PyTorch's own LSTM takes up to minutes a step, so this question is
asked by name only: `python -m benchmarks.report --only layer_bfloat16`.
"""

from __future__ import annotations

import torch

from benchmarks.cli import run_question
from benchmarks.layers import compare_layers, ours, today
from benchmarks.rows import Row
from benchmarks.settings import Settings

QUESTION = "layer_bfloat16"


def run(settings: Settings) -> list[Row]:
    """Measure one forward with backward of each; the first call warms up."""
    if settings.gpu:
        settings.note(f"{QUESTION}: of the CPU; on a GPU all layers are in bfloat16")
        return []
    rows = []
    half = torch.bfloat16
    makers = [today(settings, half), ours(settings, "eager", half), ours(settings, "auto", half)]
    for batch_size in settings.sized((16, 64), (), (3,)):
        rows += compare_layers(
            settings,
            makers,
            question=QUESTION,
            widths=settings.sized((1152, 1152), (), (6, 16)),
            batch_size=batch_size,
            steps=settings.sized(70, 0, 3),
            passes=("training",),
            repeats=1,
        )
    return rows


if __name__ == "__main__":
    run_question(run, __doc__)
