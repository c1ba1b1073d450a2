"""The slanted triangular learning rate: worked values, shape, resume."""

import io
import math
from itertools import pairwise

import pytest
import torch

import ulmfit_fast as uf


def optimizer_of(*lrs):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    return torch.optim.Adam(groups, lr=1.0)


def trace(total_steps, *, steps=None, lrs=(0.01,), **kwargs):
    """Return the rates of every step, one list a step."""
    optimizer = optimizer_of(*lrs)
    scheduler = uf.SlantedTriangularLR(optimizer, total_steps, **kwargs)
    rates = []
    for _ in range(total_steps if steps is None else steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("total_steps", "ratio", "step", "expected"),
    [
        (1000, math.inf, 50, 0.005),
        (1000, math.inf, 100, 0.01),
        (1000, math.inf, 500, 0.005556),
        (100, 32, 0, 3.125e-4),
        (100, 32, 5, 5.15625e-3),
        (100, 32, 10, 0.01),
        (100, 32, 55, 5.15625e-3),
        (100, 32, 99, 4.2014e-4),
        (100, math.inf, 0, 0.0),
        (100, math.inf, 99, 1.1111e-4),
    ],
)
def test_worked_values(total_steps, ratio, step, expected):
    assert trace(total_steps, ratio=ratio)[step][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("total_steps", [100, 1000])
def test_equals_the_paper_where_its_cut_is_a_whole_number(total_steps):
    cut_frac, ratio, largest = 0.1, 32, 0.01
    cut = math.floor(total_steps * cut_frac)
    for step, (rate,) in enumerate(trace(total_steps)):
        p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / cut_frac - 1))
        assert rate == pytest.approx(largest * (1 + p * (ratio - 1)) / ratio, rel=1e-12)


@pytest.mark.parametrize("cut_frac", [0.1, 0.3])
@pytest.mark.parametrize("ratio", [32, math.inf])
def test_never_negative_and_one_peak(cut_frac, ratio):
    for total_steps in [*range(1, 40), 105, 333, 500]:
        rates = [rate for (rate,) in trace(total_steps, cut_frac=cut_frac, ratio=ratio)]
        assert min(rates) >= 0
        assert max(rates) <= 0.01 * (1 + 1e-12)
        top = rates.index(max(rates))
        assert all(a < b for a, b in pairwise(rates[: top + 1]))
        assert all(a > b for a, b in pairwise(rates[top + 1 :]))
        if total_steps % 10 == 0:  # the cut is a whole number, so a step falls on it
            peaks = [step for step, rate in enumerate(rates) if rate == pytest.approx(0.01)]
            assert peaks == [round(total_steps * cut_frac)]
            assert rates[top] == pytest.approx(0.01, rel=1e-12)


def test_groups_keep_their_proportions():
    for low, high in trace(50, lrs=(0.001, 0.01)):
        assert high == pytest.approx(10 * low)


def test_stays_at_its_last_value_beyond_the_end():
    rates = trace(20, steps=25)
    assert rates[20] == rates[24] == [pytest.approx(0.01 / 32)]


@pytest.mark.parametrize("ratio", [32, math.inf])
def test_resumes_bit_for_bit(ratio):
    whole = trace(40, ratio=ratio, lrs=(0.001, 0.01))
    optimizer = optimizer_of(0.001, 0.01)
    scheduler = uf.SlantedTriangularLR(optimizer, 40, ratio=ratio)
    for _ in range(17):
        optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = optimizer_of(0.5, 0.5)
    again = uf.SlantedTriangularLR(resumed, 40)
    resumed.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["scheduler"])
    for step in range(17, 40):
        assert [group["lr"] for group in resumed.param_groups] == whole[step]
        resumed.step()
        again.step()


def train(optimizer, scheduler, steps):
    """Return the rates of each step and the weights after it."""
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        weights = [group["params"][0] for group in optimizer.param_groups]
        torch.stack(weights).square().sum().backward()
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        optimizer.step()
        scheduler.step()
        seen.append((rates, [weight.tolist() for weight in weights]))
    return seen


