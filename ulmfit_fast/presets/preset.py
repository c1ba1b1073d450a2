"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Preset", "dropouts", "model"]


@dataclass(frozen=True)
class Preset:
    """Keyword arguments of a model and its three stages.

    Example:
        >>> from ulmfit_fast import presets
        >>> presets.paper().fine_tune_lm["lr"]
        0.004

    Attributes:
        name: of the function that makes it.
        model: of `ULMFiT`.
        pretrain: of `ULMFiT.pretrain`.
        fine_tune_lm: of `ULMFiT.fine_tune_lm`.
        fit_classifier: of `ULMFiT.fit_classifier`.
    """

    name: str
    model: dict[str, Any]
    pretrain: dict[str, Any]
    fine_tune_lm: dict[str, Any]
    fit_classifier: dict[str, Any]


def dropouts(
    *, input_p: float, hidden_p: float, embed_p: float, weight_p: float, output_p: float
) -> dict[str, float]:
    """Return dropout values by name."""
    return {
        "input_p": input_p,
        "hidden_p": hidden_p,
        "embed_p": embed_p,
        "weight_p": weight_p,
        "output_p": output_p,
    }


def model(
    *,
    hidden_size: int,
    num_layers: int,
    tokenizer: str,
    max_vocab: int,
    min_freq: int,
    lm: dict[str, float],
    classifier: dict[str, float],
) -> dict[str, Any]:
    """Return the arguments of `ULMFiT`; the embedding has 400 units in all sources."""
    return {
        "emb_size": 400,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "tokenizer": tokenizer,
        "max_vocab": max_vocab,
        "min_freq": min_freq,
        "drop_mult": 1.0,
        "lm_dropout": dict(lm),
        "classifier_dropout": dict(classifier),
    }
