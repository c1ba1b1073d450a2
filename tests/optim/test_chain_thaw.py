"""Chain-thaw: one layer group after the other alone, then all."""

import pytest
import torch
from torch import nn

from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.optim import ChainThaw, GradualUnfreezing


def layers(count=3):
    return [nn.Linear(4, 4) for _ in range(count)]


def opened(modules):
    return [i for i, m in enumerate(modules) if all(p.requires_grad for p in m.parameters())]


def train(modules, optimizer, scheduler=None):
    for _ in range(2):
        x = torch.randn(8, 4)
        for module in modules:
            x = module(x).tanh()
        optimizer.zero_grad()
        x.square().sum().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize(
    ("count", "epochs", "stages"),
    [
        (3, 1, [[2], [0], [1], [0, 1, 2], [0, 1, 2]]),
        (3, 2, [[2], [2], [0], [0], [1], [1], [0, 1, 2]]),
        (2, [1, 3], [[1], [0], [0], [0], [0, 1]]),
        (1, 1, [[0], [0]]),
    ],
)
def test_the_head_first_then_from_the_first_up_then_all(count, epochs, stages):
    modules = layers(count)
    thaw = ChainThaw(modules, epochs_per_stage=epochs)
    for wanted in stages:
        assert opened(modules) == wanted
        assert len(thaw.trainable_groups) == len(wanted)
        thaw.step()


def test_closed_groups_stay_bit_for_bit():
    modules = layers()
    thaw = ChainThaw(modules)
    optimizer = torch.optim.Adam([{"params": list(m.parameters())} for m in modules], lr=0.01)
    for stage in range(4):
        before = [m.weight.detach().clone() for m in modules]
        train(modules, optimizer)
        changed = [not torch.equal(m.weight, b) for m, b in zip(modules, before, strict=True)]
        # A group that trained before has momentum left, which must not move it.
        assert changed == [i in ([2], [0], [1], [0, 1, 2])[stage] for i in range(3)]
        if stage == 1:
            assert modules[1].weight not in optimizer.state
        thaw.step()
    assert len(optimizer.param_groups) == 3


def test_a_model_with_layer_groups():
    model = LanguageModel(AWDLSTMConfig(12, emb_size=4, hidden_size=6, num_layers=2))
    thaw = ChainThaw(model)
    seen = []
    for _ in range(4):
        seen.append(
            [all(p.requires_grad for p in group) for group in model.layer_groups()].index(True)
        )
        text = torch.randint(12, (5, 2))
        loss, _ = model.loss(text[:-1], text[1:])
        loss.total.backward()
        for group in model.layer_groups():
            for parameter in group:
                assert (parameter.grad is not None) == parameter.requires_grad
                parameter.grad = None
        thaw.step()
    assert seen == [2, 0, 1, 0] and all(p.requires_grad for p in model.parameters())


def test_resumes_from_its_state():
    modules = layers()
    thaw = ChainThaw(modules)
    for _ in range(2):
        thaw.step()
    others = layers()
    resumed = ChainThaw(others)
    resumed.load_state_dict(thaw.state_dict())
    assert (resumed.stage, opened(others)) == (2, [1])
    plan = GradualUnfreezing(layers()).state_dict()
    with pytest.raises(ValueError, match=r"saved plan is \[1, 1\], .* build ChainThaw with"):
        resumed.load_state_dict(plan)
    with pytest.raises(ValueError, match="expected that of a ChainThaw"):
        resumed.load_state_dict({})


@pytest.mark.parametrize(
    ("groups", "epochs", "message"),
    [
        ([], 1, "0 groups"),
        (layers(), 0, "epochs_per_stage is 0"),
        (layers(), [1, 1], "2 stages for 3 groups, expected one for each"),
        (layers(), [1, 1, 1, 1], "4 stages for 3 groups"),
    ],
    ids=["none", "zero", "few", "many"],
)
def test_bad_plans(groups, epochs, message):
    with pytest.raises(ValueError, match=message):
        ChainThaw(groups, epochs_per_stage=epochs)
