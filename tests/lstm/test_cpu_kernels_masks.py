"""The masks of the C kernels: the bits of the torch operations, whoever draws them and how."""

import os
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from c_kernels import Listener, assert_same_bits, needed, switched_off, threads
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck

from ulmfit_fast import backend, rng
from ulmfit_fast.functional.dropout import locked_dropout
from ulmfit_fast.kernels.cpu import masks
from ulmfit_fast.lstm import operators

pytestmark = pytest.mark.usefixtures("_compiled")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
PS = [(0.0,) * 4, (0.2,) * 4, (0.5,) * 4, (1.0,) * 4, (0.1, 0.5, 1.0, 0.0)]
PS_IDS = ["p0", "p0.2", "p0.5", "p1", "four"]
SEEDS = [0, 7, 2**63 - 2, 2**64 - 1]
INF, NAN = float("inf"), float("nan")
SPECIALS = [0.0, -0.0, INF, -INF, NAN, 1e-40, 3e38]


@pytest.fixture
def _compiled():
    needed()


@pytest.fixture
def listener(monkeypatch):
    return Listener(monkeypatch, masks)


@pytest.fixture
def same_bits(listener):
    """Assert that a function returns the same in C and in torch operations, and give that back."""

    def check(function, *args, **kwargs):
        got = function(*args, **kwargs)
        assert listener.heard()
        with switched_off():
            wanted = function(*args, **kwargs)
        assert not listener.heard()
        assert_same_bits(got, wanted)
        return got

    return check


def weight_of(hidden, dtype=torch.float32):
    weight = torch.randn(4 * hidden, hidden, dtype=dtype)
    flat = weight.view(-1)
    for place in (0, flat.numel() // 2, flat.numel() - len(SPECIALS)):
        part = flat[max(0, place) : place + len(SPECIALS)]
        part.copy_(torch.tensor(SPECIALS[: len(part)]))
    return weight


@DTYPES
@pytest.mark.parametrize("p", PS, ids=PS_IDS)
@pytest.mark.parametrize("hidden", [1, 17, 70])
def test_a_weight_is_dropped_as_in_torch_operations(hidden, p, dtype, same_bits):
    weight = weight_of(hidden, dtype)
    for seed in SEEDS:
        for stream in (0, 3):
            same_bits(rng.drop_weight, weight, seed, p, stream=stream)
            same_bits(rng.weight_keep, seed, hidden, p, stream=stream)


@DTYPES
def test_a_large_weight_is_dropped_as_in_torch_operations(dtype, same_bits):
    weight = weight_of(1153, dtype)
    same_bits(rng.drop_weight, weight, 2**63 - 2, PS[-1], stream=1)
    same_bits(rng.weight_keep, 2**63 - 2, 1153, PS[-1], stream=1)


def transposed(weight):
    return weight.t().contiguous().t()


def misaligned(tensor):
    moved = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return moved.copy_(tensor)


@DTYPES
@pytest.mark.parametrize(
    "layout",
    [transposed, misaligned, torch.nn.Parameter, lambda w: (-w.t()).contiguous().t()._neg_view()],
    ids=["transposed", "misaligned", "parameter", "negative"],
)
def test_a_weight_may_lie_anyhow(layout, dtype, listener):
    weight = weight_of(17, dtype)
    laid = layout(weight)
    got = rng.drop_weight(laid.detach() if laid.is_neg() else laid, 7, PS[-1])
    # A view that stands for its negative has not the values in memory.
    assert listener.heard() != laid.is_neg()
    with switched_off():
        assert_same_bits(got, rng.drop_weight(weight, 7, PS[-1]))


@DTYPES
@pytest.mark.parametrize("p", PS, ids=PS_IDS)
@pytest.mark.parametrize("zeros", [0, 40], ids=["no-zeros", "zeros"])
def test_a_gradient_is_masked_as_its_weight_was(zeros, p, dtype, listener):
    weight = torch.randn(68, 17, dtype=dtype)
    weight.view(-1)[:zeros] = 0.0
    grad = torch.randn_like(weight)
    leaf = weight.clone().requires_grad_()
    operators.drop_weight(leaf, torch.tensor(7), p, 1).backward(grad)
    assert listener.heard()
    keep = rng.weight_keep(7, 17, p, stream=1)
    scales = torch.tensor([rng.keep_scale(value) for value in p]).repeat_interleave(17)[:, None]
    wanted = torch.where(keep, grad.float() * scales, torch.zeros(())).to(dtype)
    assert torch.equal(leaf.grad, wanted)


@DTYPES
def test_what_is_dropped_of_a_gradient_is_0_whatever_it_was(dtype):
    p = (0.5, 0.2, 1.0, 0.0)
    grad = torch.full((68, 17), NAN, dtype=dtype)
    weight = torch.randn_like(grad)
    dropped = rng.drop_weight(weight, 7, p)
    masked = rng.mask_gradient(grad, weight, dropped, 7, p)
    assert torch.equal(masked.isnan(), rng.weight_keep(7, 17, p))
    assert not masked[~masked.isnan()].any()
    with switched_off():
        assert_same_bits(masked, rng.mask_gradient(grad, weight, dropped, 7, p))


@pytest.mark.parametrize("p", PS, ids=PS_IDS)
@pytest.mark.parametrize(
    ("steps", "batch", "hidden"),
    [(range(1), 1, 1), (range(3), 5, 17), (range(2, 5), 3, 70), (range(64, 66), 2, 129)],
)
def test_gates_are_kept_as_in_torch_operations(steps, batch, hidden, p, same_bits):
    for seed in SEEDS:
        for stream in (0, 3):
            same_bits(rng.gate_keep, seed, steps, batch, hidden, p, stream=stream)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 255, 256, 257, 1111])
