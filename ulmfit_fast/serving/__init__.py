"""A classifier at work: predictions in a stream, in int8, and without this package.

`ULMFiT.predict`, `predict_proba` and `predict_stream` are here, and what turns a classifier into
one that only predicts: `quantize` for the CPU, `export_classifier` for where only PyTorch is.
"""

from typing import TYPE_CHECKING

from ulmfit_fast.serving.export import export_classifier
from ulmfit_fast.serving.int8 import quantize
from ulmfit_fast.serving.predictor import Prediction, Predictor
from ulmfit_fast.system.lazy import lazy_attributes

__all__ = ["Prediction", "Predictor", "export_classifier", "quantize"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__, __all__)
