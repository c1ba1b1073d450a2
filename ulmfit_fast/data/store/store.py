"""Ids of a corpus larger than memory: written once to a directory, then mapped, never loaded."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from ulmfit_fast.checks import number
from ulmfit_fast.data.reading.corpus import Source, read_texts
from ulmfit_fast.data.reading.lines import OnError
from ulmfit_fast.data.store.build import cpus, expected_blocks, write_store
from ulmfit_fast.data.store.files import (
    IDS,
    META,
    OFFSETS,
    TOKENIZER,
    digest_of,
    read_meta,
    read_offsets,
)
from ulmfit_fast.data.tokens.tokenizer import Tokenizer, largest_json
from ulmfit_fast.system.directories import owned_names, read_version, write_directory
from ulmfit_fast.system.files import user_path

__all__ = ["StoredDocuments", "TokenStore", "TokenStream"]

_log = logging.getLogger("ulmfit_fast")

AnyIds = npt.NDArray[np.integer[Any]]


class StoredDocuments(Sequence[AnyIds]):
    """Documents as pieces of one array of ids that may be mapped from disk.

    Args:
        ids: `(N,)` integers.
        starts: `(n,)` int64, where each document begins in `ids`.
        ends: `(n,)` int64, where it ends.
        vocab_size: V, which every id has to be below; None for any.
    """

    def __init__(
        self,
        ids: AnyIds,
        starts: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        vocab_size: int | None = None,
    ) -> None:
        self.ids, self.starts, self.ends, self.vocab_size = ids, starts, ends, vocab_size

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> AnyIds: ...

    @overload
    def __getitem__(self, index: slice) -> list[AnyIds]: ...

    def __getitem__(self, index: int | slice) -> AnyIds | list[AnyIds]:
        """Return the ids of a document, `(n,)` without a copy; of a slice, a list of them."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        found: AnyIds = self.ids[self.starts[position] : self.ends[position]]
        return found

    def select(self, positions: npt.NDArray[np.int64]) -> StoredDocuments:
        """Return some of the documents, whose ids stay where they are.

        Args:
            positions: `(n,)` of the documents wanted, in their new order.
        """
        starts, ends = self.starts[positions], self.ends[positions]
        return StoredDocuments(self.ids, starts, ends, self.vocab_size)

    def stream(self, seed: int | None = None) -> TokenStream:
        """Return the documents as one stream, in the order of `concatenate_documents`, uncopied.

        Args:
            seed: draws the order of the documents; None keeps it.
        """
        return TokenStream(self, seed)


