"""Memory stays flat however many steps are trained."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory_flat

GROWTH = """
import os, sys
from pathlib import Path
import torch
from benchmarks import memory_flat
torch.set_num_threads(1)
kept = []
for name, each_step in (("plain", None), ("leak", lambda: kept.append(os.urandom(20_000)))):
    tokens = 50 * memory_flat.BATCH_SIZE * memory_flat.BPTT
    store = memory_flat.make_store(Path(sys.argv[1]) / name, tokens)
    assert len(store.ids) * 8 > 40 * memory_flat.BATCH_SIZE * memory_flat.BPTT
    samples = memory_flat.measure(store, 15, each_step=each_step, say=lambda line: None)
    print(memory_flat.growth(samples))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_memory_stays_flat_and_a_leak_would_show(tmp_path: Path) -> None:
    """The whole measurement, of 10,000 steps, is `python -m benchmarks.memory_flat`."""
    # In a process of its own: what other tests have freed would take a leak in unseen.
    result = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    plain, leak = map(float, result.stdout.split())
    assert plain < 5_000 < 15_000 < leak < 25_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_the_measurement_of_memory_is_written(tmp_path: Path) -> None:
    store = memory_flat.make_store(tmp_path / "store", 5_000)
    samples = memory_flat.measure(store, 3, say=lambda line: None)
    assert [sample.epoch for sample in samples] == [1, 2, 3]
    assert samples[2].step == 3 * samples[0].step > 30
    memory_flat.write(tmp_path / "a.csv", samples)
    header, *rows = (tmp_path / "a.csv").read_text().splitlines()
    assert header.startswith("step,epoch,resident_bytes,mapped_bytes,own_bytes") and len(rows) == 3
    grown = [dataclasses.replace(samples[0], step=n, own_bytes=n * 700) for n in range(10)]
    assert memory_flat.growth(grown) == 700
