"""The shared weight of a language model stays one parameter, whatever replaces parameters."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel

SIZES = {"emb_size": 4, "hidden_size": 6, "num_layers": 1}


def tied(device="cpu", **options):
    return LanguageModel(AWDLSTMConfig(11, **SIZES, **options), device=device)


def copied(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def to_empty(model):
    return model.to_empty(device="cpu")


def overwritten(model):
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def swapped(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.load_state_dict(copied(model.state_dict()), assign=True)
        return model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def assigned(change):
    def assign(model):
        model.load_state_dict(change(model.state_dict()), assign=True)
        return model

    return assign


WAYS = {
    "to_empty": to_empty,
    "overwritten": overwritten,
    "swapped": swapped,
    "assigned": assigned(lambda state: state),
    "assigned copies": assigned(copied),
    "assigned parameters": assigned(lambda s: {k: nn.Parameter(v.clone()) for k, v in s.items()}),
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "bfloat16": lambda model: model.bfloat16(),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_weight_stays_shared(way, nested, frozen):
    model = tied()
    model.encoder.encoder.weight.requires_grad_(not frozen)
    before = model.encoder.encoder.weight.detach().clone()
    count = len(list(model.parameters()))
    outer = WAYS[way](nn.Sequential(model) if nested else model)
    model = outer[0] if nested else outer
    weight = model.decoder.weight
    assert weight is model.encoder.encoder.weight and len(list(outer.parameters())) == count
    assert isinstance(weight, nn.Parameter) and weight.requires_grad is not frozen
    assert way == "to_empty" or torch.equal(weight, before.to(weight.dtype))


def test_a_model_without_memory_takes_a_state_whole():
    state = tied().state_dict()
    model = tied("meta")
    model.load_state_dict(copied(state), assign=True)
    assert model.decoder.weight is model.encoder.encoder.weight
    assert torch.equal(model.decoder.weight, state["decoder.weight"])
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_two_weights_for_a_shared_one_are_refused(assign, nested):
    """The decoder's would have taken the embedding's place in silence."""
    apart, model = tied(tie_weights=False), tied()
    if nested:
        apart, model = nn.Sequential(apart), nn.Sequential(model)
    with pytest.raises(RuntimeError, match=r"encoder\.encoder\.weight and .*decoder\.weight diffe"):
        model.load_state_dict(apart.state_dict(), assign=assign)
    other = nn.Sequential(tied(tie_weights=False)) if nested else tied(tie_weights=False)
    other.load_state_dict(apart.state_dict(), assign=assign)
    assert len(list(other.parameters())) == len(list(apart.parameters()))


def test_a_weight_that_is_no_number_is_still_the_same():
    model = tied()
    with torch.no_grad():
        model.decoder.weight[0, 0] = float("nan")
    tied().load_state_dict(copied(model.state_dict()))
