"""How long does the first step take: imports, and the kernels' compilation?

Each implementation runs in processes of its own; the kernels once with an empty cache of compiled
code and then with what that run has left there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.compared.baselines import KERNELS, PLAIN
from benchmarks.harness.cli import run_question
from benchmarks.harness.machine import ROOT
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.show import line

QUESTION = "first_step"
_LONGEST = 80
COLD, WARM = "empty cache", "filled cache"


def run(settings: Settings) -> list[Row]:
    """Measure imports, the first and the second step."""
    if settings.over(QUESTION):
        return []
    settings.say(" a layer {}->{}, B={}, T={}, a process each".format(*_sizes(settings)))
    rows: list[Row] = []
    for name in (PLAIN, *(KERNELS if settings.gpu else ("auto", "eager"))):
        rows += _cold_and_warm(settings, name) if name in KERNELS else _plain(settings, name)
    if settings.cuda:
        rows += _plain(settings, "auto+compile")
    for row in rows:
        settings.say(line(row))
    return rows


def _cold_and_warm(settings: Settings, name: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as cache:
        rows = []
        for state in (COLD, WARM):
            label = f"ulmfit_fast {name}, {state}"
            times = _seconds(settings, name, {"TRITON_CACHE_DIR": cache})
            rows += _rows(settings, label, [times] if times else [])
        return rows


def _plain(settings: Settings, name: str) -> list[Row]:
    times = [_seconds(settings, name, {}) for _ in range(1 if settings.tiny else 2)]
    label = name if name == PLAIN else f"ulmfit_fast {name}"
    return _rows(settings, label, [seconds for seconds in times if seconds])


def _seconds(settings: Settings, name: str, more: dict[str, str]) -> dict[str, float]:
    dtype = str(settings.dtype).removeprefix("torch.")
    if settings.over(f"{QUESTION}: {name}"):
        return {}
    command = [sys.executable, "-m", "benchmarks.compared.first_step", name, settings.device, dtype]
    command += map(str, _sizes(settings))
    environment = {**os.environ, **more}
    try:
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=_LONGEST,
        )
    except subprocess.TimeoutExpired:
        settings.note(f"{name}, {QUESTION}: not there after {_LONGEST} s")
        return {}
    except subprocess.CalledProcessError as error:
        settings.note(f"{name}, {QUESTION}: {error.stderr.strip().splitlines()[-1]}")
        return {}
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def _sizes(settings: Settings) -> tuple[int, int, int, int]:
    return settings.sized((400, 1152, 16, 70), (400, 1152, 64, 70), (6, 16, 3, 3))


def _rows(settings: Settings, label: str, times: list[dict[str, float]]) -> list[Row]:
    input_size, hidden_size, batch_size, steps = _sizes(settings)
    rows = []
    for passes in times[0] if times else ():
        values = sorted(1e6 * seconds[passes] for seconds in times)
        rows.append(
            settings.row(
                question=QUESTION,
                implementation=label,
                passes=passes,
                input_size=input_size,
                hidden_size=hidden_size,
                batch_size=batch_size,
                steps=steps,
                dtype=str(settings.dtype).removeprefix("torch."),
                weight_p=0.0 if label == PLAIN else 0.5,
                median_us=round(statistics.median(values)),
                p10_us=round(values[0]),
                p90_us=round(values[-1]),
                repeats=len(values),
            )
        )
    return rows


if __name__ == "__main__":
    run_question(run, __doc__)
