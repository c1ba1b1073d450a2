"""The persistent kernels with several blocks at once, which meet at their barriers."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

from interpreted_grid import concurrent_blocks

from ulmfit_fast.kernels import grid_barrier, lstm_backward, lstm_forward, weight_drop
from ulmfit_fast.kernels.launch import DropArguments, LayerCall
from ulmfit_fast.kernels.tiles import BackwardTile, PersistentTile, StepTile

SEED = torch.tensor(2**40 + 17)
STEP = StepTile(rows=16, units=16, block_k=16, warps=4, stages=1)


class Layer:
    """Buffers of one call, as the operator makes them."""

    def __init__(self, steps, batch_size, hidden, *, reverse=False, lengths=None):
        generator = torch.Generator().manual_seed(5)

        def draw(*shape):
            return torch.randn(*shape, generator=generator)

        self.weight = draw(4 * hidden, hidden) * hidden**-0.5
        self.inputs = draw(steps, batch_size, 4 * hidden)
        self.h0, self.c0 = draw(batch_size, hidden), draw(batch_size, hidden)
        self.grads = [draw(steps, batch_size, hidden), *draw(2, batch_size, hidden)]
        self.lengths = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
        drops = DropArguments.of((0.5, 0.2, 0.5, 0.0)), DropArguments.of((0.1, 0.0, 0.3, 0.0))
        self.call = LayerCall(*drops, 1, reverse, 2 + int(reverse), "ieee")
        self.dropped = weight_drop.drop_weight(
            self.weight, self.call.weight_drop, SEED, self.call.mask_stream
        )
        self.first = steps if reverse else 0

    def forward(self, tile):
        """Return gates, states and cells."""
        steps, batch_size, width = self.inputs.shape
        gates = self.inputs.clone()
        states = torch.full((steps + 1, batch_size, width // 4), float("nan"))
        cells = states.clone()
        states[self.first], cells[self.first] = self.h0, self.c0
        buffers = (self.dropped, states, cells, self.lengths, SEED, self.call, tile)
        if isinstance(tile, StepTile):
            lstm_forward.run_stepwise(gates, *buffers)
        else:
            lstm_forward.run_persistent(gates, self.weight, *buffers)
        return gates, states, cells

    def backward(self, gates, cells, tile):
        """Return grad_gates, grad_h0 and grad_c0."""
        grad_output, grad_h, grad_c = (grad.clone() for grad in self.grads)
        buffers = (self.dropped, grad_h, grad_c, self.lengths, SEED, self.call, tile)
        if isinstance(tile, StepTile):
            result = lstm_backward.run_stepwise(grad_output, gates, cells, *buffers)
        else:
            result = lstm_backward.run_persistent(grad_output, gates, cells, self.weight, *buffers)
        return *result, grad_c


def forward_tile(resident=1, groups=1):
    return PersistentTile(16, 16, 16, resident, 2, 4, groups)


def backward_tile(grouped, resident=2, groups=1):
    return BackwardTile(16, 2, 32, 16, resident, 2, grouped, 4, groups)


LAYERS = {
    "3 blocks": {"batch_size": 3, "hidden": 48},
    "a masked last block": {"batch_size": 3, "hidden": 37},
    "groups of rows": {"batch_size": 33, "hidden": 32},
    "reverse": {"batch_size": 3, "hidden": 48, "reverse": True},
    "lengths": {"batch_size": 3, "hidden": 37, "lengths": [3, 1, 2]},
    "reverse, lengths": {"batch_size": 3, "hidden": 37, "lengths": [3, 1, 0], "reverse": True},
}
layers = pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)


@layers
@pytest.mark.parametrize(("resident", "groups"), [(0, 1), (1, 2), (2, 3)])
def test_forward_under_any_schedule(settings, resident, groups):
    layer = Layer(3, **settings)
    expected = layer.forward(STEP)
    runs = []
    for seed in range(2):
        with concurrent_blocks(seed, at_accesses=bool(seed)) as order:
            runs.append(layer.forward(forward_tile(resident, groups)))
        assert len(set(order)) >= 2
    for got, again, want in zip(*runs, expected, strict=True):
        assert torch.equal(got, again)
        torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-5)


@layers
@pytest.mark.parametrize("grouped", [False, True], ids=["whole-grid", "grouped"])
def test_backward_under_any_schedule(settings, grouped):
    layer = Layer(3, **settings)
    gates, _, cells = layer.forward(STEP)
    expected = layer.backward(gates, cells, STEP)
    runs = []
    for seed in range(2):
        with concurrent_blocks(seed, at_accesses=bool(seed)):
            runs.append(layer.backward(gates, cells, backward_tile(grouped, 2 + seed, 1 + seed)))
    for got, again, want in zip(*runs, expected, strict=True):
        assert torch.equal(got, again)
        torch.testing.assert_close(got, want, atol=5e-6, rtol=2e-5)


def test_backward_gives_the_same_bits_under_many_schedules():
    layer = Layer(3, 2, 48)
    gates, _, cells = layer.forward(STEP)
    results = []
    for seed in range(6):
        with concurrent_blocks(seed, at_accesses=False):
            results.append(layer.backward(gates, cells, backward_tile(seed % 2 == 1)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_barrier_that_waits_in_vain_ends_in_an_error_and_nan(direction, monkeypatch):
    """One block runs after the other here, so the first waits for what has not begun."""
    layer = Layer(3, 3, 48)
    module = lstm_forward if direction == "forward" else lstm_backward
    monkeypatch.setattr(module, "MAX_SPINS", 3)
    seen = {}
    monkeypatch.setattr(
        module, "watch", lambda error, what: seen.update(error=int(error), what=what)
    )
    if direction == "forward":
        _, result, _ = layer.forward(forward_tile())
        result = result[1:]
    else:
        gates, _, cells = layer.forward(STEP)
        _, _, result = layer.backward(gates, cells, backward_tile(False))
    assert seen["error"] == 1
    assert direction in seen["what"]
    assert result.isnan().any()


def test_the_error_names_the_mend():
    from ulmfit_fast.kernels import launch

    with pytest.raises(RuntimeError, match=r'gave up waiting.*backend="triton-stepwise"'):
        launch.watch(torch.ones(1, dtype=torch.int32), "the forward LSTM kernel")
    launch.watch(torch.zeros(1, dtype=torch.int32), "the forward LSTM kernel")


def test_a_missing_wait_is_seen(monkeypatch):
    """So equal results mean that the barriers hold."""
    layer = Layer(4, 3, 48)
    expected = layer.forward(STEP)[1]
    monkeypatch.setattr(lstm_forward, "wait", lambda counter, error, target, alive, *rest: alive)
    wrong = 0
    for seed in range(4):
        with concurrent_blocks(seed):
            states = layer.forward(forward_tile())[1]
        wrong += not torch.allclose(states, expected, atol=1e-5)
    assert wrong
    assert grid_barrier.wait is not lstm_forward.wait
