"""The charts of the report as inline SVG: text stays text, and colours follow the page's theme."""

from __future__ import annotations

import html
import io
import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ulmfit_fast.report.numbers import LossPoint, LrTrace, Score, format_score, label_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By the name of the page's variable. A chart is drawn in the light theme's colours; the page's
# style sheet finds them by value and puts the variable in their place, which turns dark with it.
COLORS = {
    "ink": "#1d2129",
    "muted": "#6a707c",
    "line": "#dfe2e7",
    "series-0": "#2662cc",
    "series-1": "#c2570c",
    "series-2": "#16836b",
    "series-3": "#8e44ad",
    "series-4": "#b8860b",
    "series-5": "#c2306d",
}
_INK, _MUTED, _LINE, *_SERIES = COLORS.values()
# rcParams belong to the process: of two threads one could put back for good what the other had set.
_STYLE = threading.Lock()
_RC: dict[Any, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _INK
    ),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), _LINE),
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.size": 10.0,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.format": "svg",
    "savefig.transparent": True,
    "svg.fonttype": "none",
}
_MARKERS = "osD^vP"
_STAGES = {"pretrain": "Stage 1: pre-training", "fine_tune": "Stage 2: fine-tuning on the target"}
# Beside these words a method is a yardstick, not a stage of the protocol; it is drawn in grey.
_YARDSTICK = re.compile(r"tf-?idf|majority", re.IGNORECASE)


def loss_chart(curves: dict[str, list[LossPoint]]) -> str:
    """Draw the language model's loss over the steps, one panel a stage on a common scale.

    >>> points = [LossPoint(step=0, loss=6.0), LossPoint(step=1, loss=5.0)]
    >>> "from 6.00 to 5.00 in 1 steps" in loss_chart({"pretrain": points})
    True

    Args:
        curves: the points of each stage, at least one.

    Returns:
        An ``<svg>`` element.
    """
    with _figure("loss", 3.1) as figure:
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for number, (panel, (stage, points)) in enumerate(zip(panels, curves.items(), strict=True)):
            steps = [point["step"] for point in points]
            losses = [point["loss"] for point in points]
            window = max(1, len(losses) // 40)
            smooth = _running_mean(losses, window)
            color = _SERIES[number % len(_SERIES)]
            if window > 1:
                panel.plot(steps, losses, color=color, alpha=0.3, linewidth=0.8)
            panel.plot(steps, smooth, color=color)
            panel.set_title(_STAGES.get(stage, stage))
            panel.set_xlabel("step")
            panel.annotate(
                f"{smooth[-1]:.2f}",
                (steps[-1], smooth[-1]),
                xytext=(0, 7),
                textcoords="offset points",
                ha="right",
            )
        panels[0].set_ylabel("loss, nats a token")
        described = (
            f"{_STAGES.get(stage, stage)}: from {points[0]['loss']:.2f} "
            f"to {points[-1]['loss']:.2f} in {points[-1]['step']:,} steps"
            for stage, points in curves.items()
        )
        return _svg(figure, "loss", f"Training loss. {'; '.join(described)}")


def learning_rate_chart(traces: dict[str, LrTrace]) -> str:
    """Draw every group's learning rate, solid where the group trains and faint where it is frozen.

    >>> rates = [[1e-3, 3e-3], [1e-4, 3e-4]]
    >>> trace = LrTrace(groups=["rnn0", "head"], steps=[0, 1], lrs=rates, unfreeze_steps=[0, 1])
    >>> "classifier: rnn0, head, unfrozen" in learning_rate_chart({"classifier": trace})
    True

    Args:
        traces: one trace a stage.

    Returns:
        An ``<svg>`` element.
    """
    with _figure("rates", 0.5 + 2.6 * len(traces)) as figure:
        panels = figure.subplots(len(traces), 1, squeeze=False)[:, 0]
        described = []
        for panel, (stage, trace) in zip(panels, traces.items(), strict=True):
            _draw_trace(panel, trace)
            panel.set_title(stage)
            panel.set_ylabel("learning rate")
            unfrozen = ", ".join(map(str, trace["unfreeze_steps"]))
            described.append(
                f"{stage}: {', '.join(trace['groups'])}"
                + (f", unfrozen at steps {unfrozen}" if unfrozen else "")
            )
        panels[-1].set_xlabel("step")
        return _svg(figure, "rates", f"Learning rate of each layer group. {'; '.join(described)}")


def _draw_trace(panel: Axes, trace: LrTrace) -> None:
    groups, stages = trace["groups"], trace["unfreeze_steps"]
    steps, rates = np.array(trace["steps"]), np.array(trace["lrs"], dtype=float)  # (S,), (S, G)
    rates[~(rates > 0)] = math.nan
    for number, group in reversed(list(enumerate(groups))):
        stage = min(len(groups) - 1 - number, len(stages) - 1)
        start = stages[stage] if stages else -math.inf
        color = _SERIES[number % len(_SERIES)]
        trained = np.where(steps >= start, rates[:, number], math.nan)
        frozen = np.where(steps <= start, rates[:, number], math.nan)
        panel.plot(steps, trained, color=color, label=group)
        panel.plot(steps, frozen, color=color, alpha=0.45, linewidth=1.1, linestyle=(0, (1, 2.5)))
    for number, step in enumerate(stages):
        panel.axvline(step, color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        newest = 0 if number == len(stages) - 1 else max(0, len(groups) - 1 - number)
        panel.annotate(
            f"+ {groups[newest]}" if number else groups[newest],
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
    with _figure("accuracy", 3.7) as figure:
        from matplotlib.ticker import FixedLocator, NullLocator

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
        described = (
            f"{method}: " + ", ".join(f"{format_score(row[n])} % at {n:,}" for n in row)
            for method, row in table.items()
        )
        return _svg(figure, "accuracy", f"Accuracy against labels. {'; '.join(described)}")


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - window)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means


@contextmanager
def _figure(name: str, height: float) -> Iterator[Figure]:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matplotlib is not installed; pip install 'ulmfit-fast[demo]'", name=error.name
        ) from error
    # Ids that are referred to are made from the salt: another in each chart of a page.
    with _STYLE, rc_context(_RC | {"svg.hashsalt": name}):
        yield Figure(figsize=(7.6, height))


def _svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an element that can stand in a page beside others."""
    # Every figure counts its parts from one; with the name, ids are unique in the page. Ticks are
    # there once they were drawn, and no others come as long as the layout stays.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for number, artist in enumerate(figure.findobj()):
        artist.set_gid(f"{name}-{number}")
    buffer = io.StringIO()
    figure.savefig(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # What stands before the element would end the page's own document, and matplotlib has no
    # setting for what a screen reader reads.
    _, start, element = buffer.getvalue().partition("<svg")
    return f'{start} role="img" aria-label="{html.escape(description)}"{element}'
