"""Directories that change by one step: a reader sees the old content or the new, and only reads.

What is written into a directory comes in as a directory of its own, `.incoming`, whose renaming is
the moment from which it counts: from then on a reader reads there. The writer then gives its files
their places beside it, and only after that removes it. So the files lie where everybody looks for
them, a crash at any moment leaves the old content whole or the new, and what else is in the
directory, such as a run or a user's notes, stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from ulmfit_fast.system.files import DESCRIPTORS, sync_directory, sync_file, user_path
from ulmfit_fast.system.locks import LOCK, directory_lock

__all__ = [
    "BAG_OF_WORDS",
    "CHECKPOINTS",
    "CONFIG",
    "ENSEMBLE_FORMAT",
    "FAILED_STEP",
    "METRICS",
    "MODEL_FORMAT",
    "STORE_FORMAT",
    "STORE_META",
    "TENSORBOARD",
    "VALIDATION",
    "check_target",
    "is_leftover",
    "is_run_file",
    "local_directory",
    "owned_names",
    "put_in_place",
    "read_version",
    "recover",
    "weights_digest",
    "write_directory",
]

_log = logging.getLogger("ulmfit_fast")

CONFIG, STORE_META = "config.json", "meta.json"
MODEL_FORMAT, ENSEMBLE_FORMAT = "ulmfit_fast model", "ulmfit_fast ensemble"
STORE_FORMAT = "ulmfit_fast token store"
# What a run keeps beside the model that it makes.
METRICS, CHECKPOINTS, FAILED_STEP = "metrics.jsonl", "checkpoints", "failed-step-"
TENSORBOARD = "tensorboard"
_INCOMING = ".incoming"
# On their way in or out: whoever holds the directory may remove what is called like this.
_WRITTEN, _LINKED, _DONE = (f"{_INCOMING}-{name}" for name in ("written", "linked", "done"))
_TOKENIZER = "tokenizer.json"
_WEIGHTS = ("language_model.safetensors", "classifier.safetensors", "model.safetensors")
BAG_OF_WORDS, VALIDATION = "bag_of_words.safetensors", "validation.json"
_MEMBER = re.compile(r"model_\d+")
# Of models that have them; in the directory of another one they are a user's.
_FURTHER = frozenset({BAG_OF_WORDS, VALIDATION})
_MODEL = frozenset({CONFIG, _TOKENIZER, *_WEIGHTS, *_FURTHER})
_STORE = frozenset({STORE_META, _TOKENIZER, "ids.bin", "offsets.npy"})
_REPOSITORY = re.compile(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+")
# A reader that finds the directory changed begins again; none needs as long in earnest.
_LONGEST_WAIT, _FEWEST_TRIES = 60.0, 20

Found = TypeVar("Found")


def write_directory(
    directory: str | os.PathLike[str], write: Callable[[Path], None], description: str = CONFIG
) -> None:
    """Have a model or token store written, and let it take the place of the one that is there.

    Args:
        directory: where to; made when missing, with its parents.
        write: called with an empty directory to fill, the description among its files.
        description: CONFIG for a model or ensemble, STORE_META for a token store.

    Raises:
        FileExistsError: if the directory holds something else, or is held by another process.
        OSError: if it cannot be written; what was there stays as it was.
    """
    # Resolved, so that behind a link it is the model that is replaced.
    target = user_path(directory).resolve()
    check_target(target, description)
    # A run holds the directory while it saves its model; a store has nobody who would.
    with directory_lock(target, alone=description == STORE_META):
        recover(target)
        written = target / _WRITTEN
        written.mkdir()
        try:
            write(written)
            put_in_place(written, target)
        finally:
            shutil.rmtree(written, ignore_errors=True)


def check_target(target: Path, description: str = CONFIG) -> None:
    """Refuse a directory that holds something other than a model, or a token store.

    Args:
        target: where it is to be written.
        description: as for `write_directory`.

    Raises:
        FileExistsError: if there is something else.
    """
    if not target.exists():
        return
    why = "it is a file"
    if target.is_dir():
        names = set(os.listdir(target))
        # Only a model may stand beside a run.
        passes = is_run_file if description == CONFIG else is_leftover
        others = {name for name in names if not passes(name)}
        if not others or description in owned_names(target):
            return
        incoming = target / _INCOMING
        if _is_directory(incoming) and description in owned_names(incoming):
            return
        # A run may have begun in a directory with other things in it.
        if not others & _MODEL and not all(map(is_leftover, names - others)):
            return
        has = f"its {description} is of another kind"
        why = has if description in others else f"it has no {description}"
    kind = "model directory" if description == CONFIG else "token store"
    raise FileExistsError(
        f"{target} exists and is no {kind} ({why}); choose another directory or remove it"
    )


def is_run_file(name: str) -> bool:
    """Return whether a name in a model's directory is of the run that makes the model.

    >>> is_run_file("metrics.jsonl"), is_run_file("config.json")
    (True, False)

    Args:
        name: of a file or directory.
    """
    own = (
        METRICS,
        CHECKPOINTS,
        TENSORBOARD,
        LOCK,
    )
    # The last are of a report that was being written anew.
    return name in own or name.startswith((FAILED_STEP, _INCOMING, f".{METRICS}"))


def is_leftover(name: str) -> bool:
    """Return whether a name in a directory is of a writer that is at work, or was when it crashed.

    >>> is_leftover(".lock"), is_leftover("config.json")
    (True, False)

    Args:
        name: of a file or directory.
    """
    return name == LOCK or name.startswith(f"{_INCOMING}-")


def owned_names(directory: Path) -> frozenset[str]:
    """Return the names that a model, ensemble or token store of this package has in a directory.

    Args:
        directory: any; none unless the description in it is one of this package's, or is damaged
            and stands among nothing but such names.
    """
    for description, names in ((CONFIG, _MODEL), (STORE_META, _STORE)):
        try:
            found = json.loads((directory / description).read_text(encoding="utf-8"))
        except OSError:
            continue
        except (ValueError, RecursionError):
            others = {name for name in os.listdir(directory) if not is_run_file(name)} - names
            return frozenset() if others else names
        kind = found.get("format") if isinstance(found, dict) else None
        if kind in ((STORE_FORMAT,) if description == STORE_META else (MODEL_FORMAT,)):
            said = {"bag_of_words": BAG_OF_WORDS, "validation": VALIDATION}
            return names - {own for name, own in said.items() if found.get(name) is not True}
        if kind == ENSEMBLE_FORMAT:
            members = found["models"] if isinstance(found.get("models"), list) else []
            return frozenset({CONFIG, *filter(_is_member, members)})
    return frozenset()


def _described_names(directory: Path) -> frozenset[str]:
    """Return the names that there are in a directory as its description has it."""
    owned = owned_names(directory)
    if not owned >= _MODEL - _FURTHER:
        return owned
    with contextlib.suppress(OSError, ValueError, RecursionError):
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        of_parts = [name for name in _WEIGHTS[:2] if config.get(name.partition(".")[0]) is not None]
        weights = _WEIGHTS[2:] if config.get("single_file") else of_parts
        return frozenset({_TOKENIZER, *weights, *(owned & _FURTHER)})
    return owned


def weights_digest(directory: Path) -> str:
    """Return what another model in a directory does not have as well, from its weights alone.

    Args:
        directory: of a model; what is not there counts as empty.
    """
    found = hashlib.sha256()
    for name in sorted(_described_names(directory) & frozenset(_WEIGHTS)):
        found.update(name.encode())
        with contextlib.suppress(FileNotFoundError), (directory / name).open("rb") as file:
            while block := file.read(2**20):
                found.update(block)
    return found.hexdigest()[:32]


def _is_member(name: object) -> bool:
    return isinstance(name, str) and _MEMBER.fullmatch(name) is not None


def put_in_place(written: Path, target: Path) -> None:
    """Let a finished directory count as the content of another one, in one step.

    Args:
        written: on the same file system; it is gone then.
        target: a directory that this thread holds.

    Raises:
        FileExistsError: if a file of that name is there which is not of this package.
        OSError: if it cannot be renamed; the older content stays.
    """
    for name in sorted(set(os.listdir(written)) - owned_names(target)):
        if os.path.lexists(target / name):
            raise FileExistsError(
                f"{target / name} is of something else, which would be replaced; move it away, or "
                "choose another directory"
            )
    sync_directory(written)
    os.replace(written, target / _INCOMING)
    try:
        sync_directory(target)
        recover(target)
    except OSError as error:
        # It counts already, and every reader finds it.
        _log.warning(
            "%s is written, but its files lie in %s still (%s); the next save moves them",
            *(target, target / _INCOMING, error),
        )


def recover(directory: Path) -> None:
    """Move the files that came in last to their places, and remove what a crash left half done.

    Args:
        directory: which this thread holds.

    Raises:
        OSError: if it cannot be written.
    """
    incoming = directory / _INCOMING
    if _is_directory(incoming):
        _hard_link_files(incoming, directory)
        sync_directory(directory)
        os.replace(incoming, directory / _DONE)
    elif incoming.is_symlink():
        incoming.unlink()
    for path in directory.glob(f"{_INCOMING}-*"):
        _remove(path)


def _is_directory(path: Path) -> bool:
    # What a link leads to is not what was written here.
    return path.is_dir() and not path.is_symlink()


def _hard_link_files(source: Path, target: Path) -> None:
    """Give the files of a directory a second name in another one; remove what is not among them."""
    if target.is_symlink():
        target.unlink()
    target.mkdir(exist_ok=True)
    names = {name for name in os.listdir(source) if name in _MODEL | _STORE or _is_member(name)}
    # A version of this package before this one moved the files out, one after the other.
    stale = owned_names(target) - names - _described_names(source)
    # The description last: it says until then which of the old names are this package's.
    for name in sorted(names, key=lambda name: (name in (CONFIG, STORE_META), name)):
        if name in (CONFIG, STORE_META):
            _drop(target, stale)
        if (source / name).is_dir():
            _hard_link_files(source / name, target / name)
        else:
            _link(source / name, target / name)


def _link(source: Path, target: Path) -> None:
    between = target.with_name(_LINKED)
    _remove(between)
    try:
        os.link(source, between)
    except OSError:
        # Not every file system knows them.
        shutil.copy(source, between)
        sync_file(between)
    os.replace(between, target)
    # To rename one name of a file to another of the same file does nothing.
    between.unlink(missing_ok=True)


def _drop(directory: Path, names: frozenset[str]) -> None:
    for name in names:
        path = directory / name
        if _is_directory(path):
            _drop(path, owned_names(path))
            # Unless something else is in it.
            with contextlib.suppress(OSError):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if _is_directory(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_version(directory: Path, read: Callable[[Path], Found]) -> Found:
    """Read a directory that may be written meanwhile, all of it from one moment.

    Nothing is written, moved or locked. What turns out to be replaced under the reading is read
    again.

    Example:
        >>> import tempfile
        >>> read_version(Path(tempfile.mkdtemp()), lambda path: [p.name for p in path.iterdir()])
        []

    Args:
        directory: of a model, ensemble or token store.
        read: called with the directory in which the files are.

    Returns:
        What `read` returned.

    Raises:
        OSError: if it is replaced over and over for a minute.
    """
    begun, tries = time.monotonic(), 0
    failed: Exception | None = None
    while time.monotonic() - begun < _LONGEST_WAIT or tries < _FEWEST_TRIES:
        tries += 1
        with ExitStack() as stack:
            version = _Version(directory, stack)
            if not version.is_current():
                continue
            # For what is replaced faster than it is read; errors have to name the files themselves.
            held_open = tries % 2 == 0
            try:
                found = read(version.links() if held_open else version.path)
            except Exception as error:
                # Files of two moments fail in any way there is; those of one are really wrong.
                if not held_open and version.is_current():
                    raise
                failed = error
            else:
                if held_open or version.is_current():
                    return found
    raise OSError(
        f"{directory} was replaced {tries} times while it was read; read it again later"
    ) from failed


class _Version:
    """The files in a directory at one moment, open until the stack is closed.

    Files are replaced, never changed; and an inode is not given to another file while it is open.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._incoming = directory / _INCOMING
        self._came_in = _is_directory(self._incoming)
        self.path = self._incoming if self._came_in else directory
        self._open: dict[Path, int] = {}
        self._files = self._identities(self.path, self._opened)

    def is_current(self) -> bool:
        """Return whether all files are still those that have the names."""
        # Between the two a writer is at work on the files beside what came in.
        came_in = _is_directory(self._incoming)
        return came_in == self._came_in and self._identities(self.path, os.stat) == self._files

    def links(self) -> Path:
        """Return a directory in which the files have their names, whatever becomes of the first."""
        if not os.path.isdir(DESCRIPTORS):
            raise FileNotFoundError(f"this system has no {DESCRIPTORS}")
        temporary = tempfile.TemporaryDirectory(prefix="ulmfit-fast-")
        place = Path(self._stack.enter_context(temporary))
        for file, descriptor in self._open.items():
            link = place / file.relative_to(self.path)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(f"{DESCRIPTORS}/{descriptor}")
        return place

    def _identities(
        self, path: Path, status: Callable[[Path], os.stat_result]
    ) -> dict[Path, tuple[int, int]]:
        """Return device and inode of a directory and of the files that are looked for in it."""
        found = {}
        for file in (path, *map(path.joinpath, _MODEL | _STORE)):
            with contextlib.suppress(OSError):
                of_file = status(file)
                found[file] = (of_file.st_dev, of_file.st_ino)
        with contextlib.suppress(OSError):
            for name in filter(_is_member, os.listdir(path)):
                found |= self._identities(path / name, status)
        return found

    def _opened(self, path: Path) -> os.stat_result:
        # Windows would keep the writer from replacing what is open.
        if os.name == "posix":
            with contextlib.suppress(PermissionError):
                # A pipe would have it wait.
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                self._stack.callback(os.close, descriptor)
                self._open[path] = descriptor
                return os.fstat(descriptor)
        return os.stat(path)


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
    path = user_path(name)
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
    patterns = [CONFIG, "tokenizer.json", VALIDATION, "*.safetensors"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
