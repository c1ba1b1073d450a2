"""What a run was measured on."""

from __future__ import annotations

import os
import platform

import torch

__all__ = ["machine"]


def machine() -> dict[str, str | int | None]:
    """Return the processor, its cores and the versions, for a report.

    >>> sorted(machine())
    ['cores', 'processor', 'python', 'system', 'threads', 'torch']
    """
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }
