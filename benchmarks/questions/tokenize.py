"""How fast are texts turned into ids, beside spaCy's blank English tokenizer, in one process?

The texts are the standard library's help topics. spaCy remembers the words of earlier calls and
stops at its own words; ours begins anew with each call, applies the rules and ends with ids.
"""

from __future__ import annotations

from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

from benchmarks.compared.optional import load
from benchmarks.harness.cli import run_question
from benchmarks.harness.measure import Entry, compare
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from ulmfit_fast.data import Tokenizer

QUESTION = "tokenize"
SPACY = "spaCy alone"


def run(settings: Settings) -> list[Row]:
    """Measure the kinds of tokenizer; nothing of this runs on a GPU."""
    if settings.over(QUESTION) or settings.gpu:
        return []
    texts = sorted(topics.values())[: settings.sized(None, None, 2)]
    settings.say(f" {len(texts)} texts, {sum(map(len, texts)):,} characters")
    entries = []
    try:
        entries.append(_spacy(settings, texts))
    except ImportError as error:
        settings.note(f"{QUESTION}: {error}")
    for kind in ("word", "subword", "spacy"):
        try:
            tokenizer = Tokenizer.train(texts, kind, max_vocab=4_000, min_freq=2)
        except ImportError as error:
            settings.note(f"{QUESTION}: {error}")
            continue
        entries.append(_ours(settings, texts, tokenizer))
    return compare(entries, settings, question=QUESTION, baseline=SPACY)


def _spacy(settings: Settings, texts: list[str]) -> Entry:
    spacy: Any = load("spaCy", "spacy")
    split: Callable[[str], Any] = spacy.blank("en").tokenizer

    def step(turn: int) -> list[list[str]]:
        return [[word.text for word in split(text)] for text in texts]

    tokens = sum(map(len, step(0)))
    return Entry(SPACY, "tokens", settings.dtype, step, tokens=tokens)


def _ours(settings: Settings, texts: list[str], tokenizer: Tokenizer) -> Entry:
    def share_of_wrong_ids() -> float:
        wrong = total = 0
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            wanted = [tokenizer.vocab.index(token) for token in tokenizer.tokens(text)]
            total += len(wanted)
            if len(ids) != len(wanted):
                return float("inf")
            wrong += sum(a != b for a, b in zip(ids.tolist(), wanted, strict=True))
        return wrong / total

    return Entry(
        f"ulmfit_fast {tokenizer.kind}",
        "tokens",
        settings.dtype,
        lambda turn: tokenizer.encode_batch(texts),
        share_of_wrong_ids,
        tokens=sum(map(len, tokenizer.encode_batch(texts))),
    )


if __name__ == "__main__":
    run_question(run, __doc__)
