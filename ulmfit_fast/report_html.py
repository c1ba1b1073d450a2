"""The page of the report: sections, tables and their style; charts come from `report_charts`."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence

from .report import Json, Metrics, Score, format_score, label_counts, scores
from .report_charts import accuracy_chart, learning_rate_chart, loss_chart
from .report_template import FOOTER, OPENING, PAGE, QUICK, STYLE
from .report_words import coloured_words

_GAP = format_score(None)
_STAGES = {"pretrain": "Stage 1: pre-training", "fine_tune": "Stage 2: fine-tuning on the target"}


def render_page(metrics: Metrics) -> str:
    """Compose the page.

    >>> render_page({})
    Traceback (most recent call last):
    KeyError: 'accuracy'

    Args:
        metrics: what the run measured, complete; `ulmfit_fast.report.write_report` checks it.

    Returns:
        An HTML document that refers to nothing outside itself.
    """
    table = scores(metrics["accuracy"])
    sections = [
        _opening(metrics, table),
        _headline(metrics, table),
        _confusion(metrics),
        _examples(metrics),
        _language_model(metrics),
        _rates(metrics),
        _cost(metrics),
        _settings(metrics),
    ]
    return PAGE.format(
        style=STYLE,
        sections="\n".join(section for section in sections if section),
        title="ULMFiT on this machine",
        footer=FOOTER.format(version=_text(metrics["version"]), seed=_text(metrics["seed"])),
    )


def _opening(metrics: Metrics, table: dict[str, dict[int, Score]]) -> str:
    most = label_counts(table)[-1]
    method, score = max(
        ((method, row[most]) for method, row in table.items() if most in row),
        key=lambda pair: pair[1]["mean"],
    )
    return OPENING.format(
        labels=f"{most:,}",
        method=_text(method),
        score=_percent(format_score(score)),
        banner=QUICK if metrics["quick"] else "",
    )


def _headline(metrics: Metrics, table: dict[str, dict[int, Score]]) -> str:
    counts = label_counts(table)
    best = {c: max(row[c]["mean"] for row in table.values() if c in row) for c in counts}
    body = []
    for method, row in table.items():
        cells = [
            _cell(
                format_score(row.get(c)), "best" if c in row and row[c]["mean"] == best[c] else ""
            )
            for c in counts
        ]
        body.append(_row(method, *cells))
    seeds = len({entry["seed"] for entry in metrics["accuracy"]})
    caption = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    caption = f"Held-out accuracy in percent, {caption}; the best of a column in bold."
    alt = "Accuracy against labels. " + "; ".join(
        f"{method}: " + ", ".join(f"{format_score(row[c])} % at {c:,}" for c in row)
        for method, row in table.items()
    )
    return (
        "<h2>Accuracy by method and number of labels</h2>\n"
        + _table(["method", *(f"{c:,} labels" for c in counts)], body, caption)
        + _figure(accuracy_chart(table), alt, "Error bars: one standard deviation over the seeds.")
    )


def _confusion(metrics: Metrics) -> str:
    labels, counts = metrics["confusion"]["labels"], metrics["confusion"]["counts"]
    if not labels:
        return ""
    body = []
    for label, row in zip(labels, counts, strict=True):
        total = sum(row) or 1
        cells = "".join(
            f'<td style="background: rgb(var(--accent) / {0.55 * n / total:.3f})">{n:,}<br/>'
            f'<span class="note">{_percent(f"{100 * n / total:.1f}")}</span></td>'
            for n in row
        )
        body.append(_row(f"is {label}", cells))
    head = ["", *(f"called {label}" for label in labels)]
    caption = (
        "Rows: what the sentence is. Columns: what the classifier calls it. Percent of the row."
    )
    return "<h2>Confusion matrix</h2>\n" + _table(head, body, caption, kind="confusion")


def _examples(metrics: Metrics) -> str:
    if not metrics["examples"]:
        return ""
    body = []
    for example in metrics["examples"]:
        right = example["label"] == example["prediction"]
        verdict = example["prediction"] if right else f"✗ {example['prediction']}"
        words = example.get("words")
        body.append(
            _row_of(
                coloured_words(words) if words else _text(example["text"]),
                _cell(example["label"], "text"),
                _cell(verdict, "text" if right else "text wrong"),
                _cell(f"{example['probability']:.2f}"),
            )
        )
    head = ["held-out sentence", "is", "called", "probability"]
    caption = "A cross marks a wrong answer."
    if any("words" in example for example in metrics["examples"]):
        caption += " Filled words speak for what the sentence is called, underlined ones against."
    return "<h2>A few sentences</h2>\n" + _table(head, body, caption, kind="prose")


def _language_model(metrics: Metrics) -> str:
    parts = ["<h2>The language model</h2>\n"]
    entries = metrics["perplexity"]
    moments = list(dict.fromkeys(entry["when"] for entry in entries))
    body = []
    for corpus in dict.fromkeys(entry["corpus"] for entry in entries):
        found = {e["when"]: e["perplexity"] for e in entries if e["corpus"] == corpus}
        cells = [_cell(f"{found[m]:,.1f}" if m in found else _GAP) for m in moments]
        if len(moments) == 2:
            change = found[moments[1]] / found[moments[0]] - 1 if len(found) == 2 else None
            cells.append(_cell(_GAP if change is None else _percent(f"{100 * change:+.0f}")))
        body.append(_row(corpus, *cells))
    if body:
        head = ["corpus", *moments, *(["change"] if len(moments) == 2 else [])]
        caption = (
            "Perplexity on held-out text, before and after fine-tuning on the target; "
            "a rise on the general corpus is what the model forgot."
        )
        parts.append(_table(head, body, caption))
    sizes = [
        _row(name, _cell(f"{size['documents']:,}"), _cell(f"{size['tokens']:,}"))
        for name, size in metrics["corpora"].items()
    ]
    if sizes:
        parts.append(
            _table(["corpus", "documents", "tokens"], sizes, "What the language model read.")
        )
    curves = {stage: points for stage, points in metrics["lm_curves"].items() if points}
    if curves:
        alt = "Training loss. " + "; ".join(
            f"{_STAGES.get(stage, stage)}: from {points[0]['loss']:.2f} "
            f"to {points[-1]['loss']:.2f} in {points[-1]['step']:,} steps"
            for stage, points in curves.items()
        )
        parts.append(
            _figure(loss_chart(curves, _STAGES), alt, "Training loss; bold: running mean.")
        )
    return "".join(parts)


def _rates(metrics: Metrics) -> str:
    traces = {stage: trace for stage, trace in metrics["lr_traces"].items() if trace["steps"]}
    if not traces:
        return ""
    alt = "Learning rate of each layer group. " + "; ".join(
        f"{stage}: {', '.join(trace['groups'])}"
        + (
            f", unfrozen at steps {', '.join(map(str, trace['unfreeze_steps']))}"
            if trace["unfreeze_steps"]
            else ""
        )
        for stage, trace in traces.items()
    )
    caption = (
        "Each layer group has its own rate, lower towards the input. Vertical lines: a group is "
        "unfrozen and trains from there on; dotted: it is still frozen."
    )
    return "<h2>Learning rates</h2>\n" + _figure(learning_rate_chart(traces), alt, caption)


def _cost(metrics: Metrics) -> str:
    seconds, speeds = metrics["seconds"], metrics["tokens_per_second"]
    body = []
    for stage in dict.fromkeys([*seconds, *speeds]):
        time = f"{seconds[stage]:,.1f}" if stage in seconds else _GAP
        speed = f"{speeds[stage]:,.0f}" if stage in speeds else _GAP
        body.append(_row(stage, _cell(time), _cell(speed)))
    return (
        "<h2>Time and machine</h2>\n"
        + _table(["stage", "seconds", "tokens a second"], body, "Wall time.")
        + _table(["machine", ""], _pairs(metrics["machine"]), "", kind="pairs")
    )


def _settings(metrics: Metrics) -> str:
    return "<h2>Settings</h2>\n" + _table(
        ["setting", "value"], _pairs(metrics["settings"]), "", kind="pairs"
    )


def _pairs(values: dict[str, Json]) -> list[str]:
    return [
        _row(name, f'<td class="text"><code>{_text(value)}</code></td>')
        for name, value in _flat(values, "")
    ]


def _flat(values: dict[str, Json], prefix: str) -> Iterable[tuple[str, Json]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _table(head: Sequence[str], body: Sequence[str], caption: str, *, kind: str = "") -> str:
    cells = "".join(f'<th scope="col">{_text(cell)}</th>' if cell else "<td></td>" for cell in head)
    note = f"<caption>{_text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="{kind}">{note}<thead><tr>{cells}</tr></thead>\n'
        + "<tbody>\n"
        + "\n".join(body)
        + "\n</tbody></table></div>\n"
    )


def _row(head: str, *cells: str) -> str:
    return _row_of(_text(head), *cells)


def _row_of(head: str, *cells: str) -> str:
    return f'<tr><th scope="row">{head}</th>{"".join(cells)}</tr>'


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{_text(text)}</td>' if kind else f"<td>{_text(text)}</td>"


def _percent(number: str) -> str:
    return f"{number} %".replace(" ", "\N{NO-BREAK SPACE}")


def _figure(svg: str, alt: str, caption: str) -> str:
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{_text(alt)}" ', 1)
    return f"<figure>{labelled}<figcaption>{_text(caption)}</figcaption></figure>\n"


def _text(value: Json) -> str:
    return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
