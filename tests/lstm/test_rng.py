"""The Philox generator and the masks drawn with it."""

import math

import numpy as np
import pytest
import torch
from test_functional import DOUBLE, arguments, assert_close, dropouts, gradients
from torch.autograd import gradcheck, gradgradcheck

import ulmfit_fast as uf
from ulmfit_fast import rng
from ulmfit_fast.functional import lstm
from ulmfit_fast.lstm import operators
from ulmfit_fast.system.seeds import draw_seed


# Known-answer vectors of the Random123 library for philox4x32-10.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        pytest.param((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8), id="zeros"),
        pytest.param(
            (0xFFFFFFFF,) * 4,
            2**64 - 1,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
            id="ones",
        ),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            id="pi",
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    first, *rest = counter
    assert tuple(rng.philox(key, torch.tensor([first]), *rest)[:, 0].tolist()) == expected


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5, 2**63 - 2])
def test_philox_takes_a_key_that_stays_on_its_device(monkeypatch, seed):
    """As on a device, whose seed is never read: the listening device hears that, not the values."""
    counters = torch.arange(rng._BLOCK + 5)
    wanted = rng.philox(seed, counters, 1, 2, 3)
    monkeypatch.setattr(rng, "_key", torch.tensor)
    assert torch.equal(rng.philox(seed, counters, 1, 2, 3), wanted)


def test_philox_does_not_depend_on_its_blocks():
    counters = torch.arange(rng._BLOCK + 5)
    whole = rng.philox(3, counters, 1, 2, 3)
    tail = rng.philox(3, counters[-7:], 1, 2, 3)
    assert torch.equal(whole[:, -7:], tail)


def test_philox_is_pure_and_sensitive_to_every_word():
    counters = torch.arange(64)
    words = rng.philox(11, counters, 1, 2, 3)
    assert torch.equal(words, rng.philox(11, counters, 1, 2, 3))
    others = [(12, 1, 2, 3), (11 + 2**32, 1, 2, 3), (11, 2, 2, 3), (11, 1, 3, 3), (11, 1, 2, 4)]
    for seed, *rest in others:
        assert not torch.equal(words, rng.philox(seed, counters, *rest))


def test_one_row_of_a_tensor_word_equals_its_scalar():
    counters = torch.arange(10)
    times = torch.full((10,), 5)
    assert torch.equal(rng.philox(1, counters, times), rng.philox(1, counters, 5))


def test_torch_manual_seed_rules_the_seed():
    torch.manual_seed(3)
    first = draw_seed()
    second = draw_seed()
    torch.manual_seed(3)
    assert torch.equal(first, draw_seed())
    assert not torch.equal(first, second)
    assert 0 <= int(first) < 2**63


@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["default", "own"])
def test_seeds_are_drawn_on_the_cpu_whatever_the_default_device(generator):
    with torch.device("meta"):
        assert draw_seed(generator).device.type == "cpu"


PS = (0.1, 0.3, 0.5, 0.9)


def kept(word_0, word_1, stream, kind):
    """Return the documented mask of one element, gates i, f, g, o."""
    words = rng.philox(7, torch.tensor([word_0]), word_1, stream, kind)[:, 0].tolist()
    return [word >= int(p * 2**32) for word, p in zip(words, PS, strict=True)]


@pytest.mark.parametrize("stream", [0, 3], ids=["layer0", "layer1-reverse"])
def test_masks_have_the_documented_counters(stream):
    batch, hidden = 2, 3
    gate = rng.gate_keep(7, range(2), batch, hidden, PS, stream=stream).view(2, batch, 4, hidden)
    weight = rng.weight_keep(7, hidden, PS, stream=stream).view(4, hidden, hidden)
    for b, u in [(0, 0), (0, 2), (1, 0), (1, 2)]:
        for t in (0, 1):
            assert gate[t, b, :, u].tolist() == kept(b * hidden + u, t, stream, rng.KIND_GATE)
    for u in range(hidden):
        for k in range(hidden):
            assert weight[:, u, k].tolist() == kept(u * hidden + k, 0, stream, rng.KIND_WEIGHT)
    exported = uf.dropout_masks(
        7,
        hidden_size=hidden,
        batch_size=batch,
        steps=2,
        weight_p=PS,
        gate_p=PS,
        layer=stream // 2,
        reverse=bool(stream % 2),
    )
    assert torch.equal(exported.gate != 0, gate.flatten(2))
    assert torch.equal(exported.weight != 0, weight.flatten(0, 1))


