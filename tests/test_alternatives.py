"""The launches that the compile gate tries beside those that are chosen."""

import pytest

pytest.importorskip("triton")
from benchmarks.alternatives import ALTERNATIVES, Alternative
from benchmarks.compile_record import record
from benchmarks.compile_variants import alternatives
from ulmfit_fast.kernels import forward_persistent, tiles


@pytest.mark.parametrize("variant", alternatives(), ids=lambda v: f"{v}")
def test_it_is_another_launch_than_what_is_chosen(variant) -> None:
    chosen, tile, default, _ = record(variant._replace(alternative=None))
    launch, other, not_default, note = record(variant)
    assert default and not not_default and note == ""
    assert launch.key() != chosen.key()
    wanted = variant.alternative
    assert other == tile._replace(**wanted.tile)
    assert {**launch.constants, **wanted.constants} == launch.constants
    # As many units, gates and rows as before, whatever the borders.
    if variant.kernel == "backward":
        assert other.columns // other.k_parts == tile.columns // tile.k_parts
    assert other.rows * other.groups in (tile.rows * tile.groups, other.rows)
    again, *_ = record(variant._replace(alternative=None))
    assert again.key() == chosen.key()


def test_each_has_a_name_of_its_own() -> None:
    names = [str(variant) for variant in alternatives()]
    assert len(set(names)) == len(ALTERNATIVES) == len(names)


def test_no_more_stays_on_chip_than_there_is() -> None:
    tile = tiles.PersistentTile(16, 16, 64, 2, 2, 4, 1)
    deeper = Alternative("deep", "forward", {"resident": 9, "block_k": 16})
    assert deeper.of(tile, 1152).resident == 9
    assert deeper.of(tile, 17).resident == 2
    backward = tiles.BackwardTile(16, 8, 128, 32, 18, 3, False, 4, 1)
    assert Alternative("all", "backward", {"resident": 18}).of(backward, 400).resident == 8


def test_all_is_as_before_when_one_fails() -> None:
    before = tiles.choose, forward_persistent.launch
    with pytest.raises(ZeroDivisionError), ALTERNATIVES[0].applied():
        assert (tiles.choose, forward_persistent.launch) != before
        raise ZeroDivisionError
    assert (tiles.choose, forward_persistent.launch) == before
