"""What the LSTM operator refuses, by which error and in which words."""

import pytest
import torch

import ulmfit_fast as uf
from ulmfit_fast.functional import lstm

DOUBLE = torch.float64
BAD = {
    "x-2d": ({"x": torch.zeros(5, 4)}, ValueError, r"x has shape \(5, 4\), expected \(T, B, E\)"),
    "x-empty": ({"x": torch.zeros(0, 3, 4)}, ValueError, "at least one time step"),
    "x-tokens": ({"x": torch.zeros(5, 3, 4, dtype=torch.int64)}, TypeError, "embed the tokens"),
    "dtype": ({"x": torch.zeros(5, 3, 4)}, TypeError, "w_ih has dtype torch.float64"),
    "features": ({"x": torch.zeros(5, 3, 9, dtype=DOUBLE)}, ValueError, r"expected \(24, 9\)"),
    "state": (
        {"state": (torch.zeros(2, 6, dtype=DOUBLE),) * 2},
        ValueError,
        r"h0 has shape \(2, 6\), expected \(3, 6\)",
    ),
    "w_hh": ({"w_hh": torch.zeros(24, 5, dtype=DOUBLE)}, ValueError, r"expected \(4H, H\)"),
    "bias": ({"b_ih": torch.zeros(6, dtype=DOUBLE)}, ValueError, "b_ih has shape"),
    "device": ({"w_ih": torch.zeros(24, 4, dtype=DOUBLE, device="meta")}, ValueError, "on meta"),
    "h0-device": (
        {"state": (torch.zeros(3, 6, device="meta"), torch.zeros(3, 6))},
        ValueError,
        "h0 is on meta and x on cpu",
    ),
    "c0-device": (
        {"state": (torch.zeros(3, 6), torch.zeros(3, 6, device="meta"))},
        ValueError,
        "c0 is on meta and x on cpu",
    ),
    "h0-dtype": (
        {"state": (torch.zeros(3, 6), torch.zeros(3, 6))},
        TypeError,
        "h0 has dtype torch.float32, expected torch.float64",
    ),
    "c0-narrow": (
        {"state": (torch.zeros(3, 6, dtype=DOUBLE), torch.zeros(3, 6))},
        TypeError,
        "c0 has dtype torch.float32, expected torch.float64 or wider",
    ),
    "state-tensor": ({"state": torch.zeros(2, 3, 6)}, TypeError, r"state is a Tensor.*\(h0, c0\)"),
    "state-three": ({"state": (torch.zeros(3, 6),) * 3}, TypeError, "state is 3 values"),
    "weight_p": ({"weight_p": 1.2}, ValueError, "weight_p is 1.2"),
    "weight_p-bool": ({"weight_p": True}, TypeError, "weight_p is True"),
    "weight_p-none": ({"weight_p": None}, TypeError, "weight_p is None"),
    "gate_p-string": ({"gate_p": "0.5"}, TypeError, "gate_p is '0.5'"),
    "gate_p-item": ({"gate_p": (0, 0, None, 0)}, TypeError, "gate_p is None"),
    "gate_p": ({"gate_p": (0.1, 0.2)}, ValueError, "gate_p has 2 values"),
    "gate_mask": ({"gate_mask": "row"}, ValueError, "gate_mask is 'row'"),
    "growth": ({"gate_p": 0.1, "gate_mask": "sequence"}, ValueError, r"grows as \(1-p\)\*\*-T"),
    "seed": ({"seed": -1}, ValueError, "seed is -1"),
    "seed-float": ({"seed": 1.5}, TypeError, "seed is 1.5, expected a whole number"),
    "seed-string": ({"seed": "a"}, TypeError, "seed is 'a', expected a whole number"),
    "seed-tensor": ({"seed": torch.zeros(2)}, ValueError, "0-d int64"),
    "lengths": ({"lengths": torch.tensor([1, 2])}, ValueError, "lengths has shape"),
    "lengths-list": ({"lengths": [5, 2, 1]}, TypeError, r"pass torch\.tensor"),
    "lengths-device": (
        {"lengths": torch.ones(3, device="meta").long()},
        ValueError,
        "lengths is on",
    ),
    "lengths-long": ({"lengths": torch.tensor([1, 9, 2])}, ValueError, "from 1 to 9"),
    "lengths-dtype": ({"lengths": torch.tensor([1.0, 1, 2])}, TypeError, "int64"),
    "masks": (
        {"masks": uf.DropoutMasks(torch.ones(3, 3), None)},
        ValueError,
        "masks.weight has shape",
    ),
    "masks-gate": (
        {"masks": (None, torch.ones(4, 3, 24))},
        ValueError,
        r"masks.gate has shape \(4, 3, 24\), expected \(5 or 1, 3, 24\)",
    ),
    "masks-gate-0d": (
        {"masks": (None, torch.tensor(1.0))},
        ValueError,
        r"masks.gate has shape \(\)",
    ),
    "masks-dtype": ({"masks": (torch.ones(24, 6).int(), None)}, TypeError, "has dtype torch.int32"),
    "masks-device": (
        {"masks": (torch.ones(24, 6, device="meta"), None)},
        ValueError,
        "masks.weight is on meta and x on cpu",
    ),
    "masks-tensor": (
        {"masks": torch.ones(24, 6)},
        TypeError,
        r"masks is a Tensor.*\(weight, gate\)",
    ),
    "masks-items": ({"masks": (0.5, None)}, TypeError, r"masks is \(float, NoneType\)"),
    "backend": ({"backend": "cudnn"}, ValueError, "backend is 'cudnn', expected one of auto"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_named(change, error, message):
    shapes = {"x": (5, 3, 4), "w_ih": (24, 4), "w_hh": (24, 6), "b_ih": (24,), "b_hh": (24,)}
    given = {name: torch.zeros(shape, dtype=DOUBLE) for name, shape in shapes.items()}
    given["state"] = (torch.zeros(3, 6, dtype=DOUBLE),) * 2
    lstm(**given)
    with pytest.raises(error, match=message) as caught:
        lstm(**{**given, **change})
    assert "\n" not in str(caught.value)
