"""The labelled sets and the texts without labels, and which rows of them a run sees.

A folder of data has `labelled/SET/train.csv` and `test.csv`, with the columns text and label, and
files of texts, one a line. Nothing is drawn but by the set's name and the number of the draw, so
that every method, and every process, has the same rows.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ulmfit_fast.data import read_labelled
from ulmfit_fast.ulmfit.validation import stratified_split

PARTS = ("validation", "test")
_MOST_VALIDATION, _VALIDATION_SHARE = 1000, 0.2
# Of a corpus without texts of its own to measure on, one in so many for each purpose.
_HELD_OUT_EVERY = 200


@dataclass(frozen=True)
class Texts:
    """Labelled texts.

    Attributes:
        texts: N of them.
        labels: of each.
    """

    texts: list[str]
    labels: list[str]

    def at(self, rows: Iterable[int]) -> Texts:
        """Return these with rows in the order that is given."""
        chosen = list(rows)
        return Texts([self.texts[n] for n in chosen], [self.labels[n] for n in chosen])


@dataclass(frozen=True)
class Set:
    """A labelled set and what is measured on: its test file, or some of its training rows.

    The rows of the validation are up to 1,000 and at most a fifth of the training file, with each
    class in its share and copies of a text on one side; no draw and no language model has them.

    Attributes:
        folder: of the data.
        name: of the set.
        part: "validation" or "test".
    """

    folder: Path
    name: str
    part: str

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part is {self.part!r}, expected one of {', '.join(PARTS)}")

    @cached_property
    def _parts(self) -> tuple[Texts, Texts]:
        train = read_file(self.folder, self.name, "train")
        if self.part == "test":
            return train, read_file(self.folder, self.name, "test")
        share = min(_VALIDATION_SHARE, _MOST_VALIDATION / len(train.texts))
        pool, held_out = stratified_split(
            train.texts, train.labels, share, seed=_seed(self.name, "validation")
        )
        return train.at(pool), train.at(held_out)

    @property
    def pool(self) -> Texts:
        """What draws are made from, and what the language model reads without its labels."""
        return self._parts[0]

    @property
    def measured(self) -> Texts:
        """What accuracy is measured on."""
        return self._parts[1]

    @cached_property
    def classes(self) -> list[str]:
        """The classes of the pool, in order."""
        return sorted(set(self.pool.labels))

    def draw(self, count: int | None, number: int) -> Texts:
        """Draw labelled rows.

        Args:
            count: how many; None for all.
            number: of the draw, from 0.
        """
        if count is None or count >= len(self.pool.texts):
            return self.pool
        return self.pool.at(drawn(self.pool.labels, count, _seed(self.name, f"draw {number}")))


def read_file(folder: Path, name: str, part: str) -> Texts:
    """Read the file "train" or "test" of a set."""
    texts, labels = read_labelled(folder / "labelled" / name / f"{part}.csv")
    return Texts(list(texts), [str(label) for label in labels])


def drawn(labels: Sequence[str], count: int, seed: int) -> list[int]:
    """Draw rows in proportion to the classes, at least one of each.

    >>> labels = ["a"] * 90 + ["b"] * 9 + ["c"]
    >>> rows = drawn(labels, 10, seed=0)
    >>> [labels[n] for n in rows]
    ['a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'b', 'c']

    Args:
        labels: of all rows.
        count: rows to draw; where there are more classes, one of each.
        seed: of the draw.

    Returns:
        The rows, ascending.
    """
    counts = Counter(labels)
    wanted = {label: count * own / len(labels) for label, own in sorted(counts.items())}
    taken = {label: max(1, int(share)) for label, share in wanted.items()}
    total = max(count, len(counts))
    while sum(taken.values()) < total:
        open_ones = [label for label in taken if taken[label] < counts[label]]
        taken[max(open_ones, key=lambda label: wanted[label] - taken[label])] += 1
    while sum(taken.values()) > total:
        several = [label for label in taken if taken[label] > 1]
        taken[min(several, key=lambda label: wanted[label] - taken[label])] -= 1
    generator, rows = np.random.default_rng(seed), []
    for label, most in taken.items():
        own = np.flatnonzero(np.array(labels) == label)
        rows += generator.permutation(own)[:most].tolist()
    return sorted(rows)


def _seed(name: str, purpose: str) -> int:
    # Python's own hash of a text is another one in each process.
    return zlib.crc32(f"{name}, {purpose}".encode())


def key(text: str) -> str:
    """Return a text without what copies of it may differ in: case, punctuation and white space.

    >>> key("Fine,  a FILM!") == key("fine a film")
    True
    """
    return " ".join(re.findall(r"\w+", text.casefold()))


def keys_of(folder: Path, names: Iterable[str]) -> set[str]:
    """Return the keys of all rows of sets, training and test, as far as the folder has the sets."""
    return {
        key(text)
        for name in names
        if (folder / "labelled" / name).is_dir()
        for part in ("train", "test")
        for text in read_file(folder, name, part).texts
    }


def corpus(
    folder: Path,
    files: Sequence[str],
    *,
    unit: str = "line",
    words: int | None = None,
    without: set[str] | frozenset[str] = frozenset(),
    held_out: str | None = None,
) -> list[str]:
    """Read texts without labels.

    Args:
        folder: of the data.
        files: names in it.
        unit: what is a text, "line", or "article" for the lines between two empty ones.
        words: stop once there are so many; None reads all.
        without: keys of texts to leave out.
        held_out: "train" leaves out one text in a hundred, and "valid" and "test" are a half of
            these each; None reads all.

    Raises:
        ValueError: if the unit is something else, or no text is left.
    """
    found, count = [], 0
    phases = {"valid": 0, "test": _HELD_OUT_EVERY // 2}
    for position, text in enumerate(_read(folder, files, unit)):
        phase = position % _HELD_OUT_EVERY
        if held_out == "train" and phase in phases.values():
            continue
        if held_out in phases and phase != phases[held_out]:
            continue
        if without and key(text) in without:
            continue
        found.append(text)
        count += len(text.split())
        if words is not None and count >= words:
            break
    if not found:
        raise ValueError(f"{', '.join(files)} in {folder} have no text to read")
    return found


def _read(folder: Path, files: Sequence[str], unit: str) -> Iterator[str]:
    if unit not in ("line", "article"):
        raise ValueError(f'unit is {unit!r}, expected "line" or "article"')
    for name in files:
        # A reader for any file would undo quotes and count rows; these are lines of text.
        with (folder / name).open(encoding="utf-8") as file:
            lines = (line.strip() for line in file)
            if unit == "line":
                yield from filter(None, lines)
                continue
            for is_text, own in itertools.groupby(lines, bool):
                if is_text:
                    yield "\n".join(own)
