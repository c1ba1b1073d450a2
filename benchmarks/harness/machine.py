"""What a number depends on besides the code: processor, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
_CPUINFO = Path("/proc/cpuinfo")


def facts(device: str) -> dict[str, Any]:
    """Return the fields of a row that describe the machine and the versions.

    Args:
        device: "cpu" or "cuda".
    """
    cuda = device == "cuda"
    commit, dirty = _commit()
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "driver": _driver() if cuda else "",
        "torch": torch.__version__,
        "triton": _version("triton", "pytorch-triton"),
        "cudnn": str(torch.backends.cudnn.version()) if cuda else "",
        "python": platform.python_version(),
        "commit": commit,
        "dirty": dirty,
    }


def processor() -> str:
    """Return the name of the CPU; where a host hides its number, with family and model."""
    name = _cpuinfo("model name")
    if name and not any(map(str.isdigit, name)):
        name = f"{name} {_cpuinfo('cpu family')}-{_cpuinfo('model')}"
    return name or platform.processor() or platform.machine()


def why_no_bfloat16() -> str | None:
    """Say why a CPU computes bfloat16 in emulation, or None where it has instructions for it."""
    flags = _cpuinfo("flags").split()
    if "amx_bf16" in flags or "avx512_bf16" in flags:
        return None
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{processor()} has neither AMX nor AVX512-bf16 (PyTorch uses {capability})"


def _version(*names: str) -> str:
    """Return the version of a package that goes by one of these names."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _cpuinfo(name: str) -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def _driver() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return lines.split("\n")[0]


def _commit() -> tuple[str, bool]:
    if not shutil.which("git"):
        return "unknown", True
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    # The results are written by the run itself; they change no number.
    changed = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"]
    return commit or "unknown", not commit or bool(_output("git", "-C", str(ROOT), *changed))


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip()
