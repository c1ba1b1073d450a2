"""The kernels of dropout around the LSTM: their masks bit for bit, values, gradients, operators."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

import triton
import triton.language as tl
from rounding import assert_within, reach

from ulmfit_fast import backend, rng
from ulmfit_fast.functional import dropout as fused
from ulmfit_fast.kernels import dropout, embedding, regularisers
from ulmfit_fast.kernels.launch import DropArguments

# Blocks of a part of a step, several blocks of steps, counters that straddle rows, single ones.
SHAPES = [(1, 1, 17), (3, 5, 17), (9, 3, 68), (1, 3, 400), (1, 1, 1)]
DTYPES = [torch.float16, torch.float32]
SEED = torch.tensor(2**62 + 12345)
pytestmark = pytest.mark.usefixtures("nan_workspaces")


def on(name, function, *args, **settings):
    with backend.use(name):
        return function(*args, **settings)


@pytest.fixture
def launches(monkeypatch):
    seen = []
    for module in (dropout, embedding, regularisers):

        def spy(kernel, *args, launch=module.launch):
            seen.append(kernel.__name__)
            launch(kernel, *args)

        monkeypatch.setattr(module, "launch", spy)
    return seen


def locked_mask(seed, batch, features, p):
    keep = rng.keep_mask(torch.tensor(seed), batch * features, p, kind=rng.KIND_LOCKED)
    return keep.view(1, batch, features) * torch.tensor(rng.keep_scale(p))


@pytest.mark.parametrize(
    ("seed", "p"),
    [(0, 0.1), (2**31, 0.5), (2**32 - 1, 0.9), (2**32, 1e-9), (2**63 - 1, 0.5), (2**62 + 5, 1.0)],
)
def test_locked_masks_are_those_of_rng(seed, p):
    for steps, batch, features in SHAPES:
        expected = locked_mask(seed, batch, features, p).expand(steps, -1, -1)
        ones = torch.ones(steps, batch, features)
        assert torch.equal(dropout.locked_dropout(ones, torch.tensor(seed), p), expected)
        dropped, _ = regularisers.dropout_and_means(ones, torch.tensor(seed), p, False)
        assert torch.equal(dropped, expected)


@triton.jit(do_not_specialize=["threshold"])
def kept_kernel(words, flags, threshold, scale, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(flags + at, dropout.kept(tl.load(words + at), threshold, scale).to(tl.int8))


@pytest.mark.parametrize("threshold", [1, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_word_at_the_threshold_is_kept_and_none_at_p_1(threshold):
    words = [0, threshold - 1, threshold, 2**32 - 1]
    as_bits = torch.tensor(words).to(torch.int32)
    arguments = DropArguments.of([threshold / 2**32]).arguments
    for scale, expected in ((arguments[1], [word >= threshold for word in words]), (0.0, [0] * 4)):
        flags = torch.zeros(4, dtype=torch.int8)
        kept_kernel[(1,)](as_bits, flags, arguments[0], scale, N=4)
        assert flags.tolist() == expected


@pytest.mark.parametrize(
    ("seed", "word_p", "locked_p"),
    [(0, 0.1, 0.0), (2**32, 0.0, 0.5), (2**63 - 1, 0.5, 0.1), (2**62 + 12345, 0.1, 1.0)],
)
def test_embedding_masks_are_those_of_rng(seed, word_p, locked_p):
    other = seed // 2 + 1
    seeds = torch.tensor(seed), torch.tensor(other)
    for steps, batch, width in SHAPES:
        tokens = torch.randint(50, (steps, batch))
        words = rng.embedding_keep(seeds[0], tokens, word_p)[:, :, None]
        expected = words * torch.tensor(rng.keep_scale(word_p))
        if locked_p:
            expected = expected * locked_mask(other, batch, width, locked_p)
        arguments = (tokens, seeds[0], word_p, seeds[1], locked_p)
        ones = torch.ones(50, width)
        assert torch.equal(
            embedding.embed_dropped(ones, *arguments, -1), expected.expand(-1, -1, width)
        )
        masked = embedding._mask_embedded(torch.ones(steps, batch, width), *arguments)
        assert torch.equal(masked, expected.expand(-1, -1, width))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_locked_dropout_gives_what_torch_does(dtype, shape, launches):
    for p in (0.1, 0.5, 1.0):
        results = []
        for name in ("auto", "triton"):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            y = on(name, fused.locked_dropout, x.requires_grad_(), SEED, p)
            y.backward(torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype))
            results.append((y, x.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
    assert launches == ["locked_dropout_kernel"] * 6


def test_bfloat16():
    # The interpreter cuts bfloat16 off where a device rounds it.
    x = torch.randn(9, 3, 20).bfloat16()
    expected = fused.locked_dropout(x, SEED, 0.3)
    got = on("triton", fused.locked_dropout, x, SEED, 0.3)
    assert torch.equal(got == 0, expected == 0)
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=0)


def strided(shape):
    steps, batch, features = shape
    yield torch.randn(batch, steps, features).transpose(0, 1)
    yield torch.randn(2 * steps, batch, features)[::2]
    yield torch.randn(steps, batch, 2 * features)[:, :, ::2]
    yield torch.randn(batch, features).expand(shape)
    yield torch.randn(1).expand(shape)


def test_inputs_of_any_strides():
    shape = (10, 3, 17)
    for x in strided(shape):
        y = on("triton", fused.locked_dropout, x, SEED, 0.4)
        assert y.is_contiguous()
        assert torch.equal(y, fused.locked_dropout(x, SEED, 0.4))
        for grad in list(strided(shape))[::2]:
            results = []
            for name in ("auto", "triton"):
                leaf = x.detach().requires_grad_()
                outputs = on(name, fused.dropout_and_regularisers, leaf, SEED, 0.4)
                grads = (grad, torch.tensor(3.0), torch.tensor(5.0))
                results.append(torch.autograd.grad(outputs, leaf, grads)[0])
            torch.testing.assert_close(*results)
    weight = torch.randn(17, 30).t().requires_grad_()
    tokens = torch.randint(30, (3, 10)).t()
    arguments = (tokens, SEED, 0.3, SEED + 1, 0.4, 2)
    expected = fused.embed_dropped(weight, *arguments)
    got = on("triton", fused.embed_dropped, weight, *arguments)
    assert torch.equal(got, expected)
    for grad in strided(shape):
        grads = [torch.autograd.grad(y, weight, grad, retain_graph=True) for y in (expected, got)]
        torch.testing.assert_close(*grads)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_dropped_is_zero_whatever_it_was():
    keep = rng.keep_mask(SEED, 40, 0.5, kind=rng.KIND_LOCKED).view(2, 20)
    for value in (float("inf"), float("nan")):
        x = torch.full((3, 2, 20), value)
        y = on("triton", fused.locked_dropout, x, SEED, 0.5)
        assert torch.equal(y == 0, (~keep).expand(3, -1, -1))
        assert not on("triton", fused.locked_dropout, x, SEED, 1.0).any()
        assert not on("triton", fused.dropout_and_regularisers, x, SEED, 1.0)[0].any()
        for drops in ((1.0, 0.0), (0.0, 1.0)):
            arguments = (torch.zeros(3, 2, dtype=torch.int64), SEED, drops[0], SEED, drops[1])
            assert not on("triton", fused.embed_dropped, x[0], *arguments).any()


def assert_near_the_truth(dtype, leaf, function, terms):
    """Assert that results and gradient are no farther from float64 than rounding takes them."""

    def results(name, x):
        x.requires_grad_()
        outputs = on(name, function, x)
        loss = 0.0
        for number, part in enumerate(outputs):
            generator = torch.Generator().manual_seed(number)
            loss = loss + (part.double() * torch.randn(part.shape, generator=generator)).sum()
        loss.backward()
        assert x.grad.dtype == outputs[0].dtype == x.dtype
        return [*(part.detach() for part in outputs), x.grad]

    ours = results("triton", leaf.clone())
    assert ours[0].dtype == dtype
    bounds = reach(lambda moved: results("reference", *moved), [leaf], terms=terms)
    assert_within(ours, results("reference", leaf.double()), bounds)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_embeddings_are_near_the_truth(dtype, shape, launches):
    steps, batch, width = shape
    tokens = torch.randint(12, (steps, batch))
    weight = torch.randn(12, width).to(dtype)
    for word_p, locked_p, padding_idx in ((0.1, 0.5, None), (0.5, 0.0, 3), (0.0, 0.1, -1)):
        masks = (SEED, word_p, SEED + 1, locked_p, padding_idx)
        assert_near_the_truth(
            dtype,
            weight,
            lambda w, masks=masks: (fused.embed_dropped(w, tokens, *masks),),
            terms=steps * batch,
        )
    assert launches == ["embed_kernel"] * 6


def test_the_padding_row_gets_no_gradient():
    tokens = torch.arange(6)[:, None]
    for padding_idx, row in ((2, 2), (-1, 5)):
        weight = torch.randn(6, 8, requires_grad=True)
        arguments = (tokens, None, 0.0, SEED, 0.5, padding_idx)
        on("triton", fused.embed_dropped, weight, *arguments).sum().backward()
        assert not weight.grad[row].any()
        assert weight.grad.any(1).sum() == 5


def test_tokens_outside_the_vocabulary_give_nan_and_read_nothing():
    guarded = torch.full((9, 8), 7.0)
    weight = guarded[2:7].detach().requires_grad_()
    tokens = torch.tensor([[0, 5], [-1, 4]], dtype=torch.int32)
    y = on("triton", fused.embed_dropped, weight, tokens, SEED, 0.9, SEED, 0.5)
    assert torch.equal(y.isnan().all(2), torch.tensor([[False, True], [True, False]]))
    assert torch.equal(y.isnan().any(2), y.isnan().all(2))
    # PyTorch's backward checks no ids: each must come to it as one of the vocabulary's.
    y = on("triton", fused.embed_dropped, weight, tokens, None, 0.0, SEED, 0.5)
    y.sum().backward()
    masked = embedding._mask_embedded(torch.ones_like(y), tokens, None, 0.0, SEED, 0.5)
    torch.testing.assert_close(weight.grad[0], masked[0, 0] + masked[1, 0])
    torch.testing.assert_close(weight.grad[4], masked[0, 1] + masked[1, 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (16, 2, 600)], ids=str)
@pytest.mark.parametrize("ar_on", ["dropped", "raw"])
def test_regularisers_are_near_the_truth(dtype, shape, ar_on, launches):
    raw = torch.randn(shape).to(dtype)
    for p in (0.0, 0.1, 0.5, 1.0):
        assert_near_the_truth(
            dtype,
            raw,
            lambda x, p=p: fused.dropout_and_regularisers(x, SEED, p, ar_on=ar_on),
            # The means are summed in pairs, and pairs of pairs.
            terms=raw.numel().bit_length(),
        )
    forward, backward = "dropout_and_means_kernel", "dropout_and_means_backward_kernel"
    assert launches == [forward, backward] * 4


@pytest.mark.parametrize("used", range(3))
@pytest.mark.parametrize("ar_on", ["dropped", "raw"])
def test_each_output_has_its_own_gradient(used, ar_on):
    grads = []
    for name in ("auto", "triton"):
        raw = torch.randn(10, 2, 17, generator=torch.Generator().manual_seed(1)).requires_grad_()
        outputs = on(name, fused.dropout_and_regularisers, raw, SEED, 0.5, ar_on=ar_on)
        grads.append(torch.autograd.grad(outputs[used].square().sum(), raw)[0])
    torch.testing.assert_close(*grads)


def test_the_means_of_one_step_and_their_dtypes():
    raw = torch.randn(1, 2, 17, dtype=torch.float16)
    _, square, difference = on("triton", fused.dropout_and_regularisers, raw, SEED, 0.5)
    assert difference.item() == 0.0
    assert square.dtype == difference.dtype == torch.float32
    assert square.shape == difference.shape == ()


def test_runs_repeat_bit_for_bit_and_a_changed_seed_draws_anew():
    raw, seed = torch.randn(20, 3, 700), SEED.clone()
    first, again = (on("triton", fused.dropout_and_regularisers, raw, seed, 0.5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    seed.add_(1)
    changed = on("triton", fused.dropout_and_regularisers, raw, seed, 0.5)
    assert not torch.equal(first[0], changed[0])
    assert torch.equal(changed[0], fused.locked_dropout(raw, seed, 0.5))


def test_empty_tensors_stay_empty():
    for shape in ((0, 2, 3), (2, 0, 3), (2, 3, 0)):
        assert on("triton", fused.locked_dropout, torch.ones(shape), SEED, 0.5).shape == shape
        tokens = torch.zeros(shape[:2], dtype=torch.int64)
        weight = torch.ones(4, shape[2], requires_grad=True)
        y = on("triton", fused.embed_dropped, weight, tokens, SEED, 0.5, SEED, 0.5)
        assert y.shape == shape
        y.sum().backward()
        assert not weight.grad.any()


def test_float64_and_other_backends_take_torch(launches):
    x = torch.randn(2, 3, 4)
    on("triton", fused.locked_dropout, x.double(), SEED, 0.5)
    on("triton", fused.dropout_and_regularisers, x.double(), SEED, 0.5)
    for name in ("auto", "torch", "eager", "reference"):
        on(name, fused.locked_dropout, x, SEED, 0.5)
    assert launches == []


def test_transforms_take_torch(launches):
    x = torch.randn(2, 3, 4)

    def function(x):
        return fused.dropout_and_regularisers(x, SEED, 0.5)[1]

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(leaf), leaf)
    assert torch.equal(on("triton", torch.func.grad(function), x), expected)
    assert launches == []


def operands():
    tokens = torch.tensor([[1, 4], [3, 3], [0, 2]], dtype=torch.int32)
    weight = torch.randn(5, 6, requires_grad=True)
    grad = torch.randn(3, 2, 6, requires_grad=True)
    raw = torch.randn(3, 2, 6, requires_grad=True)
    masks = (tokens, SEED, 0.5, SEED, 0.4)
    return {
        "locked": (dropout.locked_dropout, (raw, SEED, 0.5)),
        "embed": (embedding.embed_dropped, (weight, *masks, 2)),
        "embed-words": (embedding.embed_dropped, (weight, tokens, SEED, 0.5, None, 0.0, -1)),
        "masked": (embedding._mask_embedded, (grad, *masks)),
        "means": (regularisers.dropout_and_means, (raw, SEED, 0.5, False)),
        "means-raw": (regularisers.dropout_and_means, (raw, SEED, 0.0, True)),
    }


@pytest.mark.parametrize("name", operands())
def test_opcheck(name):
    operator, arguments = operands()[name]
    torch.library.opcheck(operator, arguments)


def test_the_second_derivatives_of_masks_are_right_and_those_of_the_means_are_refused():
    x = torch.randn(3, 2, 6, requires_grad=True)
    second = []
    for name in ("auto", "triton"):
        y = on(name, fused.locked_dropout, x, SEED, 0.5)
        (grad,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(*second)
    _, square, _ = on("triton", fused.dropout_and_regularisers, x, SEED, 0.5)
    (grad,) = torch.autograd.grad(square, x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r'backend\.use\("reference"\)'):
        grad.sum().backward()


def test_compiled_whole_they_give_the_same(launches):
    weight = torch.randn(5, 8, requires_grad=True)
    tokens = torch.tensor([[1, 4], [3, 3], [0, 2]])

    def model(weight, seed):
        x = fused.embed_dropped(weight, tokens, seed, 0.2, seed, 0.5, 2)
        x = fused.locked_dropout(x.tanh(), seed, 0.3)
        dropped, square, difference = fused.dropout_and_regularisers(x, seed, 0.5)
        return dropped.sin().sum() + 2.0 * square + difference

    results = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        loss = on("triton", call, weight, SEED)
        results.append([loss, *torch.autograd.grad(loss, weight)])
    torch.testing.assert_close(*results)
    assert len(launches) == 12
