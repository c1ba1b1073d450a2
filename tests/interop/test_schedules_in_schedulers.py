"""Schedules inside PyTorch's: each in the places where CosineAnnealingLR stands, as it is there."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from ulmfit_fast.optim import OneCycleLR, SlantedTriangularLR

T, STEPS = 12, 20
PEAKS = (0.01, 0.1)


def cosine(t):
    return (1 + math.cos(math.pi * t / T)) / 2


def slanted(t, cut_frac=0.3, ratio=4):
    t, cut = min(t, T), T * cut_frac
    p = t / cut if t <= cut else (T - t) / (T - cut)
    return (1 + p * (ratio - 1)) / ratio


def half(start, end, x):
    return start + (end - start) * (1 - math.cos(math.pi * x)) / 2


def one_cycle(t, peak=1.0, start=1 / 25, end=1e-5):
    q = min(t / T, 1.0)
    return half(start, peak, q / 0.25) if q < 0.25 else half(peak, end, (q - 0.25) / 0.75)


def momentum_at(t):
    return one_cycle(t, peak=0.7, start=0.8, end=0.8)


KINDS = {
    "cosine": (lambda o: CosineAnnealingLR(o, T), cosine),
    "slanted": (lambda o: SlantedTriangularLR(o, T, cut_frac=0.3, ratio=4), slanted),
    "one-cycle": (lambda o: OneCycleLR(o, T), one_cycle),
}
OURS = ["slanted", "one-cycle"]


class Several:
    """Schedules that are stepped one after the other, or one of them at a time."""

    def __init__(self, schedules, turn=None):
        self.schedules, self.turn, self.steps = schedules, turn, 0

    def step(self):
        here = self.schedules
        if self.turn is not None:
            here = [here[0] if self.steps < self.turn else here[1]]
        for schedule in here:
            if isinstance(schedule, ReduceLROnPlateau):
                schedule.step(1.0)
            else:
                schedule.step()
        self.steps += 1

    def state_dict(self):
        return [self.steps, *(schedule.state_dict() for schedule in self.schedules)]

    def load_state_dict(self, state):
        self.steps = state[0]
        for schedule, own in zip(self.schedules, state[1:], strict=True):
            schedule.load_state_dict(own)


def in_turn(*parts):
    """Return a place: SequentialLR of (schedule, steps); None stands for the schedule tried."""

    def place(optimizer, make):
        schedules = [make(optimizer) if part[0] is None else part[0](optimizer) for part in parts]
        ends, milestones = 0, []
        for _, length in parts[:-1]:
            ends += length
            milestones.append(ends)
        return SequentialLR(optimizer, schedules, milestones)

    return place


def chained(*parts):
    def place(optimizer, make):
        return ChainedScheduler([(part or make)(optimizer) for part in parts])

    return place


def constant(optimizer):
    return ConstantLR(optimizer, factor=0.1, total_iters=3)


def linear(optimizer):
    return LinearLR(optimizer, start_factor=0.25, total_iters=4)


def exponential(optimizer):
    return ExponentialLR(optimizer, gamma=0.9)


def fading(optimizer):
    return LambdaLR(optimizer, lambda step: 0.9**step)


def halving(optimizer):
    return MultiplicativeLR(optimizer, lambda step: 0.5 if step == 5 else 1.0)


def stepwise(optimizer):
    return StepLR(optimizer, step_size=4, gamma=0.3)


# Each with the windows in which the schedule runs: (first step, end).
PLACES = {
    "alone": (lambda o, make: make(o), [(0, T)]),
    "alone in a row": (in_turn((None, 0)), [(0, T)]),
    "after a constant": (in_turn((constant, 5), (None, 0)), [(5, 5 + T)]),
    "after a warm-up": (in_turn((linear, 4), (None, 0)), [(4, 4 + T)]),
    "before another": (in_turn((None, T), (exponential, 0)), [(0, T)]),
    "between two": (in_turn((constant, 3), (None, 10), (exponential, 0)), [(3, 13)]),
    "at a milestone of 0": (in_turn((constant, 0), (None, 0)), [(0, T)]),
    "cut short by a milestone": (in_turn((None, 3), (constant, 0)), [(0, 3)]),
    "a milestone at the end": (in_turn((constant, STEPS), (None, 0)), []),
    "two in a row": (in_turn((None, 9), (None, 0)), [(0, 9), (9, STEPS)]),
    "three in a row": (
        in_turn((None, 5), (None, 7), (None, 0)),
        [(0, 5), (5, 12), (12, STEPS)],
    ),
    "apart in a row": (in_turn((None, 5), (linear, 4), (None, 0)), [(0, 5), (9, STEPS)]),
    "chained alone": (chained(None), [(0, T)]),
    "chained to a constant": (chained(constant, None), [(0, T)]),
    "chained before a constant": (chained(None, constant), [(0, T)]),
    "chained in the middle": (chained(linear, None, exponential), [(0, T)]),
    "chained to steps": (chained(stepwise, None, halving), [(0, T)]),
    "a row in a chain": (
        lambda o, make: ChainedScheduler(
            [in_turn((constant, 5), (None, 0))(o, make), exponential(o)]
        ),
        [(5, 5 + T)],
    ),
    "beside a plateau": (
        lambda o, make: Several([make(o), ReduceLROnPlateau(o, factor=0.5, patience=2)]),
        [(0, T)],
    ),
    "by hand after a warm-up": (
        lambda o, make: Several([linear(o), make(o)], turn=4),
        [(4, 4 + T)],
    ),
}


def optimizer_of(*lrs, dtype=None, kind=torch.optim.SGD):
    rates = [lr if dtype is None else torch.tensor(lr, dtype=dtype) for lr in lrs]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in rates]
    return kind(groups)


def rates_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def momentum(optimizer):
    group = optimizer.param_groups[0]
    return group["betas"][0] if "betas" in group else group["momentum"]


def run(optimizer, schedule, steps):
    """Return the rates with which each step was taken."""
    seen = []
    for _ in range(steps):
        seen.append(rates_of(optimizer))
        optimizer.step()
        schedule.step()
    return seen


def others_part(kind, place, dtype=None):
    """Return, for each step and group, the rate over lr_max and over the schedule's own share."""
    (make, share), (build, windows) = KINDS[kind], PLACES[place]
    optimizer = optimizer_of(*PEAKS, dtype=dtype)
    seen = run(optimizer, build(optimizer, make), STEPS)
    own = [1.0] * STEPS
    if place == "by hand after a warm-up":
        own[:4] = [share(0)] * 4
    for start, end in windows:
        own[start:end] = [share(step - start) for step in range(start, min(end, STEPS))]
    # Where the cosine is still at work after T steps it rises again, and ours do not.
    over = place not in ("before another", "between two", "cut short by a milestone")
    last = max((end for _, end in windows), default=STEPS) if over else STEPS
    return [
        [rate / peak / own[step] for rate, peak in zip(rates, PEAKS, strict=True)]
        for step, rates in enumerate(seen[:last])
    ]


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("place", PLACES)
def test_each_place_is_as_for_the_cosine(place, kind, dtype):
    ours, theirs = others_part(kind, place, dtype), others_part("cosine", place, dtype)
    assert len(ours) == len(theirs) >= 8
    rel = 1e-9 if dtype != torch.float32 else 1e-5
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=rel)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [p for p in PLACES if "chain" not in p and "beside" not in p])
def test_in_its_windows_it_is_the_closed_form_of_initial_lr(place, kind):
    (make, share), (build, windows) = KINDS[kind], PLACES[place]
    optimizer = optimizer_of(*PEAKS)
    seen = run(optimizer, build(optimizer, make), STEPS)
    for start, end in windows:
        for step in range(start, min(end, STEPS)):
            wanted = [peak * share(step - start) for peak in PEAKS]
            assert seen[step] == pytest.approx(wanted, rel=1e-9)
    assert [group["initial_lr"] for group in optimizer.param_groups] == list(PEAKS)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_scheduler_that_sets_the_rate_outright(kind):
    make, share = KINDS[kind]
    optimizer = optimizer_of(0.1)
    seen = run(optimizer, chained(None, fading)(optimizer, make), T)
    assert seen == [[pytest.approx(0.1 * 0.9**t)] for t in range(T)]
    optimizer = optimizer_of(0.1)
    seen = run(optimizer, chained(fading, None)(optimizer, make), T)
    for t in range(1, T):
        assert seen[t] == [pytest.approx(0.1 * 0.9**t * share(t) / share(t - 1))]


