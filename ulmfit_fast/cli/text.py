"""Commands that show what a model does with text: `ulmfit-fast generate | explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ulmfit_fast.cli.app import (
    BatchSize,
    Device,
    Model,
    Overwrite,
    Precision,
    TableOptions,
    TextFiles,
    check_out_file,
    check_standard_output,
    computing_in,
    flat,
    say,
    typer,
)

__all__ = ["explain", "generate"]


def generate(
    model: Model,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to go on from.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Most new tokens.")] = 50,
    min_tokens: Annotated[int, typer.Option("--min-tokens", help="Fewest new tokens.")] = 0,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Below 1 likelier words; 0 the likeliest.")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Draw among the k likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw among the likeliest of this share.")
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Number of texts.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Fixes the draws.")] = 0,
    precision: Precision = None,
    device: Device = None,
) -> None:
    """Write texts with a language model, one a line."""
    from ulmfit_fast.ulmfit.estimator import ULMFiT

    check_standard_output()
    if count < 1:
        raise ValueError(f"--count is {count}, expected at least 1")
    learner = ULMFiT.load(model, device=device)
    for number in range(count):
        with computing_in(precision, learner.device):
            text = learner.generate(
                prompt,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed + number,
            )
        typer.echo(text)


@flat
def explain(
    *,
    model: Model,
    text: TextFiles,
    out: Annotated[Path, typer.Option("--out", help="HTML page that is written.")],
    overwrite: Overwrite = False,
    label: Annotated[
        str | None,
        typer.Option("--label", help="Class to explain; the predicted one if not given."),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="gradient_x_input or intrinsic_attention.")
    ] = "gradient_x_input",
    limit: Annotated[int, typer.Option("--limit", help="Most texts on the page.")] = 100,
    batch_size: BatchSize = 16,
    table: TableOptions,
    device: Device = None,
) -> None:
    """Write a page that colours each word by what it adds to the classifier's answer."""
    from itertools import islice

    from ulmfit_fast.data.reading.corpus import read_texts
    from ulmfit_fast.report import write_explanations
    from ulmfit_fast.ulmfit.estimator import ULMFiT

    check_out_file(out, [model, *text], overwrite=overwrite)
    if limit < 1:
        raise ValueError(f"--limit is {limit}, expected at least 1")
    learner = ULMFiT.load(model, device=device)
    # With one text more, to know whether some are left out.
    texts = list(islice(read_texts(text, **table.arguments()), limit + 1))
    # A label may be a number, which the command line gives as a string.
    classes = {str(known): known for known in learner.labels}
    wanted = None if label is None else classes.get(label, label)
    found = learner.explain(
        texts[:limit],
        wanted,
        method=method,  # type: ignore[arg-type]
        batch_size=batch_size,
    )
    write_explanations(found, out)
    rest = ", more are left out by --limit" if len(texts) > limit else ""
    say(f"{out} shows {len(found)} texts{rest}")
