"""What a table of texts and labels holds, and what in it will be in the way of a classifier."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ulmfit_fast.data.columns import (
    COLUMN_ARGUMENTS,
    Kept,
    Label,
    column_positions,
    is_missing,
    missing_label,
    several_labels,
    shown,
    why_not_classes,
)
from ulmfit_fast.data.reading.corpus import checked_path
from ulmfit_fast.data.reading.lines import Reading, usual_delimiter
from ulmfit_fast.data.reading.records import columns_of, kind_of, read_records, unit_of
from ulmfit_fast.data.tokens.spacy_words import count_spacy_words
from ulmfit_fast.data.tokens.texts import text_blocks
from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.data.tokens.vocab import UNK, Vocab
from ulmfit_fast.data.tokens.words import count_words

__all__ = ["Lengths", "TableCheck", "check_table"]

# A column with more values is nobody's label.
_MOST_VALUES = 1_000
_MOST_CLASSES = 50
_SHOWN_CLASSES = 30
# A value in so many of the rows tells next to nothing.
_CONSTANT_SHARE = 0.99
# Of fewer texts of a class little is learnt, and less can be measured.
_FEW_TEXTS = 10
_MANY_UNKNOWN = 0.1
# Common words, few of which two of the languages share.
_COMMON_WORDS = {
    "English": "the of and to is was that it for with on this are be not you have from but they",
    "Portuguese": "não uma os em do da com mais você muito meu minha foi está ao isso um já são ou",
    "Spanish": "el los las una con del es y muy pero por más está mi lo al sin su hay fue",
    "French": "le les des et est une du dans pas je vous pour que qui sur au avec ce il ne",
    "German": "der die und das ist nicht ich ein eine zu den mit von auf für sich es auch sie im",
}


class Lengths(NamedTuple):
    """How long texts are.

    Attributes:
        median: half of them are not longer.
        most: 95 % of them are not longer.
        longest: of all.
    """

    median: int
    most: int
    longest: int

    def __str__(self) -> str:
        """Show them as part of a line."""
        return f"{self.median:,} (95 % up to {self.most:,}, longest {self.longest:,})"


@dataclass(frozen=True)
class TableCheck:
    """What `check_table` has found.

    Attributes:
        path: the file.
        rows: how many can be read.
        bad_rows: how many cannot.
        delimiter: between the columns of .csv and .tsv files, or None.
        encoding: of text files, or None.
        columns: names of all columns, as far as the file has a header.
        text_column: that of the texts.
        label_column: that of the labels, or None.
        classes: the labels and how often each occurs, the most frequent first.
        empty_texts: texts without a word.
        duplicate_texts: texts that stood in a row above, blanks at their ends aside.
        conflicting_texts: duplicates with another label than above.
        constant_columns: with one value in 99 % of the rows or more.
        label_candidates: other columns with few values that repeat.
        characters: of a text.
        tokens: of a text, those of the model's tokenizer, or words without one.
        unknown_tokens: share of the tokens that the tokenizer does not know, or None without one.
        unknown_words: the same, each word counted once; None for tokenizers without words.
        language: that of the commonest words, or None.
        faults: why nothing can be trained on the table; none if it can.
        warnings: what should be looked at.
    """

    path: str
    rows: int
    bad_rows: int
    delimiter: str | None
    encoding: str | None
    columns: tuple[str, ...]
    text_column: str
    label_column: str | None
    classes: Mapping[Label, int]
    empty_texts: int
    duplicate_texts: int
    conflicting_texts: int
    constant_columns: tuple[str, ...]
    label_candidates: tuple[str, ...]
    characters: Lengths
    tokens: Lengths
    unknown_tokens: float | None
    unknown_words: float | None
    language: str | None
    faults: tuple[str, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return what was found, but for the faults, as lines to read."""
        form = {"delimiter": self.delimiter, "encoding": self.encoding}
        parts = [f"{name} {value!r}" for name, value in form.items() if value is not None]
        lines = [
            ", ".join([f"{self.path}: {_counted(self.rows, 'row')}", *parts]),
        ]
        if self.rows:
            lengths = f"characters {self.characters}; tokens {self.tokens}"
            lines.append(f"texts in {self.text_column!r}: {lengths}")
        if self.language is not None:
            lines.append(f"language, by its commonest words: {self.language}")
        if self.unknown_tokens is not None:
            words = self.unknown_words
            more = "" if words is None else f", {words:.1%} of the different words"
            lines.append(f"unknown to the model: {self.unknown_tokens:.1%} of the tokens{more}")
        if self.label_column is not None and self.rows:
            number = len(self.classes)
            lines.append(f"labels in {self.label_column!r}: {number:,} class{'es' * (number != 1)}")
            most = list(self.classes.items())
            most = most[: 3 if why_not_classes(self.classes) else _SHOWN_CLASSES]
            width = max((len(str(label)) for label, _ in most), default=0)
            lines += [
                f"  {label!s:{width}}  {count:7,}  {count / self.rows:6.1%}"
                for label, count in most
            ]
            lines += ["  ..."] if number > len(most) else []
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]

    def to_json(self) -> str:
        """Return all of it as a JSON object."""
        values = dataclasses.asdict(self)
        for name in ("characters", "tokens"):
            values[name] = getattr(self, name)._asdict()
        values["classes"] = {str(label): count for label, count in self.classes.items()}
        return json.dumps(values, ensure_ascii=False, indent=2)

    def __str__(self) -> str:
        """Show what was found, a line each."""
        return "\n".join([*self.lines(), *(f"error: {fault}" for fault in self.faults)])


