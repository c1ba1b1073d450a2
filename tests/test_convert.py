"""Swapping nn.LSTM for ours in a model that is in use, and back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

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


def test_a_layer_alone():
    layer = nn.LSTM(3, 4)
    new = uf.convert_lstm(layer, weight_p=0.5)
    assert isinstance(new, uf.LSTM) and new.weight_ih_l0 is layer.weight_ih_l0
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(new.eval()(x), layer(x))
    assert type(uf.restore_lstm(new)) is nn.LSTM


def test_a_layer_in_two_places_stays_one():
    layer = nn.LSTM(3, 3)
    model = nn.ModuleList([layer, nn.ModuleList([layer])])
    uf.convert_lstm(model)
    assert isinstance(model[0], uf.LSTM) and model[0] is model[1][0]


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
    ],
)
def test_what_cannot_be_replaced_is_named_and_nothing_changes(make, message):
    model = broken(make)
    with pytest.raises(ValueError, match=message):
        uf.convert_lstm(model)
    assert type(model["good"]) is nn.LSTM


def test_a_model_without_any():
    with pytest.raises(ValueError, match=r"the Linear has no torch\.nn"):
        uf.convert_lstm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"the LSTM has no ulmfit_fast\.nn"):
        uf.restore_lstm(nn.LSTM(2, 2))


def test_a_wrong_probability_changes_nothing(model):
    with pytest.raises(ValueError, match="weight_p"):
        uf.convert_lstm(model, weight_p=2)
    assert type(model.top) is nn.LSTM
