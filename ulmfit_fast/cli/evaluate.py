"""The command `ulmfit-fast evaluate`: how good a classifier is on labelled texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ulmfit_fast.cli.app import (
    BatchSize,
    Device,
    LabelColumn,
    Model,
    Overwrite,
    Precision,
    SkipBadRows,
    TableOptions,
    TextFiles,
    check_out_file,
    check_standard_output,
    computing_in,
    flat,
    on_error,
    say,
    typer,
)

if TYPE_CHECKING:
    from ulmfit_fast.ulmfit.ensemble import Ensemble
    from ulmfit_fast.ulmfit.estimator import ULMFiT

__all__ = ["evaluate"]


@flat
def evaluate(
    *,
    model: Model,
    text: TextFiles,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write all numbers as JSON, and no table.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="File; standard output, in UTF-8, if not given.")
    ] = None,
    overwrite: Overwrite = False,
    batch_size: BatchSize = 64,
    precision: Precision = None,
    table: TableOptions,
    label_column: LabelColumn = "label",
    skip_bad_rows: SkipBadRows = False,
    device: Device = None,
) -> None:
    """Say how good a classifier is on labelled texts, beside a bag of words."""
    from ulmfit_fast.system.files import write_text
    from ulmfit_fast.ulmfit.estimator import ULMFiT

    if out is None:
        check_standard_output("; pass --out")
    else:
        check_out_file(out, [model, *text], overwrite=overwrite)
    learner = _load(model, device)
    single = learner if isinstance(learner, ULMFiT) else learner.models[0]
    with computing_in(precision, single.device):
        found = learner.evaluate(
            text,
            label_column=label_column,
            on_error=on_error(skip_bad_rows),
            batch_size=batch_size,
            **table.arguments(),
        )
    shown = json.dumps(found.to_dict(), indent=1, ensure_ascii=False) if as_json else str(found)
    if out is None:
        typer.echo(shown)
        return
    write_text(out, f"{shown}\n")
    say(f"the numbers are in {out}. {found.verdict}".rstrip())


def _load(directory: Path, device: str | None) -> ULMFiT | Ensemble:
    from ulmfit_fast.system.directories import owned_names
    from ulmfit_fast.ulmfit.ensemble import Ensemble
    from ulmfit_fast.ulmfit.estimator import ULMFiT

    if "model_0" in owned_names(directory):
        return Ensemble.load(directory, device=device)
    return ULMFiT.load(directory, device=device)
