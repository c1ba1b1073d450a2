"""How fast is one LSTM layer with weight-drop, beside what people write today?

The three layers of an AWD-LSTM and, on a GPU, their stack; forward, and forward with backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from benchmarks.compared import baselines
from benchmarks.compared.baselines import KERNELS, PLAIN
from benchmarks.harness import machine
from benchmarks.harness.cli import run_question
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.questions.layers import Make, compare_layers, others, ours, plain, today

QUESTION = "layer"
STACK = "stack"
BFLOAT16 = "layer_bfloat16"
# cuDNN takes its persistent algorithm for these alone: float16, H up to 1024, one layer.
CUDNN_BEST = "cuDNN at its best"


class Shape(NamedTuple):
    """Widths E, H, ..., rows of the batch, time steps."""

    widths: tuple[int, ...]
    batch_size: int
    steps: int


def shapes(settings: Settings) -> Iterator[Shape]:
    """Yield the single layers."""
    if settings.tiny:
        yield Shape((6, 16), 2, 2)
        return
    if settings.gpu:
        for batch_size in (64, 128, 32, 256):
            for widths in ((1152, 1152), (400, 1152), (1152, 400)):
                yield Shape(widths, batch_size, 70)
        return
    for widths in ((400, 1152), (1152, 1152)):
        for batch_size in (16, 64):
            yield Shape(widths, batch_size, 70)
    yield Shape((1152, 400), 64, 70)


def run(settings: Settings) -> list[Row]:
    """Measure every layer."""
    return _on_gpu(settings) if settings.gpu else _on_cpu(settings)


def _on_cpu(settings: Settings) -> list[Row]:
    rows = []
    for shape in shapes(settings):
        makers = [today(settings), plain(settings), ours(settings, "auto")]
        makers += [ours(settings, "eager")]
        if shape.widths == (400, 1152) or settings.tiny:
            makers += others(settings)
        if settings.tiny:
            makers += [ours(settings, "reference")]
        # The large batch takes seconds a call; fewer samples leave the report its ten minutes.
        repeats = min(settings.repeats, 5) if shape.batch_size > 16 else None
        rows += compare_layers(
            settings,
            makers,
            question=QUESTION,
            passes=("training",),
            repeats=repeats,
            **shape._asdict(),
        )
    shape = next(shapes(settings))
    makers = [today(settings), plain(settings), ours(settings, "auto"), ours(settings, "eager")]
    # Plain autograd keeps every intermediate: a few times slower, and shown at one shape.
    makers += [ours(settings, "reference")]
    rows += compare_layers(
        settings, makers, question=QUESTION, passes=("forward",), repeats=3, **shape._asdict()
    )
    why = machine.why_no_bfloat16()
    if why is None:
        rows += run_bfloat16(settings)
    else:
        settings.note(f"layers in bfloat16: left out, {why}; --only layer_bfloat16 times them")
    return rows


def _on_gpu(settings: Settings) -> list[Row]:
    rows = []
    widths = settings.sized((), (400, 1152, 1152, 400), (6, 16, 16, 6))
    batch_size, steps = settings.sized((0, 0), (64, 70), (2, 2))
    rows += compare_layers(
        settings,
        _gpu_makers(settings, with_all=True),
        question=STACK,
        widths=widths,
        batch_size=batch_size,
        steps=steps,
    )
    rows += _cudnn_best(settings)
    for index, shape in enumerate(shapes(settings)):
        makers = _gpu_makers(settings, with_all=index == 0)
        if index == 0:
            makers += others(settings)
            makers += [ours(settings, "reference")]
            # The other dtypes of the kernels are compiled for this one shape.
            for dtype in {torch.float16, torch.float32} - {settings.dtype}:
                makers += [ours(settings, KERNELS[0], dtype)]
        rows += compare_layers(settings, makers, question=QUESTION, **shape._asdict())
    return rows


def _gpu_makers(settings: Settings, with_all: bool) -> list[Make]:
    makers = [today(settings)]
    dtypes = [settings.dtype]
    if with_all:
        dtypes += [d for d in (torch.float16, torch.float32) if d != settings.dtype]
        makers += [today(settings, dtype) for dtype in dtypes[1:]]
    makers += [plain(settings, dtype) for dtype in dtypes]
    return makers + [ours(settings, name) for name in KERNELS]


def _cudnn_best(settings: Settings) -> list[Row]:
    """The one case that cuDNN has a persistent algorithm for, as a line of reference."""
    widths = settings.sized((), (1024, 1024), (16, 16))
    batch_size, steps = settings.sized((0, 0), (64, 70), (2, 2))
    makers = [
        lambda weights: baselines.plain(weights, torch.float16, CUDNN_BEST),
        plain(settings, settings.dtype),
        ours(settings, KERNELS[0]),
    ]
    return compare_layers(
        settings,
        makers,
        question=QUESTION,
        widths=widths,
        batch_size=batch_size,
        steps=steps,
        baseline=PLAIN,
    )


def run_bfloat16(settings: Settings) -> list[Row]:
    """Measure forward with backward in bfloat16 on a CPU.

    Without instructions for bfloat16 PyTorch's own LSTM takes up to minutes a step, so it is timed
    once, and asked by name only: `python -m benchmarks.report --only layer_bfloat16`.
    """
    if settings.gpu:
        settings.note(f"{BFLOAT16}: of the CPU; on a GPU all layers are in bfloat16")
        return []
    rows = []
    half, emulated = torch.bfloat16, machine.why_no_bfloat16() is not None
    makers = [today(settings, half), ours(settings, "eager", half), ours(settings, "auto", half)]
    for shape in shapes(settings):
        if shape.widths[-1] == 400:
            continue
        rows += compare_layers(
            settings,
            makers if emulated else [*makers, plain(settings, half)],
            question=BFLOAT16,
            passes=("training",),
            repeats=1 if emulated else min(settings.repeats, 5),
            **shape._asdict(),
        )
    return rows


if __name__ == "__main__":
    run_question(run, __doc__)
