"""The cross entropy of the C kernels, three-way against float64, and the activations in it."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from c_kernels import Listener, assert_same_bits, needed, switched_off, threads
from rounding import errors, reach

from ulmfit_fast import backend
from ulmfit_fast.functional.cross_entropy import linear_cross_entropy, softmax_cross_entropy_
from ulmfit_fast.kernels.cpu import cross_entropy, library

pytestmark = pytest.mark.usefixtures("_compiled")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SMOOTHINGS = pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
INF, NAN = float("inf"), float("nan")


@pytest.fixture
def _compiled():
    needed()


@pytest.fixture
def listener(monkeypatch):
    return Listener(monkeypatch, cross_entropy)


def problem(rows, classes, dtype, spread=3.0):
    logits = (torch.randn(rows, classes) * spread).to(dtype)
    targets = torch.randint(classes, (rows,))
    targets[3::5] = -100
    return logits, targets


def side_by_side(logits):
    return logits.clone()


def of_a_wider_one(logits):
    wide = logits.new_full((logits.shape[0], logits.shape[1] + 5), NAN)
    return wide[:, 2:-3].copy_(logits)


def misaligned(logits):
    return logits.new_empty(logits.numel() + 1)[1:].view(logits.shape).copy_(logits)


def of_row_zero(logits):
    """Return rows of the same class apart, as the kernel does not read them."""
    return logits.t().contiguous().t()


def losses_and_gradient(logits, targets, smoothing, bias=None):
    leaf = logits.detach().clone().requires_grad_()
    wide = leaf if leaf.dtype == torch.float64 else leaf.float()
    wide = wide if bias is None else wide + bias.to(wide.dtype)
    losses = F.cross_entropy(wide, targets, reduction="none", label_smoothing=smoothing)
    return [losses.detach(), *torch.autograd.grad(losses.sum(), leaf)]


@DTYPES
@SMOOTHINGS
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(
    "layout", [side_by_side, of_a_wider_one, misaligned], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("classes", [2, 17, 70, 2048, 2049, 6001])
def test_error_is_at_most_twice_that_of_torch(classes, layout, biased, smoothing, dtype):
    ours, theirs = torch.zeros(3, 2), torch.zeros(3, 2)
    for draw in range(3):
        logits, targets = problem(11, classes, dtype)
        bias = torch.randn(classes) if biased else None
        truth = losses_and_gradient(logits.double(), targets, smoothing, bias)
        laid = layout(logits)
        losses = cross_entropy.softmax_cross_entropy_(laid, targets, bias, -100, smoothing)
        assert losses.dtype == torch.float32
        ours[draw] = torch.tensor(errors([losses, laid], truth))
        theirs[draw] = torch.tensor(
            errors(losses_and_gradient(logits, targets, smoothing, bias), truth)
        )
    # A loss is rounded to float32, a gradient to its own dtype, both at least once.
    floor = torch.tensor([torch.finfo(torch.float32).eps, torch.finfo(dtype).eps])
    assert (ours.mean(0) <= torch.maximum(2 * theirs.mean(0), floor)).all()


@DTYPES
def test_a_single_class_is_no_question(dtype):
    logits = torch.randn(5, 1).to(dtype)
    losses = softmax_cross_entropy_(logits, torch.zeros(5, dtype=torch.int64), label_smoothing=0.1)
    assert losses.abs().max() < 1e-6 and logits.abs().max() < 1e-6


def rows_of(classes):
    """Return rows as training meets them when something has gone wrong, each with its name."""
    plain = torch.linspace(-4, 4, classes)
    some, first, last = (plain.clone() for _ in range(3))
    some[::3] = -INF
    first[: classes // 2] = -INF
    last[classes // 2 :] = -INF
    rising, steep = torch.arange(float(classes)), torch.linspace(-2e4, 2e4, classes)
    rows = {"some": some, "first": first, "last": last, "rising": rising, "falling": -rising}
    rows |= {"steep": steep, "huge": plain * 1e38, "none": torch.full((classes,), -INF)}
    for name, value in (("plus", INF), ("nan", NAN)):
        for where in (0, classes // 2, classes - 1):
            for others, base in (("", plain), ("-alone", rows["none"])):
                row = rows[f"{name}{where}{others}"] = base.clone()
                row[where] = value
    return rows


@DTYPES
@SMOOTHINGS
@pytest.mark.parametrize("classes", [5, 70, 6001])
def test_infinities_and_nan_mean_what_they_do_in_torch(classes, smoothing, dtype, listener):
    rows = rows_of(classes)
    logits = torch.stack(list(rows.values())).to(dtype)
    for target in (0, 1, classes // 2, classes - 1):
        targets = torch.full((len(rows),), target)
        got, wanted = logits.clone(), logits.clone()
        losses = softmax_cross_entropy_(got, targets, label_smoothing=smoothing)
        assert listener.heard()
        with switched_off():
            expected = softmax_cross_entropy_(wanted, targets, label_smoothing=smoothing)
        for index, name in enumerate(rows):
            kept = {"equal_nan": True, "msg": lambda text, name=name: f"{name}: {text}"}
            torch.testing.assert_close(losses[index], expected[index], rtol=1e-5, atol=1e-5, **kept)
            atol = 1e-6 if dtype == torch.float32 else 1e-3
            torch.testing.assert_close(got[index], wanted[index], rtol=1e-2, atol=atol, **kept)


@DTYPES
@pytest.mark.parametrize("ignore_index", [-100, 3, 2**40])
def test_what_is_ignored_is_0_whatever_it_was(ignore_index, dtype):
    logits = torch.randn(4, 70).to(dtype)
    logits[1], logits[2] = NAN, INF
    targets = torch.tensor([2, ignore_index, ignore_index, 5])
    losses = softmax_cross_entropy_(logits, targets, ignore_index=ignore_index)
    assert losses.isfinite().all() and logits.isfinite().all()
    assert not losses[1:3].any() and not logits[1:3].any()
    assert (losses[::3] > 0).all() and logits[::3].any(1).all()


@DTYPES
@pytest.mark.parametrize("wrong", [-1, 70, 2**40, -(2**62)])
@pytest.mark.parametrize("gradient", [True, False])
def test_a_target_that_is_no_class_raises_and_writes_nowhere_else(wrong, gradient, dtype):
    logits, targets = problem(6, 70, dtype)
    wanted = logits.clone()
    targets[2] = wrong
    guarded = torch.full((8, 70), 7.0, dtype=dtype)
    guarded[1:-1] = logits
    with pytest.raises(IndexError, match=r"1 targets are outside \[0, 70\)"):
        cross_entropy.softmax_cross_entropy_(
            guarded[1:-1], targets, None, -100, 0.1, gradient=gradient
        )
    assert (guarded[::7] == 7.0).all()
    assert torch.equal(guarded[1:-1], wanted) != gradient
    with pytest.raises(ValueError, match=f"target {wrong} is outside"):
        softmax_cross_entropy_(logits, targets)


@DTYPES
@SMOOTHINGS
def test_without_a_gradient_the_losses_are_the_same_bits(smoothing, dtype):
    logits, targets = problem(11, 6001, dtype)
    kept, bias = logits.clone(), torch.randn(6001)
    arguments = targets, bias, -100, smoothing
    without = cross_entropy.softmax_cross_entropy_(logits, *arguments, gradient=False)
    assert torch.equal(logits, kept)
    assert_same_bits(without, cross_entropy.softmax_cross_entropy_(logits, *arguments))


def computed(dtype):
    logits, targets = problem(301, 2500, dtype)
    losses = softmax_cross_entropy_(logits, targets, label_smoothing=0.1)
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((301, 8), (2500, 8), (2500,)))
    mean = linear_cross_entropy(x, weight, bias, targets, chunk_rows=100)
    return losses, logits, mean


@DTYPES
def test_threads_change_no_bit(dtype, listener):
    results = []
    for count in (1, 2, 7):
        torch.manual_seed(3)
        with threads(count):
            results.append(computed(dtype)[:2])
            assert listener.heard()
    for losses, gradient in results[1:]:
        assert_same_bits(losses, results[0][0])
        assert_same_bits(gradient, results[0][1])


@DTYPES
def test_two_python_threads_compute_at_once(dtype):
    logits, targets = problem(301, 2500, dtype)

    def compute(_):
        mine = logits.clone()
        return softmax_cross_entropy_(mine, targets), mine

    wanted = compute(0)
    with threads(2), ThreadPoolExecutor(2) as pool:
        for got in pool.map(compute, range(8)):
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@DTYPES
@pytest.mark.usefixtures("nan_workspaces")
def test_no_element_is_read_before_it_is_written(dtype):
    losses, gradient, mean = computed(dtype)
    assert all(value.isfinite().all() for value in (losses, gradient, mean))


@DTYPES
def test_logits_that_lie_otherwise_are_torch_operations(dtype, listener):
    logits, targets = problem(11, 70, dtype)
    across = of_row_zero(logits)
    losses = softmax_cross_entropy_(across, targets)
    assert not listener.heard()
    torch.testing.assert_close(losses, softmax_cross_entropy_(logits, targets))
    assert listener.heard()
    torch.testing.assert_close(across, logits)
    # Rows on top of each other could not all hold their gradient.
    assert not cross_entropy.can_read(torch.zeros(70).expand(3, 70))


@pytest.mark.parametrize("name", ["torch", "eager", "reference"])
def test_a_backend_of_torch_operations_rules_the_loss_too(name, listener):
    logits, targets = problem(11, 70, torch.float32)
    x, weight = torch.randn(11, 8), torch.randn(70, 8)
    with backend.use(name):
        softmax_cross_entropy_(logits, targets)
        linear_cross_entropy(x, weight, None, targets)
    assert not listener.heard()
    linear_cross_entropy(x, weight, None, targets)
    assert listener.heard()


@DTYPES
@SMOOTHINGS
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no-bias"])
def test_the_decoder_s_loss_and_gradients_three_ways(biased, smoothing, dtype, listener):
    x, weight, bias = (
        torch.randn(shape).to(dtype).requires_grad_() for shape in ((200, 32), (50, 32), (50,))
    )
    inputs = [x, weight, bias] if biased else [x, weight]
    targets = torch.randint(50, (200,))
    targets[::5] = -100

    def by(function, operands):
        leaves = [operand.detach().requires_grad_() for operand in operands]
        loss = function(*leaves, *[None] * (3 - len(leaves)))
        return [loss, *torch.autograd.grad(loss, leaves)]

    def plain(x, weight, bias):
        logits = F.linear(x, weight, bias)
        wide = torch.promote_types(
            dtype if logits.dtype != torch.float64 else logits.dtype, torch.float32
        )
        return F.cross_entropy(logits.to(wide), targets, label_smoothing=smoothing)

    def ours(x, weight, bias):
        return linear_cross_entropy(
            x, weight, bias, targets, label_smoothing=smoothing, chunk_rows=48
        )

    truth = by(plain, [operand.double() for operand in inputs])
    bounds = reach(lambda operands: by(plain, operands), inputs, terms=200)
    got = by(ours, inputs)
    assert listener.heard()
    named = zip(
        ("loss", "x", "weight", "bias"),
        errors(got, truth),
        errors(by(plain, inputs), truth),
        bounds,
        strict=False,
    )
    for name, mine, theirs, bound in named:
        assert mine <= max(2 * theirs, bound), name
    with torch.no_grad():
        without = ours(*inputs, *[None] * (3 - len(inputs)))
    assert listener.heard()
    assert torch.equal(without, got[0])


# In units in the last place of float32; measured over all of them: 1.1, 2.0 and 3.0.
ACTIVATIONS = {"exp": (0, 1.5), "sigmoid": (1, 2.5), "tanh": (2, 3.5)}
SPECIALS = [0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 1.1754944e-38, INF, -INF, NAN, 3.4e38, -3.4e38]


def activated(x, which):
    y = torch.full_like(x, NAN)
    compute = library.library().activations
    compute.restype, compute.argtypes = None, [*[ctypes.c_void_p] * 2, ctypes.c_int64, ctypes.c_int]
    compute(x.data_ptr(), y.data_ptr(), x.numel(), which)
    return y


def all_kinds_of_numbers():
    # Each 4099th of all float32, the infinities, NaN and denormals among them, in no power of two.
    bits = torch.arange(-(2**31), 2**31, 4099).to(torch.int32)
    near = torch.cat([torch.linspace(-110, 110, 400_003), torch.linspace(-1, 1, 100_003)])
    return torch.cat([bits.view(torch.float32), near, torch.tensor(SPECIALS)])


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_are_within_a_few_units_in_the_last_place(name):
    which, bound = ACTIVATIONS[name]
    x = all_kinds_of_numbers()
    y, truth = activated(x, which), getattr(torch, name)(x.double())
    assert torch.equal(y.isnan(), x.isnan())
    rounded = truth.float()
    assert torch.equal(y[rounded.isinf()], rounded[rounded.isinf()])
    _, exponent = torch.frexp(truth.abs().clamp(min=2.0**-126))
    unit = torch.ldexp(torch.ones_like(truth), exponent - 24)
    off = ((y.double() - truth).abs() / unit)[rounded.isfinite()]
    if name == "sigmoid":
        # Below the normal numbers it is 0 at once, for e**x is infinite there.
        tiny = (truth < 2.0**-126)[rounded.isfinite()]
        assert (y[rounded.isfinite()][tiny] <= 2.0**-126).all()
        off = off[~tiny]
    assert off.max() <= bound
    assert off.numel() > 10**6


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_of_zeros_and_infinities(name):
    which, _ = ACTIVATIONS[name]
    x = torch.tensor([0.0, -0.0, INF, -INF, NAN])
    assert_same_bits(activated(x, which), getattr(torch, name)(x))


def test_bfloat16_is_rounded_as_torch_rounds_it():
    x = all_kinds_of_numbers()
    assert_same_bits(activated(x, 3), x.bfloat16().float())
