"""A plan of unfreezing whose model is given other tensors for its parameters while it is open."""

import copy
import gc
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
from small_models import KINDS, SETTINGS, make, train
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

import ulmfit_fast as uf
from ulmfit_fast.optim import ChainThaw

PLANS = pytest.mark.parametrize("kind", [uf.GradualUnfreezing, ChainThaw])


def assign(model):
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def assign_parameters(model):
    state = {name: nn.Parameter(value.clone()) for name, value in model.named_parameters()}
    model.load_state_dict(state, assign=True, strict=False)


def converted(model, switch):
    before = getattr(torch.__future__, f"get_{switch}")()
    getattr(torch.__future__, f"set_{switch}")(True)
    try:
        model.to(torch.float64)
        model.to(torch.float32)
    finally:
        getattr(torch.__future__, f"set_{switch}")(before)


def overwrite(model):
    converted(model, "overwrite_module_params_on_conversion")


def swap(model):
    converted(model, "swap_module_params_on_conversion")


def by_hand(model):
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))


HOW = {f.__name__: f for f in (assign, assign_parameters, overwrite, swap, by_hand)}
WAYS = pytest.mark.parametrize("way", HOW.values(), ids=HOW.keys())

FORMS = {
    "modules": list,
    "parameters": lambda model: [list(module.parameters()) for module in model],
    "param groups": lambda model: uf.discriminative_groups(list(model), lr=0.1),
    "optimizer": lambda model: (
        torch.optim.SGD(uf.discriminative_groups(list(model), lr=0.1)).param_groups
    ),
}
IN_EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def model(count=3):
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(count)])


def flags(model):
    return [[p.requires_grad for p in module.parameters()] for module in model]


def of_all(model):
    return torch.optim.SGD(uf.discriminative_groups(list(model), lr=0.1))


def trained(model, optimizer, steps=3):
    """Take steps, and return which layers they changed."""
    before = [m.weight.detach().clone() for m in model]
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).tanh().sum().backward()
        optimizer.step()
    return [not torch.equal(m.weight, b) for m, b in zip(model, before, strict=True)]


@PLANS
@WAYS
@IN_EVERY_FORM
@pytest.mark.parametrize("epochs", [0, 1])
def test_the_plan_goes_on_with_what_the_modules_have(kind, way, form, epochs):
    layers, other = model(), model()
    plans = [kind(form(layers)), kind(list(other))]
    for _ in range(epochs):
        plans[0].step(), plans[1].step()
    way(layers)
    assert flags(layers) == flags(other)
    for _ in range(5):
        plans[0].step(), plans[1].step()
        assert flags(layers) == flags(other)
    assert flags(layers) == [[True, True]] * 3


@PLANS
@WAYS
def test_what_the_user_froze_stays_frozen(kind, way):
    layers = model()
    layers[0].weight.requires_grad_(False)
    plan = kind(list(layers))
    way(layers)
    for _ in range(5):
        plan.step()
    assert flags(layers) == [[False, True], [True, True], [True, True]]


@PLANS
@WAYS
@IN_EVERY_FORM
def test_finish_opens_what_the_modules_have(kind, way, form):
    layers = model()
    plan = kind(form(layers))
    way(layers)
    plan.finish()
    assert flags(layers) == [[True, True]] * 3


@WAYS
def test_a_plan_after_one_that_was_given_up_goes_its_whole_way(way, caplog):
    layers = model()
    plan = uf.GradualUnfreezing(layers.children())
    del plan
    way(layers)
    again = uf.GradualUnfreezing([list(layer.parameters()) for layer in layers])
    for _ in range(2):
        again.step()
    assert flags(layers) == [[True, True]] * 3 and not caplog.records


@WAYS
def test_a_copied_plan_follows_its_own_model(way):
    layers = model()
    plan = uf.GradualUnfreezing(list(layers))
    for others, again in (
        copy.deepcopy((layers, plan)),
        pickle.loads(pickle.dumps((layers, plan))),
        reversed(copy.deepcopy((plan, layers))),
    ):
        way(others)
        again.step()
        again.step()
        assert flags(others) == [[True, True]] * 3
    assert flags(layers) == [[False, False], [False, False], [True, True]]


