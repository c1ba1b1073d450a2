"""The layer, the dropouts and the losses as functions, each on the backend that fits."""

from typing import TYPE_CHECKING

from ulmfit_fast.functional.layer import lstm
from ulmfit_fast.system.lazy import lazy_attributes

__all__ = ["lstm"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__, __all__)
