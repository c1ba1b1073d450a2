"""What the commands share: the application, its options, and one line for whatever is wrong."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal, ParamSpec

try:
    import typer
    import typer.core
except ModuleNotFoundError as error:
    raise SystemExit(
        "error: the command line needs more packages: pip install 'ulmfit-fast[text]'"
    ) from error

from ulmfit_fast.directories import is_run_file

__all__ = [
    "BatchSize",
    "Device",
    "Model",
    "Out",
    "Seed",
    "SkipBadRows",
    "TextColumn",
    "TextFiles",
    "app",
    "check_out",
    "check_writable",
    "guarded",
    "on_error",
    "say",
    "typer",
]

_ORDER = (
    *("demo", "pretrain", "fine-tune", "fit-classifier", "predict"),
    *("find-lr", "generate", "explain", "tokenize", "convert", "ablate", "info"),
)


class _InOrder(typer.core.TyperGroup):
    """Show the commands in the order in which one needs them."""

    def list_commands(self, ctx: object) -> list[str]:
        return sorted(self.commands, key=_ORDER.index)


app = typer.Typer(
    cls=_InOrder,
    help="ULMFiT on a fast AWD-LSTM: pre-train, fine-tune, classify.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TextFiles = Annotated[
    list[Path],
    typer.Option(
        "--text",
        help=".txt (one text a line), .csv, .jsonl, .parquet, or a folder of them; repeatable.",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Directory of the model that is written.")]
Model = Annotated[Path, typer.Option("--model", help="Directory of a saved model.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Rows of a batch.")]
Seed = Annotated[int, typer.Option("--seed", help="Fixes weights, masks and order.")]
TextColumn = Annotated[str, typer.Option("--text-column", help="Column of .csv and .jsonl files.")]
SkipBadRows = Annotated[
    bool,
    typer.Option("--skip-bad-rows", help="Leave out rows that cannot be read; tell in the end."),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda; found when not given.")]


def say(line: str) -> None:
    """Write one line to standard error."""
    typer.echo(line, err=True)


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
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt as stop:
            kept = str(stop) or "the model of the last finished epoch, if any, is in --out"
            say(f"interrupted; {kept}")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # At its end Python would flush once more, and complain.
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            raise typer.Exit(_BROKEN_PIPE) from None
        except (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError) as error:
            say(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(2) from None
        except (RuntimeError, MemoryError) as error:
            # PyTorch's messages can go on for pages; the first line says what there is to say.
            lines = str(error).strip().splitlines() or ["out of memory"]
            say(f"error: {lines[0]:.300}")
            raise typer.Exit(2) from None

    return run


def on_error(skip_bad_rows: bool) -> Literal["raise", "skip"]:
    """Return what `read_texts` is told."""
    return "skip" if skip_bad_rows else "raise"


def check_out(out: Path) -> None:
    """Find out before any work whether a model directory can be written here."""
    target = out.resolve()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"--out {out} is a file, expected a directory; choose another name")
    names = [path.name for path in target.iterdir()] if target.is_dir() else []
    if "config.json" not in names and not all(map(is_run_file, names)):
        raise FileExistsError(
            f"--out {out} holds something other than a model; choose a new directory"
        )
    if Path.cwd().is_relative_to(target):
        raise FileExistsError(
            f"--out {out} is the working directory, which cannot be replaced; choose another one"
        )
    check_writable(out)


def check_writable(out: Path) -> None:
    """Find out before any work whether a file or directory can be made here."""
    # Nothing is made yet, not even a directory above: the work may still fail.
    above = next(path for path in out.resolve().parents if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"--out {out} lies below {above}, which is a file; choose another")
    tempfile.TemporaryFile(dir=above).close()
