"""What a classifier has to be before it is turned into one that only predicts."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch

from ulmfit_fast.nn import TextClassifier

__all__ = ["HasClassifier", "prediction_copy"]


class HasClassifier(Protocol):
    """A `ULMFiT`, as far as it is asked for here."""

    classifier: TextClassifier | None
    language_model: Any
    labels: list[Any]


def prediction_copy(model: TextClassifier | HasClassifier, purpose: str) -> TextClassifier:
    """Return a copy in evaluation mode that needs no gradient.

    Args:
        model: a classifier, or a `ULMFiT` that has one.
        purpose: what it is for, as a participle.

    Raises:
        TypeError: if it is something else.
        ValueError: if there is no classifier, it trains, is not on the CPU, or not in float32.
    """
    if isinstance(model, TextClassifier):
        if model.training:
            raise ValueError(
                f"the classifier is in training mode, expected evaluation before it is {purpose}; "
                "call eval() on it"
            )
        classifier = model
    elif hasattr(model, "classifier") and hasattr(model, "labels"):
        if model.classifier is None:
            raise ValueError("there is no classifier yet; call fit_classifier(texts, labels) first")
        classifier = model.classifier
    else:
        raise TypeError(
            f"model is {model!r:.60} ({type(model).__name__}), expected a TextClassifier or ULMFiT"
        )
    parameter = next(classifier.parameters())
    if parameter.device.type != "cpu":
        raise ValueError(
            f"the classifier is on {parameter.device}, expected cpu before it is {purpose}; load "
            'it with ULMFiT.load(directory, device="cpu"), or call to("cpu")'
        )
    if parameter.dtype != torch.float32:
        raise ValueError(
            f"the classifier has {parameter.dtype}, expected torch.float32 before it is {purpose}; "
            "call float() on it"
        )
    if not hasattr(classifier.encoder.rnns[0], "weight_hh_l0"):
        raise ValueError(f"the classifier is in int8 already, and cannot be {purpose}")
    return copy.deepcopy(classifier).eval().requires_grad_(False)
