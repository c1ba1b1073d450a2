"""Stop between two steps when the system, or the user, asks for it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ulmfit_fast.system.distributed import any_rank

__all__ = ["StopRequest"]

_log = logging.getLogger("ulmfit_fast")


class StopRequest:
    """Remember that SIGTERM or SIGINT came in, until a step is over.

    Attributes:
        requested: whether one came in.
    """

    def __init__(self) -> None:
        self._signal: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal came in."""
        return self._signal is not None

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            # The second time the user means at once.
            raise KeyboardInterrupt
        self._signal = number
        _log.warning("stopping after this step, with a checkpoint; once more stops at once")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take both signals in while the block runs; in other threads than the first do nothing."""
        self._signal = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                # One that was not set from Python could not be put back.
                if signal.getsignal(number) is not None:
                    before[number] = signal.signal(number, self._take)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_if_requested(self, message: str) -> None:
        """End the run if it was asked for.

        Args:
            message: says where it can be gone on with.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after SIGTERM, with the code that shells give it.
        """
        if not any_rank(self._signal is not None):
            return
        if self._signal is None:
            raise SystemExit(0)
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt(message)
        _log.warning("%s", message)
        raise SystemExit(128 + self._signal)
