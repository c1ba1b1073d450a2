"""Would the persistent kernels be faster, launched otherwise than tiles.py chooses?"""

from __future__ import annotations

import itertools

from benchmarks.compared.alternatives import ALTERNATIVES, Alternative
from benchmarks.compared.baselines import KERNELS, RESIDENT, Weights
from benchmarks.harness.cli import run_question
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.questions.layers import Make, compare_layers, ours

QUESTION = "alternatives"
CHOSEN = f"ulmfit_fast {KERNELS[0]}"


def run(settings: Settings) -> list[Row]:
    """Measure each of them beside what is chosen."""
    if not settings.gpu:
        settings.note(f"{QUESTION}: left out, they are of kernels that need a GPU")
        return []
    rows = []
    for (kernel, hidden, batch), group in itertools.groupby(
        sorted(ALTERNATIVES, key=_shape), key=_shape
    ):
        names = (KERNELS[0], RESIDENT) if (hidden, batch) == (1152, 64) else KERNELS[:1]
        makers = [ours(settings, name) for name in names]
        makers += [_maker(settings, one) for one in group if settings.cuda or not one.many_blocks]
        rows += compare_layers(
            settings,
            makers,
            question=QUESTION,
            widths=settings.sized((), (1152, hidden), (6, 64)),
            batch_size=settings.sized(0, batch, 2),
            steps=settings.sized(0, 70, 2),
            passes=("forward",) if kernel == "forward" else ("training",),
            baseline=CHOSEN,
        )
    return rows


def _shape(alternative: Alternative) -> tuple[str, int, int]:
    return alternative.kernel, alternative.hidden, alternative.batch


def _maker(settings: Settings, alternative: Alternative) -> Make:
    make = ours(settings, KERNELS[0])

    def made(weights: list[Weights]):
        layer = make(weights)
        layer.name = f"{alternative.kernel}: {alternative.name}"
        layer.within = alternative.applied
        return layer

    return made


if __name__ == "__main__":
    run_question(run, __doc__)
