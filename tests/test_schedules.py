"""The slanted triangular learning rate: worked values, shape, resume."""

import io
import math

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
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)


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
