"""What a process has of a listening device's memory: no more than zeros and ones, and no crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import listening
import pytest

HERE = Path(__file__).parent
READ = {
    "lists": [[[0.0] * 3] * 2, [[1.0] * 3] * 2, [1, 1, 1], 1, []],
    "arrays": [
        ["float32", [[1.0] * 3] * 2],
        ["float32", [[1.0] * 3] * 2],
        ["int64", [1, 1, 1]],
        ["float32", [[0.0] * 3] * 2],
    ],
    # As PyTorch refuses the first three; what is last would look into memory that is not there.
    "refused": {
        "of a device": "TypeError",
        "with a gradient": "RuntimeError",
        "no such dtype": "TypeError",
        "apply_": "TypeError",
        "map_": "TypeError",
        "from_dlpack": "TypeError",
        "data_ptr": 0,
    },
    "generators": [True, 3],
    "waits": ["RuntimeError", "RuntimeError", "torch.Size([])", 0.0],
    "files": {
        "count": ["FakeTensor", "torch.int64", [1, 1, 1, 1]],
        "half": ["FakeTensor", "torch.bfloat16", [[1.0] * 3] * 2],
    },
    "copies": [1, True, True, True],
}


@pytest.fixture(scope="module")
def read(compiler, environment, tmp_path_factory):
    """Return what reading.py read before it ended, and how it ended."""
    library = tmp_path_factory.mktemp("library")
    listening.build(compiler, library)
    environment = {**environment, "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parents[1])))}
    command = [sys.executable, HERE / "reading.py", library]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return dict(map(json.loads, done.stdout.splitlines())), done


@pytest.mark.parametrize("name", READ)
def test_what_is_read_of_a_device_that_only_listens(read, name):
    found, done = read
    assert name in found, done.stderr
    assert found[name] == READ[name]


def test_a_process_that_reads_ends_well(read):
    assert read[1].returncode == 0, read[1].stderr
