"""Checks of what `ULMFiT` is given; each error names the value, what was expected and the mend."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from ulmfit_fast.data.columns import (
    Label,
    LabelKinds,
    check_ordered,
    is_iterable,
    is_missing,
    missing_label,
    shown,
)
from ulmfit_fast.data.reading.outputs import check_apart, paths_in
from ulmfit_fast.data.tables import column_values
from ulmfit_fast.data.tokens.rules import SURROGATE
from ulmfit_fast.runs.dry_run import DryRun
from ulmfit_fast.runs.run import Run, holding
from ulmfit_fast.system.directories import check_target
from ulmfit_fast.system.files import user_path
from ulmfit_fast.system.scoped import ignoring
from ulmfit_fast.training.stages import TrainingSettings

__all__ = [
    "Label",
    "checked_device",
    "checked_seed",
    "classes_of",
    "holding_directories",
    "plain_labels",
    "require_labels",
    "training_settings",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def holding_directories(stage: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have a stage of `ULMFiT` hold the directories that it writes into, before it reads a text."""

    @wraps(stage)
    def held_stage(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        model: Any = args[0]
        run, directories = kwargs.get("run"), []
        if isinstance(run, Run):
            directories.append(run.directory)
        if model.checkpoint_dir is not None:
            directories.append(user_path(model.checkpoint_dir).resolve())
            check_target(directories[-1])
        if isinstance(run, DryRun):
            directories.clear()
        read = paths_in(args[1] if len(args) > 1 else kwargs.get("texts"))
        for directory in directories:
            check_apart(directory, read, is_text=True)
        # A stage trains, whatever the mode it is called in.
        with torch.inference_mode(False), torch.enable_grad(), holding(*directories):
            return stage(*args, **kwargs)

    return held_stage


def checked_seed(seed: int) -> int:
    """Return a seed that PyTorch and NumPy both take, or raise a ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}, expected a whole number from 0 to 2**63 - 1")
    return int(seed)


def checked_device(device: str | torch.device | int | None) -> str:
    """Return a device that can hold numbers, CUDA where there is any if None is given."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # A number is read back: of the device meta there is none. Some names come with a warning.
        with ignoring(UserWarning):
            made = torch.ones((), dtype=torch.float32, device=device)
            made.item()
    except Exception as error:
        # PyTorch has a class of error for each kind of device, and pages of text for some.
        count = torch.cuda.device_count()
        reason = f" ({str(error).splitlines()[0]:.80})" if count else ""
        raise ValueError(
            f"device is {device!r:.60}, expected cpu, or cuda where there is a GPU; PyTorch finds "
            f"{count} of them here{reason}"
        ) from None
    return device if isinstance(device, str) else str(made.device)


def plain_labels(labels: Any, column: str = "label") -> list[Label]:
    """Return labels as values that JSON holds; arrays and tensors have scalars of their own.

    >>> plain_labels(np.array([True, False])), plain_labels({"label": ["a", "b"]})
    ([True, False], ['a', 'b'])

    Args:
        labels: any iterable of str, int and bool, or a table with a column of them.
        column: which one of a table.

    Raises:
        TypeError: for one string, or a label of another kind.
        ValueError: for a missing label, a class that is written in two ways, or a table that does
            not have the column exactly once.
    """
    if isinstance(labels, (str, bytes)):
        raise TypeError(
            f"labels is the string {labels!r:.60}, expected a label for each text; "
            "name a column of the files with label_column"
        )
    check_ordered("labels", labels)
    found = column_values(labels, column)
    if not is_iterable(found):
        raise TypeError(
            f"labels is {shown(labels)} ({type(labels).__name__}), expected a label for each text"
        )
    plain = [_plain(label) for label in found]
    # A missing one first: it may have made floats of the others.
    require_labels("labels", plain)
    kinds = LabelKinds()
    for position, value in enumerate(plain):
        if not isinstance(value, (str, int)):
            raise TypeError(
                f"labels[{position}] is {shown(value)} ({type(value).__name__}), expected a str, "
                "an int or a bool; convert it"
            )
        if isinstance(value, str) and SURROGATE.search(value):
            raise ValueError(
                f"labels[{position}] is {value!r:.60}, half a character, expected whole ones; "
                "write the label anew"
            )
        other = kinds.other(value, f"labels[{position}]")
        if other is not None:
            raise ValueError(
                f"labels[{position}] is the {type(value).__name__} {value!r:.60}, and {other[1]} "
                f"the {type(other[0]).__name__} {other[0]!r:.60}; write each class in one way"
            )
    return plain


def _plain(label: Any) -> Any:
    is_scalar = isinstance(label, (np.generic, torch.Tensor)) and label.ndim == 0
    return label.item() if is_scalar else label


def require_labels(name: str, labels: Iterable[Any]) -> None:
    """Refuse a missing label, with its position.

    Args:
        name: of the argument.
        labels: each a scalar.

    Raises:
        ValueError: if one is None, NaN, NaT, pandas.NA or an empty string.
    """
    for position, label in enumerate(labels):
        if is_missing(label):
            raise missing_label(f"{name}[{position}]", label)


def classes_of(labels: Iterable[Label]) -> list[Label]:
    """Return the classes in the order of a classifier's logits.

    >>> classes_of(["good", 2, "bad", 1])
    [1, 2, 'bad', 'good']

    Args:
        labels: of the texts.

    Raises:
        ValueError: if there is one class only.
    """
    classes = sorted(set(labels), key=lambda label: (str(type(label)), label))
    if len(classes) < 2:
        raise ValueError(f"labels hold the one class {classes}, expected at least two classes")
    return classes


def training_settings(**values: Any) -> TrainingSettings:
    """Return the default settings with these changed; an unknown name is a ValueError."""
    try:
        return replace(TrainingSettings(), **values)
    except TypeError as error:
        known = ", ".join(TrainingSettings.__dataclass_fields__)
        raise ValueError(f"{error}; the settings are {known}") from error
