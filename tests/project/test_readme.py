"""The examples of README.md and docs/ run, and their numbers are those committed."""

import csv
import itertools
import json
import re
import shlex
import statistics
from functools import partial
from pathlib import Path

import pytest
from native import compiled

from benchmarks import label_sizes, plots
from ulmfit_fast.report import format_table, scores
from ulmfit_fast.studies.ablation_tables import RowFile, format_ablation

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}


BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', flags=re.DOTALL | re.MULTILINE)


def blocks(path):
    """Return language, title and text of each block of code."""
    return BLOCK.findall(TEXTS[path])


def code(path, language):
    return [text for kind, _, text in blocks(path) if kind == language]


def test_the_readme_fits_a_screen_and_says_first_what_it_is():
    text = TEXTS[README]
    assert len(text.splitlines()) <= 135
    heads = ["Equivalent to", "Install", "The LSTM", "ULMFiT", "Measured", "See it work"]
    places = [text.index(f"\n## {head}") for head in [*heads, "Where to go next", "Limits"]]
    assert places == sorted(places)
    for path in (README, ROOT / "docs" / "install.md"):
        first, second, *_ = code(path, "sh")[0].splitlines()
        assert first == "pip install torch --index-url https://download.pytorch.org/whl/cpu"
        assert second.startswith("pip install 'ulmfit-fast[text]' ")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_each_block_names_its_language(path):
    assert "```" not in BLOCK.sub("", TEXTS[path])


