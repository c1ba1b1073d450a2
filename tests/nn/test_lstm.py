"""`uf.LSTM` against torch.nn.LSTM, and the contract with PyTorch."""

import copy
import pickle
import re

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import ulmfit_fast as uf

DOUBLE = torch.float64
BACKENDS = ["reference", "eager", "torch", "auto"]
backends = pytest.mark.parametrize("backend", BACKENDS)


def twins(*args, backend="auto", **kwargs):
    """Return our layer and nn.LSTM with the same parameters, in float64."""
    ours = uf.LSTM(*args, backend=backend, dtype=DOUBLE, **kwargs)
    theirs = torch.nn.LSTM(*args, dtype=DOUBLE, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def run(module, x, hx=None, lengths=None):
    """Return all outputs and all gradients of a loss that weighs each output differently."""
    leaf = x.clone().requires_grad_()
    state = None if hx is None else tuple(t.clone().requires_grad_() for t in hx)
    inputs = leaf
    if lengths is not None:
        inputs = pack_padded_sequence(leaf, lengths, enforce_sorted=False)
    output, (h, c) = module(inputs, state)
    if lengths is not None:
        output, _ = pad_packed_sequence(output)
    loss = 0
    for seed, tensor in enumerate((output, h, c)):
        generator = torch.Generator().manual_seed(seed)
        loss = loss + (tensor * torch.randn(tensor.shape, generator=generator, dtype=DOUBLE)).sum()
    module.zero_grad()
    loss.backward()
    grads = [leaf.grad, *(t.grad for t in state or ()), *(p.grad for p in module.parameters())]
    return [output, h, c, *grads]


def assert_close(actual, expected, tolerance=1e-12):
    for first, second in zip(actual, expected, strict=True):
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


@backends
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_equals_nn_lstm(backend, layers, bidirectional, bias):
    ours, theirs = twins(5, 7, layers, bias, bidirectional=bidirectional, backend=backend)
    x = torch.randn(6, 4, 5, dtype=DOUBLE)
    rows = layers * (2 if bidirectional else 1)
    hx = torch.randn(rows, 4, 7, dtype=DOUBLE), torch.randn(rows, 4, 7, dtype=DOUBLE)
    assert_close(run(ours, x, hx), run(theirs, x, hx))
    assert_close(run(ours, x), run(theirs, x))


@pytest.mark.parametrize("backend", ["reference", "eager", "auto"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
@pytest.mark.parametrize("lengths", [(6, 2, 5, 1), (6, 6, 6, 6)], ids=str)
def test_packed_sequence_equals_nn_lstm(backend, bidirectional, lengths):
    ours, theirs = twins(5, 7, 2, bidirectional=bidirectional, backend=backend)
    x = torch.randn(6, 4, 5, dtype=DOUBLE)
    rows = 2 * (2 if bidirectional else 1)
    hx = torch.randn(rows, 4, 7, dtype=DOUBLE), torch.randn(rows, 4, 7, dtype=DOUBLE)
    lengths = torch.tensor(lengths)
    assert_close(run(ours, x, hx, lengths), run(theirs, x, hx, lengths))


def test_packed_sequence_keeps_its_form():
    ours, theirs = twins(5, 7)
    packed = pack_sequence(
        [torch.randn(n, 5, dtype=DOUBLE) for n in (2, 5, 3)], enforce_sorted=False
    )
    mine, yours = ours(packed)[0], theirs(packed)[0]
    for first, second in zip(mine, yours, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
def test_lengths_equal_a_packed_sequence(bidirectional):
    lstm = uf.LSTM(5, 7, 2, bidirectional=bidirectional, dtype=DOUBLE)
    x, lengths = torch.randn(6, 3, 5, dtype=DOUBLE), torch.tensor([6, 4, 1])
    output, (h, c) = lstm(x, lengths=lengths)
    packed, final = lstm(pack_padded_sequence(x, lengths))
    assert_close([output, h, c], [pad_packed_sequence(packed)[0], *final])


def test_a_row_of_length_zero_keeps_its_state():
    lstm = uf.LSTM(5, 7, dtype=DOUBLE)
    x = torch.randn(6, 2, 5, dtype=DOUBLE)
    hx = torch.randn(1, 2, 7, dtype=DOUBLE), torch.randn(1, 2, 7, dtype=DOUBLE)
    output, (h, c) = lstm(x, hx, lengths=torch.tensor([0, 6]))
    assert torch.all(output[:, 0] == 0)
    assert_close([h[:, 0], c[:, 0]], [hx[0][:, 0], hx[1][:, 0]])


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-way"])
def test_shapes_batched_and_unbatched(batch_first, bidirectional):
    ours, theirs = twins(5, 7, 2, batch_first=batch_first, bidirectional=bidirectional)
    rows = 2 * (2 if bidirectional else 1)
    for shape, state in [((6, 4, 5), (rows, 6 if batch_first else 4, 7)), ((6, 5), (rows, 7))]:
        x = torch.randn(shape, dtype=DOUBLE)
        hx = torch.randn(state, dtype=DOUBLE), torch.randn(state, dtype=DOUBLE)
        for given in (None, hx):
            (mine, my_state), (yours, your_state) = ours(x, given), theirs(x, given)
            assert_close([mine, *my_state], [yours, *your_state])


def test_parameters_bear_the_names_and_the_initialisation_of_nn_lstm():
    kwargs = {"num_layers": 2, "bidirectional": True}
    torch.manual_seed(0)
    ours = uf.LSTM(5, 7, **kwargs)
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(5, 7, **kwargs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for first, second in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(first, second)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert [len(row) for row in ours.all_weights] == [len(row) for row in theirs.all_weights]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_attributes_of_nn_lstm_that_others_read(bias):
    ours, theirs = twins(5, 7, 2, bias, bidirectional=True)
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        for name in ("mode", "_all_weights", "_flat_weights_names"):
            assert getattr(twin, name) == getattr(theirs, name)
        for first, second in zip(twin._flat_weights, twin.parameters(), strict=True):
            assert first is second


def test_p_zero_equals_nn_lstm_bit_for_bit_in_training():
    torch.manual_seed(0)
    ours = uf.LSTM(5, 7, 2, backend="torch", weight_p=0.0)
    theirs = torch.nn.LSTM(5, 7, 2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, 4, 5)
    assert torch.equal(ours(x)[0], theirs(x)[0])


@backends
def test_weight_drop_equals_nn_lstm_with_a_dropped_weight(backend):
    """The injected masks of both directions, set into a plain nn.LSTM."""
    lstm = uf.LSTM(5, 7, 2, bidirectional=True, weight_p=0.5, backend=backend, dtype=DOUBLE)
    plain = torch.nn.LSTM(5, 7, 2, bidirectional=True, dtype=DOUBLE)
    state = lstm.state_dict()
    for layer in (0, 1):
        for reverse in (False, True):
            name = f"weight_hh_l{layer}{'_reverse' if reverse else ''}"
            mask = uf.dropout_masks(
                3, hidden_size=7, weight_p=0.5, layer=layer, reverse=reverse, dtype=DOUBLE
            ).weight
            state[name] = state[name] * mask
    plain.load_state_dict(state)
    x = torch.randn(6, 4, 5, dtype=DOUBLE)
    assert_close([lstm(x, seed=3)[0]], [plain(x)[0]])


def test_manual_seed_fixes_a_training_forward_and_eval_drops_nothing():
    lstm = uf.LSTM(5, 7, weight_p=0.5, gate_p=0.1)
    x = torch.randn(6, 4, 5)
    torch.manual_seed(1)
    first, second = lstm(x)[0], lstm(x)[0]
    torch.manual_seed(1)
    assert torch.equal(first, lstm(x)[0])
    assert not torch.equal(first, second)
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])


def test_checkpointed_recomputation_draws_the_same_masks():
    lstm = uf.LSTM(5, 7, weight_p=0.5, gate_p=0.2, dtype=DOUBLE)
    x = torch.randn(6, 4, 5, dtype=DOUBLE)

    def gradient(function):
        torch.manual_seed(2)
        lstm.zero_grad()
        function(x)[0].sum().backward()
        return lstm.weight_hh_l0.grad.clone()

    checkpointed = gradient(
        lambda x: torch.utils.checkpoint.checkpoint(lstm, x, use_reentrant=False)
    )
    torch.testing.assert_close(checkpointed, gradient(lstm), rtol=0, atol=0)


def test_between_layer_dropout_acts_in_training_only():
    lstm = uf.LSTM(5, 7, 2, dropout=0.5)
    x = torch.randn(6, 4, 5)
    assert not torch.equal(lstm(x)[0], lstm(x)[0])
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])
    with pytest.warns(UserWarning, match="num_layers is 1"):
        uf.LSTM(5, 7, dropout=0.5)


@backends
def test_other_devices_by_default_or_by_choice(backend):
    kwargs = {"weight_p": 0.5, "gate_p": 0.0 if backend == "torch" else 0.2, "dropout": 0.3}
    layer, x = uf.LSTM(4, 8, 2, **kwargs, backend=backend), torch.randn(5, 2, 4)
    expected = layer(x, seed=3)[0]
    with torch.device("meta"):
        assert torch.equal(layer(x, seed=3)[0], expected)
        assert layer(x)[0].device.type == "cpu"
        if backend != "torch":
            layer(x, lengths=torch.tensor([5, 3], device="cpu"))
    assert layer.to("meta")(x.to("meta"))[0].shape == (5, 2, 8)


def test_deepcopy_pickle_and_dtype_changes_after_a_training_forward():
    lstm = uf.LSTM(5, 7, weight_p=0.5)
    lstm(torch.randn(6, 4, 5))[0].sum().backward()
    x = torch.randn(6, 4, 5)
    for twin in (copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        assert torch.equal(twin.eval()(x)[0], lstm.eval()(x)[0])
    for dtype in (DOUBLE, torch.bfloat16, torch.float32):
        lstm.to(dtype).train()
        assert lstm(x.to(dtype))[0].dtype == dtype


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiles_whole(backend, compiler):
    torch._dynamo.reset()
    dropouts = {"weight_p": 0.3, "gate_p": 0.1, "dropout": 0.2}
    lstm = uf.LSTM(5, 7, 2, bidirectional=True, **dropouts, backend=backend)
    x = torch.randn(6, 4, 5)
    compiled = torch.compile(lstm, fullgraph=True, backend=compiler)

    def outcome(function):
        lstm.zero_grad()
        output, _ = function(x, seed=torch.tensor(4))
        output.sum().backward()
        return [output, *(p.grad.clone() for p in lstm.parameters())]

    assert_close(outcome(compiled), outcome(lstm), tolerance=1e-6)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiles_whole_without_gate_dropout(compiler):
    torch._dynamo.reset()
    lstm = uf.LSTM(5, 7, weight_p=0.3)
    x = torch.randn(6, 4, 5)
    compiled = torch.compile(lstm, fullgraph=True, backend=compiler)
    output, _ = compiled(x, seed=torch.tensor(4))
    assert_close([output], [lstm(x, seed=4)[0]], tolerance=1e-6)
    output.sum().backward()
    assert lstm.weight_hh_l0.grad is not None


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(uf.LSTM(4, 8)) == "LSTM(4, 8)"
    layer = uf.LSTM(4, 8, 2, weight_p=0.5, backend="eager")
    assert repr(layer) == "LSTM(4, 8, num_layers=2, weight_p=0.5, backend='eager')"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"proj_size": 3}, "proj_size is 3, expected 0"),
        ({"hidden_size": 0}, "hidden_size must be greater than zero, got 0"),
        ({"num_layers": -1}, "num_layers must be greater than zero, got -1"),
        ({"dropout": 2.0}, "dropout is 2.0"),
        ({"weight_p": -0.5}, "weight_p is -0.5"),
        ({"gate_p": 0.5, "gate_mask": "sequence"}, "forget gates"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_at_once(kwargs, message):
    with pytest.raises(ValueError, match=message):
        uf.LSTM(**{"input_size": 4, "hidden_size": 8, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hidden_size": "7"}, "hidden_size should be of type int, got: str ('7')"),
        ({"hidden_size": 7.0}, "hidden_size should be of type int, got: float (7.0)"),
        ({"input_size": None}, "input_size should be of type int, got: NoneType (None)"),
        ({"num_layers": True}, "num_layers should be of type int, got: bool (True)"),
        ({"proj_size": "3"}, "proj_size should be of type int, got: str ('3')"),
        ({"bias": 0.5}, "bias should be of type bool, got: float (0.5); pass True or False"),
        ({"batch_first": "no"}, "batch_first should be of type bool, got: str ('no')"),
        ({"bidirectional": 2}, "bidirectional should be of type bool, got: int (2)"),
        ({"recompute_gates": None}, "recompute_gates should be of type bool, got: NoneType"),
        ({"dropout": "0.1"}, "dropout is '0.1', expected a probability"),
        ({"weight_p": True}, "weight_p is True, expected one number or four"),
        ({"gate_p": None}, "gate_p is None, expected one number or four"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_of_a_wrong_type_are_named(kwargs, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        uf.LSTM(**{"input_size": 4, "hidden_size": 8, **kwargs})


@pytest.mark.parametrize("sorted_", [True, False], ids=["sorted", "unsorted"])
def test_bad_arguments_beside_a_packed_sequence_are_named(sorted_):
    lstm = uf.LSTM(5, 7)
    x, lengths = torch.randn(6, 3, 5), torch.tensor([6, 5, 1] if sorted_ else [1, 6, 5])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=sorted_)
    good = torch.zeros(1, 3, 7)
    for batch in (2, 4):
        with pytest.raises(ValueError, match=rf"c_0 has shape \(1, {batch}, 7\), expected"):
            lstm(packed, (good, torch.zeros(1, batch, 7)))
    with pytest.raises(ValueError, match="h_0 is on meta"):
        lstm(packed, (good.to("meta"), good))
    with pytest.raises(TypeError, match=r"hx is a Tensor, expected two tensors, \(h_0, c_0\)"):
        lstm(packed, good)
    with pytest.raises(ValueError, match="input has 5 features, expected input_size = 4"):
        uf.LSTM(4, 7)(packed)


def test_bad_inputs_are_named():
    lstm = uf.LSTM(5, 7, 2)
    x = torch.randn(6, 4, 5)
    good = torch.zeros(2, 4, 7)
    with pytest.raises(ValueError, match="input has 3 features, expected input_size = 5"):
        lstm(torch.randn(6, 4, 3))
    with pytest.raises(ValueError, match=r"input has shape \(5,\)"):
        lstm(torch.randn(5))
    with pytest.raises(ValueError, match=r"h_0 has shape \(2, 3, 7\), expected \(2, 4, 7\)"):
        lstm(x, (torch.zeros(2, 3, 7), good))
    with pytest.raises(TypeError, match=r"hx is a Tensor"):
        lstm(x, good)
    with pytest.raises(TypeError, match="input is a list"):
        lstm([1, 2])
    with pytest.raises(TypeError, match=r"seed is 1\.5"):
        lstm(x, seed=1.5)
    with pytest.raises(TypeError, match=r"pass torch\.tensor"):
        lstm(x, lengths=[6, 5, 5, 1])
    with pytest.raises(ValueError, match=r"lengths has shape \(3,\)"):
        lstm(x, lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="which has its own"):
        lstm(pack_padded_sequence(x, torch.tensor([6, 5, 5, 1])), lengths=torch.ones(4).long())
    with pytest.raises(ValueError, match="masks has 1 entries, expected 2"):
        lstm(x, masks=[uf.dropout_masks(1, hidden_size=7, weight_p=0.5)])
    with pytest.raises(TypeError, match=r"Convert input: input\.to\(torch\.float32\)"):
        lstm(x.double())
    with pytest.raises(TypeError, match="embed the tokens first"):
        lstm(x.long())
