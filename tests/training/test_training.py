"""Epochs: what they carry over, what they report, and what they leave alone."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR

from ulmfit_fast.data import ClassifierBatches, LMBatches
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.training.classifier_step import ClassifierStep
from ulmfit_fast.training.evaluation import (
    evaluate_language_model,
    predict_logits,
    recalibrate_batch_norm,
)
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.loop import train_epoch
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.state import EpochResult, History, TrainingState

WORDS = 16
NO_DROPOUT = dict.fromkeys(("input_p", "hidden_p", "embed_p", "weight_p", "output_p"), 0.0)


def config(**dropout: float) -> AWDLSTMConfig:
    return AWDLSTMConfig(WORDS, emb_size=6, hidden_size=10, num_layers=2, **dropout)


def language_model(**dropout: float) -> LanguageModel:
    return LanguageModel(config(**dropout))


def classifier(p: float = 0.4, **dropout: float) -> TextClassifier:
    return TextClassifier(AWDLSTM(config(**dropout)), 2, hidden=7, output_p=p, head_p=p, bptt=5)


def stream(bptt: int = 5, batch_size: int = 4) -> LMBatches:
    ids = torch.arange(73) * 5 % WORDS
    return LMBatches(ids, batch_size, bptt)


def texts(count: int = 24) -> tuple[list[Tensor], Tensor]:
    """Texts of 1 to 9 words; the class is the second word, or the first of a single one."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (count,), generator=generator)
    docs = [torch.randint(6, WORDS, (1 + n % 9,), generator=generator) for n in range(count)]
    for doc, label in zip(docs, labels, strict=True):
        doc[int(len(doc) > 1)] = 2 + int(label)
    return docs, labels


def labelled(batch_size: int = 8, **options: object) -> ClassifierBatches:
    return ClassifierBatches(*texts(), batch_size, **options)


def train(model, batches, optimizer, scheduler=None, history=None, **objective) -> EpochResult:
    """Train for an epoch; a classifier without AR and TAR, but where they are asked for."""
    make = LanguageModelStep
    if isinstance(model, TextClassifier):
        make, objective = ClassifierStep, {"alpha": 0.0, "beta": 0.0, **objective}
    step = make(model, optimizer, scheduler, objective=Objective(**objective))
    return train_epoch(step, batches, TrainingState(model, history=history or History()))


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_state_is_carried_from_batch_to_batch_and_detached() -> None:
    model, calls = language_model(), []
    model.register_forward_hook(lambda module, args, output: calls.append((args[1], output.state)))
    train(model, stream(), SGD(model.parameters(), lr=0.1))
    assert len(calls) == 4 and calls[0][0] is None
    for (_, left), (taken, _) in pairwise(calls):
        for pair, before in zip(taken, left, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pair, before, strict=True))
            assert not any(value.requires_grad for value in pair)
    assert all(h.requires_grad for h, _ in calls[0][1])


def test_language_model_learns_a_stream() -> None:
    model = language_model(**NO_DROPOUT)
    optimizer = Adam(model.parameters(), lr=0.03)
    before = evaluate_language_model(model, stream())
    for _ in range(50):
        train(model, stream(), optimizer, alpha=0.1, beta=0.1)
    assert abs(before - math.log(WORDS)) < 0.1
    assert evaluate_language_model(model, stream()) < 1.0


def test_loss_is_cross_entropy_and_the_regularisers_stand_apart() -> None:
    model, history, expected = language_model(**NO_DROPOUT), History(), []

    def note(module: nn.Module, args: object, output) -> None:
        steps = output.raw[1:] - output.raw[:-1]
        expected.append((20 * output.raw.square().mean() + 10 * steps.square().mean()).item())

    model.register_forward_hook(note)
    optimizer = SGD(model.parameters(), lr=0.0)
    result = train(model, stream(bptt=7), optimizer, alpha=20, beta=10, history=history)
    assert result.items == 72 and result.seconds > 0
    assert history.epochs == [result]
    assert history.regularisers == pytest.approx(expected[:3], rel=1e-5)
    assert min(history.regularisers) > 0
    # Batches of 7, 7 and 4 steps: each token counts the same.
    assert result.loss == pytest.approx(evaluate_language_model(model, stream(bptt=7)), rel=1e-6)
    assert result.loss == pytest.approx(
        sum(n * x for n, x in zip((7, 7, 4), history.losses, strict=True)) / 18
    )


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_regularisers_are_trained_on(name: str) -> None:
    model = language_model(**NO_DROPOUT)
    twin = copy.deepcopy(model)
    off = {"alpha": 0.0, "beta": 0.0}
    train(model, stream(), SGD(model.parameters(), lr=0.1), **off)
    on = {**off, name: 50.0}
    train(twin, stream(), SGD(twin.parameters(), lr=0.1), **on)
    assert not same(values(model), values(twin))


