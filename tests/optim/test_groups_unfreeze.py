"""Discriminative learning rates and gradual unfreezing."""

import numpy as np
import pytest
import torch
from torch import nn

import ulmfit_fast as uf


def layers(count=3):
    return [nn.Linear(4, 4) for _ in range(count)]


def open_layers(modules):
    return [all(p.requires_grad for p in module.parameters()) for module in modules]


def test_worked_values():
    rates = [group["lr"] for group in uf.discriminative_groups(layers(), lr=0.01)]
    assert rates == pytest.approx([0.001479, 0.003846, 0.01], abs=5e-7)


def test_five_groups_and_factor():
    rates = [group["lr"] for group in uf.discriminative_groups(layers(5), lr=1.0, factor=2.0)]
    assert rates == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]


def test_every_parameter_is_in_one_group_frozen_and_shared_ones_too():
    modules = layers()
    modules[2].weight = modules[0].weight
    modules[1].requires_grad_(False)
    groups = uf.discriminative_groups(modules, lr=0.1)
    assert [len(group["params"]) for group in groups] == [2, 2, 1]
    torch.optim.Adam(groups)


def test_takes_a_module_with_layer_groups_or_says_what_it_wants():
    config = uf.nn.AWDLSTMConfig(20, emb_size=4, hidden_size=6, num_layers=2)
    model = uf.nn.LanguageModel(config)
    groups = uf.discriminative_groups(model, lr=0.1)
    assert len(groups) == 3
    found = {id(p) for group in groups for p in group["params"]}
    assert found == {id(p) for p in model.parameters()}
    with pytest.raises(TypeError, match=r"Linear without layer_groups\(\); pass a list"):
        uf.discriminative_groups(nn.Linear(2, 2), lr=0.1)


@pytest.mark.parametrize(
    ("groups", "kwargs", "message"),
    [
        ([nn.Linear(2, 2)], {"lr": 0.0}, "lr is 0.0"),
        ([nn.Linear(2, 2)], {"lr": 0.1, "factor": 0.0}, "factor is 0.0"),
        ([], {"lr": 0.1}, "0 parameters"),
    ],
    ids=["lr", "factor", "empty"],
)
def test_bad_groups(groups, kwargs, message):
    with pytest.raises(ValueError, match=message):
        uf.discriminative_groups(groups, **kwargs)


def test_the_schedule_of_five_epochs_a_layer_is_one_call():
    modules = layers()
    unfreezing = uf.GradualUnfreezing(modules, epochs_per_stage=5)
    seen = []
    for _ in range(15):
        seen.append(open_layers(modules))
        unfreezing.step()
    assert seen[:5] == [[False, False, True]] * 5
    assert seen[5:10] == [[False, True, True]] * 5
    assert seen[10:] == [[True, True, True]] * 5


def test_a_sequence_opens_everything_after_its_last_stage():
    modules = layers(5)
    unfreezing = uf.GradualUnfreezing(modules, epochs_per_stage=[1, 2])
    counts = []
    for _ in range(5):
        counts.append(sum(open_layers(modules)))
        unfreezing.step()
    assert counts == [1, 2, 2, 5, 5]


def train(modules, unfreezing, epochs, optimizer, scheduler=None, set_to_none=True):
    for _ in range(epochs):
        for _ in range(2):
            x = torch.randn(8, 4)
            for module in modules:
                x = module(x).tanh()
            optimizer.zero_grad(set_to_none=set_to_none)
            x.square().sum().backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        unfreezing.step()


def test_frozen_layers_stay_bit_for_bit_and_have_no_optimizer_state():
    modules = layers()
    before = [m.weight.clone() for m in modules]
    unfreezing = uf.GradualUnfreezing(modules, epochs_per_stage=2)
    optimizer = torch.optim.Adam(uf.discriminative_groups(modules, lr=0.01))
    scheduler = uf.SlantedTriangularLR(optimizer, total_steps=20)
    train(modules, unfreezing, 1, optimizer, scheduler)
    assert [torch.equal(m.weight, b) for m, b in zip(modules, before, strict=True)] == [
        True,
        True,
        False,
    ]
    assert modules[0].weight not in optimizer.state
    train(modules, unfreezing, 5, optimizer, scheduler)
    assert not any(torch.equal(m.weight, b) for m, b in zip(modules, before, strict=True))
    assert len(optimizer.param_groups) == 3


