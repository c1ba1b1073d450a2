"""The first run on a GPU, end to end, on a machine without one: its stages are real processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(program, *arguments, environment):
    command = [sys.executable, HERE / program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_stage_finds_all_that_it_launches_in_a_cache_made_beforehand(tmp_path, environment):
    """One stage, which goes the whole way; `rehearse.py` has all of them."""
    made, cache, out = (tmp_path / name for name in ("made", "cache", "out"))
    said = run("fill_cache.py", made, "--only", "capture", environment=environment)
    assert said.split()[1] == "kernels,"
    made.rename(cache)
    arguments = ("--out", out, "--cache", cache, "--only", "capture")
    told = run("rehearse.py", *arguments, environment=environment).splitlines()
    summary = json.loads((out / "first_run.json").read_text())
    assert summary["capture"]["ended"] == "well", (out / "capture.log").read_text()
    *steps, last = map(json.loads, (out / "capture.jsonl").read_text().splitlines())
    assert [step["step"] for step in steps] == ["all dropouts", "no dropout"]
    assert all(step["right"] and step["captured_ms"] > 0 for step in steps)
    assert last == {"kernels": {"compiled": 0, "from_cache": int(said.split()[0])}}
    assert [line.split()[0] for line in told[2:]] == ["all", "no", "capture"]
