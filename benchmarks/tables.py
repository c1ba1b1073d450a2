"""The tables of docs/benchmarks.md, and the short one of the README, written from rows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from benchmarks import goals
from benchmarks.compared.baselines import KERNELS, PLAIN, TODAY
from benchmarks.harness.rows import Row
from benchmarks.harness.show import duration, size, table
from benchmarks.questions import lm_step
from benchmarks.questions.decoder import OURS as DECODER
from benchmarks.questions.decoder import PLAIN as LOGITS
from benchmarks.questions.dropout_cost import QUESTION as DROPOUT_COST

_BESIDE = [
    PLAIN,
    "fastai WeightDropout",
    *(f"ulmfit_fast {name}" for name in ("auto", "eager", *KERNELS)),
]

_LAYER = {
    "question": "layer",
    "passes": "training",
    "dtype": "float32",
    **{"input_size": 400, "hidden_size": 1152, "batch_size": 64},
}
_AUTO = {"implementation": "ulmfit_fast auto"}
# What is measured, the fields of its row, and its baseline in words.
_HEADLINES: list[tuple[str, dict[str, object], str]] = [
    (
        "training step of the language model, V = 15,008",
        {
            **{"question": "lm_step", "passes": "step", "implementation": lm_step.OURS},
            **{"dtype": "float32", "vocab_size": 15_008},
        },
        "the same in plain PyTorch",
    ),
    (
        "layer 400→1152 with `weight_p`, B = 64",
        {**_LAYER, **_AUTO},
        "`F.dropout`, `nn.LSTM`",
    ),
    (
        "the same in bfloat16",
        {**_LAYER, "question": "layer_bfloat16", "dtype": "bfloat16", **_AUTO},
        "`F.dropout`, `nn.LSTM`, bfloat16",
    ),
    (
        "tied decoder with its loss, V = 60,008",
        {"question": "decoder", "vocab_size": 60_008, "implementation": DECODER},
        "`F.linear`, `F.cross_entropy`",
    ),
    (
        "predictions in int8, long texts, batches of 4",
        {"question": "predict", "passes": "long texts", "batch_size": 4, "dtype": "int8"},
        "ours in float32",
    ),
    (
        "a text written by the language model, bfloat16",
        {"question": "generate", "dtype": "bfloat16"},
        "PyTorch's LSTM, float32",
    ),
    (
        "tokenizer `word`, one process",
        {"question": "tokenize", "implementation": "ulmfit_fast word"},
        "spaCy alone",
    ),
]


def device(rows: Sequence[Row], name: str) -> str:
    """Write all tables of one device.

    Args:
        rows: of its file.
        name: of the file.
    """
    parts = [_where(rows, name)]
    for write in _SECTIONS:
        if text := write(rows):
            parts.append(text)
    return "\n\n".join(parts)


def summary(rows: Sequence[Row], name: str) -> str:
    """Write the short table of one device: one row of each kind, whether it came out well or not.

    Args:
        rows: of its file.
        name: of the file.
    """
    lines = []
    for what, wanted, beside in _HEADLINES:
        found = [row for row in rows if all(getattr(row, name) == wanted[name] for name in wanted)]
        if found:
            lines.append([what, beside, _ratio(found[0])])
    short = table(["measured", "beside", "times as fast"], lines, left=2)
    return "\n\n".join([_machine(rows[0]) + ":", short, _decoder_memory(rows)]).rstrip()


def _decoder_memory(rows: Sequence[Row]) -> str:
    """Say what the decoder holds at its highest, ours beside the plain one."""
    held = {
        row.implementation: size(row.peak_bytes)
        for row in rows
        if row.question == "decoder" and row.peak_bytes is not None
    }
    ours, plain = (held.get(name) for name in (DECODER, LOGITS))
    return f"That decoder holds {ours} at its highest, the plain one {plain}." if ours else ""


def layers(rows: Sequence[Row]) -> str:
    """Write the layers: a line a shape, the baseline's time and the others beside it."""
    names = ("layer", "stack", "layer_bfloat16")
    chosen = [r for r in rows if r.question in names and r.passes == "training" and r.median_us]
    chosen = [row for row in chosen if row.launched == "eager" and row.baseline == TODAY]
    shapes = list(dict.fromkeys(_shape(row) for row in chosen))
    present = [n for n in _BESIDE if any(row.implementation == n for row in chosen)]
    lines = []
    for shape in shapes:
        found = {row.implementation: row for row in chosen if _shape(row) == shape}
        if TODAY in found:
            cells = [_compared_with(found[n]) if n in found else "" for n in present]
            lines.append([*shape, _time(found[TODAY]), *cells])
    if not lines:
        return ""
    text = (
        f"Forward and backward of a layer with `weight_p=0.5`: the time of {TODAY}, and of the "
        f"others with how many times as fast they are; {PLAIN} alone drops nothing."
    )
    head = ["layer", "dtype", "batch", TODAY, *present]
    return f"{_wrapped(text)}\n\n{table(head, lines, left=2)}"


