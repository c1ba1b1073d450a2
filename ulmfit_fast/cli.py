"""The command line `ulmfit-fast`: the stages of ULMFiT, and all other commands gathered."""

from __future__ import annotations

import csv
import json
import logging
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch

from ulmfit_fast import cli_ablate, cli_convert, cli_data, cli_text, cli_train
from ulmfit_fast.cli_app import (
    BatchSize,
    Device,
    Model,
    Out,
    Seed,
    TextColumn,
    TextFiles,
    app,
    check_out,
    check_writable,
    guarded,
    say,
    typer,
)

if TYPE_CHECKING:
    from ulmfit_fast.data.token_store import TokenStore
    from ulmfit_fast.estimator import ULMFiT

__all__ = ["app", "main"]

# To import one of these is to add its commands.
_MORE_COMMANDS = (cli_ablate, cli_convert, cli_data, cli_text, cli_train)


def _report_saved(model: ULMFiT, stage: str, out: Path) -> None:
    last = model.histories[stage].epochs[-1]
    say(f"loss {last.loss:.4f} after the last epoch; the model is in {out}")


@app.command()
@guarded
def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory for the report.")] = Path(
        "demo-out"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A small run, within a minute.")] = False,
    seed: Seed = 0,
) -> None:
    """Train the whole of ULMFiT on the docstrings of this machine and report what it brings."""
    from ulmfit_fast.demo.experiment import run_demo
    from ulmfit_fast.report import format_table

    metrics = run_demo(out, quick=quick, seed=seed, say=say)
    typer.echo(format_table(metrics))
    typer.echo(f"{out / 'report.html'} shows the curves; {out / 'metrics.json'} has the numbers.")


Integer = int | None
Number = float | None
Preset = Annotated[
    str | None,
    typer.Option("--preset", help="paper, fastai07, fastai_v2 or multifit; kept with the model."),
]
DropMult = Annotated[Number, typer.Option("--drop-mult", help="Factor on every dropout.")]
MaybeRate = Annotated[Number, typer.Option("--lr", help="Largest learning rate.")]
MaybeBatchSize = Annotated[Integer, typer.Option("--batch-size", help="Rows of a batch.")]
Bptt = Annotated[Integer, typer.Option("--bptt", help="Tokens of a step.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="NAME=VALUE for any other field of TrainingSettings, such as precision=bfloat16, "
        "random_bptt=true or gradual_unfreezing=[1,1]; repeatable.",
    ),
]


def _epochs(default: int) -> Any:
    return typer.Option("--epochs", help=f"Passes over the texts; the preset's, or {default}.")


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
    from ulmfit_fast.data.token_store import TokenStore

    stores = [path for path in text if TokenStore.is_store(path)]
    if not stores:
        return text
    if len(text) > 1:
        raise ValueError(
            f"--text has the token store {stores[0]} and {len(text) - 1} more, expected a store "
            "alone; tokenize all texts into one"
        )
    return TokenStore(stores[0])


@app.command()
@guarded
def pretrain(
    text: TextFiles,
    out: Out,
    preset: Preset = None,
    epochs: Annotated[Integer, _epochs(10)] = None,
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
    settings: Settings = None,
    seed: Seed = 0,
    text_column: TextColumn = "text",
    device: Device = None,
) -> None:
    """Train a language model from scratch on general text, or on a token store (stage 1)."""
    from ulmfit_fast.estimator import ULMFiT

    check_out(out)
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
    given = _given(settings, epochs=epochs, lr=lr, batch_size=batch_size, bptt=bptt)
    model.pretrain(_corpus(text), text_column=text_column, **given)
    _report_saved(model, "pretrain", out)


def _load(directory: Path, out: Path, seed: int, device: str | None) -> ULMFiT:
    from ulmfit_fast.estimator import ULMFiT

    check_out(out)
    model = ULMFiT.load(directory, device=device)
    model.seed, model.checkpoint_dir = seed, out
    return model


@app.command("fine-tune")
@guarded
def fine_tune(
    model: Model,
    text: TextFiles,
    out: Out,
    epochs: Annotated[Integer, _epochs(15)] = None,
    lr: MaybeRate = None,
    batch_size: MaybeBatchSize = None,
    bptt: Bptt = None,
    drop_mult: DropMult = None,
    settings: Settings = None,
    seed: Seed = 0,
    text_column: TextColumn = "text",
    device: Device = None,
) -> None:
    """Adapt a language model to the text of the task, or a token store of it (stage 2)."""
    learner = _load(model, out, seed, device)
    given = _given(
        settings, epochs=epochs, lr=lr, batch_size=batch_size, bptt=bptt, drop_mult=drop_mult
    )
    learner.fine_tune_lm(_corpus(text), text_column=text_column, **given)
    _report_saved(learner, "fine_tune_lm", out)


@app.command("fit-classifier")
@guarded
def fit_classifier(
    model: Model,
    text: TextFiles,
    out: Out,
    epochs: Annotated[Integer, _epochs(10)] = None,
    lr: MaybeRate = None,
    batch_size: MaybeBatchSize = None,
    drop_mult: DropMult = None,
    settings: Settings = None,
    seed: Seed = 0,
    text_column: TextColumn = "text",
    label_column: Annotated[
        str, typer.Option("--label-column", help="Column of .csv and .jsonl files.")
    ] = "label",
    device: Device = None,
) -> None:
    """Fit a classifier on a language model's encoder (stage 3)."""
    learner = _load(model, out, seed, device)
    given = _given(settings, epochs=epochs, lr=lr, batch_size=batch_size, drop_mult=drop_mult)
    learner.fit_classifier(text, text_column=text_column, label_column=label_column, **given)
    _report_saved(learner, "fit_classifier", out)


@app.command()
@guarded
def predict(
    model: Model,
    text: TextFiles,
    out: Annotated[
        Path | None, typer.Option("--out", help="CSV file; standard output when not given.")
    ] = None,
    batch_size: BatchSize = 64,
    text_column: TextColumn = "text",
    device: Device = None,
) -> None:
    """Write label and probability of each text as CSV, in the order of the texts."""
    from ulmfit_fast.estimator import ULMFiT

    if out is not None:
        if out.is_dir():
            raise IsADirectoryError(f"--out {out} is a directory, expected a file; add its name")
        check_writable(out)
    learner = ULMFiT.load(model, device=device)
    scores = learner.predict_proba(text, text_column=text_column, batch_size=batch_size)
    rows = [(learner.labels[int(row.argmax())], f"{row.max():.4f}") for row in scores]
    if out is None:
        _write_csv(sys.stdout, rows)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            _write_csv(file, rows)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _write_csv(file: Any, rows: list[tuple[Any, str]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("label", "probability"))
    writer.writerows(rows)


@app.command()
@guarded
def info() -> None:
    """Show versions, the device, and which LSTM would run."""
    import ulmfit_fast as uf

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = uf.LSTM(400, 1152, weight_p=0.5, device=device)
    x = torch.zeros(1, 1, 400, device=device)
    typer.echo(f"ulmfit-fast {uf.__version__}, torch {torch.__version__}")
    typer.echo(f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    typer.echo(f"device: {device}, {name}")
    typer.echo(f"LSTM backend: {uf.backend.explain(layer, x)}")


def main() -> None:
    """Run the command line."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    app()
