"""The proofreading task: have two neighbouring words of this sentence been swapped?"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import NamedTuple

from ulmfit_fast.studies.docstrings import Document
from ulmfit_fast.studies.prose import sentence_key, split_sentences

LABELS = ("intact", "swapped")

_TOKEN = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*|\d+(?:\.\d+)?|[^\w\s]")
# A word that may move: a blank, bracket or quote before it, at most what ends a phrase behind it.
_MOVABLE = re.compile(
    r"(?<![^\s(\"])(?:[Aa]|[A-Za-z]{2,}(?:['-][A-Za-z]+)*)(?=[\s,;:.!?)\"]|$)(?!\.\w)"
)
# Starts and ends like a sentence, and holds only words, numbers and the marks of prose.
_SENTENCE = re.compile(r"[A-Z](?=[a-z ])[A-Za-z0-9 ,;:.()'\"-]*[a-z)\"][.!?]")
_CODE_LIKE = re.compile(
    r"[a-z]\.[A-Za-z]{2}|[a-z][A-Z]|\b[A-Za-z]+\d|\b(?![Aa]\b)[A-Za-z]\b(?![.'])|\b[A-Z]{3,}\b"
)
_MIN_TOKENS, _MAX_TOKENS = 8, 25
_MIN_PAIRS = 3
# A document that shares this many words in a row with a held-out sentence gives its order away.
_RUN = 8


class SwapTask(NamedTuple):
    """Sentences to classify, and the documents that a language model may read beforehand.

    >>> from ulmfit_fast.studies.docstrings import Document
    >>> words = "red green blue black white brown".split()
    >>> texts = [f"Here {a} or {b} may be put first." for a in words for b in words]
    >>> documents = [Document(f"colours {n}", text) for n, text in enumerate(texts)]
    >>> task = build_task(documents, held_out=4, train=8, seed=0)
    >>> len(task.train_texts), sorted(task.test_labels), len(task.lm_documents)
    (8, ['intact', 'intact', 'swapped', 'swapped'], 32)

    Args:
        train_texts: sentences in random order; each even number from the front is balanced.
        train_labels: "intact" or "swapped" for each.
        test_texts: sentences from documents that give no training sentence.
        test_labels: "intact" or "swapped" for each.
        lm_documents: the documents that share nothing with the test sentences; the training
            sentences are from these.
        held_out: the test sentences before any swap, for `without_sentences` on another corpus.
    """

    train_texts: list[str]
    train_labels: list[str]
    test_texts: list[str]
    test_labels: list[str]
    lm_documents: list[Document]
    held_out: list[str]

    def subset(self, count: int, seed: int) -> tuple[list[str], list[str]]:
        """Draw a balanced part of the training sentences.

        >>> labels = ["intact", "swapped"] * 2
        >>> task = SwapTask(["A b.", "B a.", "C d.", "D c."], labels, [], [], [], [])
        >>> sorted(task.subset(2, seed=0)[1])
        ['intact', 'swapped']

        Args:
            count: number of sentences; even, at most as many as there are.
            seed: decides which; equal seeds give nested subsets for growing counts.

        Returns:
            The sentences and their labels.

        Raises:
            ValueError: count is odd, not positive or more than there are.
        """
        if count < 2 or count % 2 or count > len(self.train_texts):
            raise ValueError(
                f"count={count} must be even and from 2 to {len(self.train_texts)}, the number of "
                "training sentences"
            )
        # Sentences stand in pairs of one each, so a choice of pairs is balanced.
        pairs = list(range(0, len(self.train_texts), 2))
        random.Random(seed).shuffle(pairs)
        chosen = [index for first in pairs[: count // 2] for index in (first, first + 1)]
        return [self.train_texts[i] for i in chosen], [self.train_labels[i] for i in chosen]


def build_task(
    documents: Sequence[Document], *, held_out: int = 1500, train: int = 3000, seed: int
) -> SwapTask:
    """Make the proofreading task from documents: half of the sentences with one swap.

    Each sentence is used once, so both classes draw on the same distribution of words, lengths,
    capitals and punctuation; only the order of one pair differs. The first word never moves, nor
    does a word next to punctuation jump over it.

    >>> build_task([], held_out=2, train=2, seed=0)
    Traceback (most recent call last):
    ValueError: held_out=2 and train=2 need as many usable sentences, the documents hold 0 and 0 \