def test_elements_are_kept_as_in_torch_operations(n, p, same_bits):
    for seed in SEEDS[:3]:
        for kind, stream in ((rng.KIND_LOCKED, 0), (rng.KIND_LAYER, 2)):
            same_bits(rng.keep_mask, torch.tensor(seed), n, p, kind=kind, stream=stream)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(0,), (1,), (13, 7), (3, 5, 70)], ids=str)
def test_token_types_are_kept_as_in_torch_operations(shape, p, same_bits):
    tokens = torch.randint(0, 2**32, shape)
    for seed in SEEDS[:3]:
        same_bits(rng.embedding_keep, torch.tensor(seed), tokens, p)
        same_bits(rng.embedding_keep, torch.tensor(seed), tokens[..., ::2], p)


@pytest.mark.parametrize("wrong", [-1, -100, 2**32, 2**40 + 3])
def test_an_id_that_is_no_counter_has_the_bits_that_it_had(wrong):
    tokens = torch.arange(1000)
    tokens[777] = wrong
    seen = [rng.embedding_keep(torch.tensor(seed), tokens, 0.5) for seed in range(40)]
    with switched_off():
        wanted = [rng.embedding_keep(torch.tensor(seed), tokens, 0.5) for seed in range(40)]
    assert all(torch.equal(a, b) for a, b in zip(seen, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16], ids=str)
def test_ids_of_other_dtypes_have_the_same_bits(dtype):
    tokens = torch.arange(300)
    seed = torch.tensor(7)
    keep = rng.embedding_keep(seed, tokens, 0.5)
    assert torch.equal(rng.embedding_keep(seed, tokens.to(dtype), 0.5), keep)


