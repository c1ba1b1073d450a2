"""A directory that one process holds while it writes: a lock that dies with the process.

The lock is the system's own on a file: `flock`, which Linux passes on to the server of an NFS
mount, or the lock of a byte on Windows. A file system that has none is named in a warning, and
nothing keeps a second process out there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LOCK", "directory_lock"]

_log = logging.getLogger("ulmfit_fast")

LOCK = ".lock"
# Where a file system has no locks at all.
_UNKNOWN = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_LONGEST_NAME = 400
# Windows locks bytes, which nobody else can read then; this one lies behind all that is written.
_BYTE = 2**30


@dataclass
class _Lock:
    """A lock file that is open; while it is, the system knows the lock as this process's."""

    path: Path
    descriptor: int
    thread: int
    depth: int = 1


# By device and inode; what a thread holds already, it may take again.
_held: dict[tuple[int, int], _Lock] = {}
_guard = threading.Lock()


@contextmanager
def directory_lock(
    directory: Path, lock: Path | None = None, *, alone: bool = False
) -> Iterator[None]:
    """Keep other processes, and other threads, from writing into a directory meanwhile.

    The thread that holds it may hold it once more. However the process ends, the lock ends with it;
    what then is left of it is a file that the next one takes over.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> with directory_lock(directory), directory_lock(directory):
        ...     [path.name for path in directory.iterdir()]
        ['.lock']
        >>> list(directory.iterdir())
        []

    Args:
        directory: made when missing, and removed again if it is empty at the end.
        lock: the file to lock; None for `.lock` in the directory.
        alone: refuse this thread as well, if it holds it already.

    Raises:
        FileExistsError: if another process or thread holds it; the message says which, and since
            when. Nothing has been touched.
        OSError: if the lock file cannot be made.
    """
    lock = lock or directory / LOCK
    made = [path for path in (lock.parent, *lock.parent.parents) if not path.exists()]
    try:
        own = _acquire(lock, directory, alone)
        try:
            yield
        finally:
            _release(own)
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _acquire(path: Path, directory: Path, alone: bool) -> _Lock:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:
            # The one that had made the directory has removed it just now.
            continue
        try:
            own = _try_acquire(path, descriptor, directory, alone)
        except BaseException:
            os.close(descriptor)
            raise
        if own is not None:
            return own
        os.close(descriptor)


def _try_acquire(path: Path, descriptor: int, directory: Path, alone: bool) -> _Lock | None:
    """Lock an open file; None if it is gone from its place and another one has to be opened."""
    status = os.fstat(descriptor)
    key = (status.st_dev, status.st_ino)
    with _guard:
        own = _held.get(key)
        if own is not None and own.thread == threading.get_ident() and not alone:
            own.depth += 1
            os.close(descriptor)
            return own
        if own is not None or not _try_lock(descriptor, directory):
            raise FileExistsError(
                f"{directory} is held by {_holder(descriptor)}, which writes into it; wait for its "
                "end, or choose another directory"
            )
        if not _is_same_file(path, status):
            return None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        name = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
        os.ftruncate(descriptor, 0)
        os.write(descriptor, name.encode())
        if not _held:
            _release_in_children()
        _held[key] = _Lock(path, descriptor, threading.get_ident())
        return _held[key]


def _is_same_file(path: Path, status: os.stat_result) -> bool:
    """Return whether a file that is open is the one that has the name."""
    try:
        return os.path.samestat(status, os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int, directory: Path) -> bool:
    """Have the system lock a file, if nobody else has; where it cannot, say so and go on."""
    try:
        _lock_file(descriptor)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _UNKNOWN:
            raise
        _log.warning(
            "%s is on a file system without locks (%s): nothing keeps a second process out of it",
            *(directory, error.strerror),
        )
    return True


def _lock_file(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return
    # Of the two kinds of POSIX locks the one that a copy of the directory, made in this process,
    # does not end.
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(descriptor: int) -> str:
    """Return the name that the holder has written, which may be on its way still."""
    name = os.read(descriptor, _LONGEST_NAME).decode("utf-8", "replace")
    return " ".join(name.split()) or "another process"


def _release(own: _Lock) -> None:
    with _guard:
        key = next((key for key, lock in _held.items() if lock is own), None)
        if key is None:
            # This process was forked from the one that holds it.
            return
        own.depth -= 1
        if own.depth:
            return
        del _held[key]
        # Removed while it is locked: whoever has opened it meanwhile sees that it is gone. Windows
        # does not remove what is open.
        try:
            with contextlib.suppress(OSError):
                if os.name == "posix" and _is_same_file(own.path, os.fstat(own.descriptor)):
                    own.path.unlink()
        finally:
            os.close(own.descriptor)
        if os.name != "posix":
            with contextlib.suppress(OSError):
                own.path.unlink()


_fork_hooked = False


def _release_in_children() -> None:
    """See that a forked process, which may live longer, does not keep the lock alive."""
    global _fork_hooked
    if not _fork_hooked and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_release_after_fork)
        _fork_hooked = True


def _release_after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    for own in _held.values():
        with contextlib.suppress(OSError):
            os.close(own.descriptor)
    _held.clear()
