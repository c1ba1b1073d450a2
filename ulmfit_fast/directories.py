"""Directories that are there as a whole or not at all: written beside, then renamed into place."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "FAILED_STEP",
    "METRICS",
    "TENSORBOARD",
    "is_run_file",
    "local_directory",
    "open_to_umask",
    "remove_unfinished",
    "settle",
    "sync_directory",
    "write_directory",
    "write_text",
]

CONFIG = "config.json"
# What a run keeps beside the model that it makes.
METRICS, CHECKPOINTS, FAILED_STEP = "metrics.jsonl", "checkpoints", "failed-step-"
TENSORBOARD = "tensorboard"
# A model that is complete and on its way into a directory that holds a run.
_INCOMING = ".incoming"
_REPOSITORY = re.compile(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+")


def write_directory(directory: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Have a directory written beside its destination and rename it into place.

    Args:
        directory: where to; its parent is created when missing.
        write: called with an empty directory to fill, `config.json` among its files.

    Raises:
        FileExistsError: if the directory exists and is no model directory, or this process works
            in it.
        OSError: if it cannot be written; an older model there stays as it was.
    """
    # Resolved, so that behind a link it is the model that is replaced.
    target = Path(directory).resolve()
    if target.is_dir() and any(is_run_file(path.name) for path in target.iterdir()):
        _write_into(target, write)
        return
    if target.exists() and not _may_replace(target):
        raise FileExistsError(
            f"{target} exists and is no model directory (it has no {CONFIG}); "
            "choose another directory or remove it"
        )
    if Path.cwd().is_relative_to(target):
        raise FileExistsError(
            f"{target} is the working directory, which cannot be replaced; "
            "choose a directory in it or beside it"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        write(written)
        _replace(written, target)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def is_run_file(name: str) -> bool:
    """Tell whether a name in a model's directory is of the run that makes the model.

    >>> is_run_file("metrics.jsonl"), is_run_file("config.json")
    (True, False)

    Args:
        name: of a file or directory.
    """
    return name in (METRICS, CHECKPOINTS, TENSORBOARD) or name.startswith((FAILED_STEP, _INCOMING))


def _write_into(target: Path, write: Callable[[Path], None]) -> None:
    """Write a model into the directory of its run, which stays.

    The model comes in as a directory of its own, whose renaming is the moment from which it counts;
    `settle` then moves its files out, now or after a crash.
    """
    if Path.cwd().is_relative_to(target):
        raise FileExistsError(
            f"{target} is the working directory, which cannot be written as a whole; "
            "choose a directory in it or beside it"
        )
    settle(target)
    written = Path(tempfile.mkdtemp(prefix=f"{_INCOMING}-", dir=target))
    try:
        write(written)
        os.replace(written, target / _INCOMING)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    settle(target)


def remove_unfinished(directory: Path) -> None:
    """Remove models that were not complete when a crash came.

    Args:
        directory: of a run, into which no other process writes.
    """
    for path in directory.glob(f"{_INCOMING}-*"):
        shutil.rmtree(path, ignore_errors=True)


def settle(directory: Path) -> None:
    """Move in a model that was complete when a crash came.

    Args:
        directory: of a model.

    Raises:
        OSError: if it cannot be written.
    """
    incoming = directory / _INCOMING
    # A link would have files from elsewhere moved here.
    if incoming.is_symlink() or not incoming.is_dir():
        return
    # The description last: until it is there, a reader finds the old one or comes here.
    for path in sorted(incoming.iterdir(), key=lambda path: path.name == CONFIG):
        os.replace(path, directory / path.name)
    incoming.rmdir()


def _may_replace(target: Path) -> bool:
    return target.is_dir() and ((target / CONFIG).is_file() or not any(target.iterdir()))


def _replace(written: Path, target: Path) -> None:
    """Rename a finished directory into place; the old one goes only when the new one stands."""
    os.chmod(written, _allowed(written))
    if not target.exists():
        os.replace(written, target)
        return
    old = written.with_name(f"{written.name}-old")
    try:
        os.replace(target, old)
        os.replace(written, target)
    except BaseException:
        # An interruption between the two, too, must leave a model where it was.
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _allowed(beside: Path) -> int:
    """Return the permissions that the umask leaves, found with a file.

    To ask for the umask is to set it, and other threads make files at that instant, too.
    """
    name = beside.with_name(f".{os.getpid()}-{threading.get_ident()}.mode")
    handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o777)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)
        os.unlink(name)


def open_to_umask(path: Path) -> None:
    """Let all read a file that the umask lets in, where it was written for its owner alone."""
    path.chmod(0o666 & _allowed(path))


def sync_directory(path: Path) -> None:
    """See a directory's names on the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 and see it on the disk.

    Raises:
        OSError: if it cannot be written.
    """
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def local_directory(name: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """Return a model directory by its path, or fetch it from the Hugging Face Hub by its name.

    >>> local_directory(Path.cwd()) == Path.cwd()
    True

    Args:
        name: a directory; or, where there is none, the name of a repository such as "user/model".
        revision: branch, tag or commit of the repository.

    Returns:
        The directory, or the Hub's copy in its own cache.

    Raises:
        FileNotFoundError: if it is no directory and cannot be the name of a repository.
        ImportError: if `huggingface_hub` is needed and not installed.
        OSError: if the Hub cannot be reached or does not have it.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(name):
        raise FileNotFoundError(
            f"{name} is no directory, nor a name such as user/model on the Hugging Face Hub; "
            "check the path"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{name} is no directory; to fetch it from the Hugging Face Hub "
            "pip install huggingface_hub"
        ) from error
    # Nothing else is fetched, so no pickle can come along.
    patterns = [CONFIG, "tokenizer.json", "*.safetensors"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
