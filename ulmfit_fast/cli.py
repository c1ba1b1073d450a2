"""The command line `ulmfit-fast`: the demo, what is here, and all other commands gathered."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
from pathlib import Path
from typing import Annotated

import torch

from ulmfit_fast import (
    cli_ablate,
    cli_convert,
    cli_data,
    cli_predict,
    cli_stages,
    cli_text,
    cli_train,
)
from ulmfit_fast.cli_app import Overwrite, Seed, app, check_again, guarded, names_in, say, typer
from ulmfit_fast.distributed import launched

__all__ = ["app", "main"]

# To import one of these is to add its commands.
_MORE_COMMANDS = (cli_ablate, cli_convert, cli_data, cli_predict, cli_stages, cli_text, cli_train)


@app.command()
@guarded
def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory for the report.")] = Path(
        "demo-out"
    ),
    overwrite: Overwrite = False,
    quick: Annotated[bool, typer.Option("--quick", help="A small run, within a minute.")] = False,
    seed: Seed = 0,
) -> None:
    """Train the whole of ULMFiT on the docstrings of this machine and report what it brings."""
    from ulmfit_fast.demo.experiment import run_demo
    from ulmfit_fast.report import format_table

    there = names_in(out)
    if not {"metrics.json", "report.html"}.issuperset(there):
        raise FileExistsError(
            f"--out {out} holds something other than a demo's report; choose a new directory"
        )
    check_again(out, there, overwrite=overwrite)
    metrics = run_demo(out, quick=quick, seed=seed, say=say)
    typer.echo(format_table(metrics))
    typer.echo(f"{out / 'report.html'} shows the curves; {out / 'metrics.json'} has the numbers.")


@app.command()
@guarded
def info() -> None:
    """Show versions, the device, and which LSTM would run, and why."""
    import ulmfit_fast as uf

    device = "cuda" if torch.cuda.is_available() else "cpu"
    versions = [f"ulmfit-fast {uf.__version__}", *map(_version, ("torch", "triton", "numpy"))]
    typer.echo(", ".join(versions))
    typer.echo(", ".join(map(_version, ("tokenizers", "safetensors", "typer", "rich"))))
    typer.echo(f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    typer.echo(f"device: {device}, {name}, {torch.get_num_threads()} threads")
    for dtype in (torch.float32, torch.bfloat16):
        for name, gate_p in (("weight_p", 0.0), ("gate_p", 0.1)):
            layer = uf.LSTM(400, 1152, weight_p=0.5, gate_p=gate_p, device=device, dtype=dtype)
            x = torch.zeros(1, 1, 400, device=device, dtype=dtype)
            kind = f"LSTM with {name}, {str(dtype).removeprefix('torch.')}"
            typer.echo(f"{kind}: {uf.backend.explain(layer, x)}")


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def main() -> None:
    """Run the command line."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with launched():
        app()