@WAYS
def test_an_optimizer_of_the_tensors_before_is_told_of(way):
    layers = model()
    plan = uf.GradualUnfreezing(list(layers))
    optimizer = of_all(layers)
    assert trained(layers, optimizer) == [False, False, True]
    way(layers)
    plan.step()
    if way is swap:
        assert trained(layers, optimizer) == [False, True, True]
        return
    with pytest.warns(UserWarning, match=r"4 parameters .* are in no .* such as load_state_dict"):
        assert trained(layers, optimizer) == [False] * 3
    plan.step()
    trained(layers, optimizer)  # a second warning would be an error


@WAYS
def test_an_optimizer_of_the_tensors_after_is_not_told_of(way):
    layers = model()
    plan = uf.GradualUnfreezing(list(layers))
    trained(layers, of_all(layers))
    way(layers)
    optimizer = of_all(layers)
    for lowest in (2, 1, 0):
        assert trained(layers, optimizer) == [index >= lowest for index in range(3)]
        plan.step()


@WAYS
def test_a_parameter_of_two_modules_is_followed_in_both(way):
    layers = model()
    layers[0].weight = layers[2].weight
    plan = uf.GradualUnfreezing(list(layers)[1:])
    plan.step()
    way(layers)
    plan.finish()
    assert flags(layers) == [[True, True]] * 3
    plan = uf.GradualUnfreezing([layers[2], layers[1]])
    way(layers)
    plan.step()
    assert flags(layers) == [[True, True]] * 3


def test_a_parametrized_layer_keeps_its_parameter():
    layers = model()
    plan = uf.GradualUnfreezing(list(layers))
    nn.utils.parametrize.register_parametrization(layers[0], "weight", nn.Tanh(), unsafe=True)
    plan.finish()
    assert all(p.requires_grad for p in layers.parameters())


@PLANS
def test_parameters_that_a_weight_is_computed_from_are_followed(kind):
    """weight_norm gives a closed layer two new ones in place of its weight."""
    layers = [nn.Linear(2, 2) for _ in range(3)]
    plan = kind(layers)
    for layer in layers:
        weight_norm(layer)

    def open_layers():
        found = [{p.requires_grad for p in layer.parameters()} for layer in layers]
        assert all(len(kinds) == 1 for kinds in found)
        return [True in kinds for kinds in found]

    seen = [open_layers()]
    for _ in layers:
        plan.step()
        seen.append(open_layers())
    twin = [nn.Linear(2, 2) for _ in range(3)]
    other = kind(twin)
    for stage in seen:
        assert stage == [layer.weight.requires_grad for layer in twin]
        other.step()
    for layer in layers:
        remove_parametrizations(layer, "weight")
    plan.finish()
    assert open_layers() == [True] * 3


def test_a_plan_holds_no_weak_reference_to_a_tensor_and_no_module_for_good():
    layers = model()
    plan = uf.GradualUnfreezing(list(layers))
    assert not any(weakref.getweakrefs(p) for p in layers.parameters())
    first = weakref.ref(layers[0])
    del plan, layers
    gc.collect()
    assert first() is None


@KINDS
@WAYS
@pytest.mark.parametrize("stages", [{}, {"gradual_unfreezing": 1}], ids=["all", "gradual"])
def test_a_run_that_would_train_other_tensors_is_refused(kind, way, stages):
    network = make(kind)
    settings = replace(SETTINGS, epochs=3, **stages)

    def after(epoch, history):
        if epoch == 1:
            way(network)

    if way is swap:
        train(network, settings, after_epoch=after)
    else:
        with pytest.raises(RuntimeError, match=r"other tensors for .* without assign=True"):
            train(network, settings, after_epoch=after)
    assert all(p.requires_grad for p in network.parameters())
