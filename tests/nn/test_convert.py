"""Turning nn.LSTM into ours in a model that is in use, and back."""

import copy
import pickle
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

import ulmfit_fast as uf


class Tagger(nn.Module):
    """A model as others write them: two kinds of LSTM, one of them deep inside."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.stack = nn.Sequential(nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True))
        self.top = nn.LSTM(12, 4, bias=False)
        self.out = nn.Linear(4, 3)

    def forward(self, tokens):
        x, _ = self.stack(self.embedding(tokens))
        x, _ = self.top(x.transpose(0, 1))
        return self.out(x)


@pytest.fixture
def model():
    return Tagger().double()


@pytest.fixture
def tokens():
    return torch.randint(11, (3, 7))


def test_the_model_gives_what_it_gave(model, tokens):
    expected, state = model(tokens), copy.deepcopy(model.state_dict())
    assert uf.convert_lstm(model) is model
    assert isinstance(model.stack[0], uf.LSTM) and isinstance(model.top, uf.LSTM)
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-14)
    assert list(model.state_dict()) == list(state)
    assert uf.restore_lstm(model) is model
    assert type(model.stack[0]) is nn.LSTM and type(model.top) is nn.LSTM
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=0)
    model.load_state_dict(state)


def test_options_move_along(model):
    model.top.eval()
    uf.convert_lstm(model, weight_p=0.5, gate_p=(0, 0, 0.1, 0), backend="eager")
    layer = model.stack[0]
    assert (layer.num_layers, layer.bidirectional, layer.batch_first) == (2, True, True)
    assert (layer.weight_p, layer.gate_p, layer.backend) == (0.5, (0, 0, 0.1, 0), "eager")
    assert layer.training and not model.top.training and not model.top.bias


def test_an_optimizer_made_before_goes_on(model, tokens):
    optimizer = torch.optim.Adam(model.parameters())
    before = [id(p) for p in model.parameters()]
    uf.convert_lstm(model, weight_p=0.5)
    assert [id(p) for p in model.parameters()] == before
    weight = model.stack[0].weight_hh_l0.detach().clone()
    model(tokens).square().sum().backward()
    dropped = model.stack[0].weight_hh_l0.grad == 0
    assert 0.3 < dropped.double().mean() < 0.7
    optimizer.step()
    assert not torch.equal(model.stack[0].weight_hh_l0, weight)
    uf.restore_lstm(model)
    optimizer.zero_grad()
    model(tokens).square().sum().backward()
    optimizer.step()


def test_a_layer_alone_is_turned_itself():
    layer = nn.LSTM(3, 4)
    x, weight = torch.randn(5, 2, 3), layer.weight_ih_l0
    expected, _ = layer(x)
    # Whoever ignores the result has the new layer all the same.
    assert uf.convert_lstm(layer, weight_p=0.5) is layer
    assert type(layer) is uf.LSTM and layer.weight_ih_l0 is weight
    torch.testing.assert_close(layer.eval()(x)[0], expected)
    assert uf.restore_lstm(layer) is layer and type(layer) is nn.LSTM
    torch.testing.assert_close(layer(x)[0], expected)


def test_a_layer_in_two_places_stays_one():
    layer = nn.LSTM(3, 3)
    model = nn.ModuleList([layer, nn.ModuleList([layer])])
    uf.convert_lstm(model)
    assert isinstance(model[0], uf.LSTM) and model[0] is model[1][0]


BOTH_WAYS = pytest.mark.parametrize(
    ("make", "turn"),
    [(nn.LSTM, uf.convert_lstm), (uf.LSTM, uf.restore_lstm)],
    ids=["convert", "restore"],
)


@BOTH_WAYS
def test_in_a_model_of_several_processes(make, turn):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 3), make(3, 4)))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        turn(model)
        before = model.module[1].weight_hh_l0.detach().clone()
        model(torch.randn(5, 2, 3))[0].sum().backward()
        optimizer.step()
        assert not torch.equal(model.module[1].weight_hh_l0, before)
    finally:
        # The group's thread lets go of the last reduction under the GIL, which a group that is
        # freed meanwhile would keep from it for ever.
        time.sleep(0.05)
        dist.destroy_process_group()


class Half(nn.Module):
    def forward(self, x):
        return x / 2


@BOTH_WAYS
def test_whatever_refers_to_a_layer_refers_to_the_new_one(make, turn):
    model = nn.Sequential(make(3, 3), nn.ModuleDict({"again": make(3, 3)}))
    model[1].list, model[1].by_name = [model[0], model[1]["again"]], {"first": model[0]}
    model[1].pair = (model[0],)
    turn(model)
    for layer in (*model[1].list, *model[1].by_name.values(), *model[1].pair):
        assert layer in (model[0], model[1]["again"])
        assert type(layer) is {nn.LSTM: uf.LSTM, uf.LSTM: nn.LSTM}[make]


@BOTH_WAYS
def test_what_was_added_to_a_layer_stays(make, turn):
    layer = make(3, 4).eval().requires_grad_(False)
    layer.weight_hh_l0.requires_grad_(True)
    layer.register_buffer("steps", torch.zeros(1))
    layer.register_buffer("scratch", torch.ones(2), persistent=False)
    layer.scale = nn.Parameter(torch.ones(4))
    layer.norm = nn.LayerNorm(4).train()
    layer.note, layer.empty_hooks = {"who": "a user"}, {}
    model = nn.Sequential(layer)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    turn(model)
    assert list(model.state_dict()) == list(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert all(value is buffers[name] for name, value in model.named_buffers())
    assert list(buffers) == ["0.steps", "0.scratch"]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "0.weight_hh_l0",
        "0.scale",
        "0.norm.weight",
        "0.norm.bias",
    ]
    assert (layer.note, layer.empty_hooks) == ({"who": "a user"}, {})
    assert not layer.training and layer.norm.training


@BOTH_WAYS
def test_nothing_of_the_former_class_is_left(make, turn):
    layer = turn(make(3, 4, 2, bidirectional=True))
    fresh = type(layer)(3, 4, 2, bidirectional=True)
    assert vars(layer).keys() == vars(fresh).keys()
    x = torch.randn(5, 2, 3)
    expected, _ = layer(x)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(copied(x)[0], expected)


@BOTH_WAYS
def test_hooks_of_every_kind_stay(make, turn):
    layer, seen = make(3, 4), []

    def note(name):
        return lambda *args, **kwargs: seen.append(name)

    handles = [
        layer.register_forward_pre_hook(note("forward pre"), with_kwargs=True),
        layer.register_forward_hook(note("forward"), always_call=True),
        layer.register_full_backward_pre_hook(note("backward pre")),
        layer.register_full_backward_hook(note("backward")),
        layer.register_state_dict_pre_hook(note("state_dict pre")),
        layer.register_state_dict_post_hook(note("state_dict")),
        layer.register_load_state_dict_pre_hook(lambda module, *_: seen.append(type(module))),
        layer.register_load_state_dict_post_hook(note("load")),
    ]
    model = turn(nn.Sequential(layer))
    model(torch.randn(5, 2, 3, requires_grad=True))[0].sum().backward()
    model.load_state_dict(model.state_dict())
    backward = ["backward pre", "backward"]
    calls = ["forward pre", "forward", *backward, "state_dict pre", "state_dict", type(layer)]
    assert seen == [*calls, "load"]
    for handle in handles:
        handle.remove()
    model(torch.randn(5, 2, 3))
    model.load_state_dict(model.state_dict())
    assert len(seen) == 8


@BOTH_WAYS
@pytest.mark.parametrize("how", ["wrapped", "in place"])
@torch.no_grad()
def test_a_compiled_model_sees_the_change(make, turn, how):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(3, 3), make(3, 4))
    if how == "wrapped":
        compiled = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
        compiled = model
    x = torch.randn(5, 2, 3)
    expected, _ = compiled(x)
    turn(compiled)
    torch.testing.assert_close(compiled(x)[0], expected)
    if turn is uf.convert_lstm:
        uf.restore_lstm(compiled)
        uf.convert_lstm(compiled, weight_p=1.0)
        assert not torch.allclose(compiled(x)[0], expected)
    torch._dynamo.reset()


def test_hooks_move_along(model, tokens):
    seen = []
    handle = model.top.register_forward_hook(lambda *_: seen.append(1))
    uf.convert_lstm(model)
    model(tokens)
    handle.remove()
    model(tokens)
    assert seen == [1]


def test_the_random_numbers_stay(model):
    state = torch.get_rng_state()
    uf.restore_lstm(uf.convert_lstm(model))
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_without_a_second_layer_does_not_warn_again():
    with pytest.warns(UserWarning, match="dropout option"):
        layer = nn.LSTM(3, 4, dropout=0.5)
    assert uf.restore_lstm(uf.convert_lstm(layer)).dropout == 0.5


def broken(make):
    return nn.ModuleDict({"good": nn.LSTM(3, 4), "bad": make()})


class Own(nn.LSTM):
    pass


class OwnToo(uf.LSTM):
    pass


def with_attribute(layer, name, value):
    setattr(layer, name, value)
    return layer


def unparameterised():
    layer = nn.LSTM(3, 4)
    del layer._parameters["weight_hh_l0"]
    layer.weight_hh_l0 = torch.zeros(16, 4)
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LSTM(3, 4, proj_size=2), "bad has proj_size=2"),
        (lambda: Own(3, 4), "bad is a Own, a subclass"),
        (unparameterised, "weight_hh_l0 of bad is no parameter"),
        (
            lambda: parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"),
            "weight_hh_l0 of bad is no parameter",
        ),
        (
            lambda: weight_norm(nn.LSTM(3, 4), "weight_hh_l0"),
            "weight_hh_l0 of bad is no parameter",
        ),
        (
            lambda: prune.l1_unstructured(nn.LSTM(3, 4), "weight_ih_l0", 0.5),
            "weight_ih_l0 of bad is no parameter",
        ),
        (
            lambda: parametrize.register_parametrization(
                with_attribute(nn.LSTM(3, 4), "scale", nn.Parameter(torch.ones(2))), "scale", Half()
            ),
            "bad is a ParametrizedLSTM, a subclass",
        ),
        (lambda: with_attribute(nn.LSTM(3, 4), "forward", print), "bad has forward of its own"),
        (lambda: with_attribute(nn.LSTM(3, 4), "weight_p", 0.5), "bad has weight_p of its own"),
        (lambda: with_attribute(nn.LSTM(3, 4), "backend", Half()), "bad has backend of its own"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_what_cannot_be_replaced_is_named_and_nothing_changes(make, message):
    model = broken(make)
    before = {name: (type(module), set(vars(module))) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        uf.convert_lstm(model)
    after = {name: (type(module), set(vars(module))) for name, module in model.named_modules()}
    assert before == after


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OwnToo(3, 4), "bad is a OwnToo, a subclass"),
        (lambda: with_attribute(uf.LSTM(3, 4), "forward", print), "bad has forward of its own"),
        (
            lambda: parametrizations.weight_norm(uf.LSTM(3, 4), "weight_hh_l0"),
            "weight_hh_l0 of bad is no parameter",
        ),
    ],
)
def test_what_cannot_be_restored_is_named_and_nothing_changes(make, message):
    model = nn.ModuleDict({"good": uf.LSTM(3, 4), "bad": make()})
    with pytest.raises(ValueError, match=message):
        uf.restore_lstm(model)
    assert type(model["good"]) is uf.LSTM


def test_a_model_without_any():
    with pytest.raises(ValueError, match=r"the Linear has no torch\.nn"):
        uf.convert_lstm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"the LSTM has no ulmfit_fast\.nn"):
        uf.restore_lstm(nn.LSTM(2, 2))


def test_a_wrong_probability_changes_nothing(model):
    with pytest.raises(ValueError, match="weight_p"):
        uf.convert_lstm(model, weight_p=2)
    assert type(model.top) is nn.LSTM
