"""Both forms and both directions of the kernels against the float64 reference, masks on."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

from comparison import assert_within_rounding, run, tensors
from rounding import errors

from ulmfit_fast import functional

pytestmark = pytest.mark.usefixtures("nan_workspaces")
forms = pytest.mark.parametrize("form", ["triton-stepwise", "triton-persistent"])
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
MIXED_WEIGHT, MIXED_GATE = (0.2, 0.5, 0.0, 1.0), (0.0, 0.3, 0.5, 0.1)


# With 16 rows and 16 or 32 units no tile is masked; with 17 rows there are two blocks of rows.
SIZES = [
    (1, 1, 16, False),
    (1, 3, 100, True),
    (1, 17, 17, False),
    (2, 1, 100, False),
    (2, 3, 17, True),
    (2, 17, 48, True),
    (3, 16, 16, True),
    (3, 16, 32, False),
    (7, 1, 17, True),
    (7, 3, 16, False),
]


@forms
@pytest.mark.parametrize(("steps", "batch_size", "hidden_size", "reverse"), SIZES)
def test_sizes(form, steps, batch_size, hidden_size, reverse):
    inputs = tensors(steps, batch_size, 5, hidden_size, torch.float32)
    settings = {"weight_p": MIXED_WEIGHT, "gate_p": MIXED_GATE, "seed": 2**62 + 12345}
    settings |= {"reverse": reverse, "layer": 1}
    assert_within_rounding(form, inputs, **settings)


@forms
@directions
def test_the_error_over_many_draws_is_at_most_twice_that_of_eager(form, reverse):
    """One draw can be lucky for either side, and which it is depends on the processor."""
    settings = {"weight_p": MIXED_WEIGHT, "gate_p": MIXED_GATE, "seed": 3, "reverse": reverse}
    squares = []
    for seed in range(8):
        inputs = tensors(3, 5, 5, 17, torch.float32, seed=seed)
        truth = run("reference", inputs, wide=True, **settings)
        both = (errors(run(name, inputs, **settings), truth) for name in (form, "eager"))
        squares.append([[error**2 for error in found] for found in both])
    ours, theirs = torch.tensor(squares).mean(0).sqrt()
    assert (ours <= 2 * theirs).all(), (ours / theirs).tolist()


WEIGHT_PS = [0.0, 0.2, 0.5, 1.0, MIXED_WEIGHT]
GATE_PS = [0.0, 0.2, 0.5, 1.0, MIXED_GATE]


@forms
@directions
@pytest.mark.parametrize("index", range(5))
def test_probabilities(form, reverse, index):
    """Each weight_p and each gate_p in each form and direction, but not each pair of them."""
    shift = 2 * reverse + (form == "triton-persistent")
    settings = {"weight_p": WEIGHT_PS[index], "gate_p": GATE_PS[(index + shift) % 5]}
    inputs = tensors(2, 3, 5, 17, torch.float32)
    assert_within_rounding(form, inputs, seed=3, reverse=reverse, **settings)


@pytest.mark.parametrize(
    ("form", "reverse"), [("triton-stepwise", True), ("triton-persistent", False)]
)
def test_one_gate_mask_for_the_sequence(form, reverse):
    inputs = tensors(3, 3, 5, 17, torch.float32)
    settings = {"gate_p": (0.2, 0.0, 0.5, 0.1), "gate_mask": "sequence", "weight_p": 0.5}
    assert_within_rounding(form, inputs, seed=8, reverse=reverse, **settings)


@pytest.mark.parametrize(
    ("form", "reverse", "hidden_size"),
    [
        ("triton-stepwise", False, 48),
        ("triton-stepwise", True, 17),
        ("triton-persistent", False, 17),
        ("triton-persistent", True, 48),
    ],
)
def test_half_precision(form, reverse, hidden_size):
    inputs = tensors(3, 3, 5, hidden_size, torch.float16)
    settings = {"weight_p": 0.5, "gate_p": 0.1, "seed": 4, "reverse": reverse}
    truth = run("reference", inputs, wide=True, **settings)
    # Eager computes in float32; what rounds h and the gates to half precision is torch's own LSTM.
    assert max(errors(run(form, inputs, **settings), truth)) < 4e-3
    plain = {"weight_p": 0.5, "seed": 4, "reverse": reverse}
    truth = run("reference", inputs, wide=True, **plain)
    ours, theirs = (errors(run(name, inputs, **plain), truth) for name in (form, "torch"))
    assert all(our <= 2 * their + 5e-4 for our, their in zip(ours, theirs, strict=True))


# Two blocks of rows; every row ended before the last step; no row has a step.
@forms
@directions
@pytest.mark.parametrize(
    "lengths", [(4, 1, 3, 0, 2, 4) * 3, (2, 0, 3), (0, 0)], ids=["mixed", "short", "none"]
)
def test_rows_of_their_own_length(form, reverse, lengths):
    inputs = tensors(4, len(lengths), 5, 17, torch.float32)
    for row, length in enumerate(lengths):
        inputs[0][length:, row] = float("nan")
    settings = {"weight_p": 0.5, "gate_p": 0.2, "seed": 6, "reverse": reverse}
    assert_within_rounding(form, inputs, lengths=torch.tensor(lengths), **settings)


@forms
def test_one_step_and_rows_without_any(form):
    inputs = tensors(1, 3, 5, 16, torch.float32)
    settings = {"weight_p": 0.5, "seed": 6, "lengths": torch.tensor([1, 0, 1])}
    for reverse in (False, True):
        assert_within_rounding(form, inputs, reverse=reverse, **settings)


@forms
@directions
def test_gates_computed_again(form, reverse):
    inputs = tensors(4, 3, 5, 17, torch.float32)
    settings = {"weight_p": 0.5, "gate_p": 0.2, "seed": 6, "reverse": reverse, "keep": "cells"}
    assert_within_rounding(form, inputs, **settings)
    assert_within_rounding(form, inputs, lengths=torch.tensor([4, 0, 2]), **settings)


@forms
def test_without_biases(form):
    *inputs, _, _ = tensors(3, 2, 5, 17, torch.float32)
    x, h0, c0, w_ih, w_hh = inputs
    results = [
        functional.lstm(x, (h0, c0), w_ih, w_hh, weight_p=0.5, seed=1, backend=name)[0]
        for name in (form, "eager")
    ]
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)


@forms
def test_inputs_that_are_not_contiguous(form):
    x, h0, c0, w_ih, w_hh, b_ih, b_hh = tensors(4, 3, 5, 17, torch.float32)
    plain = [x, h0, c0, w_ih, w_hh, b_ih, b_hh]
    wide = torch.zeros(68, 40)
    wide[:, 3:37:2] = w_hh
    strided = [
        x.transpose(0, 1).contiguous().transpose(0, 1),
        h0.t().contiguous().t(),
        c0.t().contiguous().t(),
        w_ih.t().contiguous().t(),
        wide[:, 3:37:2],
        torch.stack([b_ih, b_ih], 1)[:, 0],
        b_hh,
    ]
    results = []
    for values in (plain, strided):
        leaves = [value.detach().requires_grad_() for value in values]
        output, _ = functional.lstm(
            leaves[0], tuple(leaves[1:3]), *leaves[3:], weight_p=0.5, seed=2, backend=form
        )
        # An expanded gradient: all its strides are 0.
        grads = torch.autograd.grad(output.sum(), leaves)
        results.append([output, *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@forms
def test_an_empty_batch(form):
    inputs = tensors(4, 0, 5, 17, torch.float32)
    got = run(form, inputs, weight_p=0.5, seed=1)
    expected = run("eager", inputs, weight_p=0.5, seed=1)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert torch.equal(a, b)


def test_bfloat16_is_refused_by_the_interpreter():
    inputs = tensors(2, 2, 5, 16, torch.bfloat16)
    with pytest.raises(RuntimeError, match="no products of bfloat16; use float16 or float32"):
        run("triton", inputs)
