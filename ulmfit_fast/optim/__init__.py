"""Schedules, discriminative learning rates, unfreezing and NT-ASGD, as plain PyTorch."""

from typing import TYPE_CHECKING

from ulmfit_fast.optim.groups import discriminative_groups
from ulmfit_fast.optim.nt_asgd import NTASGD
from ulmfit_fast.optim.one_cycle import OneCycleLR
from ulmfit_fast.optim.schedules import SlantedTriangularLR
from ulmfit_fast.optim.unfreeze import ChainThaw, GradualUnfreezing
from ulmfit_fast.system.lazy import lazy_attributes

__all__ = [
    "NTASGD",
    "ChainThaw",
    "GradualUnfreezing",
    "OneCycleLR",
    "SlantedTriangularLR",
    "discriminative_groups",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__, __all__)
