"""What a run of the demo does: the full one, and the quick one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ulmfit_fast.presets import small

__all__ = ["FULL", "QUICK", "DemoSettings"]


@dataclass(frozen=True)
class DemoSettings:
    """Everything that decides what a demo run does.

    Attributes:
        general: packages whose docstrings stage 1 reads.
        target: packages whose docstrings stages 2 and 3 read.
        held_out: test sentences.
        label_counts: numbers of training labels.
        seeds: runs for each number of labels, each with its own draw of the training sentences.
        model: arguments of `ULMFiT`.
        pretrain: arguments of `ULMFiT.pretrain`.
        fine_tune: arguments of `ULMFiT.fine_tune_lm`.
        epochs: classifier epochs for each number of labels.
        plain: how the classifiers without the schedule are fitted: one constant rate, all layers.
        schedule: discriminative rates, slanted triangular rates and gradual unfreezing.
    """

    general: tuple[str, ...]
    target: tuple[str, ...]
    held_out: int
    label_counts: tuple[int, ...]
    seeds: int
    model: dict[str, Any]
    pretrain: dict[str, Any]
    fine_tune: dict[str, Any]
    epochs: tuple[int, ...]
    plain: dict[str, Any]
    schedule: dict[str, Any]

    def at(self, precision: str) -> DemoSettings:
        """Return the same run with another precision of all trainings.

        >>> QUICK.at("bfloat16").schedule["precision"]
        'bfloat16'

        Args:
            precision: as in `TrainingSettings`.
        """
        own = {"precision": precision}
        return replace(
            self,
            pretrain={**self.pretrain, **own},
            fine_tune={**self.fine_tune, **own},
            plain={**self.plain, **own},
            schedule={**self.schedule, **own},
        )


_MODEL: dict[str, Any] = {**small().model, "max_vocab": 6000}
FULL = DemoSettings(
    general=("stdlib", "sympy"),
    target=("numpy", "networkx", "torch"),
    held_out=1500,
    label_counts=(300, 1000, 3000),
    seeds=3,
    model=_MODEL,
    # At 5e-3 and more a model this small does not always leave the unigram plateau.
    pretrain={"epochs": 1, "lr": 3e-3, "batch_size": 16, "bptt": 40},
    # One pass has to teach the lower layers the target's words too, so their rates stay close to
    # that of the last one: a factor of 2.6 leaves the perplexity on the target far higher.
    fine_tune={"epochs": 1, "lr": 4e-3, "factor": 1.3, "batch_size": 16, "bptt": 40},
    epochs=(10, 6, 4),
    plain={
        "lr": 3e-3,
        "batch_size": 32,
        "factor": 1.0,
        "schedule": "constant",
        "gradual_unfreezing": 0,
    },
    schedule={"lr": 2.5e-2, "batch_size": 32, "gradual_unfreezing": 1},
)
QUICK = DemoSettings(
    general=("stdlib",),
    target=("networkx",),
    held_out=400,
    label_counts=(300, 1000),
    seeds=1,
    model={**_MODEL, "emb_size": 48, "hidden_size": 96, "max_vocab": 3000},
    pretrain=FULL.pretrain,
    fine_tune=FULL.fine_tune,
    epochs=(8, 4),
    plain=FULL.plain,
    schedule=FULL.schedule,
)
