"""How many texts does a classifier answer in a second, by length and batch size, int8 and bfloat16?

From text to probability, tokenizer included: one text after the other, batches in the order of the
texts that are padded to their longest, and ours. The weights are random, so the rows of int8 and
bfloat16 tell their speed and distance; `int8_accuracy` asks of a trained classifier, by name only.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from torch import Tensor

import ulmfit_fast as uf
from benchmarks.harness import check, show
from benchmarks.harness.cli import run_question
from benchmarks.harness.measure import Entry, compare, measured
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.timing import time_interleaved
from ulmfit_fast.data import ClassifierBatches, Tokenizer
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, TextClassifier
from ulmfit_fast.serving import quantize
from ulmfit_fast.training.evaluation import recalibrate_batch_norm

QUESTION, ACCURACY = "predict", "int8_accuracy"
ONE, UNSORTED = "one text at a time", "unsorted batches"
OURS, INT8, BFLOAT16 = "ulmfit_fast", "ulmfit_fast int8", "ulmfit_fast bfloat16"
# Weights in 8 bits and activations in 7 leave two digits, as do the 8 bits of bfloat16.
_TOLERANCE = 0.1


class Texts(NamedTuple):
    """Texts of a kind.

    Attributes:
        name: "short" or "long".
        texts: the texts.
        tokens: of all texts together.
        batch_size: texts of a batch.
    """

    name: str
    texts: list[str]
    tokens: int
    batch_size: int


def model_of(settings: Settings) -> uf.ULMFiT:
    """Return a classifier with random weights and a tokenizer for help topics."""
    sizes = settings.sized({}, {}, {"emb_size": 6, "hidden_size": 16, "num_layers": 2})
    torch.manual_seed(0)
    model = uf.ULMFiT(device=settings.device, progress=False)
    model.tokenizer = Tokenizer.train(topics.values(), "word", max_vocab=4_000, min_freq=2)
    config = AWDLSTMConfig.classifier(len(model.tokenizer.vocab), **sizes)
    model.classifier = TextClassifier(AWDLSTM(config), 2).to(settings.device).eval()
    model.labels = ["no", "yes"]
    return model


def texts_of(settings: Settings, model: uf.ULMFiT) -> list[Texts]:
    """Cut texts of random length out of the topics."""
    assert model.tokenizer is not None
    words = " ".join(topics[name] for name in sorted(topics)).split()
    draw, kinds = random.Random(0), []
    groups: list[tuple[str, int, int, tuple[int, ...]]] = settings.sized(
        [("short", 24, 40, (8, 24)), ("long", 4, 200, (4,))],
        [("short", 1024, 40, (64, 512)), ("long", 256, 300, (64,))],
        [("short", 4, 4, (2,)), ("long", 3, 9, (2,))],
    )
    for name, count, longest, batch_sizes in groups:
        lengths = [draw.randint(longest // 8, longest) for _ in range(count)]
        starts = [draw.randrange(len(words) - longest) for _ in lengths]
        texts = [" ".join(words[a : a + n]) for a, n in zip(starts, lengths, strict=True)]
        tokens = sum(map(len, model.tokenizer.encode_batch(texts)))
        kinds += [Texts(name, texts, tokens, size) for size in batch_sizes]
    return kinds


def _with_fitted_statistics(model: uf.ULMFiT, texts: Sequence[str]) -> uf.ULMFiT:
    """Return a copy that answers differently to different texts, lest all orders look right.

    Random weights answer all texts much alike; BatchNorm, fitted to some, makes much of little.
    """
    copied = copy.deepcopy(model)
    assert copied.tokenizer is not None and copied.classifier is not None
    documents = copied.tokenizer.encode_batch(texts)
    recalibrate_batch_norm(copied.classifier, ClassifierBatches(documents, None, len(documents)))
    return copied


def run(settings: Settings) -> list[Row]:
    """Measure the ways to classify a list of texts, and on a CPU other numbers beside float32."""
    if settings.over(QUESTION):
        return []
    model = model_of(settings)
    rows: list[Row] = []
    timed: set[str] = set()
    groups = texts_of(settings, model)
    apart = _with_fitted_statistics(model, groups[0].texts[:64])
    for asked in groups:
        if settings.over(f"{QUESTION}: {asked.name} texts, B={asked.batch_size}"):
            continue
        settings.say(_described(asked))
        wanted = functools.cache(functools.partial(_truth, apart, asked.texts))
        ways = {
            UNSORTED: functools.partial(_unsorted, apart, batch_size=asked.batch_size),
            OURS: functools.partial(_ours, apart, batch_size=asked.batch_size),
        }
        if asked.name not in timed:
            # It knows no batch size, and takes longer than all others together.
            ways[ONE] = functools.partial(_unsorted, apart, batch_size=1)
        timed.add(asked.name)
        entries = [_entry(name, way, asked, wanted) for name, way in ways.items()]
        rows += compare(
            entries,
            settings,
            question=QUESTION,
            baseline=UNSORTED,
            repeats=min(3, settings.repeats),
            **_shape(model, asked),
        )
    if settings.gpu:
        return rows
    small = quantize(model)
    # One text a batch, where fewer bits gain most, and the smallest batch of each kind.
    for asked in {asked.name: asked for asked in reversed(groups)}.values():
        for batch_size in (1, asked.batch_size):
            one = asked._replace(batch_size=batch_size)
            if not settings.over(f"{QUESTION}: int8, {one.name} texts, B={batch_size}"):
                rows += _compare_precisions(settings, model, small, one, QUESTION)
    return rows


def run_accuracy(settings: Settings) -> list[Row]:
    """Train the quick demo's classifier, and compare its answers in int8 with those in float32."""
    if settings.over(ACCURACY) or settings.gpu:
        return []
    model, texts, labels = _trained(settings)
    assert model.tokenizer is not None
    small = quantize(model)
    tokens = sum(map(len, model.tokenizer.encode_batch(texts)))
    rows: list[Row] = []
    expected = model.predict(texts)
    for batch_size in (1, 64):
        answers = small.predict(texts, batch_size=batch_size)
        shares = [_share_equal(found, labels) for found in (expected, answers)]
        settings.note(
            f"{ACCURACY}, B={batch_size}: accuracy {shares[0]:.2%} in float32, {shares[1]:.2%} in "
            f"int8 on {len(texts)} held-out sentences; {_share_equal(answers, expected):.2%} of "
            "the answers are the same"
        )
        asked = Texts("held-out", texts, tokens, batch_size)
        right = f"{asked.name} texts, {shares[1]:.1%} right, {shares[0]:.1%} in float32"
        found = _compare_precisions(settings, model, small, asked, ACCURACY)[:1]
        rows += [replace(row, passes=right) for row in found]
    return rows


