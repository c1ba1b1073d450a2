"""Paths as users write them, files that are there as a whole or not at all, and JSON in them."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "DESCRIPTORS",
    "exists",
    "file_in_place",
    "files_in_place",
    "name_in_utf8",
    "parse_json",
    "sync_directory",
    "sync_file",
    "user_path",
    "write_text",
]

# Where Linux shows the files that are open, each to be opened once more.
DESCRIPTORS = "/proc/self/fd"


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user handed in, a leading `~` being the home directory.

    >>> user_path("~/model") == Path.home() / "model", str(user_path("model"))
    (True, 'model')

    Args:
        path: any path; `~name` stays as it is where there is no user of that name.
    """
    try:
        return Path(os.path.expanduser(path))
    except ValueError:
        # No user is called so: a text, which may hold anything.
        return Path(path)


def exists(path: Path) -> bool:
    """Return whether there is a file or directory; a text may stand in the place of its name."""
    # A text can be longer than a file name may be, or hold a NUL.
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


@contextmanager
def name_in_utf8(path: Path) -> Iterator[str]:
    """Give a file a name that libraries read which take no other bytes than UTF-8 in one.

    >>> with name_in_utf8(Path("model.safetensors")) as name:
    ...     name
    'model.safetensors'

    Args:
        path: any file; where the system shows no open files, its own name is all there is.

    Raises:
        OSError: if it has to be opened for that, and cannot be.
    """
    name = str(path)
    # Python has a byte that is not UTF-8 as half a character.
    is_utf8 = not any("\ud800" <= character <= "\udfff" for character in name)
    if is_utf8 or not os.path.isdir(DESCRIPTORS):
        yield name
        return
    with path.open("rb") as file:
        yield f"{DESCRIPTORS}/{file.fileno()}"


@contextmanager
def file_in_place(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file to write, and rename it into place once that has succeeded.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with file_in_place(Path(folder, "new", "a.txt")) as file:
    ...         _ = file.write_text("whole")
    ...     Path(folder, "new", "a.txt").read_text()
    'whole'

    Args:
        path: where to; its folder is made when missing. An older file stays as it was until the new
            one is on the disk, and behind a link it is the file that is replaced.

    Raises:
        OSError: if it cannot be written.
    """
    with files_in_place(path) as (file,):
        yield file


@contextmanager
def files_in_place(*paths: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Give temporary files as `file_in_place` does; all are on the disk before one is in place.

    Args:
        paths: where to.

    Raises:
        OSError: if one cannot be written.
    """
    targets = [user_path(path).resolve() for path in paths]
    temporary: list[Path] = []
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(
                prefix=f".{target.name}-", suffix=target.suffix, dir=target.parent
            )
            os.close(descriptor)
            temporary.append(Path(name))
        yield temporary
        for file in temporary:
            # It was made for its owner alone.
            file.chmod(0o666 & permissions(file))
            sync_file(file)
        for file, target in zip(temporary, targets, strict=True):
            os.replace(file, target)
        for folder in {target.parent for target in targets}:
            sync_directory(folder)
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8 as `file_in_place` does.

    Raises:
        OSError: if it cannot be written.
    """
    with file_in_place(path) as file:
        file.write_text(text, encoding="utf-8")


def permissions(beside: Path) -> int:
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


def sync_file(path: Path) -> None:
    """See what a file holds on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """See a directory's names on the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def parse_json(text: str, name: object) -> Any:
    """Parse a JSON text.

    >>> parse_json('{"version": 1}', "meta.json")
    {'version': 1}

    Args:
        text: the JSON.
        name: what holds it, for the error.

    Raises:
        ValueError: if it is not valid JSON, has a key twice, nests too deeply or has a number that
            is too long.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    # Deep nesting ends in RecursionError, a number of thousands of digits in a plain ValueError.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({error}); save it anew") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {key!r:.60} occurs {count} times")
    return found
