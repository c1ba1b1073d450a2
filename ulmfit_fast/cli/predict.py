"""The command `ulmfit-fast predict`: texts in, a row for each of them out, in a stream."""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from ulmfit_fast.cli.app import (
    BatchSize,
    Device,
    Model,
    Overwrite,
    Precision,
    TableOptions,
    check_out_file,
    check_standard_output,
    computing_in,
    flat,
    say,
    typer,
)

if TYPE_CHECKING:
    from ulmfit_fast.data.reading.corpus import Label
    from ulmfit_fast.serving import Prediction

__all__ = ["predict"]

_FORMATS = ("csv", "jsonl")
_UNSURE = "unsure"
# As the JSON of a row has them; the other columns of a .csv file are named after them.
_NAMES = ("label", "probability", "top", "probabilities")


@flat
def predict(
    *,
    model: Model,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts to classify, each in quotes."),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            help=".txt (one text a line), .csv, .tsv, .xlsx, .jsonl, .parquet, or a folder of "
            "them; repeatable. - is standard input, one text a line.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File; standard output, in UTF-8, if not given.")
    ] = None,
    overwrite: Overwrite = False,
    format: Annotated[
        str | None,
        typer.Option("--format", help="csv or jsonl; by the ending of --out, or csv."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            help="Columns of the files to write first: all, or NAME,NAME; id, where there is one.",
        ),
    ] = None,
    every_class: Annotated[
        bool, typer.Option("--all", help="Write the probability of each class as well.")
    ] = False,
    top: Annotated[
        int | None, typer.Option("--top", help="Write so many of the likeliest labels as well.")
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Below this probability the label is unsure.")
    ] = 0.0,
    batch_size: BatchSize = 64,
    chunk_size: Annotated[
        int, typer.Option("--chunk-size", help="Texts that are read ahead; bounds the memory.")
    ] = 1024,
    int8: Annotated[
        bool, typer.Option("--int8", help="LSTM weights in int8: faster on a CPU, less exact.")
    ] = False,
    precision: Precision = None,
    table: TableOptions,
    device: Device = None,
) -> None:
    """Write label and probability of each text, in the order of the texts, as they are read."""
    from ulmfit_fast.serving import quantize
    from ulmfit_fast.ulmfit.estimator import ULMFiT

    paths = _paths(texts, text, keep)
    format = _format_of(format, out)
    if out is not None:
        check_out_file(out, [model, *paths], overwrite=overwrite)
    if int8 and precision is not None:
        raise ValueError(f"--int8 and --precision {precision} are both given, expected one of them")
    try:
        learner = ULMFiT.load(model, device=device)
        if int8:
            learner = quantize(learner)
        names, rows = _rows(texts, paths, keep, table)
        waiting: deque[Sequence[Any]] = deque()
        predictions = learner.predict_stream(
            _read_ahead(rows, waiting), chunk_size=chunk_size, batch_size=batch_size
        )
        answers = _Answers(learner.labels, every_class, top, threshold)
        with computing_in(precision, learner.device):
            # Before anything is written, so that wrong input leaves nothing behind.
            first = next(predictions)
            found = (
                (waiting.popleft(), answers.of(prediction))
                for prediction in itertools.chain([first], predictions)
            )
            write = _write_csv if format == "csv" else _write_jsonl
            with _opened(out) as file:
                write(file, names, found)
    except KeyboardInterrupt:
        say("interrupted" if out is None else f"interrupted; {out} is not written")
        raise typer.Exit(130) from None


def _paths(texts: list[str] | None, given: list[Path] | None, keep: str | None) -> list[Path]:
    """Return what is to be read, after a look at whether texts and files are told apart."""
    from ulmfit_fast.data.reading.corpus import is_text
    from ulmfit_fast.data.reading.lines import STANDARD_INPUT

    for text in texts or ():
        if not is_text(text):
            raise ValueError(
                f"{text!r:.60} is the name of a file, expected a text; pass --text for a file, or "
                "the text by --text -"
            )
    if texts and given:
        raise ValueError(
            f"there are the text {texts[0]!r:.60} and --text {given[0]}, expected texts or files; "
            "leave one of them out"
        )
    if texts and keep is not None:
        raise ValueError(f"--keep is {keep!r:.60} without a file that has columns; leave it out")
    if not texts and not given:
        raise ValueError(
            'there is nothing to classify; pass --text FILE, --text - or a text, such as "so fine"'
        )
    return [STANDARD_INPUT if path == Path("-") else path for path in given or ()]


