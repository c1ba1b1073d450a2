"""Writes what ran where to the file that ULMFIT_FAST_GPU_RESULTS names."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import torch
import triton

_outcomes = []


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome == "skipped" or report.failed:
        seconds = round(report.duration, 2)
        _outcomes.append({"test": report.nodeid, "outcome": report.outcome, "seconds": seconds})


def _first_line(*command):
    if not shutil.which(command[0]):
        return ""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return (result.stdout.splitlines() or [""])[0].strip()


def pytest_sessionfinish():
    path = os.environ.get("ULMFIT_FAST_GPU_RESULTS")
    if not path:
        return
    cuda = torch.cuda.is_available()
    facts = {
        "device": torch.cuda.get_device_name() if cuda else "none: Triton's interpreter",
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": _first_line("git", "describe", "--always", "--dirty"),
        "tests": _outcomes,
    }
    temporary = Path(f"{path}.tmp")
    temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
