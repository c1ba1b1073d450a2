"""What a fault in the middle of the kernels' work leaves behind, and what the user hears of it."""

import os
import threading

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

from failing_calls import MadeUp, assert_nothing_is_left_over, memory_full_of, out_of_memory
from interpreted_grid import concurrent_blocks

import ulmfit_fast as uf
from ulmfit_fast.kernels import (
    backward_persistent,
    backward_stepwise,
    forward_persistent,
    forward_stepwise,
    launch,
    tiles,
)

forms = pytest.mark.parametrize("form", ["triton-stepwise", "triton-persistent"])
MODULES = [backward_persistent, backward_stepwise, forward_persistent, forward_stepwise]
PERSISTENT = [forward_persistent, backward_persistent]
T, B, HIDDEN = 2, 2, 17


def make(form, **settings):
    torch.manual_seed(3)
    settings = {"weight_p": 0.5, "gate_p": (0.1, 0.0, 0.2, 0.0), **settings}
    lstm = uf.LSTM(5, HIDDEN, backend=form, **settings)
    return lstm, torch.randn(T, B, 5), tuple(torch.randn(2, 1, B, HIDDEN))


def results(lstm, x, state=None, seed=7, rows=slice(None)):
    x = x.detach().requires_grad_()
    output, (h, c) = lstm(x, state, seed=seed)
    loss = sum(part[:, rows].square().sum() for part in (output, h, c))
    return [output, h, c, *torch.autograd.grad(loss, [x, *lstm.parameters()])]


