"""The command `ulmfit-fast predict`: texts in, a row for each of them out, in a stream."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

from ulmfit_fast.cli.app import (
    BatchSize,
    Device,
    Model,
    Overwrite,
    TableOptions,
    TextFiles,
    check_out_file,
    check_standard_output,
    flat,
    say,
    typer,
)

if TYPE_CHECKING:
    from ulmfit_fast.data.reading.corpus import Label
    from ulmfit_fast.serving import Prediction

__all__ = ["predict"]

_FORMATS = ("csv", "jsonl")


@flat
def predict(
    *,
    model: Model,
    text: TextFiles,
    out: Annotated[
        Path | None, typer.Option("--out", help="File; standard output, in UTF-8, if not given.")
    ] = None,
    overwrite: Overwrite = False,
    format: Annotated[
        str | None,
        typer.Option("--format", help="csv or jsonl; by the ending of --out, or csv."),
    ] = None,
    every_class: Annotated[
        bool, typer.Option("--all", help="Write the probability of each class as well.")
    ] = False,
    batch_size: BatchSize = 64,
    chunk_size: Annotated[
        int, typer.Option("--chunk-size", help="Texts that are read ahead; bounds the memory.")
    ] = 1024,
    int8: Annotated[
        bool, typer.Option("--int8", help="LSTM weights in int8: faster on a CPU, less exact.")
    ] = False,
    table: TableOptions,
    device: Device = None,
) -> None:
    """Write label and probability of each text, in the order of the texts, as they are read."""
    from ulmfit_fast.serving import quantize
    from ulmfit_fast.ulmfit.estimator import ULMFiT

    format = _format_of(format, out)
    if out is not None:
        check_out_file(out, [model, *text], overwrite=overwrite)
    try:
        learner = ULMFiT.load(model, device=device)
        if int8:
            learner = quantize(learner)
        predictions = learner.predict_stream(
            text, chunk_size=chunk_size, batch_size=batch_size, **table.arguments()
        )
        classes = learner.labels if every_class else []
        # Before anything is written, so that wrong input leaves nothing behind.
        first = next(predictions)
        write = _write_csv if format == "csv" else _write_jsonl
        with _opened(out) as file:
            write(file, itertools.chain([first], predictions), classes)
    except KeyboardInterrupt:
        say("interrupted" if out is None else f"interrupted; {out} is not written")
        raise typer.Exit(130) from None


def _format_of(asked: str | None, out: Path | None) -> str:
    """Return the format that is asked for, by name or by the ending of the file."""
    if asked is not None and asked not in _FORMATS:
        raise ValueError(f"--format is {asked!r}, expected {' or '.join(_FORMATS)}")
    ending = "" if out is None else out.suffix.lower().removeprefix(".")
    others = ("gz", "parquet", "tsv", "xlsx")
    if ending in others or (ending in _FORMATS and asked not in (None, ending)):
        wanted = " or ".join(f".{name}" for name in ([asked] if asked else _FORMATS))
        raise ValueError(
            f"--out {out} ends in .{ending}, and {asked or 'csv or jsonl'} is written, expected "
            f"{wanted}; choose another name"
        )
    return asked or (ending if ending in _FORMATS else "csv")


@contextmanager
def _opened(out: Path | None) -> Iterator[TextIO]:
    """Give standard output, or a file that is there when all of it has been written."""
    from ulmfit_fast.system.files import file_in_place

    if out is None:
        check_standard_output("; pass --out")
        yield sys.stdout
        return
    with (
        file_in_place(out) as path,
        path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


def _write_csv(file: TextIO, predictions: Iterator[Prediction], classes: Sequence[Label]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("label", "probability", *(f"probability of {label}" for label in classes)))
    for prediction in predictions:
        shown = prediction.probabilities if classes else ()
        numbers = (f"{value:.4f}" for value in (prediction.probability, *shown))
        writer.writerow((prediction.label, *numbers))
        file.flush()


def _write_jsonl(file: TextIO, predictions: Iterator[Prediction], classes: Sequence[Label]) -> None:
    for prediction in predictions:
        row: dict[str, object] = {
            "label": prediction.label,
            "probability": round(prediction.probability, 4),
        }
        if classes:
            numbers = (round(value, 4) for value in prediction.probabilities)
            row["probabilities"] = dict(zip(map(str, classes), numbers, strict=True))
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