def check_table(
    path: str | os.PathLike[str],
    *,
    text_column: str = "text",
    label_column: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    tokenizer: Tokenizer | None = None,
) -> TableCheck:
    r"""Look through a file of texts before a model is trained on it.

    It is read once, row by row; what grows with it are a few hundred bytes a row.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.csv")
        ...     _ = file.write_text("text;label\na fine film;good\na dull film;bad\n")
        ...     found = check_table(file)
        >>> found.rows, found.delimiter, found.classes, found.faults
        (2, ';', {'good': 1, 'bad': 1}, ())

    Args:
        path: a file that `read_texts` takes.
        text_column: column of the texts.
        label_column: column of the labels; None takes "label" where there is one.
        delimiter: between the columns of .csv and .tsv files; None finds it.
        encoding: of text files; None finds it.
        tokenizer: of the model that is to read the texts: what it does not know is counted.

    Returns:
        What was found; `faults` and `warnings` say what is wrong.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: for a .parquet or .xlsx file if the package that reads it is missing.
        ValueError: if the file lacks a column, or an argument is something else.
    """
    file = checked_path(path)
    if file.is_dir():
        raise ValueError(f"{file} is a directory, expected a file; pass one that is in it")
    reading = Reading("skip", delimiter, encoding)
    reading.logs = False
    names = columns_of(file, reading.quiet_copy(), text_column)
    if label_column is None and "label" in names:
        label_column = "label"
    wanted = [text_column] if label_column is None else [text_column, label_column]
    if names:
        column_positions(file, wanted, names, COLUMN_ARGUMENTS)
    elif label_column is not None:
        raise ValueError(f"{file} has no columns, expected one of labels; leave label_column= out")
    others = [name for name, count in Counter(names).items() if count == 1 and name not in wanted]
    found = _Found(file, reading, wanted, others, tokenizer)
    return found.result(names)