def assert_equal(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@forms
def test_out_of_memory_at_any_call_leaves_a_layer_that_goes_on(form):
    lstm, x, state = make(form)
    kept = [t.clone() for t in (x, *state, *lstm.parameters())]
    expected = results(lstm, x, state)
    with out_of_memory() as calls:
        results(lstm, x, state)
    with out_of_memory() as forwards, torch.no_grad():
        lstm(x, state, seed=7)
    assert 5 < len(forwards) < len(calls) - 5
    # Each time the launches before it run once more, and slowly here.
    some = {*range(0, len(calls), 1 + len(calls) // 12), len(forwards), len(calls) - 1}
    for at in sorted(some):
        generator = torch.get_rng_state()
        with out_of_memory(at), pytest.raises(MadeUp):
            results(lstm, x, state)
        assert torch.equal(torch.get_rng_state(), generator)
        assert_equal((x, *state, *lstm.parameters()), kept)
    assert_nothing_is_left_over()
    assert launch._pending == []
    assert_equal(results(lstm, x, state), expected)


@forms
@pytest.mark.parametrize("failing", [0, -1], ids=["first launch", "last launch"])
def test_a_launch_that_fails_is_no_refusal(form, failing, monkeypatch):
    """Another form would not help, and part of the work may have been done."""
    lstm, x, state = make(form)
    expected = results(lstm, x, state)
    launches = []

    class Failing:
        def __getitem__(self, grid):
            raise MadeUp("made up")

    def counting(kernel, *args, **settings):
        launches.append(kernel)
        launch.launch(Failing() if len(launches) == at else kernel, *args, **settings)

    at = None
    for module in MODULES:
        monkeypatch.setattr(module, "launch", counting)
    assert_equal(results(lstm, x, state), expected)
    at = 1 if failing == 0 else len(launches)
    assert len(launches) == (2 if form == "triton-persistent" else 2 * T)
    launches.clear()
    with pytest.raises(MadeUp):
        results(lstm, x, state)
    assert_equal(results(lstm, x, state), expected)


@forms
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("recompute", [False, True], ids=["gates kept", "gates again"])
def test_what_was_in_memory_before_does_not_matter(form, value, recompute):
    """Integers are filled as well: counters and the error flag must not rely on what was there."""
    lstm, x, state = make(form, recompute_gates=recompute)
    with memory_full_of(0.0):
        expected = results(lstm, x, state)
    with memory_full_of(value):
        got = results(lstm, x, state)
    assert all(part.isfinite().all() for part in got)
    assert_equal(got, expected)


# The interpreter computes with NumPy, which warns of what a device takes in silence.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@forms
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("where", [0, 1, 2], ids=["x", "h0", "c0"])
def test_an_illegal_value_stays_in_its_row(form, value, where):
    lstm, *healthy = make(form)
    ill = [tensor.clone() for tensor in (healthy[0], *healthy[1])]
    ill[where][:, 1] = value
    (output, h, c, grad, *_), sick = (
        results(lstm, x, (h0, c0), rows=[0]) for x, h0, c0 in ((healthy[0], *healthy[1]), ill)
    )
    for got, expected in zip(sick, (output, h, c, grad), strict=False):
        assert torch.equal(got[:, 0], expected[:, 0])
    if value != value:
        assert sick[0][:, 1].isnan().any() and sick[2][:, 1].isnan().all()


def several_blocks(monkeypatch, spins=3):
    """Have the persistent form run in blocks of 16 units, which one after the other cannot meet."""

    def chosen(batch_size, hidden_size):
        forward = tiles.PersistentTile(16, 16, 16, 1, 2, 4, 1)
        backward = tiles.BackwardTile(16, 2, 32, 16, 2, 2, False, 4, 1)
        return forward, backward

    monkeypatch.setattr(tiles, "_interpreter_tiles", chosen)
    for module in PERSISTENT:
        monkeypatch.setattr(module, "MAX_SPINS", spins)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_barrier_that_gave_up_in_the_forward_reaches_the_user(monkeypatch):
    lstm, x, state = make("triton-persistent")
    expected = results(lstm, x, state)
    with monkeypatch.context() as patched:
        several_blocks(patched)
        with pytest.raises(RuntimeError, match=r"forward LSTM kernel gave up.*triton-stepwise"):
            lstm(x, state, seed=7)
    # Counters and flag are of one launch: what comes after it is as ever.
    assert_equal(results(lstm, x, state), expected)


def test_a_barrier_that_gave_up_in_the_backward_reaches_the_user(monkeypatch):
    lstm, x, state = make("triton-persistent")
    expected = results(lstm, x, state)
    x.requires_grad_()
    output, _ = lstm(x, state, seed=7)
    with monkeypatch.context() as patched:
        several_blocks(patched)
        with pytest.raises(RuntimeError, match=r"backward LSTM kernel gave up.*triton-stepwise"):
            output.sum().backward()
    assert all(p.grad is None for p in (x, *lstm.parameters()))
    assert_equal(results(lstm, x, state), expected)


def test_counters_and_sums_do_not_rely_on_what_was_in_memory(monkeypatch):
    """Several blocks, which meet at counters and exchange partial sums."""
    lstm, x, state = make("triton-persistent")
    expected = results(lstm, x, state)
    several_blocks(monkeypatch, spins=10**9)
    for seed, value in enumerate((float("nan"), float("inf"))):
        with memory_full_of(value), concurrent_blocks(seed, at_accesses=False):
            got = results(lstm, x, state)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, atol=5e-6, rtol=2e-5)


@forms
def test_where_nobody_can_be_told_the_outputs_are_nan(form, monkeypatch):
    """As in a replay of a captured graph, which cannot raise."""
    lstm, x, state = make(form, gate_p=0.0)
    monkeypatch.setattr(torch, "empty", torch.zeros)
    several_blocks(monkeypatch)
    for module in PERSISTENT:
        monkeypatch.setattr(module, "watch", lambda error, what: None)
    output, (h, c) = lstm(x, state, seed=7)
    steps = [step.isnan().any().item() for step in output]
    # The first step needs no one else's, but who comes late to it finds what others left since.
    assert steps[1:] == [form == "triton-persistent"] * (T - 1)
    assert form == "triton-persistent" or not steps[0]
    assert h.isnan().any() == c.isnan().any() == (form == "triton-persistent")


class Event:
    """Stands in for a CUDA event; the launch before it has ended, or not yet."""

    def __init__(self, ended):
        self.ended, self.waited = ended, False

    def query(self):
        return self.ended

    def synchronize(self):
        self.waited = self.ended = True


def pending(monkeypatch, *launches):
    """Have the launches of a device wait for being looked at."""
    watched = [
        (event, torch.tensor([flag]), f"launch {number}")
        for number, (event, flag) in enumerate(launches)
    ]
    monkeypatch.setattr(launch, "_pending", watched)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def test_on_a_device_the_next_call_tells_of_a_barrier_that_gave_up(monkeypatch):
    lstm, x, state = make("triton-stepwise")
    expected = results(lstm, x, state)
    pending(monkeypatch, (Event(True), 0), (Event(True), 1), (Event(False), 1))
    with pytest.raises(RuntimeError, match="barrier of launch 1 gave up"):
        lstm(x, state, seed=7)
    # Told once; that of a launch which has not ended is left for later, and waited for if asked.
    assert_equal(results(lstm, x, state), expected)
    (event, _, _), *none = launch._pending
    assert none == [] and not event.waited
    with pytest.raises(RuntimeError, match="barrier of launch 2 gave up"):
        launch.raise_failed(wait=True)
    assert event.waited and launch._pending == []


def test_the_backward_tells_of_it_as_well(monkeypatch):
    lstm, x, state = make("triton-stepwise")
    output, _ = lstm(x.requires_grad_(), state, seed=7)
    pending(monkeypatch, (Event(True), 1))
    with pytest.raises(RuntimeError, match="barrier of launch 0 gave up"):
        output.sum().backward()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_refusal_half_way_is_told_since_rows_are_overwritten(direction, monkeypatch):
    """Nothing can start afresh there: what the kernels read, those before have written over."""
    torch.manual_seed(3)
    lstm = uf.LSTM(5, HIDDEN, weight_p=0.5, backend="triton")
    x = torch.randn(T, 20, 5)
    expected = results(lstm, x)
    real = tiles.choose

    def one_group_a_launch(*args, **settings):
        plan = real(*args, **{**settings, "form": "persistent"})
        one = plan.forward._replace(groups=1), plan.backward._replace(groups=1)
        return plan._replace(forward=one[0], backward=one[1])

    def refuse_the_second(kernel, grid, *args, **settings):
        grids.append(grid)
        launch.launch(Refused() if len(grids) == 2 else kernel, grid, *args, **settings)

    class Refused:
        __name__ = "the kernel"

        def __getitem__(self, grid):
            raise RuntimeError("too many blocks in cooperative launch")

    grids = []
    monkeypatch.setattr(tiles, "choose", one_group_a_launch)
    module = forward_persistent if direction == "forward" else backward_persistent
    monkeypatch.setattr(module, "launch", refuse_the_second)
    with pytest.raises(RuntimeError, match=r'launches before it have run.*"triton-stepwise"'):
        results(lstm, x)
    assert len(grids) == 2
    monkeypatch.undo()
    assert_equal(results(lstm, x), expected)


def test_two_threads_that_look_lose_no_launch(monkeypatch):
    """The second looks while the first one asks whether the launch has ended."""
    told = []

    def look():
        try:
            launch.raise_failed()
        except RuntimeError as error:
            told.append(str(error))

    class Slow(Event):
        def query(self):
            if threading.current_thread() is not second:
                second.start()
                # Where it has to wait for the first one, it cannot end before.
                second.join(0.5)
            return True

    second = threading.Thread(target=look)
    pending(monkeypatch, (Slow(True), 0), (Event(True), 1))
    look()
    second.join()
    assert len(told) == 1 and "barrier of launch 1 gave up" in told[0]
    assert launch._pending == []
