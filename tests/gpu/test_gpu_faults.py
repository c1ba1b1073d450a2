"""Faults that only a device has: out of memory, barriers that give up, threads on streams."""

import threading

import pytest
import torch

import ulmfit_fast as uf
from ulmfit_fast.kernels import backward_persistent, forward_persistent
from ulmfit_fast.kernels.launch import raise_failed

FORMS = ["triton-persistent", "triton-stepwise"]
STEPS, BATCH_SIZE, WIDTH, HIDDEN = 20, 64, 400, 1152
pytestmark = pytest.mark.gpu


def layer(form, hidden=HIDDEN, seed=1):
    torch.manual_seed(seed)
    settings = {"weight_p": 0.5, "gate_p": (0.1, 0.0, 0.1, 0.0), "backend": form}
    return uf.LSTM(WIDTH, hidden, device="cuda", dtype=torch.bfloat16, **settings)


def inputs(batch_size=BATCH_SIZE, steps=STEPS):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(steps, batch_size, WIDTH, generator=generator)
    return x.to("cuda", torch.bfloat16).requires_grad_()


def results(lstm, x, seed=3):
    output, (h, c) = lstm(x, seed=seed)
    loss = output.float().square().sum() + h.float().sum() + c.float().sum()
    return [
        output.detach(),
        h.detach(),
        c.detach(),
        *torch.autograd.grad(loss, [x, *lstm.parameters()]),
    ]


def assert_equal(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_goes_on_after_memory_ran_out(form):
    lstm, x = layer(form), inputs(steps=200)
    results(lstm, x)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    expected = [part.cpu() for part in results(lstm, x)]
    needed = torch.cuda.max_memory_allocated() - before
    total = torch.cuda.get_device_properties(0).total_memory
    failures = 0
    try:
        # From the first buffer of the forward to the last one of the backward.
        for share in (0.05, 0.3, 0.5, 0.7, 0.9):
            torch.cuda.empty_cache()
            limit = torch.cuda.memory_reserved() + share * needed
            torch.cuda.set_per_process_memory_fraction(limit / total)
            try:
                results(lstm, x)
            except torch.OutOfMemoryError:
                failures += 1
            torch.cuda.set_per_process_memory_fraction(1.0)
            raise_failed(wait=True)
            assert_equal([part.cpu() for part in results(lstm, x)], expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert failures >= 2


def without_patience(monkeypatch):
    """Have a block that is not the last one at a barrier give up at its first look."""
    for module in (forward_persistent, backward_persistent):
        monkeypatch.setattr(module, "MAX_SPINS", 0)


def test_a_barrier_that_gave_up_is_told_at_the_next_call(monkeypatch):
    lstm, x = layer("triton-persistent"), inputs()
    expected = results(lstm, x)
    with monkeypatch.context() as patched:
        without_patience(patched)
        output, _ = lstm(x, seed=3)
        torch.cuda.synchronize()
        assert output.isnan().any()
        with pytest.raises(RuntimeError, match="forward LSTM kernel gave up waiting"):
            lstm(x, seed=3)
        output, _ = lstm(x, seed=3)
        with pytest.raises(RuntimeError, match="gave up waiting"):
            torch.cuda.synchronize()
            output.float().sum().backward()
    # The launches that were under way when it was told have flags of their own.
    while True:
        try:
            raise_failed(wait=True)
            break
        except RuntimeError:
            continue
    assert_equal(results(lstm, x), expected)


def test_a_replayed_graph_cannot_raise_and_shows_nan(monkeypatch):
    without_patience(monkeypatch)
    lstm, x = layer("triton-persistent"), inputs()
    seed = torch.tensor(3, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        lstm(x, seed=seed)
    torch.cuda.current_stream().wait_stream(side)
    with pytest.raises(RuntimeError, match="gave up waiting"):
        raise_failed(wait=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        output, _ = lstm(x, seed=seed)
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert output.isnan().any()
        raise_failed(wait=True)


@pytest.mark.parametrize("form", FORMS)
def test_two_threads_with_streams_of_their_own(form):
    # Both have room on a device together.
    lstms = [layer(form, hidden=400, seed=number) for number in range(2)]
    x = inputs(batch_size=16)
    alone = [[results(lstm, x, seed) for seed in range(10)] for lstm in lstms]
    torch.cuda.synchronize()
    together = [None, None]

    def work(number):
        with torch.cuda.stream(torch.cuda.Stream()):
            own = x.detach().clone().requires_grad_()
            together[number] = [results(lstms[number], own, seed) for seed in range(10)]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raise_failed(wait=True)
    for got, expected in zip(together, alone, strict=True):
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other)
