"""The README's examples run, its two commands come first, its numbers are those committed."""

import json
import re
from pathlib import Path

from ulmfit_fast.report import format_table

ROOT = Path(__file__).parents[1]
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


def test_the_demo_table_is_the_committed_one():
    path = ROOT / "benchmarks" / "results" / "demo_metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    assert not metrics["quick"]
    assert format_table(metrics).strip() in TEXT
