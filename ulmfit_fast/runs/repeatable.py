"""Products that are the same in each run of a program, so a resumed run equals a whole one."""

from __future__ import annotations

import os

import torch

__all__ = ["repeatable_products"]


def repeatable_products() -> None:
    """Have MKL sum its products in one order, whatever the threads do, from process to process.

    On processors with AVX-512 and with several threads it otherwise may not, and the same command
    with the same seed gives losses that differ in the ninth digit. The command line calls this; a
    program of one's own calls it before its first product, for MKL looks but once. An `MKL_CBWR`
    that is set in the environment stays as it is, and without MKL nothing changes.

    Example:
        >>> from ulmfit_fast.runs import repeatable_products
        >>> repeatable_products()

    Source:
        Intel oneAPI MKL developer guide, Obtaining Numerically Reproducible Results: a branch of
        code, and STRICT, with which neither the alignment nor the number of threads counts.
    """
    instructions = torch.backends.cpu.get_cpu_capability()
    strict = instructions in ("AVX2", "AVX512")
    os.environ.setdefault("MKL_CBWR", f"{instructions},STRICT" if strict else "AUTO")
