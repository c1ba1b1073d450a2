"""The LSTM operator: equality of its backends, gradients, masks and errors."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import ulmfit_fast as uf
from ulmfit_fast.functional import lstm
from ulmfit_fast.lstm import eager_backward

DOUBLE = torch.float64
DROPOUTS = {
    "none": {},
    "weight": {"weight_p": 0.4},
    "weight-per-gate": {"weight_p": (0.0, 0.3, 0.6, 1.0)},
    "gate": {"gate_p": 0.3},
    "gate-per-gate": {"gate_p": (0.1, 0.2, 0.3, 0.4)},
    "both": {"weight_p": (0.1, 0.5, 0.2, 0.3), "gate_p": (0.2, 0.1, 0.0, 0.3)},
    "sequence": {"gate_p": (0.2, 0.0, 0.3, 0.1), "gate_mask": "sequence"},
}
# The backward of eager goes from chunk to chunk of the steps; these are too few for more than one.
chunked = pytest.mark.usefixtures("chunk")
dropouts = pytest.mark.parametrize("dropout", DROPOUTS.values(), ids=DROPOUTS.keys())


@pytest.fixture(params=[512, 4], ids=["one-chunk", "chunks"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(eager_backward, "_CHUNK", request.param)


def arguments(steps=5, batch=3, inputs=4, hidden=6, dtype=DOUBLE, grad=False):
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape, scale=1.0):
        values = torch.randn(*shape, generator=generator, dtype=DOUBLE) * scale
        return values.to(dtype).requires_grad_(grad)

    rows = 4 * hidden
    state = (tensor(batch, hidden), tensor(batch, hidden))
    weights = tensor(rows, inputs, scale=0.4), tensor(rows, hidden, scale=0.4)
    return tensor(steps, batch, inputs), state, *weights, tensor(rows), tensor(rows)


def gradients(backend, args, **kwargs):
    """Return output, state and every gradient of a loss that weighs each element differently."""
    x, (h0, c0), *weights = args
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, h0, c0, *weights)]
    output, (h, c) = lstm(leaves[0], tuple(leaves[1:3]), *leaves[3:], backend=backend, **kwargs)
    loss = 0
    for seed, tensor in enumerate((output, h, c)):
        generator = torch.Generator().manual_seed(seed)
        loss = loss + (tensor * torch.randn(tensor.shape, generator=generator, dtype=DOUBLE)).sum()
    loss.backward()
    return [output, h, c, *(leaf.grad for leaf in leaves)]


def assert_close(actual, expected, tolerance=1e-12):
    for first, second in zip(actual, expected, strict=True):
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("order", [range(7), range(6, -1, -1)], ids=["forward", "reverse"])
def test_chunks_hold_every_step_once_from_the_last_taken_to_the_first(order, monkeypatch):
    monkeypatch.setattr(eager_backward, "_CHUNK", 6)
    chunks = list(eager_backward._chunks(order, 3))
    taken = [t for one in chunks for t in (reversed(one) if order.step == 1 else one)]
    assert taken == list(reversed(order))
    assert [len(one) for one in chunks] == ([1, 2, 2, 2] if order.step == 1 else [2, 2, 2, 1])
    assert list(eager_backward._chunks(range(0), 3)) == []


@chunked
@dropouts
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", [None, [5, 2, 0]], ids=["full", "lengths"])
@pytest.mark.parametrize(
    "sizes", [(5, 3, 4, 6), (1, 3, 2, 17), (4, 1, 3, 5)], ids=["T5B3H6", "T1B3H17", "T4B1H5"]
)
def test_eager_equals_reference(dropout, reverse, lengths, sizes):
    args = arguments(*sizes)
    if lengths is not None:
        lengths = torch.tensor(lengths[: sizes[1]]).clamp_max(sizes[0])
    kwargs = {"reverse": reverse, "lengths": lengths, "seed": 5, "layer": 1, **dropout}
    assert_close(gradients("eager", args, **kwargs), gradients("reference", args, **kwargs))


@pytest.mark.parametrize("name", ["none", "weight", "weight-per-gate"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_torch_backend_equals_reference(name, reverse):
    kwargs = {"reverse": reverse, "seed": 5, **DROPOUTS[name]}
    args = arguments()
    assert_close(gradients("torch", args, **kwargs), gradients("reference", args, **kwargs))


def test_literal_equations():
    """One step, written out with its masks, against the operator."""
    x, (h0, c0), w_ih, w_hh, b_ih, b_hh = arguments(steps=1)
    masks = uf.dropout_masks(3, hidden_size=6, batch_size=3, weight_p=0.5, gate_p=0.2, dtype=DOUBLE)
    a = x[0] @ w_ih.T + b_ih + h0 @ (masks.weight * w_hh).T + b_hh
    z_i, z_f, z_g, z_o = masks.gate[0].chunk(4, dim=1)
    a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
    c = z_f * a_f.sigmoid() * c0 + z_i * a_i.sigmoid() * (z_g * a_g.tanh())
    h = z_o * a_o.sigmoid() * c.tanh()
    for backend in ("eager", "reference"):
        output, state = lstm(
            x, (h0, c0), w_ih, w_hh, b_ih, b_hh, weight_p=0.5, gate_p=0.2, seed=3, backend=backend
        )
        assert_close([output[0], *state], [h, h, c])


@chunked
@dropouts
def test_gradcheck_eager_with_masks(dropout):
    x, state, *weights = arguments(steps=3, batch=2, inputs=2, hidden=3, grad=True)

    def function(x, h0, c0, *weights):
        output, final = lstm(x, (h0, c0), *weights, seed=5, backend="eager", **dropout)
        return output, *final

    assert gradcheck(function, (x, *state, *weights))


@pytest.mark.parametrize("name", ["none", "both"])
def test_reference_has_a_double_backward(name):
    x, state, *weights = arguments(steps=2, batch=2, inputs=2, hidden=2, grad=True)

    def function(x, h0, c0, *weights):
        output, final = lstm(x, (h0, c0), *weights, seed=5, backend="reference", **DROPOUTS[name])
        return output, *final

    assert gradcheck(function, (x, *state, *weights))
    assert gradgradcheck(function, (x, *state, *weights))


def test_eager_says_that_it_has_no_double_backward():
    x, state, *weights = arguments(grad=True)
    output, _ = lstm(x, state, *weights, backend="eager")
    (grad,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match='backend="reference"'):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["eager", "torch", "reference"])
def test_dropped_weights_get_no_gradient(backend):
    x, state, w_ih, w_hh, *biases = arguments(hidden=16)
    w_hh = w_hh.clone().requires_grad_()
    lstm(x, state, w_ih, w_hh, *biases, weight_p=0.5, seed=6, backend=backend)[0].sum().backward()
    mask = uf.dropout_masks(6, hidden_size=16, weight_p=0.5).weight
    assert torch.all(w_hh.grad[mask == 0] == 0)
    assert torch.all(w_hh.grad[mask != 0] != 0)


@pytest.mark.parametrize("backend", ["eager", "torch", "reference"])
def test_chunks_with_carried_state_equal_the_whole(backend):
    x, state, *weights = arguments(steps=6)
    whole, final = lstm(x, state, *weights, weight_p=0.3, seed=1, backend=backend)
    first, carried = lstm(x[:4], state, *weights, weight_p=0.3, seed=1, backend=backend)
    second, last = lstm(x[4:], carried, *weights, weight_p=0.3, seed=1, backend=backend)
    assert_close([torch.cat([first, second]), *last], [whole, *final])


@pytest.mark.parametrize("backend", ["eager", "torch", "reference"])
def test_full_drop_is_finite(backend):
    x, state, *weights = arguments(grad=True)
    output, _ = lstm(x, state, *weights, weight_p=1.0, backend=backend)
    output.sum().backward()
    assert output.isfinite().all()
    assert torch.all(weights[1].grad == 0)


def test_eval_and_p_zero_apply_no_mask_and_draw_no_seed():
    args = arguments()
    plain = lstm(*args)[0]
    before = torch.random.get_rng_state()
    assert torch.equal(lstm(*args, weight_p=0.5, gate_p=0.0, training=False)[0], plain)
    evaluated = lstm(*args, weight_p=0.5, gate_p=0.5, training=False, backend="eager")[0]
    assert torch.equal(evaluated, lstm(*args, backend="eager")[0])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(lstm(*args, weight_p=0.5)[0], plain)


def test_a_new_mask_at_each_call_and_the_weight_untouched():
    args = arguments()
    w_hh = args[3].clone()
    assert not torch.equal(lstm(*args, weight_p=0.5)[0], lstm(*args, weight_p=0.5)[0])
    assert torch.equal(args[3], w_hh)


def test_frozen_inputs_get_no_gradient_and_cost_none():
    x, state, w_ih, w_hh, b_ih, b_hh = arguments()
    w_hh = w_hh.clone().requires_grad_()
    output, _ = lstm(x, state, w_ih, w_hh, b_ih, b_hh, backend="eager")
    output.sum().backward()
    assert w_hh.grad is not None
    assert w_ih.grad is None
    frozen, _ = lstm(x, state, w_ih, w_hh.detach(), b_ih, b_hh, backend="eager")
    assert frozen.grad_fn is None


@chunked
@pytest.mark.parametrize("trainable", [(5,), (6,), (5, 6)], ids=str)
def test_only_biases_trainable(trainable):
    def biases(backend):
        x, state, *weights = arguments()
        leaves = [x, *state, *weights]
        for index in trainable:
            leaves[index].requires_grad_()
        x, h0, c0, *weights = leaves
        lstm(x, (h0, c0), *weights, seed=5, **DROPOUTS["both"], backend=backend)[0].sum().backward()
        assert [i for i, leaf in enumerate(leaves) if leaf.grad is not None] == list(trainable)
        return [leaves[index].grad for index in trainable]

    assert_close(biases("eager"), biases("reference"))


@chunked
@pytest.mark.parametrize("backend", ["eager", "torch", "reference"])
def test_gradients_share_no_memory(backend):
    x, state, *weights = arguments(grad=True)
    output, _ = lstm(x, state, *weights, weight_p=0.3, backend=backend)
    grads = torch.autograd.grad(output.sum(), [x, *state, *weights])
    assert len({grad.untyped_storage().data_ptr() for grad in grads}) == len(grads)


@chunked
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
def test_padding_may_hold_anything(backend, reverse, poison):
    x, *rest = arguments()
    lengths = torch.tensor([5, 2, 0])
    padded = (torch.arange(5)[:, None] >= lengths)[:, :, None].expand_as(x)
    kwargs = {"lengths": lengths, "reverse": reverse, "seed": 5, **DROPOUTS["both"]}
    poisoned = gradients(backend, (x.masked_fill(padded, poison), *rest), **kwargs)
    clean = gradients(backend, (x.masked_fill(padded, 0.0), *rest), **kwargs)
    assert_close(poisoned, clean, tolerance=0)
    assert torch.all(poisoned[0][padded[..., :1].expand(-1, -1, 6)] == 0)
    assert torch.all(poisoned[3][padded] == 0)


@chunked
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_gradients_of_padded_outputs_do_not_matter(backend):
    x, state, *weights = arguments(grad=True)
    lengths = torch.tensor([5, 2, 0])
    output, _ = lstm(x, state, *weights, lengths=lengths, backend=backend)
    padded = (torch.arange(5)[:, None] >= lengths)[:, :, None]
    output.backward(torch.ones_like(output).masked_fill(padded, float("nan")))
    assert all(leaf.grad.isfinite().all() for leaf in (x, *state, *weights))


def test_one_bias_or_none():
    x, state, w_ih, w_hh, b_ih, b_hh = arguments()
    for biases in [(None, None), (b_ih, None), (None, b_hh), (b_ih, b_hh)]:
        expected = lstm(x, state, w_ih, w_hh, *biases, backend="reference")[0]
        for backend in ("eager", "torch"):
            actual = lstm(x, state, w_ih, w_hh, *biases, backend=backend)[0]
            assert_close([actual], [expected])


def test_strided_inputs():
    _, state, *weights = arguments()
    wide = torch.randn(3, 5, 8, dtype=DOUBLE)
    strided = wide[:, :, ::2].transpose(0, 1)
    for backend in ("eager", "torch"):
        assert_close(
            [lstm(strided, state, *weights, backend=backend)[0]],
            [lstm(strided.contiguous(), state, *weights, backend="reference")[0]],
        )
