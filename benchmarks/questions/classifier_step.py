"""How fast is a training step of the classifier over long documents?

With all layers trained, and with the last LSTM layer and the head alone, as at the start of gradual
unfreezing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.compared import lm_ours, lm_plain
from benchmarks.compared.classifier_plain import PlainClassifier
from benchmarks.harness import check, roofline
from benchmarks.harness.cli import run_question
from benchmarks.harness.measure import Entry, compare
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.timing import INPUTS
from benchmarks.questions.lm_step import without_dropout
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, TextClassifier

QUESTION = "classifier_step"
TODAY = "fastai-style"
OURS = "ulmfit_fast"
ALL, LAST = "all layers", "last layer"
_CLASSES = 2


class Problem(NamedTuple):
    """The model and the documents of a run; sizes in tokens."""

    config: AWDLSTMConfig
    batch_size: int
    steps: int
    bptt: int
    max_len: int
    start: dict[str, Tensor]
    device: str

    def batches(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Draw random (T, B) tokens with lengths and labels; the longest text fills all steps."""
        found = []
        drawn = torch.Generator().manual_seed(1)
        size = (self.steps, self.batch_size)
        shortest = self.steps - self.bptt // 2
        for _ in range(INPUTS):
            tokens = torch.randint(2, self.config.vocab_size, size, generator=drawn)
            lengths = torch.randint(shortest, self.steps + 1, size[1:], generator=drawn)
            lengths[0] = self.steps
            labels = torch.arange(self.batch_size) % _CLASSES
            found.append(tuple(t.to(self.device) for t in (tokens, lengths, labels)))
        return found


def problem(settings: Settings) -> Problem:
    """Return the sizes of a run."""
    vocab_size, batch_size, steps = settings.sized((15_008, 8, 288), (60_008, 64, 2880), (40, 4, 9))
    bptt, max_len = settings.sized((72, 144), (72, 1440), (3, 6))
    sizes = settings.sized({}, {}, {"emb_size": 6, "hidden_size": 16, "num_layers": 2})
    config = AWDLSTMConfig.classifier(vocab_size, **sizes)
    torch.manual_seed(0)
    start = _our_model(config, bptt, max_len).state_dict()
    return Problem(config, batch_size, steps, bptt, max_len, start, settings.device)


def run(settings: Settings) -> list[Row]:
    """Measure the step with all layers trained, and with few."""
    if settings.over(QUESTION):
        return []
    asked = problem(settings)
    settings.say(
        f" V={asked.config.vocab_size:,}, B={asked.batch_size}, documents of {asked.steps} tokens, "
        f"the last {asked.max_len} pooled; checked with every dropout off"
    )
    batches = asked.batches()
    rows = []
    for passes in (ALL, LAST):
        if settings.over(f"{QUESTION}: {passes}"):
            continue
        entries = []
        cost = cost_of(asked, passes, settings.dtype.itemsize)
        wanted = functools.cache(lambda p=passes: _results(_plain, asked, torch.float64, p))
        for name, make in ((TODAY, _plain), (OURS, _ours)):
            step, _ = make(asked, settings.dtype, passes, drop=True)
            entries.append(
                Entry(
                    name,
                    passes,
                    settings.dtype,
                    lambda turn, step=step: step(*batches[turn % len(batches)]),
                    functools.partial(_error, make, asked, settings.dtype, passes, wanted),
                    weight_p=asked.config.weight_p,
                    floor_us=roofline.ceilings(settings).floor_us(cost, settings.dtype),
                    tokens=asked.batch_size * asked.steps,
                )
            )
        rows += compare(
            entries,
            settings,
            question=QUESTION,
            baseline=TODAY,
            repeats=settings.sized(min(3, settings.repeats), 5, settings.repeats),
            input_size=asked.config.emb_size,
            hidden_size=asked.config.hidden_size,
            batch_size=asked.batch_size,
            steps=asked.steps,
            vocab_size=asked.config.vocab_size,
        )
    return rows


