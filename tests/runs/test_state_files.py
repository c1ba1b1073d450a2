"""States on disk: exact, whole or refused; checkpoints: the last few and the best."""

import logging
import math
import os

import pytest
import torch

from ulmfit_fast.runs.checkpoints import Checkpoints
from ulmfit_fast.runs.state_file import DamagedState, read_state, write_state

STATE = {
    "none": None,
    "flag": True,
    "whole": 2**40,
    "numbers": [0.1, 1e-320, math.inf, -0.0],
    "pair": (1, (2.5, "x")),
    "by index": {0: {"exp_avg": torch.randn(3, 2), "step": torch.tensor(7.0)}, 3: {}},
    "state": [(torch.zeros(2, 4, dtype=torch.bfloat16), torch.randn(2, 4, dtype=torch.float64))],
    "bits": torch.get_rng_state(),
    "empty": torch.empty(0, 5),
    "flags": torch.tensor([True, False]),
}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def test_a_state_comes_back_as_it_was(tmp_path):
    write_state(tmp_path / "s", STATE)
    assert equal(read_state(tmp_path / "s"), STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_tensors_that_share_memory_are_written_twice(tmp_path):
    weight = torch.randn(4)
    write_state(tmp_path / "s", {"a": weight, "b": weight, "part": weight[::2]})
    assert torch.equal(read_state(tmp_path / "s")["part"], weight[::2])


@pytest.mark.parametrize("value", [object(), {1.5: 0}, {"s": {1}}, b"bytes"])
def test_what_is_not_plain_is_refused_and_named(tmp_path, value):
    with pytest.raises(TypeError, match=r"state\.inner.* cannot hold"):
        write_state(tmp_path / "s", {"inner": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1], ids="{} bytes".format)
def test_a_truncated_file_is_damaged(tmp_path, kept):
    path = tmp_path / "s"
    write_state(path, STATE)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedState, match=f"{path}"):
        read_state(path)


def test_a_flipped_bit_is_damage_wherever_it_is(tmp_path):
    path = tmp_path / "s"
    write_state(path, {"weight": torch.arange(40.0), "step": 3})
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 4
        path.write_bytes(changed)
        try:
            found = read_state(path)
        except (DamagedState, ValueError) as error:
            assert str(path) in str(error)
            continue
        # Padding of the header aside, which says nothing.
        assert equal(found, {"weight": torch.arange(40.0), "step": 3}), place


def test_other_files_and_newer_versions_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, str(tmp_path / "other"))
    with pytest.raises(DamagedState, match="holds no state of a run"):
        read_state(tmp_path / "other")
    metadata = {"format": "ulmfit_fast run", "version": "2"}
    save_file({}, str(tmp_path / "newer"), metadata=metadata)
    with pytest.raises(ValueError, match="install a newer ulmfit_fast"):
        read_state(tmp_path / "newer")
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / "none")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "s"
    write_state(path, {"step": 1})

    def full(*args):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space"):
                write_state(path, {"step": 2})
        assert read_state(path) == {"step": 1} and len(list(tmp_path.iterdir())) == 1


def saved(directory, steps, **best):
    checkpoints = Checkpoints(directory, keep=2)
    for step in steps:
        checkpoints.save(step, {"step": step}, best=step in best.get("best", ()))
    return checkpoints


def steps_in(directory):
    return [int(path.stem.removeprefix("step-")) for path in Checkpoints(directory).files()]


def test_the_last_few_and_the_best_are_kept(tmp_path):
    saved(tmp_path, [1, 2, 3, 4, 5], best=[2])
    assert steps_in(tmp_path) == [2, 4, 5]
    again = Checkpoints(tmp_path, keep=2)
    assert again.latest() == {"step": 5} and again.best_step == 2
    again.save(6, {"step": 6})
    assert steps_in(tmp_path) == [2, 5, 6]
    again.save(7, {"step": 7}, best=True)
    assert steps_in(tmp_path) == [6, 7]


@pytest.mark.parametrize("torn", [1, 2])
def test_a_torn_newest_one_falls_back_to_the_one_before(tmp_path, caplog, torn):
    checkpoints = saved(tmp_path, [10, 20, 30, 40], best=[20])
    files = checkpoints.files()
    for path in files[-torn:]:
        path.write_bytes(path.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING, "ulmfit_fast"):
        assert Checkpoints(tmp_path).latest() == {"step": [20, 30, 40][-1 - torn]}
    assert len(caplog.messages) == torn
    for message, path in zip(sorted(caplog.messages), files[-torn:], strict=True):
        assert str(path) in message and str(files[-torn - 1]) in message
    assert steps_in(tmp_path) == [20, 30, 40][:-torn]
    assert len(list(tmp_path.glob("*.damaged"))) == torn


def test_where_all_are_torn_nothing_begins_anew_by_itself(tmp_path):
    for path in saved(tmp_path, [1, 2]).files():
        path.write_bytes(b"")
    with pytest.raises(DamagedState, match=r"none of the 2 checkpoints .* start anew"):
        Checkpoints(tmp_path).latest()
    assert steps_in(tmp_path) == [1, 2]


def test_other_files_are_no_checkpoints(tmp_path):
    saved(tmp_path, [1])
    (tmp_path / ".step-000000002.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert Checkpoints(tmp_path).latest() == {"step": 1}


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none").latest() is None


@pytest.mark.parametrize("keep", [0, -1, True, 1.5])
def test_keep_is_checked(tmp_path, keep):
    with pytest.raises(ValueError, match="keep is"):
        Checkpoints(tmp_path, keep)