def _rows(
    texts: list[str] | None, paths: list[Path], keep: str | None, table: TableOptions
) -> tuple[list[str], Iterable[tuple[str, Sequence[Any]]]]:
    """Return the names of the columns that are kept, and each text with what stands in them."""
    from ulmfit_fast.data.reading.corpus import kept_columns, read_rows

    if texts:
        return [], ((text, ()) for text in texts)
    try:
        names = kept_columns(paths, keep, **table.arguments())
    except ValueError as error:
        raise ValueError(f"--keep: {error}" if keep else error) from error
    return names, read_rows(paths, names, **table.arguments())


def _read_ahead(
    rows: Iterable[tuple[str, Sequence[Any]]], waiting: deque[Sequence[Any]]
) -> Iterator[dict[str, str]]:
    """Yield the texts as records, and leave what goes along with them until they are answered."""
    for text, kept in rows:
        waiting.append(kept)
        # A plain string that is the name of a file would be refused.
        yield {"text": text}


@dataclass(frozen=True)
class _Answers:
    """What is written of a prediction."""

    labels: list[Label]
    every_class: bool
    top: int | None
    threshold: float

    def __post_init__(self) -> None:
        classes = len(self.labels)
        if self.top is not None and not 1 <= self.top <= classes:
            raise ValueError(f"--top is {self.top}, expected 1 to {classes}, the model's classes")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"--threshold is {self.threshold}, expected a number from 0 to 1")
        if self.threshold and _UNSURE in self.labels:
            raise ValueError(
                f"--threshold is {self.threshold}, and the model has a class {_UNSURE!r}, which "
                "could not be told from an answer below it; leave it out"
            )

    def of(self, prediction: Prediction) -> dict[str, Any]:
        """Return what there is to say of a text, by the names of `_NAMES`."""
        scores = [round(value, 4) for value in prediction.probabilities]
        is_sure = prediction.probability >= self.threshold
        row: dict[str, Any] = {
            "label": prediction.label if is_sure else _UNSURE,
            "probability": round(prediction.probability, 4),
        }
        if self.top is not None:
            order = sorted(range(len(scores)), key=lambda n: -prediction.probabilities[n])
            row["top"] = [
                {"label": self.labels[n], "probability": scores[n]} for n in order[: self.top]
            ]
        if self.every_class:
            row["probabilities"] = dict(zip(map(str, self.labels), scores, strict=True))
        return row


Found = Iterator[tuple[Sequence[Any], dict[str, Any]]]


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


def _beside(kept: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return the names, each with `predicted_` before it as long as a kept column has it.

    >>> _beside(["id", "label"], ["label", "probability"])
    ['predicted_label', 'probability']
    """
    found = []
    for name in names:
        while name in kept:
            name = f"predicted_{name}"
        found.append(name)
    return found


def _write_csv(file: TextIO, kept: Sequence[str], found: Found) -> None:
    plain = csv.writer(file, lineterminator="\n")
    # Before Python 3.13 the other one leaves a carriage return without quotes.
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    is_first = True
    for values, answer in found:
        columns = _columns(answer)
        if is_first:
            plain.writerow((*kept, *_beside(kept, columns)))
            is_first = False
        row = (*map(_field, values), *columns.values())
        (quoted if any("\r" in field for field in row) else plain).writerow(row)
        file.flush()


def _columns(answer: dict[str, Any]) -> dict[str, str]:
    """Return an answer's columns."""
    shown = {"label": str(answer["label"]), "probability": f"{answer['probability']:.4f}"}
    for place, one in enumerate(answer.get("top", ()), start=1):
        shown[f"label_{place}"] = str(one["label"])
        shown[f"probability_{place}"] = f"{one['probability']:.4f}"
    for label, value in answer.get("probabilities", {}).items():
        shown[f"prob_{label}"] = f"{value:.4f}"
    return shown


def _field(value: Any) -> str:
    """Return how a .csv file has a value: a string as it is, nothing for one that is missing."""
    if value is None:
        return ""
    if isinstance(value, (bool, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _write_jsonl(file: TextIO, kept: Sequence[str], found: Found) -> None:
    names = dict(zip(_NAMES, _beside(kept, _NAMES), strict=True))
    for values, answer in found:
        row = dict(zip(kept, values, strict=True))
        row |= {names[name]: value for name, value in answer.items()}
        file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        file.flush()
