"""Batches for language models: contiguous streams of documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ulmfit_fast.data.columns import shown
from ulmfit_fast.data.store.store import TokenStream
from ulmfit_fast.data.tables import is_table

__all__ = [
    "Document",
    "LMBatches",
    "check_documents",
    "check_positive",
    "concatenate_documents",
    "random_lengths",
]

Document = npt.NDArray[np.integer[Any]] | Tensor | Sequence[int]


def concatenate_documents(docs: Sequence[Document], seed: int | None = None) -> Tensor:
    """Join documents into one stream of ids.

    >>> concatenate_documents([[2, 9], [2, 10, 11]])
    tensor([ 2,  9,  2, 10, 11])

    Args:
        docs: ids of each document, integers of shape `(n,)`.
        seed: draws the order of the documents; None keeps it.

    Returns:
        int64 of shape `(N,)`.

    Raises:
        TypeError: if docs is a table.
        ValueError: if there are no tokens.
    """
    check_documents(docs)
    order: Sequence[int] = range(len(docs))
    if seed is not None:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        drawn = torch.randperm(len(docs), generator=generator, dtype=torch.int64, device="cpu")
        order = drawn.tolist()
    parts = [np.asarray(docs[i]) for i in order if len(docs[i])]
    if not parts:
        raise ValueError(
            f"the {len(docs)} documents hold 0 tokens, expected at least one; pass more text"
        )
    return torch.from_numpy(np.concatenate(parts, dtype=np.int64, casting="same_kind"))


def random_lengths(steps: int, bptt: int, seed: int = 0, epoch: int = 0) -> list[int]:
    """Cut time steps into batches of random length.

    Each length is drawn from a normal distribution of deviation 5 around bptt, or with probability
    0.05 around half of it, is at least 5 and at most bptt + 10; the last one is what remains.

    >>> lengths = random_lengths(1000, bptt=70)
    >>> sum(lengths), max(lengths) <= 80
    (1000, True)

    Args:
        steps: time steps to cut.
        bptt: s, the usual length.
        seed: of the lengths.
        epoch: 0 or larger; together with the seed it decides the lengths.

    Returns:
        The lengths; their sum is `steps`.

    Raises:
        ValueError: if steps or bptt is below 1, or epoch is negative.

    Source:
        Merity et al. 2018 (arXiv:1708.02182), section 4.1, with the bounds of its code.
    """
    check_positive(steps=steps, bptt=bptt)
    if epoch < 0:
        raise ValueError(f"epoch is {epoch}, expected 0 or larger")
    draw = np.random.default_rng((seed % 2**64, epoch))
    lengths: list[int] = []
    left = steps
    while left > 0:
        base = bptt if draw.random() < 0.95 else bptt / 2
        length = min(max(5, int(draw.normal(base, 5))), bptt + 10, left)
        lengths.append(length)
        left -= length
    return lengths


class LMBatches:
    """Cuts a stream of ids into `batch_size` contiguous rows and walks along all of them at once.

    Row b of a batch goes on where row b of the batch before it ended, so the state of the model can
    be carried over. The target of each token is the next one of the stream. The tail that does not
    fill all rows is dropped, and the last batch may be shorter.

    >>> for x, y in LMBatches(torch.arange(12), batch_size=2, bptt=3):
    ...     print(x.tolist(), y.tolist())
    [[0, 5], [1, 6], [2, 7]] [[1, 6], [2, 7], [3, 8]]
    [[3, 8], [4, 9]] [[4, 9], [5, 10]]

    Args:
        ids: `(N,)` integers, the stream; or a `TokenStream`, of which each batch is read from disk
            when its turn comes.
        batch_size: rows B.
        bptt: time steps T of a batch.
        random_bptt: draw the time steps of each batch around bptt, see `random_lengths`.
        seed: of those lengths.
        epoch: 0 or larger; together with the seed it decides them.
        part: (r, n) for the r-th of n processes: the stream is cut into n * batch_size rows, of
            which these batches hold the r-th batch_size.

    Attributes:
        lengths: time steps of each batch.

    Raises:
        TypeError: if ids is not of an integer dtype.
        ValueError: if ids has another shape, is too short for the batch size, or a size is below 1.
    """

    def __init__(
        self,
        ids: Tensor | npt.NDArray[np.integer[Any]] | TokenStream,
        batch_size: int,
        bptt: int,
        *,
        random_bptt: bool = False,
        seed: int = 0,
        epoch: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if not isinstance(ids, TokenStream):
            ids = _checked_ids(ids)
        check_positive(batch_size=batch_size, bptt=bptt)
        index, parts = part
        rows = batch_size * parts
        if len(ids) < rows + 1:
            fits = (len(ids) - 1) // parts
            smaller = f"batch_size={fits} or " if fits > 0 else ""
            of = f" in each of {parts} processes" if parts > 1 else ""
            raise ValueError(
                f"the corpus has {len(ids)} tokens, expected at least {rows + 1} for "
                f"batch_size={batch_size}{of}; pass {smaller}more text"
            )
        self.batch_size = batch_size
        self.bptt = bptt
        steps = (len(ids) - 1) // rows
        if random_bptt:
            self.lengths = random_lengths(steps, bptt, seed, epoch)
        else:
            self.lengths = [min(bptt, steps - start) for start in range(0, steps, bptt)]
        self._pinned = False
        self._stream: Tensor | TokenStream = ids
        own = slice(index * batch_size, (index + 1) * batch_size)
        self._starts = steps * np.arange(rows)[own]
        if isinstance(ids, Tensor):
            # Each row holds one token more, the last target: (steps + 1, B), time first.
            streams = ids[: steps * rows + 1].unfold(0, steps + 1, steps)[own]
            self._stream = streams.t().to(torch.int64).contiguous()

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.lengths)

    def pin_memory(self) -> LMBatches:
        """Put the stream where a GPU fetches it without the host waiting; return self."""
        self._pinned = True
        if isinstance(self._stream, Tensor):
            self._stream = self._stream.pin_memory()
        return self

    def _rows(self, start: int, stop: int) -> Tensor:
        if isinstance(self._stream, Tensor):
            return self._stream[start:stop]
        rows = torch.from_numpy(self._stream.window(self._starts + start, stop - start))
        return rows.pin_memory() if self._pinned else rows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, targets), int64 of shape `(T, B)` each: views of one tensor, no copies."""
        return self.after(0)

    def after(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches that come after the first so many.

        Args:
            count: batches to leave out; none of their text is read.
        """
        start = sum(self.lengths[:count])
        for length in self.lengths[count:]:
            rows = self._rows(start, start + length + 1)
            yield rows[:-1], rows[1:]
            start += length


def _checked_ids(ids: Tensor | npt.NDArray[np.integer[Any]]) -> Tensor:
    # as_tensor would move a tensor to the default device.
    ids = ids if isinstance(ids, Tensor) else torch.as_tensor(ids, dtype=None, device="cpu")
    if ids.dim() != 1:
        raise ValueError(f"ids has shape {tuple(ids.shape)}, expected (N,)")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"ids has dtype {ids.dtype}, expected an integer dtype")
    return ids


def check_documents(docs: object) -> None:
    """Refuse a table, which is read by its columns where texts are wanted, but holds no ids.

    Raises:
        TypeError: if it is one.
    """
    if is_table(docs):
        raise TypeError(
            f"the documents are {shown(docs)} ({type(docs).__name__}), expected the token ids of "
            "each; pass tokenizer.encode_batch(table)"
        )


def check_positive(**sizes: int) -> None:
    """Refuse sizes below 1, by name.

    Args:
        sizes: by name.

    Raises:
        ValueError: if one is below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, expected at least 1")