@pytest.mark.parametrize("kind", OURS)
def test_alone_nothing_but_the_closed_form_is_in_the_rate(kind):
    make, _ = KINDS[kind]
    optimizer = optimizer_of(*PEAKS)
    schedule = make(optimizer)
    for step in range(STEPS):
        assert schedule.get_last_lr() == rates_of(optimizer)
        assert rates_of(optimizer) == [peak * schedule.share() for peak in PEAKS]
        assert schedule.get_lr() == rates_of(optimizer), "asked outside of a step"
        assert schedule.last_epoch == step
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("kind", OURS)
def test_beyond_the_end_it_stays_and_others_go_on(kind):
    make, share = KINDS[kind]
    optimizer = optimizer_of(0.1)
    seen = run(optimizer, chained(None, exponential)(optimizer, make), STEPS)
    for step in range(T, STEPS):
        assert seen[step] == [pytest.approx(0.1 * share(T) * 0.9**step)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_to_an_epoch_is_the_closed_form(kind):
    make, share = KINDS[kind]
    optimizer = optimizer_of(0.1)
    schedule = make(optimizer)
    run(optimizer, schedule, 2)
    optimizer.param_groups[0]["lr"] = 0.7
    with pytest.warns(UserWarning, match="epoch parameter"):
        schedule.step(5)
    assert schedule.get_last_lr() == [pytest.approx(0.1 * share(5))]
    schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(0.1 * share(6))]


