"""The command line `ulmfit-fast`: the list of its commands, and the one that says what is here."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch

from ulmfit_fast.cli.app import check_standard_output, guarded, in_flags, say, typer, without_number
from ulmfit_fast.cli.check import check
from ulmfit_fast.cli.convert import convert
from ulmfit_fast.cli.evaluate import evaluate
from ulmfit_fast.cli.find_lr import find_lr
from ulmfit_fast.cli.predict import predict
from ulmfit_fast.cli.stages import fine_tune, fit_classifier, pretrain
from ulmfit_fast.cli.studies import ablate, demo
from ulmfit_fast.cli.text import explain, generate
from ulmfit_fast.cli.tokenize import tokenize
from ulmfit_fast.cli.train import train
from ulmfit_fast.system.distributed import launched
from ulmfit_fast.system.version import __version__

__all__ = ["app", "main"]


def info() -> None:
    """Show versions, the device, the C kernels, and which LSTM would run, and why."""
    from ulmfit_fast import backend
    from ulmfit_fast.nn import LSTM

    check_standard_output()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    versions = [f"ulmfit-fast {__version__}", *map(_version, ("torch", "triton", "numpy"))]
    typer.echo(", ".join(versions))
    typer.echo(", ".join(map(_version, ("tokenizers", "safetensors", "typer", "rich"))))
    typer.echo(f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    typer.echo(f"device: {device}, {name}, {torch.get_num_threads()} threads")
    typer.echo(f"C kernels: {backend.native_status()}")
    for dtype in (torch.float32, torch.bfloat16):
        for name, gate_p in (("weight_p", 0.0), ("gate_p", 0.1)):
            layer = LSTM(400, 1152, weight_p=0.5, gate_p=gate_p, device=device, dtype=dtype)
            x = torch.zeros(1, 1, 400, device=device, dtype=dtype)
            kind = f"LSTM with {name}, {str(dtype).removeprefix('torch.')}"
            typer.echo(f"{kind}: {backend.explain(layer, x)}")
    if device == "cpu":
        typer.echo(
            f"--precision bfloat16 trains {_gain_of_bfloat16():.1f} times as fast as float32 here, "
            "as one layer of 400 to 1152 in a batch of 16 has it; --dry-run measures a whole step"
        )


def _gain_of_bfloat16() -> float:
    """Measure the training of a layer in both precisions, in a second or two."""
    from ulmfit_fast.nn import LSTM
    from ulmfit_fast.training.precision import Precision, autocast

    layer = LSTM(400, 1152, weight_p=0.5, device="cpu", dtype=torch.float32)
    x = torch.randn(70, 16, 400, dtype=torch.float32, device="cpu")
    best = {}
    for name in ("float32", "bfloat16"):
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            with autocast(x.device, Precision.of(name, "cpu").dtype):
                output, _ = layer(x)
            output.sum().backward()
            times.append(time.perf_counter() - begun)
        # The first one warms up.
        best[name] = min(times[1:])
    return best["float32"] / best["bfloat16"]


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


class _Log(logging.StreamHandler[Any]):
    """Writes messages to standard error in the words of the shell, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        # What reads a file twice finds the same in it.
        if text not in self._said:
            self._said.add(text)
            # Where a progress bar is shown, it stands in for the stream, and keeps its line.
            self.stream = sys.stderr
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return in_flags(super().format(record))


# In the order in which one needs them; a blank line between two lines is what keeps them apart.
_WORKFLOW = (
    "From a table to answers:",
    "ulmfit-fast check tickets.csv",
    "ulmfit-fast train tickets.csv --out model",
    "ulmfit-fast evaluate --model model --text test.csv",
    "ulmfit-fast predict --model model --text new.csv --out answers.csv",
)
# The commands in groups, each with an example.
_GROUPS: dict[str, list[tuple[Callable[..., None], str]]] = {
    "Start": [
        (train, "train tickets.csv --out model"),
        (demo, "demo --out demo-out"),
        (info, "info"),
    ],
    "Stages": [
        (pretrain, "pretrain --text general.txt --out general --preset paper"),
        (fine_tune, "fine-tune --model general --text texts.csv --out tuned"),
        (fit_classifier, "fit-classifier --model tuned --text labelled.csv --out model"),
        (find_lr, "find-lr --model general --text texts.csv --out lr.png"),
    ],
    "Use": [
        (evaluate, "evaluate --model model --text test.csv"),
        (predict, "predict --model model --text new.csv --keep all --out answers.csv"),
        (explain, "explain --model model --text new.csv --out why.html"),
        (generate, 'generate --model tuned --prompt "The film"'),
    ],
    "Data": [
        (check, "check labelled.csv --label-column label"),
        (tokenize, "tokenize --text general.txt --out general-ids"),
        (convert, "convert --weights lstm_fwd.pth --vocab itos_wt103.pkl --out general"),
    ],
    "Study": [
        (ablate, "ablate --task swap --out ablation-out"),
    ],
}

app = typer.Typer(
    help="ULMFiT on a fast AWD-LSTM: pre-train, fine-tune, classify.",
    epilog="\n\n".join(_WORKFLOW),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        check_standard_output()
        typer.echo(f"ulmfit-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None: ...


for group, commands in _GROUPS.items():
    for command, example in commands:
        app.command(
            command.__name__.replace("_", "-"),
            rich_help_panel=group,
            epilog=f"Example: ulmfit-fast {example}",
        )(guarded(command))


def main() -> None:
    """Run the command line."""
    _open_standard_streams()
    logging.basicConfig(format="%(message)s", handlers=[_Log()], level=logging.WARNING)
    logging.getLogger("ulmfit_fast.vocabulary").setLevel(logging.INFO)
    with launched() as (rank, _):
        if rank == 0:
            logging.getLogger("ulmfit_fast.progress").setLevel(logging.INFO)
        try:
            app()
        except OSError as error:
            # Of the help, which no command writes.
            say(f"error: {without_number(error)}")
            raise SystemExit(2) from None


def _open_standard_streams() -> None:
    """Take the numbers of closed streams, before a file gets them that others then write into.

    What PyTorch's C++ has to warn of goes to number 2, whatever that is.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
