"""The commands of the three stages: `pretrain`, `fine-tune` and `fit-classifier`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ulmfit_fast.cli.app import (
    ClassWeight,
    Device,
    LabelColumn,
    Model,
    Out,
    Overwrite,
    Precision,
    Seed,
    SkipBadRows,
    TableOptions,
    TextFiles,
    WeightColumn,
    check_out,
    class_weight_of,
    flat,
    on_error,
    say,
    say_next,
    typer,
)
from ulmfit_fast.cli.config import ConfigOptions, config_lines, given_options
from ulmfit_fast.data.reading.records import READABLE, kind_of
from ulmfit_fast.system.distributed import rank_zero_only, world
from ulmfit_fast.system.files import user_path

if TYPE_CHECKING:
    from ulmfit_fast.data.store.store import TokenStore
    from ulmfit_fast.runs import DryRun, Run
    from ulmfit_fast.ulmfit.estimator import ULMFiT

__all__ = [
    "Integer",
    "MaybeRate",
    "RowOptions",
    "fine_tune",
    "fit_classifier",
    "held_out_of",
    "pretrain",
]

_SETTINGS = ("epochs", "lr", "batch_size", "bptt", "precision", "gradual_unfreezing", "drop_mult")
# Options that say nothing of what is computed.
_OF_THE_RUN = ("resume", "overwrite", "dry_run")
# Of the texts, where nothing is said of what is held out.
_VALID = 0.15
Integer = int | None
Number = float | None
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="paper, fastai07, fastai_v2, multifit, small or medium; kept with the model.",
    ),
]
DropMult = Annotated[Number, typer.Option("--drop-mult", help="Factor on every dropout.")]
MaybeRate = Annotated[Number, typer.Option("--lr", help="Largest learning rate.")]
MaybeBatchSize = Annotated[
    Integer,
    typer.Option("--batch-size", help="Rows of a batch; the preset's, or 64."),
]
Bptt = Annotated[Integer, typer.Option("--bptt", help="Tokens of a step.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="NAME=VALUE for any other field of TrainingSettings, such as random_bptt=true or "
        "gradual_unfreezing=[1,1]; repeatable.",
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """How a run is kept and reported; all but `dry_run` are arguments of `Run`."""

    checkpoint_steps: Annotated[
        Integer, typer.Option("--checkpoint-steps", help="Steps between checkpoints.")
    ] = None
    checkpoint_minutes: Annotated[
        Number, typer.Option("--checkpoint-minutes", help="Minutes between checkpoints.")
    ] = 10.0
    keep: Annotated[int, typer.Option("--keep", help="Checkpoints kept, beside the best.")] = 3
    keep_checkpoints: Annotated[
        bool,
        typer.Option("--keep-checkpoints", help="Leave them in --out when the run is over."),
    ] = False
    report_steps: Annotated[
        int, typer.Option("--report-steps", help="Steps to a line of metrics.")
    ] = 1
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write --out/tensorboard as well.")
    ] = False
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or begin it.")
    ] = False
    overwrite: Overwrite = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Take some steps, say what the run would take, write nothing."
        ),
    ] = False


@dataclass(frozen=True)
class ValidationOptions:
    """What is held out to measure on, and what is made of it."""

    valid: Annotated[
        str | None,
        typer.Option(
            "--valid",
            metavar="FILE|SHARE",
            help="What is held out to measure on: a share of each class, or a file; 0.15.",
        ),
    ] = None
    valid_column: Annotated[
        str | None,
        typer.Option("--valid-column", help="Column that marks the held-out rows (is_valid)."),
    ] = None
    no_valid: Annotated[bool, typer.Option("--no-valid", help="Hold nothing out.")] = False
    patience: Annotated[
        Integer,
        typer.Option(
            "--patience",
            help="Stop after so many epochs without a lower validation loss; keep the best one.",
        ),
    ] = None
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="Keep the epoch of the lowest validation loss.")
    ] = False
    refit: Annotated[
        bool,
        typer.Option("--refit", help="In the end fit to all rows, in as many epochs as were best."),
    ] = False
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Fit no bag of words to compare with.")
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Return them as `ULMFiT.fit_classifier` takes them.

        Raises:
            ValueError: if options exclude each other, or --valid is neither a share nor a file.
        """
        asked = [
            f"--{name.replace('_', '-')}"
            for name in ("patience", "keep_best", "refit")
            if getattr(self, name)
        ]
        held_out = self._valid()
        if self.no_valid and asked:
            raise ValueError(f"--no-valid and {asked[0]} are both given, expected one of them")
        return {
            "valid": held_out,
            "valid_column": self.valid_column,
            "refit": self.refit,
            "baseline": not self.no_baseline,
            **({"keep_best": True} if self.keep_best else {}),
            **({} if self.patience is None else {"patience": self.patience}),
        }

    def file(self) -> Path | None:
        """Return the file of --valid, if it is one."""
        found = self._valid()
        return found if isinstance(found, Path) else None

    def _valid(self) -> float | Path | None:
        return held_out_of(self.valid, self.valid_column, no_valid=self.no_valid)


