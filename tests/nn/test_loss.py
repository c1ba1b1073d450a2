import math

import pytest
import torch
import torch.nn.functional as F

from ulmfit_fast.nn import LMOutput, language_model_loss


def output(steps: int = 4, dtype: torch.dtype = torch.float64) -> LMOutput:
    logits, raw, dropped = (
        torch.randn(steps, 3, width, dtype=dtype, requires_grad=True) for width in (7, 5, 5)
    )
    return LMOutput(logits, raw, dropped, [])


def targets(steps: int = 4) -> torch.Tensor:
    return torch.randint(7, (steps, 3))


def test_parts_follow_the_equations() -> None:
    out, words = output(), targets()
    loss = language_model_loss(out, words, alpha=3.0, beta=2.0)
    log_p = out.logits.log_softmax(-1)
    picked = [-log_p[t, b, words[t, b]] for t in range(4) for b in range(3)]
    cross_entropy = sum(picked) / 12
    activation = 3.0 * (out.dropped**2).sum() / (4 * 3 * 5)
    temporal = 2.0 * sum(((out.raw[t + 1] - out.raw[t]) ** 2).sum() for t in range(3)) / (3 * 3 * 5)
    assert torch.allclose(loss.cross_entropy, cross_entropy)
    assert torch.allclose(loss.activation, activation)
    assert torch.allclose(loss.temporal, temporal)
    assert torch.allclose(loss.total, cross_entropy + activation + temporal)


def test_gradients_of_the_regularisers() -> None:
    out = output()
    loss = language_model_loss(out, targets(), alpha=2.0, beta=1.0)
    (loss.activation + loss.temporal).backward()
    y = out.raw.detach()
    assert out.logits.grad is None
    assert torch.allclose(out.dropped.grad, 2 * 2.0 * out.dropped.detach() / 60)
    assert torch.allclose(out.raw.grad[1:3], 2 * (2 * y[1:3] - y[:2] - y[2:]) / 45)
    assert torch.allclose(out.raw.grad[0], 2 * (y[0] - y[1]) / 45)


def test_activation_on_raw() -> None:
    out, words = output(), targets()
    assert torch.allclose(
        language_model_loss(out, words, ar_on="raw").activation, 2 * out.raw.square().mean()
    )


def test_defaults_and_terms_left_out() -> None:
    out, words = output(), targets()
    usual = language_model_loss(out, words)
    explicit = language_model_loss(out, words, alpha=2.0, beta=1.0)
    assert all(torch.equal(a, b) for a, b in zip(usual, explicit, strict=True))
    bare = language_model_loss(out, words, alpha=0.0, beta=0.0)
    assert bare.activation == 0 and bare.temporal == 0
    assert torch.equal(bare.total, bare.cross_entropy)


def test_one_step_has_no_temporal_term() -> None:
    loss = language_model_loss(output(1), targets(1))
    assert loss.temporal == 0 and torch.isfinite(loss.total)


def test_half_precision_is_accumulated_in_float32() -> None:
    out, words = output(dtype=torch.bfloat16), targets()
    loss = language_model_loss(out, words)
    exact = language_model_loss(LMOutput(*(x.double() for x in out[:3]), []), words)
    assert all(part.dtype == torch.float32 for part in loss)
    assert all(torch.allclose(a.double(), b, rtol=1e-5) for a, b in zip(loss, exact, strict=True))
    loss.total.backward()
    assert out.logits.grad.dtype == torch.bfloat16


def test_ignored_targets_and_smoothing() -> None:
    out, words = output(), targets()
    words[2:] = -1
    loss = language_model_loss(out, words, ignore_index=-1)
    assert torch.allclose(
        loss.cross_entropy,
        language_model_loss(
            LMOutput(out.logits[:2], out.raw[:2], out.dropped[:2], []), words[:2]
        ).cross_entropy,
    )
    smooth = language_model_loss(out, words, ignore_index=-1, label_smoothing=0.1)
    expected = F.cross_entropy(
        out.logits[:2].flatten(0, 1), words[:2].flatten(), label_smoothing=0.1
    )
    assert torch.allclose(smooth.cross_entropy, expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1], ids=str)
def test_a_batch_of_ignored_targets_alone_trains_nothing(label_smoothing: float) -> None:
    out, words = output(), torch.full((4, 3), -100)
    loss = language_model_loss(out, words, label_smoothing=label_smoothing)
    assert loss.cross_entropy == 0
    assert torch.equal(loss.total, loss.activation + loss.temporal)
    loss.total.backward()
    assert torch.equal(out.logits.grad, torch.zeros_like(out.logits))


def test_no_targets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets have shape \(0, 3\), expected at least one"):
        language_model_loss(output(0), targets(0))


@pytest.mark.parametrize(
    ("kwargs", "words", "error", "message"),
    [
        ({}, targets(3), ValueError, r"targets must be \(4, 3\) like the output, got \(3, 3\)"),
        ({}, targets().float(), TypeError, r"int64 ids, got torch\.float32"),
        ({"alpha": -1.0}, targets(), ValueError, r"alpha must be at least 0, got -1\.0"),
        ({"beta": math.nan}, targets(), ValueError, "beta must be at least 0, got nan"),
        ({"label_smoothing": 1.5}, targets(), ValueError, r"must be in \[0, 1\], got 1\.5"),
        ({"ar_on": "both"}, targets(), ValueError, "ar_on must be 'dropped' or 'raw', got 'both'"),
    ],
    ids=["shape", "dtype", "alpha", "beta", "smoothing", "ar_on"],
)
def test_refuses(kwargs, words, error, message) -> None:
    with pytest.raises(error, match=message):
        language_model_loss(output(), words, **kwargs)