class TokenStore(StoredDocuments):
    """Documents as ids on disk; a sequence of arrays that takes next to no memory.

    Takes the place of a list of documents, as in `stages.train_language_model(model, store)`.

    Example:
        >>> import tempfile
        >>> tokenizer = Tokenizer.train(["a cat", "a dog"], min_freq=1)
        >>> directory = tempfile.mkdtemp() + "/store"
        >>> store = TokenStore.build(directory, ["a cat", "a dog", "a"], tokenizer, workers=1)
        >>> len(store), store[0].tolist(), store.ids.tolist()
        (3, [2, 9, 10], [2, 9, 10, 2, 9, 11, 2, 9])

    Args:
        directory: as `build` wrote it.
        tokenizer: the one that the ids must come from; None takes whatever it was.

    Attributes:
        directory: where it is.
        ids: `(N,)` all ids in the order of the documents, mapped read-only.
        offsets: `(len + 1,)` int64, where each document begins in `ids`, mapped read-only.
        vocab_size: V of the tokenizer.

    Raises:
        FileNotFoundError: if there is no store, or a file of it is missing.
        ValueError: if it is damaged, of a newer version, or made by another tokenizer. Ids are
            looked at when they are read for training.
    """

    vocab_size: int

    def __init__(
        self, directory: str | os.PathLike[str], tokenizer: Tokenizer | None = None
    ) -> None:
        self.directory = user_path(directory)
        read_version(self.directory, lambda path: self._open(path, tokenizer))

    def _open(self, directory: Path, tokenizer: Tokenizer | None) -> None:
        """Map the files of a directory, which stay mapped whatever is in their place later."""
        meta = read_meta(directory)
        self._tokenizer_digest: str = meta["tokenizer"]
        self.vocab_size: int = meta["vocab_size"]
        if tokenizer is not None:
            self.require(tokenizer)
        dtype, tokens = np.dtype(meta["dtype"]), meta["tokens"]
        found = (directory / IDS).stat().st_size
        if found != tokens * dtype.itemsize:
            raise ValueError(
                f"{directory / IDS} has {found} bytes, expected {tokens * dtype.itemsize}; "
                "the store is damaged, build it anew"
            )
        self.offsets = read_offsets(directory / OFFSETS, meta["documents"], tokens)
        ids = np.memmap(directory / IDS, dtype=dtype, mode="r", shape=(tokens,))
        super().__init__(ids, self.offsets[:-1], self.offsets[1:], self.vocab_size)

    @classmethod
    def build(
        cls,
        directory: str | os.PathLike[str],
        source: Source,
        tokenizer: Tokenizer,
        *,
        text_column: str = "text",
        on_error: OnError = "raise",
        delimiter: str | None = None,
        encoding: str | None = None,
        workers: int | None = None,
        progress: bool = True,
    ) -> TokenStore:
        """Tokenise a corpus into a store.

        Texts are read as they come and encoded a million characters at a time; memory does not grow
        with the corpus but for the words that a tokenizer remembers and 8 bytes a document. The
        store counts only once it is complete, and then takes the place of an older one. What a kill
        leaves behind the next call removes.

        A script that uses workers needs the usual `if __name__ == "__main__":`.

        Args:
            directory: where to; made when missing, with its parents.
            source: what `read_texts` takes.
            tokenizer: turns the texts into ids.
            text_column: of files and tables, as for `read_texts`.
            on_error: "raise", or "skip" to leave out rows that cannot be read, as for `read_texts`.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.
            workers: processes that encode; None takes as many as there are CPUs, 1 stays in this
                one, as does a corpus of few million characters.
            progress: show a bar on a terminal, where the size of the corpus is known beforehand.

        Returns:
            The store, the documents in the order of the texts whatever the workers.

        Raises:
            FileExistsError: if the directory holds something other than a store, or another process
                is building it.
            RuntimeError: if a worker died.
            TypeError: as for `read_texts`.
            ValueError: as for `read_texts`, or if workers is below 1.
        """
        if workers is not None:
            number("workers", workers, "at least 1, or None for all CPUs", at_least=1)
        texts = read_texts(
            source,
            text_column=text_column,
            on_error=on_error,
            delimiter=delimiter,
            encoding=encoding,
        )

        def write(path: Path) -> None:
            expected = expected_blocks(source) if progress else 0
            write_store(path, texts, tokenizer, workers=workers or cpus(), expected=expected)

        began = time.perf_counter()
        write_directory(directory, write, META)
        store = cls(directory, tokenizer)
        _log.info(
            "%s: %d documents, %d tokens, %.0f tokens/s",
            *(store.directory, len(store), len(store.ids)),
            len(store.ids) / (time.perf_counter() - began),
        )
        return store

    @staticmethod
    def is_store(directory: str | os.PathLike[str]) -> bool:
        """Say whether a directory holds a store, whole or damaged."""

        def found(path: Path) -> bool:
            return META in owned_names(path) and (path / IDS).is_file()

        return read_version(user_path(directory), found)

    def require(self, tokenizer: Tokenizer) -> None:
        """Make sure that the ids come from this tokenizer.

        Raises:
            ValueError: if they come from another one.
        """
        if digest_of(tokenizer) != self._tokenizer_digest:
            raise ValueError(
                f"{self.directory} was made by another tokenizer (vocabulary of {self.vocab_size}) "
                f"than {tokenizer!r}, expected the same; use TokenStore.tokenizer(), or build a "
                "store of its own"
            )

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that made the ids."""
        found = read_version(self.directory, self._read_tokenizer)
        self.require(found)
        return found

    def _read_tokenizer(self, directory: Path) -> Tokenizer:
        path = directory / TOKENIZER
        try:
            if path.stat().st_size > largest_json(self.vocab_size):
                raise ValueError(f"{self.vocab_size} words do not take so many bytes")
            text = path.read_text(encoding="utf-8")
            return Tokenizer.from_json(text, vocab_size=self.vocab_size)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); build the store anew") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the path."""
        return (TokenStore, (self.directory,))

    def __repr__(self) -> str:
        """Show the size."""
        return f"TokenStore({len(self)} documents, {len(self.ids)} tokens, {self.directory})"


