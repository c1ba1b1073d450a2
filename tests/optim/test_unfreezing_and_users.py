"""Plans of unfreezing beside what users do themselves: freeze, copy, resume, make optimizers."""

import copy
import io
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from small_models import KINDS, SETTINGS, make, train
from torch import nn

import ulmfit_fast as uf
from ulmfit_fast.optim import ChainThaw

PLANS = pytest.mark.parametrize("kind", [uf.GradualUnfreezing, ChainThaw])


def layers(count=3):
    return [nn.Linear(4, 4) for _ in range(count)]


def flags(modules):
    return [[p.requires_grad for p in module.parameters()] for module in modules]


def open_layers(modules):
    return [all(own) for own in flags(modules)]


def to_the_end(plan):
    for _ in range(5):
        plan.step()


def trained(modules, optimizer, steps=3):
    """Take steps, and return which layers they changed."""
    before = [m.weight.detach().clone() for m in modules]
    for _ in range(steps):
        x = torch.ones(2, 4)
        for module in modules:
            x = module(x).tanh()
        optimizer.zero_grad()
        x.square().sum().backward()
        optimizer.step()
    return [not torch.equal(m.weight, b) for m, b in zip(modules, before, strict=True)]


@PLANS
def test_what_was_frozen_before_stays_frozen(kind):
    modules = layers()
    modules[0].weight.requires_grad_(False)
    modules[2].bias.requires_grad_(False)
    plan = kind(modules)
    for _ in range(5):
        assert not modules[0].weight.requires_grad and not modules[2].bias.requires_grad
        plan.step()
    assert flags(modules) == [[False, True], [True, True], [True, False]]
    plan.finish()
    assert flags(modules) == [[False, True], [True, True], [True, False]]


@PLANS
def test_what_is_frozen_while_open_stays_frozen(kind):
    modules = layers()
    plan = kind(modules)
    modules[2].weight.requires_grad_(False)
    to_the_end(plan)
    assert flags(modules) == [[True, True], [True, True], [False, True]]


@PLANS
def test_a_frozen_layer_is_told(kind, caplog):
    modules = layers()
    modules[0].requires_grad_(False)
    plan = kind(modules)
    assert "layer groups 0 of 3 were frozen before and stay so" in caplog.text
    to_the_end(plan)
    assert open_layers(modules) == [False, True, True]
    caplog.clear()
    kind(layers())
    assert not caplog.records


@PLANS
def test_a_layer_without_parameters_is_told(kind, caplog):
    kind([nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Softmax(-1)])
    (record,) = caplog.records
    assert "layer groups 1, 3 of 4 have no parameters" in record.getMessage()


@PLANS
def test_where_all_is_frozen_there_is_no_plan(kind):
    modules = layers()
    for module in modules:
        module.requires_grad_(False)
    with pytest.raises(ValueError, match=r"all 6 parameters .* frozen .* requires_grad_\(True\)"):
        kind(modules)
    assert not any(open_layers(modules))


@PLANS
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_plan_after_one_that_was_given_up_goes_its_whole_way(kind, steps, caplog):
    modules = layers()
    modules[1].bias.requires_grad_(False)
    plan = kind(modules)
    for _ in range(steps):
        plan.step()
    del plan
    again = uf.GradualUnfreezing(modules)
    assert open_layers(modules) == [False, False, True]
    to_the_end(again)
    assert flags(modules) == [[True, True], [True, False], [True, True]]
    assert not caplog.records


@PLANS
def test_finish_opens_what_the_plan_holds_and_no_more(kind):
    modules = layers()
    modules[0].bias.requires_grad_(False)
    kind(modules).finish()
    assert flags(modules) == [[True, False], [True, True], [True, True]]
    modules[0].requires_grad_(False)  # by the user now: it is no plan's any more
    to_the_end(kind(modules))
    assert open_layers(modules) == [False, True, True]


@PLANS
def test_integer_parameters_are_left_alone(kind):
    modules = layers()
    table = nn.Parameter(torch.arange(4), requires_grad=False)
    mask = nn.Parameter(torch.ones(4, dtype=torch.bool), requires_grad=False)
    modules[0].table, modules[2].mask = table, mask
    plan = kind([[modules[0], table], *modules[1:]])
    to_the_end(plan)
    assert not table.requires_grad and not mask.requires_grad
    assert [modules[i].weight.requires_grad for i in range(3)] == [True] * 3
    optimizer = torch.optim.Adam(uf.discriminative_groups(modules, lr=0.1))
    assert trained(modules, optimizer) == [True] * 3 and table.tolist() == [0, 1, 2, 3]


