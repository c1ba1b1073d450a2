"""`accelerate` swaps the recurrent layers of fastai's models and nothing else."""

import pytest
import torch
from fastai_parts import (
    DROPOUT,
    EMB,
    HIDDEN,
    VOCAB,
    assert_equal,
    assert_equal_gradients,
    classifiers,
    drawing,
    fastai,
    recording,
    replaying,
    their_loss,
)

import ulmfit_fast as uf
from ulmfit_fast.compat.fastai import accelerate, restore
from ulmfit_fast.compat.fastai_learner import WeightDropLSTM


def language_model(dtype=torch.float64, **config):
    config = fastai.awd_lstm_lm_config | {"emb_sz": EMB, "n_hid": HIDDEN} | DROPOUT | config
    model = fastai.get_language_model(fastai.AWD_LSTM, VOCAB, config).to(dtype)
    model.reset()
    return model


def twin(model):
    """Return an accelerated model with the same weights; fastai's cannot be copied at any time."""
    config = {"n_layers": len(model[0].rnns), "bidir": model[0].n_dir == 2}
    other = accelerate(language_model(**config))
    other.load_state_dict(model.state_dict())
    return other.train(model.training)


@pytest.mark.parametrize("bidir", [False, True], ids=["one way", "both ways"])
def test_names_and_parameters_stay(bidir):
    model = language_model(bidir=bidir)
    state = {name: value.data_ptr() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    shown = repr(model)
    assert accelerate(model) is model
    assert all(type(rnn) is WeightDropLSTM for rnn in model[0].rnns)
    assert list(state.items()) == [(k, v.data_ptr()) for k, v in model.state_dict().items()]
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in after)
    assert restore(model) is model
    assert all(type(rnn) is fastai.WeightDropout for rnn in model[0].rnns)
    assert repr(model) == shown
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in after)
    assert list(model.state_dict()) == list(state)


def test_names_and_shapes_at_full_size():
    with torch.device("meta"):
        model = fastai.get_language_model(fastai.AWD_LSTM, 60_008)
    shapes = [(name, value.shape) for name, value in model.state_dict().items()]
    accelerate(model)
    assert [(name, value.shape) for name, value in model.state_dict().items()] == shapes
    assert len(shapes) == 16 and sum(p.numel() for p in model.parameters()) == 44_336_488


def test_a_classifier_is_accelerated():
    model, _ = classifiers()
    model.eval()
    tokens = torch.randint(9, VOCAB, (4, 21))
    names = list(model.state_dict())
    before = model(tokens)[0]
    accelerate(model)
    assert list(model.state_dict()) == names
    assert all(type(rnn) is WeightDropLSTM for rnn in model[0].module.rnns)
    assert_equal(model(tokens)[0], before)


@pytest.mark.parametrize("backend", ["auto", "eager", "torch", "reference"])
@pytest.mark.parametrize("bidir", [False, True], ids=["one way", "both ways"])
def test_evaluation_is_equal_whatever_the_batches(bidir, backend):
    old = language_model(bidir=bidir).eval()
    new = accelerate(twin(old), backend=backend)
    for batch, steps in ((10, 7), (6, 1), (6, 9), (10, 3), (1, 5)):
        tokens = torch.randint(VOCAB, (batch, steps))
        for ours, theirs in zip(new(tokens), old(tokens), strict=True):
            assert_equal(ours, theirs)
        for ours, theirs in zip(new[0].hidden, old[0].hidden, strict=True):
            assert ours[0].shape == (old[0].n_dir, batch, ours[0].shape[2])
            assert_equal(ours, theirs)
    old.reset()
    new.reset()
    assert_equal(new(tokens)[0], old(tokens)[0])


def test_training_is_equal_with_the_same_masks():
    old = language_model()
    new = twin(old)
    for _ in range(3):
        stretch = torch.randint(VOCAB, (13, 5))
        new.zero_grad()
        old.zero_grad()
        with recording(seeds := []), drawing():
            _, ours = their_loss(new, stretch[:-1], stretch[1:])
        ours.backward()
        assert len(seeds) == 2 + 3 + 2 + 1
        with replaying(seeds):
            _, theirs = their_loss(old, stretch[:-1], stretch[1:])
        theirs.backward()
        assert_equal(ours, theirs)
        assert_equal_gradients(new, old)