class _Found:
    """Goes over the rows once, and counts."""

    def __init__(
        self,
        file: Path,
        reading: Reading,
        wanted: Sequence[str],
        others: Sequence[str],
        tokenizer: Tokenizer | None,
    ) -> None:
        self.file, self.reading, self.wanted, self.others = file, reading, wanted, others
        self.label_column = wanted[1] if len(wanted) > 1 else None
        self.classes: Counter[Label] = Counter()
        self.values: dict[str, Counter[Any]] = {name: Counter() for name in others}
        self.characters: list[int] = []
        self.tokens: list[int] = []
        self.empty = self.duplicates = self.conflicts = self.unknown = self.wordless = 0
        self.conflict = ""
        self._seen: dict[int, tuple[int, Label | None]] = {}
        self._tokenizer = tokenizer or Tokenizer.from_vocab(Vocab([]))
        self._is_model = tokenizer is not None
        self._words: Counter[str] = Counter()
        count = {"word": count_words, "spacy": count_spacy_words}.get(self._tokenizer.kind)
        encode = self._tokenizer.encoder()
        for block in text_blocks(self._texts()):
            ids = encode(block)
            self.tokens += map(len, ids)
            self.unknown += sum(int((own == UNK).sum()) for own in ids)
            if count is not None:
                self._words.update(count(block))

    def _texts(self) -> Iterator[str]:
        # Without labels the texts take their place: some readers check what stands there.
        columns = (self.wanted[0], self.wanted[-1], *map(Kept, self.others))
        if kind_of(self.file) == ".txt":
            columns = columns[:1]
        unit = unit_of(self.file)
        for number, (text, *values) in read_records(self.file, columns, self.reading):
            label = values[0] if self.label_column is not None else None
            if self.label_column is not None and is_missing(label):
                where = f"{self.file}, {unit} {number}: {self.label_column!r}"
                self.reading.skip_or_raise(missing_label(where, label))
                continue
            self._count(text, label, number)
            for name, value in zip(self.others, values[1:], strict=True):
                if len(self.values[name]) <= _MOST_VALUES:
                    # Lists and objects, which .jsonl and .parquet may hold.
                    key = value if isinstance(value, Hashable) else repr(value)
                    self.values[name][key] += 1
            yield text

    def _count(self, text: str, label: Label | None, number: int) -> None:
        self.characters.append(len(text))
        if self.label_column is not None and label is not None:
            self.classes[label] += 1
        stripped = text.strip()
        if not stripped:
            self.empty += 1
            return
        self.wordless += not any(map(str.isalpha, stripped))
        first, other = self._seen.setdefault(hash(stripped), (number, label))
        if first != number:
            self.duplicates += 1
            if other != label:
                self.conflicts += 1
                unit = unit_of(self.file)
                self.conflict = self.conflict or (
                    f"{unit} {first} says {shown(other)} and {unit} {number} {shown(label)}"
                )

    def result(self, names: tuple[str, ...]) -> TableCheck:
        rows, kind = len(self.characters), kind_of(self.file)
        classes = dict(self.classes.most_common())
        constant = tuple(
            name
            for name, counts in self.values.items()
            if counts and counts.most_common(1)[0][1] >= _CONSTANT_SHARE * max(rows, 20)
        )
        candidates = tuple(
            name
            for name, counts in self.values.items()
            if 2 <= len(counts) <= min(_MOST_CLASSES, rows // 4) and name not in constant
        )
        assumed = self.reading.assumed.get(self.file, {})
        is_table, is_text = kind in (".csv", ".tsv"), kind not in (".parquet", ".xlsx")
        total = sum(self.tokens)
        has_words = self._is_model and self._words
        vocab = self._tokenizer.vocab
        found = TableCheck(
            path=str(self.file),
            rows=rows,
            bad_rows=self.reading.count,
            delimiter=(
                assumed.get("delimiter", self.reading.delimiter or usual_delimiter(self.file))
                if is_table
                else None
            ),
            encoding=assumed.get("encoding", self.reading.encoding or "utf-8") if is_text else None,
            columns=names,
            text_column=self.wanted[0],
            label_column=self.label_column,
            classes=classes,
            empty_texts=self.empty,
            duplicate_texts=self.duplicates,
            conflicting_texts=self.conflicts,
            constant_columns=constant,
            label_candidates=candidates,
            characters=_lengths(self.characters),
            tokens=_lengths(self.tokens),
            unknown_tokens=self.unknown / max(total, 1) if self._is_model else None,
            unknown_words=(
                sum(word not in vocab for word in self._words) / len(self._words)
                if has_words
                else None
            ),
            language=_language(self._words),
            faults=(),
            warnings=(),
        )
        return dataclasses.replace(
            found, faults=tuple(self._faults(found)), warnings=tuple(self._warnings(found))
        )

    def _faults(self, found: TableCheck) -> Iterator[str]:
        reading = self.reading
        if not found.rows and reading.count and not reading.skips_too_many(0):
            yield str(reading.first[0])
        elif found.empty_texts == found.rows:
            yield f"{found.path} has no text in {found.text_column!r}, expected at least one"
        if reading.skips_too_many(found.rows):
            yield (
                f"{reading.count:,} of {reading.count + found.rows:,} rows cannot be read: "
                f"{reading.first[0]}"
            )
        if found.label_column is None or not found.rows:
            return
        fault = why_not_classes(found.classes)
        if len(found.classes) < 2:
            fault = f"the one class {next(iter(found.classes))!r:.60}, expected at least two"
        if fault is not None:
            near = ", ".join(
                f"{name!r} ({len(self.values[name])} values)" for name in found.label_candidates
            )
            others = f"those that would fit are {near}" if near else "no other column would fit"
            yield f"{found.label_column!r} holds {fault}; {others}; pass label_column="
        several = several_labels(found.classes)
        if several is not None:
            yield f"{found.label_column!r}: {several}"

    def _warnings(self, found: TableCheck) -> Iterator[str]:
        reading, rows = self.reading, found.rows
        if rows and reading.count and not reading.skips_too_many(rows):
            yield f"{_counted(reading.count, 'row')} cannot be read, the first: {reading.first[0]}"
        for count, what in ((found.empty_texts, "empty"), (found.duplicate_texts, "duplicate")):
            if count:
                yield f"{count:,} {what} text{'s' * (count > 1)} ({count / rows:.1%})"
        if 2 * self.wordless > rows:
            yield (
                f"{self.wordless:,} texts in {found.text_column!r} have no letter; where that is "
                "the wrong column, pass text_column="
            )
        if found.conflicting_texts and not why_not_classes(found.classes):
            yield (
                f"{_counted(found.conflicting_texts, 'text')} with another label than the same "
                f"text above: {self.conflict}"
            )
        if found.constant_columns:
            names = ", ".join(map(repr, found.constant_columns))
            yield f"(nearly) one value alone in the column {names}"
        if found.label_column is None and found.label_candidates:
            names = ", ".join(map(repr, found.label_candidates))
            yield f"no column 'label'; those that would fit are {names}; pass label_column="
        rare = [label for label, count in found.classes.items() if count < _FEW_TEXTS]
        if rare and not why_not_classes(found.classes):
            names = ", ".join(map(str, rare[:5]))
            more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
            yield f"fewer than {_FEW_TEXTS} texts of {names}{more}"
        if found.unknown_tokens is not None and found.unknown_tokens > _MANY_UNKNOWN:
            yield (
                f"the model does not know {found.unknown_tokens:.1%} of the tokens: fine-tune its "
                "language model on texts like these, or take one of their language"
            )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _lengths(values: Sequence[int]) -> Lengths:
    if not values:
        return Lengths(0, 0, 0)
    found = np.quantile(values, (0.5, 0.95, 1.0), method="inverted_cdf")
    return Lengths(*map(int, found))


def _language(words: Counter[str]) -> str | None:
    """Return the language with by far the most common words among the most frequent ones."""
    total = sum(words.values())
    hits = {name: sum(words[w] for w in own.split()) for name, own in _COMMON_WORDS.items()}
    first, second = sorted(hits, key=lambda name: -hits[name])[:2]
    is_clear = total > 0 and hits[first] > 0.05 * total and hits[first] > 1.5 * hits[second]
    return first if is_clear else None