def held_out_of(
    valid: str | None, valid_column: str | None, *, no_valid: bool
) -> float | Path | None:
    """Return the share or file that is held out, or None where a column says it, or nothing is.

    Args:
        valid: as it is given, or None.
        valid_column: of the rows that are held out, or None.
        no_valid: nothing is.

    Raises:
        ValueError: if options exclude each other, or --valid is neither a share nor a file.
    """
    if no_valid and (valid is not None or valid_column is not None):
        other = "--valid" if valid is not None else "--valid-column"
        raise ValueError(f"--no-valid and {other} are both given, expected one of them")
    if valid is not None and valid_column is not None:
        raise ValueError("--valid and --valid-column are both given, expected one of them")
    if no_valid or valid_column is not None:
        return None
    if valid is None:
        return _VALID
    try:
        share = float(valid)
    except ValueError:
        path = user_path(valid)
        if not path.exists():
            raise FileNotFoundError(
                f"--valid is {valid!r:.60}, expected a share such as 0.15 or a file with "
                "labels; there is no such file"
            ) from None
        return path
    if not 0 < share < 1:
        raise ValueError(
            f"--valid is {valid}, expected a share between 0 and 1 or a file; --no-valid "
            "holds nothing out"
        )
    return share


@dataclass(frozen=True)
class RowOptions(TableOptions):
    """How the files of texts are written, and which of their rows are read."""

    skip_bad_rows: SkipBadRows = False

    def arguments(self) -> dict[str, Any]:
        """Return them as `read_texts` and the stages of `ULMFiT` take them."""
        given = super().arguments()
        skip = given.pop("skip_bad_rows")
        return {**given, "on_error": on_error(skip)}


def _epochs(otherwise: str) -> Any:
    return typer.Option("--epochs", help=f"Passes over the texts; the preset's, or {otherwise}.")


def _given(assignments: list[str] | None, **options: Any) -> dict[str, Any]:
    """Return the options that were given, and what `--set` assigns, as JSON or else as a word."""
    given = {name: value for name, value in options.items() if value is not None}
    for assignment in assignments or ():
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise ValueError(f"--set is {assignment!r}, expected NAME=VALUE")
        try:
            given[name] = json.loads(text)
        except json.JSONDecodeError:
            given[name] = text
    return given


def _corpus(text: list[Path]) -> list[Path] | TokenStore:
    """Return the files, or the store that `tokenize` made, which stays on disk."""
    from ulmfit_fast.data.store.store import TokenStore

    stores = [path for path in text if TokenStore.is_store(path)]
    if not stores:
        return text
    if len(text) > 1:
        raise ValueError(
            f"--text has the token store {stores[0]} and {len(text) - 1} more, expected a store "
            "alone; tokenize all texts into one"
        )
    return TokenStore(stores[0])


def _run(stage: str, out: Path, read: Sequence[Path], options: RunOptions) -> Run | DryRun:
    """Return the run in a directory, after a look at whether it may and can be there."""
    from ulmfit_fast.runs import DryRun, Run

    values = dict(vars(options))
    dry_run = values.pop("dry_run")
    run = Run(out, **values)

    def look() -> None:
        check_out(out, read, overwrite=run.overwrite, resume=run.resume)
        if run.resume and run.holds_other(stage):
            raise FileExistsError(
                f"--out {out} holds a model or another run, and no {stage} run to go on with; "
                "--overwrite replaces it, or choose another directory"
            )
        run.check(stage)

    # Of several processes the first one looks, before it begins to write.
    rank_zero_only(look)
    return DryRun() if dry_run else run


