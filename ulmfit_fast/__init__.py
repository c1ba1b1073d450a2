"""Fast AWD-LSTM and ULMFiT for PyTorch: weight-drop and gate dropout inside the LSTM.

Example:
    >>> import torch
    >>> import ulmfit_fast as uf
    >>> lstm = uf.LSTM(400, 1152, weight_p=0.5)  # state_dict and returns as torch.nn.LSTM
    >>> output, (h, c) = lstm(torch.randn(7, 4, 400))
"""

from pathlib import Path
from typing import TYPE_CHECKING

# A source checkout keeps the kernels one level up; setup.py installs them as ulmfit_fast.kernels.
if not (Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

from ulmfit_fast import backend, functional, nn, optim, rng
from ulmfit_fast.lstm.masks import DropoutMasks, dropout_masks
from ulmfit_fast.nn import LSTM, convert_lstm, restore_lstm
from ulmfit_fast.optim import GradualUnfreezing, SlantedTriangularLR, discriminative_groups
from ulmfit_fast.system.lazy import lazy_attributes
from ulmfit_fast.system.version import __version__

if TYPE_CHECKING:
    from ulmfit_fast import compat, data, presets, runs, serving
    from ulmfit_fast import report as report
    from ulmfit_fast import training as training
    from ulmfit_fast import ulmfit as ulmfit
    from ulmfit_fast.runs import Run
    from ulmfit_fast.training.lr_finder import find_lr
    from ulmfit_fast.ulmfit.ensemble import Ensemble, fit_ensemble
    from ulmfit_fast.ulmfit.estimator import ULMFiT
    from ulmfit_fast.ulmfit.job import train
    from ulmfit_fast.ulmfit.sklearn_classifier import ULMFiTClassifier

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
    "data",
    "discriminative_groups",
    "dropout_masks",
    "find_lr",
    "fit_ensemble",
    "functional",
    "nn",
    "optim",
    "presets",
    "restore_lstm",
    "rng",
    "runs",
    "serving",
    "train",
]

# The protocol needs the [text] extra, and what is not used is not imported; the LSTM needs neither.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        # Taken away, so that `import *` asks for it and is given what can be imported here.
        globals().pop("__all__"),
        {
            "Ensemble": "ulmfit.ensemble",
            "Run": "runs",
            "ULMFiT": "ulmfit.estimator",
            "ULMFiTClassifier": "ulmfit.sklearn_classifier",
            "find_lr": "training.lr_finder",
            "fit_ensemble": "ulmfit.ensemble",
            "train": "ulmfit.job",
        },
        needs={"ulmfit.sklearn_classifier": "sklearn"},
    )