def test_the_readme_names_the_two_commands():
    commands = [
        line.partition("#")[0].strip() for text in code(README, "sh") for line in text.splitlines()
    ]
    assert {"make demo", "make test"} <= set(commands)


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if path != TUTORIAL and code(path, "python")],
    ids=lambda path: path.name,
)
def test_the_examples_run(path, tmp_path, monkeypatch, capsys):
    """As one program a page, from its first block to its last."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, block in enumerate(code(path, "python"), start=1):
        exec(compile(block, f"{path.name}, block {number}", "exec"), names)
    if path == README:
        assert capsys.readouterr().out.startswith("native: " if compiled() else "eager: ")


def test_the_api_fits_into_thirty_lines():
    lines = [
        line for line in code(ROOT / "docs" / "python.md", "python")[0].splitlines() if line.strip()
    ]
    assert len(lines) <= 30


def commands():
    """Return all lines of shells that run this package, with the page."""
    for path in PAGES:
        for text in code(path, "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.partition(">")[0], comments=True)
                for program in ("ulmfit-fast", "ulmfit_fast"):
                    if program in words:
                        yield path, words[words.index(program) + 1 :]


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, id=f"{path.name}: {' '.join(words)}") for path, words in commands()],
)
def test_the_shell_knows_the_commands_and_their_options(words):
    typer = pytest.importorskip("typer")
    from ulmfit_fast.cli.program import app

    typer.main.get_command(app).commands[words[0]].make_context(words[0], words[1:])


def committed(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def metrics():
    return committed("demo_metrics.json")


def test_the_demo_table_is_the_committed_one(metrics):
    assert not metrics["quick"]
    assert format_table(metrics).strip() in TEXTS[ROOT / "docs" / "ablation.md"]


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


def test_the_page_on_the_ablation_shows_committed_tables():
    section = TEXTS[ROOT / "docs" / "ablation.md"].split("\n## What each part of ULMFiT brings")[1]
    lines = {
        line for path in ABLATIONS for line in path.with_suffix(".md").read_text().splitlines()
    }
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert len(shown) > 30 and set(shown) <= lines


def test_what_is_said_of_batch_sizes_and_epochs_is_what_was_measured():
    fits = label_sizes.read_fits()
    text = TEXTS[ROOT / "docs" / "small-data.md"]
    assert label_sizes.table(fits) in text

    words = " ".join(text.split())

    def mean(preset, count, epochs, size):
        cell = (preset, epochs, size)
        return statistics.mean(
            fit.accuracy
            for fit in fits
            if (fit.preset, fit.epochs, fit.batch_size) == cell
            and (fit.labels == count or (count == "all" and fit.labels > 2000))
        )

    for count, size in itertools.product((100, 500), label_sizes.BATCHES):
        five, ten, twenty = (mean("small", count, epochs, size) for epochs in (5, 10, 20))
        assert five < ten < twenty
    best = {
        count: max(label_sizes.BATCHES, key=partial(mean, "small", count, 20))
        for count in (100, 500, 2000)
    }
    assert best == {100: 8, 500: 8, 2000: 16}
    assert "with 20 epochs a batch of 8 was best; at 2,000 labels 16 was" in words
    for size in (16, 64):
        assert mean("small", "all", 5, size) < mean("small", "all", 10, size)
        for count in (100, 500):
            of = partial(mean, count=count, size=size)
            assert max((5, 10, 20), key=lambda n: of("medium", epochs=n)) == 20
            assert of("medium", epochs=20) < of("small", epochs=20)
    ten = [mean("small", "all", 10, size) for size in (16, 64)]
    assert max(ten) - min(ten) < 0.01 and "the size mattered little" in words
    ahead = [fit for fit in fits if fit.labels > 2000 and fit.accuracy > fit.bag_of_words]
    assert {fit.set for fit in ahead if (fit.batch_size, fit.epochs) == (64, 10)} == {
        *("trec6", "subj", "pt_hatebr"),
    }
    assert (
        "with all labels `small` at 64 \N{MULTIPLICATION SIGN} 10 is ahead of it on each set"
        in words
    )
    whole = {
        (fit.set, fit.preset): fit.accuracy
        for fit in fits
        if fit.labels > 2000 and (fit.batch_size, fit.epochs) == (64, 10)
    }
    assert all(whole[n, "medium"] < whole[n, "small"] for n in ("trec6", "subj", "pt_hatebr"))


def test_the_gain_of_a_second_process_is_the_committed_one():
    with (RESULTS / "process_scaling_cpu.csv").open(newline="") as file:
        one, two = csv.DictReader(file)
    assert (one["processes"], two["processes"]) == ("1", "2")
    assert f"two processes train {float(two['times_as_fast']):.2f} times as fast" in " ".join(
        TEXTS[ROOT / "docs" / "many-gpus.md"].split()
    )


def test_what_is_said_of_bfloat16_is_what_was_measured():
    with (RESULTS / "loss_curves.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    curves, perplexities = {}, {}
    for row in rows:
        key = row["precision"], row["seed"]
        curves.setdefault(key, []).append(float(row["loss"]))
        perplexities[key] = row["held_out_perplexity"]

    def apart(one, other):
        return max(abs(a - b) for a, b in zip(curves[one], curves[other], strict=True))

    text = " ".join(TEXTS[ROOT / "docs" / "benchmarks.md"].split())
    rounding = max(apart(("float32", seed), ("bfloat16", seed)) for seed in "01")
    seeds = apart(("float32", "0"), ("float32", "1"))
    assert f"{rounding:.3f} nats apart at most; two seeds in float32 are {seeds:.3f} apart" in text
    told = [perplexities[name, seed] for seed in "01" for name in ("float32", "bfloat16")]
    assert "{} in float32 and {} in bfloat16 with one seed, {} and {} with".format(*told) in text


def test_the_demo_in_bfloat16_is_within_the_spread_of_float32(metrics):
    half = committed("demo_metrics_bfloat16.json")
    assert half["settings"]["schedule"]["precision"] == "bfloat16" and not half["quick"]
    tables = scores(metrics["accuracy"]), scores(half["accuracy"])
    methods = ["from scratch", "pre-trained", "+ LM fine-tuned", "+ ULMFiT schedule"]
    cells = [(method, labels) for method in methods for labels in (300, 1000, 3000)]
    found = [[table[method][labels] for method, labels in cells] for table in tables]
    apart = [b["mean"] - a["mean"] for a, b in zip(*found, strict=True)]
    assert len(apart) == 12 and f"{max(map(abs, apart)):.1f}" == "1.6"
    assert abs(sum(apart)) / 12 < 0.1
    assert f"{max(cell['spread'] for row in found for cell in row):.1f}" == "2.7"
    text = " ".join(TEXTS[ROOT / "docs" / "benchmarks.md"].split())
    for words in (
        "none is more than 1.6",
        "differs by less than 0.1",
        "spread by up to 2.7 points",
    ):
        assert words in text


@pytest.mark.parametrize("name", plots.DOCUMENTS)
def test_the_tables_of_speed_are_written_from_the_committed_rows(name):
    text = TEXTS[ROOT / name]
    assert text.count(plots.BEGIN) == text.count(plots.END) == 1
    if not plots.result_files():
        pytest.skip("no report has been committed yet")
    assert plots.DOCUMENTS[name]() in text
