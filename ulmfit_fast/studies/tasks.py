"""The tasks of the ablation: labelled texts, and what a language model may read beforehand."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit_fast.data.reading.corpus import read_labelled, read_texts
from ulmfit_fast.studies.docstrings import Document, read_docstrings
from ulmfit_fast.studies.parameter_types import parameter_descriptions
from ulmfit_fast.studies.swapped_words import build_task, without_sentences

__all__ = ["TASKS", "Task", "own_task", "read_task", "split_off", "subpackage_documents"]

# One document in this many is kept out of language-model training to measure perplexity on.
_HELD_OUT_EVERY = 40
_LEAST_LANGUAGE_MODEL_TEXTS = 2 * _HELD_OUT_EVERY
# Of a sub-package that a docstring can come from, and of a docstring.
_LEAST_DOCUMENTS = 120
_LEAST_WORDS = 8
# One sub-package with half of all documents would be the answer to everything.
_MOST_DOCUMENTS = 480


@dataclass(frozen=True)
class Task:
    """Labelled texts to learn from and to be tested on, and two corpora without labels.

    Args:
        name: what the task is called in tables and files.
        train_texts: texts in random order; the first n of them serve n labels.
        train_labels: a label for each.
        test_texts: texts that no language model has read.
        test_labels: a label for each.
        general: texts for pre-training.
        target: texts like those of the task, for language-model fine-tuning.
        ngrams: shortest and longest run of words that is a feature of the TF-IDF baseline, chosen
            as its best case.
    """

    name: str
    train_texts: list[str]
    train_labels: list[str]
    test_texts: list[str]
    test_labels: list[str]
    general: list[str]
    target: list[str]
    ngrams: tuple[int, int] = (1, 2)

    def subset(self, count: int, seed: int) -> tuple[list[str], list[str]]:
        """Draw `count` of the labelled texts, each label as frequent as it happens to be.

        Args:
            count: how many.
            seed: decides which; equal seeds give nested subsets for growing counts.

        Returns:
            The texts and their labels.

        Raises:
            ValueError: if there are not so many texts.
        """
        if not 2 <= count <= len(self.train_texts):
            raise ValueError(
                f"count is {count}, expected 2 to {len(self.train_texts)}, the labelled texts"
            )
        chosen = list(range(len(self.train_texts)))
        random.Random(seed).shuffle(chosen)
        chosen = chosen[:count]
        return [self.train_texts[i] for i in chosen], [self.train_labels[i] for i in chosen]

    def general_split(self) -> tuple[list[str], list[str]]:
        """Return the general texts to train on and those kept to measure perplexity on."""
        return split_off(self.general)

    def target_split(self) -> tuple[list[str], list[str]]:
        """Return the target texts to train on and those kept to measure perplexity on."""
        return split_off(self.target)


def split_off(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the texts to train on and those kept to measure perplexity on."""
    return [t for i, t in enumerate(texts) if i % _HELD_OUT_EVERY], list(texts[::_HELD_OUT_EVERY])


def _documents(packages: Sequence[str]) -> list[Document]:
    return [document for package in packages for document in read_docstrings(package)]


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.text for document in documents]


def _swaps(seed: int, general: Sequence[str], test: int) -> Task:
    """Have two neighbouring words of a sentence been swapped?"""
    task = build_task(_documents(("numpy", "networkx", "torch")), held_out=test, seed=seed)
    return Task(
        "swap",
        task.train_texts,
        task.train_labels,
        task.test_texts,
        task.test_labels,
        _texts(without_sentences(_documents(general), task.held_out)),
        _texts(task.lm_documents),
        ngrams=(2, 2),
    )


def _types(seed: int, general: Sequence[str], test: int) -> Task:
    """Which type has the parameter that this describes? The types stand in no corpus."""
    packages = ("numpy", "networkx", "torch")
    labelled = [pair for package in packages for pair in parameter_descriptions(package)]
    train, held_out = _divided(labelled, test, seed)
    texts = [text for text, _ in held_out]
    return Task(
        "types",
        *_columns(train),
        *_columns(held_out),
        _texts(without_sentences(_documents(general), texts)),
        # The descriptions are no sentences for the most part, so the prose does not hold them all.
        [*_texts(without_sentences(_documents(packages), texts)), *(text for text, _ in train)],
    )


def _subpackages(seed: int, general: Sequence[str], test: int) -> Task:
    """Which part of sympy does this docstring come from?"""
    labelled = subpackage_documents("sympy")
    train, held_out = _divided(labelled, test, seed)
    sentences = [line for text, _ in held_out for line in text.split("\n")]
    tested = {text for text, _ in held_out}
    target = [document for document in _documents(("sympy",)) if document.text not in tested]
    return Task(
        "subpackages",
        *_columns(train),
        *_columns(held_out),
        _texts(without_sentences(_documents(general), sentences)),
        _texts(target),
        ngrams=(1, 1),
    )