@pytest.mark.parametrize("kind", ["language model", "classifier"])
def test_clip_bounds_the_gradient(kind: str) -> None:
    def moved(clip: float | None) -> float:
        torch.manual_seed(0)
        model = language_model() if kind == "language model" else classifier()
        before, optimizer = values(model), SGD(model.parameters(), lr=1.0)
        if kind == "language model":
            train(model, stream(bptt=99), optimizer, clip=clip)
        else:
            train(model, labelled(batch_size=99), optimizer, clip=clip)
        steps = [after - start for after, start in zip(values(model), before, strict=True)]
        return torch.cat([step.flatten() for step in steps]).norm().item()

    assert moved(1e-3) == pytest.approx(1e-3, rel=1e-2)
    assert moved(None) == pytest.approx(moved(1e6), rel=1e-5) and moved(None) > 1e-2


@pytest.mark.parametrize("kind", ["language model", "classifier"])
def test_history_has_the_rates_of_every_step(kind: str) -> None:
    model = language_model() if kind == "language model" else classifier()
    low, high = model.layer_groups()[0], model.layer_groups()[-1]
    optimizer = SGD([{"params": low, "lr": 0.25}, {"params": high, "lr": 1.0}])
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    history = History()
    for _ in range(2):
        if kind == "language model":
            train(model, stream(bptt=9), optimizer, scheduler, history=history)
        else:
            batches = labelled(batch_size=12)
            train(model, batches, optimizer, scheduler, history=history)
    assert history.lrs == [[0.25 * 0.5**n, 0.5**n] for n in range(4)]
    assert len(history.losses) == len(history.regularisers) == 4 and len(history.epochs) == 2
    assert any(history.regularisers) == (kind == "language model")


@pytest.mark.parametrize("kind", ["language model", "classifier"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf], ids=["nan", "inf"])
def test_loss_that_is_not_finite_stops_before_the_step(kind: str, bad: float) -> None:
    model = language_model() if kind == "language model" else classifier()
    optimizer, history = Adam(model.parameters(), lr=0.125), History()

    def epoch() -> None:
        if kind == "language model":
            train(model, stream(bptt=9), optimizer, history=history)
        else:
            train(model, labelled(batch_size=12), optimizer, history=history)

    epoch()
    # The score of a target of the next batch: the loss breaks, the parameters are sound.
    last, size = (model.decoder, WORDS) if kind == "language model" else (model.head, 2)
    score = torch.zeros(size).index_fill(0, torch.tensor(5 % size), bad)
    last.register_forward_hook(lambda module, args, logits: logits + score)
    before = values(model)
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step 2 with .*\[0.125\]; "):
        epoch()
    assert same(before, values(model))
    assert len(history.losses) == 2 and len(history.epochs) == 1


def test_classifier_learns() -> None:
    model, history = classifier(p=0.1, **NO_DROPOUT), History()
    optimizer = Adam(model.parameters(), lr=0.02)
    batches = labelled(shuffle=True)
    for epoch in range(20):
        batches.set_epoch(epoch)
        train(model, batches, optimizer, history=history)
    assert history.epochs[0].loss > 0.5 and history.epochs[-1].loss < 0.4
    assert history.epochs[0].items == 24


def test_classifiers_train_on_the_regularisers_and_report_the_cross_entropy() -> None:
    def gradients(**weights: float) -> tuple[History, list[Tensor]]:
        torch.manual_seed(0)
        model, history = classifier(p=0.0, **NO_DROPOUT), History()
        optimizer = SGD(model.parameters(), lr=1.0)
        before = values(model)
        train(model, labelled(24), optimizer, history=history, **weights)
        return history, [b - a for a, b in zip(values(model), before, strict=True)]

    plain, grads = gradients()
    history, regularised = gradients(alpha=2.0, beta=1.0)
    assert history.losses == plain.losses and plain.regularisers == [0.0]
    torch.manual_seed(0)
    model = classifier(p=0.0, **NO_DROPOUT)
    (batch,) = labelled(24)
    _, activation, temporal = model.regularised(batch.tokens, batch.lengths, alpha=2.0, beta=1.0)
    terms = activation + temporal
    terms.backward()
    assert history.regularisers == [pytest.approx(terms.item(), rel=1e-4)]
    for a, b, p in zip(grads, regularised, model.parameters(), strict=True):
        own = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(b, a + own, rtol=1e-3, atol=1e-6)