def language_model(rows: Sequence[Row]) -> str:
    """Write the training step of the language model."""
    chosen = [row for row in rows if row.question == "lm_step" and row.passes == "step"]
    chosen = [row for row in chosen if row.tokens_per_second]
    if not chosen:
        return ""
    lines = [
        [
            row.implementation,
            row.dtype,
            f"{row.tokens_per_second:,.0f}",
            _ratio(row),
            "" if row.peak_bytes is None else size(row.peak_bytes),
        ]
        for row in chosen
    ]
    head = ["implementation", "dtype", "tokens/s", "times as fast", "peak memory"]
    if not any(line[4] for line in lines):
        head, lines = head[:4], [line[:4] for line in lines]
    first = chosen[0]
    text = (
        f"A whole training step of the language model, V = {first.vocab_size:,}, "
        f"B = {first.batch_size}, T = {first.steps}, beside the same operations in plain PyTorch "
        "as fastai writes them:"
    )
    return f"{_wrapped(text)}\n\n{table(head, lines, left=2)}"


def other_sizes(rows: Sequence[Row]) -> str:
    """Write the training step at other sizes."""
    chosen = [r for r in rows if r.question == lm_step.SIZES and r.tokens_per_second]
    if not chosen:
        return ""
    lines = [
        [
            f"{row.input_size}/{row.hidden_size}",
            f"{row.vocab_size:,}",
            f"{row.batch_size}",
            row.implementation,
            row.dtype,
            f"{row.tokens_per_second:,.0f}",
            _ratio(row),
        ]
        for row in chosen
    ]
    head = ["E/H", "V", "B", "implementation", "dtype", "tokens/s", "times as fast"]
    text = "The same step at other sizes, three layers each (`--only lm_sizes`):"
    return f"{text}\n\n{table(head, lines)}"


def decoder(rows: Sequence[Row]) -> str:
    """Write time and memory of the decoder with its loss."""
    chosen = [row for row in rows if row.question == "decoder" and row.median_us]
    if not chosen:
        return ""
    lines = [
        [
            row.implementation,
            f"{row.vocab_size:,}",
            f"{row.batch_size * row.steps:,}",
            duration(row.median_us),
            _ratio(row),
            "" if row.peak_bytes is None else size(row.peak_bytes),
        ]
        for row in chosen
    ]
    text = "The tied decoder with its cross entropy, forward and backward:"
    head = ["implementation", "V", "tokens", "time", "times as fast", "highest use"]
    return f"{text}\n\n{table(head, lines)}"


def dropout_cost(rows: Sequence[Row]) -> str:
    """Write what the dropouts cost."""
    chosen = [r for r in rows if r.question == DROPOUT_COST and r.times_as_fast]
    chosen = [row for row in chosen if row.passes == "training" and row.launched == "eager"]
    if not chosen:
        return ""
    lines = [[row.implementation, f"{1 / row.times_as_fast:.2f}"] for row in chosen]
    text = "The dropouts' cost: the time over that of the same backend without them."
    return f"{text}\n\n{table(['forward and backward', 'time'], lines)}"


