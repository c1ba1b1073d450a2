"""The commands `ulmfit-fast demo` and `ulmfit-fast ablate`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from ulmfit_fast.cli.app import (
    Device,
    LabelColumn,
    Overwrite,
    Precision,
    Seed,
    TableOptions,
    check_again,
    check_apart_from,
    check_writable,
    flat,
    names_in,
    say,
    typer,
)
from ulmfit_fast.system.files import user_path, write_text
from ulmfit_fast.system.locks import directory_lock


def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory for the report.")] = Path(
        "demo-out"
    ),
    overwrite: Overwrite = False,
    quick: Annotated[bool, typer.Option("--quick", help="A small run, within a minute.")] = False,
    precision: Precision = None,
    seed: Seed = 0,
) -> None:
    """Train the whole of ULMFiT on the docstrings of this machine and report what it brings."""
    from ulmfit_fast.report import format_table
    from ulmfit_fast.studies.demo import run_demo
    from ulmfit_fast.studies.settings import FULL, QUICK

    there = names_in(out)
    if not {"metrics.json", "report.html"}.issuperset(there):
        raise FileExistsError(
            f"--out {out} holds something other than a demo's report; choose a new directory"
        )
    check_again(out, there, overwrite=overwrite)
    settings = QUICK if quick else FULL
    if precision is not None:
        settings = settings.at(precision)
    metrics = run_demo(out, quick=quick, seed=seed, settings=settings, say=say)
    typer.echo(format_table(metrics))
    typer.echo(f"{out / 'report.html'} shows the curves; {out / 'metrics.json'} has the numbers.")


_FILES = ".txt (one text a line), .csv or .jsonl; repeatable."


@flat
def ablate(
    *,
    task: Annotated[
        str,
        typer.Option("--task", help="swap, types, subpackages, or a .csv or .jsonl file of yours."),
    ] = "types",
    out: Annotated[
        Path, typer.Option("--out", help="Directory for rows, tables, plot and models.")
    ] = Path("ablation-out"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the task's rows and models in --out.")
    ] = False,
    overwrite: Overwrite = False,
    labels: Annotated[
        str, typer.Option("--labels", help="Numbers of labels, with commas between.")
    ] = "",
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of each row.")] = 3,
    test: Annotated[int, typer.Option("--test", help="Texts to test on.")] = 1000,
    general: Annotated[
        list[Path] | None,
        typer.Option("--general", help="General text for a task of your own: " + _FILES),
    ] = None,
    target: Annotated[
        list[Path] | None,
        typer.Option("--target", help="More text like that of your task: " + _FILES),
    ] = None,
    emb_size: Annotated[int, typer.Option("--emb-size", help="Embedding width.")] = 96,
    hidden_size: Annotated[int, typer.Option("--hidden-size", help="LSTM units.")] = 192,
    pretrain_epochs: Annotated[
        int, typer.Option("--pretrain-epochs", help="Passes over the general text.")
    ] = 1,
    fine_tune_epochs: Annotated[
        int, typer.Option("--fine-tune-epochs", help="Passes over the text of the task.")
    ] = 1,
    columns: TableOptions,
    label_column: LabelColumn = "label",
    seed: Seed = 0,
    device: Device = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes at a time; one a core if not given.")
    ] = None,
) -> None:
    """Measure what each part of ULMFiT brings: rows, tables and a plot; --resume goes on."""
    from ulmfit_fast.studies.ablation import run_ablation
    from ulmfit_fast.studies.ablation_plan import AblationSettings
    from ulmfit_fast.studies.ablation_tables import format_ablation, plot_ablation
    from ulmfit_fast.studies.tasks import TASKS, own_task, read_task
    from ulmfit_fast.ulmfit.settings import checked_device

    own = user_path(task)
    name = task if task in TASKS else own.stem
    check_apart_from(out, [own, *(general or ()), *(target or ())], is_text=True)
    check_again(out, _files(out, name), overwrite=overwrite, resume=resume)
    check_writable(out)
    device = checked_device(device)
    settings = AblationSettings()
    settings = replace(
        settings,
        seeds=seeds,
        model={**settings.model, "emb_size": emb_size, "hidden_size": hidden_size},
        pretrain={**settings.pretrain, "epochs": pretrain_epochs},
        fine_tune={**settings.fine_tune, "epochs": fine_tune_epochs},
        epochs=_epochs(labels, settings.epochs),
    )
    if task in TASKS:
        if general or target:
            raise ValueError(
                f"--general and --target are for a task of your own, {task} brings its texts"
            )
        read = read_task(task, seed=seed, test=test)
    elif not own.exists():
        raise ValueError(f"--task is {task!r}, expected one of {', '.join(TASKS)} or a file")
    else:
        if not general:
            raise ValueError("a task of your own needs --general, text to pre-train on")
        options = {**columns.arguments(), "label_column": label_column}
        read = own_task(own, general=general, target=target or (), test=test, seed=seed, **options)
    with directory_lock(out.resolve()):
        if overwrite:
            for path in _files(out, name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        rows = run_ablation(read, out, settings, seed=seed, device=device, workers=workers, say=say)
        table = format_ablation(rows)
        write_text(out / f"ablation_{name}.md", table + "\n")
        plot_ablation(rows, out / f"ablation_{name}.png")
    typer.echo(table)


def _files(out: Path, name: str) -> list[Path]:
    """Return what there is in a directory of the ablation of a task."""
    endings = ("csv", "json", "md", "png")
    names = [*(f"ablation_{name}.{ending}" for ending in endings), f"models_{name}"]
    return [out / own for own in names if (out / own).exists()]


def _epochs(labels: str, default: dict[int, int]) -> dict[int, int]:
    """Give each number of labels the epochs of the nearest default from below."""
    if not labels:
        return default
    try:
        counts = [int(part) for part in labels.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 2:
        raise ValueError(f"--labels is {labels!r}, expected numbers such as 100,300,1000")
    return {
        count: default[max((known for known in default if known <= count), default=min(default))]
        for count in counts
    }