@pytest.mark.parametrize("garbage", [True, False])
def test_every_bit_is_written(garbage, monkeypatch, listener):
    empty = torch.empty

    def dirty(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(garbage) if tensor.dtype == torch.bool else tensor

    monkeypatch.setattr(torch, "empty", dirty)
    p, seed = float(garbage), torch.tensor(3)
    kept = [
        rng.weight_keep(3, 70, (p,) * 4),
        rng.gate_keep(3, range(3), 5, 70, (p,) * 4),
        rng.keep_mask(seed, 1111, p, kind=rng.KIND_LOCKED),
        rng.embedding_keep(seed, torch.arange(300), p),
    ]
    assert listener.heard()
    assert all(bool((keep != garbage).all()) for keep in kept)


def test_the_word_at_the_threshold_is_kept():
    words = rng.philox(7, torch.arange(64), 0, 0, rng.KIND_WEIGHT)
    for gate in range(4):
        p = [0.0] * 4
        p[gate] = int(words[gate, 5]) / 2**32
        wanted = words[gate] >= words[gate, 5]
        assert wanted[5] and not wanted.all()
        keep = rng.weight_keep(7, 8, p).view(4, 64)[gate]
        assert torch.equal(keep, wanted)
        assert torch.equal(rng.drop_weight(torch.ones(32, 8), 7, p).view(4, 64)[gate] != 0, wanted)


def test_the_largest_word_is_dropped_at_p_1():
    """p = 1 has no threshold of 32 bits: the largest one alone would keep this element."""
    seed, gate, counter = 30_318_187, 2, 25
    assert int(rng.philox(seed, torch.tensor([counter]), 0, 0, rng.KIND_WEIGHT)[gate]) == 2**32 - 1
    p = (0.5, 0.5, 1.0, 0.5)
    weight = torch.full((32, 8), -1.0)
    assert not rng.weight_keep(seed, 8, p).view(4, 64)[gate].any()
    dropped = rng.drop_weight(weight, seed, p)
    assert not dropped.view(4, 64)[gate].any()
    masked = rng.mask_gradient(torch.full((32, 8), NAN), weight, dropped, seed, p)
    assert not masked.view(4, 64)[gate].any()


@pytest.mark.parametrize("n", [1, 2, 63, 65, 255, 257, 1022])
def test_nothing_is_written_beyond_the_end(n, listener):
    guarded = torch.zeros(4 * n * n + 2 * 512, dtype=torch.bool)
    zeros = (0.0,) * 4
    seed, tokens = torch.tensor(7), torch.arange(n)
    for size, write in (
        (n, lambda keep: masks.keep_mask(keep, seed, 0.0, rng.KIND_LOCKED, 0)),
        (n, lambda keep: masks.embedding_keep(keep, seed, tokens, 0.0)),
        (4 * n, lambda keep: masks.gate_keep(keep, seed, range(1), 1, n, zeros, 0)),
        (4 * n * n, lambda keep: masks.weight_keep(keep, seed, n, zeros, 0)),
    ):
        guarded.zero_()
        write(guarded[512 : 512 + size])
        assert listener.heard()
        assert guarded[512 : 512 + size].all()
        assert not guarded[:512].any() and not guarded[512 + size :].any()


@DTYPES
@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 17), (7, 2, 129), (3, 4, 64)], ids=str)
@pytest.mark.parametrize("layout", [torch.clone, misaligned, transposed], ids=lambda f: f.__name__)
def test_locked_dropout_is_that_of_torch_operations(layout, shape, p, dtype, same_bits):
    values = torch.randn(shape, dtype=dtype)
    values.view(-1)[: len(SPECIALS)] = torch.tensor(SPECIALS[: values.numel()]).to(dtype)
    if layout is transposed:
        x = values.transpose(0, 2).contiguous().transpose(0, 2)
    else:
        x = layout(values)
    grad = torch.randn(shape, dtype=dtype)

    def gradient(seed):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(locked_dropout(leaf, seed, p), leaf, grad)[0]

    for seed in map(torch.tensor, SEEDS[:3]):
        same_bits(locked_dropout, x, seed, p)
        same_bits(gradient, seed)


@pytest.mark.parametrize("steps", [0, 3])
def test_locked_dropout_of_nothing(steps, same_bits):
    x = torch.randn(steps, 0 if steps else 2, 5)
    assert same_bits(locked_dropout, x, torch.tensor(7), 0.5).shape == x.shape


def test_locked_dropout_has_all_derivatives(listener):
    x = torch.randn(3, 2, 5, requires_grad=True)
    seed = torch.tensor(7)
    (grad,) = torch.autograd.grad(locked_dropout(x, seed, 0.5).pow(3).sum(), x, create_graph=True)
    assert listener.heard()
    (second,) = torch.autograd.grad(grad.sum(), x)
    mask = locked_dropout(torch.ones(3, 2, 5), seed, 0.5)
    torch.testing.assert_close(second, 6 * x.detach() * mask**3)
    # Several gradients at once are behind vmap, whose tensors have no memory to write to.
    rows = torch.eye(30).view(30, 3, 2, 5)
    batched = torch.autograd.grad(locked_dropout(x, seed, 0.5), x, rows, is_grads_batched=True)
    assert torch.equal(batched[0], rows * mask)
    double = x.detach().double().requires_grad_()
    assert gradcheck(lambda x: locked_dropout(x, seed, 0.5), double)


