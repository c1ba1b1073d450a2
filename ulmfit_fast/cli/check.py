"""The command `ulmfit-fast check`: what a table holds, before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ulmfit_fast.cli.app import (
    TableOptions,
    check_standard_output,
    flat,
    in_flags,
    say,
    typer,
)

__all__ = ["check"]


@flat
def check(
    *,
    file: Annotated[Path, typer.Argument(help="A file of texts, and of labels if it has any.")],
    table: TableOptions,
    label_column: Annotated[
        str | None,
        typer.Option("--label-column", help="Column of the labels; label, where there is one."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Saved model or token store; say what it does not know."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Look through a table of texts and labels before a model is trained on it."""
    from ulmfit_fast.cli.tokenize import tokenizer_of
    from ulmfit_fast.data.reading.table_check import check_table

    check_standard_output()
    tokenizer = None if model is None else tokenizer_of(model)
    found = check_table(file, label_column=label_column, tokenizer=tokenizer, **table.arguments())
    typer.echo(found.to_json() if as_json else in_flags("\n".join(found.lines())))
    for fault in found.faults:
        say(f"error: {in_flags(fault)}")
    if found.faults:
        raise typer.Exit(2)