def test_freezing_again_stops_an_optimizer_with_momentum():
    modules = layers()
    unfreezing = uf.GradualUnfreezing(modules)
    start = unfreezing.state_dict()
    optimizer = torch.optim.Adam(uf.discriminative_groups(modules, lr=0.01))
    train(modules, unfreezing, 3, optimizer)
    unfreezing.load_state_dict(start)
    frozen = modules[0].weight.clone()
    # A gradient of zeros is a gradient still: Adam would go on by its momentum.
    train(modules, unfreezing, 1, optimizer, set_to_none=False)
    assert torch.equal(modules[0].weight, frozen)


def test_nothing_is_back_propagated_below_the_lowest_open_group():
    modules = layers()
    unfreezing = uf.GradualUnfreezing(modules)
    x = torch.randn(8, 4)
    first = modules[0](x)
    second = modules[1](first)
    assert first.grad_fn is None
    assert second.grad_fn is None
    unfreezing.step()
    assert modules[1](modules[0](x)).grad_fn is not None
    assert modules[0](x).grad_fn is None


def test_resumes_from_its_state():
    modules = layers()
    unfreezing = uf.GradualUnfreezing(modules, epochs_per_stage=2)
    for _ in range(3):
        unfreezing.step()
    others = layers()
    resumed = uf.GradualUnfreezing(others, epochs_per_stage=2)
    resumed.load_state_dict(unfreezing.state_dict())
    assert (resumed.stage, open_layers(others)) == (1, [False, True, True])
    with pytest.raises(ValueError, match=r"the saved plan is \[2, 2\]"):
        uf.GradualUnfreezing(layers(), epochs_per_stage=3).load_state_dict(unfreezing.state_dict())


@pytest.mark.parametrize("stages", [np.int64(2), np.array([2, 2]), (2, np.int32(2))], ids=repr)
def test_epochs_may_be_integers_of_numpy(stages):
    unfreezing = uf.GradualUnfreezing(layers(), epochs_per_stage=stages)
    assert unfreezing.state_dict()["epochs_per_stage"] == [2, 2]
    assert {type(n) for n in unfreezing.state_dict()["epochs_per_stage"]} == {int}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "the state has no 'epoch', expected that of a GradualUnfreezing"),
        ({"epoch": 1}, "the state has no 'epochs_per_stage'"),
        ({"epoch": -1, "epochs_per_stage": [1, 1]}, "epoch is -1 in the state"),
        ({"epoch": 1.5, "epochs_per_stage": [1, 1]}, "epoch is 1.5 in the state"),
    ],
    ids=["empty", "no-plan", "negative", "half"],
)
def test_state_of_something_else_is_refused(state, message):
    modules = layers()
    unfreezing = uf.GradualUnfreezing(modules)
    with pytest.raises(ValueError, match=message):
        unfreezing.load_state_dict(state)
    assert open_layers(modules) == [False, False, True]


@pytest.mark.parametrize(
    ("groups", "stages", "message"),
    [
        ([], 1, "0 groups"),
        (layers(), 0, "epochs_per_stage is 0"),
        (layers(), [1, 0], "expected at least 1 each"),
        (layers(), 1.5, "epochs_per_stage is 1.5, expected .* whole"),
        (layers(), [1, 1.5], r"epochs_per_stage is \[1, 1.5\], expected .* whole"),
        (layers(), None, "epochs_per_stage is None"),
        (layers(), [1, 1, 1, 1], "4 stages for 3 groups"),
    ],
    ids=["none", "zero", "zero-stage", "half", "half-stage", "no-plan", "too-many"],
)
def test_bad_plans(groups, stages, message):
    with pytest.raises(ValueError, match=message):
        uf.GradualUnfreezing(groups, epochs_per_stage=stages)
