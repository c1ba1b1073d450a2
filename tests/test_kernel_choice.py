"""When `auto` takes the Triton kernels, and what it says of them."""

import pytest
import torch

import ulmfit_fast as uf
from ulmfit_fast import functional
from ulmfit_fast.backend import Choice, KernelPlan, choose
from ulmfit_fast.functional import kernel_plan
from ulmfit_fast.kernels import tiles
from ulmfit_fast.kernels.device import Device
from ulmfit_fast.kernels.launch import matmul_precision

CUDA = torch.device("cuda")


def plan(form):
    """Return kernels that can run in one form alone, or not at all."""

    def kernels(asked):
        if form is None or asked not in (None, form):
            return KernelPlan(None, "of some reason")
        return KernelPlan(form, "because")

    return kernels


def chosen(backend="auto", form="persistent", hidden_size=1152, device=CUDA, **settings):
    settings = {"batch_size": 64, "input_size": 400, **settings}
    settings = {"has_gate_mask": False, "dtype": torch.bfloat16, **settings}
    return choose(
        backend,
        device=device,
        hidden_size=hidden_size,
        **{"kernels": plan(form), **settings},
    )


@pytest.mark.parametrize(
    ("form", "hidden_size", "settings", "expected"),
    [
        ("persistent", 1152, {}, "triton"),
        ("persistent", 1152, {"mixed_state": True}, "triton"),
        ("persistent", 1152, {"has_gate_mask": True}, "triton"),
        ("persistent", 128, {}, "torch"),
        ("persistent", 128, {"has_gate_mask": True}, "triton"),
        ("persistent", 128, {"has_lengths": True}, "triton"),
        ("stepwise", 1152, {}, "torch"),
        ("stepwise", 1152, {"has_gate_mask": True}, "triton"),
        ("stepwise", 1152, {"has_lengths": True}, "triton"),
        (None, 1152, {}, "torch"),
        (None, 1152, {"has_gate_mask": True}, "eager"),
        (None, 1152, {"has_lengths": True}, "eager"),
    ],
    ids=str,
)
def test_auto_on_cuda(form, hidden_size, settings, expected):
    choice = chosen(form=form, hidden_size=hidden_size, **settings)
    assert choice.name == expected
    assert choice.form == "auto"
    assert choice.reason


@pytest.mark.parametrize(
    ("form", "hidden_size"), [("persistent", 1152), ("persistent", 128), (None, 9)]
)
def test_what_auto_prefers_is_a_prediction(form, hidden_size):
    assert chosen(form=form, hidden_size=hidden_size).reason.endswith("; predicted, not measured")
    if form:
        named = chosen(f"triton-{form}", form, hidden_size)
        assert "predicted" not in named.reason


def test_a_user_reads_of_form_and_tiles(monkeypatch):
    device = Device("cuda", (9, 0), 132, 232_448)
    monkeypatch.setattr("ulmfit_fast.kernels.device.describe_device", lambda _: device)
    settings = {"dtype": torch.bfloat16, "hidden_size": 1152, "batch_size": 64}
    plan = kernel_plan(None, device=CUDA, **settings)
    choice = chosen(**settings, kernels=lambda _: plan)
    assert f"{choice.name}: {choice.reason}" == (
        "triton: persistent form, 72 blocks at once, the device has 132 multiprocessors, pipelined "
        "tiles of 64 x 64 x 128 forwards and 64 x 128 x 64 backwards; predicted, not measured"
    )
    named = chosen(
        "triton-resident",
        **settings,
        kernels=lambda form: kernel_plan(form, device=CUDA, **settings),
    )
    assert named == Choice(
        "triton",
        'persistent form, asked for by backend="triton-resident"; 72 blocks at once, the device '
        "has 132 multiprocessors, resident tiles of 64 x 64 x 64 forwards and 64 x 128 x 64 "
        "backwards",
        "resident",
    )


HALF = {"dtype": torch.float16, "batch_size": 128, "input_size": 512}


