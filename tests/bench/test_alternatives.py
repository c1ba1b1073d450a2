"""The launches that the compile gate tries beside those that are chosen."""

import pytest

pytest.importorskip("triton")
from benchmarks.compared.alternatives import ALTERNATIVES
from benchmarks.compile.record import record
from benchmarks.compile.variants import alternatives
from ulmfit_fast.kernels import forward_persistent, tiles


@pytest.mark.parametrize(
    "variant", [v for v in alternatives() if v.alternative], ids=lambda v: f"{v}"
)
def test_it_is_another_launch_than_what_is_chosen(variant) -> None:
    chosen, tile, default, _ = record(variant._replace(alternative=None))
    launch, other, not_default, note = record(variant)
    assert default and not not_default and note == ""
    assert launch.key() != chosen.key()
    wanted = variant.alternative
    assert other == tile._replace(**wanted.tile)
    assert {**launch.constants, **wanted.constants} == launch.constants
    # As many rows as before, whatever the borders.
    assert other.rows * other.groups in (tile.rows * tile.groups, other.rows)
    again, *_ = record(variant._replace(alternative=None))
    assert again.key() == chosen.key()


def test_each_has_a_name_of_its_own() -> None:
    names = [str(variant) for variant in alternatives()]
    assert len(set(names)) == len(names)
    assert sum(": " in name for name in names) == len(ALTERNATIVES)


def test_all_is_as_before_when_one_fails() -> None:
    before = tiles.choose, forward_persistent.launch
    with pytest.raises(ZeroDivisionError), ALTERNATIVES[0].applied():
        assert (tiles.choose, forward_persistent.launch) != before
        raise ZeroDivisionError
    assert (tiles.choose, forward_persistent.launch) == before
