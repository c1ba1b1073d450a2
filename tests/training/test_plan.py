"""What the settings make of a run: optimizers, groups, stages, schedules, precision."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import KINDS, SETTINGS, documents, make, train
from torch.optim import SGD, Adam, AdamW

from ulmfit_fast.data import ClassifierBatches
from ulmfit_fast.optim import NTASGD
from ulmfit_fast.training.classifier_step import ClassifierStep
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.plan import make_optimizer, ordered_groups


def values(groups):
    return [[p.detach().clone() for p in group] for group in groups]


PLANS = {
    "gradual": ({"gradual_unfreezing": 1}, lambda g: [range(g - 1 - s, g) for s in range(g)]),
    "sequence": (
        {"gradual_unfreezing": (1, 1)},
        lambda g: [range(g - 1, g), range(g - 2, g), range(g)],
    ),
    "head first": ({"gradual_unfreezing": (1,)}, lambda g: [range(g - 1, g), range(g)]),
    "chain-thaw": (
        {"gradual_unfreezing": 1, "chain_thaw": True},
        lambda g: [[g - 1], *([n] for n in range(g - 1)), range(g)],
    ),
}


# Every plan with every schedule; each of them with both of the other choices.
COMBINATIONS = [
    (plan, schedule, ("run", "stage")[(i + j) % 2], ("depth", "fastai")[(i + j // 2) % 2])
    for i, plan in enumerate(PLANS)
    for j, schedule in enumerate(["slanted", "one_cycle", "cosine", "constant"])
]


@KINDS
@pytest.mark.parametrize(("plan", "schedule", "per", "order"), COMBINATIONS)
def test_frozen_groups_stay_bit_for_bit_under_every_plan(
    monkeypatch, kind, plan, schedule, per, order
):
    fields, stages_of = PLANS[plan]
    settings = replace(
        SETTINGS,
        schedule=schedule,
        schedule_per=per,
        group_order=order,
        weight_decay=0.1,
        reset_optimizer=per == "stage",
        epochs=6,
        **fields,
    )
    made = []
    monkeypatch.setattr(
        "ulmfit_fast.training.plan.make_optimizer",
        lambda *args: made.append(make_optimizer(*args)) or made[-1],
    )
    model = make(kind)
    groups = ordered_groups(model, settings)
    stages = list(stages_of(len(groups)))
    trail, states, counts = [values(groups)], [], []

    def note(epoch, history):
        (optimizer,) = made
        trail.append(values(groups))
        states.append([[p in optimizer.state for p in group] for group in groups])
        counts.append(len(optimizer.param_groups))

    history = train(model, settings, after_epoch=note)
    trained = set()
    for epoch in range(6):
        stage = min(epoch, len(stages) - 1)
        if per == "stage" and stage == epoch:
            trained = set()
        trained |= set(stages[stage])
        for index in range(len(groups)):
            same = [
                torch.equal(a, b)
                for a, b in zip(trail[epoch][index], trail[epoch + 1][index], strict=True)
            ]
            if index in stages[stage]:
                assert not any(same), (epoch, index)
            else:
                assert all(same), (epoch, index)
            assert states[epoch][index] == [index in trained] * len(same)
    assert set(counts) == {len(groups)}
    assert {len(rates) for rates in history.lrs} == {len(groups)}
    steps = len(history.losses) // 6
    assert history.unfreeze_steps == [steps * s for s in range(min(6, len(stages)))]
    assert all(p.requires_grad for p in model.parameters())


@KINDS
@pytest.mark.parametrize("schedule", ["slanted", "one_cycle", "cosine", "constant"])
def test_a_schedule_starts_anew_at_each_stage_with_its_own_values(kind, schedule):
    settings = replace(
        SETTINGS,
        epochs=5,
        schedule=schedule,
        schedule_per="stage",
        gradual_unfreezing=(1, 2),
        cut_frac=(0.5, 0.2),
        pct_start=(0.9, 0.4, 0.3),
        ratio=8.0,
        div=10.0,
        div_final=100.0,
        lr_decay=(0.5, 0.1),
        factor=2.0,
    )
    history = train(make(kind), settings)
    per_epoch = len(history.losses) // 5
    wanted = []
    for stage, (epochs, rate) in enumerate([(1, 0.02), (2, 0.01), (2, 0.001)]):
        total = epochs * per_epoch
        cut, pct = (0.5, 0.2, 0.2)[stage], (0.9, 0.4, 0.3)[stage]
        for step in range(total):
            q = step / total
            if schedule == "slanted":
                p = q / cut if q <= cut else (1 - q) / (1 - cut)
                share = (1 + 7 * p) / 8
            elif schedule == "one_cycle":
                low, high, x = (0.1, 1, q / pct) if q < pct else (1, 0.01, (q - pct) / (1 - pct))
                share = low + (high - low) * (1 - math.cos(math.pi * x)) / 2
            else:
                share = (1 + math.cos(math.pi * q)) / 2 if schedule == "cosine" else 1.0
            wanted.append(rate * share)
    count = len(history.lrs[0])
    for rates, rate in zip(history.lrs, wanted, strict=True):
        assert rates == pytest.approx([rate / 2 ** (count - 1 - g) for g in range(count)])


@KINDS
def test_momentum_runs_against_the_rate(monkeypatch, kind):
    seen = []
    step = AdamW.step

    def note(self, closure=None):
        seen.append((self.param_groups[-1]["lr"], self.param_groups[0]["betas"]))
        return step(self, closure)

    monkeypatch.setattr(AdamW, "step", note)
    history = train(make(kind), replace(SETTINGS, epochs=4, schedule="one_cycle"))
    total = len(history.losses)
    assert [rate for rate, _ in seen] == [rates[-1] for rates in history.lrs]
    assert seen[0][1] == (0.8, 0.99) and seen[total // 4][1] == pytest.approx((0.7, 0.99))
    assert all(0.7 <= betas[0] <= 0.8 for _, betas in seen)


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("adam", Adam, {"betas": (0.7, 0.99), "eps": 1e-8}),
        ("adamw", AdamW, {"betas": (0.7, 0.99), "eps": 1e-8}),
        ("sgd", SGD, {"momentum": 0}),
        ("nt_asgd", NTASGD, {"momentum": 0}),
    ],
)
def test_optimizers_by_name(name, kind, fields):
    settings = replace(SETTINGS, optimizer=name, weight_decay=0.01, nonmono=3)
    optimizer = make_optimizer(make("language model"), settings)
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 0.01 and group["fused"]
        assert {key: group[key] for key in fields} == fields
    if name == "nt_asgd":
        assert optimizer.nonmono == 3


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_weight_decay_of_adam_and_sgd_is_in_the_gradient(name):
    def trained(weight_decay):
        model = make("language model")
        settings = replace(
            SETTINGS, bptt=1000, schedule="constant", factor=1.0, optimizer=name, eps=1.0
        )
        train(model, replace(settings, weight_decay=weight_decay))
        return model

    start, decayed, plain = make("language model"), trained(0.5), trained(0.0)
    for p, q, s in zip(*(m.parameters() for m in (decayed, plain, start)), strict=True):
        if name == "sgd":
            assert torch.allclose(q - p, 0.02 * 0.5 * s, atol=1e-7)
        else:
            # Decoupled it would be this in Adam too, but its step is bounded by the rate.
            assert not torch.allclose(q - p, 0.02 * 0.5 * s, atol=1e-5) or s.abs().max() == 0


def test_groups_of_fastai_and_their_rates():
    model = make("language model")
    settings = replace(SETTINGS, lr=0.6, group_order="fastai", lr_multipliers=(1 / 6, 1 / 3, 1 / 2))
    optimizer = make_optimizer(model, settings)
    embedding, first, second = model.layer_groups()
    own = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert own == [[id(p) for p in group] for group in (first, second, embedding)]
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.2, 0.3])
    classifier = make("classifier")
    assert ordered_groups(classifier, settings) == classifier.layer_groups()
    with pytest.raises(ValueError, match="multipliers has 3 values for 4 layer groups"):
        make_optimizer(classifier, settings)


@KINDS
def test_decay_leaves_norms_and_biases_alone(kind):
    model = make(kind)
    settings = replace(SETTINGS, weight_decay=0.5, no_decay_on_bias_and_norm=True)
    optimizer = make_optimizer(model, settings)
    names = {id(p): name for name, p in model.named_parameters()}
    spared = {
        names[id(p)] for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]
    }
    if kind == "language model":
        assert spared == {"decoder.bias"}
    else:
        assert spared == {f"head.{n}.{name}" for n in (0, 4) for name in ("weight", "bias")}
    everything = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(names)
    groups = ordered_groups(model, settings)
    history = train(model, replace(settings, epochs=2, gradual_unfreezing=1))
    # One rate for each layer group, though one of them has two parameter groups.
    assert {len(rates) for rates in history.lrs} == {len(groups)}
    assert len(optimizer.param_groups) == len(groups) + 1


def test_label_smoothing_of_both_models():
    model = make("classifier")
    (batch,) = _batches()
    torch.manual_seed(3)
    logits = model.train()(batch.tokens, batch.lengths)
    wanted = F.cross_entropy(logits, batch.labels, label_smoothing=0.3).item()
    torch.manual_seed(3)
    optimizer = SGD(model.parameters(), lr=0.0)
    objective = Objective(alpha=0.0, beta=0.0, label_smoothing=0.3)
    loss = ClassifierStep(model, optimizer, objective=objective)(*batch)
    assert loss == (pytest.approx(wanted), 0.0)
    model = make("language model").eval()
    text = torch.randint(2, 14, (6, 3))
    step = LanguageModelStep(model, SGD(model.parameters(), lr=0.0), objective=objective)
    logits = model(text[:-1]).logits.flatten(0, 1)
    wanted = F.cross_entropy(logits, text[1:].flatten(), label_smoothing=0.3)
    assert step(text[:-1], text[1:]).total.item() == pytest.approx(wanted.item(), rel=1e-6)


@KINDS
def test_label_smoothing_is_trained_on(kind):
    plain = train(make(kind), SETTINGS).losses
    smooth = train(make(kind), replace(SETTINGS, label_smoothing=0.4)).losses
    assert plain != pytest.approx(smooth, rel=1e-4)


def _batches():
    return ClassifierBatches(documents(), np.arange(12) % 2, 12, shuffle=True)


def test_batches_without_labels_are_refused():
    model = make("classifier")
    (batch,) = ClassifierBatches(documents(4), batch_size=4)
    with pytest.raises(ValueError, match="the batch has no labels"):
        ClassifierStep(model, SGD(model.parameters(), lr=0.1))(*batch)
