"""What the commands share: the application, its options, and one line for whatever is wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
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


Parameters = ParamSpec("Parameters")


def guarded(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Let bad input end in one line and exit code 2, an interruption in exit code 130."""

    @wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt as stop:
            kept = str(stop) or "the model of the last finished epoch, if any, is in --out"
            say(f"interrupted; {kept}")
            raise typer.Exit(130) from None
        except (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError) as error:
            say(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(2) from None
        except (RuntimeError, MemoryError) as error:
            # PyTorch's messages can go on for pages; the first line says what there is to say.
            lines = str(error).strip().splitlines() or ["out of memory"]
            say(f"error: {lines[0]}")
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
