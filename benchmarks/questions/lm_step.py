"""How fast is a whole training step of the language model, and where does its time go?

The step takes T tokens of B streams: forward, cross entropy with AR and TAR, backward, clipping
and Adam. Its parts are timed one by one, forward and backward of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.compared import lm_ours, lm_parts, lm_plain, optional_lm
from benchmarks.compared.lm_plain import Problem
from benchmarks.harness import check, machine, roofline
from benchmarks.harness.cli import run_question
from benchmarks.harness.measure import Entry, compare
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.timing import UNABLE
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel

QUESTION = "lm_step"
SIZES = "lm_sizes"
TODAY = "fastai-style"
OURS = "ulmfit_fast"
CAPTURED = "ulmfit_fast, captured"
FASTAI = "fastai"

Step = Callable[[Tensor, Tensor], Tensor]
Made = tuple[Step, dict[str, nn.Parameter]]


class Sizes(NamedTuple):
    """A language model and its batch: E, H, layers, V, B and T."""

    emb_size: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    batch_size: int
    steps: int


# The paper's with a batch of 64; the demo's; one between them.
_ON_REQUEST = (
    Sizes(400, 1152, 3, 15_008, 64, 70),
    Sizes(96, 192, 3, 6_000, 64, 70),
    Sizes(128, 256, 3, 20_000, 64, 70),
)


def problem(settings: Settings, sizes: Sizes | None = None) -> Problem:
    """Return the sizes of a run."""
    if sizes is None:
        sizes = settings.sized(
            Sizes(400, 1152, 3, 15_008, 16, 70),
            Sizes(400, 1152, 3, 60_008, 64, 70),
            Sizes(6, 16, 2, 40, 3, 5),
        )
    emb_size, hidden_size, num_layers, vocab_size, batch_size, steps = sizes
    config = AWDLSTMConfig.language_model(
        vocab_size, emb_size=emb_size, hidden_size=hidden_size, num_layers=num_layers
    )
    torch.manual_seed(0)
    start = LanguageModel(config).state_dict()
    return Problem(config, batch_size, steps, start, settings.device)


def without_dropout(config: AWDLSTMConfig) -> AWDLSTMConfig:
    """Return the same sizes with every dropout off."""
    names = ("input_p", "hidden_p", "embed_p", "weight_p", "gate_p", "output_p")
    return replace(config, **dict.fromkeys(names, 0.0))


def make_ours(
    config: AWDLSTMConfig, problem: Problem, dtype: torch.dtype, capture: bool = False
) -> Made:
    """Return our step and its parameters; captured, it is replayed from a CUDA graph."""
    model = LanguageModel(config)
    model.load_state_dict(problem.start)
    model.to(problem.device)
    return lm_ours.make_step(model, dtype, capture=capture), dict(model.named_parameters())


def make_plain(config: AWDLSTMConfig, problem: Problem, dtype: torch.dtype) -> Made:
    """Return the step as it is written today; float64 is the truth."""
    model = lm_plain.PlainLanguageModel(config)
    if dtype == torch.float64:
        model.double()
    model.load(problem.start)
    model.to(problem.device)
    return lm_plain.PlainStep(model, dtype), model.by_name()


def make_fastai(config: AWDLSTMConfig, problem: Problem, dtype: torch.dtype) -> Made:
    """Return fastai's own step."""
    return optional_lm.fastai_step(config, problem.start, problem.device, dtype)


def run(settings: Settings) -> list[Row]:
    """Measure the step and its parts."""
    if settings.over(QUESTION):
        return []
    asked = problem(settings)
    where = f"V={asked.config.vocab_size:,}, B={asked.batch_size}, T={asked.steps}"
    settings.say(f" {where}; checked with every dropout off, timed with all on")
    rows = []
    for dtype in dtypes(settings):
        rows += _whole(settings, asked, dtype)
    rows += _parts(settings, asked, settings.dtype)
    return rows


def run_sizes(settings: Settings) -> list[Row]:
    """Measure the whole step at other sizes: `python -m benchmarks.report --only lm_sizes`."""
    rows = []
    for sizes in (None,) if settings.tiny or settings.gpu else _ON_REQUEST:
        asked = problem(settings, sizes)
        for dtype in dtypes(settings):
            if settings.over(f"{SIZES} {sizes}"):
                return rows
            rows += _whole(settings, asked, dtype, SIZES)
    return rows


def dtypes(settings: Settings) -> list[torch.dtype]:
    """Return what the step is timed in."""
    if settings.gpu:
        return [settings.dtype, *({torch.float16} - {settings.dtype})]
    why = machine.why_no_bfloat16()
    if why is None:
        return [torch.float32, torch.bfloat16]
    settings.note(f"{QUESTION} in bfloat16: left out, {why}")
    return [torch.float32]


