"""Whether what is to be written would fall on what is read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ulmfit_fast.data.reading.records import READABLE, kind_of
from ulmfit_fast.system.directories import is_run_file, owned_names
from ulmfit_fast.system.files import exists, user_path

__all__ = ["check_apart", "inside", "paths_in"]


def paths_in(source: object) -> list[Path]:
    """Return the files and folders that there are in what `read_texts` takes.

    >>> [str(path) for path in paths_in(["a text", Path(".")])]
    ['.']

    Args:
        source: a path, or a list of paths, texts or both; anything else has no paths.
    """
    items = source if isinstance(source, (list, tuple)) else [source]
    named = (os.PathLike,) if items is source else (str, os.PathLike)
    found = (user_path(item) for item in items if isinstance(item, named))
    return [path for path in found if exists(path)]


def check_apart(out: Path, read: list[Path], *, is_text: bool) -> None:
    """Refuse an output that is read itself, or that would be read with the folder that it is in.

    Files are compared by what they are, not by their names: links, names of one file and the
    case of letters make no difference.

    Example:
        >>> check_apart(Path("answers.csv"), [Path("answers.txt")], is_text=True)
        >>> check_apart(Path("."), [Path("../.").resolve() / Path.cwd().name], is_text=True)
        Traceback (most recent call last):
        FileExistsError: . is read, and would be written over; choose another place

    Args:
        out: the file or directory that is to be written.
        read: files and folders of text, models and token stores.
        is_text: whether a reader of texts takes what is written for one.

    Raises:
        FileExistsError: if it is one of those, or lies in one where it does harm.
    """
    for path in filter(exists, read):
        if _same(out, path) or any(_same(out, file) for file in _files_in(path, out)):
            raise FileExistsError(f"{out} is read, and would be written over; choose another place")
        below = inside(out, path)
        if below is not None and _is_part(below, path, is_text):
            raise FileExistsError(
                f"{out} lies in {path}, with which it would be read; choose a place outside of it"
            )
        above = inside(path, out)
        if above is not None and _is_own(above.parts[0], out):
            raise FileExistsError(
                f"{path} is read, and {out} would be written over it; choose another place"
            )


def _is_part(below: Path, folder: Path, is_text: bool) -> bool:
    """Return whether a reader of a directory would come upon what is written in it."""
    if owned_names(folder):
        return _is_own(below.parts[0], folder)
    return is_text and not any(part.startswith(".") for part in below.parts)


def _is_own(name: str, directory: Path) -> bool:
    return name in owned_names(directory) or is_run_file(name)


def inside(path: Path, folder: Path) -> Path | None:
    """Return the way from a folder to what lies in it, or None for what does not.

    >>> inside(Path("a/b/c"), Path(".")).as_posix()
    'a/b/c'

    Args:
        path: need not exist.
        folder: need not exist.
    """
    whole = path.resolve()
    for above in whole.parents:
        if _same(above, folder):
            return whole.relative_to(above)
    return None


def _same(path: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(path, other)
    return path.resolve() == other.resolve()


def _files_in(folder: Path, out: Path) -> Iterator[Path]:
    """Yield the files of text in a folder, where the output is a file, which may be one of them."""
    if out.is_file() and folder.is_dir():
        for directory, names, files in os.walk(folder):
            names[:] = [name for name in names if not name.startswith(".")]
            yield from (Path(directory, name) for name in files if kind_of(name) in READABLE)
