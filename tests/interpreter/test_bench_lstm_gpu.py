"""The GPU benchmark, rehearsed at tiny shapes, so that a GPU's minutes are spent on numbers."""

import csv
import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

from benchmarks import bench_lstm_gpu as bench


def test_every_implementation_is_checked_and_timed(tmp_path):
    path = tmp_path / "rows.csv"
    bench.main(["--rehearse", "--out", str(path)])
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {row["implementation"] for row in rows}
    assert names == {bench.BASELINE, "nn.LSTM", *bench.KERNELS}
    assert len(rows) == len(bench.TINY_SHAPES) * len(names) * 2
    assert all(float(row["median_us"]) > 0 for row in rows)
    assert any(float(row["error"]) > 0 for row in rows)


def test_what_is_wrong_is_not_timed(monkeypatch, capsys):
    monkeypatch.setattr(bench, "error_of", lambda name, *rest: float(name in bench.KERNELS))
    rows = bench.measure(bench.TINY_SHAPES[1], 2, 2, "cpu", bench.facts_of("cpu"))
    assert {row.implementation for row in rows} == {bench.BASELINE, "nn.LSTM"}
    assert capsys.readouterr().out.count("WRONG by 1.00e+00, not timed") == len(bench.KERNELS)


def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        bench.main([])
    assert "there is no CUDA device" in capsys.readouterr().err
