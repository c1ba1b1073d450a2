"""The grid barriers of the persistent LSTM kernels: every read right under random schedules.

The model (`barrier_model.py`) mirrors `arrive` and `wait` of `kernels/grid_barrier.py`,
`forward_kernel` of `kernels/forward_persistent.py` and `backward_kernel` of
`kernels/backward_persistent.py`.
It is worth what it finds, so every way to get the protocol wrong that we know is planted in it.
"""

import random
from itertools import product

import pytest
from barrier_model import run_backward, run_forward, run_split_forward

SPLITS = [(1, 1), (2, 2), (2, 3), (4, 2)]  # KB, NB
SCHEDULES = 100
FAULT_SCHEDULES = 60
# A fault that shows in fewer would be found by luck; the rarest one shows in about a third.
ENOUGH = FAULT_SCHEDULES // 10

FORWARD_FAULTS = [
    "arrive before the store",
    "relaxed arrive",
    "one arrival too few",
    "no wait",
    "counter reset",
    "one slot",
    "through L1",
    "groups share a counter",
]
SPLIT_FORWARD_FAULTS = [
    "arrive before the sums",
    "arrive before the store",
    "relaxed arrive of the sums",
    "relaxed arrive",
    "one arrival too few of the sums",
    "one arrival too few",
    "no wait for the sums",
    "no wait",
    "sums through L1",
    "one slot",
    "groups share a counter",
    "pairs share a counter",
]
BACKWARD_FAULTS = [
    "arrive (1) before the store",
    "arrive (2) before the store",
    "relaxed arrive (1)",
    "relaxed arrive (2)",
    "one arrival too few (1)",
    "one arrival too few (2)",
    "no wait (1)",
    "no wait (2)",
    "counter reset",
    "partial sums through L1",
    "gradients through L1",
    "groups share a counter",
]
GROUPED_FAULTS = [
    "one counter for both parities",
    "one partial-sum buffer",
    "one slot of gradients",
    "waits for its own columns",
]

grouped_or_not = pytest.mark.parametrize("grouped", [False, True], ids=["whole-grid", "grouped"])


def forward_launch(seed, fault="", **options):
    """Return a launch of a drawn shape that is large enough for every fault to show."""
    rng = random.Random(seed)
    n, steps, groups = rng.choice((2, 3, 5)), rng.choice((4, 5)), rng.choice((1, 2))
    if fault == "groups share a counter":
        groups = 2
    return run_forward(seed, n, steps, groups, fault, **options)


def backward_launch(seed, grouped, fault="", **options):
    rng = random.Random(seed)
    KB, NB = rng.choice(SPLITS[1:])
    groups = 2 if fault == "groups share a counter" else 1
    return run_backward(seed, KB, NB, grouped, rng.choice((4, 5)), groups, fault, **options)


def found(launches):
    """Count the launches in which the fault shows."""
    return sum(grid.faulty for grid in launches)


@pytest.mark.parametrize("groups", [1, 2], ids="groups{}".format)
@pytest.mark.parametrize("steps", [1, 2, 5], ids="T{}".format)
@pytest.mark.parametrize("n", [1, 2, 3, 5], ids="n{}".format)
def test_forward_reads_and_leaves_what_it_should(n, steps, groups):
    for seed in range(SCHEDULES):
        grid = run_forward(seed, n, steps, groups)
        assert not grid.faulty, (seed, grid.err, grid.wrong)
        for group in range(groups):
            assert grid.counters[group] == n * (steps - 1)
            for p in range(n):
                assert grid.memory["gates", group, steps - 1, p] == (steps - 1, p)
                assert all(grid.memory["h", group, t % 2, p] == (t, p) for t in (steps - 1, steps))


@pytest.mark.parametrize("steps", [1, 2, 5], ids="T{}".format)
@pytest.mark.parametrize("split", [(2, 1), (2, 3), (4, 2)], ids="{0[0]}x{0[1]}".format)
def test_split_forward_reads_and_leaves_what_it_should(split, steps):
    """With one buffer of sums: who reads it meets all others before it is written again."""
    parts, pieces = split
    for seed in range(SCHEDULES):
        groups = 1 + seed % 2
        grid = run_split_forward(seed, parts, pieces, steps, groups)
        assert not grid.faulty, (seed, grid.err, grid.wrong)
        for group, p in product(range(groups), range(parts * pieces)):
            assert all(grid.memory["h", group, t % 2, p] == (t, p) for t in (steps - 1, steps))


@grouped_or_not
@pytest.mark.parametrize("steps", [1, 2, 5], ids="T{}".format)
@pytest.mark.parametrize("split", SPLITS, ids="{0[0]}x{0[1]}".format)
def test_backward_reads_and_leaves_what_it_should(split, steps, grouped):
    KB, NB = split
    for seed in range(SCHEDULES):
        groups = 1 + seed % 2
        grid = run_backward(seed, KB, NB, grouped, steps, groups)
        assert not grid.faulty, (seed, grid.err, grid.wrong)
        for group, unit in product(range(groups), range(KB * NB)):
            last = steps - 1
            assert grid.memory["dg", group, last % 2, unit] == (last, unit)
            for k in range(KB):
                assert grid.memory["part", group, last % 2, k, unit] == (last, k)


