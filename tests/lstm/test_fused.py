"""The fused steps in torch operations, as on a machine without a GPU; see tests/kernels."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from ulmfit_fast import backend, rng
from ulmfit_fast.functional import cross_entropy, dropout
from ulmfit_fast.functional.cross_entropy import softmax_cross_entropy_

SEED = torch.tensor(2**62 + 12345)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def scaled(x, keep, p):
    """Multiply a float32 mask by x, as it was before this was one function."""
    return (x * (keep.to(torch.promote_types(x.dtype, torch.float32)) / (1 - p))).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_locked_dropout_is_the_mask_of_rng(dtype):
    x = torch.randn(4, 3, 7).to(dtype)
    keep = rng.keep_mask(SEED, 21, 0.4, kind=rng.KIND_LOCKED).view(1, 3, 7)
    assert torch.equal(dropout.locked_dropout(x, SEED, 0.4), scaled(x, keep, 0.4))
    assert dropout.locked_dropout(x, SEED, 0.0) is x
    assert not dropout.locked_dropout(x, SEED, 1.0).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embed_dropped_is_a_lookup_and_both_masks(dtype):
    weight, tokens = torch.randn(9, 6).to(dtype), torch.randint(9, (5, 4))
    words = rng.embedding_keep(SEED, tokens, 0.3)[:, :, None]
    once = scaled(F.embedding(tokens, weight), words, 0.3)
    twice = dropout.locked_dropout(once, SEED + 1, 0.5)
    assert torch.equal(dropout.embed_dropped(weight, tokens, SEED, 0.3, None, 0.0), once)
    assert torch.equal(dropout.embed_dropped(weight, tokens, SEED, 0.3, SEED + 1, 0.5), twice)
    plain = dropout.embed_dropped(weight, tokens, None, 0.0, None, 0.0)
    assert torch.equal(plain, F.embedding(tokens, weight))


def test_embed_dropped_gives_padding_no_gradient():
    weight = torch.randn(4, 3, requires_grad=True)
    dropout.embed_dropped(
        weight, torch.arange(4)[:, None], None, 0.0, SEED, 0.5, 2
    ).sum().backward()
    assert not weight.grad[2].any()
    assert weight.grad.any(1).sum() == 3


@pytest.mark.parametrize("ar_on", ["dropped", "raw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_means_are_those_of_the_loss(dtype, ar_on):
    raw = torch.randn(5, 3, 7).to(dtype)
    dropped, square, difference = dropout.dropout_and_regularisers(raw, SEED, 0.4, ar_on=ar_on)
    assert torch.equal(dropped, dropout.locked_dropout(raw, SEED, 0.4))
    wide = raw if dtype == torch.float64 else raw.float()
    assert square.dtype == difference.dtype == wide.dtype
    active = wide if ar_on == "raw" else dropped.to(wide.dtype)
    assert torch.equal(square, active.square().mean())
    assert torch.equal(difference, (wide[1:] - wide[:-1]).square().mean())
    assert dropout.dropout_and_regularisers(raw[:1], SEED, 0.4)[2].item() == 0.0
    assert torch.equal(dropout.dropout_and_regularisers(raw, None, 0.0)[0], raw)


@pytest.mark.parametrize("ar_on", ["dropped", "raw"])
def test_the_regularisers_have_first_and_second_derivatives(ar_on):
    raw = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)

    def function(x):
        return dropout.dropout_and_regularisers(x, SEED, 0.4, ar_on=ar_on)

    assert torch.autograd.gradcheck(function, raw)
    assert torch.autograd.gradgradcheck(function, raw)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy_leaves_the_gradient_in_the_logits(dtype, smoothing):
    for vocab in (1, 17, 300):
        targets = torch.randint(vocab, (6,))
        targets[::4] = -100
        buffer = torch.randn(6, vocab + 3).to(dtype)
        logits = buffer[:, :vocab]
        wide = logits.detach().double().requires_grad_()
        expected = F.cross_entropy(wide, targets, reduction="none", label_smoothing=smoothing)
        expected.sum().backward()
        beside = buffer[:, vocab:].clone()
        losses = softmax_cross_entropy_(logits, targets, label_smoothing=smoothing)
        assert losses.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(losses, expected.detach().to(losses.dtype), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(logits, wide.grad.to(dtype))
        assert torch.equal(buffer[:, vocab:], beside)
        assert not logits[::4].any()


def test_cross_entropy_with_no_row_that_counts_or_no_row_at_all():
    logits = torch.randn(3, 4)
    losses = softmax_cross_entropy_(logits, torch.full((3,), 2), ignore_index=2)
    assert not losses.any() and not logits.any()
    assert softmax_cross_entropy_(torch.randn(0, 4), torch.zeros(0).long()).shape == (0,)


def test_cross_entropy_refuses_what_it_would_overwrite_in_silence():
    logits = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"pass logits\.detach\(\)"):
        softmax_cross_entropy_(logits * 2, torch.tensor([0, 1]))
    with torch.no_grad():
        softmax_cross_entropy_(logits * 2, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("shape", "targets", "error", "match"),
    [
        ((2, 3), torch.tensor([0, 3]), ValueError, r"target 3 is outside \[0, 3\)"),
        ((2, 3), torch.tensor([-1, 1]), ValueError, r"target -1 is outside \[0, 3\)"),
        ((2, 3), torch.tensor([0.0, 1.0]), TypeError, r"int64 ids, got torch\.float32"),
        ((2, 3), torch.tensor([0]), ValueError, r"shape \(1,\) on cpu, expected \(2,\)"),
        ((2, 1, 3), torch.tensor([0, 1]), ValueError, r"\(2, 1, 3\), expected \(N, V\)"),
        ((2, 0), torch.tensor([0, 1]), ValueError, r"at least one class"),
    ],
)
def test_cross_entropy_says_what_does_not_fit(shape, targets, error, match):
    with pytest.raises(error, match=match):
        softmax_cross_entropy_(torch.zeros(shape), targets)


def test_other_errors_name_the_value():
    x, tokens, weight = torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), torch.zeros(5, 4)
    for call, match in (
        (lambda: dropout.locked_dropout(x[0], SEED, 0.5), r"got shape \(3, 4\)"),
        (lambda: dropout.locked_dropout(x, SEED, 1.5), r"p is 1\.5, expected a probability"),
        (lambda: dropout.locked_dropout(x, SEED.float(), 0.5), r"expected a 0-d int64"),
        (lambda: dropout.embed_dropped(weight, tokens[0], SEED, 0.5, SEED, 0.5), r"shape \(3,\)"),
        (lambda: dropout.embed_dropped(weight, tokens, None, 0.5, None, 0), r"seed is None"),
        (lambda: dropout.embed_dropped(weight, tokens, SEED, 0.5, SEED, -1), r"p_locked is -1"),
        (lambda: dropout.embed_dropped(weight, tokens.to("meta"), SEED, 0.5, SEED, 0), r"on meta"),
        (lambda: dropout.dropout_and_regularisers(x[:0], SEED, 0.5), r"shape \(0, 3, 4\)"),
        (lambda: dropout.dropout_and_regularisers(x, None, 0.5), r"seed is None"),
        (lambda: dropout.dropout_and_regularisers(x, SEED, 0.5, ar_on="all"), r"got 'all'"),
        (
            lambda: softmax_cross_entropy_(x[0], tokens[0], label_smoothing=2),
            r"smoothing is",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match=r"logits are torch\.int64"):
        softmax_cross_entropy_(tokens, tokens[:, 0])


def model(weight, seed):
    tokens = torch.tensor([[1, 4], [3, 3], [0, 2]])
    x = dropout.embed_dropped(weight, tokens, seed, 0.2, seed, 0.5, 2)
    x = dropout.locked_dropout(x.tanh(), seed, 0.3)
    dropped, square, difference = dropout.dropout_and_regularisers(x, seed, 0.5)
    logits = dropped.detach().flatten(0, 1).mul(2.0)
    losses = softmax_cross_entropy_(logits, tokens.flatten(), label_smoothing=0.1)
    return (dropped.flatten(0, 1) * logits).sum() + square + difference + losses.sum()


def test_compiled_whole_they_give_the_same():
    weight = torch.randn(5, 8, requires_grad=True)
    results = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        loss = call(weight, SEED)
        results.append([loss, *torch.autograd.grad(loss, weight)])
    torch.testing.assert_close(*results)


def test_opcheck():
    for dtype in DTYPES:
        logits, targets = torch.randn(3, 9).to(dtype), torch.tensor([2, -100, 0])
        torch.library.opcheck(
            cross_entropy._softmax_cross_entropy, (logits, targets, -100, 0.1, False)
        )


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="there the kernels can run on the CPU"
)
def test_a_forced_triton_takes_torch_where_no_kernel_can_run():
    x = torch.randn(3, 2, 4)
    with backend.use("triton"):
        assert torch.equal(
            dropout.locked_dropout(x, SEED, 0.5),
            scaled(x, rng.keep_mask(SEED, 8, 0.5, kind=rng.KIND_LOCKED).view(1, 2, 4), 0.5),
        )


def test_importing_them_does_not_import_triton():
    code = "import sys, ulmfit_fast.functional.dropout; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