def drawn():
    """Return one of each, large enough for seven threads."""
    seed = torch.tensor(11)
    weight, x = torch.arange(4.0 * 300 * 300).view(1200, 300), torch.ones(9, 7, 4001)
    return [
        rng.drop_weight(weight, 11, PS[-1]),
        rng.drop_weight(weight.bfloat16(), 11, PS[-1]),
        rng.weight_keep(11, 300, PS[-1]),
        rng.gate_keep(11, range(9), 11, 901, PS[-1]),
        rng.keep_mask(seed, 300_001, 0.3, kind=rng.KIND_LOCKED),
        rng.embedding_keep(seed, torch.arange(70_001), 0.3),
        locked_dropout(x, seed, 0.3),
        locked_dropout(x.bfloat16(), seed, 0.3),
    ]


def test_threads_change_no_bit(listener):
    results = []
    for count in (1, 2, 7):
        with threads(count):
            results.append(drawn())
            assert listener.heard()
    with switched_off():
        wanted = drawn()
    for result in results:
        for got, want in zip(result, wanted, strict=True):
            assert_same_bits(got, want)


def test_two_python_threads_draw_at_once():
    wanted = drawn()
    with threads(2), ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda _: drawn(), range(8)):
            for got, want in zip(result, wanted, strict=True):
                assert torch.equal(got, want)


@pytest.mark.usefixtures("nan_workspaces")
def test_no_element_is_read_before_it_is_written():
    p = (0.0, 0.2, 0.5, 1.0)
    weight, x = torch.ones(68, 17), torch.ones(3, 5, 17)
    keep = rng.weight_keep(7, 17, p)
    assert torch.equal(rng.drop_weight(weight, 7, p) != 0, keep)
    dropped = locked_dropout(x, torch.tensor(7), 0.5)
    kept = rng.keep_mask(torch.tensor(7), 85, 0.5, kind=rng.KIND_LOCKED).view(1, 5, 17)
    assert torch.equal(dropped, x * kept * 2)


SCRIPT = """
import os, sys, torch
from ulmfit_fast import rng
from ulmfit_fast.kernels.cpu import library
torch.set_num_threads(2)
weight = torch.randn(1200, 300)
wanted = rng.drop_weight(weight, 7, (0.5,) * 4)
assert library.library() is not None
child = os.fork()
if child == 0:
    # By numpy: PyTorch's own comparison would wait for threads that are the parent's.
    drawn = rng.drop_weight(weight, 7, (0.5,) * 4).numpy().tobytes()
    os._exit(0 if drawn == wanted.numpy().tobytes() else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_draws_too():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "2"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes_are_torch_operations(dtype, listener):
    weight = torch.randn(68, 17, dtype=dtype)
    dropped = rng.drop_weight(weight, 7, PS[1])
    assert not listener.heard()
    assert torch.equal(dropped != 0, rng.weight_keep(7, 17, PS[1]))


def test_whoever_listens_to_operations_hears_them(listener):
    """What a trace, a fake tensor or a transform is shown is torch operations."""
    weight, seed = torch.randn(68, 17), torch.tensor(7)

    def by_hand(w):
        return rng.drop_weight(w.detach(), 7, PS[1]), rng.weight_keep(7, 17, PS[1])

    with FakeTensorMode() as mode:
        fakes = by_hand(mode.from_tensor(weight))
    assert [tuple(fake.shape) for fake in fakes] == [(68, 17)] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda w: by_hand(w)[0], weight, check_trace=False)
    compiled = torch.compile(by_hand, backend="aot_eager")(weight)
    assert not listener.heard()
    wanted = by_hand(weight)
    assert listener.heard()
    assert torch.equal(traced(weight), wanted[0])
    assert all(torch.equal(a, b) for a, b in zip(compiled, wanted, strict=True))
    batched = torch.func.vmap(lambda x: locked_dropout(x, seed, 0.5))(torch.ones(2, 3, 2, 5))
    assert torch.equal(batched[1], locked_dropout(torch.ones(3, 2, 5), seed, 0.5))


@pytest.mark.parametrize("name", ["torch", "eager", "reference"])
def test_a_backend_of_torch_operations_rules_the_dropout_too(name, listener):
    x, seed = torch.ones(3, 2, 5), torch.tensor(7)
    dropped = locked_dropout(x, seed, 0.5)
    assert listener.heard()
    with backend.use(name):
        # The mask alone is drawn by the kernels: it is the same bit for bit.
        assert torch.equal(locked_dropout(x, seed, 0.5), dropped)
