"""The pages: what was measured and explained, put into the templates beside this file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ulmfit_fast.report.charts import (
    accuracy_chart,
    confusion_chart,
    loss_charts,
    rate_charts,
    reliability_chart,
    stage_charts,
)
from ulmfit_fast.report.explanations import Explanation
from ulmfit_fast.report.numbers import (
    FEWEST_TEXTS,
    Example,
    Json,
    Metrics,
    Perplexity,
    RunRecord,
    Score,
    StageRecord,
    format_score,
    label_counts,
    scores,
    stage_title,
)
from ulmfit_fast.system.files import file_in_place

__all__ = ["write_explanations", "write_report", "write_run_report"]

_GAP = format_score(None)
# As an `Evaluation` writes them, which is above this floor.
_BAG_OF_WORDS = "bag of words"
_SCORES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}
_EPOCH: Sequence[
    tuple[Literal["loss", "valid_loss", "accuracy", "macro_f1", "seconds"], str, int]
] = (
    ("loss", "training loss", 3),
    ("valid_loss", "validation loss", 3),
    ("accuracy", "accuracy", 3),
    ("macro_f1", "macro F1", 3),
    ("seconds", "seconds", 1),
)
# More classes than this are a chart, and their confusions a list.
_MOST_COLUMNS = 10
_MOST_CONFUSED = 10
_MOST_ERRORS = 12
_WIDEST = 41


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
        ModuleNotFoundError: jinja2 is not installed.
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
    _write_page(
        "demo.html.jinja",
        path,
        metrics=metrics,
        headline=_demo_headline(table, most, winner),
        table=table,
        counts=counts,
        best=best,
        winner=winner,
        accuracy_head=["method", *(f"{count:,} labels" for count in counts)],
        seeds=len({entry["seed"] for entry in metrics["accuracy"]}),
        perplexity=_perplexity_rows(metrics["perplexity"]),
        cost=_cost_rows(metrics["seconds"], metrics["tokens_per_second"]),
        accuracy_chart=accuracy_chart(table),
        loss_charts=loss_charts(
            {stage: points for stage, points in metrics["lm_curves"].items() if points}
        ),
        rate_charts=rate_charts(
            {stage: trace for stage, trace in metrics["lr_traces"].items() if trace["steps"]}
        ),
    )


def write_run_report(record: RunRecord, path: str | os.PathLike[str]) -> None:
    """Write the report of one run: what its classifier can do, and what it gets wrong.

    >>> write_run_report({"version": "0.1.0", "data": {}, "machine": {}}, "report.html")
    Traceback (most recent call last):
    ValueError: the record lacks command, created, evaluation, examples, settings, stages, \