def test_masks_follow_from_the_seed_and_change_from_forward_to_forward():
    model = accelerate(language_model())
    tokens = torch.randint(VOCAB, (4, 6))

    def run(seed):
        torch.manual_seed(seed)
        model.reset()
        return model(tokens)[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    model[0].encoder_dp.embed_p = 0.0
    torch.manual_seed(0)
    first, second = (model[0].reset() or model(tokens)[0] for _ in range(2))
    assert not torch.equal(first, second)
    for rnn in model[0].rnns:
        rnn.weight_p = 0.0  # as in fastai, it may be set at any time
    trained = run(1)
    model.eval()
    assert torch.equal(trained, run(2))


@pytest.mark.parametrize("reverse", [False, True])
def test_both_directions_are_dropped(reverse):
    layer = accelerate(language_model(bidir=True, weight_p=0.4))[0].rnns[0]
    name = "weight_hh_l0_reverse" if reverse else "weight_hh_l0"
    weight = layer.module.weight_hh_l0_reverse if reverse else layer.weight_hh_l0_raw
    x = torch.randn(3, 7, EMB, dtype=torch.float64)
    output, _ = layer(x, seed=7)
    output.square().sum().backward()
    sizes = {"hidden_size": HIDDEN // 2, "weight_p": 0.4, "dtype": torch.float64}
    mask = uf.dropout_masks(7, reverse=reverse, **sizes).weight
    assert 0.3 < (mask == 0).double().mean() < 0.5
    assert torch.equal(weight.grad == 0, mask == 0)
    reference = torch.nn.LSTM(EMB, HIDDEN // 2, batch_first=True, bidirectional=True).double()
    weights = {key.removeprefix("module."): value for key, value in layer.state_dict().items()}
    weights["weight_hh_l0"] = weights.pop("weight_hh_l0_raw")
    for way in (False, True):
        key = "weight_hh_l0_reverse" if way else "weight_hh_l0"
        weights[key] = weights[key] * uf.dropout_masks(7, reverse=way, **sizes).weight
    reference.load_state_dict(weights)
    expected, _ = reference(x)
    assert_equal(output, expected)
    expected.square().sum().backward()
    assert_equal(weight.grad, getattr(reference, name).grad * mask)


def test_tensors_keep_the_class_that_says_what_they_are():
    model = language_model(torch.float32)
    tokens = fastai.LMTensorText(torch.randint(VOCAB, (4, 6)))
    expected = [type(part) for part in (*model(tokens), *model[0].hidden[0])]
    accelerate(model)
    for _ in range(2):
        assert [type(part) for part in (*model(tokens), *model[0].hidden[0])] == expected
    assert expected[0] is fastai.LMTensorText
    model.reset()
    parameter = torch.nn.Parameter(torch.randn(2, 3, EMB))
    output, (h, c) = model[0].rnns[0](parameter)
    assert type(output) is type(h) is type(c) is torch.Tensor
    output.sum().backward()
    assert parameter.grad.abs().sum() > 0


def test_gate_dropout_and_a_second_call():
    model = accelerate(language_model(), gate_p=(0.0, 0.0, 0.5, 0.0))
    assert "gate_p=(0.0, 0.0, 0.5, 0.0)" in repr(model[0].rnns[0])
    layer, x = model[0].rnns[0], torch.randn(2, 5, EMB, dtype=torch.float64)
    with_gates = layer(x, seed=3)[0]
    layers = list(model[0].rnns)
    accelerate(model, backend="reference")
    assert all(a is b for a, b in zip(layers, model[0].rnns, strict=True))
    assert layer.gate_p == 0.0 and layer.backend == "reference"
    assert not torch.allclose(layer(x, seed=3)[0], with_gates)
    model.eval()
    plain = layer(x)[0]
    accelerate(model, gate_p=0.25)
    assert layer.gate_p == 0.25
    assert_equal(layer(x)[0], plain)


def test_modes_and_hooks_stay():
    model = language_model().eval()
    seen = []
    model[0].rnns[1].register_forward_hook(lambda module, args, output: seen.append(module))
    accelerate(model)
    assert not any(module.training for module in model.modules())
    tokens = torch.randint(VOCAB, (2, 3))
    model(tokens)
    assert seen == [model[0].rnns[1]]
    restore(model)
    model(tokens)
    assert seen[1:] == [model[0].rnns[1]]
    assert not any(module.training for module in model.modules())


def test_a_restored_model_trains_as_before():
    old = language_model()
    new = restore(twin(old))
    tokens = torch.randint(VOCAB, (4, 6))
    results = []
    for model in (old, new):
        torch.manual_seed(5)
        model(tokens)[0].square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    assert_equal(*results)


def test_the_same_layer_in_two_places_stays_the_same():
    model = language_model(n_layers=2, emb_sz=HIDDEN)
    model[0].rnns[1] = model[0].rnns[0]
    accelerate(model)
    assert model[0].rnns[1] is model[0].rnns[0] and type(model[0].rnns[0]) is WeightDropLSTM


@pytest.mark.parametrize(
    ("learn", "error", "message"),
    [
        (torch.nn.LSTM(3, 4), ValueError, "the LSTM has no layer"),
        ("a learner", TypeError, "learn is a str, expected a fastai Learner or its model"),
    ],
    ids=["another model", "no model"],
)
@pytest.mark.parametrize("function", [accelerate, restore])
def test_what_has_no_layers_is_refused(function, learn, error, message):
    with pytest.raises(error, match=message):
        function(learn)


@pytest.mark.parametrize(
    ("module", "names", "message"),
    [
        (torch.nn.GRU(3, 4), "weight_hh_l0", "1 drops weight_hh_l0 of a GRU"),
        (torch.nn.LSTM(3, 4), "weight_ih_l0", "1 drops weight_ih_l0 of a LSTM"),
        (torch.nn.LSTM(3, 4, num_layers=2), "weight_hh_l0", "1 has num_layers=2"),
        (torch.nn.LSTM(3, 4, proj_size=2), "weight_hh_l0", "proj_size=2"),
    ],
    ids=["GRU", "other weight", "two layers", "projections"],
)
def test_layers_that_awd_lstm_does_not_have_are_refused(module, names, message):
    good = fastai.WeightDropout(torch.nn.LSTM(3, 4), 0.5)
    model = torch.nn.Sequential(good, fastai.WeightDropout(module, 0.5, names))
    with pytest.raises(ValueError, match=message):
        accelerate(model)
    assert type(good) is fastai.WeightDropout


def test_arguments_out_of_range_change_nothing():
    model = language_model()
    for arguments in ({"gate_p": 1.5}, {"gate_p": (0.1, 0.2)}, {"backend": "cudnn"}):
        with pytest.raises(ValueError):
            accelerate(model, **arguments)
    assert all(type(rnn) is fastai.WeightDropout for rnn in model[0].rnns)
    accelerate(model)
    model[0].rnns[2].weight_p = (0.1, 0.2, 0.3, 0.4)
    with pytest.raises(ValueError, match=r"0\.rnns\.2 has weight_p=\(0\.1, 0\.2, 0\.3, 0\.4\)"):
        restore(model)
    assert all(type(rnn) is WeightDropLSTM for rnn in model[0].rnns)


def test_layers_stay_the_same_objects_and_keep_what_was_added_to_them():
    model = language_model()
    rnns, seen = list(model[0].rnns), []
    rnns[0].register_buffer("steps", torch.zeros(1))
    rnns[0].norm, rnns[0].note = torch.nn.LayerNorm(2), "a user's"
    handle = rnns[0].register_forward_hook(lambda *_: seen.append(1))
    names = list(model.state_dict())
    x = torch.randint(9, VOCAB, (2, 3))
    for change, kind in ((accelerate, WeightDropLSTM), (restore, fastai.WeightDropout)):
        change(model)
        assert all(new is old for new, old in zip(model[0].rnns, rnns, strict=True))
        assert {type(rnn) for rnn in rnns} == {kind}
        assert list(model.state_dict()) == names and rnns[0].note == "a user's"
        model(x)
    assert seen == [1, 1]
    handle.remove()
    fresh = fastai.WeightDropout(torch.nn.LSTM(3, 4), 0.5)
    assert vars(rnns[1]).keys() == vars(fresh).keys()
    assert vars(rnns[1].module).keys() == vars(fresh.module).keys()
    assert rnns[1].module.flatten_parameters.__self__ is rnns[1]


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda rnn: rnn.module.register_buffer("steps", torch.zeros(1)), "module has steps of"),
        (lambda rnn: rnn.module.register_forward_hook(print), "module has _forward_hooks of"),
        (lambda rnn: setattr(rnn.module, "note", 1), "module has note of its own"),
        (lambda rnn: setattr(rnn, "forward", print), "1 has forward of its own"),
        (lambda rnn: setattr(rnn, "gate_p", 0.1), "1 has gate_p of its own"),
    ],
)
def test_what_was_added_and_would_be_lost_is_named(add, message):
    model = torch.nn.Sequential(*(fastai.WeightDropout(torch.nn.LSTM(3, 4), 0.5) for _ in "ab"))
    add(model[1])
    with pytest.raises(ValueError, match=message):
        accelerate(model)
    assert {type(layer) for layer in model} == {fastai.WeightDropout}


class OwnDropout(fastai.WeightDropout):
    pass


def test_a_subclass_of_fastais_layer_is_refused():
    model = torch.nn.Sequential(OwnDropout(torch.nn.LSTM(3, 4), 0.5))
    with pytest.raises(ValueError, match="0 is a OwnDropout, a subclass"):
        accelerate(model)


def test_the_swap_draws_nothing_and_keeps_the_dtype():
    model = fastai.AWD_LSTM(20, 6, 8, 2)
    before = torch.get_rng_state()
    for default in (torch.float64, torch.float32):
        torch.set_default_dtype(default)
        try:
            restore(accelerate(model))
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
