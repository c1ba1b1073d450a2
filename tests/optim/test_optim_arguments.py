"""What stands where a number or a list belongs, in every public call of `optim`: one clear line."""

import math

import numpy as np
import pytest
import torch

import ulmfit_fast as uf
from ulmfit_fast.optim import NTASGD, ChainThaw, OneCycleLR


def optimizer_of(lr):
    return torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr)


NO_NUMBERS = ["x", None, [1], True, 1j, math.nan, -1, 10**400, torch.tensor([1, 2])]
RIGHT = [
    ("lr", repr(torch.tensor([1, 2]))),  # refused by PyTorch, or further below
    ("last_epoch", "-1"),
    ("the validation loss", "-1"),
    ("epochs_per_stage", repr(10**400)),
]


def layers():
    return [torch.nn.Linear(2, 2) for _ in range(2)]


def averaging(lr=0.1, **options):
    return NTASGD([torch.nn.Parameter(torch.zeros(1))], lr, **options)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("total_steps", lambda value: uf.SlantedTriangularLR(optimizer_of(0.1), value)),
        ("cut_frac", lambda value: uf.SlantedTriangularLR(optimizer_of(0.1), 9, cut_frac=value)),
        ("ratio", lambda value: uf.SlantedTriangularLR(optimizer_of(0.1), 9, ratio=value)),
        (
            "last_epoch",
            lambda value: uf.SlantedTriangularLR(optimizer_of(0.1), 9, last_epoch=value),
        ),
        ("total_steps", lambda value: OneCycleLR(optimizer_of(0.1), value)),
        ("pct_start", lambda value: OneCycleLR(optimizer_of(0.1), 9, value)),
        ("div", lambda value: OneCycleLR(optimizer_of(0.1), 9, div=value)),
        ("div_final", lambda value: OneCycleLR(optimizer_of(0.1), 9, div_final=value)),
        ("moms", lambda value: OneCycleLR(optimizer_of(0.1), 9, moms=(0.8, value, 0.8))),
        ("last_epoch", lambda value: OneCycleLR(optimizer_of(0.1), 9, last_epoch=value)),
        ("lr", lambda value: averaging(value)),
        ("weight_decay", lambda value: averaging(weight_decay=value)),
        ("nonmono", lambda value: averaging(nonmono=value)),
        ("the validation loss", lambda value: averaging().evaluated(value)),
        ("lr", lambda value: uf.discriminative_groups(layers(), value)),
        ("factor", lambda value: uf.discriminative_groups(layers(), 0.1, value)),
        (
            "multipliers",
            lambda value: uf.discriminative_groups(layers(), 0.1, multipliers=[1, value]),
        ),
        ("epochs_per_stage", lambda value: uf.GradualUnfreezing(layers(), [value])),
        ("epochs_per_stage", lambda value: ChainThaw(layers(), [value, 1])),
    ],
)
def test_a_number_is_checked_where_it_is_handed_in(name, make, value):
    if (name, repr(value)) in RIGHT:
        return
    with pytest.raises(ValueError, match=rf"^{name}(\[1\])? is .*, expected") as caught:
        make(value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("value", [3, None, True, "ab"])
def test_lists_are_checked_where_they_are_handed_in(value):
    if value is not None:
        with pytest.raises(
            (TypeError, ValueError), match=r"multipliers is .*, expected a positive"
        ):
            uf.discriminative_groups(layers(), 0.1, multipliers=value)
    for make in (lambda v: uf.discriminative_groups(v, 0.1), uf.GradualUnfreezing, ChainThaw):
        with pytest.raises(TypeError, match=r"(model is|a group has a) .*, expected"):
            make(value)


def test_numbers_of_other_libraries_are_held_as_floats():
    for half in (np.float32(0.5), torch.tensor(0.5)):
        scheduler = uf.SlantedTriangularLR(optimizer_of(0.1), np.int64(9), half, np.float32(4))
        cycle = OneCycleLR(optimizer_of(0.1), 9.0, half, moms=(half, half, half))
        for own in (scheduler.cut_frac, scheduler.ratio, cycle.pct_start, *cycle.moms):
            assert type(own) is float
        assert type(scheduler.total_steps) is type(cycle.total_steps) is int


def test_rates_may_be_tensors():
    for rate in (torch.tensor(0.1), torch.tensor([0.1])):
        assert averaging(rate).param_groups[0]["lr"] is rate
        top = uf.discriminative_groups(layers(), rate)[1]["lr"]
        assert isinstance(top, torch.Tensor) and top.equal(rate)
    for rate in (torch.tensor(math.nan), torch.tensor(-0.1), torch.tensor([0.1, 0.2])):
        with pytest.raises(ValueError, match=r"^lr is tensor.*, expected a positive number"):
            uf.discriminative_groups(layers(), rate)
