"""Fifty steps of training, with the same data and masks, give the loss curves of fastai."""

import pytest
import torch
from fastai_learners import corpus, lm_learner
from fastai_parts import (
    NO_DROPOUT,
    VOCAB,
    drawing,
    fastai,
    language_models,
    recording,
    replaying,
    their_loss,
)

from ulmfit_fast.compat.fastai import accelerate, from_fastai, to_fastai
from ulmfit_fast.data import LMBatches
from ulmfit_fast.nn import detach_state
from ulmfit_fast.optim import OneCycleLR

STEPS = 50


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.7, 0.99), weight_decay=0.01)


def batches():
    """Return fifty batches of a stream with something to learn, (T, B) as ours are."""
    stream = torch.randint(9, VOCAB, (1600,)).cumsum(0) % 7 + 9
    found = list(LMBatches(stream, batch_size=4, bptt=8))
    assert len(found) == STEPS
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("dropout", [{}, NO_DROPOUT], ids=["dropout", "no dropout"])
def test_loss_curves_of_our_language_model(dtype, tolerance, dropout):
    old, new = language_models(dtype, **dropout)
    data = batches()
    curve, masks, state = [], [], None
    optimizer = optimizer_of(new)
    for tokens, targets in data:
        with recording(seeds := []):
            loss, state = new.loss(tokens, targets, state)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        state = detach_state(state)
        curve.append([loss.cross_entropy.item(), loss.total.item()])
        masks.append(seeds)
    theirs = []
    optimizer = optimizer_of(old)
    for (tokens, targets), seeds in zip(data, masks, strict=True):
        with replaying(seeds):
            loss, total = their_loss(old, tokens, targets)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        theirs.append([loss.item(), total.item()])
    ours, theirs = torch.tensor(curve), torch.tensor(theirs)
    assert ours[-1, 0] < ours[0, 0] - 1.0
    assert len(masks[0]) == (3 if dropout else 8)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for name, value in to_fastai(new).items():
        torch.testing.assert_close(
            value, old.state_dict()[name], rtol=0, atol=tolerance * 100, msg=name
        )


def test_loss_curves_of_an_accelerated_learner(tmp_path, in_float64):
    curves, recorded = [], []
    for accelerated in (True, False):
        fastai.set_seed(0)
        learn = lm_learner(tmp_path, corpus(texts=24))
        if accelerated:
            accelerate(learn)
            with recording(recorded), drawing():
                learn.fit_one_cycle(4, 1e-2)
        else:
            with replaying(recorded):
                learn.fit_one_cycle(4, 1e-2)
        losses = [float(loss) for loss in learn.recorder.losses]
        curves.append([*losses, *(row[1] for row in learn.recorder.values)])
    assert len(recorded) == 8 * len(losses) >= 8 * STEPS
    assert curves[0][-1] < curves[0][0] - 0.1
    assert curves[0] == pytest.approx(curves[1], abs=1e-10)


def test_fastai_s_loop_and_a_plain_one_train_equally(tmp_path, in_float64):
    # Its data, optimizer, one-cycle schedule, resets and regularisers against PyTorch and ours.
    fastai.set_seed(0)
    learn = lm_learner(tmp_path, corpus(texts=24), **NO_DROPOUT)
    model = from_fastai(learn.model.state_dict(), **NO_DROPOUT).train()
    seen = []

    class Watcher(fastai.Callback):
        def after_batch(self):
            if self.training:
                x, y = (part[0].as_subclass(torch.Tensor).t() for part in (self.xb, self.yb))
                seen.append((self.epoch, x, y, self.loss.item()))

    learn.fit_one_cycle(4, 1e-2, cbs=Watcher())
    weights, biases = [], []
    for name, parameter in model.named_parameters():
        # fastai exempts the bias of linear layers from decay, but not those of an LSTM.
        (biases if name == "decoder.bias" else weights).append(parameter)
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.99), eps=1e-5)
    scheduler = OneCycleLR(optimizer, total_steps=len(seen))
    epoch_before, curve = -1, []
    for epoch, x, y, _ in seen:
        if epoch > epoch_before:
            epoch_before, state = epoch, None
        loss, state = model.loss(x, y, state, alpha=2.0, beta=1.0)
        loss.total.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        state = detach_state(state)
        curve.append(loss.cross_entropy.item())
    assert len(curve) >= STEPS and curve[-1] < curve[0] - 0.1
    assert curve == pytest.approx([row[3] for row in seen], abs=1e-10)
    for name, value in to_fastai(model).items():
        torch.testing.assert_close(value, learn.model.state_dict()[name], rtol=0, atol=1e-9)
