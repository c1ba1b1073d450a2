"""What the ablation compares: ways to fine-tune the language model and to fit the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ulmfit_fast.studies.settings import FULL

__all__ = [
    "BASELINE",
    "CLASSIFIER",
    "CLASSIFIER_WAYS",
    "LANGUAGE_MODEL",
    "LM_WAYS",
    "MAJORITY",
    "PRETRAINED",
    "SCRATCH",
    "TFIDF",
    "ULMFIT_LM",
    "ULMFIT_WAY",
    "AblationSettings",
    "Job",
    "jobs",
]

# What a row is of, and what a baseline is called.
LANGUAGE_MODEL, CLASSIFIER, BASELINE = "language model", "classifier", "baseline"
TFIDF, MAJORITY = "TF-IDF + logistic regression", "majority class"
# Where an encoder comes from when no language model was fine-tuned.
SCRATCH, PRETRAINED = "from scratch", "pre-trained"

_CONSTANT: Mapping[str, Any] = {"schedule": "constant", "factor": 1.0}
LM_WAYS: Mapping[str, Mapping[str, Any]] = {
    "full": _CONSTANT,
    "discr": {"schedule": "constant"},
    "STLR": {"factor": 1.0},
    "discr + STLR": {},
}
ULMFIT_LM = "discr + STLR"

CLASSIFIER_WAYS: Mapping[str, Mapping[str, Any]] = {
    "full": {**_CONSTANT, "gradual_unfreezing": 0},
    "full + discr": {"schedule": "constant", "gradual_unfreezing": 0},
    "last layer": {**_CONSTANT, "last_layer": True},
    "chain-thaw": {**_CONSTANT, "chain_thaw": True, "gradual_unfreezing": 1},
    "freez": {**_CONSTANT, "gradual_unfreezing": 1},
    "freez + discr": {"schedule": "constant", "gradual_unfreezing": 1},
    "freez + STLR": {"factor": 1.0, "gradual_unfreezing": 1},
    "freez + cos": {"schedule": "cosine", "factor": 1.0, "gradual_unfreezing": 1},
    "freez + discr + STLR": {"gradual_unfreezing": 1},
}
ULMFIT_WAY = "freez + discr + STLR"


@dataclass(frozen=True)
class AblationSettings:
    """Everything that decides what a run of the ablation does.

    Attributes:
        model: arguments of `ULMFiT`.
        pretrain: arguments of `ULMFiT.pretrain`.
        fine_tune: arguments of `ULMFiT.fine_tune_lm` that all ways share; `lr` is that of the ways
            with slanted triangular rates.
        constant_lr: rate of the ways with a constant one, to fine-tune a language model.
        epochs: classifier epochs for each number of labels.
        rates: rates of a classifier that are tried for each way and number of labels.
        batch_size: texts of a classifier's batch.
        seeds: runs of everything but the pre-training.
        validation: labelled texts on which the rate is chosen; they serve nothing else.
        ways: names of `CLASSIFIER_WAYS` to compare at every number of labels.
    """

    model: dict[str, Any] = field(default_factory=lambda: dict(FULL.model))
    pretrain: dict[str, Any] = field(default_factory=lambda: dict(FULL.pretrain))
    fine_tune: dict[str, Any] = field(
        # The demo's own factor, close to 1, would leave little to compare discriminative rates by.
        default_factory=lambda: {k: v for k, v in FULL.fine_tune.items() if k != "factor"}
    )
    constant_lr: float = 2e-3
    epochs: dict[int, int] = field(default_factory=lambda: {100: 16, 300: 10, 1000: 8})
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    batch_size: int = 32
    seeds: int = 3
    validation: int = 500
    ways: tuple[str, ...] = tuple(CLASSIFIER_WAYS)

    def __post_init__(self) -> None:
        unknown = [way for way in self.ways if way not in CLASSIFIER_WAYS]
        if unknown:
            raise ValueError(
                f"ways has {unknown[0]!r}, expected some of {', '.join(CLASSIFIER_WAYS)}"
            )
        for name in ("seeds", "validation", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.epochs or not self.rates:
            raise ValueError("epochs and rates are empty, expected at least one entry of each")

    def lm_arguments(self, way: str) -> dict[str, Any]:
        """Return the arguments of `ULMFiT.fine_tune_lm` for one of `LM_WAYS`."""
        changes = LM_WAYS[way]
        constant = changes.get("schedule") == "constant"
        return {
            **self.fine_tune,
            **({"lr": self.constant_lr} if constant else {}),
            **changes,
        }

    def classifier_arguments(self, way: str, labels: int, lr: float) -> dict[str, Any]:
        """Return the arguments of `ULMFiT.fit_classifier` for one of `CLASSIFIER_WAYS`."""
        changes = dict(CLASSIFIER_WAYS[way])
        epochs = self.epochs[labels]
        if changes.pop("last_layer", False):
            # Unfreezing that takes as long as the whole run never opens a second group.
            changes["gradual_unfreezing"] = epochs
        return {"epochs": epochs, "lr": lr, "batch_size": self.batch_size, **changes}


@dataclass(frozen=True)
class Job:
    """One classifier to fit, at each of the rates for seed 0 and at the chosen one for the others.

    Attributes:
        start: where the encoder comes from: "from scratch", "pre-trained", or a name of `LM_WAYS`.
        way: a name of `CLASSIFIER_WAYS`.
        labels: labelled texts to learn from.
        seed: of the language model's fine-tuning, of the draw of the texts and of the fit.
    """

    start: str
    way: str
    labels: int
    seed: int


def jobs(settings: AblationSettings) -> list[Job]:
    """Return the classifiers that answer the questions.

    From scratch, pre-trained and each way to fine-tune the language model, with the classifier
    fitted as ULMFiT does; from scratch with all layers trained at one rate as well, as one would
    without a language model; and from ULMFiT's language model each way to fit the classifier.

    >>> settings = AblationSettings(epochs={100: 2}, seeds=1, ways=("full", "last layer"))
    >>> [(job.start, job.way) for job in jobs(settings)][:3]
    [('from scratch', 'full'), ('from scratch', 'freez + discr + STLR'), \
('pre-trained', 'freez + discr + STLR')]

    Args:
        settings: the numbers of labels, the seeds and the ways.
    """
    pairs = [(SCRATCH, "full")]
    pairs += [(start, ULMFIT_WAY) for start in (SCRATCH, PRETRAINED, *LM_WAYS)]
    pairs += [(ULMFIT_LM, way) for way in settings.ways if way != ULMFIT_WAY]
    return [
        Job(start, way, labels, seed)
        for labels in settings.epochs
        for seed in range(settings.seeds)
        for start, way in pairs
    ]
