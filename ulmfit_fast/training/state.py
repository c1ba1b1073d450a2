"""What a run has been through, step by step, in few bytes a step."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["EpochResult", "History", "NumberRows", "Numbers"]


class Numbers(Sequence[float]):
    """Numbers that can be appended to, in eight bytes each; a list takes thirty-two.

    Example:
        >>> losses = Numbers([3.5])
        >>> losses.append(2.25)
        >>> losses, losses[-1], losses[:1], losses == [3.5, 2.25]
        ([3.5, 2.25], 2.25, [3.5], True)

    Args:
        values: the first ones.
    """

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._values = array("d", values)

    def append(self, value: float) -> None:
        """Add a number at the end."""
        self._values.append(value)

    def tolist(self) -> list[float]:
        """Return them as a list."""
        return self._values.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        # Always a copy: a view would keep more numbers from being appended.
        return np.array(self._values, dtype)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> float: ...

    @overload
    def __getitem__(self, index: slice) -> list[float]: ...

    def __getitem__(self, index: int | slice) -> float | list[float]:
        found = self._values[index]
        return found.tolist() if isinstance(found, array) else found

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbers):
            return self._values == other._values
        return self.tolist() == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.tolist())


class NumberRows(Sequence[list[float]]):
    """Rows of equally many numbers that can be appended to, in eight bytes a number.

    Example:
        >>> rates = NumberRows([[0.1, 0.2]])
        >>> rates.append([0.3, 0.4])
        >>> rates, rates[-1], len(rates)
        ([[0.1, 0.2], [0.3, 0.4]], [0.3, 0.4], 2)

    Args:
        rows: the first ones.
    """

    def __init__(self, rows: Iterable[Sequence[float]] = ()) -> None:
        self._values, self._width = array("d"), 0
        for row in rows:
            self.append(row)

    def append(self, row: Sequence[float]) -> None:
        """Add a row at the end.

        Raises:
            ValueError: if it is of another length than those before it.
        """
        if self._values and len(row) != self._width:
            raise ValueError(f"a row of {len(row)} numbers, expected {self._width} as before")
        self._width = len(row)
        self._values.extend(row)

    def tolist(self) -> list[list[float]]:
        """Return them as a list of lists."""
        return list(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._values, dtype).reshape(len(self), self._width)

    def __len__(self) -> int:
        return len(self._values) // self._width if self._width else 0

    @overload
    def __getitem__(self, index: int) -> list[float]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[float]]: ...

    def __getitem__(self, index: int | slice) -> list[float] | list[list[float]]:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        start = range(len(self))[index] * self._width
        return self._values[start : start + self._width].tolist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, NumberRows):
            return (self._width, self._values) == (other._width, other._values)
        return self.tolist() == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.tolist())


class EpochResult(NamedTuple):
    """What one epoch of training came to.

    Attributes:
        loss: mean cross entropy in nats, without regularisers.
        items: tokens (language model) or texts (classifier) trained on.
        seconds: wall time.
    """

    loss: float
    items: int
    seconds: float


@dataclass
class History:
    """Every step of a run, for its report.

    The numbers of a step are kept in eight bytes each: a run of a million steps with four layer
    groups takes 48 MB. `tolist` makes lists of them.

    Attributes:
        losses: cross entropy of each step, in nats, with label smoothing and weights of texts
            where there are any.
        regularisers: AR + TAR of each step.
        lrs: learning rate of each layer group at each step, as the step was taken with it.
        epochs: result of each epoch.
        unfreeze_steps: first step of each stage of gradual unfreezing.
        valid_losses: cross entropy on the held-out documents after each epoch, in nats.
        average_step: number of steps after which NT-ASGD began to average, or None.
    """

    losses: Numbers = field(default_factory=Numbers)
    regularisers: Numbers = field(default_factory=Numbers)
    lrs: NumberRows = field(default_factory=NumberRows)
    epochs: list[EpochResult] = field(default_factory=list)
    unfreeze_steps: list[int] = field(default_factory=list)
    valid_losses: list[float] = field(default_factory=list)
    average_step: int | None = None
