"""What the commands share: their options, and one line for whatever is wrong."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, get_type_hints

try:
    import typer
except ModuleNotFoundError as error:
    raise SystemExit(
        "error: the command line needs more packages: pip install 'ulmfit-fast[text]'"
    ) from error

from ulmfit_fast.data.reading.outputs import check_apart, inside
from ulmfit_fast.data.reading.records import READABLE, kind_of
from ulmfit_fast.system.directories import check_target, is_leftover, is_run_file, owned_names
from ulmfit_fast.system.files import user_path
from ulmfit_fast.system.locks import directory_lock

__all__ = [
    "BatchSize",
    "ClassWeight",
    "Device",
    "LabelColumn",
    "Model",
    "Out",
    "Overwrite",
    "Precision",
    "Seed",
    "SkipBadRows",
    "TableOptions",
    "TextFiles",
    "WeightColumn",
    "check_again",
    "check_apart_from",
    "check_out",
    "check_out_file",
    "check_standard_output",
    "check_writable",
    "class_weight_of",
    "computing_in",
    "flat",
    "guarded",
    "in_flags",
    "names_in",
    "on_error",
    "say",
    "say_next",
    "typer",
    "without_number",
]

TextFiles = Annotated[
    list[Path],
    typer.Option(
        "--text",
        help=".txt (one text a line), .csv, .tsv, .xlsx, .jsonl, .parquet, or a folder of them; "
        "repeatable.",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Directory of the model that is written.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what is there: a file, or what the command wrote."),
]
Model = Annotated[Path, typer.Option("--model", help="Directory of a saved model.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Rows of a batch.")]
Seed = Annotated[int, typer.Option("--seed", help="Fixes weights, masks and order.")]
LabelColumn = Annotated[str, typer.Option("--label-column", help="Column of the labels.")]
SkipBadRows = Annotated[
    bool,
    typer.Option(
        "--skip-bad-rows",
        help="Leave out rows that cannot be read, 5 % of all at most; tell in the end.",
    ),
]
ClassWeight = Annotated[
    list[str] | None,
    typer.Option(
        "--class-weight",
        help="balanced, LABEL=WEIGHT (repeatable), or a JSON object of label and weight.",
    ),
]
WeightColumn = Annotated[
    str | None,
    typer.Option("--weight-column", help="Column of the weights of texts; none when not given."),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="float32 or bfloat16, on a GPU also float16; float32."),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda; found when not given.")]


@dataclass(frozen=True)
class TableOptions:
    """How the files of texts are written."""

    text_column: Annotated[
        str, typer.Option("--text-column", help="Column of the texts, where files have columns.")
    ] = "text"
    delimiter: Annotated[
        str | None,
        typer.Option(
            "--delimiter", help="Between the columns of .csv and .tsv; found when not given."
        ),
    ] = None
    encoding: Annotated[
        str | None,
        typer.Option("--encoding", help="Of text files, such as cp1252; found when not given."),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """Return them as `read_texts` takes them."""
        return dict(vars(self))

    def options(self) -> list[str]:
        """Return those that were given, as a shell takes them."""
        given = [(own, getattr(self, own.name)) for own in fields(TableOptions)]
        return [
            part
            for own, value in given
            if value != own.default
            for part in (f"--{own.name.replace('_', '-')}", value)
        ]


def computing_in(precision: str | None, device: str) -> AbstractContextManager[object]:
    """Return the context in which a model predicts in a precision.

    Args:
        precision: float32, bfloat16, on a GPU also float16; None for float32.
        device: where the model is.
    """
    import torch

    from ulmfit_fast.training.precision import Precision as Numbers
    from ulmfit_fast.training.precision import autocast

    return autocast(torch.device(device), Numbers.of(precision or "float32", device).dtype)


def say(line: str) -> None:
    """Write one line to standard error."""
    # The stream itself: where a progress bar is shown, something stands in for it that keeps the
    # bar's line, and the echo of errors writes past that.
    if sys.stderr is not None:
        typer.echo(line, file=sys.stderr)


def say_next(command: str, *parts: object) -> None:
    """Write the command that goes on from here, as a shell takes it.

    Args:
        command: its name.
        parts: its options and their values.
    """
    say(f"next: ulmfit-fast {shlex.join([command, *map(str, parts)])}")


# What a shell reports of a program that wrote into a closed pipe, 128 + SIGPIPE.
_BROKEN_PIPE = 141


@contextmanager
def _utf8_output() -> Iterator[None]:
    """Write to standard output what a file of --out holds, whatever the system's encoding is.

    A terminal keeps its own, and shows what that lacks by its number.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    encoding, errors = stream.encoding, stream.errors
    own = encoding if stream.isatty() else "utf-8"
    # Half a character, too, is written by its number, which in JSON stands for it.
    stream.reconfigure(encoding=own, errors="backslashreplace", newline="\n")
    try:
        yield
    finally:
        stream.reconfigure(encoding=encoding, errors=errors, newline=None)