def test_classifier_loss_is_the_mean_over_the_texts() -> None:
    model = classifier(p=0.0, **NO_DROPOUT)
    result = train(model, labelled(10), SGD(model.parameters(), lr=0.0))
    model.train()
    losses = [F.cross_entropy(model(b.tokens, b.lengths), b.labels).item() for b in labelled(10)]
    assert result.loss == pytest.approx((10 * losses[0] + 10 * losses[1] + 4 * losses[2]) / 24)


@pytest.mark.parametrize("batch_size", [1, 5, 24], ids="batch{}".format)
@pytest.mark.parametrize("shuffle", [False, True], ids=["longest first", "shuffled"])
def test_predictions_stand_in_the_order_of_the_texts(batch_size: int, shuffle: bool) -> None:
    model, docs = classifier().train(), texts()[0]
    logits = predict_logits(model, ClassifierBatches(docs, None, batch_size, shuffle=shuffle), 24)
    assert not model.training and logits.dtype == torch.float32 and not logits.requires_grad
    alone = [model(doc[:, None], torch.tensor([len(doc)])) for doc in docs]
    assert torch.allclose(logits, torch.cat(alone), rtol=0, atol=1e-6)
    assert not torch.allclose(logits, logits.roll(1, 0), atol=1e-4), "or any order would do"


def test_recalibration_changes_the_statistics_and_nothing_else() -> None:
    model = classifier()
    norms = [module for module in model.head if isinstance(module, nn.BatchNorm1d)]
    norms[0].momentum, norms[1].momentum = 0.3, None
    train(model, labelled(), SGD(model.parameters(), lr=0.1))
    before = copy.deepcopy(model.state_dict())
    recalibrate_batch_norm(model, labelled())
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert {name.split(".")[-1] for name in changed} == {"running_mean", "running_var"}
    assert len(changed) == 4
    assert [norm.momentum for norm in norms] == [0.3, None]
    assert not any(module.training for module in model.modules())


def test_recalibrated_statistics_are_those_of_the_texts_without_dropout() -> None:
    model, batch = classifier(), next(iter(labelled(batch_size=24)))
    train(model, labelled(), SGD(model.parameters(), lr=1.0))
    recalibrate_batch_norm(model, labelled(batch_size=24))
    first, _, linear, relu, second, _, _ = model.head
    with torch.no_grad():
        features = model.features(batch.tokens, batch.lengths)
        normed = F.batch_norm(features, None, None, first.weight, first.bias, training=True)
        hidden = relu(linear(normed))
    for norm, x in ((first, features), (second, hidden)):
        assert torch.allclose(norm.running_mean, x.mean(0), atol=1e-6)
        assert torch.allclose(norm.running_var, x.var(0), atol=1e-6)


def test_recalibration_averages_over_the_batches_and_skips_single_texts() -> None:
    model, batches = classifier(), list(labelled(batch_size=8))
    single = next(iter(labelled(batch_size=1)))
    recalibrate_batch_norm(model, [batches[0], single, *batches[1:]])
    with torch.no_grad():
        means = [model.features(b.tokens, b.lengths).mean(0) for b in batches]
    assert torch.allclose(model.head[0].running_mean, torch.stack(means).mean(0), atol=1e-6)


def test_recalibration_that_fails_leaves_the_momentum() -> None:
    model = classifier()
    with pytest.raises(TypeError):
        recalibrate_batch_norm(model, [None])
    assert model.head[0].momentum == 0.1 and not model.head[0].training


def test_evaluation_does_not_depend_on_bptt_or_dropout() -> None:
    model = language_model(weight_p=0.9, output_p=0.9)
    losses = [evaluate_language_model(model.train(), stream(bptt)) for bptt in (1, 3, 7, 99)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    assert not model.training


def test_evaluation_needs_a_token() -> None:
    with pytest.raises(ValueError, match="0 tokens to evaluate on, expected at least 1; pass more"):
        evaluate_language_model(language_model(), [])
