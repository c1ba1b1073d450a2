"""Files and tables to texts and labels."""

from typing import TYPE_CHECKING

from ulmfit_fast.system.lazy import lazy_attributes

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__)