Parameters = ParamSpec("Parameters")


def guarded(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Let bad input end in one line and exit code 2, an interruption in exit code 130.

    A reader of the output that goes away, as `head` does when it has enough, ends it without a
    word.
    """

    @wraps(command)
    @_utf8_output()
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        _flags.clear()
        _flags.update(_flags_of(command))
        for name, value in kwargs.items():
            if isinstance(value, Path):
                kwargs[name] = user_path(value)
            elif isinstance(value, list):
                kwargs[name] = [user_path(v) if isinstance(v, Path) else v for v in value]
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt as stop:
            kept = str(stop) or "the model of the last finished epoch, if any, is in --out"
            say(f"interrupted; {in_flags(kept)}")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # At its end Python would flush once more, and complain.
            for stream in filter(None, (sys.stdout, sys.stderr)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            raise typer.Exit(_BROKEN_PIPE) from None
        except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
            say(f"error: {_in_one_line(in_flags(without_number(error)))}")
            raise typer.Exit(2) from None
        except (RuntimeError, MemoryError) as error:
            # PyTorch's messages can go on for pages; the first line says what there is to say.
            lines = str(error).strip().splitlines() or ["out of memory"]
            say(f"error: {_in_one_line(in_flags(lines[0])):.300}")
            raise typer.Exit(2) from None

    return run


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that has each field of its groups of options as an option of its own.

    Args:
        command: takes keywords, a context among them if it wants one; those that are of a dataclass
            are groups, and the fields, in the place of the group, have the form of other parameters
            of a command.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        group: Any = groups.get(parameter.name)
        if group is None:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        kinds = get_type_hints(group, include_extras=True)
        parameters += [
            parameter.replace(name=own.name, default=own.default, annotation=kinds[own.name])
            for own in fields(group)
        ]

    @wraps(command)
    def run(**options: Any) -> None:
        for name, kind in groups.items():
            made: Any = kind
            options[name] = made(**{own.name: options.pop(own.name) for own in fields(made)})
        command(**options)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


# Of the command that runs: its parameters, each with its option.
_flags: dict[str, str] = {}
_STAGES = {
    "pretrain": "pretrain",
    "fine_tune_lm": "fine-tune",
    "fit_classifier": "fit-classifier",
}
_CALL = re.compile(rf"\bcall ({'|'.join(_STAGES)})(?:\([^)]*\))?(?: or load\(dir\))?(?: first)?")


def _flags_of(command: Callable[..., None]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        for option in getattr(hint, "__metadata__", ()):
            # Typer has the first name in the place of a default until it builds the command.
            words = [str(word) for word in (option.default, *(option.param_decls or ()))]
            found.update((name, word) for word in words[:1] if word.startswith("--"))
    if "weight_column" in found:
        # The weights themselves, as a stage takes them.
        found["sample_weight"] = found["weight_column"]
    return found


def in_flags(text: str) -> str:
    """Return what a message says to a caller of Python as it is said in the shell.

    Arguments become the options of the command that runs: where they stand with a sign of equality,
    begin the message, or have a name that is no word; other settings are those of `--set`.

    >>> _flags.update({"text_column": "--text-column", "lr": "--lr"})
    >>> in_flags("pass text_column='body'"), in_flags("lr is 0"), in_flags("there is no lr")
    ("pass --text-column 'body'", '--lr is 0', 'there is no lr')
    >>> _flags.update({"resume": "--resume"})
    >>> in_flags("resume=True goes on with it")
    '--resume goes on with it'
    >>> in_flags("there is no classifier yet; call fit_classifier(texts, labels) first")
    'there is no classifier yet; run ulmfit-fast fit-classifier first'
    """
    text = _CALL.sub(lambda call: f"run ulmfit-fast {_STAGES[call[1]]} first", text)
    flags = dict(_flags)
    if flags.get("settings") == "--set":
        from ulmfit_fast.training.settings import TrainingSettings

        flags = {name: f"--set {name}" for name in TrainingSettings.__dataclass_fields__} | flags
    if not flags:
        return text
    odd = "|".join(name for name in _flags if "_" in name) or "$."
    pattern = re.compile(
        rf"(?<![\w./'\"-])(?:(?P<given>{'|'.join(flags)})=(?:True\b|(?P<value>(?=[\w'\"(\[])))?"
        rf"|(?P<first>(?<!.)(?:{'|'.join(flags)}))(?= (?:is|has|must|should)\b)"
        rf"|(?<!, )(?P<odd>{odd})(?![\w./'\"=-])(?:\[(?P<key>[^]]*)\])?)"
    )

    def flag(found: re.Match[str]) -> str:
        own = flags[found["given"] or found["first"] or found["odd"]]
        between = "=" if own.startswith("--set ") else " "
        if found["key"] is not None:
            return f"{own} {found['key']}"
        return own + between * (found["value"] is not None)

    return pattern.sub(flag, text)


def without_number(error: BaseException) -> str:
    """Return the text of an error; that of the system without its number and Python's brackets."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        reason = error.strerror[:1].lower() + error.strerror[1:]
        return reason if error.filename is None else f"{error.filename}: {reason}"
    return str(error)


def _in_one_line(text: str) -> str:
    """Return an error's text without line ends, nor signs that a terminal acts on."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1]
        for character in " ".join(text.split())
    )


def on_error(skip_bad_rows: bool) -> Literal["raise", "skip_few"]:
    """Return `on_error` of `read_texts`."""
    return "skip_few" if skip_bad_rows else "raise"


def class_weight_of(given: list[str] | None) -> Literal["balanced"] | dict[str, float] | None:
    """Return what `--class-weight` says; labels are strings, as they are written.

    >>> class_weight_of(["bad=2", "good=0.5"]), class_weight_of(['{"1": 3}'])
    ({'bad': 2.0, 'good': 0.5}, {'1': 3})

    Raises:
        ValueError: if it is none of the forms, or names a label twice.
    """
    if not given:
        return None
    if given == ["balanced"]:
        return "balanced"
    pairs: list[tuple[str, float]] = []
    for text in given:
        label, equals, weight = text.rpartition("=")
        try:
            if text.lstrip().startswith("{") and text.rstrip().endswith("}"):
                pairs += json.loads(text, object_pairs_hook=list)
            elif equals and label:
                pairs.append((label, float(weight)))
            else:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"--class-weight is {text!r:.60}, expected balanced alone, LABEL=WEIGHT, or a JSON "
                'object such as {"good": 1, "bad": 2.5}'
            ) from None
    weights = dict(pairs)
    if len(weights) < len(pairs):
        labels = [label for label, _ in pairs]
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"--class-weight has {twice!r:.60} twice; leave one out")
    return weights


def check_out(
    out: Path, read: Sequence[Path | None] = (), *, overwrite: bool, resume: bool | None = None
) -> None:
    """Find out before any work whether a model directory can and may be written here.

    Args:
        out: where to.
        read: what the command reads.
        overwrite: a model or run that is there may be replaced.
        resume: a run that is there is gone on with; None where a command cannot.
    """
    target = out.resolve()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"--out {out} is a file, expected a directory; choose another name")
    try:
        check_target(target)
    except FileExistsError:
        raise FileExistsError(
            f"--out {out} holds something other than a model; choose a new directory"
        ) from None
    paths = check_apart_from(out, read, is_text=True)
    for path in paths:
        if inside(path, out) is not None:
            raise FileExistsError(
                f"--out {out} holds {path}, which is read; choose a directory of its own"
            )
    check_again(out, names_in(out), overwrite=overwrite, resume=resume)
    check_writable(out)


def check_out_file(out: Path, read: Sequence[Path | None], *, overwrite: bool) -> None:
    """Find out before any work whether a file can and may be written here.

    Args:
        out: where to.
        read: what the command reads.
        overwrite: a file that is there may be replaced.
    """
    if out.is_dir():
        raise IsADirectoryError(f"--out {out} is a directory, expected a file; add its name")
    if out.exists() and not out.is_file():
        raise FileExistsError(
            f"--out {out} is no regular file, which a new one could replace; choose another name, "
            "or leave it out for standard output"
        )
    if out.name in owned_names(out.parent) or (out.exists() and is_run_file(out.name)):
        raise FileExistsError(
            f"--out {out} is the name of a file of a model, store or run; choose another name"
        )
    check_apart_from(out, read, is_text=kind_of(out) in READABLE)
    if out.exists() and out.stat().st_size and not overwrite:
        raise FileExistsError(
            f"--out {out} is there already; --overwrite replaces it, or choose another name"
        )
    check_writable(out)


def check_apart_from(out: Path, read: Sequence[Path | None], *, is_text: bool) -> list[Path]:
    """Refuse to write over what is read; return what is read.

    Args:
        out: where to.
        read: what the command reads.
        is_text: whether a reader of texts takes what is written for one.
    """
    paths = [path for path in read if path is not None]
    try:
        check_apart(out, paths, is_text=is_text)
    except FileExistsError as error:
        raise FileExistsError(f"--out {error}") from None
    return paths


def check_again(
    out: Path, there: Sequence[object], *, overwrite: bool, resume: bool | None = None
) -> None:
    """Refuse to begin where something of an earlier command is, unless that is asked for.

    Args:
        out: a directory, if there is anything.
        there: what there is of an earlier command.
        overwrite: it may be replaced.
        resume: it is gone on with; None where a command cannot.
    """
    if overwrite and resume:
        raise ValueError("--resume and --overwrite are both given, expected one of them")
    if out.is_dir():
        # First of all: what another process is at work on is neither to be resumed nor replaced.
        with directory_lock(out.resolve()):
            pass
    if there and not overwrite and not resume:
        mend = "" if resume is None else "--resume goes on with it, "
        raise FileExistsError(
            f"--out {out} holds {there[0]} already; {mend}--overwrite replaces it, or choose "
            "another directory"
        )


def names_in(out: Path) -> list[str]:
    """Return the names in a directory, but for those of a writer at work; none if there is none."""
    if not out.is_dir():
        return []
    return sorted(name for name in os.listdir(out) if not is_leftover(name))


def check_standard_output(mend: str = "") -> None:
    """Find out before any work whether there is a standard output.

    Args:
        mend: the end of the error.
    """
    if sys.stdout is None:
        raise OSError(f"standard output is closed, expected a file or a pipe{mend}")


def check_writable(out: Path) -> None:
    """Find out before any work whether a file or directory can be made here."""
    # Nothing is made yet, not even a directory above: the work may still fail.
    above = next(path for path in out.resolve().parents if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"--out {out} lies below {above}, which is a file; choose another")
    tempfile.TemporaryFile(dir=above).close()