class TokenStream:
    """Stored documents one after the other in a drawn order; read slice by slice.

    Equal to `concatenate_documents(documents, seed)`, of which only what is asked for is in memory,
    besides 16 bytes a document.

    Args:
        documents: a store, or a selection of it.
        seed: draws their order; None keeps it.
    """

    def __init__(self, documents: StoredDocuments, seed: int | None = None) -> None:
        self._ids, self._vocab_size = documents.ids, documents.vocab_size
        order: Any = slice(None)
        if seed is not None:
            # As concatenate_documents draws it.
            generator = torch.Generator(device="cpu").manual_seed(seed)
            drawn = torch.randperm(
                len(documents), generator=generator, dtype=torch.int64, device="cpu"
            )
            order = drawn.numpy()
        self._starts = np.asarray(documents.starts)[order]
        self._ends = np.cumsum((documents.ends - documents.starts)[order])

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, part: slice) -> npt.NDArray[np.int64]:
        """Return a slice of the stream, `(n,)` int64."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"the step of a slice is {step}, expected 1")
        return self.window(np.array([start]), max(0, stop - start))[:, 0]

    def window(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """Return equally long pieces of the stream side by side, as a batch has them.

        Args:
            starts: `(B,)` integers, where each piece begins.
            length: T, the tokens of each.

        Returns:
            `(T, B)` int64.

        Raises:
            IndexError: if a piece reaches past either end.
            ValueError: if an id is outside the vocabulary.
        """
        if len(starts) and not 0 <= int(starts.min()) <= int(starts.max()) <= len(self) - length:
            raise IndexError(
                f"pieces of {length} tokens start at {int(starts.min())} to {int(starts.max())}, "
                f"expected 0 to {len(self) - length}"
            )
        rows = np.empty((len(starts), length), dtype=np.int64)
        first = np.searchsorted(self._ends, starts, side="right")
        for row, start, document in zip(rows, starts.tolist(), first.tolist(), strict=True):
            self._fill(row, start, document)
        # On a GPU such an id would end the process, and without a word of the store.
        if self._vocab_size is not None and rows.size:
            smallest, largest = int(rows.min()), int(rows.max())
            if smallest < 0 or largest >= self._vocab_size:
                raise ValueError(
                    f"the store holds the id {smallest if smallest < 0 else largest}, expected 0 "
                    f"to {self._vocab_size - 1}; {IDS} is damaged, build the store anew"
                )
        return np.ascontiguousarray(rows.T)

    def _fill(self, row: npt.NDArray[np.int64], start: int, document: int) -> None:
        filled = 0
        while filled < len(row):
            left = int(self._ends[document]) - start - filled
            take = min(left, len(row) - filled)
            end = self._ends_in_store(document)
            row[filled : filled + take] = self._ids[end - left : end - left + take]
            filled += take
            document += 1

    def _ends_in_store(self, document: int) -> int:
        before = int(self._ends[document - 1]) if document else 0
        return int(self._starts[document]) + int(self._ends[document]) - before
