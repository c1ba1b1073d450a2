"""Lines of a file in UTF-8, plain or gzipped, and what becomes of those that are no text."""

from __future__ import annotations

import gzip
import logging
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

__all__ = [
    "STANDARD_INPUT",
    "ZIPPED",
    "BadRows",
    "Line",
    "OnError",
    "decoded_lines",
    "numbered_lines",
]

_log = logging.getLogger("ulmfit_fast")

OnError = Literal["raise", "skip"]
# So many of the skipped rows are logged in full.
_SHOWN = 5
ZIPPED = ".gz"
# Read as it comes, also where the system has no file of this name.
STANDARD_INPUT = Path("/dev/stdin")
# What is longer has lost its line ends. Memory stays bounded.
_LINE_BYTES = 2**28
# As classic Mac OS ended its lines. One at the very end may be the first half of a CRLF.
_CR_ALONE = re.compile(rb"\r(?!\n|\Z)")
_LINE_ENDS = (b"\n", b"\r")
_MARKS_OF_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class BadRows:
    """Takes the rows that cannot be read, and raises the first or skips them all.

    >>> bad = BadRows("skip")
    >>> bad.take(ValueError("a.txt, line 3: byte 0xe9 is not UTF-8"))
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

    def take(self, error: ValueError) -> None:
        """Raise what is wrong with a row, or note it.

        Args:
            error: names the file and the line, what is wrong, and the mend.
        """
        if not self.skips:
            raise error
        self.count += 1
        if len(self._first) < _SHOWN:
            self._first.append(str(error))

    def log(self) -> None:
        """Warn of what was skipped, if anything was."""
        if self.count:
            _log.warning("%s", self)

    def __str__(self) -> str:
        """Show how many rows there were, and the first of them."""
        rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
        which = "" if self.count <= _SHOWN else f", the first {_SHOWN}"
        return f"{rows} skipped{which}: {' | '.join(self._first)}"


def decoded_lines(path: Path, bad: BadRows) -> Iterator[tuple[int, str]]:
    """Decode a file, also a gzipped one, line by line, so that an error can name its line.

    Args:
        path: an existing file.
        bad: takes the lines that are no text in UTF-8.
    """
    for line in numbered_lines(path, bad):
        if line.fault is None:
            yield line.number, line.text
        else:
            bad.take(line.fault)


class Line(NamedTuple):
    """A line, and what is wrong with it."""

    number: int
    text: str
    fault: ValueError | None = None


def numbered_lines(path: Path, bad: BadRows) -> Iterator[Line]:
    """Yield all lines; `bad` takes the rest of a file that cannot be read on."""
    number = offset = 0
    with _opened(path) as file:
        try:
            pieces = _pieces(file)
            for number, raw in enumerate(pieces, start=1):
                if number == 1 and _is_utf_16(raw):
                    bad.take(
                        ValueError(
                            f"{path}, line 1: the file is in UTF-16, expected UTF-8; save as "
                            "UTF-8 (iconv -f UTF-16 -t UTF-8)"
                        )
                    )
                    return
                line, size = _decoded(path, number, offset, raw), len(raw)
                if size >= _LINE_BYTES and not raw.endswith(_LINE_ENDS):
                    size += _passed_over(pieces)
                    fault = ValueError(
                        f"{path}, line {number}: longer than {_LINE_BYTES:,} bytes, expected a "
                        "text; put line ends between the texts"
                    )
                    line = Line(number, "", fault)
                yield line
                offset += size
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            bad.take(
                ValueError(
                    f"{path}, line {number + 1}: not a whole gzip file ({error}), it cannot be "
                    "read on; fetch it anew"
                )
            )


class _Readable(Protocol):
    def readline(self, size: int, /) -> bytes:
        """Return what is left up to the next line feed, at most so many bytes."""


def _opened(path: Path) -> AbstractContextManager[_Readable]:
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise OSError("standard input is closed, expected texts, one a line")
        return nullcontext(sys.stdin.buffer)
    return gzip.open(path) if path.suffix.lower() == ZIPPED else path.open("rb")


def _pieces(file: _Readable) -> Iterator[bytes]:
    """Yield lines with their ends, LF, CRLF or CR, and a line that is too long in pieces."""
    rest = b""
    while piece := file.readline(_LINE_BYTES):
        piece, start = rest + piece, 0
        for end in _CR_ALONE.finditer(piece) if b"\r" in piece else ():
            yield piece[start : end.end()]
            start = end.end()
        rest = piece[start:]
        if start == 0 or rest.endswith(b"\n"):
            yield rest
            rest = b""
    if rest:
        yield rest


def _passed_over(pieces: Iterator[bytes]) -> int:
    """Go on to the end of a line that is not kept; return how many bytes that took."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if piece.endswith(_LINE_ENDS):
            break
    return size


def _is_utf_16(first: bytes) -> bool:
    if first.startswith(_MARKS_OF_UTF_16):
        return True
    # Without a mark, every other byte of Western text is a NUL.
    start = first[:200]
    return len(start) >= 4 and any(start[::2]) != any(start[1::2])


def _decoded(path: Path, number: int, offset: int, raw: bytes) -> Line:
    fault = None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        fault = ValueError(
            f"{path}, line {number}: byte 0x{raw[error.start]:02x} is not UTF-8 (offset "
            f"{offset + error.start} of the text); save as UTF-8"
        )
        text = raw.decode("utf-8", "replace")
    if b"\0" in raw:
        fault = fault or ValueError(
            f"{path}, line {number}: a NUL byte (offset {offset + raw.index(0)} of the text), "
            "expected text; remove it or fetch the file anew"
        )
        # Before Python 3.11 the csv module stops at one.
        text = text.replace("\0", " ")
    return Line(number, text.removeprefix("\ufeff") if number == 1 else text, fault)
