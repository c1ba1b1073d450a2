"""A run that can be resumed: its checkpoints, its metrics, and what to do when it has to stop."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ulmfit_fast.runs.checkpoints import Checkpoints
from ulmfit_fast.runs.metrics import Metrics, Position, Reading
from ulmfit_fast.runs.outlook import Outlook
from ulmfit_fast.runs.signals import StopRequest
from ulmfit_fast.runs.state_file import write_state
from ulmfit_fast.system.directories import (
    CHECKPOINTS,
    FAILED_STEP,
    owned_names,
    recover,
    weights_digest,
)
from ulmfit_fast.system.distributed import any_rank, rank_zero_only, world
from ulmfit_fast.system.files import parse_json, user_path, write_text
from ulmfit_fast.system.locks import directory_lock

__all__ = ["Resumable", "Run", "RunIsOver", "holding"]

_log = logging.getLogger("ulmfit_fast")
# What the shell shows.
_progress_log = logging.getLogger("ulmfit_fast.progress")

_DESCRIPTION = "run.json"
# What goes on from a stage, and is nothing without it.
_FOLLOWING = {"fit_classifier": "refit_classifier"}
# Runs of before do not have them, and go on.
_NEWER = frozenset({"labelled", "names"})
# Only of a run that is over: checkpoints hold all that came of it.
_NOT_COMPARED = frozenset({"language_model"})
# Whose values say nothing to a reader.
_OF_TEXTS = {
    "first_documents": "the texts, or the words that the model knows of them,",
    "labelled": "the texts, their order or their labels",
}
Found = TypeVar("Found")


class RunIsOver(Exception):
    """A run to go on with came to its end, and its checkpoints are removed.

    Args:
        message: for who does not expect it.
        fingerprint: what the run began with.
    """

    def __init__(self, message: str, fingerprint: dict[str, Any]) -> None:
        super().__init__(message)
        self.fingerprint = fingerprint


class Resumable(Position, Protocol):
    """What a run keeps: anything that can be put back to where it was."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides how it goes on, as plain values and tensors."""

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Put it back to where `state_dict` found it."""


@contextmanager
def holding(*directories: Path) -> Iterator[None]:
    """Keep others from writing into directories while the block runs, with `locks.held`.

    Of several processes of one training rank zero holds them for all.

    Args:
        directories: made when missing, and removed again if they are empty at the end.

    Raises:
        FileExistsError: if another process holds one; nothing has been touched then.
    """
    with ExitStack() as stack:
        for directory in directories:
            rank_zero_only(partial(stack.enter_context, directory_lock(directory)))
        yield


class Run:
    """Keep a stage of training where it can be gone on with, and report what it does.

    Pass one to `ULMFiT.pretrain`, `fine_tune_lm` or `fit_classifier`. A run that was killed at any
    moment and is started again with `resume=True`, the same texts and the same settings, goes on
    from its newest checkpoint with the very losses of a run that was never stopped (bit for bit on
    a CPU with as many threads, and on one GPU).

    SIGTERM, and the first Ctrl-C, end it after the step at hand, with a checkpoint.

    Example:
        >>> import tempfile
        >>> import ulmfit_fast as uf
        >>> out = Path(tempfile.mkdtemp())
        >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, min_freq=1, progress=False)
        >>> run = uf.Run(out, checkpoint_steps=5)
        >>> _ = model.pretrain(["a fine film", "a dull film"] * 200, epochs=1, run=run)
        >>> sorted(path.name for path in out.iterdir())
        ['checkpoints', 'metrics.jsonl']

    While a stage trains it holds the directory: a second run into it, or a model saved there from
    elsewhere, is refused.

    Args:
        directory: gains `metrics.jsonl`, and `checkpoints/` with a directory for each stage.
        checkpoint_steps: optimizer steps between checkpoints, or None.
        checkpoint_minutes: minutes between checkpoints, or None. Beside these there is one at each
            new low of the validation loss (of a classifier where `patience` or `keep_best` asks for
            the best epoch), one when the run is asked to stop, and, where there are any, one at the
            end.
        keep: how many of the newest checkpoints to keep, beside the one of the lowest validation
            loss.
        keep_checkpoints: leave them when the run is over. Where a `ULMFiT` has this directory as
            its `checkpoint_dir`, its model stands there, and they are removed otherwise.
        report_steps: steps to a line of `metrics.jsonl`, which has their mean loss.
        tensorboard: write the numbers for TensorBoard as well, which has to be installed.
        resume: go on with the run in the directory; where there is none, begin.
        overwrite: begin anew where there is a run of the stage that did not come to its end, which
            is then lost.
        outlook: of several stages, of which this is one and which says how far all are; None says
            it of this stage alone.

    Raises:
        ModuleNotFoundError: if TensorBoard is asked for and not installed.
        ValueError: if a number is below 1, or not positive, or both resume and overwrite are asked
            for.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        checkpoint_steps: int | None = None,
        checkpoint_minutes: float | None = None,
        keep: int = 3,
        keep_checkpoints: bool = False,
        report_steps: int = 1,
        tensorboard: bool = False,
        resume: bool = False,
        overwrite: bool = False,
        outlook: Outlook | None = None,
    ) -> None:
        if resume and overwrite:
            raise ValueError("resume and overwrite are both asked for, expected one of them")
        for name, count in (("checkpoint_steps", checkpoint_steps), ("report_steps", report_steps)):
            whole = isinstance(count, int) and not isinstance(count, bool) and count >= 1
            if not whole and not (count is None and name == "checkpoint_steps"):
                raise ValueError(f"{name} is {count!r}, expected a whole number, at least 1")
        if checkpoint_minutes is not None and not 0 < checkpoint_minutes < math.inf:
            raise ValueError(
                f"checkpoint_minutes is {checkpoint_minutes!r}, expected a positive number"
            )
        self.directory = user_path(directory)
        self.checkpoint_steps, self.checkpoint_minutes = checkpoint_steps, checkpoint_minutes
        self.keep, self.report_steps = keep, report_steps
        self.keep_checkpoints = keep_checkpoints
        self.resume, self.overwrite = resume, overwrite
        Checkpoints(self.directory, keep)  # refuses a wrong number now
        self._metrics = Metrics(self.directory, report_steps, tensorboard=tensorboard)
        self._stop = StopRequest()
        self.is_alone = outlook is None
        self._outlook = Outlook() if outlook is None else outlook
        self._begin: Callable[..., None] | None = None

    def _of_stage(self, stage: str) -> Path:
        return self.directory / CHECKPOINTS / stage

    def _description(self, stage: str) -> dict[str, Any] | None:
        path = self._of_stage(stage) / _DESCRIPTION
        try:
            found: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"), _DESCRIPTION)
            kinds = {"finished": bool, "torch": str, "fingerprint": dict}
            for name, kind in kinds.items():
                if not isinstance(found, dict) or not isinstance(found.get(name), kind):
                    raise ValueError(f"it has no {name}, or one of another kind")
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged: {error}; remove {path.parent} to start anew"
            ) from error
        return found

    def finished(self, stage: str) -> bool:
        """Return whether the directory has a run of this stage that came to its end.

        Args:
            stage: "pretrain", "fine_tune_lm" or "fit_classifier".
        """
        found = self._description(stage)
        return found is not None and bool(found.get("finished"))

    def is_tidied(self, stage: str) -> bool:
        """Return whether a run of this stage came to its end, and has left its model alone.

        Args:
            stage: as for `finished`.
        """
        found = self._description(stage)
        return found is not None and bool(found.get("is_tidied"))

    def holds_other(self, stage: str) -> bool:
        """Return whether there is a model or the run of another stage, and none of this one.

        Args:
            stage: as for `finished`.
        """
        if self._description(stage) is not None:
            return False
        runs = (self.directory / CHECKPOINTS).glob(f"*/{_DESCRIPTION}")
        return bool(owned_names(self.directory)) or any(runs)

    def check(self, stage: str) -> None:
        """Refuse, before any work, to run over a run that could be gone on with.

        Args:
            stage: as for `finished`.

        Raises:
            FileExistsError: if there is one and neither `resume` nor `overwrite` is asked for, or
                another process holds the directory.
            OSError: if the directory cannot be written.
        """
        if world().rank > 0:
            # Rank zero looks for all, and may be writing already.
            return
        if self.directory.is_dir():
            with directory_lock(self.directory):
                tempfile.TemporaryFile(dir=self.directory).close()
        begun = Checkpoints(self._of_stage(stage)).files()
        if begun and not (self.resume or self.overwrite or self.finished(stage)):
            raise FileExistsError(
                f"{self.directory} holds a {stage} run that did not come to its end; resume it "
                "(resume=True), or begin anew (overwrite=True)"
            )

    def tidy(self, *stages: str) -> None:
        """Remove the checkpoints of stages that are over.

        Args:
            stages: as for `finished`.
        """
        with holding(self.directory):
            rank_zero_only(lambda: self._tidy(stages))

    def _tidy(self, stages: Sequence[str]) -> None:
        for stage in stages:
            found = self._description(stage)
            if found is None or not found["finished"]:
                continue
            if not found.get("is_tidied"):
                # First that they are gone: a run that finds none is not begun once more.
                path = self._of_stage(stage) / _DESCRIPTION
                left = {"is_tidied": True, "model": weights_digest(self.directory)}
                write_text(path, json.dumps({**found, **left}, indent=1))
            checkpoints = Checkpoints(self._of_stage(stage))
            for path in (*checkpoints.files(), *checkpoints.set_aside()):
                path.unlink(missing_ok=True)

    def read_beside(self, stage: str, name: str, read: Callable[[str], Found]) -> Found | None:
        """Read a file that lies beside the checkpoints of the run that is resumed, or return None.

        Args:
            stage: as for `finished`.
            name: of the file.
            read: what makes of its text what is wanted; a ValueError of it is one of the file.
        """
        path = self._of_stage(stage) / name
        if not self.resume or not path.exists():
            return None
        try:
            return read(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; remove {path.parent} to start anew") from error

    def begin(
        self, parameters: Sequence[Tensor], epoch_steps: Sequence[int], *, copies: int
    ) -> None:
        """Note what is to be trained.

        Args:
            parameters: of the model.
            epoch_steps: steps of each epoch.
            copies: numbers in memory for each weight: itself, its gradient, the optimizer's.
        """
        self._begin = partial(self._outlook.begin, parameters, epoch_steps, copies=copies)

    @contextmanager
    def training(
        self,
        stage: str,
        state: Resumable,
        fingerprint: dict[str, Any],
        *,
        size: int,
        unit: str = "tokens",
        beside: Mapping[str, Callable[[], str]] | None = None,
    ) -> Iterator[None]:
        """Resume, if it is to be, and be there for the run while the block trains.

        Args:
            stage: as for `finished`.
            state: with no step taken; in the block it is where the run is.
            fingerprint: what has to be equal for a run to be gone on with, plain values.
            size: bytes of a checkpoint, at most.
            unit: what is trained on, "tokens" or "texts".
            beside: files to lie beside the checkpoints: the name of each, and what makes its text.

        Raises:
            FileExistsError: as `check` and `holding`, or if another model has taken the place of
                the one that a run which is over has left.
            RunIsOver: if there is nothing to go on with.
            ValueError: if the run in the directory differs in what decides its course.
            OSError: if there is no room for the checkpoints.
        """
        with holding(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self.check(stage)
            self.stage, self._state = stage, state
            self._checkpoints = Checkpoints(self._of_stage(stage), self.keep)
            fingerprint = json.loads(json.dumps(fingerprint))
            if self.resume:
                self._go_on(fingerprint)
            else:
                # Of a run that came to its end, or is to be lost; any other one has been refused.
                rank_zero_only(self._remove)
            self._metrics.begin(stage, state, unit)
            rank_zero_only(lambda: self._prepare(fingerprint, size, beside or {}))
            self._saved_at = time.monotonic()
            if self._begin is not None:
                self._begin(steps=state.steps, epoch=state.epoch)
            try:
                with self._stop.listening():
                    yield
                # What keeps no checkpoints on its way need not leave one at its end.
                if self.checkpoint_steps is not None or self._checkpoints.files():
                    self._save(best=False)
                self._metrics.flush()
                rank_zero_only(lambda: self._describe(fingerprint, finished=True))
            finally:
                self._metrics.close()

    def _remove(self) -> None:
        following = _FOLLOWING.get(self.stage)
        if following is not None:
            Checkpoints(self._of_stage(following)).remove()
        self._checkpoints.remove()

    def _prepare(
        self, fingerprint: dict[str, Any], size: int, beside: Mapping[str, Callable[[], str]]
    ) -> None:
        self._checkpoints.clean()
        recover(self.directory)
        self._metrics.keep_past()
        needed = size * (self.keep + 2)
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise OSError(
                f"{self.directory} has {free / 1e6:,.0f} MB free, {self.keep} checkpoints need "
                f"about {needed / 1e6:,.0f} MB; make room, or keep fewer"
            )
        # The description last: it stands for a run that can be gone on with.
        for name, text in beside.items():
            self._write_beside(name, text())
        self._describe(fingerprint, finished=False)

    def _go_on(self, fingerprint: dict[str, Any]) -> None:
        found = self._description(self.stage)
        if found is not None:
            _check_fingerprint(found["fingerprint"], fingerprint, self.directory)
            if found.get("is_tidied"):
                rank_zero_only(lambda: recover(self.directory))
                if weights_digest(self.directory) != found.get("model"):
                    raise FileExistsError(
                        f"the {self.stage} run in {self.directory} is over already, and another "
                        "model has taken the place of its own; overwrite=True begins anew, or "
                        "choose another directory for each stage"
                    )
                raise RunIsOver(
                    f"the run in {self.directory} is over already", found["fingerprint"]
                )
            if found["torch"] != torch.__version__:
                _log.warning(
                    "the run began with torch %s and goes on with %s; its losses may differ",
                    *(found["torch"], torch.__version__),
                )
        # Rank zero sets damaged ones aside; after that all read the same one.
        rank_zero_only(self._checkpoints.latest)
        values = self._checkpoints.latest()
        if values is not None:
            self._state.load_state_dict(values)
            self._say(f"going on after step {self._state.steps:,}")
        elif found is not None:
            self._say(f"the run in {self.directory} has no checkpoint yet; beginning anew")

    def _say(self, line: str) -> None:
        if world().rank == 0:
            _progress_log.info("%s", line)

    def _describe(self, fingerprint: dict[str, Any], *, finished: bool) -> None:
        description = {
            "finished": finished,
            "torch": torch.__version__,
            "fingerprint": fingerprint,
        }
        self._write_beside(_DESCRIPTION, json.dumps(description, indent=1))

    def _write_beside(self, name: str, text: str) -> None:
        directory = self._of_stage(self.stage)
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / name, text)

    def report(self, reading: Reading) -> None:
        """Take a step's loss in, and write a line when it is time.

        Args:
            reading: the step's.
        """
        self._metrics.add(reading)
        if self._begin is not None:
            self._outlook.report(reading)

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is to be written after a step.

        Args:
            step: steps taken.
        """
        minutes = (time.monotonic() - self._saved_at) / 60
        return any_rank(
            self._stop.requested
            or (self.checkpoint_steps is not None and step % self.checkpoint_steps == 0)
            or (self.checkpoint_minutes is not None and minutes >= self.checkpoint_minutes)
        )

    def checkpoint(self) -> None:
        """Write a checkpoint; then end the run, if that was asked for.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after SIGTERM, with the code 143.
            OSError: if it cannot be written; the ones before stay.
        """
        self._save(best=False, stop=True)

    def epoch_ended(
        self,
        loss: float,
        valid_loss: float | None,
        *,
        best: bool,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Report an epoch; keep it as the best one if it is.

        Args:
            loss: mean of its steps, in nats.
            valid_loss: on the held-out documents, in nats, or None.
            best: whether this is the lowest so far, and to be kept.
            scores: of a classifier on the held-out texts, by name; or None.
        """
        self._metrics.epoch_ended(loss, valid_loss, scores)
        if any_rank(best or self._stop.requested):
            self._save(best=best, stop=True)
        if self._begin is not None:
            self._outlook.epoch_ended(loss, valid_loss)

    def _save(self, *, best: bool, stop: bool = False) -> None:
        self._metrics.sync()
        step = self._state.steps
        try:
            values = self._state.state_dict()
            rank_zero_only(lambda: self._checkpoints.save(step, values, best=best))
        except OSError as error:
            files = self._checkpoints.files()
            last = f"the last good one is {files[-1]}" if files else "there is none before it"
            raise OSError(f"no checkpoint of step {step} could be written ({error}); {last}") from (
                error
            )
        self._saved_at = time.monotonic()
        if stop:
            path = self._checkpoints.path(step)
            self._stop.raise_if_requested(f"the run is in {path}; resume=True goes on with it")

    def failed(
        self, error: FloatingPointError, batch: Sequence[Tensor | None]
    ) -> FloatingPointError:
        """Keep the batch of a loss that is not finite, and say where all is.

        Args:
            error: what the step raised.
            batch: the tensors of the batch.

        Returns:
            The error to raise.
        """
        step, (rank, size) = self._state.steps, world()
        of = f"-rank-{rank}" if size > 1 else ""
        path = self.directory / f"{FAILED_STEP}{step:09d}{of}.safetensors"
        tensors = {f"tensor_{i}": t for i, t in enumerate(batch) if t is not None}
        write_state(path, {"stage": self.stage, "step": step, **tensors})
        files = self._checkpoints.files()
        last = f"the last good checkpoint is {files[-1]}" if files else "there is no checkpoint yet"
        return FloatingPointError(f"{error}; its batch is in {path}, {last}")


def _check_fingerprint(found: dict[str, Any], own: dict[str, Any], directory: Path) -> None:
    for name in sorted({*found, *own} - _NOT_COMPARED - (_NEWER - found.keys())):
        before, now = found.get(name), own.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            _check_fingerprint(before, now, directory)
        elif before != now and name in _OF_TEXTS:
            raise ValueError(
                f"{_OF_TEXTS[name]} are others than those of the run in {directory}, expected the "
                "same; pass what it began with, or choose another directory"
            )
        elif before != now:
            raise ValueError(
                f"{name} is {now!r:.80}, and {before!r:.80} in the run in {directory}, expected "
                "the same; pass what it began with, or choose another directory"
            )
