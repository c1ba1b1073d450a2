"""Memory of one forward and backward: what is saved in between, and the highest use.

    python -m benchmarks.harness.memory NAME E H B T

measures the highest use of one implementation on the CPU, in a process of its own: what an earlier
call has freed would be used again and not seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness.machine import ROOT

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def saved_bytes(forward: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Return the bytes that autograd keeps of a forward.

    Args:
        forward: runs it.
        known: parameters and inputs, which are there anyway.
    """
    storages = {_storage(tensor) for tensor in known}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in storages:
            found[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # Held until the count is done, or a storage's address could be used twice.
        output = forward()
    del output
    return sum(found.values())


def peak_on_cuda(step: Callable[[], object]) -> int:
    """Return the bytes that a step allocates at its highest, above what was there before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(step: Callable[[], object]) -> int | None:
    """Return the bytes by which this process grows; None where Linux does not tell."""
    try:
        _RESET.write_text("5", encoding="ascii")
        before = _status("VmRSS")
        step()
        return _status("VmHWM") - before
    except OSError:
        return None


def peak_of_process(name: str, *sizes: int) -> int | None:
    """Return `peak_on_cpu` of one implementation in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.questions.memory", "--one", name, *map(str, sizes)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{name}: {result.stderr.strip().splitlines()[-1]}")
    peak: int | None = json.loads(result.stdout)
    return peak


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _status(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise OSError(f"{_STATUS} has no {name}")