def _share_equal(first: Sequence[object], second: Sequence[object]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def _trained(settings: Settings) -> tuple[uf.ULMFiT, list[str], list[str]]:
    from ulmfit_fast.studies.docstrings import read_docstrings
    from ulmfit_fast.studies.settings import QUICK
    from ulmfit_fast.studies.swapped_words import build_task, without_sentences

    target = read_docstrings(QUICK.target[0])
    count, held_out = settings.sized((max(QUICK.label_counts), QUICK.held_out), (0, 0), (40, 20))
    task = build_task(target, held_out=held_out, train=count, seed=0)
    general = without_sentences(read_docstrings(QUICK.general[0]), task.held_out)
    some = settings.sized(len(general), 0, 60)
    model = uf.ULMFiT(**QUICK.model, device="cpu", progress=False)
    model.pretrain([document.text for document in general[:some]], **QUICK.pretrain)
    texts = [document.text for document in task.lm_documents[:some]]
    model.fine_tune_lm(texts, **QUICK.fine_tune)
    model.fit_classifier(*task.subset(count, seed=0), epochs=QUICK.epochs[-1], **QUICK.schedule)
    return model, task.test_texts, task.test_labels


def _described(asked: Texts) -> str:
    return (
        f" {len(asked.texts)} {asked.name} texts, {asked.tokens / len(asked.texts):.0f} tokens on "
        f"average, B={asked.batch_size}"
    )


def _shape(model: uf.ULMFiT, asked: Texts) -> dict[str, int]:
    """Return the fields of the rows; documents a second are tokens a second over `steps`."""
    assert model.classifier is not None
    config = model.classifier.encoder.config
    return {
        "input_size": config.emb_size,
        "hidden_size": config.hidden_size,
        "batch_size": asked.batch_size,
        "steps": round(asked.tokens / len(asked.texts)),
        "vocab_size": config.vocab_size,
    }


Way = Callable[[list[str]], Tensor]


def _entry(name: str, way: Way, asked: Texts, wanted: Callable[[], Tensor]) -> Entry:
    return Entry(
        name,
        f"{asked.name} texts",
        torch.float32,
        lambda turn: way(asked.texts),
        lambda: check.error_of([way(asked.texts)], [wanted()]),
        tokens=asked.tokens,
    )


def _ours(model: uf.ULMFiT, texts: list[str], batch_size: int) -> Tensor:
    return torch.from_numpy(model.predict_proba(texts, batch_size=batch_size))


@torch.no_grad()
def _unsorted(model: uf.ULMFiT, texts: list[str], batch_size: int) -> Tensor:
    """Classify batch after batch in the order of the texts, each padded to its longest."""
    assert model.tokenizer is not None and model.classifier is not None
    found = []
    for start in range(0, len(texts), batch_size):
        ids = model.tokenizer.encode_batch(texts[start : start + batch_size])
        tokens = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(one).long() for one in ids],
            padding_value=model.classifier.encoder.config.pad_id,
        )
        lengths = torch.tensor([len(one) for one in ids])
        logits = model.classifier(tokens.to(model.device), lengths.to(model.device))
        found.append(logits.softmax(1).cpu())
    return torch.cat(found)


