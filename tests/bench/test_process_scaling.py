"""The measurement of how training in several processes scales, at a tiny size."""

import csv

import pytest

from benchmarks import process_scaling

TINY = {"emb-size": 8, "hidden-size": 12, "num-layers": 1, "batch-size": 4, "bptt": 10}


@pytest.mark.slow
def test_one_and_two_processes_are_measured_side_by_side(tmp_path):
    rows = process_scaling.measure([1, 2], 1, steps=20, words=50, sizes=TINY)
    one, two = rows
    assert (one.processes, two.processes) == (1, 2)
    assert one.times_as_fast == one.efficiency == 1.0
    assert 0 < two.p10 <= two.tokens_per_second <= two.p90
    assert two.efficiency == pytest.approx(two.times_as_fast / 2, abs=1e-3)
    assert one.steps == two.steps >= 20 - process_scaling.WARM_UP
    process_scaling.write(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["processes"] for row in found] == ["1", "2"] and found[0]["threads"] == "1"


def test_a_failed_training_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("a few words")
    with pytest.raises(RuntimeError, match=r"1 processes failed: (.|\n)*expected at least"):
        process_scaling.speeds(tmp_path / "a.txt", tmp_path / "out", 1, TINY)
