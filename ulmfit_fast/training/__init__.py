"""How models are trained: the settings, a step, the loop, the stages of ULMFiT."""

from typing import TYPE_CHECKING

from ulmfit_fast.system.lazy import lazy_attributes

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__)
