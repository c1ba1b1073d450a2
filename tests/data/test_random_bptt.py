"""Random sequence lengths: the stream once, lengths by the seed, the rate for one step alone."""

from statistics import mean

import numpy as np
import pytest
import torch
from torch.optim import SGD

from ulmfit_fast.data import LMBatches
from ulmfit_fast.data.batches import random_lengths
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.optim import SlantedTriangularLR
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.stages import TrainingSettings, train_language_model

CONFIG = AWDLSTMConfig(20, emb_size=4, hidden_size=6, num_layers=2)


def documents(count=30):
    draw = np.random.default_rng(0)
    return [draw.integers(2, 20, 15).astype(np.int32) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 9, 60, 1000])
@pytest.mark.parametrize("bptt", [1, 7, 70])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_stream_is_covered_once(count, bptt, seed):
    ids = torch.arange(count)
    batches = LMBatches(ids, 1, bptt, random_bptt=True, seed=seed)
    pairs = list(batches)
    assert len(pairs) == len(batches)
    assert torch.cat([x for x, _ in pairs]).flatten().tolist() == list(range(count - 1))
    assert torch.cat([y for _, y in pairs]).flatten().tolist() == list(range(1, count))


def test_rows_are_those_of_fixed_lengths():
    ids = torch.arange(501)
    rows = [torch.cat([x for x, _ in LMBatches(ids, 4, 9, random_bptt=r)]) for r in (False, True)]
    assert torch.equal(*rows)


def test_lengths_are_drawn_around_bptt_and_its_half():
    lengths = random_lengths(400_000, 70, seed=3)[:-1]
    assert min(lengths) >= 5 and max(lengths) <= 80
    half = [n for n in lengths if n < 52]
    whole = [n for n in lengths if n >= 52]
    # Of about 5,850 lengths 5 % are of the half; three deviations are 50 of them.
    assert len(half) / len(lengths) == pytest.approx(0.05, abs=0.009)
    assert mean(whole) == pytest.approx(69.5, abs=0.4) and mean(half) == pytest.approx(34.5, abs=1)
    assert np.std(whole) == pytest.approx(5, abs=0.3)


def test_short_windows_have_at_least_five_steps_but_for_the_last():
    lengths = random_lengths(103, 2)
    assert min(lengths[:-1]) >= 5 and max(lengths) <= 12


def test_lengths_follow_from_seed_and_epoch():
    draws = {
        (seed, epoch): tuple(random_lengths(900, 20, seed, epoch))
        for seed in (0, 1, -1)
        for epoch in (0, 1)
    }
    assert len(set(draws.values())) == 6
    assert draws[1, 1] == tuple(random_lengths(900, 20, 1, 1))
    # A longer stream goes on where a shorter one ended.
    assert draws[0, 0][:-1] == tuple(random_lengths(2000, 20))[: len(draws[0, 0]) - 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5), "steps is 0"),
        ((5, 0), "bptt is 0"),
        ((5, 5, 0, -1), "epoch is -1, expected 0 or larger"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_lengths(*arguments)


def test_a_step_is_taken_with_its_share_of_the_rate_and_leaves_it_as_it_was():
    torch.manual_seed(0)
    model = LanguageModel(CONFIG).double()
    optimizer = SGD(model.parameters(), lr=0.5)
    scheduler = SlantedTriangularLR(optimizer, 10)
    step = LanguageModelStep(model, optimizer, scheduler, objective=Objective(rescale_to=8))
    text = torch.randint(2, 20, (13, 2))
    for length in (4, 8, 12):
        before = [p.detach().clone() for p in model.parameters()]
        rate = optimizer.param_groups[0]["lr"]
        assert step.rates(length) == [rate * length / 8]
        step(text[:length], text[1 : length + 1])
        for parameter, start in zip(model.parameters(), before, strict=True):
            moved = start - parameter.detach()
            torch.testing.assert_close(
                moved, rate * length / 8 * parameter.grad, rtol=1e-9, atol=1e-15
            )
    # The schedule is where it is without rescaling, bit for bit.
    plain = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = SlantedTriangularLR(plain, 10)
    for _ in range(3):
        plain.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    assert scheduler.state_dict()["base_lrs"] == [0.5]


def test_a_failed_step_restores_the_rate():
    model = LanguageModel(CONFIG)
    optimizer = SGD(model.parameters(), lr=0.5)
    step = LanguageModelStep(model, optimizer, objective=Objective(rescale_to=8))

    def fail(*_):
        raise KeyboardInterrupt

    optimizer.register_step_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        step(torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int64))
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("schedule", ["slanted", "cosine", "one_cycle", "constant"])
def test_a_run_has_the_rates_of_its_schedule_times_the_lengths(rescale, schedule):
    model, lengths = LanguageModel(CONFIG), []
    model.register_forward_pre_hook(lambda module, args: lengths.append(len(args[0])))
    settings = TrainingSettings(
        epochs=3,
        batch_size=2,
        bptt=12,
        lr=0.01,
        schedule=schedule,
        random_bptt=True,
        rescale_lr=rescale,
        factor=2.0,
    )
    history = train_language_model(model, documents(), settings, seed=5, progress=False)
    total = len(history.losses)
    assert len(lengths) == total and len(set(lengths)) > 5
    assert [result.items for result in history.epochs] == [448] * 3
    per_epoch = [len(random_lengths(224, 12, 5, epoch)) for epoch in range(3)]
    assert sum(per_epoch) == total and len(set(per_epoch)) > 1
    for step, (rates, length) in enumerate(zip(history.lrs, lengths, strict=True)):
        scale = length / 12 if rescale else 1.0
        shape = shares(schedule, step, total) * scale
        assert rates == pytest.approx([0.01 * shape / 4, 0.01 * shape / 2, 0.01 * shape], rel=1e-6)


def shares(schedule, step, total):
    position = step / total
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + np.cos(np.pi * position)) / 2
    if schedule == "slanted":
        p = position / 0.1 if position <= 0.1 else (1 - position) / 0.9
        return (1 + p * 31) / 32
    low, high, q = (
        (1 / 25, 1.0, position / 0.25) if position < 0.25 else (1.0, 1e-5, (position - 0.25) / 0.75)
    )
    return low + (high - low) * (1 - np.cos(np.pi * q)) / 2


def test_capture_is_refused_by_name():
    with pytest.raises(ValueError, match=r"capture is True, which needs .* leave random_bptt out"):
        TrainingSettings(random_bptt=True, capture=True)
