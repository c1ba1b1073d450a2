"""The charts of the pages as inline SVG, small enough for a phone; their colours are the page's."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ulmfit_fast.report.numbers import (
    LossPoint,
    LrTrace,
    Score,
    StageRecord,
    format_score,
    label_counts,
    stage_title,
)

__all__ = [
    "Line",
    "accuracy_chart",
    "chart",
    "confusion_chart",
    "loss_charts",
    "rate_charts",
    "reliability_chart",
    "stage_charts",
]

# Beside these words a method is a yardstick, not a stage of the protocol; it is drawn in grey.
_YARDSTICK = re.compile(r"tf-?idf|majority", re.IGNORECASE)
# In units of which a chart is 360 wide, about a pixel of a phone. The ends of y are from below.
_WIDTH, _HEIGHT, _X_ENDS, _Y_ENDS = 360, 216, (46, 346), (176, 26)
_COLORS = [f"series-{number}" for number in range(6)]
_DASHED, _DOTTED = "5 4", "1 3"
_MARKERS = (
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
    "m-3-3h6v6h-6z",
    "m0-4l4 4l-4 4l-4-4z",
    "m0-4l4 7h-8z",
    "m0 4l4-7h-8z",
    "m-1-4h2v3h3v2h-3v3h-2v-3h-3v-2h3z",
)
# A trace has a point a step: more than there are pixels to show them.
_MOST_POINTS = 300


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: for the legend, which there is where a line has one.
        points: x and y; a gap where one cannot be shown, as what is not finite.
        color: a variable of the page.
        dashes: lengths that are drawn and left out, in turn.
        marker: number of the shape at each point, or None.
        spread: of each point, up and down from it.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: str = "series-0"
    dashes: str = ""
    marker: int | None = None
    spread: Sequence[float] = ()


@dataclass(frozen=True)
class _Axis:
    """Where in the chart the values between two ends are."""

    low: float
    high: float
    ends: tuple[float, float]
    log: bool

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        ends: tuple[float, float],
        *,
        log: bool = False,
        room: float = 0.0,
    ) -> _Axis:
        """Return one that shows all values that can be shown, and some room beyond them."""
        scaled = [math.log10(v) if log else v for v in values if _shown(v, log)] or [0.0]
        low, high = min(scaled), max(scaled)
        # What differs in its last digits only is drawn as one value.
        differ = high - low > 1e-6 * abs(high)
        grow = room * (high - low) if differ else abs(low) / 10 or 0.5
        return cls(low - grow, high + grow, ends, log)

    def place(self, value: float) -> float:
        scaled = math.log10(value) if self.log else value
        start, end = self.ends
        return round(start + (scaled - self.low) / (self.high - self.low) * (end - start), 1)

    def ticks(self, whole: bool = False) -> list[tuple[float, str]]:
        """Return a few round values with their texts."""
        if self.log:
            exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
            found: list[float] = []
            for digits in ((1,), (1, 3), (1, 2, 5)):
                found = [float(f"{d}e{e}") for e in exponents for d in digits]
                found = [v for v in found if self.low <= math.log10(v) <= self.high]
                if len(found) > 2:
                    break
            texts = (f"{value:,.6g}" for value in found)
            return [
                (value, text if len(text) <= 6 else f"{value:.0e}")
                for value, text in zip(found, texts, strict=True)
            ]
        least = (self.high - self.low) / 5
        power = math.floor(math.log10(least))
        power = max(power, 0) if whole else power
        exponent, digit = next(
            (e, d) for e in (power, power + 1) for d in (1, 2, 5) if d * 10.0**e >= least
        )
        step = float(f"{digit}e{exponent}")
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        values = (number * step for number in range(first, last + 1))
        return [(value, f"{value:,.{max(0, -exponent)}f}") for value in values]


def chart(
    lines: Sequence[Line],
    x: str,
    y: str,
    description: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    x_ticks: Sequence[float] = (),
    unit_square: bool = False,
) -> str:
    """Draw lines over two axes.

    >>> svg = chart([Line("loss", [(0, 3.5), (10, 2.5)])], "step", "nats", "Loss: down to 2.50")
    >>> svg.startswith('<svg viewBox="0 0 360 216" role="img" aria-label="Loss: down to 2.50"')
    True

    Args:
        lines: what to draw, the last one on top.
        x: what the horizontal axis is of.
        y: what the vertical axis is of; stands above it.
        description: what a screen reader says in the chart's place.
        log_x: a horizontal axis of logarithms.
        log_y: a vertical one.
        marks: places on the horizontal axis at which something happens, with its name.
        x_ticks: the values to name on the horizontal axis; whole round ones by default.
        unit_square: both axes from 0 to 1.

    Returns:
        An ``<svg>`` element, with a list of the lines' names after it.
    """
    shown = [
        [(a, b) if _shown(a, log_x) and _shown(b, log_y) else None for a, b in line.points]
        for line in lines
    ]
    points = [point for own in shown for point in own if point is not None]
    spreads = [
        b + sign * s
        for line in lines
        for (_, b), s in zip(line.points, line.spread, strict=False)
        for sign in (-1, 1)
    ]
    if unit_square:
        xs, ys = _Axis(0, 1, _X_ENDS, False), _Axis(0, 1, _Y_ENDS, False)
    else:
        across = [a for a, _ in points] + [place for place, _ in marks]
        xs = _Axis.of(across, _X_ENDS, log=log_x, room=0.08 if log_x else 0.0)
        ys = _Axis.of(
            [b for _, b in points] + spreads, _Y_ENDS, log=log_y, room=0.25 if marks else 0.08
        )
    (left, right), (bottom, top) = _X_ENDS, _Y_ENDS
    parts = []
    for value, text in ys.ticks():
        at = ys.place(value)
        parts.append(f'<path class="grid" d="M{left} {at}H{right}"/>')
        parts.append(_text(left - 6, at + 4, text, "end"))
    named = [(value, f"{value:,}") for value in x_ticks]
    for value, text in named or xs.ticks(whole=not unit_square):
        at = xs.place(value)
        fits = at + 3.2 * len(text) < _WIDTH
        parts.append(_text(at if fits else _WIDTH, bottom + 16, text, "middle" if fits else "end"))
    parts.append(f'<path class="grid" d="M{left} {bottom}H{right}"/>')
    parts += [_text(2, 12, y, "start"), _text(right, _HEIGHT - 6, x, "end")]
    for value, _ in marks:
        parts.append(f'<path class="mark" d="M{xs.place(value)} {bottom}V{top}"/>')
    for line, own in zip(lines, shown, strict=True):
        parts.append(_drawn(line, [p and (xs.place(p[0]), ys.place(p[1])) for p in own]))
        for (a, b), spread in zip(line.points, line.spread, strict=False):
            low, high = ys.place(b - spread), ys.place(b + spread)
            path = f"M{xs.place(a)} {low}V{high}m-3 0h6M{xs.place(a)} {low}m-3 0h6"
            parts.append(f'<path class="line" {_style(line.color)} d="{path}"/>')
    for number, (value, text) in enumerate(marks):
        at, below = xs.place(value), top + 9 + 11 * (number % 2)
        fits = at + 3 + 6.4 * len(text) < _WIDTH
        parts.append(_text(at + (3 if fits else -3), below, text, "start" if fits else "end"))
    return _svg(f"0 0 {_WIDTH} {_HEIGHT}", description, parts) + _legend(lines)


def loss_charts(curves: dict[str, list[LossPoint]]) -> dict[str, str]:
    """Draw the language model's loss over the steps.

    >>> points = [LossPoint(step=0, loss=6.0), LossPoint(step=1, loss=5.0)]
    >>> "from 6.00 to 5.00 in 1 steps" in loss_charts({"pretrain": points})["Pre-training"]
    True

    Args:
        curves: the points of each stage.

    Returns:
        A chart by the title of its stage.
    """
    charts = {}
    for number, (stage, points) in enumerate(curves.items()):
        first, last = points[0], points[-1]
        described = (
            f"Training loss from {first['loss']:.2f} to {last['loss']:.2f} "
            f"in {last['step']:,} steps"
        )
        line = Line("", [(point["step"], point["loss"]) for point in points], _color(number))
        charts[stage_title(stage)] = chart([line], "step", "loss, nats a token", described)
    return charts


def rate_charts(traces: dict[str, LrTrace]) -> dict[str, str]:
    """Draw every group's learning rate, solid where the group trains, dotted where it is frozen.

    >>> rates = [[1e-3, 3e-3], [1e-4, 3e-4]]
    >>> trace = LrTrace(groups=["rnn0", "head"], steps=[0, 1], lrs=rates, unfreeze_steps=[0, 1])
    >>> "of rnn0, head, unfrozen at steps 0, 1" in rate_charts({"classifier": trace})["classifier"]
    True

    Args:
        traces: one trace a stage.

    Returns:
        A chart by the name of its stage.
    """
    charts = {}
    for stage, trace in traces.items():
        unfrozen = ", ".join(f"{step:,}" for step in trace["unfreeze_steps"])
        described = f"Learning rates of {', '.join(trace['groups'])}" + (
            f", unfrozen at steps {unfrozen}" if unfrozen else ""
        )
        groups, starts = trace["groups"], trace["unfreeze_steps"]
        lines = []
        for number, group in reversed(list(enumerate(groups))):
            stage_number = min(len(groups) - 1 - number, len(starts) - 1)
            start = starts[stage_number] if starts else -math.inf
            points = [
                (step, rates[number])
                for step, rates in zip(trace["steps"], trace["lrs"], strict=True)
            ]
            frozen = _thinned([point for point in points if point[0] <= start])
            trained = _thinned([point for point in points if point[0] >= start])
            lines.append(Line("", frozen, _color(number), _DOTTED))
            lines.append(Line(group, trained, _color(number)))
        marks = []
        for number, step in enumerate(starts):
            newest = 0 if number == len(starts) - 1 else max(0, len(groups) - 1 - number)
            marks.append((step, f"+ {groups[newest]}" if number else groups[newest]))
        charts[stage_title(stage)] = chart(
            lines, "step", "learning rate", described, log_y=True, marks=marks
        )
    return charts


def accuracy_chart(table: dict[str, dict[int, Score]]) -> str:
    """Draw accuracy against the number of labels with the spread over seeds as error bars.

    >>> "<svg" in accuracy_chart({"ours": {300: {"mean": 60.0, "spread": 1.0}}})
    True

    Args:
        table: the result of `ulmfit_fast.report.scores`.
    """
    lines: list[Line] = []
    for number, (method, row) in enumerate(table.items()):
        yardstick = bool(_YARDSTICK.search(method))
        # A few percent to the side, so that error bars at one number of labels do not overlap.
        side = 1.0 + 0.02 * (number - (len(table) - 1) / 2)
        lines.append(
            Line(
                method,
                [(count * side, score["mean"]) for count, score in row.items()],
                "muted" if yardstick else _color(sum(line.color != "muted" for line in lines)),
                _DASHED if yardstick else "",
                number,
                [score["spread"] or 0.0 for score in row.values()],
            )
        )
    described = (
        f"{method}: " + ", ".join(f"{format_score(row[n])} % at {n:,}" for n in row)
        for method, row in table.items()
    )
    return chart(
        lines,
        "labelled sentences",
        "held-out accuracy, %",
        f"Accuracy against labels. {'; '.join(described)}",
        log_x=True,
        x_ticks=label_counts(table),
    )


def stage_charts(stages: Sequence[StageRecord]) -> dict[str, str]:
    """Draw the losses of each stage of a run, and of a classifier its scores as well.

    >>> epoch = {"loss": 0.7, "valid_loss": 0.6, "accuracy": 0.8, "macro_f1": 0.7, "seconds": 1.0}
    >>> losses = [LossPoint(step=0, loss=0.9)]
    >>> stage = {"name": "fit_classifier", "seconds": 1.0, "steps": 4, "losses": losses}
    >>> list(stage_charts([{**stage, "epochs": [epoch]}]))
    ['Fitting the classifier: loss', 'Fitting the classifier: validation scores']

    Args:
        stages: of the run's record.

    Returns:
        A chart by its title.
    """
    charts = {}
    for number, stage in enumerate(stages):
        title, color, epochs = stage_title(stage["name"]), _color(number), stage["epochs"]
        ends = [stage["steps"] * (n + 1) / len(epochs) for n in range(len(epochs))]
        lines = [Line("training", [(own["step"], own["loss"]) for own in stage["losses"]], color)]
        if not stage["losses"]:
            means = [(end, own["loss"]) for end, own in zip(ends, epochs, strict=True)]
            lines = [Line("training, an epoch", means, color, marker=0)]
        valid = _defined(ends, [own["valid_loss"] for own in epochs])
        if valid:
            lines.append(Line("validation", valid, "ink", _DASHED, 1))
        described = "; ".join(
            f"{line.name} loss from {line.points[0][1]:.3f} to {line.points[-1][1]:.3f}"
            for line in lines
            if line.points
        )
        described = f"{title}, {stage['steps']:,} steps: {described}"
        unit = "nats a text" if stage["name"].endswith("fit_classifier") else "nats a token"
        if lines[0].points:
            charts[f"{title}: loss"] = chart(lines, "step", f"loss, {unit}", described)
        numbers = range(1, len(epochs) + 1)
        scores = {
            "accuracy": _defined(numbers, [own["accuracy"] for own in epochs]),
            "macro F1": _defined(numbers, [own["macro_f1"] for own in epochs]),
        }
        lines = [
            Line(name, points, _color(n), (_DASHED if n else ""), n)
            for n, (name, points) in enumerate(scores.items())
            if points
        ]
        if lines:
            described = "; ".join(
                f"{line.name} {line.points[-1][1]:.3f} after epoch {line.points[-1][0]}"
                for line in lines
            )
            charts[f"{title}: validation scores"] = chart(
                lines, "epoch", "score", f"Validation scores: {described}"
            )
    return charts


def reliability_chart(bins: Sequence[dict[str, Any]]) -> str:
    """Draw how many answers of each probability are right.

    >>> "9 answers" in reliability_chart([{"count": 9, "probability": 0.8, "right": 0.7}])
    True

    Args:
        bins: of an evaluation; what has no answers is left out.
    """
    points = [(own["probability"], own["right"]) for own in bins if own["count"]]
    described = "; ".join(
        f"{own['count']:,} answers of {own['probability']:.2f}, of which {own['right']:.2f} right"
        for own in bins
        if own["count"]
    )
    lines = [
        Line("perfectly calibrated", [(0.0, 0.0), (1.0, 1.0)], "muted", _DASHED),
        Line("this classifier", points, marker=0),
    ]
    axes = "probability of the answer", "share that is right"
    return chart(lines, *axes, f"Calibration. {described}", unit_square=True)


def confusion_chart(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Draw a confusion matrix of many classes, the diagonal in another colour than what is wrong.

    >>> "2 of 3 texts" in confusion_chart([[1, 1], [0, 1]], ["bad", "good"])
    True

    Args:
        counts: texts of each class, a row, by what was predicted, a column.
        names: of the classes.
    """
    size = len(names)
    unit = 320 / size
    parts = ['<path class="grid" d="M34 6H354V326H34z"/>']
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, size) if size / n <= 16)
    for number in range(1, size + 1):
        if number == 1 or number % every == 0:
            middle = (number - 0.5) * unit
            parts.append(_text(29, round(middle + 10, 1), str(number), "end"))
            parts.append(_text(round(middle + 34, 1), 340, str(number), "middle"))
    for row, own in enumerate(counts):
        for column, count in enumerate(own):
            if count:
                share = count / sum(own)
                title = html.escape(f"{names[row]} predicted as {names[column]}: {count:,}")
                kind = "right" if row == column else "wrong"
                parts.append(
                    f'<rect class="cell {kind}" x="{34 + column * unit:.2f}" '
                    f'y="{6 + row * unit:.2f}" width="{unit:.2f}" height="{unit:.2f}" '
                    f'opacity="{0.25 + 0.75 * share:.2f}"><title>{title}</title></rect>'
                )
    right, total = sum(counts[n][n] for n in range(size)), sum(map(sum, counts))
    parts.append(_text(354, 356, "predicted", "end"))
    described = (
        f"Confusion matrix of {size} classes: {right:,} of {total:,} texts are on the diagonal, "
        "where the answer is right"
    )
    return _svg("0 0 360 362", described, parts)


