"""Doors to other libraries' models; importing this imports none of them."""

from typing import TYPE_CHECKING

from ulmfit_fast.compat import fastai
from ulmfit_fast.system.lazy import lazy_attributes

__all__ = ["fastai"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__, __all__)