@grouped_or_not
def test_a_block_is_ahead_by_one_step_if_grouped_and_by_none_if_not(grouped):
    leads = {run_backward(seed, 2, 2, grouped, 5).lead for seed in range(100)}
    assert max(leads) == int(grouped)


@pytest.mark.parametrize("fault", FORWARD_FAULTS)
def test_a_forward_fault_is_found(fault):
    assert found(forward_launch(seed, fault) for seed in range(FAULT_SCHEDULES)) > ENOUGH


@pytest.mark.parametrize("fault", SPLIT_FORWARD_FAULTS)
def test_a_fault_of_the_split_forward_is_found(fault):
    groups = 1 + (fault == "groups share a counter")
    launches = (
        run_split_forward(seed, 2, 2 + seed % 2, 5, groups, fault)
        for seed in range(FAULT_SCHEDULES)
    )
    assert found(launches) > ENOUGH


@grouped_or_not
@pytest.mark.parametrize("fault", BACKWARD_FAULTS)
def test_a_backward_fault_is_found(fault, grouped):
    assert found(backward_launch(seed, grouped, fault) for seed in range(FAULT_SCHEDULES)) > ENOUGH


@pytest.mark.parametrize("fault", GROUPED_FAULTS)
def test_a_fault_of_the_grouped_barriers_is_found(fault):
    assert found(backward_launch(seed, True, fault) for seed in range(FAULT_SCHEDULES)) > ENOUGH


@pytest.mark.parametrize("fault", GROUPED_FAULTS[:-1])
def test_over_the_whole_grid_one_set_is_enough(fault):
    """So it is the step that a group may be ahead which needs the second set."""
    assert not found(backward_launch(seed, False, fault) for seed in range(FAULT_SCHEDULES))


def test_counters_left_by_an_earlier_forward_launch_are_found():
    left = run_forward(0, 3, 5).counters
    launches = (run_forward(seed, 3, 5, counters=left) for seed in range(FAULT_SCHEDULES))
    assert found(launches) > ENOUGH


@grouped_or_not
def test_counters_left_by_an_earlier_backward_launch_are_found(grouped):
    shape = 2, 2, grouped, 5
    left = run_backward(0, *shape).counters
    launches = (run_backward(seed, *shape, counters=left) for seed in range(FAULT_SCHEDULES))
    assert found(launches) > ENOUGH


def test_a_forward_block_that_is_not_resident_ends_in_err():
    for seed in range(FAULT_SCHEDULES):
        grid = run_forward(seed, 3, 5, missing=1)
        assert grid.err
        assert all(block.code.gi_frame is None for block in grid.blocks)


def test_a_block_takes_the_place_that_another_group_leaves():
    for seed in range(FAULT_SCHEDULES):
        assert not run_forward(seed, 3, 5, groups=2, missing=1).faulty


@grouped_or_not
def test_a_backward_block_that_is_not_resident_ends_in_err(grouped):
    for seed in range(FAULT_SCHEDULES):
        grid = run_backward(seed, 2, 3, grouped, 5, missing=1)
        assert grid.err
        assert all(block.code.gi_frame is None for block in grid.blocks)


def hurried_launches(fault=""):
    """Return launches whose blocks give up early, anywhere and in any number."""
    options = {"patient": False, "fault": fault}
    for seed in range(FAULT_SCHEDULES):
        cap = seed % 4 * 3
        yield forward_launch(seed, cap=cap, **options)
        yield backward_launch(seed, grouped=seed % 2 == 1, cap=cap, **options)


def owns_up(grid):
    """Whether each block that gave up set err, and nothing was wrong without it."""
    gave_up = [block for block in grid.blocks if not block.alive]
    return grid.err == bool(gave_up) and (grid.err or not grid.wrong)


def stays_calm(grid):
    """Whether no block spun after it gave up."""
    return all(b.spins == b.spins_at_give_up for b in grid.blocks if not b.alive)


def test_a_block_that_gives_up_sets_err_and_never_spins_again():
    grids = list(hurried_launches())
    assert all(owns_up(grid) and stays_calm(grid) for grid in grids)
    assert any(grid.wrong for grid in grids)  # giving up does cost right values
    assert any(not grid.err for grid in grids)


def test_a_block_that_spins_again_is_found():
    assert not all(stays_calm(grid) for grid in hurried_launches("spins again"))


def test_a_block_that_gives_up_in_silence_is_found():
    assert not all(owns_up(grid) for grid in hurried_launches("gives up in silence"))
