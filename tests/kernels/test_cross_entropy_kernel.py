"""The kernel of the cross entropy: losses and gradients beside PyTorch's, in bounds and out."""

import os

import pytest
import torch
import torch.nn.functional as F

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

from ulmfit_fast import backend
from ulmfit_fast.functional import cross_entropy as fused
from ulmfit_fast.kernels import cross_entropy

DTYPES = [torch.float16, torch.float32]
pytestmark = pytest.mark.usefixtures("nan_workspaces")


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    seen, launch = [], cross_entropy.launch

    def spy(*args):
        seen.append(args)
        launch(*args)

    monkeypatch.setattr(cross_entropy, "launch", spy)
    return seen


def ours(logits, targets, **settings):
    """Return the losses; the logits become the gradient."""
    with backend.use("triton"):
        return fused.softmax_cross_entropy_(logits, targets, **settings)


def by_torch(logits, targets, **settings):
    logits = logits.detach().clone().requires_grad_()
    losses = F.cross_entropy(logits, targets, reduction="none", **settings)
    losses.sum().backward()
    return [losses.detach(), logits.grad]


def assert_near_the_truth(logits, targets, **settings):
    """Assert that losses and gradients are no farther from float64 than rounding takes them.

    exp turns what its argument is off by into a share of its value: half a unit in the last place
    of the argument, which reaches from 0 to the range of the logits. What is summed are V of them,
    in pairs of pairs; the result is rounded once more.
    """
    truth = by_torch(logits.double(), targets, **settings)
    dtype, vocab = logits.dtype, logits.shape[1]
    spread = float((logits.double().amax(1) - logits.double().amin(1)).max())
    summed = (spread + vocab.bit_length() + 4) * torch.finfo(torch.float32).eps
    got = [ours(logits, targets, **settings), logits]
    assert got[0].dtype == torch.float32
    # The losses stay in float32. A gradient of 0 has no relative error; its scale is that of the
    # probabilities.
    for our, true, stored in zip(got, truth, (0.0, torch.finfo(dtype).eps), strict=True):
        bound = (summed + stored) * (float(true.norm()) + 1e-3)
        assert float((our.double() - true).norm()) <= bound


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("vocab", [1, 17, 128, 1000, 4097, 9000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_the_truth(dtype, vocab, smoothing, launches):
    logits = (3 * torch.randn(5, vocab)).to(dtype)
    targets = torch.randint(vocab, (5,))
    targets[1], targets[2], targets[4] = vocab - 1, -100, 0
    assert_near_the_truth(logits, targets, label_smoothing=smoothing)
    assert not logits[2].any()
    assert len(launches) == 1


def test_the_vocabulary_of_wikitext():
    logits, targets = torch.randn(2, 60_008).half(), torch.tensor([60_007, 4096])
    assert_near_the_truth(logits, targets, label_smoothing=0.1)


def test_bfloat16():
    # The interpreter cuts bfloat16 off where a device rounds it; the losses stay in float32.
    logits, targets = torch.randn(3, 300).bfloat16(), torch.tensor([0, 299, -100])
    losses, grad = by_torch(logits.float(), targets)
    torch.testing.assert_close(ours(logits, targets), losses)
    torch.testing.assert_close(logits, grad.bfloat16(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("ignore_index", [-1, 3, 2**40])
def test_ignored_rows(ignore_index):
    logits, targets = torch.randn(4, 9), torch.tensor([ignore_index, 2, ignore_index, 5])
    assert_near_the_truth(logits.clone(), targets, ignore_index=ignore_index)
    logits[0], logits[2, 4] = float("nan"), float("inf")
    losses = ours(logits, targets, ignore_index=ignore_index)
    assert torch.equal(losses == 0, targets == ignore_index)
    assert not logits[::2].any()


def layouts(rows, vocab):
    """Yield a buffer and a `(rows, vocab)` view of it."""
    for width in (vocab + 3, vocab + 16):
        buffer = torch.randn(rows, width)
        yield buffer, buffer[:, 2 : 2 + vocab]
    buffer = torch.randn(vocab, rows)
    yield buffer, buffer.t()
    buffer = torch.randn(2 * rows, 3 * vocab)
    yield buffer, buffer[1::2, ::3]


def test_any_strides_and_nothing_beside_the_view_is_written():
    targets = torch.tensor([0, -100, 16, 5])
    for buffer, view in layouts(4, 17):
        expected = by_torch(view, targets)
        mark = torch.zeros_like(buffer)
        mark.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(1.0)
        before = buffer.clone()
        torch.testing.assert_close([ours(view, targets), view], expected)
        assert torch.equal(buffer[mark == 0], before[mark == 0])
    strided = torch.tensor([0, 9, -100, 9, 16, 9, 5, 9])[::2]
    logits = torch.randn(4, 17)
    expected = by_torch(logits, strided)
    torch.testing.assert_close([ours(logits, strided), logits], expected)


def test_offsets_past_two_to_the_31():
    # Of this storage three short rows alone are ever touched.
    stride = 2**30 + 8
    storage = torch.UntypedStorage(2 * (2 * stride + 17))
    logits = torch.tensor([], dtype=torch.float16).set_(storage, 0, (3, 17), (stride, 1))
    logits.copy_(torch.randn(3, 17))
    assert_near_the_truth(logits, torch.tensor([4, 0, 16]))


@pytest.mark.parametrize("shift", [-1e4, 1e4])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_shift_of_all_logits_costs_no_digits(shift, smoothing):
    logits = torch.randn(3, 5000)
    shifted = logits + shift
    exact = by_torch(shifted.double(), torch.tensor([7, 0, 4999]), label_smoothing=smoothing)
    losses = ours(shifted, torch.tensor([7, 0, 4999]), label_smoothing=smoothing)
    torch.testing.assert_close(losses.double(), exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(shifted.double(), exact[1], rtol=1e-5, atol=1e-8)


def test_classes_at_minus_infinity():
    logits = torch.randn(3, 9000)
    logits[0, :4096] = logits[1, 4096:] = logits[2, 1:] = float("-inf")
    targets = torch.tensor([5000, 7, 0])
    expected = by_torch(logits, targets)
    torch.testing.assert_close([ours(logits, targets), logits], expected)
    assert not logits[0, :4096].any()


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
def test_a_row_without_a_finite_logit_is_nan():
    for value in (float("-inf"), float("inf"), float("nan")):
        logits = torch.randn(2, 20)
        logits[0] = value
        losses = ours(logits, torch.tensor([3, 3]))
        assert losses.isnan().tolist() == [True, False]
        assert logits.isnan().all(1).tolist() == [True, False]


def test_a_target_that_is_no_class_gives_nan_and_reads_nothing():
    # Called beneath the check that targets on the CPU get.
    logits = torch.randn(4, 20)
    targets = torch.tensor([20, -1, 2**40, 3])
    losses = cross_entropy.softmax_cross_entropy_(logits, targets, -100, 0.1)
    assert losses.isnan().tolist() == [True, True, True, False]
    assert logits.isnan().all(1).tolist() == [True, True, True, False]


def test_no_rows():
    assert ours(torch.randn(0, 5), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    logits, targets = torch.randn(3, 9).to(dtype), torch.tensor([2, -100, 0])
    torch.library.opcheck(fused._softmax_cross_entropy, (logits, targets, -100, 0.1, True))


def test_compiled_whole_it_gives_the_same():
    x, targets = torch.randn(3, 9), torch.tensor([2, -100, 0])

    def step(x):
        logits = x.mul(2.0)
        return fused.softmax_cross_entropy_(logits, targets).sum(), logits

    with backend.use("triton"):
        expected = step(x)
        got = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, expected)
