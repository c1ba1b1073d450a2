"""The tutorial and the quick demo run as a user would run them: in `make examples`."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from two_processes import free_port

from ulmfit_fast.report import format_score, scores

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', flags=re.DOTALL | re.MULTILINE)


def script(path, port):
    """Return a page as one script of a shell: its files, its programs, its commands."""
    parts = ["trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n"]
    for language, title, text in BLOCK.findall(path.read_text(encoding="utf-8")):
        if language == "sh":
            parts.append(text)
        elif title:
            parts.append(f"cat > {title} <<'END OF FILE'\n{text}END OF FILE\n")
        else:
            parts.append(f"python - <<'END OF FILE'\n{text}END OF FILE\n")
    return "".join(parts).replace("8000", str(port))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="no bash or curl")
def test_the_tutorial_runs_as_it_stands(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    python = shlex.quote(sys.executable)
    for name, command in (("python", python), ("ulmfit-fast", f"{python} -m ulmfit_fast")):
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "NO_PROXY": "127.0.0.1",
    }
    place = tmp_path / "work"
    place.mkdir()
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script(TUTORIAL, free_port())],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    right, held_out = map(int, re.findall(r"^(\d+) of (\d+) held", result.stdout, re.MULTILINE)[0])
    assert held_out == 80 and right >= 52  # by chance 40 +- 4.5
    (answer,) = json.loads(result.stdout.splitlines()[-1])
    assert answer["label"] in ("concurrency", "internet") and 0.5 <= answer["probability"] <= 1


@pytest.mark.slow
def test_the_quick_demo_runs_as_it_stands(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "ulmfit_fast", "demo", "--quick", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["metrics.json", "report.html"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for method, row in scores(metrics["accuracy"]).items():
        (line,) = (line for line in process.stdout.splitlines() if f"| {method} " in f"| {line}")
        assert all(format_score(score) in line for score in row.values())
