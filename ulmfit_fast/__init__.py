"""Fast AWD-LSTM and ULMFiT for PyTorch: weight-drop and gate dropout inside the LSTM.

Example:
    >>> import torch
    >>> import ulmfit_fast as uf
    >>> lstm = uf.LSTM(400, 1152, weight_p=0.5)  # state_dict and returns as torch.nn.LSTM
    >>> output, (h, c) = lstm(torch.randn(7, 4, 400))
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A source checkout keeps the kernels one level up; setup.py installs them as ulmfit_fast.kernels.
if not (Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

from ulmfit_fast import backend, functional, nn, optim, rng
from ulmfit_fast.masks import DropoutMasks, dropout_masks
from ulmfit_fast.nn import LSTM, convert_lstm, restore_lstm
from ulmfit_fast.optim import GradualUnfreezing, SlantedTriangularLR, discriminative_groups

if TYPE_CHECKING:
    from ulmfit_fast import compat, presets
    from ulmfit_fast.ensemble import Ensemble, fit_ensemble
    from ulmfit_fast.estimator import ULMFiT
    from ulmfit_fast.runs import Run
    from ulmfit_fast.sklearn_classifier import ULMFiTClassifier

__version__ = "0.1.0"

__all__ = [
    "LSTM",
    "DropoutMasks",
    "Ensemble",
    "GradualUnfreezing",
    "Run",
    "SlantedTriangularLR",
    "ULMFiT",
    "ULMFiTClassifier",
    "__version__",
    "backend",
    "compat",
    "convert_lstm",
    "discriminative_groups",
    "dropout_masks",
    "fit_ensemble",
    "functional",
    "nn",
    "optim",
    "presets",
    "restore_lstm",
    "rng",
]


# The protocol needs the [text] extra, and what is not used is not imported; the LSTM needs neither.
_LAZY = {
    "Ensemble": "ulmfit_fast.ensemble",
    "Run": "ulmfit_fast.runs",
    "ULMFiT": "ulmfit_fast.estimator",
    "ULMFiTClassifier": "ulmfit_fast.sklearn_classifier",
    "compat": "ulmfit_fast",
    "fit_ensemble": "ulmfit_fast.ensemble",
    "presets": "ulmfit_fast",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ulmfit_fast' has no attribute {name!r}")
    if _LAZY[name] == "ulmfit_fast":
        return importlib.import_module(f"ulmfit_fast.{name}")
    return getattr(importlib.import_module(_LAZY[name]), name)
