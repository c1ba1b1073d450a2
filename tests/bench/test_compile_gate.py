"""The choice of tiles on described devices, and the gate that compiles them without a GPU."""

import os

import pytest
import torch

from ulmfit_fast.kernels import tiles
from ulmfit_fast.kernels.device import Device

pytest.importorskip("triton")
from benchmarks import compile_gate as gate
from benchmarks.compile.record import record

# The gate compiles kernels that Triton's interpreter would replace.
compiles = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="Triton runs in its interpreter"
)
FORWARD = gate.Variant("sm_90", "persistent", "forward", 1152, 64, "bf16", "weight-drop")


def device(name):
    sizes = {
        "A100": ((8, 0), 108, 166_912),
        "H100": ((9, 0), 132, 232_448),
        "B200": ((10, 0), 148, 232_448),
        "RTX 4090": ((8, 9), 128, 101_376),
        "RTX 3060": ((8, 6), 28, 101_376),
        "RTX 3090": ((8, 6), 82, 101_376),
        "L4": ((8, 9), 58, 101_376),
        "T4": ((7, 5), 40, 65_536),
        "P100": ((6, 0), 56, 49_152),
    }
    return Device("cuda", *sizes[name])


def choose(name, dtype=torch.bfloat16, batch_size=64, hidden_size=1152, form=None, **more):
    where = name if isinstance(name, Device) else device(name)
    return tiles.choose(
        where, batch_size=batch_size, hidden_size=hidden_size, dtype=dtype, form=form, **more
    )


