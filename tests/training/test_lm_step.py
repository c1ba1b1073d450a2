"""A language model's loss without logits, and the training step that does not wait."""

import copy
import gc
import math
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from ulmfit_fast import SlantedTriangularLR
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel, LMLoss, language_model_loss
from ulmfit_fast.optim import OneCycleLR
from ulmfit_fast.training import lm_step
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.readings import LossReadings

WORDS = 30
NONE = dict.fromkeys(("input_p", "hidden_p", "embed_p", "weight_p", "output_p"), 0.0)
DROPOUTS = {"input_p": 0.2, "hidden_p": 0.2, "embed_p": 0.1, "weight_p": 0.3, "output_p": 0.2}


def make_model(**changes):
    torch.manual_seed(1)
    config = AWDLSTMConfig(WORDS, emb_size=6, hidden_size=8, **{**DROPOUTS, **changes})
    return LanguageModel(config).double()


def text(steps=7, batch=3, seed=2):
    ids = torch.randint(WORDS, (steps + 1, batch), generator=torch.Generator().manual_seed(seed))
    return ids[:-1], ids[1:]


def trained(model, step, steps=8, shape=(7, 3), seed=4):
    torch.manual_seed(seed)
    losses = [step(*text(*shape, seed=n)).total.item() for n in range(steps)]
    return losses, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 0.0, "beta": 0.0},
        {"alpha": 3.0, "beta": 0.0, "ar_on": "raw"},
        {"label_smoothing": 0.1, "ignore_index": 4},
    ],
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_loss_is_that_of_the_logits(training, options, tied):
    model = make_model(tie_weights=tied).train(training)
    inputs, targets = text()
    torch.manual_seed(3)
    output = model(inputs)
    wanted = language_model_loss(output, targets, **options)
    torch.manual_seed(3)
    loss, state = model.loss(inputs, targets, **options)
    for got, want in zip(loss, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    for got, want in zip(state, output.state, strict=True):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(part.total, parameters) for part in (loss, wanted)]
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


