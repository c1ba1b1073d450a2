"""The launch path on a machine without a GPU: what is loaded, launched, copied, when and where."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import listening
import pytest
import torch

from ulmfit_fast.kernels import tiles
from ulmfit_fast.kernels.device import Device

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "kernels/step_launches.md"
HEAD = """# What a step launches

Written by `tests/driver/test_launch_path.py` with ULMFIT_FAST_WRITE_TABLES=1, and compared there:
a step of a language model of three layers with all dropouts, in bfloat16 autocast, with clipping
and a fused Adam, on a device that only listens, with PyTorch {torch}. An operation of PyTorch
launches one kernel or a few; views and allocations are left out. Captured, all of it is one launch
of a graph, beside {captured}.

| in | kernels of ours | operations of PyTorch |
|---|---|---|
"""
HOPPER = Device("cuda", (9, 0), 132, 232_448)
# Beside the embedding's seeds are those of two layers, of what is between them, and of the output.
SEEDS = {5: 6, 4: 5, 2: 2, 0: 0}
captures = pytest.mark.parametrize("count", SEEDS)


@pytest.fixture(scope="module")
def heard(compiler, environment, tmp_path_factory):
    """Return what a listening device heard, by the names that scenarios.py gives."""
    library = tmp_path_factory.mktemp("library")
    listening.build(compiler, library)
    environment = {**environment, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, HERE / "scenarios.py", library]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def events(heard, name, *kinds):
    """Return the events of a scenario that went well, of some kinds or of all."""
    assert heard[name]["error"] is None
    found = heard[name]["events"]
    return [event for event in found if event["what"] in kinds] if kinds else found


def test_launches_go_to_the_device_and_the_stream_of_their_tensors(heard):
    """The device is not the current one."""
    for name in ("layer", "layer on a stream", "step", "capture with 5", "inference"):
        launches = events(heard, name, "launch")
        assert launches and {launch["device"] for launch in launches} == {1}
    (default,) = {launch["stream"] for launch in events(heard, "layer", "launch")}
    (own,) = {launch["stream"] for launch in events(heard, "layer on a stream", "launch")}
    assert default == 0 and own > 0


@pytest.mark.parametrize("name", ["layer", "step with a reading"])
def test_what_is_read_later_is_waited_for_where_it_is_copied(heard, name):
    """Elsewhere the event would be over at once, and memory be read that nothing is in yet."""
    places = [event["place"] for event in events(heard, name, "record")]
    # One a barrier's flag, and one of the loss.
    assert places == {"layer": 2, "step with a reading": 5}[name] * [[1, 0]]


@pytest.mark.parametrize(
    ("name", "form"),
    [("layer", "persistent"), ("layer with its weights on chip", "resident")],
    ids=["pipelined", "resident"],
)
def test_the_persistent_form_is_launched_as_its_tiles_say(heard, name, form):
    plan = tiles.choose(HOPPER, batch_size=20, hidden_size=256, dtype=torch.bfloat16, form=form)
    forward, backward, unmix = events(heard, name, "launch")
    assert [launch["name"] for launch in (forward, backward, unmix)] == [
        "forward_kernel", "backward_kernel", "weight_drop_kernel"
    ]  # fmt: skip
    assert forward["cooperative"] and backward["cooperative"] and not unmix["cooperative"]
    slices = 256 // plan.forward.units
    assert forward["grid"] == [slices, min(plan.forward.groups, -(-20 // plan.forward.rows)), 1]
    pieces = 256 // plan.backward.columns * plan.backward.k_parts
    assert backward["grid"] == [pieces, min(plan.backward.groups, -(-20 // plan.backward.rows)), 1]
    assert forward["threads"] == 32 * plan.forward.warps
    assert backward["threads"] == 32 * plan.backward.warps
    widths = 4 * plan.forward.units, plan.backward.columns
    for launch, tile, width in zip((forward, backward), plan[2:4], widths, strict=True):
        assert tile.resident == (form == "resident")
        weights = 2 * tile.resident * tile.depth(256) * width
        most = tiles._held(tile, 256, 2) if tile.resident else HOPPER.shared_memory
        assert weights <= launch["shared"] <= most


@pytest.mark.parametrize("p", [0.2, 0.25, 1.0, 2.0**-32])
def test_no_probability_compiles_anything(heard, p):
    assert len(events(heard, "layer", "load")) == 3
    assert not events(heard, f"layer with p = {p}", "load")


@pytest.mark.parametrize("p", [0.2, 0.25])
def test_no_probability_and_no_learning_rate_of_a_step_compile_anything(heard, p):
    assert events(heard, "first steps", "load")
    assert not events(heard, f"steps with p = {p}", "load")


@pytest.mark.parametrize("index", [0, 1])
def test_no_place_of_a_seed_in_memory_compiles_anything(heard, index):
    assert not events(heard, f"layer with seed {index}", "load")


@pytest.mark.parametrize("name", ["layer", "step", "inference"])
def test_nothing_waits_and_no_operator_copies_from_the_host(heard, name):
    assert not events(heard, name, "wait", "synchronize")
    assert not [event for event in events(heard, name, "upload") if event["operator"]]


def test_cudnn_on_a_dropped_weight_neither_warns_nor_waits(heard):
    """Warnings are errors there, and so is a state that is not contiguous."""
    assert not events(heard, "cudnn", "wait", "synchronize")
    (launch,) = events(heard, "cudnn", "launch")
    assert launch["name"] == "weight_drop_kernel" and launch["device"] == 1


def test_a_seed_is_moved_once(heard):
    assert len(events(heard, "layer", "upload")) == 1
    assert len(events(heard, "step", "upload")) == SEEDS[5]
    assert not events(heard, "inference", "upload")


@captures
def test_a_captured_step_loads_copies_and_waits_for_nothing(heard, count):
    assert len(events(heard, f"first steps with {count}", "upload")) == 3 * SEEDS[count]
    captured = [event for event in events(heard, f"capture with {count}") if event["capturing"]]
    assert {event["what"] for event in captured} == {"launch", "operation"}
    # All of a step, and nothing beside it.
    names = [event["name"] for event in captured if event["what"] == "launch"]
    warm = events(heard, f"first steps with {count}", "launch")
    assert [event["name"] for event in warm] == 3 * names
    replayed = events(heard, f"replay with {count}", "upload", "wait", "launch", "load", "replay")
    assert [event["what"] for event in replayed] == [*["upload"] * (count > 0), "replay"]


def test_a_text_of_a_million_steps_is_launched(heard):
    """CUDA takes no more than 65,535 blocks along a grid's second and third axes."""
    names = [launch["name"] for launch in events(heard, "long text", "launch")]
    assert names == [
        "embed_kernel", "locked_dropout_kernel", "dropout_and_means_kernel",
        "dropout_and_means_backward_kernel", "locked_dropout_kernel", "embed_kernel",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["layers", "eager layer", "reference layer"])
