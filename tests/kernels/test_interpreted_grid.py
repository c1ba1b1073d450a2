"""That blocks really run at the same time, so that a faulty barrier is seen."""

import os
import threading

import pytest
import torch
from interpreted_grid import concurrent_blocks

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

# @triton.jit reads the variable when it decorates, so a fixture would set it too late.
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1 from the start"
)

STEPS = 3
SEEDS = range(20)


@triton.jit
def arrive(counter):
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target):
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
        pass


@triton.jit
def exchange_kernel(
    values, counter, n, steps: tl.constexpr, early: tl.constexpr, missing, absent, failing
):
    block = tl.program_id(0)
    for step in range(steps):
        seen = tl.load(values + step * n + (block + 1) % n)
        if early:
            arrive(counter)
        tl.store(values + (step + 1) * n + block, 3 * seen + block)
        tl.static_assert(block != failing, "planted")
        if not early:
            if block != absent:
                arrive(counter)
        wait(counter, (step + 1) * n - missing)


@triton.jit
def place_kernel(out, counter, columns):
    tl.atomic_add(counter, 1)
    number = tl.program_id(0) * columns + tl.program_id(1)
    tl.store(out + number, number)


def exchange(n, seed, *, early=False, missing=0, absent=-1, failing=-1, **options):
    """Whether the values were right, and the order of the blocks."""
    values = torch.zeros(STEPS + 1, n, dtype=torch.int64)
    values[0] = torch.arange(n) + 1
    expected = values.clone()
    for step in range(STEPS):
        expected[step + 1] = 3 * expected[step].roll(-1) + torch.arange(n)
    counter = torch.zeros(1, dtype=torch.int32)
    with concurrent_blocks(seed, **options) as order:
        exchange_kernel[(n,)](values, counter, n, STEPS, early, missing, absent, failing)
    return torch.equal(values, expected), order


def threads():
    return set(threading.enumerate())


@pytest.mark.parametrize("at_accesses", [True, False])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_blocks_meet_at_barriers(n, at_accesses):
    before = threads()
    for seed in SEEDS:
        right, order = exchange(n, seed, at_accesses=at_accesses)
        assert right
        assert set(order) == set(range(n))
    assert threads() == before


@pytest.mark.parametrize("at_accesses", [True, False])
@pytest.mark.parametrize("fault", [{"early": True}, {"missing": 1}], ids=lambda f: next(iter(f)))
@pytest.mark.parametrize("n", [2, 5])
def test_faulty_barrier_is_seen(n, fault, at_accesses):
    assert not all(exchange(n, seed, at_accesses=at_accesses, **fault)[0] for seed in SEEDS)


@pytest.mark.parametrize("failing", range(3))
def test_exception_in_one_block_ends_the_launch(failing):
    before = threads()
    with pytest.raises(triton.runtime.errors.InterpreterError, match="planted") as raised:
        exchange(3, 0, failing=failing)
    assert isinstance(raised.value.__cause__, AssertionError)
    assert threads() == before


@pytest.mark.parametrize("at_accesses", [True, False])
def test_missing_arrival_is_an_error(at_accesses):
    before = threads()
    with pytest.raises(triton.runtime.errors.InterpreterError, match="blocks wait for each other"):
        exchange(3, 0, absent=1, limit=1000, at_accesses=at_accesses)
    assert threads() == before


def test_usable_after_an_error():
    counter, out = torch.zeros(1, dtype=torch.int32), torch.full((4,), -1)
    with concurrent_blocks(0, limit=1000):
        with pytest.raises(triton.runtime.errors.InterpreterError, match="still run"):
            exchange_kernel[(2,)](torch.zeros(9), counter, 2, 1, False, 0, 0, -1)
        place_kernel[(4, 1)](out, counter, 1)
    assert out.tolist() == list(range(4))
    out.fill_(-1)
    place_kernel[(4, 1)](out, counter, 1)
    assert out.tolist() == list(range(4))


def test_seed_fixes_the_order():
    orders = [tuple(exchange(3, seed)[1]) for seed in SEEDS]
    assert len(set(orders)) == len(SEEDS)
    assert orders == [tuple(exchange(3, seed)[1]) for seed in SEEDS]


@pytest.mark.parametrize("seed", SEEDS)
def test_block_keeps_its_place(seed):
    out, counter = torch.full((6,), -1), torch.zeros(1, dtype=torch.int32)
    with concurrent_blocks(seed):
        place_kernel[(2, 3)](out, counter, 3)
    assert out.tolist() == list(range(6))
    assert counter.item() == 6
