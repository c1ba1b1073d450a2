"""When `auto` takes the Triton kernels, and what it says of them."""

from unittest import mock

import pytest
import torch

import ulmfit_fast as uf
from ulmfit_fast import backend
from ulmfit_fast.backend import Choice, KernelPlan, Request, choose, kernel_plan
from ulmfit_fast.kernels import tiles
from ulmfit_fast.kernels.device import Device
from ulmfit_fast.kernels.launch import matmul_precision

CUDA = torch.device("cuda")


def plan(form):
    """Return kernels that can run in one form alone, or not at all."""

    def kernels(asked, request):
        if form is None or asked not in (None, form):
            return KernelPlan(None, "of some reason")
        return KernelPlan(form, "because")

    return kernels


def chosen(backend="auto", form="persistent", hidden_size=1152, device=CUDA, **settings):
    kernels = settings.pop("kernels", plan(form))
    sizes = {"batch_size": 64, "input_size": 400, "dtype": torch.bfloat16, **settings}
    with mock.patch("ulmfit_fast.backend.kernel_plan", kernels):
        return choose(backend, Request(device, hidden_size=hidden_size, **sizes))


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
    request = Request(CUDA, torch.bfloat16, batch_size=64, hidden_size=1152)
    plan = kernel_plan(None, request)
    choice = chosen(kernels=lambda *_: plan)
    assert f"{choice.name}: {choice.reason}" == (
        "triton: persistent form, 72 blocks at once, the device has 132 multiprocessors, pipelined "
        "tiles of 64 x 64 x 128 forwards and 64 x 128 x 64 backwards; predicted, not measured"
    )
    named = chosen("triton-resident", kernels=lambda form, *_: kernel_plan(form, request))
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
        plan = kernel_plan(None, Request(CUDA, batch_size=size, **settings))
        run = tiles.choose(device, batch_size=size, **settings)
        assert (plan.form, plan.reason) == (run.form, f"{run.reason}, {run.tiles()}")


STATE = torch.zeros(1, 3, 8), torch.zeros(1, 3, 8, dtype=torch.float64)
PACKED = torch.nn.utils.rnn.pack_padded_sequence(torch.randn(5, 3, 4), torch.tensor([5, 3, 2]))


@pytest.mark.parametrize(
    ("settings", "x", "given"),
    [
        ({}, torch.randn(5, 3, 4), {}),
        ({"weight_p": 0.5}, torch.randn(5, 3, 4), {}),
        ({"gate_p": (0, 0, 0.1, 0)}, torch.randn(5, 3, 4), {"lengths": torch.tensor([5, 2, 3])}),
        ({"batch_first": True}, torch.randn(5, 3, 4), {}),
        ({}, torch.randn(5, 4), {}),
        ({}, torch.randn(5, 3, 4), {"hx": STATE}),
        ({"weight_p": 0.5}, PACKED, {}),
    ],
    ids=["plain", "weights", "lengths", "batch-first", "unbatched", "wide-state", "packed"],
)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_what_is_explained_is_asked_as_it_runs(settings, x, given, train, monkeypatch):
    """`explain` left out whether anything is dropped, and asked by itself for the rest."""
    asked = []

    def record(name, request):
        asked.append((name, request))
        return Choice("reference", "recorded")

    monkeypatch.setattr(backend, "choose", record)
    lstm = uf.LSTM(4, 8, **settings).train(train)
    lstm(x, **given)
    assert uf.backend.explain(lstm, x, **given) == "reference: recorded"
    assert len(asked) == 2 and asked[0] == asked[1]


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
