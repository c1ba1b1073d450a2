"""What do weight-drop and gate dropout cost, beside the same layer without them?"""

from __future__ import annotations

from benchmarks.compared.baselines import KERNELS
from benchmarks.harness.cli import run_question
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.questions.layers import PASSES, WEIGHT_P, compare_layers, ours

QUESTION = "dropout_cost"
GATE_P = 0.1
# The torch backend cannot mask gates.
_VARIANTS = {
    "p=0": {"weight_p": 0.0},
    "weight_p": {"weight_p": WEIGHT_P},
    "gate_p": {"gate_p": GATE_P},
    "both": {"weight_p": WEIGHT_P, "gate_p": GATE_P},
}


def name_of(backend: str, variant: str) -> str:
    """Return the implementation's name in a row."""
    return f"ulmfit_fast {backend}, {variant}"


def run(settings: Settings) -> list[Row]:
    """Measure each backend with each choice of dropouts."""
    rows = []
    widths = settings.sized((400, 1152), (1152, 1152), (6, 16))
    batch_size, steps = settings.sized((16, 70), (64, 70), (2, 2))
    for backend in KERNELS if settings.gpu else ("torch", "auto"):
        makers = [
            ours(settings, backend, name=name_of(backend, variant), **drops)
            for variant, drops in _VARIANTS.items()
            if backend != "torch" or "gate_p" not in drops
        ]
        rows += compare_layers(
            settings,
            makers,
            question=QUESTION,
            widths=widths,
            batch_size=batch_size,
            steps=steps,
            passes=PASSES if settings.gpu else ("training",),
            baseline=name_of(backend, "p=0"),
        )
    return rows


if __name__ == "__main__":
    run_question(run, __doc__)