def _whole(
    settings: Settings, asked: Problem, dtype: torch.dtype, question: str = QUESTION
) -> list[Row]:
    makers = {TODAY: make_plain, FASTAI: make_fastai, OURS: make_ours}
    if settings.gpu:
        makers[CAPTURED] = functools.partial(make_ours, capture=True)
    batches = asked.batches()
    wanted = functools.cache(lambda: _results(make_plain, asked, torch.float64, batches))
    floor = roofline.ceilings(settings).floor_us(costs_of(asked, dtype)["step"], dtype)
    entries = []
    for name, make in makers.items():
        try:
            step, _ = make(asked.config, asked, dtype)
        except UNABLE as reason:
            settings.note(f"{QUESTION}: {reason}")
            continue
        entries.append(
            Entry(
                name,
                "step",
                dtype,
                lambda turn, step=step: step(*batches[turn % len(batches)]),
                functools.partial(_error, make, asked, dtype, batches, wanted),
                weight_p=asked.config.weight_p,
                floor_us=floor,
                tokens=asked.batch_size * asked.steps,
            )
        )
    return compare(entries, settings, question=question, baseline=TODAY, **_shape(asked))


def costs_of(asked: Problem, dtype: torch.dtype) -> dict[str, roofline.Cost]:
    """Return the cost of each part, and of the step as a whole."""
    config, tokens = asked.config, asked.batch_size * asked.steps
    widths = [config.emb_size, *[config.hidden_size] * (config.num_layers - 1), config.emb_size]
    # The tied weight stands twice in the state dict.
    shared = asked.start["decoder.weight"].numel()
    parameters = sum(value.numel() for value in asked.start.values()) - shared
    size = dtype.itemsize
    costs = {
        "embedding": roofline.embedding_cost(tokens, config.emb_size, config.vocab_size),
        "layers": roofline.stack_cost(widths, asked.batch_size, asked.steps, size, training=True),
        "decoder": roofline.decoder_cost(tokens, config.emb_size, config.vocab_size, size),
        "optimizer": roofline.adam_cost(parameters),
    }
    return {**costs, "step": sum(costs.values(), roofline.Cost(0.0, 0.0, 0))}


def _results(
    make: Callable[..., Made],
    asked: Problem,
    dtype: torch.dtype,
    batches: list[tuple[Tensor, Tensor]],
) -> list[Tensor]:
    """Return the loss of one step without dropout, and the clipped gradients it leaves."""
    step, named = make(without_dropout(asked.config), asked, dtype)
    # float64 on a CPU takes its time; the first steps show what all would.
    inputs, targets = (ids if asked.device == "cuda" else ids[:8] for ids in batches[0])
    loss = step(inputs.contiguous(), targets.contiguous())
    names = [n for n in sorted(named) if n.endswith(("weight", "weight_hh_l0", "decoder.bias"))]
    names = [n for n in names if n != "decoder.weight"]
    grads = [named[name].grad for name in names]
    assert all(grad is not None for grad in grads), names
    return [loss.reshape(1).clone(), *grads]


def _error(
    make: Callable[..., Made],
    asked: Problem,
    dtype: torch.dtype,
    batches: list[tuple[Tensor, Tensor]],
    wanted: Callable[[], list[Tensor]],
) -> float:
    return check.error_of(_results(make, asked, dtype, batches), wanted())


def _parts(settings: Settings, asked: Problem, dtype: torch.dtype) -> list[Row]:
    if settings.over(f"{QUESTION}: its parts"):
        return []
    rows = []
    makers = {TODAY: lm_parts.plain_parts, OURS: lm_parts.our_parts}
    parts = {name: make(asked, dtype) for name, make in makers.items()}
    costs = costs_of(asked, dtype)
    for part in lm_parts.PARTS:
        entries = [
            Entry(
                name,
                part,
                dtype,
                made[part],
                weight_p=asked.config.weight_p,
                floor_us=roofline.ceilings(settings).floor_us(costs[part], dtype),
            )
            for name, made in parts.items()
        ]
        rows += compare(entries, settings, question=QUESTION, baseline=TODAY, **_shape(asked))
    return rows


def _shape(asked: Problem) -> dict[str, int]:
    return {
        "input_size": asked.config.emb_size,
        "hidden_size": asked.config.hidden_size,
        "batch_size": asked.batch_size,
        "steps": asked.steps,
        "vocab_size": asked.config.vocab_size,
    }


if __name__ == "__main__":
    run_question(run, __doc__)