def test_loss_sees_hooks_and_another_decoder():
    model, seen = make_model(), []
    inputs, targets = text()
    handle = model.decoder.register_forward_hook(lambda *_: seen.append("decoder"))
    model.loss(inputs, targets)
    handle.remove()
    model.register_forward_hook(lambda *_: seen.append("model"))
    model.loss(inputs, targets)
    assert seen == ["decoder", "model"]
    model = make_model()
    model.decoder = nn.Sequential(model.decoder, nn.Softplus())
    torch.manual_seed(3)
    loss, _ = model.loss(inputs, targets)
    torch.manual_seed(3)
    assert torch.equal(loss.total, language_model_loss(model(inputs), targets).total)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_step_is_the_plain_one(clip):
    model = make_model()
    twin = copy.deepcopy(model)
    optimizer = AdamW(model.parameters(), lr=0.01, fused=True)
    scheduler = SlantedTriangularLR(optimizer, 8)
    step = LanguageModelStep(model, optimizer, scheduler, objective=Objective(clip=clip))
    losses, values = trained(model, step)

    other = AdamW(twin.parameters(), lr=0.01)
    schedule = SlantedTriangularLR(other, 8)
    state, wanted = None, []
    torch.manual_seed(4)
    for n in range(8):
        inputs, targets = text(seed=n)
        output = twin(inputs, state)
        loss = language_model_loss(output, targets).total
        other.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(twin.parameters(), clip)
        other.step()
        schedule.step()
        state = [(h.detach(), c.detach()) for h, c in output.state]
        wanted.append(loss.item())
    assert losses == pytest.approx(wanted, rel=1e-9)
    for got, want in zip(values, twin.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_reset_forgets_the_state():
    model = make_model(**NONE)
    step = LanguageModelStep(model, SGD(model.parameters(), lr=0.0))
    first = step(*text()).total
    assert step(*text()).total != first
    step.reset()
    assert step(*text()).total == first
    assert step.steps == 3


def test_autocast():
    model = make_model().float()
    step = LanguageModelStep(
        model,
        Adam(model.parameters(), lr=0.01, fused=True),
        objective=Objective(precision=Precision(torch.bfloat16)),
    )
    losses, values = trained(model, step, steps=30, seed=4)
    assert losses[-1] < losses[0] and all(v.dtype == torch.float32 for v in values)
    assert step.state[0][1].dtype == torch.float32
    plain = make_model().float()
    (full, *_), _ = trained(plain, LanguageModelStep(plain, SGD(plain.parameters(), lr=0.0)), 1)
    assert losses[0] == pytest.approx(full, rel=2e-2) and losses[0] != full


@pytest.mark.parametrize("waits", [True, False], ids=["looks first", "device decides"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_no_parameter(waits, bad):
    model = make_model()
    optimizer = Adam(model.parameters(), lr=0.1, fused=True)
    step, readings = LanguageModelStep(model, optimizer), LossReadings()
    step.waits = waits
    for n in range(2):
        list(readings.add(step(*text(seed=n)), [0.1], 21))
    before = [p.detach().clone() for p in model.parameters()]
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    handle = model.decoder.register_forward_hook(lambda *args: args[2] * bad)
    if waits:
        with pytest.raises(FloatingPointError, match=r"at step 2 with learning rates \[0.1\]"):
            step(*text())
    else:
        loss = step(*text())
        handle.remove()
        # What follows is kept from the parameters as well.
        later = step(*text(seed=9))
        with pytest.raises(FloatingPointError, match=r"at step 2 with learning rates \[0.1\]"):
            list(readings.add(loss, [0.1], 21))
        assert math.isfinite(later.total)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[index][name]) for name, value in state.items())
    assert not hasattr(optimizer, "found_inf")


@pytest.fixture
def replays(monkeypatch):
    """Have a graph's replay call what it would capture; returns a list that grows with each."""
    calls, trained = [], []

    def record(body, device):
        def replay():
            calls.append(1)
            # As in a graph, the gradients are new ones whatever stood there before.
            for parameter in trained:
                parameter.grad = None
            return body()

        return replay

    monkeypatch.setattr(lm_step, "record", record)
    return calls, trained


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("dropouts", [DROPOUTS, NONE], ids=["dropout", "no-dropout"])
def test_a_captured_step_trains_as_one_that_is_not(replays, clip, dropouts):
    calls, trained = replays
    results = []
    for capture in (False, True):
        model = make_model(**dropouts)
        trained[:] = model.parameters()
        optimizer = Adam(model.parameters(), lr=0.01, fused=True)
        scheduler = SlantedTriangularLR(optimizer, 12)
        step = LanguageModelStep(model, optimizer, scheduler, objective=Objective(clip=clip))
        step.capture, step.waits = capture, False
        torch.manual_seed(4)
        losses = []
        for n, shape in enumerate([(7, 3)] * 6 + [(4, 3), (7, 3), (7, 2)] + [(7, 3)] * 3):
            if n == 10:
                step.reset()
            if n == 11:
                # A frozen layer makes another graph.
                for parameter in model.encoder.rnns[0].parameters():
                    parameter.requires_grad_(False)
            losses.append(step(*text(*shape, seed=n)).total.item())
        assert step.steps == 12
        results.append((losses, [p.detach().clone() for p in model.parameters()]))
    # Two steps before the first of the graph, which runs without it; two of another shape, one of
    # other parameters.
    assert len(calls) == 6
    # A graph's learning rate is in float32.
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    for plain, replayed in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(replayed, plain, rtol=1e-6, atol=1e-8)


def test_a_captured_loss_that_is_not_finite_changes_no_parameter(replays):
    _, trained = replays
    model = make_model()
    trained[:] = model.parameters()
    step = LanguageModelStep(model, Adam(model.parameters(), lr=0.1, fused=True))
    step.capture, step.waits = True, False
    for n in range(4):
        step(*text(seed=n))
    before = [p.detach().clone() for p in model.parameters()]
    handle = model.decoder.register_forward_hook(lambda *args: args[2] * math.nan)
    assert math.isnan(step(*text(seed=5)).total)
    handle.remove()
    step(*text(seed=6))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_graph_is_gone_with_its_step(monkeypatch):
    """Each epoch has a step of its own: in a cycle two graphs would be in memory at once."""

    def record(body, device):
        result = body()
        return lambda: result

    monkeypatch.setattr(lm_step, "record", record)
    model = make_model()
    step = LanguageModelStep(model, Adam(model.parameters(), lr=0.1, fused=True))
    step.capture, step.waits = True, False
    for n in range(4):
        step(*text(seed=n))
    graph = weakref.ref(step._graph)
    assert graph().replay is not None
    gc.disable()
    try:
        del step
        assert graph() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "change",
    ["load_state_dict", "load_state_dict before the capture", "add_param_group", "clear", "double"],
)
def test_a_graph_of_other_tensors_or_groups_is_made_anew(replays, change):
    """It would step what is no longer there, at a rate that no schedule changes any more."""
    calls, trained = replays
    model = make_model()
    trained[:] = model.parameters()
    optimizer = Adam(list(model.parameters())[1:], lr=0.01, fused=True)
    step = LanguageModelStep(model, optimizer)
    step.capture, step.waits = True, False
    for n in range(3 if "before" in change else 4):
        step(*text(seed=n))
    graph, before = step._graph, len(calls)
    assert graph is not None
    if change == "add_param_group":
        optimizer.add_param_group({"params": list(model.parameters())[:1]})
    elif change == "clear":
        optimizer.state.clear()
    elif change == "double":
        # The same parameters, elsewhere in memory.
        model.float().double()
    else:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    weights = [p.detach().clone() for p in model.parameters()]
    for n in range(4):
        step(*text(seed=n))
    assert step._graph is not None and step._graph is not graph
    assert len(calls) == before + 1
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize("moms", [(0.95, 0.85, 0.95), None], ids=["moments", "rates-alone"])
def test_a_graph_refuses_a_schedule_of_what_it_holds(replays, moms):
    calls, trained = replays
    model = make_model()
    trained[:] = model.parameters()
    optimizer = Adam(model.parameters(), lr=0.01, fused=True)
    step = LanguageModelStep(model, optimizer, OneCycleLR(optimizer, 12, moms=moms))
    step.capture, step.waits = True, False
    for n in range(4):
        step(*text(seed=n))
    if moms is None:
        step(*text(seed=4))
        assert len(calls) == 2
        return
    with pytest.raises(ValueError, match=r"betas is \(0.85.*graph holds \(0.85.*moms=None"):
        step(*text(seed=4))
    assert step.steps == 4 and len(calls) == 1


def test_capture_needs_cuda_and_autocast_a_dtype_it_has():
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="capture needs a model on a CUDA device"):
        LanguageModelStep(model, optimizer, capture=True)
    with pytest.raises(ValueError, match="autocast is torch"):
        Objective(precision=Precision(torch.float64))


def test_readings_come_in_order():
    readings = LossReadings(5)
    parts = [LMLoss(*(torch.tensor(float(n + k)) for k in range(4))) for n in range(3)]
    seen = [r for n, loss in enumerate(parts) for r in readings.add(loss, [0.1 * n], n)]
    assert [r.cross_entropy for r in seen] == [0.0, 1.0, 2.0]
    assert [r.regularisers for r in seen] == [3.0, 5.0, 7.0]
    assert [r.items for r in seen] == [0, 1, 2] and not list(readings.rest())
    bad = LMLoss(*(torch.tensor(math.nan) for _ in range(4)))
    with pytest.raises(FloatingPointError, match="at step 8"):
        list(readings.add(bad, [0.1], 1))
