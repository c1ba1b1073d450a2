"""The checkpoints of a run: the last few and the best, each a file of its own."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

from ulmfit_fast.runs.state_file import DamagedState, read_state, write_state

__all__ = ["Checkpoints"]

_log = logging.getLogger("ulmfit_fast")
_NAME = re.compile(r"step-(\d{9})\.safetensors")


class Checkpoints:
    """Write states by step, keep the last few and the best, read the newest that is whole.

    Example:
        >>> import tempfile
        >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()) / "checkpoints", keep=2)
        >>> for step in (10, 20, 30, 40):
        ...     _ = checkpoints.save(step, {"step": step}, best=step == 10)
        >>> [path.name for path in checkpoints.files()]  # doctest: +NORMALIZE_WHITESPACE
        ['step-000000010.safetensors', 'step-000000030.safetensors', 'step-000000040.safetensors']
        >>> checkpoints.latest()
        {'step': 40}

    Args:
        directory: where they are; created when the first one is written.
        keep: how many of the newest to keep, at least 1.

    Raises:
        ValueError: if keep is below 1.
    """

    def __init__(self, directory: Path, keep: int = 3) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep is {keep!r}, expected a whole number, at least 1")
        self.directory = directory
        self.keep = keep
        self._best: Path | None = None

    def files(self) -> list[Path]:
        """Return the files, the oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(path for path in self.directory.iterdir() if _NAME.fullmatch(path.name))

    def set_aside(self) -> list[Path]:
        """Return the damaged files that `latest` has passed over."""
        return list(self.directory.glob("step-*.damaged"))

    def path(self, step: int) -> Path:
        """Return the file of a step."""
        return self.directory / f"step-{step:09d}.safetensors"

    def save(self, step: int, state: dict[str, Any], *, best: bool = False) -> Path:
        """Write a checkpoint; once it is on the disk, remove those that are not kept.

        Args:
            step: steps taken.
            state: plain values and tensors, in dicts, lists and tuples.
            best: keep this one until a better one comes.

        Raises:
            OSError: if it cannot be written; the ones before stay.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.path(step)
        write_state(path, {**state, "best_step": step if best else self.best_step})
        if best:
            self._best = path
        kept = {self._best, *self.files()[-self.keep :]}
        for old in self.files():
            if old not in kept:
                old.unlink(missing_ok=True)
        return path

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, or None."""
        return None if self._best is None else _step_of(self._best)

    def latest(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that is whole, or return None where there is none.

        A damaged one is set aside with a warning that names it and the one before, which is read
        instead.

        Raises:
            DamagedState: if there are files and none of them is whole.
        """
        files = self.files()
        damaged: list[str] = []
        for path in reversed(files):
            try:
                state: dict[str, Any] = read_state(path)
                best = state.pop("best_step", None) if isinstance(state, dict) else state
                if best is not None and type(best) is not int:
                    raise DamagedState(f"{path} holds no checkpoint")
            except DamagedState as error:
                damaged.append(str(error))
                continue
            for found in files[len(files) - len(damaged) :]:
                _log.warning(
                    "%s is damaged and set aside as %s; going on from %s",
                    *(found, found.with_suffix(".damaged").name, path),
                )
                found.replace(found.with_suffix(".damaged"))
            self._best = None if best is None else self.path(best)
            return state
        if damaged:
            raise DamagedState(
                f"none of the {len(files)} checkpoints in {self.directory} can be read, the newest "
                f"because {damaged[0]}; remove the directory to start anew"
            )
        return None

    def clean(self) -> None:
        """Remove what a run that was killed while it wrote has left half done."""
        if self.directory.is_dir():
            for path in self.directory.glob(".*"):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of them, of a run that is over or is not to be gone on with."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self._best = None


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
