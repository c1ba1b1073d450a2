"""The numbers of a history take eight bytes each, and read like lists."""

import json
import tracemalloc

import numpy as np
import pytest

from ulmfit_fast.training.state import History, NumberRows, Numbers


def test_numbers_read_like_a_list():
    numbers = Numbers([0.5, 1.25])
    numbers.append(3)
    assert list(numbers) == [0.5, 1.25, 3.0] == numbers and numbers == Numbers([0.5, 1.25, 3])
    assert numbers != Numbers([0.5]) and numbers != [0.5]
    assert (numbers[0], numbers[-1], numbers[1:], len(numbers)) == (0.5, 3.0, [1.25, 3.0], 3)
    assert np.array_equal(np.array(numbers), [0.5, 1.25, 3.0])
    assert json.dumps(numbers.tolist()) == "[0.5, 1.25, 3.0]" == repr(numbers)
    with pytest.raises(IndexError):
        numbers[3]
    with pytest.raises(TypeError, match="unhashable"):
        hash(numbers)


def test_an_array_of_them_does_not_keep_more_from_coming():
    numbers, rows = Numbers([1.0]), NumberRows([[1.0, 2.0]])
    kept = np.asarray(numbers), np.asarray(rows)
    numbers.append(2.0)
    rows.append([3.0, 4.0])
    assert kept[0].tolist() == [1.0] and kept[1].tolist() == [[1.0, 2.0]]


def test_rows_read_like_a_list_of_lists():
    rows = NumberRows()
    assert len(rows) == 0 and rows == [] and np.array(rows).shape == (0, 0)
    for row in ([1, 2], [3, 4], [5, 6]):
        rows.append(row)
    assert list(rows) == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]] == rows
    assert (rows[0], rows[-1], rows[1:], rows[::2]) == (
        [1.0, 2.0], [5.0, 6.0], [[3.0, 4.0], [5.0, 6.0]], [[1.0, 2.0], [5.0, 6.0]],
    )  # fmt: skip
    assert rows == NumberRows(rows) and rows != NumberRows(rows[:2])
    assert NumberRows([[1, 2], [3, 4]]) != NumberRows([[1, 2, 3, 4]])
    assert np.array(rows).shape == (3, 2)
    with pytest.raises(IndexError):
        rows[3]
    with pytest.raises(ValueError, match="a row of 3 numbers, expected 2 as before"):
        rows.append([1, 2, 3])


def test_a_step_takes_few_bytes():
    history = History()
    tracemalloc.start()
    try:
        for step in range(20_000):
            history.losses.append(step / 3)
            history.regularisers.append(step / 7)
            history.lrs.append([step / 11, step / 13, step / 17, step / 19])
        # Six numbers of eight bytes, and up to an eighth more that is kept for the next ones.
        assert tracemalloc.get_traced_memory()[0] < 20_000 * 6 * 8 * 1.25
    finally:
        tracemalloc.stop()
