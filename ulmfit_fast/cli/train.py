"""The command `ulmfit-fast train`: from a table to a classifier that says how good it is."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ulmfit_fast.cli.app import (
    ClassWeight,
    Device,
    LabelColumn,
    Out,
    Overwrite,
    Seed,
    WeightColumn,
    check_out,
    class_weight_of,
    flat,
    say,
    say_next,
    typer,
)
from ulmfit_fast.cli.config import ConfigOptions, config_lines
from ulmfit_fast.cli.stages import Integer, MaybeRate, RowOptions, held_out_of

if TYPE_CHECKING:
    from ulmfit_fast.ulmfit.job import Job

__all__ = ["train"]


@dataclass(frozen=True)
class JobOptions:
    """How the run is kept and shown."""

    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or begin it.")
    ] = False
    overwrite: Overwrite = False
    keep_checkpoints: Annotated[
        bool,
        typer.Option(
            "--keep-checkpoints", help="Leave checkpoints and models of the stages in --out."
        ),
    ] = False
    checkpoint_minutes: Annotated[
        float, typer.Option("--checkpoint-minutes", help="Minutes between checkpoints.")
    ] = 5.0
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Take some steps of each stage, say what the run would take, write nothing.",
        ),
    ] = False


@flat
def train(
    *,
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Labelled texts: .csv, .tsv, .xlsx, .jsonl, .parquet or a folder of them."
        ),
    ],
    out: Out,
    lm: Annotated[
        Path | None,
        typer.Option("--lm", help="Language model to fine-tune; one is pre-trained if not given."),
    ] = None,
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option("--unlabelled", help="More text for the language model; repeatable."),
    ] = None,
    valid: Annotated[
        str | None,
        typer.Option(
            "--valid",
            metavar="FILE|SHARE",
            help="What is held out to measure on: a share of each class, or a file; 0.15.",
        ),
    ] = None,
    valid_column: Annotated[
        str | None,
        typer.Option("--valid-column", help="Column that marks the held-out rows (is_valid)."),
    ] = None,
    no_valid: Annotated[bool, typer.Option("--no-valid", help="Hold nothing out.")] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="small, medium, paper, fastai07, fastai_v2 or multifit; small on a CPU.",
        ),
    ] = None,
    rows: RowOptions,
    label_column: LabelColumn = "label",
    epochs: Annotated[
        Integer, typer.Option("--epochs", help="Of the classifier; by the number of rows.")
    ] = None,
    batch_size: Annotated[
        Integer, typer.Option("--batch-size", help="Of the classifier; by the number of rows.")
    ] = None,
    lr: MaybeRate = None,
    lm_epochs: Annotated[
        Integer, typer.Option("--lm-epochs", help="Of the language model; by its text.")
    ] = None,
    patience: Annotated[
        int,
        typer.Option(
            "--patience",
            help="Stop after so many epochs without a lower validation loss; keep the best one.",
        ),
    ] = 0,
    refit: Annotated[
        bool,
        typer.Option("--refit", help="In the end fit to all rows; the numbers stay those before."),
    ] = False,
    class_weight: ClassWeight = None,
    weight_column: WeightColumn = None,
    precision: Annotated[
        str, typer.Option("--precision", help="float32, bfloat16 or float16.")
    ] = "float32",
    seed: Seed = 0,
    device: Device = None,
    kept: JobOptions,
    configured: ConfigOptions,
) -> None:
    """Do the whole job: language model, classifier, evaluation and report, from labelled texts."""
    from ulmfit_fast.ulmfit.job import Job

    held_out = held_out_of(valid, valid_column, no_valid=no_valid)
    if no_valid and (refit or patience):
        other = "--refit" if refit else "--patience"
        raise ValueError(f"--no-valid and {other} are both given, expected one of them")
    if lm is not None and preset is not None:
        raise ValueError("--lm and --preset are both given; the model in --lm has its own preset")
    read = [*data, *(unlabelled or ()), *([held_out] if isinstance(held_out, Path) else ())]
    for path in (*read, *([] if lm is None else [lm])):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist, expected a file or directory")
    check_out(out, read, overwrite=kept.overwrite, resume=kept.resume)
    job = Job(
        data,
        out=out,
        lm=lm,
        unlabelled=unlabelled,
        valid=held_out,
        valid_column=valid_column,
        preset=preset,
        label_column=label_column,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        lm_epochs=lm_epochs,
        patience=patience,
        class_weight=class_weight_of(class_weight),
        weight_column=weight_column,
        precision=precision,
        refit=refit,
        seed=seed,
        device=device,
        resume=kept.resume,
        overwrite=kept.overwrite,
        keep_checkpoints=kept.keep_checkpoints,
        checkpoint_minutes=kept.checkpoint_minutes,
        command=shlex.join(["ulmfit-fast", *sys.argv[1:]]),
        say=say,
        **rows.arguments(),
    )
    if configured.print_config:
        for line in _config_of(job, no_valid=no_valid, skip_bad_rows=rows.skip_bad_rows):
            typer.echo(line)
    if kept.dry_run:
        _show_estimates(job)
    if configured.print_config or kept.dry_run:
        return
    model = job.run()
    if model.validation is not None:
        for line in str(model.validation).splitlines():
            say(line)
    from ulmfit_fast.ulmfit.job import PAGE, RECORD

    page = next((name for name in (PAGE, RECORD) if (out / name).exists()), RECORD)
    say(f"the model is in {out}, what it can do in {out / page}")
    say_next("predict", "--model", out, "--text", "new.csv", *rows.options())


def _show_estimates(job: Job) -> None:
    from ulmfit_fast.runs.dry_run import readable
    from ulmfit_fast.ulmfit.job import TITLES

    for line in job.warnings():
        say(f"warning: {line}")
    found = job.estimates()
    for name, estimate in found.items():
        typer.echo(f"{TITLES[name]}:")
        for line in estimate.lines():
            typer.echo(f"  {line}")
    whole = sum(estimate.seconds for estimate in found.values())
    typer.echo(f"the whole run: {readable(whole)}")


def _config_of(job: Job, *, no_valid: bool, skip_bad_rows: bool) -> Iterable[str]:
    """Return the options as TOML, and the settings of the stages as comments."""
    settings = job.settings()
    stages = settings.pop("stages")
    classifier = stages["fit_classifier"]
    first = next(iter(stages))
    own = {
        "data": job.texts,
        "out": job.out,
        "lm": job.lm,
        "unlabelled": job.unlabelled,
        "valid": None if job.valid_column is not None or no_valid else job.valid,
        "valid_column": job.valid_column,
        "no_valid": no_valid,
        "preset": None if job.lm is not None else settings["preset"],
        "text_column": job.text_column,
        "label_column": job.label_column,
        "delimiter": job.delimiter,
        "encoding": job.encoding,
        "skip_bad_rows": skip_bad_rows,
        **{name: classifier[name] for name in ("epochs", "batch_size", "lr", "patience")},
        "lm_epochs": stages[first]["epochs"],
        "refit": job.refit,
        "class_weight": _weights(job.class_weight),
        "weight_column": job.weight_column,
        "precision": job.precision,
        "seed": job.seed,
        "device": settings["device"],
        "keep_checkpoints": job.keep_checkpoints,
        "checkpoint_minutes": job.checkpoint_minutes,
    }
    return config_lines(own, {"model": settings["model"], **stages})


def _weights(given: Any) -> list[str] | None:
    if given is None or isinstance(given, str):
        return None if given is None else [given]
    return [f"{label}={weight}" for label, weight in given.items()]
