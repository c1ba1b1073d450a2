"""The kernels' masks, bit for bit those of `rng.py`; their activations near 0 and far from it."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

import triton
import triton.language as tl
from comparison import uninterleave

from ulmfit_fast import rng
from ulmfit_fast.kernels import cell, philox, weight_drop
from ulmfit_fast.kernels.launch import DropArguments, cdiv

SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**62 + 12345, 2**63 - 1]

# NumPy's, under the interpreter; the value that overflows is the one that is not selected.
overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


def scales(p):
    return torch.tensor([rng.keep_scale(value) for value in p])


@pytest.mark.parametrize(
    ("seed", "hidden_size", "stream", "p"),
    [
        *((seed, 16, 0, (0.2, 0.0, 1.0, 0.9)) for seed in SEEDS),
        *((seed, 17, 5, (1e-9, 0.7, 0.25, 1.0)) for seed in SEEDS),
        *((seed, 100, 2, (0.5, 0.5, 0.5, 0.5)) for seed in (2**32 - 1, 2**62 + 12345)),
    ],
)
def test_weight_masks_are_those_of_rng(seed, hidden_size, stream, p):
    keep = rng.weight_keep(seed, hidden_size, p, stream=stream)
    expected = keep * scales(p).repeat_interleave(hidden_size)[:, None]
    ones, drop = torch.ones(4 * hidden_size, hidden_size), DropArguments.of(p)
    mixed = weight_drop.drop_weight(ones, drop, torch.tensor(seed), stream)
    assert torch.equal(uninterleave(mixed), expected)
    grad = weight_drop.unmix_gradient(
        weight_drop.interleave(ones, ones.dtype), drop, torch.tensor(seed), stream
    )
    assert torch.equal(grad, expected)
    assert torch.equal(
        weight_drop.drop_weight_triton(ones, torch.tensor(seed), p, stream), expected
    )


@triton.jit
def gate_mask_kernel(
    scales,
    kept,
    seed,
    t,
    stream,
    drop,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    GATE_MASK: tl.constexpr,
):
    rows, units = tl.arange(0, ROWS), tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    columns = tl.program_id(0) * (4 * UNITS) + tl.arange(0, 4 * UNITS)[None, :]
    at = rows[:, None] * (4 * HIDDEN) + columns
    z_i, z_f, z_g, z_o = philox.gate_scales(
        tl.load(seed), rows[:, None], units[None, :], t, stream, drop, HIDDEN
    )
    mixed = philox.interleave_columns(z_i, z_f, z_g, z_o, ROWS, UNITS)
    tl.store(scales + at, mixed, mask=columns < 4 * HIDDEN)
    bits = philox.gate_bits(tl.load(seed), rows, units, t, stream, drop, HIDDEN, GATE_MASK)
    z_i, z_f, z_g, z_o = philox.scales_of_bits(bits, drop)
    mixed = philox.interleave_columns(z_i, z_f, z_g, z_o, ROWS, UNITS)
    tl.store(kept + at, mixed, mask=columns < 4 * HIDDEN)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("hidden_size", "t", "stream", "p"),
    [
        (16, 0, 0, (0.2, 0.0, 0.5, 1.0)),
        (17, 69, 5, (0.5, 0.9, 0.0, 0.1)),
        (9, 1 << 20, 2, (1.0, 0.3, 1e-9, 0.0)),
        (100, 3, 1, (0.1, 0.1, 0.1, 0.1)),
    ],
)
def test_gate_masks_are_those_of_rng(seed, hidden_size, t, stream, p):
    rows, units = 64, 32

    def expected(t):
        keep = rng.gate_keep(seed, range(t, t + 1), rows, hidden_size, p, stream=stream)[0]
        return keep.view(rows, 4, hidden_size) * scales(p)[:, None]

    for gate_mask, at in ((1, t), (2, 0)):
        out = torch.full((2, rows, 4 * hidden_size), float("nan"))
        seed_tensor, drop = torch.tensor(seed), DropArguments.of(p).arguments
        gate_mask_kernel[(cdiv(hidden_size, units),)](
            *out, seed_tensor, t, stream, drop, hidden_size, rows, units, gate_mask
        )
        of_scales, of_bits = out.view(2, rows, hidden_size, 4).transpose(2, 3)
        assert torch.equal(of_scales, expected(t))
        assert torch.equal(of_bits, expected(at))


def test_thresholds_are_floors_in_32_bits_and_all_is_dropped_at_1():
    active, arguments = DropArguments.of((0.0, 0.25, 0.5, 1.0))
    assert active and not DropArguments.of((0.0,) * 4).active
    assert [value >> 32 for value in arguments[:4]] == [0, 2**30, -(2**31), -1]
    # Of one kind for Triton, for any p: odd, and too large for 32 bits.
    for p in (0.0, 2.0**-32, 0.1, 0.25, 0.5 - 2.0**-32, 0.5, 0.75, 1 - 2.0**-32, 1.0):
        value = DropArguments.of([p]).arguments[0]
        assert value % 2 == 1 and 2**31 < abs(value) < 2**63
    assert arguments[4:] == (1.0, 1 / 0.75, 2.0, 0.0)


@overflows
def test_an_infinite_weight_that_is_dropped_is_zero():
    weight = torch.full((64, 16), float("inf"))
    drop = DropArguments.of((1.0, 0.5, 1.0, 0.5))
    dropped = uninterleave(weight_drop.drop_weight(weight, drop, torch.tensor(3), 0))
    assert not dropped.isnan().any()
    assert (dropped[:16] == 0).all() and (dropped[32:48] == 0).all()


@triton.jit
def activation_kernel(x, gates, tanhs, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(x + at)
    tl.store(tanhs + at, cell.tanh(value))
    columns = tl.arange(0, 4)
    tile = tl.reshape(
        cell.activate(value[:, None] + tl.zeros((N, 4), tl.float32), columns), (4 * N,)
    )
    tl.store(gates + tl.arange(0, 4 * N), tile)


def activated(values):
    x = torch.zeros(64)
    x[: len(values)] = values
    gates, tanhs = torch.empty(64, 4), torch.empty(64)
    activation_kernel[(1,)](x, gates, tanhs, 64)
    return gates[: len(values)], tanhs[: len(values)]


def test_activations_are_accurate_near_zero_and_where_the_formula_changes():
    magnitudes = torch.cat([torch.logspace(-8, 0, 28), torch.tensor([0.39999, 0.4, 0.40001, 3.0])])
    x = torch.cat([magnitudes, -magnitudes])
    gates, tanhs = activated(x)
    sigmoid, tanh = x.double().sigmoid(), x.double().tanh()
    for got, truth in (
        (tanhs, tanh),
        (gates[:, 2], tanh),
        *((gates[:, k], sigmoid) for k in (0, 1, 3)),
    ):
        assert ((got.double() - truth) / truth).abs().max() < 6e-7


@overflows
def test_activations_saturate_cleanly():
    inf = float("inf")
    ends = torch.tensor([20.0, -20.0, 100.0, -100.0, 1e4, -1e4, inf, -inf])
    gates, tanhs = activated(torch.cat([ends, torch.tensor([float("nan"), 0.0, -0.0])]))
    assert tanhs[:8].tolist() == [1.0, -1.0] * 4
    assert gates[:8, 2].tolist() == [1.0, -1.0] * 4
    for gate in (0, 1, 3):
        assert gates[2:8, gate].tolist() == [1.0, 0.0] * 3
        assert gates[0, gate] == 1.0 and 0.0 < gates[1, gate] < 3e-9
    assert tanhs[8].isnan() and gates[8].isnan().all()
    assert (tanhs[9:] == 0).all()
    assert gates[9:].tolist() == [[0.5, 0.5, 0.0, 0.5]] * 2