def _shows_config(
    context: typer.Context, options: ConfigOptions, model: ULMFiT, stage: str, **given: Any
) -> bool:
    """Write what a stage would use, if that is asked for; return whether it was."""
    if not options.print_config:
        return False
    own = given_options(context, *_OF_THE_RUN)
    # What --set says of the stage's other arguments is no setting of the training.
    others = {*signature(getattr(model, stage)).parameters} - {*_SETTINGS}
    settings, drop_mult = model.settings.stage(
        stage, **{name: value for name, value in given.items() if name not in others}
    )
    training = {**vars(settings), "drop_mult": drop_mult}
    sizes = model.settings.to_dict()
    # What the rows decide, and a factor of a preset's stage, which is not that of the model.
    left = ["drop_mult"] if stage == "pretrain" else []
    if stage == "fit_classifier" and model.settings.is_sized:
        left += ["epochs", "batch_size"]
    for name, value in own.items():
        if value is None and name not in left:
            own[name] = training.get(name, sizes.get(name))
    own["device"] = model.device
    if stage == "fit_classifier" and not own["no_valid"] and own["valid_column"] is None:
        own["valid"] = held_out_of(own["valid"], None, no_valid=False)
    preset = sizes.pop("preset")
    if "preset" in own:
        own["preset"] = None if preset is None else preset["name"]
    further = {name: value for name, value in training.items() if name not in own}
    if own["drop_mult"] is None:
        further["drop_mult"] = drop_mult
    for line in config_lines(own, {"model": sizes, stage: further}):
        typer.echo(line)
    return True


@contextmanager
def _reported(
    model: ULMFiT, stage: str, out: Path, run: Run | DryRun, *following: object
) -> Iterator[None]:
    """Say what a stage came to and which command follows, or what it would take."""
    from ulmfit_fast.runs import DryRun

    if isinstance(run, DryRun):
        with run.measuring():
            yield
        for line in run.estimate.lines():
            typer.echo(line)
        return
    yield
    if world().rank == 0:
        # The model that is left is the one that was fitted last.
        last = next((of for of in ("refit_classifier", stage) if of in model.histories), None)
        if last is not None:
            loss = model.histories[last].epochs[-1].loss
            say(f"loss {loss:.4f} after the last epoch; the model is in {out}")
        say_next(*map(str, following))


@flat
def pretrain(
    context: typer.Context,
    *,
    text: TextFiles,
    out: Out,
    preset: Preset = None,
    epochs: Annotated[Integer, _epochs("10")] = None,
    lr: MaybeRate = None,
    batch_size: MaybeBatchSize = None,
    bptt: Bptt = None,
    emb_size: Annotated[Integer, typer.Option("--emb-size", help="Embedding width; 400.")] = None,
    hidden_size: Annotated[Integer, typer.Option("--hidden-size", help="LSTM units; 1152.")] = None,
    num_layers: Annotated[Integer, typer.Option("--num-layers", help="LSTM layers; 3.")] = None,
    max_vocab: Annotated[
        Integer, typer.Option("--max-vocab", help="Largest vocabulary; 60000.")
    ] = None,
    min_freq: Annotated[Integer, typer.Option("--min-freq", help="Rarest word kept; 3.")] = None,
    drop_mult: DropMult = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="word, subword or spacy; word.")
    ] = None,
    backwards: Annotated[
        bool, typer.Option("--backwards", help="Read every text from its end.")
    ] = False,
    precision: Precision = None,
    settings: Settings = None,
    kept: RunOptions,
    seed: Seed = 0,
    rows: RowOptions,
    device: Device = None,
    configured: ConfigOptions,
) -> None:
    """Train a language model from scratch on general text, or on a token store (stage 1)."""
    from ulmfit_fast.ulmfit.estimator import ULMFiT

    run = _run("pretrain", out, text, kept)
    sizes = _given(
        None,
        emb_size=emb_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        tokenizer=tokenizer,
        max_vocab=max_vocab,
        min_freq=min_freq,
        drop_mult=drop_mult,
    )
    model = ULMFiT(
        preset=preset, backwards=backwards, device=device, seed=seed, checkpoint_dir=out, **sizes
    )
    given = _given(
        settings,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        bptt=bptt,
        drop_mult=drop_mult,
        precision=precision,
    )
    if _shows_config(context, configured, model, "pretrain", **given):
        return
    following = ("fine-tune", "--model", out, "--text", "texts.csv", "--out", f"{out}-tuned")
    with _reported(model, "pretrain", out, run, *following):
        model.pretrain(_corpus(text), run=run, **rows.arguments(), **given)


