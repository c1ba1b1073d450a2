"""The pages: what was measured and explained, put into the template `page.html.jinja`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ulmfit_fast.report.charts import COLORS, accuracy_chart, learning_rate_chart, loss_chart
from ulmfit_fast.report.explanations import Explanation
from ulmfit_fast.report.numbers import (
    Json,
    Metrics,
    Perplexity,
    format_score,
    label_counts,
    scores,
)
from ulmfit_fast.system.files import file_in_place

__all__ = ["write_explanations", "write_report"]

_GAP = format_score(None)


def write_report(metrics: Metrics, path: str | os.PathLike[str]) -> None:
    """Write ``report.html``: tables, charts and examples in one file that loads nothing else.

    >>> write_report({"version": "0.1.0"}, "report.html")
    Traceback (most recent call last):
    ValueError: metrics lack accuracy, confusion, corpora, examples, lm_curves, lr_traces, \
machine, perplexity, quick, seconds, seed, settings, tokens_per_second; pass what metrics.json of \
a finished run holds

    Args:
        metrics: what the run measured.
        path: the file to write; it is replaced as a whole or not at all.

    Raises:
        ValueError: metrics lack a key or hold no accuracy.
        ModuleNotFoundError: matplotlib or jinja2 is not installed.
    """
    missing = sorted(Metrics.__required_keys__ - metrics.keys())
    if missing:
        raise ValueError(
            f"metrics lack {', '.join(missing)}; pass what metrics.json of a finished run holds"
        )
    if not metrics["accuracy"]:
        raise ValueError(
            "metrics['accuracy'] is empty; expected at least one method: run the demo to its end"
        )
    table = scores(metrics["accuracy"])
    counts = label_counts(table)
    best = {c: max(row[c]["mean"] for row in table.values() if c in row) for c in counts}
    most = counts[-1]
    winner = next(m for m, row in table.items() if most in row and row[most]["mean"] == best[most])
    curves = {stage: points for stage, points in metrics["lm_curves"].items() if points}
    traces = {stage: trace for stage, trace in metrics["lr_traces"].items() if trace["steps"]}
    labels, confusion = metrics["confusion"]["labels"], metrics["confusion"]["counts"]
    _write_page(
        path,
        metrics=metrics,
        table=table,
        counts=counts,
        best=best,
        winner=winner,
        accuracy_head=["method", *(f"{count:,} labels" for count in counts)],
        seeds=len({entry["seed"] for entry in metrics["accuracy"]}),
        confusion=list(zip(labels, confusion, strict=True)) if labels else [],
        confusion_head=["", *(f"called {label}" for label in labels)],
        coloured_examples=any("words" in example for example in metrics["examples"]),
        perplexity=_perplexity_rows(metrics["perplexity"]),
        cost=_cost_rows(metrics["seconds"], metrics["tokens_per_second"]),
        accuracy_chart=accuracy_chart(table),
        loss_chart=loss_chart(curves) if curves else "",
        learning_rate_chart=learning_rate_chart(traces) if traces else "",
    )


def write_explanations(explanations: Sequence[Explanation], path: str | os.PathLike[str]) -> None:
    """Write a page that shows each text with its words coloured by their scores.

    >>> write_explanations([], "page.html")
    Traceback (most recent call last):
    ValueError: there are no explanations; pass at least one

    Args:
        explanations: what `serving.saliency.explain` found.
        path: the file to write; it is replaced as a whole or not at all.

    Raises:
        ValueError: there is nothing to show.
        ModuleNotFoundError: jinja2 is not installed.
        OSError: the file cannot be written.
    """
    if not explanations:
        raise ValueError("there are no explanations; pass at least one")
    _write_page(path, explanations=explanations)


def _write_page(path: str | os.PathLike[str], **values: Any) -> None:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "jinja2 is not installed; pip install 'ulmfit-fast[demo]'", name=error.name
        ) from error
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "flat": _flat,
        "json": _json,
        "percent": _percent,
        "score": format_score,
    }
    try:
        page = environment.get_template("page.html.jinja").render(colors=COLORS, **values)
    except UndefinedError as error:
        # As everywhere else where an entry of the caller's is not there.
        raise KeyError(error.message) from error
    with file_in_place(path) as file:
        file.write_text(page, encoding="utf-8")


def _perplexity_rows(entries: Sequence[Perplexity]) -> list[list[str]]:
    """Return one row a corpus, the head first; two moments are compared."""
    if not entries:
        return []
    moments = list(dict.fromkeys(entry["when"] for entry in entries))
    rows = [["corpus", *moments, *(["change"] if len(moments) == 2 else [])]]
    for corpus in dict.fromkeys(entry["corpus"] for entry in entries):
        found = {e["when"]: e["perplexity"] for e in entries if e["corpus"] == corpus}
        row = [corpus, *(f"{found[m]:,.1f}" if m in found else _GAP for m in moments)]
        if len(moments) == 2:
            change = found[moments[1]] / found[moments[0]] - 1 if len(found) == 2 else None
            row.append(_GAP if change is None else _percent(f"{100 * change:+.0f}"))
        rows.append(row)
    return rows


def _cost_rows(seconds: dict[str, float], speeds: dict[str, float]) -> list[list[str]]:
    return [
        [
            stage,
            f"{seconds[stage]:,.1f}" if stage in seconds else _GAP,
            f"{speeds[stage]:,.0f}" if stage in speeds else _GAP,
        ]
        for stage in dict.fromkeys([*seconds, *speeds])
    ]


def _flat(values: dict[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _json(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _percent(number: str) -> str:
    return f"{number} %".replace(" ", "\N{NO-BREAK SPACE}")
