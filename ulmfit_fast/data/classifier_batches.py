"""Batches for classifiers: padded texts of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ulmfit_fast.data.batches import Document, check_documents, check_positive

__all__ = ["ClassifierBatch", "ClassifierBatches"]

# Texts are sorted by length within a random group of so many batches. A small set has groups
# enough that it is not cut into the same batches in every epoch.
_BATCHES_PER_GROUP = 50
_MIN_GROUPS = 4


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
        check_positive(batch_size=batch_size)
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
