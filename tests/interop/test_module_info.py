"""PyTorch's own samples, harness and checks of modules, on `uf.LSTM` with each backend."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("torch_module_tests.py")


@pytest.mark.slow
def test_pytorchs_own_tests_of_modules_pass():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, PROGRAM], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-10_000:]
    ran = int(re.findall(r"^Ran (\d+) tests", done.stderr, flags=re.MULTILINE)[0])
    # None was skipped: 14 checks of 3 backends, 2 dtypes and 2 modes, and those of gradients.
    assert ran == len(re.findall(r" \.\.\. ok$", done.stderr, flags=re.MULTILINE)) >= 14 * 12
    assert done.stderr.endswith("\nOK\n")