@pytest.mark.parametrize(
    ("hidden_size", "settings", "expected"),
    [
        (1024, {}, "torch"),
        (256, {"batch_size": 8}, "torch"),
        (1024, {"has_gate_mask": True}, "triton"),
        (1024, {"dtype": torch.bfloat16}, "triton"),
        (1152, {}, "triton"),
        (1000, {}, "triton"),
        (1024, {"input_size": 400}, "triton"),
        (1024, {"batch_size": 60}, "triton"),
        (1024, {"batch_size": 136}, "triton"),
    ],
    ids=str,
)
def test_auto_leaves_cudnn_what_its_own_persistent_algorithm_takes(hidden_size, settings, expected):
    assert chosen(hidden_size=hidden_size, **{**HALF, **settings}).name == expected


DEVICES = [Device("cuda", (8, 6), 84, 101_376), Device("cuda", (8, 9), 58, 101_376)]


@pytest.mark.parametrize("device", DEVICES, ids=["sm_86", "sm_89"])
@pytest.mark.parametrize("hidden_size", [400, 512, 650, 1150, 1152])
def test_the_choice_is_that_of_the_batch(device, hidden_size, monkeypatch):
    """At B = 128 not every form can run, or is the better one, that is so at B = 1."""
    monkeypatch.setattr("ulmfit_fast.kernels.device.describe_device", lambda _: device)
    settings = {"dtype": torch.bfloat16, "hidden_size": hidden_size}
    for size in (1, 128):
        plan = kernel_plan(None, device=CUDA, batch_size=size, **settings)
        run = tiles.choose(device, batch_size=size, **settings)
        assert (plan.form, plan.reason) == (run.form, f"{run.reason}, {run.tiles()}")


def test_what_the_kernels_are_asked_is_what_they_run(monkeypatch):
    asked = []

    def plan(form, **settings):
        asked.append(settings)
        return KernelPlan(None, "of some reason")

    monkeypatch.setattr(functional, "kernel_plan", plan)
    lstm, x, lengths = uf.LSTM(4, 8), torch.randn(5, 3, 4), torch.tensor([5, 2, 3])
    for given in (None, lengths):
        with pytest.raises(RuntimeError), uf.backend.use("triton"):
            lstm(x, lengths=given)
        with uf.backend.use("triton"):
            uf.backend.explain(lstm, x, lengths=given)
    assert [settings["batch_size"] for settings in asked] == [3] * 4


def test_auto_on_the_cpu_never_takes_the_interpreter():
    for settings in ({}, {"has_gate_mask": True}, {"dtype": torch.float32}):
        assert chosen(device=torch.device("cpu"), **settings).name != "triton"


@pytest.mark.parametrize("form", ["persistent", "stepwise"])
def test_a_form_asked_for_by_name_is_the_one_that_runs(form):
    assert chosen(f"triton-{form}", form) == Choice(
        "triton", f'{form} form, asked for by backend="triton-{form}"; because', form
    )


def test_a_form_that_cannot_run_does_not_fall_back_when_named():
    asked = r"triton-persistent was asked for .* but of some reason"
    with pytest.raises(RuntimeError, match=asked):
        chosen("triton-persistent", "stepwise")
    with pytest.raises(RuntimeError, match="triton was asked for"):
        chosen("triton", None)
    assert chosen("triton", "stepwise").form == "auto"


@pytest.mark.parametrize(("allowed", "expected"), [(True, "tf32"), (False, "ieee")])
def test_the_older_tf32_switch_is_heard(allowed, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    assert matmul_precision(CUDA) == expected


@pytest.mark.parametrize(
    ("batch_size", "hidden_size", "form", "reason"),
    [
        # Below 2**31 as they are, and not in whole tiles, which the persistent form exchanges.
        (466_800, 1150, "stepwise", "in whole tiles"),
        (4_194_200, 8, "stepwise", "in whole tiles"),
        (4_194_100, 8, "persistent", "blocks at once"),
        (4_194_241, 8, None, "65536 groups of rows, and a launch has 65535"),
    ],
)
def test_no_batch_is_more_than_a_launch_can_index(batch_size, hidden_size, form, reason):
    hopper = Device("cuda", (9, 0), 132, 232_448)
    sizes = {"batch_size": batch_size, "hidden_size": hidden_size}
    chosen = tiles.choose(hopper, dtype=torch.bfloat16, **sizes)
    assert chosen.form == form and reason in chosen.reason
