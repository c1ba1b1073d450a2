"""When `auto` takes the Triton kernels, and what it says of them."""

import pytest
import torch

from ulmfit_fast.backend import Choice, KernelPlan, choose
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
    settings = {"has_gate_mask": False, "dtype": torch.bfloat16, **settings}
    return choose(
        backend,
        device=device,
        batch_size=64,
        hidden_size=hidden_size,
        kernels=plan(form),
        **settings,
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
