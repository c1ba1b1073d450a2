"""NT-ASGD: the rule that triggers it, the mean of the weights, evaluation with it, resume."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from ulmfit_fast.data import LMBatches
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.optim import NTASGD, SlantedTriangularLR
from ulmfit_fast.training.evaluation import evaluate_language_model
from ulmfit_fast.training.stages import (
    TrainingSettings,
    build_classifier,
    fit_classifier,
    train_language_model,
)

CONFIG = AWDLSTMConfig(14, emb_size=4, hidden_size=6, num_layers=2)


def step(optimizer, *weights):
    optimizer.zero_grad()
    sum(weight.square().sum() / 2 for weight in weights).backward()
    optimizer.step()


def triggered_at(losses, nonmono):
    """The rule, literally: at evaluation t when t > n and v_t > min(v_0 .. v_{t-n-1})."""
    for t, loss in enumerate(losses):
        if t > nonmono and loss > min(losses[: t - nonmono]):
            return t
    return None


@pytest.mark.parametrize("nonmono", [1, 2, 5])
@pytest.mark.parametrize("seed", range(6))
def test_the_trigger_is_the_rule(nonmono, seed):
    draw = np.random.default_rng(seed)
    losses = (5.0 - 0.15 * np.arange(30) + draw.normal(0, 0.2, 30)).tolist()
    optimizer = NTASGD([nn.Parameter(torch.ones(1))], lr=0.1, nonmono=nonmono)
    began = [t for t, loss in enumerate(losses) if optimizer.evaluated(loss)]
    wanted = triggered_at(losses, nonmono)
    assert began == ([] if wanted is None else [wanted])
    assert optimizer.averaging == (wanted is not None)


def test_a_falling_loss_never_triggers_and_equal_losses_do_not():
    optimizer = NTASGD([nn.Parameter(torch.ones(1))], lr=0.1, nonmono=2)
    assert not any(optimizer.evaluated(loss) for loss in (5.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0))
    assert not any(optimizer.evaluated(4.0 - n / 10) for n in range(10, 20))


@pytest.mark.parametrize("fused", [None, True])
def test_the_mean_is_of_the_weights_after_each_step_since(fused):
    weight = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    optimizer = NTASGD([weight], lr=0.1, nonmono=1, fused=fused)
    twin = nn.Parameter(weight.detach().clone())
    plain = torch.optim.SGD([twin], lr=0.1)
    iterates = []
    for n in range(9):
        if n == 4:
            assert [optimizer.evaluated(loss) for loss in (1.0, 0.5, 2.0)] == [False, False, True]
        step(optimizer, weight)
        step(plain, twin)
        assert torch.allclose(weight, twin, rtol=1e-14, atol=0)
        if n >= 4:
            iterates.append(weight.detach().clone())
    before, mean = weight.detach().clone(), torch.stack(iterates).mean(0)
    with optimizer.averaged():
        torch.testing.assert_close(weight.detach(), mean, rtol=1e-13, atol=0)
    assert torch.equal(weight, before)
    optimizer.use_average()
    torch.testing.assert_close(weight.detach(), mean, rtol=1e-13, atol=0)


def test_the_weights_come_back_after_an_error():
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = NTASGD([weight], lr=0.1, nonmono=1)
    for loss in (1.0, 0.5, 2.0):
        optimizer.evaluated(loss)
    step(optimizer, weight)
    step(optimizer, weight)
    before = weight.item()
    with pytest.raises(KeyError), optimizer.averaged():
        assert weight.item() != before
        raise KeyError
    assert weight.item() == before


def test_without_a_mean_nothing_is_lent():
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = NTASGD([weight], lr=0.1)
    step(optimizer, weight)
    before = weight.item()
    with optimizer.averaged():
        assert weight.item() == before
    optimizer.use_average()
    assert weight.item() == before


def test_a_rate_counts_for_its_own_step():
    """torch.optim.ASGD takes each step with the rate of the one before."""
    moved = []
    for kind in (NTASGD, torch.optim.ASGD):
        weight = nn.Parameter(torch.tensor([1.0]))
        options = {} if kind is NTASGD else {"t0": 0, "lambd": 0.0}
        optimizer = kind([weight], lr=0.5, **options)
        step(optimizer, weight)
        optimizer.param_groups[0]["lr"] = 0.1
        step(optimizer, weight)
        moved.append(weight.item())
    assert moved[0] == pytest.approx(0.5 * 0.9) and moved[1] == pytest.approx(0.5 * 0.5)


def test_resumes_bit_for_bit():
    def start():
        weights = [nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([1.0]))]
        groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (0.1, 0.2), strict=True)]
        return weights, NTASGD(groups, 0.1, nonmono=2)

    losses = [3.0, 2.0, 2.5, 2.6, 2.7, 2.8]
    weights, optimizer = start()
    scheduler = SlantedTriangularLR(optimizer, 12)
    for n, loss in enumerate(losses):
        if n == 5:
            file = io.BytesIO()
            torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
            copies = [w.detach().clone() for w in weights]
        step(optimizer, *weights)
        scheduler.step()
        optimizer.evaluated(loss)
    again, resumed = start()
    schedule = SlantedTriangularLR(resumed, 12)
    file.seek(0)
    optimizer_state, scheduler_state = torch.load(file, weights_only=True)
    resumed.load_state_dict(optimizer_state)
    schedule.load_state_dict(scheduler_state)
    for new, old in zip(again, copies, strict=True):
        new.data.copy_(old)
    assert resumed.averaging and resumed.losses == losses[:5]
    step(resumed, *again)
    resumed.evaluated(losses[5])
    assert resumed.losses == optimizer.losses
    assert [w.item() for w in again] == [w.item() for w in weights]
    for one in (optimizer, resumed):
        one.use_average()
    assert [w.item() for w in again] == [w.item() for w in weights]


def test_state_of_something_else_is_refused():
    weight = nn.Parameter(torch.ones(1))
    other = torch.optim.SGD([weight], lr=0.1).state_dict()
    with pytest.raises(ValueError, match="the state has no 'nt_asgd', expected that of an NTASGD"):
        NTASGD([weight], lr=0.1).load_state_dict(other)


@pytest.mark.parametrize("nonmono", [0, 1.5, True, None])
def test_bad_interval(nonmono):
    with pytest.raises(ValueError, match=r"nonmono is .*, expected a whole number, at least 1"):
        NTASGD([nn.Parameter(torch.ones(1))], lr=0.1, nonmono=nonmono)


def test_a_validation_loss_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the validation loss is nan, expected a finite"):
        NTASGD([nn.Parameter(torch.ones(1))], lr=0.1).evaluated(math.nan)


def documents(count=20):
    draw = np.random.default_rng(0)
    return [draw.integers(2, 14, 12).astype(np.int32) for _ in range(count)]


SETTINGS = TrainingSettings(
    epochs=6,
    optimizer="nt_asgd",
    nonmono=1,
    schedule="constant",
    factor=1.0,
    lr=3.0,
    batch_size=2,
    bptt=6,
)


def test_a_language_model_ends_with_its_averages():
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    seen = []
    history = train_language_model(
        model,
        documents(),
        SETTINGS,
        valid_documents=documents(6),
        progress=False,
        after_epoch=lambda epoch, history: seen.append(copy.deepcopy(model.state_dict())),
    )
    assert len(history.valid_losses) == 6 and history.average_step is not None
    began = triggered_at(history.valid_losses, 1)
    per_epoch = len(history.losses) // 6
    assert history.average_step == per_epoch * (began + 1) and began < 5
    # What a checkpoint after the last epoch held is what the run ends with.
    for name, value in model.state_dict().items():
        assert torch.equal(value, seen[-1][name])
    ids = torch.from_numpy(np.concatenate(documents(6))).long()
    loss = evaluate_language_model(model, LMBatches(ids, 2, 6))
    assert loss == pytest.approx(history.valid_losses[-1], rel=1e-6)


def test_held_out_documents_are_drawn_by_the_seed_and_not_trained_on():
    def trained_on(seed):
        model, seen = LanguageModel(CONFIG), set()

        def note(module, args):
            if module.training:
                seen.update(args[0].flatten().tolist())

        model.encoder.register_forward_pre_hook(note)
        # Each document is one word of its own.
        docs = [np.full(8, 2 + n, dtype=np.int32) for n in range(12)]
        settings = TrainingSettings(batch_size=2, bptt=6, valid_share=0.25)
        history = train_language_model(model, docs, settings, seed=seed, progress=False)
        assert len(history.valid_losses) == 1
        return seen

    # The last token of a stream is only a target, so a word is left out only with its document.
    assert len(trained_on(0)) == 9 and trained_on(0) == trained_on(0)
    assert len({frozenset(trained_on(seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("settings", "valid", "message"),
    [
        ({"optimizer": "nt_asgd"}, None, "nothing to evaluate on; pass valid_share=0.1"),
        ({"valid_share": 0.5}, documents(2), "valid_documents are given as well"),
    ],
    ids=["nothing", "both"],
)
def test_what_to_evaluate_on(settings, valid, message):
    with pytest.raises(ValueError, match=message):
        train_language_model(
            LanguageModel(CONFIG),
            documents(),
            TrainingSettings(batch_size=2, **settings),
            valid_documents=valid,
        )


def test_one_document_cannot_be_split():
    settings = TrainingSettings(batch_size=1, valid_share=0.5)
    with pytest.raises(ValueError, match=r"0\.5 of 1 documents, expected at least 2"):
        train_language_model(LanguageModel(CONFIG), documents(1), settings)


@pytest.mark.parametrize(
    "setting",
    [
        {"optimizer": "nt_asgd"},
        {"valid_share": 0.1},
        {"random_bptt": True},
        {"capture": True},
    ],
    ids=str,
)
def test_settings_of_language_models_are_refused_for_classifiers(setting):
    settings = TrainingSettings(**setting)
    model = build_classifier(None, CONFIG, 2, settings)
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} is .*, which is for language models"):
        fit_classifier(model, documents(4), torch.tensor([0, 1, 0, 1]), settings)
