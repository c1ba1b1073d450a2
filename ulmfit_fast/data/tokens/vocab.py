"""The words a model knows, and how weights move from one vocabulary to another."""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ulmfit_fast.data.tables import is_table
from ulmfit_fast.system.files import parse_json

__all__ = [
    "BOS",
    "EOS",
    "FLD",
    "MAJ",
    "PAD",
    "REP",
    "SPECIALS",
    "UNK",
    "UP",
    "WREP",
    "Vocab",
    "transfer_rows",
    "vocabulary_of",
]

SPECIALS = ("xxunk", "xxpad", "xxbos", "xxeos", "xxfld", "xxrep", "xxwrep", "xxup", "xxmaj")
_HALF = re.compile("[\ud800-\udfff]")
UNK, PAD, BOS, EOS, FLD, REP, WREP, UP, MAJ = range(len(SPECIALS))


class Vocab:
    """Words and their ids; the nine specials always have the ids 0 to 8.

    >>> vocab = Vocab(["the", "cat"])
    >>> len(vocab), vocab.index("cat"), vocab.index("dog"), vocab.words[8:]
    (11, 10, 0, ('xxmaj', 'the', 'cat'))

    Args:
        words: distinct words in the order of their ids; specials among them are moved to the front.

    Raises:
        TypeError: for a single string, a table, or a word that is not a string.
        ValueError: for a word that occurs twice, or has a lone surrogate, which no file holds.
    """

    def __init__(self, words: Sequence[str]) -> None:
        if isinstance(words, str):
            raise TypeError(f"words is the string {words!r:.60}, expected a list of words")
        # A mapping of words to ids or counts has its words for keys; another table has columns.
        if is_table(words) and not isinstance(words, Mapping):
            raise TypeError(
                f"words is a {type(words).__name__}, expected a list of words; pass the column "
                "that holds them"
            )
        for position, word in enumerate(words):
            if not isinstance(word, str):
                raise TypeError(
                    f"words[{position}] is {word!r:.60} ({type(word).__name__}), expected a str"
                )
            if not word.isascii() and _HALF.search(word):
                raise ValueError(
                    f"words[{position}] is {word!r:.60}, which has half a character, expected "
                    "whole ones; mend or drop the word"
                )
        ordinary = [word for word in words if word not in SPECIALS]
        self._words = (*SPECIALS, *ordinary)
        self._ids = {word: index for index, word in enumerate(self._words)}
        if len(self._ids) < len(self._words):
            word, count = Counter(ordinary).most_common(1)[0]
            raise ValueError(f"{word!r:.60} occurs {count} times in words, expected distinct words")

    @classmethod
    def build(
        cls,
        counts: Mapping[str, int] | Iterable[Iterable[str]],
        max_size: int = 60_000,
        min_freq: int = 3,
    ) -> Vocab:
        """Keep the most frequent words; equal counts stand in alphabetical order.

        >>> Vocab.build([["b", "a", "b"], ["a", "c"]], min_freq=2).words[9:]
        ('a', 'b')

        Args:
            counts: occurrences of each word, or texts as lists of tokens to count.
            max_size: largest number of words, the nine specials among them.
            min_freq: a word with fewer occurrences is left out.

        Returns:
            The same vocabulary for the same counts, in whatever order they come.

        Raises:
            TypeError: if a text is a string instead of its tokens.
            ValueError: if max_size has no room for the specials, or min_freq is below 1.
        """
        check_vocabulary_limits(max_size, min_freq, name="max_size")
        if not isinstance(counts, Mapping):
            counts = _count(counts)
        known = set(SPECIALS)
        kept = [item for item in counts.items() if item[1] >= min_freq and item[0] not in known]
        kept.sort(key=lambda item: (-item[1], item[0]))
        return cls([word for word, _ in kept[: max_size - len(SPECIALS)]])

    @property
    def words(self) -> tuple[str, ...]:
        """All words in the order of their ids, the specials first."""
        return self._words

    def index(self, word: str) -> int:
        """Return the id of a word, 0 (xxunk) for an unknown one."""
        return self._ids.get(word, UNK)

    def transfer(self, old: Vocab) -> Tensor:
        """Find each word of this vocabulary in another one, by name.

        >>> Vocab(["cat", "dog"]).transfer(Vocab(["the", "cat"]))[9:]
        tensor([10, -1])

        Args:
            old: the vocabulary whose ids are wanted.

        Returns:
            int64 of shape `(V_new,)`: the id in `old`, or -1 for a word that it lacks.
        """
        index = [old._ids.get(word, -1) for word in self._words]
        return torch.tensor(index, dtype=torch.int64, device="cpu")

    def to_json(self) -> str:
        """Return the words as a JSON list."""
        return json.dumps(self._words, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Vocab:
        """Read what `to_json` wrote.

        >>> Vocab.from_json(Vocab(["cat"]).to_json()) == Vocab(["cat"])
        True

        Raises:
            ValueError: if the text is no JSON list that starts with the nine specials.
        """
        return vocabulary_of(parse_json(text, "the vocabulary"))

    def __len__(self) -> int:
        """Return the number of words, specials included."""
        return len(self._words)

    def __contains__(self, word: object) -> bool:
        """Return whether a word has an id of its own."""
        return word in self._ids

    def __eq__(self, other: object) -> bool:
        """Return whether all words have the same ids."""
        return isinstance(other, Vocab) and self._words == other._words

    def __hash__(self) -> int:
        """Agree with equality."""
        return hash(self._words)

    def __repr__(self) -> str:
        """Show the size and the first words."""
        start = ", ".join(self._words[len(SPECIALS) : len(SPECIALS) + 3])
        return f"Vocab({len(self)} words: {start}, ...)"


def vocabulary_of(words: object) -> Vocab:
    """Return the vocabulary that a file's list of words is.

    >>> len(vocabulary_of([*SPECIALS, "cat"]))
    10

    Args:
        words: what the JSON holds.

    Raises:
        ValueError: if it is no list of distinct words that starts with the nine specials.
    """
    if not isinstance(words, list) or tuple(words[: len(SPECIALS)]) != SPECIALS:
        start = reprlib.repr(words[:2] if isinstance(words, list) else words)
        raise ValueError(
            f"the vocabulary starts with {start}, expected a JSON list that starts with "
            f"{', '.join(SPECIALS)}; save it anew"
        )
    try:
        vocab = Vocab(words)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the vocabulary is damaged ({error}); save it anew") from error
    if len(vocab) != len(words):
        # The class moves specials to the front, and the words behind would have other ids.
        raise ValueError("the vocabulary is damaged (a special occurs twice in it); save it anew")
    return vocab


def check_vocabulary_limits(max_size: int, min_freq: int, *, name: str) -> None:
    """Refuse a vocabulary without room for the specials, and a useless smallest frequency.

    Raises:
        ValueError: if either is too small.
    """
    if max_size < len(SPECIALS):
        raise ValueError(
            f"{name} is {max_size}, expected at least {len(SPECIALS)}: the specials alone "
            f"({SPECIALS[0]} to {SPECIALS[-1]}) are {len(SPECIALS)} words"
        )
    if min_freq < 1:
        raise ValueError(f"min_freq is {min_freq}, expected at least 1, which keeps every word")


def _count(texts: Iterable[Iterable[str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for position, tokens in enumerate(texts):
        if isinstance(tokens, str):
            raise TypeError(
                f"text {position} is the string {tokens!r:.60}, expected its tokens; "
                "pass lists of tokens, or their counts"
            )
        counts.update(tokens)
    return counts


def transfer_rows(weight: Tensor, index: Tensor) -> Tensor:
    """Carry a weight over to another vocabulary: known words by name, new words get the mean row.

    >>> transfer_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, -1]))
    tensor([[3., 4.],
            [2., 3.]])

    Args:
        weight: `(V_old, E)` embedding or `(V_old,)` decoder bias, of a floating dtype.
        index: `(V_new,)` int64 from `Vocab.transfer`: the old row, or -1 for a new word.

    Returns:
        `(V_new, E)` or `(V_new,)`: a new tensor with the dtype and device of `weight`.

    Raises:
        TypeError: if index is not int64 or weight not floating.
        ValueError: if a shape is wrong, weight has no rows or index points past its rows.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146) and the code that accompanies it.
    """
    weight = weight.detach()
    if weight.dim() == 0 or len(weight) == 0:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected at least one row")
    if not weight.is_floating_point():
        raise TypeError(f"weight has dtype {weight.dtype}, expected a floating dtype")
    if index.dim() != 1:
        raise ValueError(f"index has shape {tuple(index.shape)}, expected (V_new,)")
    if index.dtype != torch.int64:
        raise TypeError(f"index has dtype {index.dtype}, expected torch.int64")
    index = index.to(weight.device)
    if index.numel() and not -1 <= int(index.min()) <= int(index.max()) < len(weight):
        raise ValueError(
            f"index runs from {int(index.min())} to {int(index.max())}, expected values from -1 to "
            f"{len(weight) - 1} for a weight of {len(weight)} rows; pass index = new.transfer(old)"
        )
    rows = weight[index.clamp(min=0)]
    rows[index < 0] = weight.mean(dim=0)
    return rows