@pytest.mark.parametrize("name", ["A100", "H100", "B200", "RTX 4090", "RTX 3090", "L4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("hidden_size", [400, 1150, 1152])
def test_the_persistent_form_needs_no_room_for_the_weight(name, dtype, hidden_size):
    plan = choose(name, dtype, hidden_size=hidden_size, precision="tf32")
    assert plan.form == "persistent"
    units = 32 if name == "L4" and hidden_size > 400 else 16
    assert plan.forward.units == plan.backward.columns // plan.backward.k_parts == units
    blocks = -(-hidden_size // units)
    count = device(name).multiprocessors
    assert plan.reason == f"{blocks} blocks at once, the device has {count} multiprocessors"
    assert not plan.forward.resident and not plan.backward.resident
    assert plan.forward_step and plan.backward_step


def test_the_weight_is_on_chip_where_that_is_asked_for():
    plan, pipelined = (choose("H100", form=form) for form in ("resident", "pipelined"))
    assert pipelined == choose("H100", form="persistent") == choose("H100")
    assert (plan.form, plan.reason) == (pipelined.form, pipelined.reason)
    for tile, other in zip(plan[2:4], pipelined[2:4], strict=True):
        assert tile.resident and not other.resident
        changed = {"resident": True, "block_k": 64, "stages": 2, "warps": 4}
        assert tile == other._replace(**changed)
        assert tile.depth(1152) % tile.block_k == 0


@pytest.mark.parametrize(
    ("name", "hidden_size", "dtype", "needed"),
    [
        ("A100", 1152, torch.bfloat16, 180_224),
        ("RTX 4090", 1152, torch.bfloat16, 180_224),
        ("H100", 1152, torch.float32, 344_064),
        ("RTX 4090", 400, torch.float32, 143_360),
    ],
)
def test_a_weight_that_is_too_large_for_the_chip(name, hidden_size, dtype, needed):
    settings = {"hidden_size": hidden_size, "precision": "tf32"}
    plan = choose(name, dtype, form="resident", **settings)
    assert plan.form is None
    room = device(name).shared_memory
    assert plan.reason == (
        f"the weight of H = {hidden_size} needs {needed} bytes on chip, the device has {room}"
    )


@pytest.mark.parametrize(("rate", "resident"), [(64, False), (30, False), (29, True)])
def test_the_weight_stays_on_chip_where_l2_is_predicted_to_be_slower(rate, resident, monkeypatch):
    monkeypatch.setitem(tiles._L2_BYTES, (9, 0), rate)
    for form in (None, "persistent"):
        assert choose("H100", form=form).forward.resident == resident
        # There it has no room.
        assert not choose("H100", torch.float32, precision="tf32", form=form).forward.resident
    assert not choose("H100", form="pipelined").forward.resident


@pytest.mark.parametrize("name", ["A100", "H100", "B200", "RTX 4090", "L4"])
@pytest.mark.parametrize("batch_size", [1, 16, 64, 128, 1000])
@pytest.mark.parametrize("hidden_size", [400, 1150, 1152])
def test_all_blocks_of_a_launch_fit_on_the_device(name, batch_size, hidden_size):
    plan = choose(name, batch_size=batch_size, hidden_size=hidden_size)
    forward, backward = plan.forward, plan.backward
    blocks = -(-hidden_size // forward.units) * forward.groups
    assert blocks <= device(name).multiprocessors
    blocks = -(-hidden_size // backward.columns) * backward.k_parts * backward.groups
    assert blocks <= device(name).multiprocessors
    for tile, width in ((forward, 4 * forward.units), (backward, backward.columns)):
        # No copy is of less than 16 bytes a thread: L1 would serve it.
        assert 2 * tile.rows * tile.block_k >= 16 * 32 * tile.warps
        assert tile.depth(hidden_size) % tile.block_k == 0
        held = 2 * tile.stages * (tile.rows + width) * tile.block_k
        assert tile.stages >= 3 and held <= device(name).shared_memory


@pytest.mark.parametrize(
    ("name", "dtype", "hidden_size", "reason"),
    [
        ("H100", torch.float32, 1152, "float32 without tf32 has no tensor cores"),
        ("T4", torch.float16, 1152, "the persistent form needs compute capability 8.0"),
        ("RTX 3060", torch.bfloat16, 1152, "H = 1152 needs 36 blocks at once, the device has 28"),
        ("H100", torch.bfloat16, 8192, "H = 8192 needs 256 blocks at once"),
        (Device("hip", (0, 0), 304, 65_536), torch.float16, 1152, "a grid barrier is not"),
    ],
)
def test_stepwise_and_why(name, dtype, hidden_size, reason):
    plan = choose(name, dtype, hidden_size=hidden_size)
    assert plan.form == "stepwise"
    assert plan.reason.startswith(reason)
    refused = choose(name, dtype, hidden_size=hidden_size, form="persistent")
    assert refused.form is None
    assert refused.reason == plan.reason


@pytest.mark.parametrize(
    ("name", "dtype", "hidden_size", "reason"),
    [
        ("H100", torch.float64, 1152, "float64"),
        ("P100", torch.float32, 1152, "the kernels need compute capability 7.5"),
        ("T4", torch.bfloat16, 1152, "bfloat16 needs compute capability 8.0"),
        ("H100", torch.bfloat16, 30_000, "past 2**31"),
    ],
)
def test_neither_form_and_why(name, dtype, hidden_size, reason):
    plan = choose(name, dtype, hidden_size=hidden_size)
    assert plan.form is None
    assert reason in plan.reason


def test_the_report_lists_every_variant():
    assert gate.unlisted(gate.REPORT.read_text(encoding="utf-8")) == []


def test_a_gap_in_the_report_is_seen():
    rows = gate.REPORT.read_text(encoding="utf-8").splitlines(keepends=True)
    gone = rows.pop()
    name = gone.split("|")[1].strip()
    assert gate.unlisted("".join(rows)) == [name]
    assert gate.unlisted("".join(rows) + gone + gone.replace(name, "sm_1")) == ["sm_1"]


@compiles
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_the_pipeline_on_hopper(kernel):
    result = gate.inspect(FORWARD._replace(kernel=kernel))
    assert result.faults == []
    assert result.default
    assert result.found.spilled == result.found.local_accesses == 0
    assert result.found.resident == 0
    width = "64x32x16" if kernel == "forward" else "64x64x16"
    assert result.found.loop.products == {
        f"HGMMA.{width}.F32.BF16": 8 if kernel == "forward" else 4
    }
    # Both operands are copied ahead, past L1, in a loop of its own within the time loop.
    assert 0 < result.found.loop.inner < result.found.loop.instructions
    assert result.found.loop.copied == (128 if kernel == "forward" else 96)
    assert result.found.loop.through_l1 == 0


@compiles
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_the_weight_on_chip_on_hopper(kernel):
    variant = FORWARD._replace(form="resident", kernel=kernel, hidden=400)
    result = gate.inspect(variant)
    assert result.faults == [] and not result.default
    assert result.found.resident == (7 if kernel == "forward" else 4)
    _, tile, *_ = record(variant)
    assert result.found.shared <= tiles._held(tile, 400, 2)


@compiles
def test_copies_that_l1_may_serve_are_a_fault(monkeypatch):
    """With 8 warps a thread copies 8 bytes of a tile of 16 rows, which bypass nothing."""
    variant = FORWARD._replace(kernel="backward", hidden=400)
    assert gate.inspect(variant).faults == []
    monkeypatch.setitem(tiles._COPY, 8, 0)
    assert any("go through L1" in fault for fault in gate.inspect(variant).faults)
