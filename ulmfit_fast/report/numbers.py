"""What a run measured: the schema of `metrics.json`, means and spreads, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any, TypedDict

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

# A bootstrap of fewer gives a difference an interval that is too narrow, or none.
FEWEST_TEXTS = 20

_STAGES = {
    "read the docstrings": "Reading",
    "pretrain": "Pre-training",
    "pre-train": "Pre-training",
    "fine_tune": "Fine-tuning the language model",
    "fine_tune_lm": "Fine-tuning the language model",
    "language-model fine-tuning": "Fine-tuning the language model",
    "fine-tune the language model": "Fine-tuning the language model",
    "fit_classifier": "Fitting the classifier",
    "refit_classifier": "Fitting the classifier to all texts",
    "fit the classifiers": "Fitting the classifiers",
    "total": "Total",
}


class CorpusSize(TypedDict):
    """How much text one corpus holds."""

    documents: int
    tokens: int


class Perplexity(TypedDict):
    """Held-out perplexity of a language model on one corpus at one moment, such as "before"."""

    corpus: str
    when: str
    perplexity: float


class LossPoint(TypedDict):
    """Training loss of a language model at one step, in nats a token."""

    step: int
    loss: float


class LrTrace(TypedDict):
    """Learning rate of every layer group over the steps of one stage.

    ``lrs[s][g]`` belongs to ``steps[s]`` and ``groups[g]``, groups from input to output.
    ``unfreeze_steps[k]`` is the first step at which the last ``k + 1`` groups train, and from its
    last entry on all of them do; an empty list means that all train from the start.
    """

    groups: list[str]
    steps: list[int]
    lrs: list[list[float]]
    unfreeze_steps: list[int]


class Accuracy(TypedDict):
    """Held-out accuracy in [0, 1] of one method, fitted on so many labels with one seed."""

    method: str
    labels: int
    seed: int
    accuracy: float


class Confusion(TypedDict):
    """``counts[i][j]``: texts of label i that were predicted as label j."""

    labels: list[str]
    counts: list[list[int]]


class WordScore(TypedDict):
    """One word of a text and what it adds to a prediction, about -1 to 1."""

    word: str
    score: float


class PlainExample(TypedDict):
    """One held-out text with its prediction and the probability of that prediction."""

    text: str
    label: str
    prediction: str
    probability: float


class Example(PlainExample, total=False):
    """The same, where the page may colour each word by its score in place of the plain text."""

    words: list[WordScore]


class Metrics(TypedDict):
    """Everything a run measured; what ``metrics.json`` holds."""

    version: str
    seed: int
    quick: bool
    machine: dict[str, Json]
    settings: dict[str, Json]
    seconds: dict[str, float]
    tokens_per_second: dict[str, float]
    corpora: dict[str, CorpusSize]
    perplexity: list[Perplexity]
    lm_curves: dict[str, list[LossPoint]]
    lr_traces: dict[str, LrTrace]
    accuracy: list[Accuracy]
    confusion: Confusion
    examples: list[Example]


class EpochRecord(TypedDict):
    """What one epoch of a stage came to; None where nothing was measured."""

    loss: float
    valid_loss: float | None
    accuracy: float | None
    macro_f1: float | None
    seconds: float


class StageRecord(TypedDict):
    """One stage of a run: "pretrain", "fine_tune_lm", "fit_classifier" or "refit_classifier".

    ``losses`` are of the training, each averaged over a stretch of steps so that there are some
    hundred.
    """

    name: str
    seconds: float
    steps: int
    epochs: list[EpochRecord]
    losses: list[LossPoint]


class ClassCount(TypedDict):
    """Texts of one class, and their share in [0, 1] of all."""

    label: str
    count: int
    share: float


class DataRecord(TypedDict):
    """What a run read, and what was found wrong with it."""

    rows: int
    trained_on: int
    held_out: int
    unlabelled: int
    classes: list[ClassCount]
    warnings: list[str]


class RunRecord(TypedDict):
    """One run from a table of texts to a classifier, as its report shows it.

    ``evaluation`` is what ``Evaluation.to_dict`` returns, and ``verdict`` its sentence; both are
    None where nothing was held out.
    """

    version: str
    command: str
    created: str
    machine: dict[str, Json]
    settings: dict[str, Json]
    stages: list[StageRecord]
    data: DataRecord
    evaluation: dict[str, Any] | None
    verdict: str | None
    examples: list[Example]


class Score(TypedDict):
    """Accuracy over seeds in percent: mean, and standard deviation (None for a single seed)."""

    mean: float
    spread: float | None


def scores(accuracy: Sequence[Accuracy]) -> dict[str, dict[int, Score]]:
    """Average accuracies over the seeds.

    >>> entry = {"method": "ours", "labels": 300}
    >>> scores([Accuracy(**entry, seed=s, accuracy=0.5 + s / 10) for s in (0, 1, 2)])
    {'ours': {300: {'mean': 60.0, 'spread': 10.0}}}

    Args:
        accuracy: one entry for each method, number of labels and seed.

    Returns:
        The score by method (in order of first appearance) and number of labels (increasing).
    """
    table: dict[str, dict[int, Score]] = {}
    for method in dict.fromkeys(entry["method"] for entry in accuracy):
        own = [entry for entry in accuracy if entry["method"] == method]
        table[method] = {}
        for labels in sorted({entry["labels"] for entry in own}):
            values = [100 * entry["accuracy"] for entry in own if entry["labels"] == labels]
            spread = round(stdev(values), 6) if len(values) > 1 else None
            table[method][labels] = Score(mean=round(mean(values), 6), spread=spread)
    return table


def format_score(score: Score | None) -> str:
    """Write a score as it stands in the tables.

    >>> format_score({"mean": 60.31, "spread": 1.25}), format_score({"mean": 50.0, "spread": None})
    ('60.3 ± 1.2', '50.0')

    Args:
        score: a score, or None where nothing was measured.

    Returns:
        Percent with one decimal, or a dash.
    """
    if score is None:
        return "\N{EN DASH}"
    return f"{score['mean']:.1f}" + ("" if score["spread"] is None else f" ± {score['spread']:.1f}")


def format_table(metrics: Metrics) -> str:
    """Write the headline as a markdown table that also lines up in a terminal.

    >>> entry = {"method": "ours", "labels": 300}
    >>> entries = [Accuracy(**entry, seed=s, accuracy=0.6 + s / 50) for s in (0, 1)]
    >>> print(format_table({"accuracy": entries}))  # the other keys are not read
    | held-out accuracy, % | 300 labels |
    | :------------------- | ---------: |
    | ours                 | 61.0 ± 1.4 |

    Args:
        metrics: what the run measured.

    Returns:
        One row a method and one column a number of labels: mean ± standard deviation over seeds.
    """
    table = scores(metrics["accuracy"])
    counts = label_counts(table)
    rows = [["held-out accuracy, %", *(f"{count:,} labels" for count in counts)]]
    rows += [[method, *(format_score(row.get(c)) for c in counts)] for method, row in table.items()]
    return aligned_table(rows)


def aligned_table(rows: Sequence[Sequence[str]]) -> str:
    """Write rows of cells, the head first, as a markdown table that lines up in a terminal.

    >>> print(aligned_table([["way", "%"], ["full", "61.0"]]))
    | way  |    % |
    | :--- | ---: |
    | full | 61.0 |

    Args:
        rows: cells; the first column is put to the left, the others to the right.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in rows
    ]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def label_counts(table: dict[str, dict[int, Score]]) -> list[int]:
    """List the numbers of labels that any method was fitted on, increasing.

    >>> label_counts(scores([Accuracy(method="ours", labels=300, seed=0, accuracy=0.5)]))
    [300]

    Args:
        table: the result of `scores`.

    Returns:
        The column heads of the headline table.
    """
    return sorted({count for row in table.values() for count in row})


def stage_title(stage: str) -> str:
    """Return what a page calls a stage.

    >>> stage_title("refit_classifier"), stage_title("another")
    ('Fitting the classifier to all texts', 'another')

    Args:
        stage: its name in a record or in `metrics.json`.
    """
    return _STAGES.get(stage, stage)
