"""How fast are masks drawn: Philox by counter, beside PyTorch's own generator?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

import ulmfit_fast as uf
from benchmarks.harness import roofline
from benchmarks.harness.check import error_of
from benchmarks.harness.cli import run_question
from benchmarks.harness.measure import Entry, compare
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.timing import INPUTS

QUESTION = "masks"
BERNOULLI = "bernoulli_"
P = 0.5


def run(settings: Settings) -> list[Row]:
    """Measure the mask of one recurrent weight, drawn alone and applied to it."""
    if settings.over(QUESTION):
        return []
    hidden = settings.sized(1152, 1152, 16)
    settings.say(f" the (4H, H) mask of a recurrent weight, H={hidden}")
    weight = torch.randn(4 * hidden, hidden).to(settings.device, settings.dtype)
    mask = torch.empty_like(weight)
    seed = torch.tensor(5)
    keep = uf.rng.weight_keep
    # The kernel reads its seed on the device.
    placed = [torch.tensor(5 + turn, device=settings.device) for turn in range(INPUTS)]
    drop = _drop(settings)
    device = settings.device
    drawn = {
        BERNOULLI: (lambda turn: mask.bernoulli_(1 - P), None),
        "ulmfit_fast Philox": (
            lambda turn: keep(seed + turn, hidden, (P,) * 4, device=device),
            lambda: keep(seed, hidden, (P,) * 4, device=device) / (1 - P),
        ),
    }
    applied = {
        "F.dropout": (lambda turn: F.dropout(weight, P), None),
        "ulmfit_fast Philox": (
            lambda turn: drop(weight, placed[turn % len(placed)]),
            lambda: drop(weight, placed[0]),
        ),
    }
    wanted = uf.dropout_masks(5, hidden_size=hidden, weight_p=P, dtype=torch.float64).weight
    rows = []
    # A mask is written, one byte a connection; or the weight is read and written.
    draw_cost = roofline.Cost(0.0, weight.numel(), 0)
    drop_cost = roofline.Cost(0.0, 2.0 * weight.numel() * weight.itemsize, 0)
    for passes, group, baseline, truth, cost in (
        ("draw", drawn, BERNOULLI, wanted, draw_cost),
        ("drop", applied, "F.dropout", weight.cpu().double() * wanted, drop_cost),
    ):
        entries = [
            Entry(
                name,
                passes,
                settings.dtype,
                step,
                # PyTorch's generator draws other bits: there is nothing to hold them against.
                None
                if get is None
                else lambda get=get, truth=truth: error_of([get().cpu()], [truth]),
                weight_p=P,
                floor_us=roofline.ceilings(settings).floor_us(cost, settings.dtype),
                mask_bits=weight.numel(),
            )
            for name, (step, get) in group.items()
        ]
        rows += compare(
            entries,
            settings,
            question=QUESTION,
            baseline=baseline,
            hidden_size=hidden,
            input_size=hidden,
        )
    return rows


def _drop(settings: Settings) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return weight-drop of our own: a kernel on a GPU, PyTorch's operations on a CPU."""
    if not settings.gpu:
        return lambda weight, seed: uf.rng.drop_weight(weight, seed, (P,) * 4)
    from ulmfit_fast.kernels import weight_drop  # noqa: TID251

    def kernel(weight: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return weight_drop.drop_weight_triton(weight, seed, (P,) * 4, 0)

    return kernel


if __name__ == "__main__":
    run_question(run, __doc__)
