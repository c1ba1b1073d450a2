"""What becomes of a row that cannot be read: it is raised, or left out, counted and told."""

from __future__ import annotations

import logging
from typing import Literal

__all__ = ["BadRows", "OnError"]

OnError = Literal["raise", "skip"]

_log = logging.getLogger("ulmfit_fast")

# So many of the skipped rows are told in full.
_SHOWN = 5


class BadRows:
    """Takes the rows that cannot be read, and raises the first or skips them all.

    >>> bad = BadRows("skip")
    >>> bad.meet(ValueError("a.txt, line 3: byte 0xe9 is not UTF-8"))
    >>> str(bad)
    '1 row skipped: a.txt, line 3: byte 0xe9 is not UTF-8'

    Args:
        on_error: "raise" or "skip".

    Attributes:
        count: rows skipped so far; a file whose rest cannot be read counts as one.

    Raises:
        ValueError: if on_error is something else.
    """

    def __init__(self, on_error: OnError = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r:.60}, expected 'raise' or 'skip'")
        self.skips = on_error == "skip"
        self.count = 0
        self._first: list[str] = []

    def meet(self, error: ValueError) -> None:
        """Raise what is wrong with a row, or note it.

        Args:
            error: names the file and the line, what is wrong, and the mend.
        """
        if not self.skips:
            raise error
        self.count += 1
        if len(self._first) < _SHOWN:
            self._first.append(str(error))

    def tell(self) -> None:
        """Warn of what was skipped, if anything was."""
        if self.count:
            _log.warning("%s", self)

    def __str__(self) -> str:
        """Show how many rows there were, and the first of them."""
        rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
        which = "" if self.count <= _SHOWN else f", the first {_SHOWN}"
        return f"{rows} skipped{which}: {' | '.join(self._first)}"
