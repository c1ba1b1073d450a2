"""How a stage of ULMFiT trains, as one checked value."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, TypeVar

from ulmfit_fast.checks import number

__all__ = ["TrainingSettings", "at_stage", "check_fields"]

_CHOICES = {
    "optimizer": ("adam", "adamw", "sgd", "nt_asgd"),
    "group_order": ("depth", "fastai"),
    "schedule": ("slanted", "one_cycle", "cosine", "constant"),
    "schedule_per": ("run", "stage"),
    "precision": ("float32", "bfloat16", "float16"),
}
_FLAGS = (
    "keep_best",
    "no_decay_on_bias_and_norm",
    "chain_thaw",
    "reset_optimizer",
    "random_bptt",
    "rescale_lr",
    "capture",
)
_WHOLE = ("epochs", "batch_size", "bptt", "max_len", "nonmono")
_NUMBERS: tuple[tuple[tuple[str, ...], dict[str, float | None], str], ...] = (
    (("lr", "factor", "eps"), {"above": 0.0}, "a positive number"),
    (("clip",), {"above": 0.0}, "a positive number, None for none"),
    (("weight_decay", "alpha", "beta"), {"at_least": 0.0}, "a number, at least 0"),
    (("div", "div_final"), {"at_least": 1.0}, "a number, at least 1"),
    (("ratio",), {"at_least": 1.0, "below": None}, "a number, at least 1 (math.inf allowed)"),
    (("valid_share", "label_smoothing"), {"at_least": 0.0, "below": 1.0}, "a share in [0, 1)"),
)
# One value, or one for each stage of unfreezing.
_PER_STAGE = ("cut_frac", "pct_start", "lr_decay")

Value = TypeVar("Value")


@dataclass(frozen=True)
class TrainingSettings:
    """How one stage trains.

    The fields marked "per stage" take one value, or a sequence with one for each stage of the
    unfreezing plan, the last of which stays for the stages after; for that `schedule_per` must be
    "stage". Sequences are kept as tuples.

    Example:
        >>> settings = TrainingSettings(epochs=4, schedule="one_cycle", gradual_unfreezing=[1, 1])
        >>> settings.gradual_unfreezing, settings.moms
        ((1, 1), (0.8, 0.7, 0.8))

    Attributes:
        epochs: passes over the texts.
        lr: largest learning rate, that of the last layer group.
        batch_size: streams of a language model, texts of a classifier.
        bptt: tokens of a language-model step, or of a classifier's window.
        max_len: tokens at a text's end that a classifier pools and trains on.
        valid_share: share of a language model's documents, drawn by the seed, that is held out and
            evaluated after every epoch, in [0, 1).
        patience: where something is held out, stop after so many epochs without a new low of the
            validation loss, and keep the weights of the lowest; 0 for neither.
        keep_best: keep the weights of the lowest validation loss, and train to the end.

        optimizer: "adam" (weight decay added to the gradient), "adamw" (decoupled from it), "sgd"
            (weight decay as for "adam", no momentum but that of "one_cycle"), or "nt_asgd", which
            is SGD with the weights averaged once the validation loss stalls, for a language model
            with documents to evaluate on.
        betas: Adam's decay rates.
        eps: Adam's guard against a division by zero.
        weight_decay: 0 for none.
        no_decay_on_bias_and_norm: keep weight decay from BatchNorm and from biases but those
            inside an LSTM.
        nonmono: of "nt_asgd", the evaluations without a new low that it waits for.
        clip: largest gradient norm, or None.

        alpha: weight of the activation regulariser AR.
        beta: weight of the temporal regulariser TAR.
        label_smoothing: share of the target spread over all words or classes, in [0, 1).

        factor: a layer group's rate over that of the group below it; 1 gives all groups one rate.
        lr_multipliers: each layer group's rate over lr, in place of the factor; or None.
        group_order: of a language model's layer groups, "depth" (embedding with the tied decoder,
            then the layers) or "fastai" (the layers, then embedding with decoder). A classifier's
            are the same in both: embedding, layers, head.

        schedule: "slanted" (triangular), "one_cycle", "cosine" (from lr down to 0) or "constant".
        schedule_per: "run" for one schedule over all steps, "stage" to start it anew at each stage
            of the unfreezing plan.
        cut_frac: of "slanted", share of the steps on which the rate rises; per stage.
        ratio: of "slanted", largest learning rate over the smallest.
        pct_start: of "one_cycle", share of the steps on which the rate rises; per stage.
        div: of "one_cycle", largest learning rate over the first.
        div_final: of "one_cycle", largest learning rate over the last.
        moms: of "one_cycle", momentum (the first of betas) at its start, peak and end; None leaves
            it alone.

        gradual_unfreezing: open one more layer group, from the last down, every so many epochs;
            0 trains all groups from the start. A sequence gives each stage its own number of
            epochs, after which all groups open: (1, 1) is the last group, the last two, all.
        chain_thaw: in the stages of gradual_unfreezing train one group alone each, the last one
            and then each from the first up, before all train.
        lr_decay: factor on every rate at the start of each stage but the first; a sequence has
            one for each of these, and its last stays.
        reset_optimizer: forget the optimizer's moments at the start of each stage.

        random_bptt: draw the tokens of each language-model step around bptt.
        rescale_lr: with random_bptt, take a step of T tokens with T / bptt of the rate.
        precision: "float32" computes in the weights' own dtype; "bfloat16" and "float16" are those
            of autocast, "float16" with scaled gradients and on CUDA alone.
        capture: replay a language model's steps from a CUDA graph, in one process.

    Raises:
        ValueError: if a value does not fit, by itself or beside another.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146), sections 3.2, 3.3 and 4.1, for the default values;
        `presets` has those of other sources.
    """

    epochs: int = 1
    lr: float = 4e-3
    batch_size: int = 64
    bptt: int = 70
    max_len: int = 1440
    valid_share: float = 0.0
    patience: int = 0
    keep_best: bool = False

    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.7, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    no_decay_on_bias_and_norm: bool = False
    nonmono: int = 5
    clip: float | None = None

    alpha: float = 2.0
    beta: float = 1.0
    label_smoothing: float = 0.0

    factor: float = 2.6
    lr_multipliers: tuple[float, ...] | None = None
    group_order: str = "depth"

    schedule: str = "slanted"
    schedule_per: str = "run"
    cut_frac: float | tuple[float, ...] = 0.1
    ratio: float = 32.0
    pct_start: float | tuple[float, ...] = 0.25
    div: float = 25.0
    div_final: float = 1e5
    moms: tuple[float, float, float] | None = (0.8, 0.7, 0.8)

    gradual_unfreezing: int | tuple[int, ...] = 0
    chain_thaw: bool = False
    lr_decay: float | tuple[float, ...] = 1.0
    reset_optimizer: bool = False

    random_bptt: bool = False
    rescale_lr: bool = True
    precision: str = "float32"
    capture: bool = False

    def __post_init__(self) -> None:
        self._check_each()
        self._check_together()

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the lowest validation loss are kept."""
        return self.patience > 0 or self.keep_best

    @property
    def has_stages(self) -> bool:
        """Whether there is an unfreezing plan."""
        return self.gradual_unfreezing not in (0, ())

    def _check_each(self) -> None:
        for name in ("betas", "moms", "lr_multipliers", "gradual_unfreezing", *_PER_STAGE):
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                # A frozen dataclass is assigned through object while it is being made.
                object.__setattr__(self, name, tuple(value))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _wrong(self, name, f"one of {', '.join(choices)}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise _wrong(self, name, "True or False")
        for name in _WHOLE:
            if not _is_whole(getattr(self, name), 1):
                raise _wrong(self, name, "a whole number, at least 1 and below 2**63")
        if not _is_whole(self.patience, 0):
            raise _wrong(self, "patience", "a whole number of epochs, 0 for none")
        for names, bounds, expected in _NUMBERS:
            for name in names:
                value = getattr(self, name)
                if not (_is_number(value, **bounds) or (name == "clip" and value is None)):
                    raise _wrong(self, name, expected)
        for name, count in (("betas", 2), ("moms", 3)):
            value = getattr(self, name)
            fits = isinstance(value, tuple) and len(value) == count
            if not (fits and all(_is_number(v, at_least=0.0, below=1.0) for v in value)):
                if name != "moms" or value is not None:
                    raise _wrong(self, name, f"{count} numbers in [0, 1)")
        for name, below in (("cut_frac", 1.0), ("pct_start", 1.0), ("lr_decay", math.inf)):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if not values or not all(_is_number(v, above=0.0, below=below) for v in values):
                expected = "shares between 0 and 1" if below == 1.0 else "positive numbers"
                raise _wrong(self, name, f"one or several {expected}")
        multipliers, stages = self.lr_multipliers, self.gradual_unfreezing
        if multipliers is not None:
            several = isinstance(multipliers, tuple) and len(multipliers) > 0
            if not several or not all(_is_number(value, above=0.0) for value in multipliers):
                raise _wrong(self, "lr_multipliers", "a positive number for each layer group")
        own, least = (stages, 1) if isinstance(stages, tuple) else ((stages,), 0)
        if not all(_is_whole(epochs, least) for epochs in own):
            raise _wrong(
                self,
                "gradual_unfreezing",
                "a number of epochs, 0 for none, or a sequence of numbers, each at least 1",
            )

    def _check_together(self) -> None:
        if self.chain_thaw and not self.has_stages:
            raise ValueError(
                "chain_thaw is True and gradual_unfreezing is 0, expected the epochs of each "
                "stage there; pass gradual_unfreezing=1"
            )
        staged = [name for name in _PER_STAGE if isinstance(getattr(self, name), tuple)]
        if self.lr_decay != 1.0 and "lr_decay" not in staged:
            staged.append("lr_decay")
        if self.reset_optimizer:
            staged.append("reset_optimizer")
        for name in staged:
            if not self.has_stages:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which is for stages, and there is no "
                    "unfreezing plan; pass gradual_unfreezing, or leave it out"
                )
            if self.schedule_per != "stage" and name != "reset_optimizer":
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which is for stages, and one schedule "
                    'spans the run; pass schedule_per="stage"'
                )
        if self.reset_optimizer and self.optimizer == "nt_asgd":
            raise ValueError(
                "reset_optimizer is True, which would forget the averages of nt_asgd; leave it out"
            )
        if self.capture:
            self._check_capture()

    def _check_capture(self) -> None:
        reasons = {
            'optimizer="adam" or "adamw"': self.optimizer not in ("adam", "adamw"),
            "steps of one length; leave random_bptt out": self.random_bptt,
            "gradients that are not scaled; leave float16 out": self.precision == "float16",
            "a momentum that stays; pass moms=None": (
                self.schedule == "one_cycle" and self.moms is not None
            ),
        }
        for mend, wrong in reasons.items():
            if wrong:
                raise ValueError(f"capture is True, which needs {mend}")


