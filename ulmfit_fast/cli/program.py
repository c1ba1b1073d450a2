"""The command line `ulmfit-fast`: the list of its commands, and the one that says what is here."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform

import torch

from ulmfit_fast.cli.app import check_standard_output, guarded, say, typer
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


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


app = typer.Typer(
    help="ULMFiT on a fast AWD-LSTM: pre-train, fine-tune, classify.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# In the order in which one needs them.
for command in (
    *(demo, train, pretrain, fine_tune, fit_classifier, evaluate, predict),
    *(find_lr, generate, explain, tokenize, convert, ablate, info),
):
    app.command(command.__name__.replace("_", "-"))(guarded(command))


def main() -> None:
    """Run the command line."""
    _open_standard_streams()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with launched() as (rank, _):
        if rank == 0:
            logging.getLogger("ulmfit_fast.progress").setLevel(logging.INFO)
        try:
            app()
        except OSError as error:
            # Of the help, which no command writes.
            say(f"error: {error}")
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
