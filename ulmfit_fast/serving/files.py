"""A file that is there as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ulmfit_fast.directories import open_to_umask

__all__ = ["file_in_place"]


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
        path: where to; its folder is made when missing. An older file stays as it was until then,
            and behind a link it is the file that is replaced.

    Raises:
        OSError: if it cannot be written.
    """
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        prefix=f".{target.name}-", suffix=target.suffix, dir=target.parent
    )
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        open_to_umask(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
