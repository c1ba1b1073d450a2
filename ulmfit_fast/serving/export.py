"""A classifier as a program of PyTorch's own operators, which runs without this package."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ulmfit_fast.backend import use
from ulmfit_fast.nn import TextClassifier
from ulmfit_fast.serving.checks import HasClassifier, prediction_copy
from ulmfit_fast.system.files import file_in_place

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["export_classifier"]

LABELS = "labels.json"


def export_classifier(
    model: TextClassifier | HasClassifier, path: str | os.PathLike[str]
) -> ExportedProgram:
    """Write a classifier as an exported program, for any number and length of texts.

    The program takes tokens `(T, B)` and lengths `(B,)`, T and B at least 1, and returns logits
    `(B, C)`: those of the classifier but for rounding. The layers are a `scan` over time steps, a
    prototype operator of PyTorch's, since `aten.lstm` would be unrolled to one T; and all T steps
    are one window, so that memory grows with T. The last `max_len` tokens are pooled as ever.

    Example:
        >>> import tempfile, torch
        >>> from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig
        >>> config = AWDLSTMConfig.classifier(10, emb_size=4, hidden_size=6, num_layers=1)
        >>> model = TextClassifier(AWDLSTM(config), num_classes=2).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_classifier(model, f"{folder}/classifier.pt2")
        ...     program = torch.export.load(f"{folder}/classifier.pt2").module()
        >>> tuple(program(torch.tensor([[2], [5], [7]]), torch.tensor([3])).shape)
        (1, 2)

    Args:
        model: a `TextClassifier` in evaluation mode, or a `ULMFiT` with a classifier, whose labels
            are then in the file: `torch.export.load(path, extra_files={"labels.json": ""})` fills
            them in. In float32, on the CPU.
        path: of the file, which ends in .pt2; an older one is replaced once the new one is whole.

    Returns:
        The program that was written.

    Raises:
        TypeError: if the model is neither.
        ValueError: if there is no classifier, it trains, is on a GPU, is not in float32 or is
            quantised, or the path has another ending.
        OSError: if the file cannot be written.
    """
    # The compiler comes along with these, and is not needed to predict.
    from torch.export import Dim, export, save

    if Path(path).suffix != ".pt2":
        raise ValueError(f"path is {os.fspath(path)!r}, expected a name that ends in .pt2")
    whole = prediction_copy(model, "exported")
    # None is 1: a size of 1 would become a constant.
    tokens = torch.full((3, 2), whole.encoder.config.pad_id, dtype=torch.int64, device="cpu")
    example = (tokens, torch.tensor([3, 2], dtype=torch.int64, device="cpu"))
    sizes = {"tokens": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "lengths": {0: Dim.DYNAMIC}}
    with use("reference"):  # whatever else was asked for
        program = export(whole, example, dynamic_shapes=sizes, strict=True)
    extra = {} if isinstance(model, TextClassifier) else {LABELS: json.dumps(list(model.labels))}
    with file_in_place(path) as file:
        save(program, file, extra_files=extra)
    return program