def test_the_kinds_of_masks_are_numbered_as_documented():
    kinds = ("WEIGHT", "GATE", "EMBEDDING", "LOCKED", "LAYER")
    assert [getattr(rng, f"KIND_{kind}") for kind in kinds] == [0, 1, 2, 3, 4]


def test_weight_mask_cuts_a_fifth_of_the_connections_of_every_gate():
    hidden, p = 1152, 0.2
    masks = uf.dropout_masks(2024, hidden_size=hidden, weight_p=p)
    connections = hidden * hidden
    sigma = math.sqrt(connections * p * (1 - p))
    assert round(connections * p) == 265_421
    assert round(sigma) == 461
    for gate in masks.weight.chunk(4):
        assert abs(int((gate == 0).sum()) - 265_421) < 5 * sigma
        assert torch.equal(gate.unique(), torch.tensor([0.0, 1.25]))


def test_weight_masks_of_the_gates_are_uncorrelated():
    keep = rng.weight_keep(5, 256, (0.5,) * 4).view(4, -1).double()
    correlation = torch.corrcoef(keep) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(256 * 256)


@pytest.mark.parametrize("p", [(0.1, 0.3, 0.5, 0.9), (0.0, 1.0, 0.25, 0.0)], ids=str)
def test_gate_mask_statistics_for_each_gate(p):
    steps, batch, hidden = 20, 16, 64
    mask = uf.dropout_masks(1, hidden_size=hidden, batch_size=batch, steps=steps, gate_p=p).gate
    assert mask.shape == (steps, batch, 4 * hidden)
    n = steps * batch * hidden
    for gate, probability in zip(mask.chunk(4, dim=2), p, strict=True):
        sigma = math.sqrt(n * probability * (1 - probability))
        assert abs(int((gate == 0).sum()) - n * probability) <= 5 * sigma
        assert float(gate.max()) == pytest.approx(rng.keep_scale(probability))


def test_gate_masks_change_with_the_step_and_a_block_equals_the_whole():
    whole = rng.gate_keep(9, range(6), 3, 8, (0.5,) * 4)
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(whole[2:5], rng.gate_keep(9, range(2, 5), 3, 8, (0.5,) * 4))


def test_sequence_mask_is_the_first_step():
    kwargs = {"hidden_size": 8, "batch_size": 3, "gate_p": (0.5, 0, 0.5, 0.5)}
    step = uf.dropout_masks(9, steps=6, **kwargs).gate
    sequence = uf.dropout_masks(9, steps=6, gate_mask="sequence", **kwargs).gate
    assert sequence.shape == (1, 3, 32)
    assert torch.equal(sequence[0], step[0])


@pytest.mark.parametrize("name", ["weight", "gate"])
def test_layers_and_directions_have_masks_of_their_own(name):
    kwargs = {"hidden_size": 16, "batch_size": 2, f"{name}_p": 0.5}
    masks = [
        getattr(uf.dropout_masks(9, layer=layer, reverse=reverse, **kwargs), name)
        for layer in (0, 1)
        for reverse in (False, True)
    ]
    for i, first in enumerate(masks):
        for second in masks[i + 1 :]:
            assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0], ids=str)
