"""Ends a test that hangs, and writes what ran where to the file ULMFIT_FAST_GPU_RESULTS names.

Most of the time goes into compiling, a quarter of a minute a persistent kernel. With pytest-xdist,
`-n 8 -p no:benchmark` does it in parallel, and the processes share the device.
"""

import faulthandler
import functools
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

# Without Triton the modules could not even be imported in order to be skipped.
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]
LONGEST_TEST = 300
_outcomes = []


@pytest.fixture(autouse=True)
def _no_hang():
    """A wait for a kernel that never ends cannot be interrupted: the process has to go."""
    if torch.cuda.is_available():
        faulthandler.dump_traceback_later(LONGEST_TEST, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logstart(nodeid):
    # Written before the test too, so that the file names the one that took the process with it.
    _write(nodeid)


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome == "skipped" or report.failed:
        seconds = round(report.duration, 2)
        _outcomes.append({"test": report.nodeid, "outcome": report.outcome, "seconds": seconds})


def pytest_sessionfinish():
    _write(None)


def _write(running):
    # Under pytest-xdist the controller hears of every test, a worker of its own alone.
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if path := os.environ.get("ULMFIT_FAST_GPU_RESULTS"):
        results = {**_facts(), "running": running, "tests": _outcomes}
        temporary = Path(f"{path}.tmp")
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)


@functools.cache
def _facts():
    import triton

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "none: Triton's interpreter",
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": _first_line("git", "describe", "--always", "--dirty"),
    }


def _first_line(*command):
    if not shutil.which(command[0]):
        return ""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return (result.stdout.splitlines() or [""])[0].strip()
