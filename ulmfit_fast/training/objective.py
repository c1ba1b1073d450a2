"""What a training step minimises, and how it takes the step, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ulmfit_fast.training.precision import FULL, Precision
from ulmfit_fast.training.settings import TrainingSettings

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """What a step minimises beside the cross entropy, and what becomes of its gradients.

    Example:
        >>> Objective.of(TrainingSettings(clip=0.25), "cpu").clip
        0.25

    Attributes:
        alpha: weight of the activation regulariser AR.
        beta: weight of the temporal regulariser TAR.
        label_smoothing: share of the target spread evenly over all words or classes.
        clip: largest gradient norm, or None.
        rescale_to: of a language model: s, take a step of T tokens with T / s of the learning rate,
            for that step alone; None leaves the rate alone.
        precision: autocast, and the scaling of gradients; a step whose scaled gradients overflow
            changes no parameter.

    Raises:
        ValueError: if autocast is to another dtype than bfloat16 and float16.
    """

    alpha: float = 2.0
    beta: float = 1.0
    label_smoothing: float = 0.0
    clip: float | None = None
    rescale_to: int | None = None
    precision: Precision = FULL

    def __post_init__(self) -> None:
        dtype = self.precision.dtype
        if dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"autocast is {dtype}, expected torch.bfloat16, torch.float16, or None for none"
            )

    @classmethod
    def of(cls, settings: TrainingSettings, device: torch.device | str) -> Objective:
        """Return the objective of a stage.

        Args:
            settings: how it trains.
            device: where the model is.

        Raises:
            ValueError: for float16 without CUDA.
        """
        return cls(
            settings.alpha,
            settings.beta,
            settings.label_smoothing,
            settings.clip,
            settings.bptt if settings.random_bptt and settings.rescale_lr else None,
            Precision.of(settings.precision, device),
        )

    def at(self, precision: str, device: torch.device | str) -> Objective:
        """Return the same in another precision, by its name.

        Args:
            precision: as in `TrainingSettings`.
            device: where the model is.
        """
        return replace(self, precision=Precision.of(precision, device))