def memory(rows: Sequence[Row]) -> str:
    """Write the memory of a layer."""
    chosen = [row for row in rows if row.question == "memory"]
    if not chosen:
        return ""
    lines = [
        [
            row.implementation,
            *("" if n is None else size(n) for n in (row.saved_bytes, row.peak_bytes)),
        ]
        for row in chosen
    ]
    first = chosen[0]
    text = (
        f"Memory of the layer {first.input_size}→{first.hidden_size}, B = {first.batch_size}, "
        f"T = {first.steps}: what the forward keeps for the backward, and the highest use of both."
    )
    return f"{_wrapped(text)}\n\n{table(['implementation', 'kept', 'highest'], lines)}"


def predicting(rows: Sequence[Row]) -> str:
    """Write the speed of predictions, and what int8 does to it and to the answers."""
    wanted = ("predict", "int8_accuracy", "generate")
    chosen = [row for row in rows if row.question in wanted and row.tokens_per_second]
    if not chosen:
        return ""
    lines = [
        [
            row.implementation,
            row.passes,
            str(row.steps),
            str(row.batch_size),
            f"{row.tokens_per_second:,.0f}",
            f"{_ratio(row)} {row.baseline}" if row.baseline != row.implementation else "1.00",
        ]
        for row in chosen
    ]
    text = (
        "Predictions of a classifier, texts of so many tokens each on average; the last ones are "
        "those of a language model that writes one text:"
    )
    head = ["implementation", "texts", "tokens", "batch", "tokens/s", "times as fast as"]
    return f"{_wrapped(text)}\n\n{table(head, lines, left=2)}"


def tokenizing(rows: Sequence[Row]) -> str:
    """Write the speed of the tokenizers."""
    chosen = [row for row in rows if row.question == "tokenize" and row.tokens_per_second]
    if not chosen:
        return ""
    lines = [[r.implementation, f"{r.tokens_per_second:,.0f}", _ratio(r)] for r in chosen]
    head = ["tokenizer, in one process", "tokens/s", "times as fast"]
    return f"Text to token ids:\n\n{table(head, lines)}"


def reached(rows: Sequence[Row]) -> str:
    """Write which goals are met."""
    lines = "\n".join(f"- {line}" for line in goals.lines(rows))
    return f"Ratios that were aimed at:\n\n{lines}" if lines else ""


_SECTIONS = (
    *(layers, language_model, other_sizes, decoder, dropout_cost, memory),
    *(predicting, tokenizing, reached),
)


def _where(rows: Sequence[Row], name: str) -> str:
    commits = ", ".join(
        dict.fromkeys(row.commit + (" with changes" if row.dirty else "") for row in rows)
    )
    text = (
        f"{_machine(rows[0])}; commit {commits}; [`benchmarks/results/{name}`]"
        f"(../benchmarks/results/{name}) has all rows."
    )
    return _wrapped(text)


def _machine(row: Row) -> str:
    return f"{row.device}, {row.cores} cores, {row.threads} threads, torch {row.torch}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _shape(row: Row) -> tuple[str, str, str]:
    layer = f"{row.input_size}→{row.hidden_size}"
    name = f"stack {row.input_size}→...→{row.input_size}" if row.question == "stack" else layer
    return name, row.dtype, str(row.batch_size)


def _time(row: Row) -> str:
    return duration(row.median_us) if row.median_us is not None else ""


def _ratio(row: Row) -> str:
    return "" if row.times_as_fast is None else f"{row.times_as_fast:.2f}"


def _compared_with(row: Row) -> str:
    ratio = _ratio(row)
    return f"{_time(row)} ({ratio})" if ratio else _time(row)