def subpackage_documents(package: str) -> list[tuple[str, str]]:
    """Read the prose of a package's docstrings with the sub-package that each is from.

    Args:
        package: a top-level package with sub-packages.

    Returns:
        Texts of at least eight words and their sub-package, in the order of the files: evenly
        chosen 480 at most of each sub-package, and none of those with fewer than 120.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    found: dict[str, list[str]] = {}
    for document in read_docstrings(package):
        path = document.source.split(" ", 1)[1]
        if "/" in path and len(document.text.split()) >= _LEAST_WORDS:
            found.setdefault(path.split("/")[0], []).append(document.text)
    pairs = []
    for name, texts in found.items():
        if len(texts) >= _LEAST_DOCUMENTS:
            kept = min(len(texts), _MOST_DOCUMENTS)
            pairs += [(texts[i * len(texts) // kept], name) for i in range(kept)]
    counts = Counter(text for text, _ in pairs)
    return [(text, name) for text, name in pairs if counts[text] == 1]


def _divided(
    labelled: Sequence[tuple[str, str]], test: int, seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return shuffled pairs to train on and pairs to test on."""
    if not 0 < test < len(labelled):
        raise ValueError(f"test is {test}, expected 1 to {len(labelled) - 1} of the labelled texts")
    pairs = list(labelled)
    random.Random(seed).shuffle(pairs)
    return pairs[test:], pairs[:test]


def _columns(pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [text for text, _ in pairs], [label for _, label in pairs]


_GENERAL = {
    "swap": ("stdlib", "sympy"),
    "types": ("stdlib", "sympy"),
    "subpackages": ("stdlib", "numpy", "networkx", "torch"),
}
_BUILDERS: dict[str, Callable[[int, Sequence[str], int], Task]] = {
    "swap": _swaps,
    "types": _types,
    "subpackages": _subpackages,
}
TASKS = tuple(_BUILDERS)


def read_task(
    name: str, *, seed: int = 0, test: int = 1000, general: Sequence[str] | None = None
) -> Task:
    """Read one of the tasks that the docstrings of this machine give.

    Args:
        name: "swap", "types" or "subpackages".
        seed: decides the split.
        test: held-out texts.
        general: packages to pre-train on instead of the usual ones, "stdlib" among them.

    Returns:
        The task; the same for the same seed and packages.

    Raises:
        ValueError: if there is no such task, or fewer texts than asked for.
        ModuleNotFoundError: if a package is not installed.
    """
    if name not in _BUILDERS:
        raise ValueError(f"task is {name!r}, expected one of {', '.join(TASKS)} or a file")
    return _BUILDERS[name](seed, _GENERAL[name] if general is None else general, test)


def own_task(
    labelled: str | os.PathLike[str],
    *,
    general: Sequence[str | os.PathLike[str]],
    target: Sequence[str | os.PathLike[str]] = (),
    text_column: str = "text",
    label_column: str = "label",
    delimiter: str | None = None,
    encoding: str | None = None,
    test: int = 1000,
    seed: int = 0,
) -> Task:
    """Make a task of a user's own files.

    Args:
        labelled: file with the labelled texts; some are drawn to test on, the others to learn from.
        general: files of general text, to pre-train on.
        target: files of further text like that of the task; what is learned from is always read.
        text_column: column of the text.
        label_column: column of the label.
        delimiter: of .csv and .tsv files, as for `data.read_texts`.
        encoding: of text files, as for `data.read_texts`.
        test: texts to test on; no language model reads them.
        seed: decides the split.

    Returns:
        The task, named after the file.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if there are too few texts, or a file is malformed.
    """
    form: dict[str, Any] = {"delimiter": delimiter, "encoding": encoding}
    texts, labels = read_labelled([labelled], text_column, label_column, **form)
    pairs = list(zip(texts, map(str, labels), strict=True))
    train, held_out = _divided(pairs, test, seed)
    tested = {text for text, _ in held_out}
    more = [t for t in _read(target, text_column=text_column, **form) if t not in tested]
    own = [text for text, _ in train if text not in tested]
    task = Task(
        Path(labelled).stem,
        *_columns(train),
        *_columns(held_out),
        [t for t in _read(general, text_column=text_column, **form) if t not in tested],
        [*more, *own],
    )
    for role, corpus in (("general", task.general), ("target", task.target)):
        if len(corpus) < _LEAST_LANGUAGE_MODEL_TEXTS:
            raise ValueError(
                f"the {role} corpus has {len(corpus)} texts, expected at least "
                f"{_LEAST_LANGUAGE_MODEL_TEXTS}, one in {_HELD_OUT_EVERY} being kept to measure "
                "perplexity on; pass more text"
            )
    return task


def _read(files: Sequence[str | os.PathLike[str]], **form: Any) -> list[str]:
    return list(read_texts([Path(file) for file in files], **form)) if files else []