def _shown(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _defined(places: Sequence[float], values: Sequence[float | None]) -> list[tuple[float, float]]:
    pairs = zip(places, values, strict=True)
    return [(place, value) for place, value in pairs if value is not None]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = math.ceil(len(points) / _MOST_POINTS) or 1
    return [*points[:-1:stride], *points[-1:]]


def _style(color: str) -> str:
    return f'style="--color: var(--{color})"'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _drawn(line: Line, places: Sequence[tuple[float, float] | None]) -> str:
    """Return a line through places of the chart, and its markers."""
    path, pen = "", "M"
    for place in places:
        path += "" if place is None else f"{pen}{place[0]:g} {place[1]:g}"
        pen = "M" if place is None else "L"
    style = _style(line.color)
    dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
    drawn = f'<path class="line" {style}{dashes} d="{path}"/>' if path else ""
    # A single point has no line to be seen by.
    marker = 0 if line.marker is None and sum(p is not None for p in places) == 1 else line.marker
    if marker is not None:
        shape = _MARKERS[marker % len(_MARKERS)]
        shapes = "".join(f"M{p[0]:g} {p[1]:g}{shape}" for p in places if p is not None)
        drawn += f'<path class="marker" {style} d="{shapes}"/>' if shapes else ""
    return drawn


def _svg(box: str, description: str, parts: Sequence[str]) -> str:
    label = html.escape(description)
    return f'<svg viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _legend(lines: Sequence[Line]) -> str:
    places = [(1, 5), (15, 5), (29, 5)]
    entries = (
        f'<li><svg viewBox="-4 0 38 10" aria-hidden="true">{_drawn(line, places)}</svg> '
        f"{html.escape(line.name)}</li>"
        for line in lines
        if line.name
    )
    listed = "".join(entries)
    return f'<ul class="legend">{listed}</ul>' if listed else ""