that share nothing with them; pass more documents or ask for fewer

    Args:
        documents: the target corpus.
        held_out: number of test sentences; even, so that the labels balance.
        train: number of training sentences; even.
        seed: decides the split, the order, the labels and the swaps.

    Returns:
        The task; equal for equal arguments.

    Raises:
        ValueError: a count is odd or not positive, or there are too few sentences.
    """
    for name, count in (("held_out", held_out), ("train", train)):
        if count < 2 or count % 2:
            raise ValueError(
                f"{name}={count} must be even and at least 2, so that the labels balance"
            )
    rng = random.Random(seed)
    pools = [pool for pool in usable_sentences(documents) if pool]
    rng.shuffle(pools)

    # Whole documents, so that one document never serves both sides; what the last one holds beyond
    # the number asked for is not used, and still kept from the language model.
    test = list(islice(chain.from_iterable(pools), held_out))
    used = set(test)
    touched = [sentence for pool in pools if not used.isdisjoint(pool) for sentence in pool]
    lm_documents = without_sentences(documents, touched)
    rest = list(chain.from_iterable(usable_sentences(lm_documents)))
    if len(test) < held_out or len(rest) < train:
        raise ValueError(
            f"held_out={held_out} and train={train} need as many usable sentences, the documents "
            f"hold {len(test)} and {len(rest)} that share nothing with them; "
            "pass more documents or ask for fewer"
        )
    held = rng.sample(test, held_out)
    test_texts, test_labels = _swap_half(held, rng)
    train_texts, train_labels = _swap_half(rng.sample(rest, train), rng)
    return SwapTask(train_texts, train_labels, test_texts, test_labels, lm_documents, held)


def usable_sentences(documents: Iterable[Document]) -> Iterator[list[str]]:
    """Yield for each document its sentences that can carry the task; each sentence once over all.

    >>> from ulmfit_fast.studies.docstrings import Document
    >>> text = "Return x. The nodes are visited in the order of their distance."
    >>> list(usable_sentences([Document("a", text), Document("b", text)]))
    [['The nodes are visited in the order of their distance.'], []]

    Args:
        documents: documents as `read_docstrings` gives them.

    Yields:
        English sentences of 8 to 25 words and punctuation marks with at least three pairs that
        may be swapped.
    """
    seen: set[str] = set()
    for document in documents:
        pool = []
        for sentence in _sentences(document):
            if not _is_usable(sentence):
                continue
            # Sorted: a sentence that differs in its order only must not serve the other class.
            key = " ".join(sorted(sentence_key(sentence).split()))
            if key not in seen:
                seen.add(key)
                pool.append(sentence)
        yield pool


def without_sentences(documents: Iterable[Document], sentences: Iterable[str]) -> list[Document]:
    """Leave out each document that holds one of the sentences, or eight words in a row of one.

    >>> from ulmfit_fast.studies.docstrings import Document
    >>> kept = Document("a", "Nodes come first.")
    >>> dropped = Document("b", "Add it. See the other one.")
    >>> without_sentences([kept, dropped], ["See the other one."])
    [Document(source='a', text='Nodes come first.')]

    Args:
        documents: a corpus for a language model.
        sentences: the held-out sentences before any swap.

    Returns:
        The other documents, in order.
    """
    held_out: dict[int, set[tuple[str, ...]]] = {}
    for sentence in sentences:
        words = sentence_key(sentence).split()
        length = min(_RUN, len(words))
        held_out.setdefault(length, set()).update(_runs(words, length))

    def is_clear(document: Document) -> bool:
        own = [sentence_key(sentence).split() for sentence in _sentences(document)]
        return all(
            runs.isdisjoint(_runs(words, length))
            for length, runs in held_out.items()
            for words in own
        )

    return [document for document in documents if is_clear(document)]


def swap_words(sentence: str, rng: random.Random) -> str:
    """Swap two neighbouring words, chosen evenly among the pairs that give nothing else away.

    >>> swap_words("The (small) graph is empty.", random.Random(0))
    'The (small) graph empty is.'

    Args:
        sentence: a sentence with at least one such pair.
        rng: source of the choice.

    Returns:
        The sentence with one pair swapped and everything else as it was.

    Raises:
        ValueError: the sentence has no pair that may be swapped.
    """
    pairs = _pairs(sentence)
    if not pairs:
        raise ValueError(
            f"sentence {sentence!r} has no two neighbouring words to swap; filter it out"
        )
    left, right = rng.choice(pairs)
    return (
        sentence[: left.start()]
        + right[0]
        + sentence[left.end() : right.start()]
        + left[0]
        + sentence[right.end() :]
    )


def _sentences(document: Document) -> Iterator[str]:
    for paragraph in document.text.split("\n"):
        yield from split_sentences(paragraph)


def _is_usable(sentence: str) -> bool:
    if not _SENTENCE.fullmatch(sentence) or _CODE_LIKE.search(sentence):
        return False
    tokens = _TOKEN.findall(sentence)
    if not _MIN_TOKENS <= len(tokens) <= _MAX_TOKENS:
        return False
    words = sum(1 for token in tokens if token[0].isalpha())
    return words >= 0.8 * len(tokens) and len(_pairs(sentence)) >= _MIN_PAIRS


def _pairs(sentence: str) -> list[tuple[re.Match[str], re.Match[str]]]:
    """List neighbouring words with one blank between them; the sentence's first word is out."""
    words = [m for m in _MOVABLE.finditer(sentence) if m.start() > 0]
    return [
        (left, right)
        for left, right in pairwise(words)
        if right.start() == left.end() + 1
        and sentence[left.end()] == " "
        and left[0].lower() != right[0].lower()
    ]


def _runs(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def _swap_half(sentences: list[str], rng: random.Random) -> tuple[list[str], list[str]]:
    texts, labels = [], []
    for first in range(0, len(sentences), 2):
        # One of each two: any even number of texts from the front is balanced.
        swapped = rng.randrange(2)
        for offset, sentence in enumerate(sentences[first : first + 2]):
            texts.append(swap_words(sentence, rng) if offset == swapped else sentence)
            labels.append(LABELS[offset == swapped])
    return texts, labels
