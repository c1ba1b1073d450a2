"""The one-cycle schedule: fastai's values, the momentum, resume."""

import io
import math

import pytest
import torch

from ulmfit_fast.optim import OneCycleLR


def optimizer_of(*lrs, kind=torch.optim.AdamW):
    return kind([{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in lrs])


def trace(optimizer, total_steps, steps=None, **kwargs):
    """Return (rates, momentum) of each step."""
    scheduler = OneCycleLR(optimizer, total_steps, **kwargs)
    seen = []
    for _ in range(steps or total_steps):
        groups = optimizer.param_groups
        key = "betas" in groups[0]
        momentum = groups[0]["betas"][0] if key else groups[0]["momentum"]
        seen.append(([group["lr"] for group in groups], momentum))
        optimizer.step()
        scheduler.step()
    return seen


def fastai(pct, start, middle, end, pos):
    """Two half cosines one after the other, each from its own start to its own end."""
    if pos < pct:
        pos, low, high = pos / pct, start, middle
    else:
        pos, low, high = (pos - pct) / (1 - pct), middle, end
    return low + (1 + math.cos(math.pi * (1 - pos))) * (high - low) / 2


@pytest.mark.parametrize("total_steps", [1, 2, 7, 100])
@pytest.mark.parametrize(("pct", "div", "final"), [(0.25, 25, 1e5), (0.3, 5, 25e4), (0.99, 25, 1)])
def test_values_are_those_of_fastai(total_steps, pct, div, final):
    seen = trace(optimizer_of(0.001, 0.01), total_steps, pct_start=pct, div=div, div_final=final)
    for step, (rates, momentum) in enumerate(seen):
        pos = step / total_steps
        for rate, largest in zip(rates, (0.001, 0.01), strict=True):
            wanted = fastai(pct, largest / div, largest, largest / final, pos)
            assert rate == pytest.approx(wanted, rel=1e-12)
        assert momentum == pytest.approx(fastai(pct, 0.8, 0.7, 0.8, pos), rel=1e-12)


def test_recorded_values_of_fastai():
    """From fastai 2.8.12: combined_cos(.25, lr/25, lr, lr/1e5) and (.25, .8, .7, .8)."""
    seen = trace(optimizer_of(0.01), 40)
    recorded = {
        0: (0.0004, 0.8),
        4: (0.0037167, 0.7654508),
        10: (0.01, 0.7),
        15: (0.0093301, 0.7066987),
        39: (0.0000275, 0.7997261),
    }
    for step, (rate, momentum) in recorded.items():
        assert seen[step][0][0] == pytest.approx(rate, abs=6e-8)
        assert seen[step][1] == pytest.approx(momentum, abs=6e-8)


def test_momentum_of_sgd_or_none():
    sgd = optimizer_of(0.1, kind=torch.optim.SGD)
    assert [round(m, 6) for _, m in trace(sgd, 4, moms=(0.9, 0.5, 0.95))] == [
        0.9,
        0.5,
        0.6125,
        0.8375,
    ]
    adam = optimizer_of(0.1)
    assert {m for _, m in trace(adam, 8, moms=None)} == {0.9}
    assert adam.param_groups[0]["betas"][1] == 0.999


def test_stays_at_its_end():
    seen = trace(optimizer_of(0.01), 10, steps=13)
    assert seen[10] == seen[12] == ([pytest.approx(0.01 / 1e5)], pytest.approx(0.8))


def test_it_is_not_the_schedule_of_torch():
    ours = [rates[0] for rates, _ in trace(optimizer_of(0.01), 40)]
    optimizer = optimizer_of(0.01)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, 40, pct_start=0.25, final_div_factor=1e5 / 25
    )
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates[9] == pytest.approx(0.01) and ours[10] == pytest.approx(0.01)
    assert ours[9] < 0.0099


@pytest.mark.parametrize("order", ["make schedule optimizer", "optimizer make schedule"])
def test_resumes_bit_for_bit(order):
    whole = trace(optimizer_of(0.001, 0.01), 30)
    optimizer = optimizer_of(0.001, 0.01)
    scheduler = OneCycleLR(optimizer, 30)
    for _ in range(13):
        optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    optimizer_state, scheduler_state = torch.load(file, weights_only=True)
    resumed = optimizer_of(0.5, 0.5)
    for part in order.split():
        if part == "make":
            again = OneCycleLR(resumed, 30)
        elif part == "optimizer":
            resumed.load_state_dict(optimizer_state)
        else:
            again.load_state_dict(scheduler_state)
    for step in range(13, 30):
        rates, momentum = whole[step]
        assert [group["lr"] for group in resumed.param_groups] == rates
        assert {group["betas"][0] for group in resumed.param_groups} == {momentum}
        resumed.step()
        again.step()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0"),
        ({"pct_start": 0.0}, "pct_start is 0.0, expected a share"),
        ({"pct_start": 1.0}, "pct_start is 1.0"),
        ({"div": 0.5}, "div is 0.5, expected a number, at least 1"),
        ({"div_final": math.inf}, "div_final is inf"),
        ({"moms": (0.8, 0.7)}, r"moms is \(0.8, 0.7\), expected three numbers"),
        ({"moms": (0.8, 1.0, 0.8)}, "expected three numbers in"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        OneCycleLR(optimizer_of(0.01), **{"total_steps": 10, **kwargs})


def test_an_optimizer_without_momentum_is_refused():
    with pytest.raises(ValueError, match=r"the ASGD has neither betas nor momentum.*moms=None"):
        OneCycleLR(optimizer_of(0.01, kind=torch.optim.ASGD), 10)
