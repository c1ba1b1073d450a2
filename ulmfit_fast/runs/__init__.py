"""Runs that can be resumed: their checkpoints, what they report, and what one would take.

A checkpoint is of a run in the midst of a stage; a model directory is something else, which
`ulmfit/model_files.py` writes.
"""

from typing import TYPE_CHECKING

from ulmfit_fast.runs.dry_run import DryRun, Estimate
from ulmfit_fast.runs.run import Run
from ulmfit_fast.system.lazy import lazy_attributes

__all__ = ["DryRun", "Estimate", "Run"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__, __all__)
