"""The Philox generator and the masks drawn with it."""

import math

import pytest
import torch

import ulmfit_fast as uf
from ulmfit_fast import rng


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
    first = rng.draw_seed()
    second = rng.draw_seed()
    torch.manual_seed(3)
    assert torch.equal(first, rng.draw_seed())
    assert not torch.equal(first, second)
    assert 0 <= int(first) < 2**63


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


def test_layers_and_directions_have_masks_of_their_own():
    masks = [
        uf.dropout_masks(9, hidden_size=16, weight_p=0.5, layer=layer, reverse=reverse).weight
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


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan"), (0.1, 0.2), (0.1, 0.1, 0.1, 2.0)], ids=str)
def test_bad_probabilities_are_named(p):
    with pytest.raises(ValueError, match="weight_p"):
        uf.dropout_masks(1, hidden_size=4, weight_p=p)


def test_operators_pass_opcheck():
    seed = torch.tensor(8)
    tokens = torch.arange(12).view(3, 4)
    torch.library.opcheck(rng._keep_mask, (seed, 10, 0.3, 1, 0, torch.device("cpu")))
    torch.library.opcheck(rng._embedding_keep, (seed, tokens, 0.3))