def saved(*things):
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in things], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [None, torch.float32], ids=str)
@pytest.mark.parametrize(
    "order", ["make schedule optimizer", "make optimizer schedule", "optimizer make schedule"]
)
@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("place", PLACES)
def test_resumes_bit_for_bit(place, kind, order, dtype):
    (make, _), (build, _) = KINDS[kind], PLACES[place]
    for stop in (0, 2, 4, 10):
        first = optimizer_of(*PEAKS, dtype=dtype)
        schedule = build(first, make)
        run(first, schedule, stop)
        optimizer_state, schedule_state = saved(first, schedule)
        resumed = optimizer_of(0.5, 0.5, dtype=dtype)
        for part in order.split():
            if part == "make":
                again = build(resumed, make)
            elif part == "optimizer":
                resumed.load_state_dict(optimizer_state)
            else:
                again.load_state_dict(schedule_state)
        assert momentum(resumed) == momentum(first)
        assert run(resumed, again, STEPS - stop) == run(first, schedule, STEPS - stop)
        assert momentum(resumed) == momentum(first)


@pytest.mark.parametrize("kind", KINDS)
def test_made_anew_with_last_epoch(kind):
    make, share = KINDS[kind]
    first = optimizer_of(*PEAKS)
    run(first, make(first), 5)
    resumed = optimizer_of(0.5, 0.5)
    resumed.load_state_dict(first.state_dict())
    given = {"cosine": (CosineAnnealingLR, {}), "one-cycle": (OneCycleLR, {})}
    form, options = given.get(kind, (SlantedTriangularLR, {"cut_frac": 0.3, "ratio": 4}))
    again = form(resumed, T, **options, last_epoch=4)
    for step, rates in enumerate(run(resumed, again, 5), 5):
        assert rates == pytest.approx([peak * share(step) for peak in PEAKS])


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")  # of any schedule's copy
@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("place", ["alone", "after a constant", "chained before a constant"])
def test_a_copy_goes_on_by_itself(place, kind, copied):
    (make, _), (build, _) = KINDS[kind], PLACES[place]
    optimizer = optimizer_of(*PEAKS)
    schedule = build(optimizer, make)
    run(optimizer, schedule, 2)
    if copied == "deepcopy":
        others, again = copy.deepcopy((optimizer, schedule))
    else:
        others, again = pickle.loads(pickle.dumps((optimizer, schedule)))
    before = rates_of(optimizer)
    there = run(others, again, STEPS - 2)
    assert rates_of(optimizer) == before
    assert there == run(optimizer, schedule, STEPS - 2)


