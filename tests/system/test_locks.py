"""A directory has one writer at a time, known by name, and a lock that dies with it."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import ulmfit_fast as uf
from ulmfit_fast.runs import Run
from ulmfit_fast.system import locks
from ulmfit_fast.system.locks import directory_lock

fcntl = pytest.importorskip("fcntl", reason="the platform has other locks")

# Without the package, which takes longer to import than these tests take.
HOLDER = f"""
import importlib.util, os, pathlib, sys, time
spec = importlib.util.spec_from_file_location("locks", {locks.__file__!r})
module = importlib.util.module_from_spec(spec); sys.modules["locks"] = module
spec.loader.exec_module(module)
with module.directory_lock(pathlib.Path(sys.argv[1])):
    # Said by the child, if there is one: it is only then that it has let the lock go.
    if sys.argv[2] == "alone" or os.fork() == 0:
        print("held", os.getpid(), flush=True)
    time.sleep(600)
"""
TEXTS = ["a fine film", "a dull, long story"] * 20
SIZES = {"emb_size": 4, "hidden_size": 6, "num_layers": 2, "min_freq": 1, "progress": False}
BATCHES = {"epochs": 1, "batch_size": 4, "bptt": 10}


@contextlib.contextmanager
def held_elsewhere(directory: Path, how: str = "alone"):
    """Have another process hold a directory; yields it, and the number of the one it forked."""
    command = [sys.executable, "-c", HOLDER, str(directory), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline().split()
            assert said[0] == "held"
            yield process, int(said[1])
        finally:
            process.kill()


def tree(directory: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in directory.rglob("*")}


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "out") as (process, _):
        host = os.uname().nodename
        before = tree(tmp_path)
        message = rf"out is held by process {process.pid} on {host} since \d{{4}}-\d\d-\d\d \d\d:"
        with pytest.raises(FileExistsError, match=message), directory_lock(tmp_path / "out"):
            raise AssertionError("two hold it")
        assert tree(tmp_path) == before
    with directory_lock(tmp_path / "out"):
        assert (tmp_path / "out" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    # Whoever makes a directory removes it, if nothing came into it; the dead one could not.
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_the_lock_dies_with_the_process_and_no_child_keeps_it(tmp_path: Path, how: str) -> None:
    with held_elsewhere(tmp_path, how) as (process, child):
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        try:
            with directory_lock(tmp_path):
                pass
            if how == "forks":
                os.kill(child, 0)
        finally:
            if how == "forks":
                os.kill(child, signal.SIGKILL)
    assert os.listdir(tmp_path) == []


def test_a_thread_may_hold_it_twice_and_another_one_not(tmp_path: Path) -> None:
    errors: list[str] = []

    def second() -> None:
        try:
            with directory_lock(tmp_path):
                pass
        except FileExistsError as error:
            errors.append(str(error))

    def in_a_thread() -> int:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        return len(errors)

    with directory_lock(tmp_path):
        with directory_lock(tmp_path):
            assert in_a_thread() == 1
        assert in_a_thread() == 2, "the inner block has let it go"
        with pytest.raises(FileExistsError), directory_lock(tmp_path, alone=True):
            raise AssertionError("held by itself")
    assert in_a_thread() == 2 and f"process {os.getpid()}" in errors[0]


def test_a_file_that_went_away_while_it_was_locked_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fcntl.flock, []

    def removed(descriptor: int, how: int) -> None:
        calls.append(os.fstat(descriptor).st_ino)
        real(descriptor, how)
        if len(calls) == 1:
            # As the one that held it does at its end, between the opening and the locking.
            (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", removed)
    with directory_lock(tmp_path):
        assert len(calls) == 2 and (tmp_path / ".lock").stat().st_ino == calls[1]


def test_missing_directories_are_made_and_go_again_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), directory_lock(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with directory_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "mine").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["mine"]


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with directory_lock(tmp_path / "out"):
        pass
    assert "out is on a file system without locks (No locks available)" in caplog.text
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_disk_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int, how: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), directory_lock(tmp_path / "out"):
        raise AssertionError("went on")
    monkeypatch.undo()
    with directory_lock(tmp_path / "out"):
        pass


def never():
    raise AssertionError("a text was read")
    yield ""


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("keeps", ["run", "checkpoint_dir"])
@pytest.mark.parametrize("stage", ["pretrain", "fine_tune_lm", "fit_classifier"])
def test_a_second_training_is_refused_before_it_reads_or_touches_anything(
    tmp_path: Path, stage: str, keeps: str, resume: bool
) -> None:
    model = uf.ULMFiT(**SIZES, checkpoint_dir=tmp_path if keeps == "checkpoint_dir" else None)
    run = Run(tmp_path, resume=resume) if keeps == "run" else None
    options = {"labels": never()} if stage == "fit_classifier" else {}
    with held_elsewhere(tmp_path):
        before = tree(tmp_path)
        with pytest.raises(FileExistsError, match="is held by process"):
            getattr(model, stage)(never(), run=run, **options)
        assert tree(tmp_path) == before


def test_a_save_into_the_directory_of_a_run_elsewhere_is_refused(tmp_path: Path) -> None:
    model = uf.ULMFiT(**SIZES).pretrain(TEXTS, **BATCHES)
    model.save(tmp_path / "out")
    with held_elsewhere(tmp_path / "out"):
        before = tree(tmp_path)
        with pytest.raises(FileExistsError, match="out is held by process"):
            model.save(tmp_path / "out")
        assert tree(tmp_path) == before
        # A reader is no writer.
        assert uf.ULMFiT.load(tmp_path / "out", progress=False).perplexity(TEXTS) > 1


@pytest.mark.parametrize("keeps", ["run", "checkpoint_dir"])
def test_a_training_holds_its_directory_from_the_first_text_to_the_end(
    tmp_path: Path, keeps: str
) -> None:
    out, looks = tmp_path / "out", []

    def look() -> None:
        with (out / ".lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        looks.append(1)

    class Watched(Run):
        def report(self, reading) -> None:
            super().report(reading)
            look()

    def texts():
        for text in TEXTS:
            look()
            yield text

    model = uf.ULMFiT(**SIZES, checkpoint_dir=out if keeps == "checkpoint_dir" else None)
    run = Watched(out) if keeps == "run" else None
    model.pretrain(texts(), run=run, **BATCHES)
    assert len(looks) == len(TEXTS) + (len(model.histories["pretrain"].losses) if run else 0)
    assert not list(tmp_path.rglob(".lock"))
    assert (out / "config.json").exists() == (keeps == "checkpoint_dir")


def test_a_training_that_fails_leaves_no_directory(tmp_path: Path) -> None:
    model = uf.ULMFiT(**{**SIZES, "min_freq": 3}, checkpoint_dir=tmp_path / "model")
    with pytest.raises(ValueError, match="min_freq"):
        model.pretrain([f"word{n}" for n in range(40)] * 2, run=Run(tmp_path / "a" / "run"))
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_saved_to_is_told_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no model directory"):
        uf.ULMFiT(**SIZES, checkpoint_dir=tmp_path).pretrain(never())
    assert os.listdir(tmp_path) == ["notes.txt"]
