"""Batches: contiguous streams of documents for language models, padded texts for classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ulmfit_fast.checks import number
from ulmfit_fast.data.columns import shown
from ulmfit_fast.data.tables import is_table

__all__ = [
    "ClassifierBatch",
    "ClassifierBatches",
    "Document",
    "LMBatches",
    "TokenWindows",
    "check_documents",
    "concatenate_documents",
    "random_lengths",
]

Document = npt.NDArray[np.integer[Any]] | Tensor | Sequence[int]
# Texts are sorted by length within a random group of so many batches. A small set has groups
# enough that it is not cut into the same batches in every epoch.
_BATCHES_PER_GROUP = 50
_MIN_GROUPS = 4


@runtime_checkable
class TokenWindows(Protocol):
    """A stream of ids that is read piece by piece, as `TokenStore.stream` gives it."""

    def __len__(self) -> int:
        """Return the number of tokens."""

    def window(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """Return equally long pieces of the stream side by side, `(T, B)` int64."""


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
    _check_sizes(steps=steps, bptt=bptt)
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
        ids: `(N,)` integers, the stream; or `TokenStore.stream()`, of which each batch is read from
            disk when its turn comes.
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
        ids: Tensor | npt.NDArray[np.integer[Any]] | TokenWindows,
        batch_size: int,
        bptt: int,
        *,
        random_bptt: bool = False,
        seed: int = 0,
        epoch: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if not isinstance(ids, TokenWindows):
            ids = _checked_ids(ids)
        _check_sizes(batch_size=batch_size, bptt=bptt)
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
        self._stream: Tensor | TokenWindows = ids
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


class ClassifierBatch(NamedTuple):
    """Texts of like length, side by side.

    Attributes:
        tokens: `(T, B)` int64, padded behind the text.
        lengths: `(B,)` int64, the tokens of each text; 0 is possible.
        labels: `(B,)` int64, or None.
        positions: `(B,)` int64, the place of each text among those passed.
    """

    tokens: Tensor
    lengths: Tensor
    labels: Tensor | None
    positions: Tensor


class ClassifierBatches:
    """Batches of whole texts, put together by length so that little is padding.

    Without `shuffle` the texts come longest first. With it they are permuted, sorted by length
    within groups of 50 batches (a quarter of the batches when they are few), and the batches are
    permuted; the order follows from the seed and the epoch alone. A single text left over when
    shuffling joins the batch before it, since BatchNorm cannot train on a batch of one.

    >>> batches = ClassifierBatches([[2, 9], [2], [2, 9, 10]], labels=[0, 1, 1], batch_size=2)
    >>> next(iter(batches))
    ClassifierBatch(tokens=tensor([[ 2,  2],
            [ 9,  9],
            [10,  1]]), lengths=tensor([3, 2]), labels=tensor([1, 0]), positions=tensor([2, 0]))

    Args:
        docs: ids of each text, integers of shape `(n,)`; n may be 0.
        labels: `(N,)` integers, the class of each text; None for prediction.
        batch_size: texts in a batch.
        pad_id: id that fills the rest of a column.
        shuffle: draw a new order each epoch.
        seed: of that order.

    Raises:
        TypeError: if the labels are no integers, or docs is a table.
        ValueError: if there are not as many labels as texts, or batch_size is below 1.
    """

    def __init__(
        self,
        docs: Sequence[Document],
        labels: Tensor | Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
        batch_size: int = 64,
        *,
        pad_id: int = 1,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        _check_sizes(batch_size=batch_size)
        check_documents(docs)
        self._docs = docs
        self._labels = None if labels is None else _checked_labels(labels, len(docs))
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self._lengths = np.array([len(doc) for doc in docs], dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch.

        Args:
            epoch: 0 or larger; together with the seed it decides the order.

        Raises:
            ValueError: for a negative epoch.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, expected 0 or larger")
        self.epoch = epoch

    def _sizes(self) -> list[int]:
        full, rest = divmod(len(self._docs), self.batch_size)
        sizes = [self.batch_size] * full
        if rest == 1 and self.shuffle and full and self.batch_size > 1:
            sizes[-1] += 1
        elif rest:
            sizes.append(rest)
        return sizes

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._sizes())

    def _order(self) -> list[npt.NDArray[np.int64]]:
        """Return the positions of the texts of each batch."""
        cuts = np.cumsum(self._sizes())[:-1]
        if not self.shuffle:
            # Stable, so that equal lengths stay in the order of the texts.
            return np.split(np.argsort(-self._lengths, kind="stable"), cuts)
        rng = np.random.default_rng((self.seed % 2**64, self.epoch))
        order = rng.permutation(len(self._docs))
        group = self.batch_size * max(1, min(_BATCHES_PER_GROUP, len(self) // _MIN_GROUPS))
        for start in range(0, len(order), group):
            part = order[start : start + group]
            order[start : start + group] = part[np.argsort(-self._lengths[part], kind="stable")]
        batches = np.split(order, cuts)
        return [batches[i] for i in rng.permutation(len(batches))]

    def __iter__(self) -> Iterator[ClassifierBatch]:
        """Yield batches in the order of the epoch."""
        return self.after(0)

    def after(self, count: int) -> Iterator[ClassifierBatch]:
        """Yield the batches of the epoch that come after the first so many.

        Args:
            count: batches to leave out.
        """
        if len(self._docs) == 0:
            return
        for index in self._order()[count:]:
            lengths = self._lengths[index]
            rows = np.full((len(index), max(1, int(lengths.max()))), self.pad_id, dtype=np.int64)
            for row, position in enumerate(index):
                rows[row, : lengths[row]] = np.asarray(self._docs[position])
            positions = torch.from_numpy(index)
            yield ClassifierBatch(
                torch.from_numpy(rows).t().contiguous(),
                torch.from_numpy(lengths),
                None if self._labels is None else self._labels[positions],
                positions,
            )


def _checked_labels(
    labels: Tensor | Sequence[int] | npt.NDArray[np.integer[Any]], count: int
) -> Tensor:
    if len(labels) != count:
        raise ValueError(
            f"there are {len(labels)} labels for {count} texts, expected one label a text"
        )
    array = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"labels has shape {array.shape}, expected ({count},)")
    if count and array.dtype.kind not in "iub":
        raise TypeError(
            f"labels has dtype {array.dtype}, expected integers; number the classes from 0"
        )
    return torch.from_numpy(array.astype(np.int64))


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


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        number(name, size, "at least 1", at_least=1)