@pytest.mark.parametrize("dtype", [None, torch.float32], ids=str)
@pytest.mark.parametrize("second", OURS)
@pytest.mark.parametrize("first", OURS)
@pytest.mark.parametrize("steps", [0, 1, 7, T])
def test_after_an_earlier_one_the_peak_is_still_initial_lr(first, second, steps, dtype):
    optimizer = optimizer_of(*PEAKS, dtype=dtype)
    run(optimizer, KINDS[first][0](optimizer), steps)
    make, share = KINDS[second]
    for step, rates in enumerate(run(optimizer, make(optimizer), T)):
        assert rates == pytest.approx([peak * share(step) for peak in PEAKS], rel=1e-6)


def test_the_peak_changes_with_initial_lr():
    optimizer = optimizer_of(0.1)
    run(optimizer, SlantedTriangularLR(optimizer, T), 4)
    optimizer.param_groups[0]["initial_lr"] = 0.3
    seen = run(optimizer, SlantedTriangularLR(optimizer, T, cut_frac=0.25), T)
    assert max(seen) == [pytest.approx(0.3)]


def test_two_in_one_chain_multiply():
    optimizer = optimizer_of(0.1)
    both = chained(None, None)(optimizer, KINDS["slanted"][0])
    for step, rates in enumerate(run(optimizer, both, T)):
        # The second, made on top of the first, cannot know yet that both will go on.
        assert rates == [pytest.approx(0.1 * slanted(step) ** (2 if step else 1))]


def test_a_rate_of_zero_keeps_what_others_did_before_it():
    optimizer = optimizer_of(0.1)
    chain = ChainedScheduler(
        [constant(optimizer), SlantedTriangularLR(optimizer, T, cut_frac=0.5, ratio=math.inf)]
    )
    for step, rates in enumerate(run(optimizer, chain, T)):
        share = step / 6 if step <= 6 else (T - step) / 6
        assert rates == [pytest.approx(0.1 * share * (0.1 if step < 3 else 1.0))]


def test_a_group_closed_by_a_rate_of_zero_stays_so_until_it_is_opened():
    optimizer = optimizer_of(0.1, 0.1)
    schedule = KINDS["slanted"][0](optimizer)
    run(optimizer, schedule, 2)
    optimizer.param_groups[0]["lr"] = 0.0
    seen = run(optimizer, schedule, 3)
    assert [low for low, _ in seen] == [0.0] * 3
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"]
    for low, high in run(optimizer, schedule, 5):
        assert low == pytest.approx(high) and high > 0


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("place", ["alone", "after a constant", "chained to a constant"])
def test_a_group_added_later_is_refused(place, kind):
    (make, _), (build, _) = KINDS[kind], PLACES[place]
    optimizer = optimizer_of(0.1)
    schedule = build(optimizer, make)
    run(optimizer, schedule, 4)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.5})
    before = optimizer.param_groups[-1].copy()
    optimizer.step()
    with pytest.raises(ValueError, match=r"has 2 parameter groups, but had 1 .* add_param_group"):
        schedule.step()
    assert optimizer.param_groups[-1] == before
    fresh = make(optimizer)
    assert fresh.base_lrs == [0.1, 0.5]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_the_momentum_cycles_from_its_milestone_on(kind):
    optimizer = optimizer_of(0.1, kind=kind)
    warm, cycle = constant(optimizer), OneCycleLR(optimizer, T)
    both, seen = SequentialLR(optimizer, [warm, cycle], [5]), []
    for _ in range(5 + T):
        seen.append(momentum(optimizer))
        optimizer.step()
        both.step()
    assert seen[5:] == pytest.approx([momentum_at(t) for t in range(T)])


