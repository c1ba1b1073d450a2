"""Checks of what `ULMFiT` is given; each error names the value, what was expected and the mend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ulmfit_fast.pipeline import TrainingSettings

__all__ = ["Label", "checked_device", "checked_seed", "plain_labels", "training_settings"]

Label = str | int


def checked_seed(seed: int) -> int:
    """Return a seed that PyTorch and NumPy both take, or raise a ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}, expected a whole number from 0 to 2**63 - 1")
    return int(seed)


def checked_device(device: str | None) -> str:
    """Return a device that tensors can be made on, CUDA where there is any if None is given."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device is {device!r}, expected cpu, or cuda where there is a GPU ({reason})"
        ) from error
    return device


def plain_labels(labels: Iterable[Any]) -> list[Label]:
    """Return labels as values that JSON holds; arrays and tensors have scalars of their own."""
    if isinstance(labels, str):
        raise TypeError(
            f"labels is the string {labels!r:.60}, expected a label for each text; "
            "name a column of the files with label_column"
        )
    plain: list[Label] = []
    for position, label in enumerate(labels):
        is_scalar = isinstance(label, (np.generic, torch.Tensor)) and label.ndim == 0
        value = label.item() if is_scalar else label
        if not isinstance(value, (str, int)):
            raise TypeError(
                f"labels[{position}] is {value!r:.60} ({type(value).__name__}), expected a str or "
                "an int; fill it in or convert it"
            )
        plain.append(value)
    kinds = {str(value): type(value) for value in plain}
    for position, value in enumerate(plain):
        if type(value) is not kinds[str(value)]:
            raise ValueError(
                f"labels[{position}] is the {type(value).__name__} {value!r}, which also occurs as "
                f"a {kinds[str(value)].__name__}; write each class in one way"
            )
    return plain


def training_settings(**values: Any) -> TrainingSettings:
    """Return the default settings with these changed; an unknown name is a ValueError."""
    try:
        return replace(TrainingSettings(), **values)
    except TypeError as error:
        known = ", ".join(TrainingSettings.__dataclass_fields__)
        raise ValueError(f"{error}; the settings are {known}") from error
