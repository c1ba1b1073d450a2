"""`uf.LSTM(backend="triton")` as a citizen of PyTorch, with the kernels in Triton's interpreter."""

import copy
import io
import os

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import ulmfit_fast as uf

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

DROPS = {"weight_p": 0.5, "gate_p": (0.1, 0.0, 0.2, 0.1)}
forms = pytest.mark.parametrize("form", ["triton-stepwise", "triton-persistent"])


def pair(form, **settings):
    """Return a module on the kernels and the same one on the reference."""
    torch.manual_seed(3)
    ours = uf.LSTM(5, 16, backend=form, **settings)
    truth = copy.deepcopy(ours)
    truth.backend = "reference"
    return ours, truth


def run(lstm, x, *args, **kwargs):
    lstm.zero_grad()
    x = x.detach().requires_grad_()
    output, state = lstm(x, *args, **kwargs)
    sum((part * part).sum() for part in (output, *state)).backward()
    return [output, *state, x.grad, *(p.grad for p in lstm.parameters())]


def assert_close(got, expected, tolerance=2e-5):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@forms
def test_stacked_and_bidirectional(form):
    ours, truth = pair(form, num_layers=2, bidirectional=True, dropout=0.3, **DROPS)
    x = torch.randn(4, 3, 5)
    assert_close(run(ours, x, seed=11), run(truth, x, seed=11))
    assert_close(run(ours.eval(), x), run(truth.eval(), x))


@forms
def test_packed_sequences(form):
    ours, truth = pair(form, bidirectional=True, **DROPS)
    x, lengths = torch.randn(5, 3, 5), torch.tensor([3, 5, 1])
    results = []
    for lstm in (ours, truth):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, state = lstm(packed, seed=5)
        output = pad_packed_sequence(output)[0]
        output.sum().backward()
        results.append([output, *state, *(p.grad for p in lstm.parameters())])
    assert_close(*results)


def test_unbatched_batch_first_and_state():
    for settings, shape in (({}, (4, 5)), ({"batch_first": True}, (3, 4, 5))):
        ours, truth = pair("triton", **settings, **DROPS)
        x = torch.randn(shape)
        rows = (3,) if len(shape) == 3 else ()
        state = (torch.randn(1, *rows, 16), torch.randn(1, *rows, 16))
        assert_close(run(ours, x, state, seed=2), run(truth, x, state, seed=2))


def test_chunks_with_carried_state_equal_the_whole_without_gate_dropout():
    ours, _ = pair("triton-persistent", weight_p=0.5)
    x = torch.randn(6, 3, 5)
    whole, (h, c) = ours(x, seed=7)
    first, state = ours(x[:2], seed=7)
    second, (h_2, c_2) = ours(x[2:], state, seed=7)
    assert_close([torch.cat([first, second]), h_2, c_2], [whole, h, c], 1e-6)


@forms
def test_recomputed_gates_give_the_same_gradients(form):
    ours, _ = pair(form, **DROPS)
    other, _ = pair(form, recompute_gates=True, **DROPS)
    x = torch.randn(4, 3, 5)
    assert_close(run(other, x, seed=1), run(ours, x, seed=1), 1e-5)


def test_autocast_exchanges_h_in_half_precision_and_keeps_c():
    ours, truth = pair("triton", **DROPS)
    x = torch.randn(4, 3, 5)
    state = (torch.randn(1, 3, 16), torch.randn(1, 3, 16))
    with torch.autocast("cpu", dtype=torch.float16):
        output, (h, c) = ours(x, state, seed=4)
    assert (output.dtype, h.dtype, c.dtype) == (torch.float16, torch.float16, torch.float32)
    assert_close([output.float(), h.float(), c], flat(truth(x, state, seed=4)), 1e-2)
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


def flat(result):
    output, state = result
    return [output, *state]


def test_checkpointing_draws_the_same_masks_again():
    ours, _ = pair("triton", **DROPS)
    x = torch.randn(4, 3, 5, requires_grad=True)
    grads = []
    for again in (False, True):
        torch.manual_seed(9)
        call = ours if not again else lambda x: checkpoint(ours, x, use_reentrant=False)
        output, _ = call(x)
        grads.append(torch.autograd.grad(output.square().sum(), [x, *ours.parameters()]))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_compiled_whole_it_gives_the_same():
    ours, _ = pair("triton-stepwise", num_layers=2, **DROPS)

    def model(x, seed):
        output, state = ours(x.tanh(), seed=seed)
        return output.relu().sum() + state[1].sum()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, seed = torch.randn(4, 3, 5, requires_grad=True), torch.tensor(13)
    results = []
    for call in (model, compiled):
        ours.zero_grad()
        loss = call(x, seed)
        results.append([loss, *torch.autograd.grad(loss, [x, *ours.parameters()])])
    assert_close(*results, 1e-6)


def test_exported_in_eval():
    ours, _ = pair("triton-stepwise", **DROPS)
    x = torch.randn(4, 3, 5)
    program = torch.export.export(ours.eval(), (x,))
    assert_close(flat(program.module()(x)), flat(ours(x)), 1e-6)


def test_copies_and_averages():
    ours, _ = pair("triton", **DROPS)
    x = torch.randn(4, 3, 5)
    average = torch.optim.swa_utils.AveragedModel(ours)
    average.update_parameters(ours)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    expected = flat(ours(x, seed=3))
    for other in (copy.deepcopy(ours), average, loaded):
        assert_close(flat(other(x, seed=3)), expected, 0.0)


def test_a_seed_tensor_and_a_number_are_one():
    ours, _ = pair("triton", **DROPS)
    x = torch.randn(4, 3, 5)
    assert_close(flat(ours(x, seed=torch.tensor(3))), flat(ours(x, seed=3)), 0.0)
    assert not torch.equal(ours(x, seed=3)[0], ours(x, seed=4)[0])


def test_injected_masks():
    ours, truth = pair("triton")
    x = torch.randn(4, 3, 5)
    drawn = uf.dropout_masks(5, hidden_size=16, batch_size=3, steps=4, weight_p=0.5, gate_p=0.1)
    weight_only = [uf.DropoutMasks(drawn.weight, None)]
    assert_close(run(ours, x, masks=weight_only), run(truth, x, masks=weight_only))
    with pytest.raises(RuntimeError, match='they take none; use "auto" or "eager"'):
        ours(x, masks=[drawn])


def test_second_derivatives_are_refused_with_the_mend():
    ours, _ = pair("triton")
    x = torch.randn(4, 3, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(ours(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match='backend="reference"'):
        grad.sum().backward()


def test_explain_names_the_form_and_the_reason():
    x = torch.randn(4, 3, 5)
    explained = uf.backend.explain(uf.LSTM(5, 16, backend="triton-persistent"), x)
    assert explained.startswith(
        'triton: persistent form, asked for by backend="triton-persistent"; '
    )
    assert explained.endswith(
        "one block in the interpreter, pipelined tiles of 16 x 64 x 16 forwards and 16 x 16 x 16 "
        "backwards"
    )
    resident = uf.backend.explain(uf.LSTM(5, 16, backend="triton-resident"), x)
    assert "persistent form" in resident and "resident tiles of 16 x 64 x 16" in resident
    big = uf.LSTM(5, 400, backend="triton-persistent")
    assert "of at most 128 units" in uf.backend.explain(big, x)
    wide = uf.LSTM(5, 16, backend="triton", dtype=torch.float64)
    assert "not float64" in uf.backend.explain(wide, x.double())