@pytest.mark.parametrize(
    "order", ["make schedule optimizer", "make optimizer schedule", "optimizer make schedule"]
)
def test_two_cycles_of_momentum_in_a_row_and_resumed(order):
    def build(optimizer):
        first = OneCycleLR(optimizer, 6, moms=(0.95, 0.85, 0.95))
        return SequentialLR(optimizer, [first, OneCycleLR(optimizer, T)], [6])

    def momenta(optimizer, schedule, steps):
        seen = []
        for _ in range(steps):
            seen.append(momentum(optimizer))
            optimizer.step()
            schedule.step()
        return seen

    first = optimizer_of(0.1)
    whole = momenta(first, build(first), 6 + T)
    assert whole[0] == 0.95
    assert whole[6:] == pytest.approx([momentum_at(t) for t in range(T)])
    for stop in (0, 3, 6, 9):
        first = optimizer_of(0.1)
        schedule = build(first)
        momenta(first, schedule, stop)
        optimizer_state, schedule_state = saved(first, schedule)
        resumed = optimizer_of(0.1)
        for part in order.split():
            if part == "make":
                again = build(resumed)
            elif part == "optimizer":
                resumed.load_state_dict(optimizer_state)
            else:
                again.load_state_dict(schedule_state)
        assert momenta(resumed, again, 6 + T - stop) == whole[stop:]


EARLIER = {
    "slanted": (
        lambda o: SlantedTriangularLR(o, 8),
        {
            "cut_frac": 0.1,
            "ratio": 32,
            "total_steps": 8,
            "base_lrs": [0.001, 0.01],
            "last_epoch": 3,
            "_step_count": 4,
            "_is_initial": False,
            "_get_lr_called_within_step": False,
            "_last_lr": [0.0007039930555555556, 0.007039930555555556],
        },
        0.9,
        [0.0005694444444444445, 0.005694444444444445],
    ),
    "one-cycle": (
        lambda o: OneCycleLR(o, 8),
        {
            "pct_start": 0.25,
            "div": 25.0,
            "div_final": 100000.0,
            "moms": (0.8, 0.7, 0.8),
            "total_steps": 8,
            "base_lrs": [0.001, 0.01],
            "last_epoch": 3,
            "_step_count": 4,
            "_is_initial": False,
            "_get_lr_called_within_step": False,
            "_last_lr": [0.0009330133717652004, 0.009330133717652005],
        },
        0.7066987298107781,
        [0.0007500025, 0.0075000250000000004],
    ),
}


@pytest.mark.parametrize("kind", OURS)
def test_a_state_of_an_earlier_version_still_loads(kind):
    """Recorded when the state held the schedule's own numbers alone."""
    make, state, momentum_then, next_rates = EARLIER[kind]
    optimizer = optimizer_of(0.5, 0.5, kind=torch.optim.AdamW)
    schedule = make(optimizer)
    schedule.load_state_dict(copy.deepcopy(state))
    assert rates_of(optimizer) == state["_last_lr"] == schedule.get_last_lr()
    assert momentum(optimizer) == momentum_then
    optimizer.step()
    schedule.step()
    assert rates_of(optimizer) == next_rates
