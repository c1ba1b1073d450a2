"""Schedules, discriminative learning rates and gradual unfreezing, as plain PyTorch."""

from ulmfit_fast.optim.groups import discriminative_groups
from ulmfit_fast.optim.schedules import SlantedTriangularLR
from ulmfit_fast.optim.unfreeze import GradualUnfreezing

__all__ = ["GradualUnfreezing", "SlantedTriangularLR", "discriminative_groups"]