def groups_of(form):
    """Return layers in some form, with the parameters of each."""
    modules = layers()
    lists = [list(m.parameters()) for m in modules]
    lone = nn.Parameter(torch.zeros(3, 2))
    forms = {
        "bare parameter": ([lone, *modules[1:]], [[lone], *lists[1:]]),
        "bare scalar": ([nn.Parameter(torch.zeros(())), *modules[1:]], None),
        "nested": (
            [[modules[0], [modules[1], lone]], modules[2]],
            [[*lists[0], *lists[1], lone], lists[2]],
        ),
        "list of modules": (
            [nn.ModuleList(modules[:2]), modules[2]],
            [lists[0] + lists[1], lists[2]],
        ),
        "module list": (nn.ModuleList(modules), lists),
        "generators": ((m.parameters() for m in modules), lists),
        "parameter list": ([nn.ParameterList(lists[0]), *modules[1:]], lists),
        "param groups": (uf.discriminative_groups(modules, lr=0.1), lists),
        "an optimizer's": (
            torch.optim.SGD(uf.discriminative_groups(modules, lr=0.1)).param_groups,
            lists,
        ),
    }
    return forms[form]


FORMS = [
    "bare parameter", "nested", "list of modules", "module list", "generators", "parameter list",
    "param groups", "an optimizer's",
]  # fmt: skip


@PLANS
@pytest.mark.parametrize("form", FORMS)
def test_layers_in_every_form(form, kind):
    groups, wanted = groups_of(form)
    plan = kind(groups)
    assert [[p.requires_grad for p in own] for own in wanted] == [
        [index == len(wanted) - 1] * len(own) for index, own in enumerate(wanted)
    ]
    to_the_end(plan)
    assert all(p.requires_grad for own in wanted for p in own)


@pytest.mark.parametrize("form", FORMS)
def test_discriminative_groups_takes_the_same_forms(form):
    groups, wanted = groups_of(form)
    made = uf.discriminative_groups(groups, lr=0.1)
    assert [[id(p) for p in group["params"]] for group in made] == [
        [id(p) for p in own] for own in wanted
    ]
    torch.optim.Adam(made)


@pytest.mark.parametrize(
    "make_groups", [uf.GradualUnfreezing, lambda g: uf.discriminative_groups(g, lr=0.1)]
)
@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (nn.Parameter(torch.ones(2)), r"model is a Parameter without layer_groups\(\); pass"),
        (nn.Linear(2, 2), "model is a Linear without"),
        ([dict(nn.Linear(2, 2).named_parameters())], "a group has a dict in it"),
        ([list(nn.Linear(2, 2).named_parameters())], r"a str in it \(weight\), expected modules"),
        ([nn.Linear(2, 2), None], "a NoneType in it"),
        ([3], r"a int in it \(3\)"),
    ],
    ids=["parameter", "module", "dict", "named", "none", "number"],
)  # fmt: skip
def test_what_is_no_layer_is_named(make_groups, groups, message):
    with pytest.raises(TypeError, match=message):
        make_groups(groups)


def test_a_computed_tensor_is_refused():
    weight = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"tensor of shape \(2,\) that is computed from others"):
        uf.GradualUnfreezing([weight[0], nn.Linear(2, 2)])
    assert weight.requires_grad


@PLANS
def test_a_shared_parameter_is_open_with_the_first_of_its_groups(kind):
    modules = layers()
    modules[0].weight = modules[2].weight
    plan = kind(modules)
    assert flags(modules) == [[True, False], [False, False], [True, True]]
    to_the_end(plan)
    assert all(open_layers(modules))


@PLANS
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state"])
def test_a_plan_and_its_model_are_copied_or_kept_whole(kind, how):
    modules = nn.ModuleList(layers())
    modules[1].bias.requires_grad_(False)
    plan = kind(modules)
    plan.step()
    if how == "deepcopy":
        others, again = copy.deepcopy((modules, plan))
    elif how == "pickle":
        others, again = pickle.loads(pickle.dumps((modules, plan)))
    else:
        file = io.BytesIO()
        torch.save((modules, plan.state_dict()), file)
        file.seek(0)
        others, state = torch.load(file, weights_only=False)
        again = kind(others)
        again.load_state_dict(state)
    assert flags(others) == flags(modules)
    for _ in range(4):
        plan.step()
        again.step()
        assert flags(others) == flags(modules)
    assert flags(others) == [[True, True], [True, False], [True, True]]


@PLANS
def test_resumes_and_keeps_frozen_what_the_user_has_frozen(kind):
    def made():
        modules = layers()
        modules[1].weight.requires_grad_(False)
        return modules, kind(modules)

    modules, plan = made()
    plan.step()
    for state in (plan.state_dict(), {"epoch": 1, "epochs_per_stage": plan.epochs_per_stage}):
        others, again = made()
        again.load_state_dict(state)
        assert flags(others) == flags(modules)
        to_the_end(again)
        assert flags(others) == [[True, True], [False, True], [True, True]]


def of_open(modules, kind=torch.optim.SGD):
    return kind([p for m in modules for p in m.parameters() if p.requires_grad], lr=0.1)