@pytest.mark.parametrize("tensors", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("ratio", [32, math.inf])
@pytest.mark.parametrize(
    "order",
    ["make schedule optimizer", "make optimizer schedule", "optimizer make schedule"],
)
def test_the_order_of_resume_does_not_matter(order, ratio, tensors):
    def start(*lrs):
        lrs = [torch.tensor(lr, dtype=torch.float64) if tensors else lr for lr in lrs]
        groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
        return torch.optim.Adam(groups, foreach=False)

    for stop in (0, 1, 9, 20):
        first = start(0.001, 0.01)
        scheduler = uf.SlantedTriangularLR(first, 20, ratio=ratio)
        train(first, scheduler, stop)
        resumed = start(0.5, 0.5)
        for new, old in zip(resumed.param_groups, first.param_groups, strict=True):
            new["params"][0].data.copy_(old["params"][0].data)
        file = io.BytesIO()
        torch.save([first.state_dict(), scheduler.state_dict()], file)
        file.seek(0)
        optimizer_state, scheduler_state = torch.load(file, weights_only=True)
        for part in order.split():
            if part == "make":
                again = uf.SlantedTriangularLR(resumed, 20)
            elif part == "optimizer":
                resumed.load_state_dict(optimizer_state)
            else:
                tensor = resumed.param_groups[0]["lr"]
                again.load_state_dict(scheduler_state)
                assert not tensors or resumed.param_groups[0]["lr"] is tensor, "filled in place"
        assert again.get_last_lr() == scheduler.get_last_lr()
        assert resumed.param_groups[0]["initial_lr"] == pytest.approx(0.001)
        assert train(resumed, again, 22 - stop) == train(first, scheduler, 22 - stop)


def test_rates_set_by_hand_are_those_that_a_second_schedule_peaks_at():
    optimizer = optimizer_of(0.01, 0.02)
    uf.SlantedTriangularLR(optimizer, 40)
    for group in optimizer.param_groups:
        group["lr"] = 0.3
    second = uf.SlantedTriangularLR(optimizer, 40, ratio=2)
    assert second.base_lrs == [0.01, 0.02]
    assert second.get_last_lr() == pytest.approx([0.15, 0.15])
    for _ in range(4):
        optimizer.step()
        second.step()
    assert second.get_last_lr() == pytest.approx([0.3, 0.3])
    resumed = uf.SlantedTriangularLR(optimizer, 40, last_epoch=3)
    assert resumed.get_last_lr() == resumed.base_lrs == [0.01, 0.02]


def test_state_of_something_else_is_refused():
    scheduler = uf.SlantedTriangularLR(optimizer_of(0.01), 40)
    with pytest.raises(ValueError, match="the state has no 'base_lrs'"):
        scheduler.load_state_dict({})
    other = uf.SlantedTriangularLR(optimizer_of(0.01, 0.1), 40)
    with pytest.raises(ValueError, match="the state has 2 rates, expected 1"):
        scheduler.load_state_dict(other.state_dict())
    assert scheduler.base_lrs == [0.01]


def test_resumes_from_last_epoch():
    whole = trace(40)
    optimizer = optimizer_of(0.01)
    uf.SlantedTriangularLR(optimizer, 40)
    scheduler = uf.SlantedTriangularLR(optimizer, 40, last_epoch=16)
    assert scheduler.get_last_lr() == whole[17]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0"),
        ({"total_steps": 2.5}, "total_steps is 2.5, expected a whole number"),
        ({"total_steps": math.nan}, "total_steps is nan, expected a whole number"),
        ({"last_epoch": -2}, "last_epoch is -2, expected a whole number, at least -1"),
        ({"last_epoch": 0.5}, "last_epoch is 0.5"),
        ({"cut_frac": math.nan}, "cut_frac is nan"),
        ({"cut_frac": 0.0}, "cut_frac is 0.0"),
        ({"cut_frac": 1.0}, "cut_frac is 1.0"),
        ({"ratio": 0.5}, "ratio is 0.5"),
        ({"ratio": math.nan}, "ratio is nan"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        uf.SlantedTriangularLR(optimizer_of(0.01), **{"total_steps": 10, **kwargs})
