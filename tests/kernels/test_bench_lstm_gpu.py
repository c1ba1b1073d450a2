"""The GPU's report, walked at tiny shapes, so that a GPU's minutes are spent on numbers."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

from interpreted_grid import concurrent_blocks

from benchmarks import report, warm
from benchmarks.compared import baselines
from benchmarks.compared.alternatives import ALTERNATIVES, Alternative
from benchmarks.harness import barrier
from benchmarks.harness.rows import read_rows
from benchmarks.harness.settings import Settings
from benchmarks.questions import alternatives as bench_alternatives
from benchmarks.questions import dropout_cost, layers
from benchmarks.questions.all import QUESTIONS
from ulmfit_fast.kernels import backward_persistent, forward_persistent

# Kernels and K ranges of the alternatives that need several blocks.
SPLIT = {("forward", 2), ("forward", 4), ("backward", 4)}
KERNELS = {f"ulmfit_fast {name}" for name in baselines.KERNELS}
ASKED_FOR = {bench_alternatives.CHOSEN, f"ulmfit_fast {baselines.RESIDENT}"}


def dry_run(tmp_path, *questions):
    code = report.main(["--dry-run", "--out", str(tmp_path), "--only", *questions])
    (path,) = tmp_path.glob("dry_run_*.csv")
    return code, read_rows(path)


@pytest.mark.slow
def test_the_whole_path_of_a_gpu(tmp_path, capsys):
    # The first step, the layers and predictions have tests of their own; tokens and texts are the
    # CPU's alone.
    elsewhere = ("first_step", "layer", "predict", "tokenize", "generate")
    asked = [q for q in QUESTIONS if q not in elsewhere]
    code, rows = dry_run(tmp_path, *asked)
    text = capsys.readouterr().out
    assert code == 0 and "WRONG" not in text
    assert {row.question for row in rows} == set(asked)
    assert all(row.median_us or row.saved_bytes for row in rows)
    assert KERNELS <= {row.implementation for row in rows}


@pytest.mark.slow
def test_layers_are_checked_and_timed_eagerly_and_as_graphs(tmp_path):
    _, rows = dry_run(tmp_path, "layer")
    assert {row.question for row in rows} == {"layer", "stack"}
    assert {row.launched for row in rows} == {"eager", "graph"}
    assert {row.passes for row in rows} == {"forward", "training"}
    assert {row.dtype for row in rows} == {"float16", "float32"}
    names = {row.implementation for row in rows}
    assert names >= KERNELS | {baselines.TODAY, baselines.PLAIN, "cuDNN at its best"}
    assert all(row.right and row.median_us > 0 and row.floor_us > 0 for row in rows)
    assert any(row.error > 0 for row in rows if row.implementation in KERNELS)


def test_alternatives_are_launched_checked_and_timed(tmp_path, monkeypatch, capsys):
    """Those that need several blocks at once as well, which a dry run leaves out."""
    ran = []
    for module in (forward_persistent, backward_persistent):
        launch = module.launch

        def launched(kernel, grid, args, constants, *rest, launch=launch, **more):
            ran.append((kernel.__name__, constants["STAGES"], constants["K_PARTS"], grid[0]))
            return launch(kernel, grid, args, constants, *rest, **more)

        monkeypatch.setattr(module, "launch", launched)
    together = [a for a in ALTERNATIVES if a.many_blocks]
    assert {(a.kernel, a.tile["k_parts"]) for a in together if "k_parts" in a.tile} == SPLIT
    monkeypatch.setattr(Alternative, "many_blocks", False)
    with concurrent_blocks(0, at_accesses=False):
        code, rows = dry_run(tmp_path, "alternatives")
    assert code == 0 and "WRONG" not in capsys.readouterr().out
    names = {row.implementation for row in rows if row.times_as_fast}
    wanted = {f"{a.kernel}: {a.name}" for a in ALTERNATIVES}
    assert names == ASKED_FOR | wanted
    kernels = ("forward", "backward")
    assert {(f"{k}_kernel", n) for k in kernels for n in (2, 3)} <= {r[:2] for r in ran}
    # Several blocks each, and not only those that share a range.
    many = {(name, parts) for name, _, parts, blocks in ran if blocks > 2}
    assert many >= {(f"{kernel}_kernel", parts) for kernel, parts in SPLIT}


def test_a_dry_run_leaves_out_what_needs_several_blocks_at_once(monkeypatch):
    made = []

    def compare_layers(settings, makers, **shape):
        weights = baselines.make_weights(shape["widths"], "cpu")
        made.extend(make(weights).name for make in makers)
        return []

    monkeypatch.setattr(bench_alternatives, "compare_layers", compare_layers)
    bench_alternatives.run(Settings(gpu=True, tiny=True, repeats=1))
    one_block = {f"{a.kernel}: {a.name}" for a in ALTERNATIVES if not a.many_blocks}
    assert set(made) == ASKED_FOR | one_block


def test_a_kernel_that_is_wrong_is_not_timed(monkeypatch):
    said = []
    settings = Settings(gpu=True, tiny=True, repeats=1, say=said.append)
    right = baselines.results

    def spoilt(implementation, x, grad):
        got = right(implementation, x, grad)
        return [1.1 * value for value in got] if implementation.name in KERNELS else got

    monkeypatch.setattr(baselines, "results", spoilt)
    makers = [layers.today(settings), *(layers.ours(settings, n) for n in baselines.KERNELS)]
    shape = {"widths": (6, 16), "batch_size": 3, "steps": 2, "passes": ("forward",)}
    rows = layers.compare_layers(settings, makers, question="layer", **shape)
    assert {row.implementation for row in rows if row.median_us} == {baselines.TODAY}
    assert sum("WRONG" in line for line in said) == len(KERNELS)


def test_the_barrier_of_the_kernels_is_what_is_timed():
    assert int(barrier.synchronize(1, 3, "cpu")) == 0
    settings = Settings(gpu=True, tiny=True, repeats=1)
    assert barrier.barrier_us(settings) > 0
    assert settings.notes == []


def test_workers_share_the_kernels_between_them(monkeypatch):
    compiled = []
    right = layers.step_of

    def step_of(run, implementation, inputs, grad, passes):
        compiled.append((implementation.name, passes))
        return right(run, implementation, inputs, grad, passes)

    monkeypatch.setattr(layers, "step_of", step_of)
    shares = [[], []]
    for worker in range(2):
        compiled.clear()
        settings = Settings(gpu=True, tiny=True, share=warm.Share(worker, 2), say=len)
        for _ in range(2):
            assert dropout_cost.run(settings) == []
        assert settings.notes == []
        shares[worker] += compiled
    # Two forms with four choices of dropouts, forward and training, each once.
    assert len(shares[0]) == len(shares[1]) == 8 and not set(shares[0]) & set(shares[1])