@PLANS
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("scheduled", [False, True])
def test_an_optimizer_of_the_open_layers_alone_is_told_once(kind, optimizer, scheduled):
    modules = layers()
    plan = kind(modules)
    optimizer = of_open(modules, optimizer)
    if scheduled:
        uf.SlantedTriangularLR(optimizer, 10)
    assert trained(modules, optimizer) == [False, False, True]
    plan.step()
    if kind is ChainThaw:  # its second stage is without the layer that this optimizer has
        modules[2].requires_grad_(True)
    with pytest.warns(
        UserWarning, match=r"2 parameters that \w+ opened are in no .*discriminative"
    ):
        assert sum(trained(modules, optimizer)) == 1
    for _ in range(3):
        plan.step()
        modules[2].requires_grad_(True)
        trained(modules, optimizer)  # a second warning would be an error


@pytest.mark.parametrize("count", [2, 3])
def test_with_one_step_an_epoch_it_is_told_at_the_end_of_the_epoch(count):
    modules = layers(count)
    plan = uf.GradualUnfreezing(modules)
    optimizer = of_open(modules)
    trained(modules, optimizer, steps=1)
    plan.step()
    trained(modules, optimizer, steps=1)
    with pytest.warns(UserWarning, match="2 parameters that GradualUnfreezing opened") as caught:
        plan.step()
    assert [warning.filename for warning in caught] == [__file__]
    trained(modules, optimizer)


def test_where_it_is_told():
    modules = layers()
    plan = uf.GradualUnfreezing(modules)
    optimizer = of_open(modules)
    plan.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(modules, optimizer)
    assert [warning.filename for warning in caught] == [__file__]


def test_an_optimizer_of_all_layers_is_not_told_of():
    modules = layers()
    plan = uf.GradualUnfreezing(modules)
    optimizer = torch.optim.Adam(uf.discriminative_groups(modules, lr=0.1))
    for lowest in (2, 1, 0):
        assert trained(modules, optimizer) == [index >= lowest for index in range(3)]
        plan.step()


def test_an_optimizer_for_each_stage_is_not_told_of():
    modules = layers()
    plan = uf.GradualUnfreezing(modules)
    for lowest in (2, 1, 0):
        optimizer = of_open(modules)
        assert trained(modules, optimizer) == [index >= lowest for index in range(3)]
        plan.step()


def test_a_group_added_for_each_stage_is_not_told_of():
    modules = layers()
    plan = uf.GradualUnfreezing(modules)
    optimizer = of_open(modules)
    for lowest in (2, 1, 0):
        assert trained(modules, optimizer) == [index >= lowest for index in range(3)]
        plan.step()
        if lowest:
            optimizer.add_param_group({"params": list(modules[lowest - 1].parameters())})


def test_two_optimizers_in_turn_are_not_told_of():
    modules = layers()
    plan = uf.GradualUnfreezing(modules)
    head = torch.optim.SGD(modules[2].parameters(), lr=0.1)
    below = torch.optim.SGD([p for m in modules[:2] for p in m.parameters()], lr=0.1)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    for _ in range(3):
        for optimizer in (head, other, other, other, below, head, below):
            trained(modules, optimizer, steps=1)
        plan.step()


def test_resumed_into_a_later_stage_it_is_told_too():
    modules = layers()
    plan = uf.GradualUnfreezing(modules)
    plan.step()
    others = layers()
    again = uf.GradualUnfreezing(others)
    optimizer = of_open(others)
    again.load_state_dict(plan.state_dict())
    with pytest.warns(UserWarning, match="2 parameters that GradualUnfreezing opened"):
        trained(others, optimizer)


@KINDS
@pytest.mark.parametrize(
    "plan",
    [{}, {"gradual_unfreezing": 1}, {"gradual_unfreezing": 1, "chain_thaw": True}],
    ids=["all", "gradual", "thaw"],
)
def test_a_run_leaves_frozen_what_was_frozen(kind, plan):
    model = make(kind)
    groups = model.layer_groups()
    kept = groups[0][0] if "chain_thaw" not in plan else groups[1][0]
    kept.requires_grad_(False)
    before = [[p.detach().clone() for p in group] for group in groups]
    train(model, replace(SETTINGS, epochs=len(groups) + 1, **plan))
    for group, start in zip(groups, before, strict=True):
        for parameter, value in zip(group, start, strict=True):
            assert parameter.requires_grad == (parameter is not kept)
            assert torch.equal(parameter, value) == (parameter is kept)


@KINDS
@pytest.mark.parametrize(
    ("frozen", "thaw", "stage"), [(-1, False, 0), (-1, True, 0), (1, True, 2)], ids=str
)
def test_a_run_whose_stage_has_nothing_to_train_is_refused_at_once(kind, frozen, thaw, stage):
    model = make(kind)
    kept = {id(p) for p in model.layer_groups()[frozen]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in kept)
    seen = []
    with pytest.raises(ValueError, match=rf"stage {stage} of the .* requires_grad_\(True\)"):
        train(
            model,
            replace(SETTINGS, epochs=6, gradual_unfreezing=1, chain_thaw=thaw),
            after_epoch=lambda epoch, history: seen.append(epoch),
        )
    assert not seen
    assert {id(p) for p in model.parameters() if not p.requires_grad} == kept
