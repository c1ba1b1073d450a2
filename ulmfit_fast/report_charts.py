"""The charts of the report as inline SVG: text stays text, and colours follow the page's theme."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .report import LossPoint, LrTrace, Score, label_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib writes fixed colours; each of these stands for one that the page's style sheet defines,
# so that a chart turns dark with the page.
_INK, _GRID, _MUTED = "#0a0b0c", "#0d0e0f", "#0b0c0d"
_SERIES = [f"#0c0d{number:02x}" for number in range(6)]
_THEME = {_INK: "currentColor", _GRID: "var(--line)", _MUTED: "var(--muted)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES)
}
# rcParams belong to the process: of two threads one could put back for good what the other had set.
_STYLE = threading.Lock()
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ulmfit_fast",
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_MARKERS = "osD^vP"
# Beside these words a method is a yardstick, not a stage of the protocol; it is drawn in grey.
_YARDSTICK = re.compile(r"tf-?idf|majority", re.IGNORECASE)


def loss_chart(curves: dict[str, list[LossPoint]], titles: dict[str, str]) -> str:
    """Draw the language model's loss over the steps, one panel a stage on a common scale.

    >>> "<svg" in loss_chart({"pretrain": [{"step": 0, "loss": 6.0}, {"step": 1, "loss": 5.0}]}, {})
    True

    Args:
        curves: the points of each stage.
        titles: a title for the stages whose name is not one.

    Returns:
        An ``<svg>`` element.
    """
    with _style():
        figure = _figure(3.1)
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for number, (panel, (stage, points)) in enumerate(zip(panels, curves.items(), strict=True)):
            steps = [point["step"] for point in points]
            losses = [point["loss"] for point in points]
            window = max(1, len(losses) // 40)
            color = _SERIES[number % len(_SERIES)]
            if window > 1:
                panel.plot(steps, losses, color=color, alpha=0.3, linewidth=0.8)
            panel.plot(steps, _running_mean(losses, window), color=color)
            panel.set_title(titles.get(stage, stage))
            panel.set_xlabel("step")
            if losses:
                panel.annotate(
                    f"{_running_mean(losses, window)[-1]:.2f}",
                    (steps[-1], _running_mean(losses, window)[-1]),
                    xytext=(0, 7),
                    textcoords="offset points",
                    ha="right",
                )
        panels[0].set_ylabel("loss, nats a token")
        return _svg(figure, "loss")


def learning_rate_chart(traces: dict[str, LrTrace]) -> str:
    """Draw every group's learning rate, solid where the group trains and faint where it is frozen.

    >>> rates = [[1e-3, 3e-3], [1e-4, 3e-4]]
    >>> trace = LrTrace(groups=["rnn0", "head"], steps=[0, 1], lrs=rates, unfreeze_steps=[0, 1])
    >>> "<svg" in learning_rate_chart({"classifier": trace})
    True

    Args:
        traces: one trace a stage.

    Returns:
        An ``<svg>`` element.
    """
    with _style():
        figure = _figure(0.5 + 2.6 * len(traces))
        panels = figure.subplots(len(traces), 1, squeeze=False)[:, 0]
        for panel, (stage, trace) in zip(panels, traces.items(), strict=True):
            _draw_trace(panel, trace)
            panel.set_title(stage)
            panel.set_ylabel("learning rate")
        panels[-1].set_xlabel("step")
        return _svg(figure, "rates")


def _draw_trace(panel: Axes, trace: LrTrace) -> None:
    groups, steps, stages = trace["groups"], trace["steps"], trace["unfreeze_steps"]
    for number, group in reversed(list(enumerate(groups))):
        rates = [
            row[number] if row[number] and row[number] > 0 else math.nan for row in trace["lrs"]
        ]
        stage = min(len(groups) - 1 - number, len(stages) - 1)
        start = stages[stage] if stages else -math.inf
        color = _SERIES[number % len(_SERIES)]
        trained = [
            rate if step >= start else math.nan for step, rate in zip(steps, rates, strict=True)
        ]
        frozen = [
            rate if step <= start else math.nan for step, rate in zip(steps, rates, strict=True)
        ]
        panel.plot(steps, trained, color=color, label=group)
        panel.plot(steps, frozen, color=color, alpha=0.45, linewidth=1.1, linestyle=(0, (1, 2.5)))
    for number, step in enumerate(stages):
        panel.axvline(step, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        newest = (
            groups[0] if number == len(stages) - 1 else groups[max(0, len(groups) - 1 - number)]
        )
        panel.annotate(
            f"+ {newest}" if number else newest,
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -1),
            textcoords="offset points",
            va="top",
            color=_MUTED,
            fontsize=8.5,
        )
    panel.set_yscale("log")
    panel.margins(x=0.01, y=0.16)
    panel.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), title="layer group", alignment="left"
    )


def accuracy_chart(table: dict[str, dict[int, Score]]) -> str:
    """Draw accuracy against the number of labels with the spread over seeds as error bars.

    >>> "<svg" in accuracy_chart({"ours": {300: {"mean": 60.0, "spread": 1.0}}})
    True

    Args:
        table: the result of `ulmfit_fast.report.scores`.

    Returns:
        An ``<svg>`` element.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    with _style():
        figure = _figure(3.7)
        panel = figure.subplots()
        counts = label_counts(table)
        drawn = 0
        for number, (method, row) in enumerate(table.items()):
            yardstick = bool(_YARDSTICK.search(method))
            # A few percent to the side, so that error bars at one number of labels do not overlap.
            side = 1.0 + 0.02 * (number - (len(table) - 1) / 2)
            panel.errorbar(
                [count * side for count in row],
                [score["mean"] for score in row.values()],
                yerr=[score["spread"] or 0.0 for score in row.values()],
                label=method,
                color=_MUTED if yardstick else _SERIES[drawn % len(_SERIES)],
                linestyle=(0, (4, 3)) if yardstick else "-",
                linewidth=1.2 if yardstick else 1.8,
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5,
                capsize=3,
                elinewidth=1.2,
            )
            drawn += not yardstick
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(FixedLocator(counts))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticklabels([f"{count:,}" for count in counts])
        panel.set_xlabel("labelled sentences")
        panel.set_ylabel("held-out accuracy, %")
        panel.legend(loc="upper left", bbox_to_anchor=(0.0, -0.2), ncols=2, borderaxespad=0.0)
        return _svg(figure, "accuracy")


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    starts = [max(0, end - window) for end in range(1, len(sums))]
    return [(sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, start=1)]


@contextmanager
def _style() -> Iterator[None]:
    try:
        from matplotlib import rc_context
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matplotlib is not installed; pip install 'ulmfit-fast[demo]'", name=error.name
        ) from error
    with _STYLE, rc_context(_RC):
        yield


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(7.6, height), layout="constrained")


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an element that can stand in a page beside others."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    # Every figure counts its parts from one; the name keeps ids unique in the page.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ', r"<svg \1", text, count=1)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    return re.sub("|".join(_THEME), lambda found: _THEME[found[0]], text).strip()
