"""ULMFiT on the English that every installation already holds: the docstrings of its packages."""

from typing import TYPE_CHECKING

from ulmfit_fast.lazy import lazy_attributes

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__)