def check_fields(values: Mapping[str, Any]) -> None:
    """Check values of `TrainingSettings` each by itself, as a preset holds a part of them.

    >>> check_fields({"lr_decay": 0.5})  # which by itself needs an unfreezing plan beside it

    Args:
        values: by name; a name that is no field is passed over.

    Raises:
        ValueError: if a value does not fit.
    """
    settings = object.__new__(TrainingSettings)
    for field in fields(TrainingSettings):
        object.__setattr__(settings, field.name, values.get(field.name, field.default))
    settings._check_each()


def at_stage(value: Value | tuple[Value, ...], stage: int) -> Value:
    """Return a "per stage" field's value at a stage.

    >>> at_stage((0.5, 0.2), 3), at_stage(0.1, 3)
    (0.2, 0.1)

    Args:
        value: one value for all stages, or one for each; the last stays.
        stage: from 0.
    """
    return value[min(stage, len(value) - 1)] if isinstance(value, tuple) else value


def _wrong(settings: TrainingSettings, name: str, expected: str) -> ValueError:
    return ValueError(f"{name} is {getattr(settings, name)!r}, expected {expected}")


def _is_whole(value: Any, least: int) -> bool:
    # PyTorch takes no more than an int64 holds.
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _is_number(value: Any, **bounds: Any) -> bool:
    # A tensor is none here: it would not go into the description of a run.
    with contextlib.suppress(ValueError):
        number("value", value, "a number", **bounds)
        return isinstance(value, Real)
    return False