def _load(directory: Path, out: Path, seed: int, device: str | None) -> ULMFiT:
    from ulmfit_fast.ulmfit.estimator import ULMFiT

    model = ULMFiT.load(directory, device=device)
    model.seed, model.checkpoint_dir = seed, out
    return model


@flat
def fine_tune(
    context: typer.Context,
    *,
    model: Model,
    text: TextFiles,
    out: Out,
    epochs: Annotated[Integer, _epochs("15")] = None,
    lr: MaybeRate = None,
    batch_size: MaybeBatchSize = None,
    bptt: Bptt = None,
    drop_mult: DropMult = None,
    precision: Precision = None,
    settings: Settings = None,
    kept: RunOptions,
    seed: Seed = 0,
    rows: RowOptions,
    device: Device = None,
    configured: ConfigOptions,
) -> None:
    """Adapt a language model to the text of the task, or a token store of it (stage 2)."""
    run = _run("fine_tune_lm", out, [model, *text], kept)
    learner = _load(model, out, seed, device)
    given = _given(
        settings,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        bptt=bptt,
        drop_mult=drop_mult,
        precision=precision,
    )
    if _shows_config(context, configured, learner, "fine_tune_lm", **given):
        return
    # The same files, where they can have labels.
    labelled = [path for path in text if kind_of(path) in READABLE[1:]] or [Path("labelled.csv")]
    following: list[object] = ["fit-classifier", "--model", out]
    following += [part for path in labelled for part in ("--text", path)]
    following += [*rows.options(), "--out", f"{out}-classifier"]
    with _reported(learner, "fine_tune_lm", out, run, *following):
        learner.fine_tune_lm(_corpus(text), run=run, **rows.arguments(), **given)


@flat
def fit_classifier(
    context: typer.Context,
    *,
    model: Annotated[
        Path | None, typer.Option("--model", help="Directory of a language model.")
    ] = None,
    text: TextFiles,
    out: Out,
    epochs: Annotated[Integer, _epochs("by the number of rows")] = None,
    lr: MaybeRate = None,
    batch_size: Annotated[
        Integer,
        typer.Option(
            "--batch-size", help="Texts of a step; the preset's, or by the number of rows."
        ),
    ] = None,
    drop_mult: DropMult = None,
    class_weight: ClassWeight = None,
    precision: Precision = None,
    settings: Settings = None,
    kept: RunOptions,
    validation: ValidationOptions,
    seed: Seed = 0,
    rows: RowOptions,
    label_column: LabelColumn = "label",
    weight_column: WeightColumn = None,
    device: Device = None,
    configured: ConfigOptions,
) -> None:
    """Fit a classifier on a language model's encoder, and say how good it is (stage 3)."""
    if model is None:
        whole = shlex.join(["ulmfit-fast", "train", *map(str, text), "--out", str(out)])
        raise ValueError(
            "--model is missing, expected the directory of a language model; to begin with one of "
            f"the preset small, which suits a CPU: {whole}"
        )
    weights = class_weight_of(class_weight)
    held_out = validation.arguments()
    file = validation.file()
    run = _run("fit_classifier", out, [model, *text, *([] if file is None else [file])], kept)
    learner = _load(model, out, seed, device)
    given = _given(
        settings,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        drop_mult=drop_mult,
        precision=precision,
    )
    shown: dict[str, Any] = {
        name: held_out[name] for name in ("patience", "keep_best") if name in held_out
    }
    shown |= given
    if _shows_config(context, configured, learner, "fit_classifier", **shown):
        return
    files = ("--text", "new.csv", *rows.options())
    following = ("predict", "--model", out, *files, "--out", "answers.csv")
    with _reported(learner, "fit_classifier", out, run, *following):
        learner.fit_classifier(
            text,
            label_column=label_column,
            run=run,
            **rows.arguments(),
            **{"class_weight": weights, "weight_column": weight_column, **held_out, **given},
        )
        if learner.validation is not None and world().rank == 0:
            for line in str(learner.validation).splitlines():
                say(line)