def cost_of(asked: Problem, passes: str, itemsize: int) -> roofline.Cost:
    """Return the cost of the layers: forward over all tokens, backward over those that are pooled.

    Layers that are not trained have no backward. The head is small.
    """
    config, total = asked.config, roofline.Cost(0.0, 0.0, 0)
    widths = [config.emb_size, *[config.hidden_size] * (config.num_layers - 1), config.emb_size]
    for layer, (e, h) in enumerate(itertools.pairwise(widths)):
        trained = passes == ALL or layer == config.num_layers - 1
        before = asked.steps - asked.max_len
        for steps, training in ((before, False), (asked.max_len, trained)):
            total += roofline.layer_cost(e, h, asked.batch_size, steps, itemsize, training)
    return total


Step = Callable[[Tensor, Tensor, Tensor], Tensor]
Made = tuple[Step, dict[str, nn.Parameter]]


def _our_model(config: AWDLSTMConfig, bptt: int, max_len: int, drop: bool = True) -> TextClassifier:
    head = {} if drop else {"output_p": 0.0, "head_p": 0.0}
    return TextClassifier(AWDLSTM(config), _CLASSES, bptt=bptt, max_len=max_len, **head)


def _ours(asked: Problem, dtype: torch.dtype, passes: str, drop: bool) -> Made:
    config = asked.config if drop else without_dropout(asked.config)
    model = _our_model(config, asked.bptt, asked.max_len, drop)
    model.load_state_dict(asked.start)
    model.to(asked.device).train()
    # Over a few like documents batch normalisation would blow up what half precision rounds off.
    model.head.train(drop)
    named = dict(model.named_parameters())
    _freeze(named, passes, asked.config.num_layers)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True, **lm_plain.ADAM)

    def step(tokens: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        with lm_ours.autocast(asked.device, dtype):
            loss = F.cross_entropy(model(tokens, lengths).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, named


def _plain(asked: Problem, dtype: torch.dtype, passes: str, drop: bool) -> Made:
    config = asked.config if drop else without_dropout(asked.config)
    head_p = (0.4, 0.1) if drop else (0.0, 0.0)
    model = PlainClassifier(config, _CLASSES, asked.bptt, asked.max_len, head_p)
    if dtype == torch.float64:
        model.double()
    model.load(asked.start)
    model.to(asked.device).train()
    model.head.train(drop)
    named = model.by_name()
    _freeze(dict(model.named_parameters()), passes, asked.config.num_layers)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=False, **lm_plain.ADAM)

    def step(tokens: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        with lm_ours.autocast(asked.device, dtype):
            scores = model(tokens.t(), lengths)
        # In half precision the loss is taken in float32; the truth stays in float64.
        loss = F.cross_entropy(scores if dtype == torch.float64 else scores.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, named


def _freeze(named: dict[str, nn.Parameter], passes: str, layers: int) -> None:
    """Leave the gradient to the last layer and the head, where only these are trained."""
    if passes == LAST:
        for name, parameter in named.items():
            parameter.requires_grad_(name.startswith("head") or f"rnns.{layers - 1}." in name)


def _results(
    make: Callable[..., Made], asked: Problem, dtype: torch.dtype, passes: str
) -> list[Tensor]:
    """Return loss and gradients of a step without dropout on the first few tokens."""
    step, named = make(asked, dtype, passes, drop=False)
    tokens, lengths, labels = asked.batches()[0]
    if asked.device == "cpu":
        # Over one window's end, of full rows.
        tokens = tokens[: asked.bptt + 4]
        lengths = torch.full_like(lengths, len(tokens))
    loss = step(tokens, lengths, labels)
    names = [f"encoder.rnns.{asked.config.num_layers - 1}.weight_hh_l0"]
    names += [] if passes == LAST else ["encoder.encoder.weight"]
    return [loss.reshape(1), *(named[name].grad for name in names)]


def _error(
    make: Callable[..., Made],
    asked: Problem,
    dtype: torch.dtype,
    passes: str,
    wanted: Callable[[], list[Tensor]],
) -> float:
    return check.error_of(_results(make, asked, dtype, passes), wanted())


if __name__ == "__main__":
    run_question(run, __doc__)