verdict; expected all keys of report.RunRecord

    Args:
        record: of the run. Where nothing was held out, or no error is explained, the page says so.
        path: the file to write; it is replaced as a whole or not at all.

    Raises:
        ValueError: the record lacks a key.
        ModuleNotFoundError: jinja2 is not installed.
        OSError: the file cannot be written.
    """
    missing = sorted(RunRecord.__required_keys__ - record.keys())
    if missing:
        raise ValueError(
            f"the record lacks {', '.join(missing)}; expected all keys of report.RunRecord"
        )
    evaluation = record["evaluation"]
    _write_page(
        "run.html.jinja",
        path,
        record=record,
        headline=_run_headline(evaluation),
        curves=stage_charts(record["stages"]),
        epochs=_epoch_rows(record["stages"]),
        cost=_stage_rows(record["stages"]),
        **({} if evaluation is None else _evaluation_values(evaluation, record["examples"])),
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
    _write_page("explanations.html.jinja", path, explanations=explanations)


def _write_page(template: str, path: str | os.PathLike[str], **values: Any) -> None:
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
        "short": _short,
        "breakable": _breakable,
    }
    try:
        page = environment.get_template(template).render(values)
    except UndefinedError as error:
        # As everywhere else where an entry of the caller's is not there.
        raise KeyError(error.message) from error
    with file_in_place(path) as file:
        # Half a character, as texts from elsewhere have it, is none in UTF-8.
        file.write_text(page, encoding="utf-8", errors="replace")


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
    """Return one row a stage, which the two may call by different names."""
    times = {stage_title(stage): f"{value:,.1f}" for stage, value in seconds.items()}
    rates = {stage_title(stage): f"{value:,.0f}" for stage, value in speeds.items()}
    return [[s, times.get(s, _GAP), rates.get(s, _GAP)] for s in dict.fromkeys([*times, *rates])]


def _demo_headline(table: dict[str, dict[int, Score]], most: int, winner: str) -> str:
    yardstick = next((m for m, row in table.items() if "TF-IDF" in m and most in row), None)
    start = f"{_percent(format_score(table[winner][most]))} right with {most:,} labels"
    if yardstick is None:
        return start
    if yardstick == winner:
        return f"{start}, by {winner}: no stage gains on it"
    gain = table[winner][most]["mean"] - table[yardstick][most]["mean"]
    return f"{start}, {_points(gain)} TF-IDF"


def _run_headline(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "A classifier that was not measured"
    other = _main_baseline(evaluation)
    accuracy = evaluation["scores"]["accuracy"]["value"]
    start = f"Accuracy {_percent(f'{100 * accuracy:.1f}')}"
    if other is None:
        return start
    gain = other["gains"]["accuracy"]
    unsure = ", within the interval" if gain["low"] <= 0 <= gain["high"] else ""
    if evaluation["rows"] < FEWEST_TEXTS:
        unsure = ", on too few texts to tell"
    name = "bag of words (TF-IDF)" if other["name"] == _BAG_OF_WORDS else other["name"]
    return f"{start}, {_points(100 * gain['value'])} the {name}{unsure}"


def _points(gain: float) -> str:
    size = f"{abs(gain):.1f}"
    if size == "0.0":
        return "the same as"
    return f"{size} point{'' if size == '1.0' else 's'} {'above' if gain > 0 else 'below'}"


def _main_baseline(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """Return the baseline that the verdict is about."""
    found = {own["name"]: own for own in evaluation["baselines"]}
    compared: dict[str, Any] | None = found.get(_BAG_OF_WORDS, next(iter(found.values()), None))
    return compared


def _evaluation_values(evaluation: dict[str, Any], examples: Sequence[Example]) -> dict[str, Any]:
    names = [str(label) for label in evaluation["labels"]]
    counts, many = evaluation["confusion"], len(names) > _MOST_COLUMNS
    baselines, other = evaluation["baselines"], _main_baseline(evaluation)
    own_classes = evaluation["classes"]
    known = [own for own in own_classes if own["support"]]
    gains = [] if other is None else [other["gains"][name] for name in ("accuracy", "macro_f1")]
    return {
        "names": names,
        # Beaten in one of them, or better in none, or not to be told.
        "doubtful": bool(gains)
        and (
            evaluation["rows"] < FEWEST_TEXTS
            or min(gain["high"] for gain in gains) < 0
            or max(gain["low"] for gain in gains) <= 0
        ),
        "others": [own["name"] for own in baselines],
        "scores": [
            [title, *(own["scores"][name] for own in (evaluation, *baselines))]
            for name, title in _SCORES.items()
        ],
        "weakest": min(known, key=lambda own: own["recall"], default=None),
        "class_head": ["class", "texts", "predicted", "precision", "recall", "F1"],
        "classes": [
            [
                _breakable(f"{number}. {own['label']}" if many else own["label"]),
                *_class_cells(own),
            ]
            for number, own in enumerate(own_classes, 1)
        ],
        "confusion_chart": confusion_chart(counts, names) if many else "",
        "confused": _confused_rows(counts, names) if len(names) > 2 else [],
        "reliability_chart": reliability_chart(evaluation["bins"]),
        "bins": _bin_rows(evaluation["bins"]),
        "errors": examples or [_as_example(own) for own in evaluation["mistakes"][:_MOST_ERRORS]],
    }


def _class_cells(own: dict[str, Any]) -> list[str]:
    shares = (own[name] for name in ("precision", "recall", "f1"))
    return [
        f"{own['support']:,}",
        f"{own['answered']:,}",
        *(_GAP if share is None else f"{share:.3f}" for share in shares),
    ]


def _confused_rows(counts: Sequence[Sequence[int]], names: Sequence[str]) -> list[list[str]]:
    cells = [
        (count, row, column)
        for row, own in enumerate(counts)
        for column, count in enumerate(own)
        if count and row != column
    ]
    worst = sorted(cells, key=lambda cell: (-cell[0], *cell[1:]))[:_MOST_CONFUSED]
    return [
        [names[row], names[column], f"{n:,}", _percent(f"{100 * n / sum(counts[row]):.1f}")]
        for n, row, column in worst
    ]


def _bin_rows(bins: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for number, own in enumerate(bins):
        ends = f"{number / len(bins):.1f} to {(number + 1) / len(bins):.1f}"
        shares = (f"{own[name]:.3f}" for name in ("probability", "right"))
        if own["count"]:
            rows.append([ends, f"{own['count']:,}", *shares])
    return rows


def _as_example(mistake: dict[str, Any]) -> Example:
    return Example(
        text=mistake["text"],
        label=str(mistake["label"]),
        prediction=str(mistake["predicted"]),
        probability=mistake["probability"],
    )


def _epoch_rows(stages: Sequence[StageRecord]) -> dict[str, list[list[str]]]:
    """Return one row an epoch, the head first, by the title of the stage."""
    tables = {}
    for stage in stages:
        columns = {
            title: [
                None if own[name] is None else f"{own[name]:,.{digits}f}" for own in stage["epochs"]
            ]
            for name, title, digits in _EPOCH
        }
        measured = {title: cells for title, cells in columns.items() if any(cells)}
        rows = [
            [str(n), *(cell or _GAP for cell in cells)]
            for n, cells in enumerate(zip(*measured.values(), strict=True), 1)
        ]
        if rows:
            tables[stage_title(stage["name"])] = [["epoch", *measured], *rows]
    return tables


def _stage_rows(stages: Sequence[StageRecord]) -> list[list[str]]:
    rows = [(s["name"], len(s["epochs"]), s["steps"], s["seconds"]) for s in stages]
    if len(rows) > 1:
        _, epochs, steps, seconds = zip(*rows, strict=True)
        rows.append(("total", sum(epochs), sum(steps), sum(seconds)))
    return [[stage_title(name), f"{e:,}", f"{n:,}", f"{s:,.1f}"] for name, e, n, s in rows]


def _flat(values: dict[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _json(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(label: object) -> str:
    # Names of classes differ at their end as often as at their start.
    text, half = str(label), (_WIDEST - 1) // 2
    return text if len(text) <= _WIDEST else f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"


def _breakable(label: object) -> object:
    """Return a name that a narrow cell breaks at its signs before it breaks a word."""
    from markupsafe import Markup, escape

    signs = re.split(r"([_\-./])", str(label))
    pieces = zip(signs[::2], [*signs[1::2], ""], strict=True)
    return Markup("<wbr/>").join(escape(word + sign) for word, sign in pieces)


def _percent(number: str) -> str:
    return f"{number} %".replace(" ", "\N{NO-BREAK SPACE}")
