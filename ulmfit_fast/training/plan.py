"""From settings to an optimizer, a schedule and the stages of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.optim import (
    NTASGD,
    ChainThaw,
    GradualUnfreezing,
    OneCycleLR,
    SlantedTriangularLR,
    discriminative_groups,
)
from ulmfit_fast.optim.groups import without_decay
from ulmfit_fast.optim.unfreeze import Unfreezing
from ulmfit_fast.training.settings import TrainingSettings, at_stage

__all__ = ["TrainingPlan", "make_optimizer", "ordered_groups"]

Model = LanguageModel | TextClassifier


def ordered_groups(model: Model, settings: TrainingSettings) -> list[list[Tensor]]:
    """Return a model's layer groups in the order of the settings.

    Args:
        model: the language model or classifier.
        settings: `group_order` counts.
    """
    groups: list[list[Tensor]] = [list(group) for group in model.layer_groups()]
    if settings.group_order == "fastai" and isinstance(model, LanguageModel):
        return [*groups[1:], groups[0]]
    return groups


def make_optimizer(model: Model, settings: TrainingSettings) -> Optimizer:
    """Return the optimizer of a model, with a parameter group for each layer group.

    With `no_decay_on_bias_and_norm` a layer group may have a second one, without weight decay.

    Args:
        model: the language model or classifier.
        settings: the optimizer and the learning rates.

    Raises:
        ValueError: if `lr_multipliers` are not as many as layer groups.
    """
    own: list[dict[str, Any]] = discriminative_groups(
        ordered_groups(model, settings),
        settings.lr,
        settings.factor,
        multipliers=settings.lr_multipliers,
    )
    if settings.no_decay_on_bias_and_norm:
        own = without_decay(own, model)
    # One pass over the parameters instead of eight; the embedding is most of them.
    options: dict[str, Any] = {"weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "nt_asgd":
        return NTASGD(own, settings.lr, nonmono=settings.nonmono, **options)
    if settings.optimizer == "sgd":
        return SGD(own, settings.lr, **options)
    kind = Adam if settings.optimizer == "adam" else AdamW
    return kind(own, settings.lr, betas=settings.betas, eps=settings.eps, **options)


def _make_unfreezing(model: Model, settings: TrainingSettings) -> Unfreezing | None:
    if not settings.has_stages:
        return None
    kind = ChainThaw if settings.chain_thaw else GradualUnfreezing
    return kind(ordered_groups(model, settings), settings.gradual_unfreezing)


class TrainingPlan:
    """What a run trains with, epoch by epoch.

    Use it as `with plan.unfreezing_groups():` around the epochs, and `begin_epoch` before each.

    Args:
        model: the language model or classifier.
        settings: how to train.
        epoch_steps: optimizer steps of each epoch.

    Attributes:
        optimizer: of the model; its parameter groups never change.
        scheduler: of the stage at hand, or None where the rate is constant.
    """

    def __init__(
        self, model: Model, settings: TrainingSettings, epoch_steps: Sequence[int]
    ) -> None:
        self.model, self.settings = model, settings
        self.epoch_steps = list(epoch_steps)
        self.optimizer = make_optimizer(model, settings)
        self._parameters = dict(model.named_parameters())
        self.scheduler: LRScheduler | None = None
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._unfreezing: Unfreezing | None = None
        self._begun = -1

    @contextmanager
    def unfreezing_groups(self) -> Iterator[None]:
        """Open the layer groups stage by stage; an interrupted run, too, leaves none closed.

        What the user has frozen is frozen all the while, and afterwards.

        Raises:
            ValueError: if a stage would train nothing, for the user has frozen its layers.
        """
        self._unfreezing = _make_unfreezing(self.model, self.settings)
        try:
            idle = None if self._unfreezing is None else self._unfreezing.idle_stage()
            if idle is not None:
                raise ValueError(
                    f"stage {idle} of the unfreezing plan, from 0, trains frozen layers alone, "
                    "expected some that require a gradient; call requires_grad_(True) on them, or "
                    "pass another gradual_unfreezing or chain_thaw"
                )
            yield
        finally:
            if self._unfreezing is not None:
                self._unfreezing.finish()

    def _check_parameters(self) -> None:
        replaced = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter is not self._parameters.get(name, parameter)
        ]
        if replaced:
            raise RuntimeError(
                f"the model was given other tensors for {len(replaced)} parameters during the run, "
                f"{replaced[0]} the first, and the optimizer trains those that it had: load "
                "weights without assign=True, and convert the model before or after the run, or "
                "with torch.__future__.set_swap_module_params_on_conversion(True)"
            )

    def _stage(self, epoch: int) -> int:
        return 0 if self._unfreezing is None else self._unfreezing.stage_at(epoch)

    def begin_epoch(self, epoch: int) -> bool:
        """Start the stage of an epoch, if it starts there.

        Args:
            epoch: from 0, one after the other.

        Returns:
            Whether a stage of unfreezing begins.

        Raises:
            RuntimeError: if the model was given other parameters since the plan was made.
        """
        self._check_parameters()
        if self._unfreezing is not None:
            while self._unfreezing.epoch < epoch:
                self._unfreezing.step()
        stage = self._stage(epoch)
        if stage == self._begun:
            return False
        if self.settings.reset_optimizer and stage > 0:
            self.optimizer.state.clear()
        if self._begun < 0 or self.settings.schedule_per == "stage":
            self._start_schedule(epoch, stage)
        self._begun = stage
        return self._unfreezing is not None

    def _start_schedule(self, epoch: int, stage: int) -> None:
        settings, steps = self.settings, self.epoch_steps[epoch:]
        if settings.schedule_per == "stage":
            own = [e for e in range(len(self.epoch_steps)) if self._stage(e) == stage]
            steps = [self.epoch_steps[e] for e in own]
        decay = math.prod(at_stage(settings.lr_decay, s) for s in range(stage))
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * decay
            group.pop("initial_lr", None)
        self.scheduler = _make_scheduler(self.optimizer, settings, max(1, sum(steps)), stage)

    def reached_end(self) -> None:
        """Leave the averaged weights in the model, where the optimizer averaged."""
        if isinstance(self.optimizer, NTASGD):
            self.optimizer.use_average()


def _make_scheduler(
    optimizer: Optimizer, settings: TrainingSettings, steps: int, stage: int
) -> LRScheduler | None:
    if settings.schedule == "slanted":
        cut_frac = at_stage(settings.cut_frac, stage)
        return SlantedTriangularLR(optimizer, steps, cut_frac, settings.ratio)
    if settings.schedule == "one_cycle":
        pct_start = at_stage(settings.pct_start, stage)
        return OneCycleLR(
            optimizer, steps, pct_start, settings.div, settings.div_final, settings.moms
        )
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return None