def _truth(model: uf.ULMFiT, texts: list[str]) -> Tensor:
    assert model.classifier is not None
    exact = copy.copy(model)
    exact.classifier = copy.deepcopy(model.classifier).double()
    with uf.backend.use("reference"):
        return _unsorted(exact, texts, batch_size=len(texts))


def _in_bfloat16(model: uf.ULMFiT, texts: list[str], batch_size: int) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return _ours(model, texts, batch_size)


def _compare_precisions(
    settings: Settings, model: uf.ULMFiT, small: uf.ULMFiT, asked: Texts, question: str
) -> list[Row]:
    """Time int8 and bfloat16 beside float32; their error is the distance of the probabilities."""
    size, texts = asked.batch_size, asked.texts
    ways: dict[str, Callable[[], Tensor]] = {
        OURS: functools.partial(_ours, model, texts, size),
        INT8: functools.partial(_ours, small, texts, size),
        BFLOAT16: functools.partial(_in_bfloat16, model, texts, size),
    }
    wanted = ways[OURS]()
    settings.say(_described(asked))
    times, _ = time_interleaved(
        {name: lambda turn, way=way: way() for name, way in ways.items()},
        repeats=min(3, settings.repeats),
        cuda=False,
        warm_up=not settings.tiny,
    )
    rows = []
    for name, dtype in ((INT8, torch.int8), (BFLOAT16, torch.bfloat16)):
        error = check.error_of([ways[name]()], [wanted])
        entry = Entry(name, "", dtype, lambda turn: None, tokens=asked.tokens)
        found = measured(entry, times[name], times[OURS].median) if error <= _TOLERANCE else {}
        row = settings.row(
            question=question,
            implementation=name,
            passes=f"{asked.name} texts",
            dtype=str(dtype).removeprefix("torch."),
            baseline=OURS,
            error=float(f"{error:.3g}"),
            right=error <= _TOLERANCE,
            **_shape(model, asked),
            **found,
        )
        settings.say(show.line(row))
        rows.append(row)
    return rows


if __name__ == "__main__":
    run_question(run, __doc__)
