"""The README's examples run, its two commands come first, its numbers are those committed."""

import csv
import json
import re
from pathlib import Path

import pytest

from benchmarks import plots
from ulmfit_fast.report import format_table, scores
from ulmfit_fast.studies.ablation_tables import RowFile, format_ablation

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_two_commands_come_first():
    first = TEXT.index("```python")
    assert TEXT.index("make demo") < TEXT.index("make test") < first


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) >= 2
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("eager: ")


def test_the_api_fits_into_thirty_lines():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 30


def committed(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def metrics():
    return committed("demo_metrics.json")


def test_the_demo_table_is_the_committed_one(metrics):
    assert not metrics["quick"]
    assert format_table(metrics).strip() in TEXT


@pytest.mark.parametrize("name", ["demo_metrics.json", "demo_metrics_seed1.json"])
def test_in_the_committed_runs_each_stage_adds_to_the_one_before(name):
    table = scores(committed(name)["accuracy"])
    stages = ["from scratch", "pre-trained", "+ LM fine-tuned", "+ ULMFiT schedule"]
    for labels in (300, 1000, 3000):
        means = [table[stage][labels]["mean"] for stage in stages]
        assert means == sorted(means), (labels, means)
    for labels, wanted in ((300, 8), (1000, 12)):
        scratch, tuned = (table[stage][labels] for stage in (stages[0], stages[2]))
        margin = tuned["mean"] - scratch["mean"]
        assert margin >= wanted and margin > tuned["spread"] + scratch["spread"]


ABLATIONS = sorted(RESULTS.glob("ablation_*.csv"))


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_the_ablation_tables_are_written_from_the_committed_rows(path):
    rows = RowFile(path).rows
    settings = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    written = path.with_suffix(".md").read_text(encoding="utf-8")
    assert written == format_ablation(rows) + "\n"
    assert len({row.seed for row in rows}) == settings["seeds"] >= 3
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_the_readme_shows_committed_tables_of_the_ablation():
    section = TEXT.split("## What each part of ULMFiT brings")[1].split("\n## ")[0]
    lines = {
        line for path in ABLATIONS for line in path.with_suffix(".md").read_text().splitlines()
    }
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert len(shown) > 30 and set(shown) <= lines


def test_the_gain_of_a_second_process_is_the_committed_one():
    with (RESULTS / "process_scaling_cpu.csv").open(newline="") as file:
        one, two = csv.DictReader(file)
    assert (one["processes"], two["processes"]) == ("1", "2")
    assert f"two processes train {float(two['times_as_fast']):.2f} times as fast" in TEXT


def test_the_section_on_speed_is_written_from_the_committed_rows():
    assert TEXT.count(plots.BEGIN) == TEXT.count(plots.END) == 1
    if not plots.result_files():
        pytest.skip("no report has been committed yet")
    assert plots.section() in TEXT
