"""The whole job: from labelled texts to a classifier that says how good it is."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ulmfit_fast import data
from ulmfit_fast.data.columns import Label
from ulmfit_fast.data.reading.lines import OnError
from ulmfit_fast.data.reading.outputs import check_apart, paths_in
from ulmfit_fast.data.store.store import TokenStore
from ulmfit_fast.presets import Preset
from ulmfit_fast.runs.dry_run import DryRun, Estimate
from ulmfit_fast.runs.outlook import Outlook
from ulmfit_fast.runs.run import Run, holding
from ulmfit_fast.system.directories import CHECKPOINTS, check_target, is_leftover
from ulmfit_fast.system.distributed import world
from ulmfit_fast.system.files import parse_json, user_path, write_text
from ulmfit_fast.system.machine import machine
from ulmfit_fast.system.version import __version__
from ulmfit_fast.ulmfit.estimator import ULMFiT
from ulmfit_fast.ulmfit.labelled import ClassWeight, classes_of, labelled_texts, with_weights
from ulmfit_fast.ulmfit.record import RunRecord, stage_record, worst_examples, write_page
from ulmfit_fast.ulmfit.settings import checked_device, checked_seed, training_settings
from ulmfit_fast.ulmfit.sizing import (
    classifier_sizes,
    language_model_sizes,
    too_few_steps,
    words_in,
)
from ulmfit_fast.ulmfit.trained import Texts, corpus_of
from ulmfit_fast.ulmfit.validation import Divided, Labelled, Valid, divided, positions_of

__all__ = ["PAGE", "RECORD", "TITLES", "Job", "train"]

_log = logging.getLogger("ulmfit_fast.progress")

RECORD, PAGE = "report.json", "report.html"
# What the whole run began with, and what each stage was, once it is over.
_BEGUN, _DONE = "train.json", "stage.json"
_FEW = 10
_OF_CLASSIFIER = ("epochs", "batch_size", "lr", "patience")
TITLES = {
    "pretrain": "pre-training a language model",
    "fine_tune_lm": "fine-tuning the language model",
    "fit_classifier": "fitting the classifier",
    "refit_classifier": "fitting the classifier to all texts",
}


@dataclass(frozen=True)
class Job:
    """A run of `train`, whose arguments the attributes are."""

    texts: Texts
    labels: Iterable[Label] | None = None
    out: str | os.PathLike[str] | None = None
    lm: str | os.PathLike[str] | None = None
    unlabelled: Texts | None = None
    valid: Valid | None = 0.15
    valid_column: str | None = None
    preset: Preset | str | None = None
    text_column: str = "text"
    label_column: str = "label"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    lm_epochs: int | None = None
    patience: int = 0
    class_weight: ClassWeight | None = None
    weight_column: str | None = None
    precision: str = "float32"
    refit: bool = False
    seed: int = 0
    device: str | None = None
    on_error: OnError = "raise"
    delimiter: str | None = None
    encoding: str | None = None
    resume: bool = False
    overwrite: bool = False
    keep_checkpoints: bool = False
    checkpoint_minutes: float = 5.0
    progress: bool = True
    command: str = "ulmfit_fast.train(...)"
    say: Callable[[str], None] = _log.info

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        if self.lm_epochs is not None:
            try:
                training_settings(epochs=self.lm_epochs)
            except ValueError as error:
                raise ValueError(f"lm_{error}") from None
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite are both asked for, expected one of them")
        if self.resume and self.out is None:
            raise ValueError("resume is True without out, expected the directory to go on in")
        if self.lm is not None and self.preset is not None:
            raise ValueError(
                f"preset is {self.preset!r:.60} beside lm, whose sizes and preset are its own; "
                "leave one of them out"
            )
        if self.refit and self.valid is None and self.valid_column is None:
            raise ValueError(
                "refit is True, and no text is held out, so that all are trained on anyway; leave "
                "it out, or pass valid=0.15"
            )
        if world().size > 1:
            raise ValueError(
                "train runs in one process; call the stages one by one for several processes"
            )

    @cached_property
    def _texts(self) -> Divided:
        columns: Any = {
            "text_column": self.text_column,
            "label_column": self.label_column,
            "weight_column": self.weight_column,
            "on_error": self.on_error,
            "delimiter": self.delimiter,
            "encoding": self.encoding,
        }
        if self.valid is None and self.valid_column is None:
            everything = Labelled(*labelled_texts(self.texts, self.labels, **columns))
            return Divided(everything, None, everything)
        return divided(
            *(self.texts, self.labels),
            valid=None if self.valid_column is not None else self.valid,
            valid_column=self.valid_column,
            seed=self.seed,
            **columns,
        )

    @cached_property
    def _further(self) -> list[str]:
        """The unlabelled texts, but for those that are held out."""
        if self.unlabelled is None:
            return []
        found = corpus_of(self.unlabelled, self.text_column, self.on_error)
        if isinstance(found, TokenStore):
            raise ValueError(
                f"unlabelled is the token store {found!r}, of which held-out texts cannot be left "
                "out, expected texts; pass the files that it was made from"
            )
        held_out = self._texts.held_out
        known = {_key(text) for text in held_out.texts} if held_out is not None else set()
        kept = [text for text in found if _key(text) not in known]
        if len(kept) < len(found):
            self.say(
                f"{len(found) - len(kept):,} of the {len(found):,} unlabelled texts are held out "
                "as well, and left out"
            )
        return kept

    @cached_property
    def _corpus(self) -> list[str]:
        """What the language model reads: nothing that is held out."""
        return [*self._texts.train.texts, *self._further]

    @cached_property
    def _start(self) -> ULMFiT:
        """The model before the first stage."""
        device = checked_device(self.device)
        if self.lm is not None:
            model = ULMFiT.load(self.lm, device=device, progress=self.progress)
            model.seed = self.seed
            return model
        preset = self.preset
        if preset is None:
            preset = "small" if torch.device(device).type == "cpu" else "medium"
        return ULMFiT(preset=preset, device=device, seed=self.seed, progress=self.progress)

    @cached_property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The settings of each stage, in order, but for those that the preset and defaults have."""
        model, parts = self._start, self._texts
        sized = model.settings.is_sized
        common = {} if self.precision == "float32" else {"precision": self.precision}
        first = "pretrain" if self.lm is None else "fine_tune_lm"
        language_model: dict[str, Any] = dict(common)
        if sized:
            training, _ = model.settings.stage(first)
            batch_size, epochs = language_model_sizes(words_in(self._corpus), training.bptt)
            language_model |= {"batch_size": batch_size, "epochs": epochs}
        if self.lm_epochs is not None:
            language_model["epochs"] = self.lm_epochs
        classifier: dict[str, Any] = dict(common)
        if sized:
            batch_size, epochs = classifier_sizes(len(parts.train.texts))
            classifier |= {"batch_size": batch_size, "epochs": epochs}
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) is not None:
                classifier[name] = getattr(self, name)
        refit = {"refit_classifier": dict(classifier)} if self.refit and parts.held_out else {}
        if self.patience and parts.held_out is not None:
            classifier["patience"] = self.patience
        return {first: language_model, "fit_classifier": classifier, **refit}

    def settings(self) -> dict[str, Any]:
        """Return everything that decides what the run comes to, as plain values."""
        model = self._start
        stages = {}
        for name, given in self.stages.items():
            training, drop_mult = model.settings.stage(_method(name), **given)
            stages[name] = {**vars(training), "drop_mult": drop_mult}
        preset = model.settings.preset
        found = {
            "lm": None if self.lm is None else str(self.lm),
            "preset": None if preset is None else preset.name,
            "model": {k: v for k, v in model.settings.to_dict().items() if k != "preset"},
            "stages": stages,
            "class_weight": self.class_weight,
            "refit": self.refit,
            "seed": self.seed,
            "device": model.device,
        }
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    def warnings(self) -> list[str]:
        """Return what a look at the texts and the settings warns of.

        Raises:
            ValueError: if nothing can be learnt from the texts.
        """
        found = self._look_through()
        parts, model = self._texts, self._start
        # Found before the language model is trained, not after.
        classes = classes_of(parts.train.labels)
        train = parts.train
        with_weights(train.texts, train.labels, self.class_weight, train.weights)
        if parts.held_out is not None:
            positions_of(parts.held_out.labels, classes)
        training, _ = model.settings.stage("fit_classifier", **self.stages["fit_classifier"])
        rows = len(parts.train.texts)
        few_steps = too_few_steps(training, rows, is_sized=model.settings.is_sized)
        found += [] if few_steps is None else [few_steps]
        counts = Counter(parts.train.labels)
        few = sorted((own for own in counts if counts[own] < _FEW), key=str)
        if few:
            names = ", ".join(f"{own!r:.40} ({counts[own]})" for own in few[:5])
            more = f" and {len(few) - 5} more" if len(few) > 5 else ""
            found.append(f"fewer than {_FEW} texts to train on are of {names}{more}")
        return found

    def _look_through(self) -> list[str]:
        if self.labels is not None:
            return []
        found: list[str] = []
        for path in filter(Path.is_file, paths_in(self.texts)):
            table = data.check_table(
                path,
                text_column=self.text_column,
                label_column=self.label_column,
                delimiter=self.delimiter,
                encoding=self.encoding,
            )
            if table.faults and self.on_error == "raise":
                raise ValueError(f"{path}: {table.faults[0]}")
            found += [f"{path.name}: {warning}" for warning in table.warnings]
        return found

    def estimates(self) -> dict[str, Estimate]:
        """Take some steps of each stage, write nothing, and return what the stages would take."""
        found = {}
        for name in self.stages:
            dry = DryRun()
            model = self._start.copy()
            with dry.measuring():
                self._train(name, model, dry)
            found[name] = dry.estimate
        return found

    def _train(
        self, name: str, model: ULMFiT, run: Run | DryRun, epochs: int | None = None
    ) -> None:
        given, parts = self.stages[name], self._texts
        if epochs is not None:
            given = {**given, "epochs": epochs}
        if name in ("pretrain", "fine_tune_lm"):
            getattr(model, name)(self._corpus, run=run, **given)
            return
        held_out = parts.held_out if name == "fit_classifier" else None
        own = parts.train if name == "fit_classifier" else parts.everything
        model.fit_classifier(
            own.texts,
            own.labels,
            valid=None if held_out is None else (held_out.texts, held_out.labels),
            baseline=True,
            class_weight=self.class_weight,
            sample_weight=own.weights,
            run=run,
            **given,
        )

    def run(self) -> ULMFiT:
        """Do all of it, or go on with it.

        Returns:
            The fitted model, with its report.
        """
        with ExitStack() as stack:
            if self.out is None:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            else:
                directory = user_path(self.out).resolve()
                self._check_out(directory)
                stack.enter_context(holding(directory))
            return self._run(directory)

    def _check_out(self, directory: Path) -> None:
        """Refuse, before any work, a directory of something else."""
        check_target(directory)
        given = (self.texts, self.valid, self.unlabelled, self.lm)
        check_apart(directory, [path for own in given for path in paths_in(own)], is_text=True)
        there = os.listdir(directory) if directory.is_dir() else []
        names = sorted(name for name in there if not is_leftover(name))
        if names and not (self.resume or self.overwrite):
            raise FileExistsError(
                f"{directory} holds {names[0]} already; resume=True goes on with it, "
                "overwrite=True replaces it, or choose another directory"
            )
        record = _record_in(directory)
        if record is None and PAGE in names:
            raise FileExistsError(
                f"{directory / PAGE} is of something else, which would be replaced; move it away, "
                "or choose another directory"
            )
        if self.resume and names and record is None:
            work = directory / CHECKPOINTS
            begins = names == [CHECKPOINTS] and not any(path.is_dir() for path in work.iterdir())
            if not begins and not (work / _BEGUN).exists():
                raise FileExistsError(
                    f"{directory} holds {names[0]}, and no run of train to go on with; "
                    "overwrite=True replaces it, or choose another directory"
                )

    def _run(self, directory: Path) -> ULMFiT:
        work, begun = directory / CHECKPOINTS, self._begun()
        finished = _record_in(directory) if self.resume else None
        if finished is not None:
            return self._finished(directory, finished, begun)
        if self.resume and (work / _BEGUN).exists():
            _check_same(parse_json((work / _BEGUN).read_text("utf-8"), _BEGUN), begun, directory)
        else:
            if self.overwrite:
                for name in (RECORD, PAGE):
                    (directory / name).unlink(missing_ok=True)
            shutil.rmtree(work, ignore_errors=True)
            warnings = self.warnings()
            work.mkdir(parents=True, exist_ok=True)
            write_text(work / _BEGUN, json.dumps({**begun, "warnings": warnings}))
        warnings = parse_json((work / _BEGUN).read_text("utf-8"), _BEGUN)["warnings"]
        for line in (*self._opening(), *(f"warning: {own}" for own in warnings)):
            self.say(line)
        model, stages, examples = self._stages(work)
        record = self._record(model, stages, warnings, examples)
        model.checkpoint_dir, model.report = None, record
        if self.out is not None:
            model.save(directory)
            self._write(record, directory)
            self._tidy(directory)
        return model

    def _opening(self) -> list[str]:
        parts, model = self._texts, self._start
        everything = parts.everything
        lines = [
            f"{len(everything.texts):,} texts of {len(set(everything.labels))} classes, "
            f"{len(parts.train.texts):,} of them to train on"
            + (f"; {len(self._further):,} without labels" if self.unlabelled is not None else "")
        ]
        preset = model.settings.preset
        if self.lm is None and preset is not None:
            kind = model.device.partition(":")[0].upper()
            why = f", for a {kind}," if self.preset is None else ""
            lines.append(
                f"no language model is given: one of the preset {preset.name!r}{why} is "
                "pre-trained on these texts; one of much text of the language may do better"
            )
        return lines

    def _stages(self, work: Path) -> tuple[ULMFiT, list[dict[str, Any]], list[dict[str, Any]]]:
        """Go through the stages, those that are over left out."""
        model, records = self._start.copy(), []
        examples: list[dict[str, Any]] = []
        histories: dict[str, Any] = {}
        outlook = Outlook({name: self._words(name) for name in self.stages}, self.say)
        for number, name in enumerate(self.stages, 1):
            directory, of = work / name, f"{number}/{len(self.stages)} {TITLES[name]}"
            if (directory / _DONE).exists():
                model = ULMFiT.load(directory, device=model.device, progress=self.progress)
                model.seed = self.seed
                records.append(parse_json((directory / _DONE).read_text("utf-8"), _DONE))
                self.say(f"{of}: is over already")
            else:
                epochs = self._epochs_of(records[-1]) if name == "refit_classifier" else None
                self.say(f"{of}, {self._sizes(name, epochs)}")
                began, validation = time.monotonic(), model.validation
                model.checkpoint_dir = directory
                minutes = self.checkpoint_minutes if self.out is not None else None
                outlook.enter(name)
                run = Run(
                    directory,
                    resume=True,
                    keep=1,
                    # Until what the stage came to is written as well.
                    keep_checkpoints=True,
                    checkpoint_minutes=minutes,
                    outlook=outlook,
                )
                self._train(name, model, run, epochs)
                if epochs is not None and validation is not None:
                    rows = len(self._texts.everything.texts)
                    model.validation = validation.before_refit(rows, epochs)
                    model.save(directory)
                history = model.histories.pop(_method(name))
                histories[name] = history
                records.append(stage_record(name, history, time.monotonic() - began))
                write_text(directory / _DONE, json.dumps(records[-1]))
            if name == "fit_classifier" and model.validation is not None:
                examples = worst_examples(model, model.validation.mistakes)
        model.histories = histories
        return model, records, examples

    def _words(self, name: str) -> float:
        training, _ = self._start.settings.stage(_method(name), **self.stages[name])
        texts = {
            "fit_classifier": self._texts.train.texts,
            "refit_classifier": self._texts.everything.texts,
        }.get(name, self._corpus)
        return float(words_in(texts) * training.epochs)

    def _epochs_of(self, stage: dict[str, Any]) -> int:
        """Return the epochs of the classifier that was measured, which is the one to make anew."""
        losses = [own["valid_loss"] for own in stage["epochs"]]
        return losses.index(min(losses)) + 1 if self.patience else len(losses)

    def _sizes(self, name: str, epochs: int | None) -> str:
        training, _ = self._start.settings.stage(_method(name), **self.stages[name])
        epochs = epochs or training.epochs
        return f"{epochs} epoch{'s' * (epochs != 1)} in batches of {training.batch_size}"

    def _begun(self) -> dict[str, Any]:
        found = hashlib.sha256()
        parts = self._texts
        held_out = Labelled([], []) if parts.held_out is None else parts.held_out
        for own in (parts.train, held_out):
            for text, label in zip(own.texts, own.labels, strict=True):
                found.update(repr((text, label)).encode())
            found.update(b"|")
        if parts.everything.weights is not None:
            found.update(np.asarray(parts.everything.weights, dtype=np.float64).tobytes())
        for text in self._further:
            found.update(repr(text).encode())
        return {"settings": self.settings(), "texts": found.hexdigest()[:32]}

    def _record(
        self,
        model: ULMFiT,
        stages: list[dict[str, Any]],
        warnings: list[str],
        examples: list[dict[str, Any]],
    ) -> RunRecord:
        parts, found = self._texts, model.validation
        everything = parts.everything
        counts = Counter(everything.labels)
        return RunRecord(
            version=__version__,
            command=self.command,
            created=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
            machine=machine(),
            settings=_shown(self.settings()),
            full_settings=self.settings(),
            stages=stages,
            data={
                "rows": len(everything.texts),
                "trained_on": len(parts.train.texts),
                "held_out": 0 if parts.held_out is None else len(parts.held_out.texts),
                "unlabelled": len(self._further),
                "classes": [
                    {
                        "label": str(label),
                        "count": counts[label],
                        "share": counts[label] / len(everything.texts),
                    }
                    for label in classes_of(everything.labels)
                ],
                "warnings": warnings,
                "texts": self._begun()["texts"],
            },
            evaluation=None if found is None else found.to_dict(),
            verdict=None if found is None else found.verdict or None,
            examples=examples,
        )

    def _write(self, record: RunRecord, directory: Path) -> None:
        try:
            # The record last: it stands for a run that is over.
            write_page(record, directory / PAGE)
        except ModuleNotFoundError as error:
            self.say(f"no {PAGE} is written: {error}")
        record.save(directory / RECORD)

    def _tidy(self, directory: Path) -> None:
        if not self.keep_checkpoints:
            shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)

    def _finished(self, directory: Path, record: RunRecord, begun: dict[str, Any]) -> ULMFiT:
        found = {"settings": record.get("full_settings"), "texts": record["data"].get("texts")}
        _check_same(found, begun, directory)
        self._tidy(directory)
        self.say(f"the run in {directory} is over already; nothing is left to do")
        model = ULMFiT.load(directory, device=self.device, progress=self.progress)
        model.report = record
        return model


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a reader asks for first, in one table."""
    found = {name: settings[name] for name in ("lm", "preset", "seed", "device")}
    sizes = ("emb_size", "hidden_size", "num_layers", "tokenizer", "max_vocab", "min_freq")
    found |= {name: settings["model"][name] for name in sizes}
    for stage, values in settings["stages"].items():
        for name in ("epochs", "batch_size", "lr", "precision", "drop_mult"):
            found[f"{stage}.{name}"] = values[name]
    return {**found, "class_weight": settings["class_weight"], "refit": settings["refit"]}


def _key(text: str) -> str:
    # As `stratified_split` finds copies.
    return text.strip().casefold()


def _method(stage: str) -> str:
    return "fit_classifier" if stage == "refit_classifier" else stage


def _record_in(directory: Path) -> RunRecord | None:
    """Return the record of a run that is over, or None; refuse a file of something else."""
    try:
        return RunRecord.load(directory / RECORD)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FileExistsError(f"{error}; move it away, or choose another directory") from error


def _check_same(before: Any, now: dict[str, Any], directory: Path) -> None:
    if before.get("texts") != now["texts"]:
        raise ValueError(
            f"the run in {directory} began with other texts or weights, or other ones held out; "
            "pass those, or begin anew (overwrite=True)"
        )
    for path, old, new in _differences(before["settings"], now["settings"]):
        raise ValueError(
            f"{_argument(path)} is {new!r:.80}, and {old!r:.80} in the run in {directory}, "
            "expected the same; pass what it began with, or begin anew (overwrite=True)"
        )


def _argument(path: str) -> str:
    """Return what a setting of a stage is called among the arguments, where it is one."""
    _, stage, name = [*path.split("."), "", ""][:3]
    if name == "precision" or (stage == "fit_classifier" and name in _OF_CLASSIFIER):
        return name
    return "lm_epochs" if stage in ("pretrain", "fine_tune_lm") and name == "epochs" else path


def _differences(before: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for name in sorted({*before, *now})
            for found in _differences(before.get(name), now.get(name), f"{path}.{name}".lstrip("."))
        ]
    return [] if before == now else [(path, before, now)]


def train(
    texts: Texts,
    labels: Iterable[Label] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    lm: str | os.PathLike[str] | None = None,
    unlabelled: Texts | None = None,
    valid: Valid | None = 0.15,
    valid_column: str | None = None,
    preset: Preset | str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    lm_epochs: int | None = None,
    patience: int = 0,
    class_weight: ClassWeight | None = None,
    weight_column: str | None = None,
    precision: str = "float32",
    refit: bool = False,
    seed: int = 0,
    device: str | None = None,
    on_error: OnError = "raise",
    delimiter: str | None = None,
    encoding: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
    checkpoint_minutes: float = 5.0,
    progress: bool = True,
) -> ULMFiT:
    """Do the whole job: a language model, a classifier on it, and how good that is.

    Texts are held out, of which neither the classifier nor the language model reads a word, so that
    the numbers are those of new texts. Without `lm` a language model is pre-trained on the texts
    themselves; one that was pre-trained on much text of the language is fine-tuned to them. Batch
    sizes and epochs go by the amount of text, unless the preset is a published one.

    Example:
        >>> import ulmfit_fast as uf
        >>> texts = [f"a {word} film {n}" for n in range(20) for word in ("fine", "dull")]
        >>> model = uf.train(texts, ["good", "bad"] * 20, epochs=1, lm_epochs=1, progress=False)
        >>> model.report["data"]["held_out"], [own["name"] for own in model.report["stages"]]
        (6, ['pretrain', 'fit_classifier'])

    Args:
        texts: the labelled texts, as for `ULMFiT.fit_classifier`.
        labels: of each; None reads them from `label_column`.
        out: directory for the model, `report.json` and `report.html`, in which the run can be gone
            on with; None keeps nothing.
        lm: directory of a language model to fine-tune; None pre-trains one.
        unlabelled: further texts for the language model; those that are held out are left out.
        valid: what is held out, as for `ULMFiT.fit_classifier`; None for nothing.
        valid_column: column of the texts that marks what to hold out, in the place of `valid`.
        preset: of a new language model, such as "small" or "medium"; None takes small on a CPU,
            medium on a GPU.
        text_column: column of the texts.
        label_column: column of the labels.
        epochs: of the classifier; None goes by the number of texts.
        batch_size: of the classifier; None goes by the number of texts.
        lr: largest learning rate of the classifier; None for the preset's.
        lm_epochs: of the language model; None goes by its amount of text.
        patience: stop the classifier after so many epochs without a lower validation loss, and keep
            the best one; 0 trains to the end.
        class_weight: as for `ULMFiT.fit_classifier`.
        weight_column: column of the weights of texts; None weighs all alike.
        precision: "float32", "bfloat16" or "float16".
        refit: in the end fit a classifier to all texts, in as many epochs as the one that was
            measured; with `patience` those are the best ones.
        seed: fixes what is held out, the models and the order of the texts.
        device: "cpu", "cuda" or None for CUDA where there is any.
        on_error: "raise", or "skip" to leave out rows that cannot be read.
        delimiter: of .csv and .tsv files of labelled texts, as for `data.read_texts`.
        encoding: of files of labelled texts, as for `data.read_texts`.
        resume: go on with the run in `out`, in the stage that it was in, or begin it.
        overwrite: replace the model or run in `out`.
        keep_checkpoints: leave the checkpoints and the models of the stages in `out`.
        checkpoint_minutes: minutes between checkpoints.
        progress: show progress bars on a terminal.

    Returns:
        The fitted model; its `report` is the record of the run.

    Raises:
        TypeError: as `ULMFiT.fit_classifier`.
        ValueError: as `ULMFiT.fit_classifier`, or if arguments exclude each other, or the run in
            `out` began with others.
        FileExistsError: if `out` holds something, and neither resume nor overwrite is asked for.
    """
    return Job(**locals()).run()
