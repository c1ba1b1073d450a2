"""What the tests of the GPU stand on, as far as a CPU can show it."""

import warnings

import pytest
import torch
from rehearsal import TF32_SHARE, never_waiting
from rounding import errors


def truncated(value):
    """Return float32 without its low 13 bits, as tensor cores read TF32."""
    return (value.view(torch.int32) & -(1 << 13)).view(torch.float32)


def rounded(value):
    """Return float32 rounded to the nearest TF32, as cuDNN may hand it to them."""
    return truncated((value.view(torch.int32) + (1 << 12)).view(torch.float32))


@pytest.mark.parametrize("terms", [17, 400, 1152])
def test_truncated_products_are_farther_than_twice_rounded_ones_and_within_the_share(terms):
    a, b = torch.randn(64, terms), torch.randn(terms, 256)
    truth = [a.double() @ b.double()]
    (ours,), (theirs,) = (
        errors([kept(a).double() @ kept(b).double()], truth) for kept in (truncated, rounded)
    )
    assert 2 * theirs < ours <= TF32_SHARE * theirs


def test_to_watch_for_waits_warns_of_nothing_and_ends_with_the_block(monkeypatch):
    modes = []

    def set_mode(mode):
        # PyTorch sets it first and warns then: as an error that leaves it set.
        modes.append(mode)
        if mode != "default":
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with never_waiting():
            assert modes == ["error"]
        with pytest.raises(ZeroDivisionError), never_waiting():
            raise ZeroDivisionError
    assert modes == ["error", "default"] * 2
