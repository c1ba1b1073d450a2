"""Steps in bfloat16, and with gradients that are scaled as for float16."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import KINDS, SETTINGS, documents, make, train
from torch import nn
from torch.amp import GradScaler
from torch.optim import Adam, AdamW

from ulmfit_fast.data import ClassifierBatches
from ulmfit_fast.training.classifier_step import ClassifierStep
from ulmfit_fast.training.evaluation import predict_logits
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.stages import (
    perplexity,
)


def _batches():
    return ClassifierBatches(documents(), np.arange(12) % 2, 12, shuffle=True)


@KINDS
def test_bfloat16_trains_near_float32_and_keeps_the_weights(kind):
    settings = replace(SETTINGS, epochs=2, lr=1e-3, batch_size=12)
    plain, half = (make(kind) for _ in range(2))
    for model in (plain, half):
        with torch.no_grad():  # BatchNorm blows up what hardly differs from text to text.
            next(model.parameters()).mul_(40)
        for module in model.modules():
            if isinstance(module, nn.Dropout):  # Another dtype draws other masks there.
                module.p = 0.0
    torch.manual_seed(1)
    first = train(plain, settings)
    torch.manual_seed(1)
    second = train(half, replace(settings, precision="bfloat16"))
    assert second.losses[0] == pytest.approx(first.losses[0], rel=2e-2)
    assert second.losses != first.losses
    assert all(p.dtype == torch.float32 for p in half.parameters())
    if kind == "language model":
        full, low = (perplexity(half, documents(), precision=p) for p in ("float32", "bfloat16"))
    else:
        full = predict_logits(half, _batches(), 12)
        low = predict_logits(half, _batches(), 12, autocast=torch.bfloat16)
        full, low = full.softmax(1)[:, 0].mean().item(), low.softmax(1)[:, 0].mean().item()
    assert low == pytest.approx(full, rel=5e-2) and low != full


@KINDS
def test_float16_is_refused_without_cuda(kind):
    with pytest.raises(ValueError, match="the model is on cpu, expected CUDA"):
        train(make(kind), replace(SETTINGS, precision="float16"))


@pytest.mark.parametrize("clip", [None, 0.05])
def test_scaled_gradients_train_as_others(clip):
    """The scaler works on the CPU too; its powers of two leave every bit of a gradient."""

    def trained(scaler):
        model = make("language model").double()
        optimizer = Adam(model.parameters(), lr=0.01, fused=True)
        step = LanguageModelStep(
            model, optimizer, objective=Objective(clip=clip, precision=Precision(None, scaler))
        )
        torch.manual_seed(1)
        text = torch.randint(2, 14, (25, 3))
        losses = [step(text[n : n + 5], text[n + 1 : n + 6]).total.item() for n in range(0, 20, 5)]
        return losses, [p.detach() for p in model.parameters()]

    plain, scaled = trained(None), trained(GradScaler("cpu"))
    assert scaled[0] == pytest.approx(plain[0], rel=1e-12)
    for a, b in zip(plain[1], scaled[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_scaled_step_that_overflows_changes_no_parameter_and_lowers_the_scale():
    model = make("language model")
    scaler = GradScaler("cpu", init_scale=2.0**20)
    optimizer = Adam(model.parameters(), lr=0.01, fused=True)
    objective = Objective(precision=Precision(None, scaler))
    step = LanguageModelStep(model, optimizer, objective=objective)
    text = torch.randint(2, 14, (6, 3))
    model.decoder.bias.register_hook(lambda grad: grad * math.inf)
    before = copy.deepcopy(model.state_dict())
    step(text[:-1], text[1:])
    assert scaler.get_scale() == 2.0**19
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


def test_a_scaled_loss_that_is_not_finite_changes_no_parameter_from_there_on():
    model = make("language model")
    scaler = GradScaler("cpu")
    objective = Objective(precision=Precision(None, scaler))
    optimizer = Adam(model.parameters(), lr=0.01, fused=True)
    step = LanguageModelStep(model, optimizer, objective=objective)
    step.waits = False
    text = torch.randint(2, 14, (6, 3))
    step(text[:-1], text[1:])
    before = copy.deepcopy(model.state_dict())
    handle = model.decoder.register_forward_hook(lambda *args: args[2] * math.inf)
    assert not math.isfinite(step(text[:-1], text[1:]).total)
    handle.remove()
    step(text[:-1], text[1:])
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


def test_a_scaled_classifier_step_is_the_plain_one():
    results = []
    for precision in (Precision(), Precision(None, GradScaler("cpu"))):
        model = make("classifier").double()
        optimizer = AdamW(model.parameters(), lr=0.01, fused=True)
        (batch,) = _batches()
        torch.manual_seed(2)
        objective = Objective(clip=0.1, precision=precision)
        step = ClassifierStep(model.train(), optimizer, objective=objective)
        losses = [step(*batch) for _ in range(3)]
        results.append((np.array(losses), [p.detach() for p in model.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_long_run_in_bfloat16_stays_finite_and_learns():
    settings = replace(SETTINGS, epochs=120, precision="bfloat16", clip=0.5, bptt=7, lr=0.03)
    losses = train(make("language model"), settings).losses
    assert len(losses) >= 240 and np.isfinite(losses).all()
    assert np.mean(losses[-30:]) < np.mean(losses[:30]) - 0.05
