"""The persistent kernels with several blocks at once, which meet at their barriers."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

from interpreted_grid import concurrent_blocks

from ulmfit_fast.kernels import (
    backward_persistent,
    backward_stepwise,
    forward_persistent,
    forward_stepwise,
    grid_barrier,
    launch,
    weight_drop,
)
from ulmfit_fast.kernels.launch import DropArguments, LayerCall
from ulmfit_fast.kernels.tiles import BackwardTile, PersistentTile, StepTile

pytestmark = pytest.mark.usefixtures("nan_workspaces")
SEED = torch.tensor(2**40 + 17)
STEP = StepTile(rows=16, units=16, block_k=16, warps=4, stages=1)


class Layer:
    """Buffers of one call, as the operator makes them."""

    def __init__(self, steps, batch_size, hidden, *, gate_mask=0, reverse=False, lengths=None):
        generator = torch.Generator().manual_seed(5)

        def draw(*shape):
            return torch.randn(*shape, generator=generator)

        self.weight = draw(4 * hidden, hidden) * hidden**-0.5
        self.inputs = draw(steps, batch_size, 4 * hidden)
        self.h0, self.c0 = draw(batch_size, hidden), draw(batch_size, hidden)
        self.grads = [draw(steps, batch_size, hidden), *draw(2, batch_size, hidden)]
        self.lengths = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
        drops = DropArguments.of((0.5, 0.2, 0.5, 0.0)), DropArguments.of((0.1, 0.0, 0.3, 0.0))
        self.call = LayerCall(*drops, gate_mask, reverse, 2 + int(reverse), "ieee")
        self.dropped = weight_drop.drop_weight(
            self.weight, self.call.weight_drop, SEED, self.call.mask_stream
        )
        self.first = steps if reverse else 0

    def forward(self, tile, fill=float("nan")):
        """Return gates, states and cells."""
        steps, batch_size, width = self.inputs.shape
        gates = self.inputs.clone()
        states = torch.full((steps + 1, batch_size, width // 4), fill)
        cells = states.clone()
        states[self.first], cells[self.first] = self.h0, self.c0
        buffers = (states, cells, self.lengths, SEED, self.call, tile)
        if isinstance(tile, StepTile):
            forward_stepwise.run(gates, self.dropped, *buffers)
        else:
            forward_persistent.run(gates, self.weight, *buffers)
        return gates, states, cells

    def backward(self, gates, cells, tile):
        """Return grad_gates, grad_h0 and grad_c0."""
        grad_output, grad_h, grad_c = (grad.clone() for grad in self.grads)
        buffers = (grad_h, grad_c, self.lengths, SEED, self.call, tile)
        if isinstance(tile, StepTile):
            result = backward_stepwise.run(grad_output, gates, cells, self.dropped, *buffers)
        else:
            result = backward_persistent.run(grad_output, gates, cells, self.weight, *buffers)
        return *result, grad_c


def forward_tile(groups=1, k_parts=1, resident=False):
    return PersistentTile(16, 16, 16, 2, 4, groups, k_parts, resident)


def backward_tile(grouped, groups=1, resident=False):
    return BackwardTile(16, 2, 32, 16, 2, grouped, 4, groups, resident)


# Gate masks take half of the time, so they are where rows, units or steps could be mistaken.
LAYERS = {
    "3 blocks": {"steps": 4, "batch_size": 3, "hidden": 48},
    "a masked last block": {"steps": 3, "batch_size": 3, "hidden": 50, "gate_mask": 1},
    "whole tiles": {"steps": 4, "batch_size": 16, "hidden": 32, "gate_mask": 2},
    "groups of rows": {"steps": 3, "batch_size": 33, "hidden": 32, "gate_mask": 1},
    "reverse": {"steps": 5, "batch_size": 3, "hidden": 48, "gate_mask": 1, "reverse": True},
    "lengths": {"steps": 4, "batch_size": 3, "hidden": 37, "lengths": [4, 1, 2]},
    "reverse, lengths": {
        "steps": 4,
        "batch_size": 3,
        "hidden": 37,
        "lengths": [3, 1, 0],
        "reverse": True,
    },
}
resident = pytest.mark.parametrize("resident", [False, True], ids=["pipelined", "resident"])
layers = pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)


@layers
def test_forward_under_any_schedule(settings):
    layer = Layer(**settings)
    expected = layer.forward(STEP)
    runs = []
    # One, two and all groups of rows in a launch; the weight on chip or not.
    for seed, groups in enumerate((1, 2, 3)):
        with concurrent_blocks(seed, at_accesses=seed != 1) as order:
            runs.append(layer.forward(forward_tile(groups, resident=seed == 1)))
        assert len(set(order)) >= 2
    for first, *others, want in zip(*runs, expected, strict=True):
        assert all(torch.equal(first, other) for other in others)
        torch.testing.assert_close(first, want, atol=2e-6, rtol=2e-5)


@layers
@pytest.mark.parametrize("k_parts", [2, 4])
def test_a_forward_split_both_ways_under_any_schedule(settings, k_parts):
    layer = Layer(**settings)
    expected = layer.forward(STEP)
    runs = []
    for seed, groups in enumerate((3, 2)):
        with concurrent_blocks(seed, at_accesses=bool(seed)) as order:
            runs.append(layer.forward(forward_tile(groups, k_parts, resident=not seed)))
        assert len(set(order)) >= k_parts
    for first, second, want in zip(*runs, expected, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, want, atol=2e-6, rtol=2e-5)


@layers
def test_backward_under_any_schedule(settings):
    layer = Layer(**settings)
    gates, _, cells = layer.forward(STEP)
    expected = layer.backward(gates, cells, STEP)
    runs = []
    for seed, tile in enumerate([(False, 3, True), (True, 2, False)]):
        with concurrent_blocks(seed, at_accesses=bool(seed)):
            runs.append(layer.backward(gates, cells, backward_tile(*tile)))
    for got, again, want in zip(*runs, expected, strict=True):
        assert torch.equal(got, again)
        torch.testing.assert_close(got, want, atol=5e-6, rtol=2e-5)


def test_a_k_range_of_parts_of_tiles_is_refused():
    layer = Layer(2, 3, 48)
    gates, _, cells = layer.forward(STEP)
    with pytest.raises(ValueError, match="K-tiles of 64 do not divide K ranges of 96"):
        layer.backward(gates, cells, BackwardTile(16, 2, 16, 64, 1, False, 4, 1))


@pytest.mark.parametrize("grouped", [False, True], ids=["whole-grid", "grouped"])
def test_backward_gives_the_same_bits_under_many_schedules(grouped):
    layer = Layer(5, 2, 48)
    gates, _, cells = layer.forward(STEP)
    results = []
    for seed in range(4):
        with concurrent_blocks(seed, at_accesses=False):
            results.append(layer.backward(gates, cells, backward_tile(grouped)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@resident
@pytest.mark.parametrize("direction", ["forward", "split forward", "backward"])
def test_a_barrier_that_waits_in_vain_ends_in_an_error_and_nan(direction, resident, monkeypatch):
    """One block runs after the other here, so the first waits for what has not begun."""
    layer = Layer(4, 3, 48)
    gates, _, cells = layer.forward(STEP)
    failed = []

    def watch(error, what):
        with pytest.raises(RuntimeError, match=r'gave up waiting.*backend="triton-stepwise"'):
            launch.watch(error, what)
        failed.append(what)

    # The NaN must come from the barrier, not from memory that is full of it.
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    for module in (forward_persistent, backward_persistent):
        monkeypatch.setattr(module, "MAX_SPINS", 3)
        monkeypatch.setattr(module, "watch", watch)
    if direction != "backward":
        tile = forward_tile(k_parts=1 + (direction == "split forward"), resident=resident)
        results = [part[-1] for part in layer.forward(tile, fill=0.0)]
    else:
        grad_gates, *rest = layer.backward(gates, cells, backward_tile(False, resident=resident))
        results = [grad_gates[0], *rest]
    assert failed == [f"the {direction.split()[-1]} LSTM kernel"]
    assert all(part.isnan().all() for part in results)


def test_giving_up_at_the_very_last_meeting_shows_as_well(monkeypatch):
    """There the gates' gradients are right, and what is formed of other blocks' is not."""
    layer = Layer(1, 3, 48)
    gates, _, cells = layer.forward(STEP)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    monkeypatch.setattr(backward_persistent, "MAX_SPINS", 3)
    monkeypatch.setattr(backward_persistent, "watch", lambda *args: None)
    _, grad_h, _ = layer.backward(gates, cells, backward_tile(False))
    assert grad_h.isnan().all()


def test_a_barrier_that_did_not_give_up_is_no_error():
    launch.watch(torch.zeros(1, dtype=torch.int32), "the forward LSTM kernel")


@pytest.mark.parametrize("k_parts", [1, 2])
def test_a_missing_wait_is_seen(monkeypatch, k_parts):
    """So equal results mean that the barriers hold."""
    layer = Layer(4, 3, 48)
    expected = layer.forward(STEP)[1]
    monkeypatch.setattr(
        forward_persistent, "wait", lambda counter, error, target, alive, *rest: alive
    )
    wrong = 0
    for seed in range(3):
        with concurrent_blocks(seed):
            states = layer.forward(forward_tile(k_parts=k_parts))[1]
        wrong += not torch.allclose(states, expected, atol=1e-5)
    assert wrong
    assert grid_barrier.wait is not forward_persistent.wait