def test_a_seed_on_the_device_is_never_read(heard, name):
    """PyTorch's operators draw masks between layers, and all of them where no kernel runs."""
    assert events(heard, f"{name} with a seed", "operation")
    assert not events(heard, f"{name} with a seed", "upload", "wait", "synchronize")


@pytest.mark.parametrize("name", ["eager", "torch", "reference"])
def test_a_step_of_torch_operators_can_be_captured(heard, name):
    captured = [event for event in events(heard, f"capture in {name}") if event["capturing"]]
    assert {event["what"] for event in captured} <= {"launch", "operation"} and captured


def test_a_step_of_sgd_can_be_captured_and_one_that_averages_is_refused(heard):
    captured = [event for event in events(heard, "capture of SGD") if event["capturing"]]
    assert {event["what"] for event in captured} == {"launch", "operation"}
    assert "_fused_sgd_" in {event["name"] for event in captured}
    assert heard["capture of NTASGD"]["error"].startswith("ValueError: capture and NTASGD")


def test_a_capture_on_another_device_than_an_earlier_one_has_all_of_a_step(heard):
    """PyTorch's own stream for captures is one of the device that was captured first."""
    warm = events(heard, "first steps on the first device", "launch")
    launches = events(heard, "capture on the first device", "launch")
    assert [launch["name"] for launch in warm] == 3 * [launch["name"] for launch in launches]
    assert all(launch["capturing"] and launch["device"] == 0 for launch in launches)


def test_an_optimizer_that_was_given_another_state_is_captured_anew(heard):
    assert not events(heard, "steps of another state", "replay")
    captured = events(heard, "capture of another state")
    assert any(event["capturing"] for event in captured)


def test_a_model_that_drops_nothing_can_be_captured(heard):
    captured = [event for event in events(heard, "capture of inference") if event["capturing"]]
    assert {event["what"] for event in captured} == {"launch", "operation"}
    launches = [event["name"] for event in captured if event["what"] == "launch"]
    assert launches == 2 * ["forward_kernel"]


@pytest.mark.parametrize(
    ("name", "error"),
    [("a body that fails", "ValueError: made up"), ("a capture that fails", "RuntimeError: ")],
)
def test_after_a_capture_that_failed_the_stream_is_the_callers(heard, name, error):
    assert heard[name]["error"].startswith(error)
    assert heard[name]["streams"] == [0, 0]


def listed(found):
    """Return how many there are of each name, as one cell of a table."""
    counts = Counter(event["name"] for event in found)
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def test_the_table_is_that_of_a_step(heard):
    """Each row is an operator of ours; the last but one what is outside of all of them."""
    step = events(heard, "step of three layers", "launch", "operation")
    places = Counter(event["operator"] for event in step)
    rows = []
    for place in sorted(places, key=lambda name: (name == "", name)):
        inside = [event for event in step if event["operator"] == place]
        kinds = [[e for e in inside if e["what"] == what] for what in ("launch", "operation")]
        rows.append(f"| {place or 'none'} | {listed(kinds[0])} | {listed(kinds[1])} |")
    kinds = Counter(event["what"] for event in step)
    rows.append(f"| **sum** | **{kinds['launch']}** | **{kinds['operation']}** |")
    replay = events(heard, "replay with 5", "operation")
    version = torch.__version__.partition("+")[0]
    head = HEAD.format(torch=version, captured=f"{len(replay)} operations ({listed(replay)})")
    table = head + "\n".join(rows) + "\n"
    if os.environ.get("ULMFIT_FAST_WRITE_TABLES") == "1":
        TABLE.write_text(table, encoding="utf-8")
    committed = TABLE.read_text(encoding="utf-8")
    if f"with PyTorch {version}." not in committed:
        pytest.skip("the table is of another PyTorch, whose operations may be others")
    assert table == committed
