"""Runs that survive: what a run is in the midst of, its checkpoints, and what it reports."""

from ulmfit_fast.runs.dry_run import DryRun, Estimate
from ulmfit_fast.runs.repeatable import repeatable_products
from ulmfit_fast.runs.run import Run

__all__ = ["DryRun", "Estimate", "Run", "repeatable_products"]
