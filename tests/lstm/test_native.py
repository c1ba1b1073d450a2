"""The LSTM of the C kernels: values and gradients against float64, threads, memory, refusals."""

import os
import threading

import pytest
import torch
from comparison import assert_within_rounding, run, tensors
from native import needs_native, switch_off
from rounding import assert_within, reach

import ulmfit_fast as uf
from ulmfit_fast import backend
from ulmfit_fast.functional import lstm
from ulmfit_fast.kernels.cpu import library
from ulmfit_fast.kernels.cpu import lstm as lstm_kernels
from ulmfit_fast.lstm import native as operators

pytestmark = needs_native
AMX = torch.cpu._is_amx_tile_supported()

DTYPES = [torch.float32, torch.bfloat16]
DROPOUTS = {
    "none": {},
    "weight": {"weight_p": (0.0, 0.3, 0.6, 1.0)},
    "gate": {"gate_p": (0.1, 0.2, 0.3, 0.4)},
    "both": {"weight_p": 0.5, "gate_p": 0.3},
    "sequence": {"weight_p": 0.2, "gate_p": (0.2, 0.0, 0.3, 0.1), "gate_mask": "sequence"},
}
# T, B, E, H: of one, odd, more than a panel, more rows than are taken at once, more than a block.
SMALL = [(1, 1, 1, 1), (5, 3, 4, 6), (4, 1, 3, 17), (3, 7, 33, 70)]
LARGE = [(2, 257, 5, 33), (2, 5, 400, 1153)]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@dtypes
@pytest.mark.parametrize("dropout", DROPOUTS.values(), ids=DROPOUTS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("sizes", SMALL, ids=str)
def test_no_farther_from_float64_than_rounding_takes_it(sizes, reverse, dropout, dtype):
    inputs = tensors(*sizes, dtype)
    settings = {"reverse": reverse, "seed": 2**63 - 2, "layer": 3, **dropout}
    assert_within_rounding("native", inputs, **settings)
    lengths = torch.tensor([2, 0, 5, 1, 3, 4, 1])[: sizes[1]].clamp_max(sizes[0])
    assert_within_rounding("native", inputs, lengths=lengths, **settings)


@dtypes
@pytest.mark.parametrize("sizes", LARGE, ids=str)
def test_large_batches_and_weights(sizes, dtype):
    assert_within_rounding("native", tensors(*sizes, dtype), seed=1, **DROPOUTS["both"])


@pytest.mark.parametrize(
    "name",
    [
        "native",
        # Off by 20 to 110 % from H = 1024 on, in torch 2.13.0 and 2.14.1.
        pytest.param("torch", marks=pytest.mark.xfail(AMX, reason="PyTorch's fault with AMX")),
    ],
)
def test_gradients_in_bfloat16_at_the_size_of_ulmfit(name):
    inputs = tensors(3, 2, 40, 1152, torch.bfloat16)
    assert_within_rounding(name, inputs, weight_p=0.5, seed=1)


def test_what_is_multiplied_in_bfloat16_can_be_told(monkeypatch):
    there = bool(library.library().has_bfloat16())
    assert lstm_kernels.has_bfloat16_products(torch.bfloat16) == there
    assert not lstm_kernels.has_bfloat16_products(torch.float32)
    monkeypatch.setenv(lstm_kernels.PRODUCTS_VARIABLE, "float32")
    assert not lstm_kernels.has_bfloat16_products(torch.bfloat16)
    layer, x = uf.LSTM(4, 8).bfloat16(), torch.randn(3, 2, 4, dtype=torch.bfloat16)
    assert backend.explain(layer, x).endswith("products in float32")
    assert_within_rounding("native", tensors(3, 2, 40, 33, torch.bfloat16), seed=1)
    monkeypatch.setenv(lstm_kernels.PRODUCTS_VARIABLE, "int4")
    with pytest.raises(ValueError, match="ULMFIT_FAST_PRODUCTS is 'int4', expected float32 or"):
        layer(x)
    monkeypatch.setenv(lstm_kernels.PRODUCTS_VARIABLE, "bfloat16")
    if there:
        assert lstm_kernels.has_bfloat16_products(torch.bfloat16)
        return
    with pytest.raises(ValueError, match="this CPU or its compiler has no such products; unset"):
        layer(x)


@pytest.mark.parametrize("settings", [{}, {"weight_p": 0.5}, {"gate_p": 0.1}], ids=str)
def test_training_in_bfloat16_never_goes_to_pytorch(settings, monkeypatch):
    layer = uf.LSTM(4, 8, **settings).bfloat16()
    x = torch.randn(3, 2, 4, dtype=torch.bfloat16)
    assert backend.explain(layer, x).startswith("native: ")
    switch_off(monkeypatch)
    assert backend.explain(layer, x).startswith("eager: ")


def results(dtype=torch.float32, sizes=(9, 20, 33, 70), **settings):
    kwargs = {"seed": 7, **DROPOUTS["both"], **settings}
    return run("native", tensors(*sizes, dtype), **kwargs)


@dtypes
@pytest.mark.parametrize("count", [2, 7])
def test_the_same_bits_whatever_the_number_of_threads(count, dtype, threads):
    threads(1)
    expected = results(dtype)
    threads(count)
    found = results(dtype)
    # The other gradients are products of PyTorch's, which promises no such thing.
    for which in (0, 1, 2, 4, 5):
        assert torch.equal(found[which], expected[which])


def test_two_python_threads_at_once():
    expected, found = results(), []
    workers = [threading.Thread(target=lambda: found.append(results())) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 2
    for one in found:
        assert all(torch.equal(a, b) for a, b in zip(one, expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_of_a_process_with_threads_computes_too(threads):
    """GNU's OpenMP would wait for threads that the child does not have."""
    threads(2)
    expected = results()[0]
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            inputs = tensors(9, 20, 33, 70, torch.float32)
            x, h0, c0, *weights = inputs
            output = lstm(x, (h0, c0), *weights, backend="native", seed=7, **DROPOUTS["both"])[0]
        os._exit(0 if torch.equal(output, expected) else 1)
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        threading.Event().wait(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0


@dtypes
def test_new_memory_is_written_before_it_is_read(dtype, request):
    expected = results(dtype, lengths=torch.arange(20) % 10)
    request.getfixturevalue("nan_workspaces")
    found = results(dtype, lengths=torch.arange(20) % 10)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@dtypes
def test_strided_and_misaligned_inputs(dtype):
    inputs = tensors(5, 3, 7, 18, dtype)
    odd = []
    for tensor in inputs:
        held = torch.empty(2 * tensor.numel() + 1, dtype=dtype)
        strided = held[1:].view(2, *tensor.shape[::-1])[0].permute(*reversed(range(tensor.dim())))
        odd.append(strided.copy_(tensor))
        assert odd[-1].data_ptr() % 4 or dtype == torch.float32
    kwargs = {"seed": 7, **DROPOUTS["both"], "backend": "native"}
    x, h0, c0, *weights = inputs
    expected, _ = lstm(x, (h0, c0), *weights, **kwargs)
    x, h0, c0, *weights = odd
    assert torch.equal(lstm(x, (h0, c0), *weights, **kwargs)[0], expected)


@dtypes
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("held, rows", [(1, 256), (1 << 24, 1), (3 * 20 * 4 * 70, 60)])
def test_chunks_of_steps_do_not_show(held, rows, reverse, dtype, monkeypatch):
    lengths = torch.arange(20) % 10
    expected = results(dtype, reverse=reverse, lengths=lengths)
    monkeypatch.setattr("ulmfit_fast.kernels.cpu.lstm._HELD", held)
    monkeypatch.setattr("ulmfit_fast.kernels.cpu.lstm._ROWS", rows)
    found = results(dtype, reverse=reverse, lengths=lengths)
    for which in (0, 1, 2, 3, 4, 5):
        assert torch.equal(found[which], expected[which])
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert_within(found, [tensor.double() for tensor in expected], [bound] * len(found))


@dtypes
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
def test_padding_may_hold_anything(poison, reverse, dtype):
    lengths = torch.tensor([5, 2, 0])
    x, *rest = tensors(5, 3, 4, 6, dtype)
    padded = (torch.arange(5)[:, None] >= lengths)[:, :, None]
    kwargs = {"lengths": lengths, "reverse": reverse, "seed": 5, **DROPOUTS["both"]}
    poisoned = run("native", [x.masked_fill(padded, poison), *rest], **kwargs)
    clean = run("native", [x.masked_fill(padded, 0.0), *rest], **kwargs)
    assert all(torch.equal(a, b) for a, b in zip(poisoned, clean, strict=True))


@dtypes
def test_what_is_no_number_stays_so_and_in_its_row(dtype):
    x, h0, c0, *weights = tensors(4, 3, 5, 20, dtype)
    for value in (float("nan"), float("inf"), float("-inf")):
        x[1, 1, 2] = value
        given = {"backend": "native"}, {"backend": "reference"}
        ours, theirs = (lstm(x, (h0, c0), *weights, **kwargs)[0] for kwargs in given)
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert ours[:, ::2].isfinite().all()
        assert torch.equal(ours[1:, 1].abs() == 1, theirs[1:, 1].abs() == 1)


def test_a_batch_of_none():
    output, h, c, *grads = results(sizes=(5, 0, 4, 6))
    assert (output.shape, h.shape, c.shape) == ((5, 0, 6), (0, 6), (0, 6))
    assert all(torch.all(grad == 0) for grad in grads)


def test_frozen_inputs_get_no_gradient_and_nothing_is_kept_for_none():
    x, h0, c0, w_ih, w_hh, *biases = tensors(4, 3, 5, 20, torch.float32)
    output, _ = lstm(x, (h0, c0), w_ih, w_hh, *biases, backend="native")
    assert output.grad_fn is None
    kept = operators.lstm_native(
        x, h0, c0, w_ih, w_hh, *biases, None, torch.tensor(1), [0.0] * 4, [0.0] * 4, False, 0, False
    )[3:]
    assert [tensor.numel() for tensor in kept] == [0, 0]
    for index in range(7):
        leaves = [x, h0, c0, w_ih, w_hh, *biases]
        leaves[index] = leaves[index].clone().requires_grad_()
        x_, h_, c_, *weights = leaves
        lstm(x_, (h_, c_), *weights, weight_p=0.5, seed=1, backend="native")[0].sum().backward()
        assert [i for i, leaf in enumerate(leaves) if leaf.grad is not None] == [index]
        assert bool(torch.any(leaves[index].grad != 0))


def test_gradients_share_no_memory():
    leaves = [tensor.requires_grad_() for tensor in tensors(4, 3, 5, 20, torch.float32)]
    x, h0, c0, *weights = leaves
    output, _ = lstm(x, (h0, c0), *weights, weight_p=0.3, backend="native")
    grads = torch.autograd.grad(output.sum(), leaves)
    assert len({grad.untyped_storage().data_ptr() for grad in grads}) == len(grads)


def test_no_double_backward_and_it_says_so():
    x, h0, c0, *weights = tensors(4, 3, 5, 20, torch.float32)
    x.requires_grad_()
    output, _ = lstm(x, (h0, c0), *weights, backend="native")
    (grad,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match='backend="reference"'):
        grad.sum().backward()


@pytest.mark.parametrize("wide", [False, True], ids=["one-dtype", "wide-state"])
def test_c_is_held_in_float32_and_h_is_rounded_once_a_step(wide):
    x, h0, c0, *weights = tensors(6, 3, 5, 20, torch.bfloat16)
    state = (h0, c0.float() if wide else c0)
    kwargs = {"weight_p": 0.3, "seed": 1, "backend": "native"}
    whole, (h_n, c_n) = lstm(x, state, *weights, **kwargs)
    assert (whole.dtype, h_n.dtype) == (torch.bfloat16, torch.bfloat16)
    assert c_n.dtype == (torch.float32 if wide else torch.bfloat16)
    if wide:
        first, state = lstm(x[:4], state, *weights, **kwargs)
        second, state = lstm(x[4:], state, *weights, **kwargs)
        assert torch.equal(torch.cat([first, second]), whole)
        assert all(torch.equal(a, b) for a, b in zip(state, (h_n, c_n), strict=True))


def test_autocast_runs_in_its_dtype():
    x, h0, c0, *weights = (t.requires_grad_() for t in tensors(4, 3, 5, 20, torch.float32))
    kwargs = {"weight_p": 0.2, "seed": 1, "backend": "native"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = lstm(x, (h0, c0), *weights, **kwargs)
    low, low_h0, *low_weights = (tensor.bfloat16() for tensor in (x, h0, *weights))
    expected, expected_state = lstm(low, (low_h0, c0), *low_weights, **kwargs)
    assert torch.equal(output, expected)
    assert all(torch.equal(a, b) for a, b in zip(state, expected_state, strict=True))
    output.float().sum().backward()
    assert weights[0].grad.dtype == torch.float32


@pytest.mark.parametrize(
    "dtype, masks, why",
    [
        (torch.float64, None, "float32 and bfloat16, and the input is float64"),
        (torch.float16, None, "float32 and bfloat16, and the input is float16"),
        (torch.float32, (None, torch.ones(4, 3, 80)), "draw gate masks, they take none"),
    ],
    ids=["float64", "float16", "gate-mask"],
)
def test_a_call_that_it_cannot_run_is_refused_by_name_and_goes_elsewhere(dtype, masks, why):
    x, h0, c0, *weights = tensors(4, 3, 5, 20, dtype)
    with pytest.raises(RuntimeError, match=f'native was asked for by backend="native", but.*{why}'):
        lstm(x, (h0, c0), *weights, masks=masks, backend="native")
    assert lstm(x, (h0, c0), *weights, masks=masks)[0].dtype == dtype


def test_injected_weight_masks_equal_the_drawn_ones():
    inputs = tensors(4, 3, 5, 20, torch.float32)
    masks = uf.dropout_masks(9, hidden_size=20, weight_p=0.5, layer=2, dtype=torch.float32)
    drawn = run("native", inputs, seed=9, layer=2, weight_p=0.5)
    injected = run("native", inputs, masks=masks)
    for a, b in zip(injected, drawn, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", [{}, {"gate_p": 0.1}], ids=str)
def test_without_the_kernels_auto_says_why_it_takes_something_else(p, monkeypatch):
    switch_off(monkeypatch, "there is no C compiler")
    layer, x = uf.LSTM(4, 8, **p), torch.randn(5, 2, 4)
    said = backend.explain(layer, x)
    assert said.startswith("eager: " if p else "torch: ")
    assert said.endswith("; there is no C compiler")
    assert backend.explain(uf.LSTM(4, 8, backend="native"), x).startswith("cannot run: native was")
    assert layer(x)[0].shape == (5, 2, 8)


@pytest.mark.parametrize("keep", [False, True])
@dtypes
def test_operator_passes_opcheck(dtype, keep):
    x, h0, c0, *weights = (t.requires_grad_(keep) for t in tensors(3, 2, 4, 6, dtype))
    lengths = torch.tensor([3, 1])
    scalars = (torch.tensor(5), [0.3] * 4, [0.2] * 4, False, 1, keep)
    torch.library.opcheck(operators.lstm_native, (x, h0, c0, *weights, lengths, *scalars))


def test_several_gradients_at_once():
    x, h0, c0, *weights = tensors(3, 2, 4, 6, torch.float32)
    x.requires_grad_()
    output, _ = lstm(x, (h0, c0), *weights, weight_p=0.3, seed=1, backend="native")
    rows = torch.eye(output.numel()).view(-1, *output.shape)
    (batched,) = torch.autograd.grad(output, x, rows, is_grads_batched=True, retain_graph=True)
    one = [torch.autograd.grad(output, x, row, retain_graph=True)[0] for row in rows]
    torch.testing.assert_close(batched, torch.stack(one))


def test_rounding_tells_a_lost_gate_mask():
    """The bound of these tests is narrow enough for one wrong mask to be seen."""
    inputs = tensors(5, 3, 4, 6, torch.float32)
    truth = run("reference", inputs, wide=True, seed=1, gate_p=0.3)
    found = run("native", inputs, seed=2, gate_p=0.3)
    bounds = reach(lambda moved: run("reference", moved, seed=1, gate_p=0.3), inputs, terms=24)
    with pytest.raises(AssertionError, match="off by"):
        assert_within(found, truth, bounds)


@pytest.mark.parametrize("autocast", [False, True])
def test_weights_are_packed_once_where_they_stay(autocast, monkeypatch):
    layer, x = uf.LSTM(5, 7, num_layers=2, bidirectional=True).eval(), torch.randn(3, 2, 5)
    packed, real = [], lstm_kernels._packed

    def counted(weight, drop, *, transposed):
        packed.append(tuple(weight.shape))
        return real(weight, drop, transposed=transposed)

    monkeypatch.setattr(lstm_kernels, "_packed", counted)

    def outputs(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return [layer(x)[0] for _ in range(count)]

    with torch.no_grad():
        expected = outputs(1)[0]
        assert len(packed) == 8
        with operators.caching_weights():
            found = outputs(2)
            assert len(packed) == 16
            # A change is seen, and the memory of another tensor is not taken for the old one's.
            layer.weight_hh_l0.mul_(2.0)
            changed = outputs(1)[0]
            assert len(packed) == 17
            for weight in layer.parameters():
                weight.data = weight.data.clone()
            assert torch.equal(outputs(1)[0], changed)
        again = outputs(1)[0]
    assert all(torch.equal(output, expected) for output in found)
    assert torch.equal(changed, again) and not torch.equal(changed, expected)


def test_what_is_trained_or_dropped_is_packed_each_time():
    layer, x = uf.LSTM(5, 7, weight_p=0.5), torch.randn(3, 2, 5)
    with operators.caching_weights():
        output, _ = layer(x)
        output.sum().backward()
        with torch.no_grad():
            one, other = (layer(x, seed=seed)[0] for seed in (1, 2))
            assert torch.equal(layer(x, seed=1)[0], one) and not torch.equal(one, other)
    assert layer.weight_hh_l0.grad is not None
    with pytest.raises(RuntimeError, match="inside"), operators.caching_weights():
        raise RuntimeError("inside")
    with torch.no_grad():
        assert torch.equal(layer(x, seed=1)[0], one)