def test_drop_weight_equals_the_exported_mask(p):
    weight = torch.randn(32, 8)
    ps = (p, 0.5, 0.0, 0.2)
    mask = uf.dropout_masks(4, hidden_size=8, weight_p=ps, layer=1).weight
    assert torch.equal(rng.drop_weight(weight, 4, ps, stream=2), weight * mask)


def test_keep_mask_and_embedding_keep():
    seed = torch.tensor(8)
    keep = rng.keep_mask(seed, 10_001, 0.3, kind=rng.KIND_LOCKED)
    assert keep.shape == (10_001,)
    assert abs(int((~keep).sum()) - 3000) < 5 * math.sqrt(10_001 * 0.21)
    words = rng.philox(8, torch.arange(2501), 0, 0, rng.KIND_LOCKED).t().reshape(-1)[:10_001]
    assert torch.equal(keep, words >= int(0.3 * 2**32))
    tokens = torch.randint(0, 50, (12, 5))
    kept = rng.embedding_keep(seed, tokens, 0.5)
    by_token = rng.embedding_keep(seed, torch.arange(50), 0.5)
    assert torch.equal(kept, by_token[tokens])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_seed_fixes_the_dropout_between_layers(dtype):
    """The documented masks, applied by hand between three layers."""
    lstm = uf.LSTM(5, 7, 3, dropout=0.4, bidirectional=True, dtype=dtype)
    x = torch.randn(6, 4, 5, dtype=dtype)
    output = lstm(x, seed=3)[0]
    assert torch.equal(output, lstm(x, seed=torch.tensor(3))[0])
    assert not torch.equal(output, lstm(x, seed=4)[0])
    masks = [uf.DropoutMasks(None, None)] * 6
    assert torch.equal(output, lstm(x, seed=3, masks=masks)[0])
    weights = lstm.state_dict()
    for layer in range(3):
        single = uf.LSTM(x.shape[2], 7, bidirectional=True, dtype=dtype)
        own = {name: value for name, value in weights.items() if f"_l{layer}" in name}
        single.load_state_dict({name.replace(f"_l{layer}", "_l0"): own[name] for name in own})
        x = single(x)[0]
        if layer < 2:
            keep = rng.keep_mask(
                torch.tensor(3), x.numel(), 0.4, kind=rng.KIND_LAYER, stream=2 * layer
            )
            x = (x.float() * keep.view(x.shape) * rng.keep_scale(0.4)).to(dtype)
    assert_close([output], [x], tolerance=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "draws"),
    [({}, False), ({"weight_p": 0.1}, True), ({"gate_p": (0, 0, 0.1, 0)}, True)],
    ids=["p0", "weight", "gate"],
)
def test_the_generator_moves_only_where_something_is_dropped(kwargs, draws):
    lstm = uf.LSTM(5, 7, 2, **kwargs)
    before = torch.get_rng_state()
    masks = [uf.DropoutMasks(None, None)] * 2
    lstm(torch.ones(6, 4, 5), masks=masks)
    lstm(torch.ones(6, 4, 5), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    lstm(torch.ones(6, 4, 5))
    assert torch.equal(torch.get_rng_state(), before) != draws


@pytest.mark.parametrize(
    "p",
    [-0.1, 1.5, float("nan"), (0.1, 0.2), (0.1, 0.1, 0.1, 2.0), pytest.param(10**400, id="huge")],
    ids=str,
)
def test_bad_probabilities_are_named(p):
    with pytest.raises(ValueError, match="weight_p"):
        uf.dropout_masks(1, hidden_size=4, weight_p=p)


@pytest.mark.parametrize("p", [True, None, "0.5", (0.1, None, 0, 0), 1j], ids=str)
def test_what_is_no_number_is_named(p):
    with pytest.raises(TypeError, match=r"^weight_p is "):
        uf.dropout_masks(1, hidden_size=4, weight_p=p)


@pytest.mark.parametrize(
    "p",
    [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.full(4, 0.5), torch.full((4,), 0.5)],
    ids=["float32", "float64", "0-d", "array", "tensor"],
)
def test_probabilities_of_numpy_and_torch_are_numbers(p):
    assert rng.gate_probabilities("p", p) == (0.5,) * 4


@dropouts
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_injected_masks_equal_the_drawn_ones(dropout, backend):
    args = arguments()
    masks = uf.dropout_masks(
        9, hidden_size=6, batch_size=3, steps=5, layer=2, dtype=DOUBLE, **dropout
    )
    drawn = gradients(backend, args, seed=9, layer=2, **dropout)
    assert_close(gradients(backend, args, masks=masks), drawn)


def test_gate_mask_blocks_do_not_show(monkeypatch):
    args = arguments()
    whole = gradients("eager", args, seed=5, gate_p=0.3)
    monkeypatch.setattr("ulmfit_fast.lstm.eager._MASK_BLOCK", 2 * 3 * 6)
    assert_close(gradients("eager", args, seed=5, gate_p=0.3), whole, tolerance=0)


@pytest.mark.parametrize("backend", ["eager", "torch", "reference", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "given", [torch.float64, torch.float32, torch.float16, torch.bool], ids=str
)
def test_masks_may_be_of_any_floating_dtype(backend, dtype, given):
    args = arguments(dtype=dtype)
    weight, gate = uf.dropout_masks(
        9, hidden_size=6, batch_size=3, steps=5, weight_p=0.5, gate_p=0.5, dtype=given
    )
    pair = (weight, None if backend == "torch" else gate)
    same = uf.DropoutMasks(*(None if mask is None else mask.to(dtype) for mask in pair))
    output, state = lstm(*args, masks=pair, backend=backend)
    expected, expected_state = lstm(*args, masks=same, backend=backend)
    assert output.dtype == dtype
    assert_close([output, *state], [expected, *expected_state], tolerance=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64], ids=str)
def test_masks_of_a_dtype_without_fractions_are_refused(dtype):
    """They were 0 and 1 in silence, not 1/(1-p), and injected they scaled nothing."""
    with pytest.raises(TypeError, match=f"dtype is {dtype}, expected a floating dtype or torch.bo"):
        uf.dropout_masks(9, hidden_size=6, weight_p=0.5, dtype=dtype)
    kept = uf.dropout_masks(9, hidden_size=6, weight_p=0.5, dtype=torch.bool).weight
    assert kept.dtype == torch.bool and kept.any() and not kept.all()


@pytest.mark.parametrize("zeros", [0, 40], ids=["no-zeros", "zeros"])
def test_gradient_of_weight_drop_is_masked_as_the_weight_was(zeros):
    weight = torch.randn(64, 16, dtype=DOUBLE)
    weight.view(-1)[:zeros] = 0.0
    mask = uf.dropout_masks(6, hidden_size=16, weight_p=(0.5, 0.2, 0.0, 1.0), dtype=DOUBLE).weight
    leaf = weight.clone().requires_grad_()
    dropped = operators.drop_weight(leaf, torch.tensor(6), (0.5, 0.2, 0.0, 1.0), 0)
    grad = torch.randn(64, 16, dtype=DOUBLE)
    dropped.backward(grad)
    assert torch.equal(dropped, weight * mask)
    assert torch.equal(leaf.grad, grad * mask)


def test_weight_drop_has_a_double_backward():
    weight = torch.randn(12, 3, dtype=DOUBLE, requires_grad=True)
    seed = torch.tensor(6)

    def function(weight):
        return operators.drop_weight(weight, seed, [0.5] * 4, 0).square()

    assert gradcheck(function, weight)
    assert gradgradcheck(function, weight)


def test_operators_pass_opcheck():
    seed = torch.tensor(8)
    tokens = torch.arange(12).view(3, 4)
    torch.library.opcheck(rng._keep_mask, (seed, 10, 0.3, 1, 0, torch.device("cpu")))
    for ids in (tokens, tokens.t()):
        torch.library.opcheck(rng._embedding_keep, (seed, ids, 0.3))
