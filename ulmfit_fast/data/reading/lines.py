"""Lines of a file, plain or gzipped, and its encoding; what becomes of those that are no text."""

from __future__ import annotations

import codecs
import functools
import gzip
import io
import logging
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

__all__ = [
    "STANDARD_INPUT",
    "ZIPPED",
    "Line",
    "OnError",
    "Reading",
    "TextFile",
    "decoded_lines",
    "lines_of",
    "numbered_lines",
    "opened",
    "usual_delimiter",
]

_log = logging.getLogger("ulmfit_fast")

OnError = Literal["raise", "skip", "skip_few"]
# So many of the skipped rows are logged in full.
_SHOWN = 5
# What "skip_few" leaves out at most: so many rows, or this share of them.
_FEW_ROWS = 3
_FEW_SHARE = 0.05
ZIPPED = ".gz"
# Read as it comes, also where the system has no file of this name.
STANDARD_INPUT = Path("/dev/stdin")
# What is longer has lost its line ends. Memory stays bounded.
_LINE_BYTES = 2**28
# As classic Mac OS ended its lines. One at the very end may be the first half of a CRLF.
_CR_ALONE = re.compile(rb"\r(?!\n|\Z)")
_LINE_ENDS = (b"\n", b"\r")
# So many bytes at the start of a file decide on its encoding, and of them so many on its columns.
_START_BYTES = 2**22
_LINES_BYTES = 2**16
# The marks of UTF-32 begin with those of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CP1252 = {byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(128, 160)}
# Vowels with accents that are words, and signs: the euro, dashes, quotes and the like, in cp1252.
_ALONE = (
    r"\udc80\udc85\udc91-\udc94\udc96\udc97\udca0\udca1\udca3\udca7\udcaa\udcab\udcb0\udcb7\udcba"
    r"\udcbb\udcbf\udcc0\udcc1\udcc9\udcd3\udce0\udce1\udce8\udce9\udcec\udced\udcf2-\udcf4"
)
# Bytes that are not UTF-8 come as halves of characters.
_BROKEN = re.compile("[\udc80-\udcff]+")
# Such as Western texts have: few in a row and at a letter, or a word or a sign alone.
_WESTERN = re.compile(
    "(?<![\udc80-\udcff])(?:(?<=[A-Za-z])[\udc80-\udcff]{1,3}|[\udc80-\udcff]{1,3}(?=[A-Za-z])"
    f"|[{_ALONE}])(?![\udc80-\udcff])"
)
_BEYOND_ASCII = re.compile("[^\0-\x7f\udc80-\udcff]")
_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error)


class Reading:
    """How files are read: what is said of all of them, and what becomes of rows that cannot be.

    >>> reading = Reading("skip")
    >>> reading.skip_or_raise(ValueError("a.txt, line 3: byte 0xe9 is not UTF-8"))
    >>> str(reading)
    '1 row skipped: a.txt, line 3: byte 0xe9 is not UTF-8'

    Args:
        on_error: "raise"; "skip"; or "skip_few", which at the end refuses to have skipped more than
            5 % of the rows, and more than three of them.
        delimiter: between the columns of .csv and .tsv files; None finds it in each.
        encoding: of text files; None finds it in each.

    Attributes:
        count: rows skipped so far; a file whose rest cannot be read counts as one.
        first: what was wrong with the first of them.
        logs: whether it is logged what was assumed.
        assumed: of each file the delimiter and the encoding, as far as they are not the usual ones.

    Raises:
        TypeError: if encoding is no string.
        ValueError: if an argument is something else.
    """

    def __init__(
        self,
        on_error: OnError = "raise",
        delimiter: str | None = None,
        encoding: str | None = None,
    ) -> None:
        if on_error not in ("raise", "skip", "skip_few"):
            raise ValueError(
                f"on_error is {on_error!r:.60}, expected 'raise', 'skip' or 'skip_few'"
            )
        self.skips = on_error != "raise"
        self.count = 0
        self.first: list[str] = []
        self.assumed: dict[Path, dict[str, str]] = {}
        self.delimiter, self.encoding = _checked_delimiter(delimiter), _checked_encoding(encoding)
        self.logs = True
        self._few = on_error == "skip_few"

    def quiet_copy(self) -> Reading:
        """Return a reading of the same files that says nothing and skips what cannot be read."""
        other = Reading("skip", self.delimiter, self.encoding)
        other.logs = False
        return other

    def log_assumption(self, path: Path, **found: str) -> None:
        """Say in the log how a file is read, where that was not said nor is what is usual.

        Args:
            path: the file.
            found: its encoding, its delimiter, or both.
        """
        usual = {"encoding": "utf-8", "delimiter": usual_delimiter(path)}
        known = {name for name in found if getattr(self, name) is not None}
        own = {n: value for n, value in found.items() if n not in known and value != usual[n]}
        if own and path not in self.assumed:
            self.assumed[path] = own
            if self.logs and len(self.assumed) <= _SHOWN:
                what = " and ".join(f"{name} {value!r}" for name, value in own.items())
                names = " or ".join(f"{name}=" for name in own)
                _log.warning("%s is read with %s; where that is wrong, pass %s", path, what, names)

    def skip_or_raise(self, error: ValueError) -> None:
        """Raise what is wrong with a row, or note it.

        Args:
            error: names the file and the line, what is wrong, and the mend.
        """
        if not self.skips:
            raise error
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(str(error))

    def skips_too_many(self, read: int) -> bool:
        """Return whether more rows are skipped than a few, beside so many that were read."""
        return self.count > max(_FEW_ROWS, _FEW_SHARE * (self.count + read))

    def end(self, read: int) -> None:
        """Warn of what was skipped, if anything was, or refuse it.

        Args:
            read: rows that were not skipped.

        Raises:
            ValueError: for more than a few, where that was asked for.
        """
        if self._few and self.skips_too_many(read):
            raise ValueError(
                f"{self.count:,} of {self.count + read:,} rows cannot be read, expected at most "
                f"{100 * _FEW_SHARE:.0f} %: {self.first[0]}; mend them, or pass the delimiter= or "
                "encoding= of the files"
            )
        if self.count:
            _log.warning("%s", self)
        if len(self.assumed) > _SHOWN:
            _log.warning("%d more files are read so, or likewise", len(self.assumed) - _SHOWN)

    def __str__(self) -> str:
        """Show how many rows there were, and the first of them."""
        rows = "1 row" if self.count == 1 else f"{self.count:,} rows"
        which = "" if self.count <= _SHOWN else f", the first {_SHOWN}"
        return f"{rows} skipped{which}: {' | '.join(self.first)}"


class TextFile(NamedTuple):
    """An open file, and how its text is written."""

    path: Path
    file: _Readable
    # As `codecs` names it; what is read of the file is in UTF-8 where ASCII is not a part of it.
    encoding: str
    # What decides: the first bytes.
    start: bytes

    def first_lines(self) -> list[str]:
        """Return the lines at the start, but for one that goes on after it."""
        text = _decoder_of(self.encoding)(self.start[:_LINES_BYTES], "replace")
        lines = list(io.StringIO(text.removeprefix("\ufeff"), newline=""))
        return lines[:-1] if len(lines) > 1 and not lines[-1].endswith(("\n", "\r")) else lines


@contextmanager
def opened(path: Path, encoding: str | None = None) -> Iterator[TextFile]:
    """Open a file, also a gzipped one, and find out how its text is written.

    Args:
        path: an existing file.
        encoding: as `Reading` has it, or None: then a mark at the start decides, the
            NUL bytes that UTF-16 has in Western text, and `_guessed_encoding`. Of a pipe no more is
            looked at than has come.
    """
    with ExitStack() as stack:
        raw = _opened(path, stack)
        start = _start_of(raw, is_pipe=path == STANDARD_INPUT or not path.is_file())
        found = encoding or _guessed_encoding(start)
        file: _Readable = raw
        if not _holds_ascii(found):
            file = _Transcoded(raw, found)
            # Standard input stays open.
            stack.callback(file.detach)
        yield TextFile(path, file, found, start)


def _opened(path: Path, stack: ExitStack) -> Any:
    if path != STANDARD_INPUT:
        return stack.enter_context(
            gzip.open(path) if path.suffix.lower() == ZIPPED else path.open("rb")
        )
    if sys.stdin is None:
        raise OSError("standard input is closed, expected texts, one a line")
    file: Any = sys.stdin.buffer
    if not hasattr(file, "peek"):
        # Where it is replaced by bytes in memory.
        file = io.BufferedReader(file)
        stack.callback(file.detach)
    return file


def _start_of(file: Any, *, is_pipe: bool) -> bytes:
    parts: list[bytes] = []
    size = 0
    # What is damaged is told when it is read.
    with suppress(*_DAMAGE):
        if is_pipe:
            return bytes(file.peek(1))
        while size < _START_BYTES and (part := file.read1(_START_BYTES - size)):
            parts.append(part)
            size += len(part)
    if not is_pipe:
        file.seek(0)
    return b"".join(parts)


def _checked_delimiter(sign: str | None) -> str | None:
    if sign is None or sign == r"\t":
        # As a shell hands in a tab that is written so.
        return sign and "\t"
    if not (isinstance(sign, str) and len(sign) == 1 and sign not in '\r\n"\0 '):
        raise ValueError(
            f"delimiter is {sign!r:.60}, expected one character, such as ',', ';', '|' or '\\t'"
        )
    return sign


def _checked_encoding(name: str | None) -> str | None:
    """Return the name of an encoding as `codecs` has it.

    >>> _checked_encoding("Latin1"), _checked_encoding("UTF8"), _checked_encoding(None)
    ('iso8859-1', 'utf-8', None)

    Args:
        name: any name that Python knows, or None.

    Raises:
        TypeError: if it is no string.
        ValueError: if there is no such encoding of text.
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(
            f"encoding is {name!r:.60} ({type(name).__name__}), expected a name such as 'cp1252'"
        )
    try:
        b"a".decode(name, "replace")
        found = codecs.lookup(name).name
    except (LookupError, ValueError, UnicodeError):
        raise ValueError(
            f"encoding is {name!r:.60}, which is none that Python knows, expected one such as "
            "utf-8, cp1252, latin-1 or utf-16"
        ) from None
    return "utf-8" if found == "utf-8-sig" else found


def _guessed_encoding(start: bytes) -> str:
    r"""Return the encoding of a file by its first bytes; all but Western ones have to be named.

    A file is in cp1252 if of the sequences beyond ASCII at least ten to one are broken as UTF-8,
    and half of these or more are at a letter or a usual sign, as accents are and damage is not. A
    broken line in a file of UTF-8 leaves it UTF-8, as does one that comes after some megabytes.

    >>> _guessed_encoding("n\u00e3o".encode("cp1252")), _guessed_encoding(b"no\xff\n\xc3\xa9")
    ('cp1252', 'utf-8')

    Args:
        start: of the file, as much as there is.
    """
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    # Without a mark, every other byte of Western text is a NUL.
    line = start[:200].split(b"\n")[0]
    even, odd = any(line[::2]), any(line[1::2])
    if len(line) >= 4 and even != odd:
        return "utf-16-le" if even else "utf-16-be"
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(start)
    broken = len(_BROKEN.findall(text))
    if not broken or b"\0" in start:
        return "utf-8"
    whole = len(_BEYOND_ASCII.findall(text))
    is_western = 2 * len(_WESTERN.findall(text)) >= broken
    return "cp1252" if is_western and broken >= 10 * whole else "utf-8"


def _decoder_of(encoding: str) -> Callable[[bytes, str], str]:
    """Return a function from bytes to text; cp1252 has latin-1 where it has no character."""
    if encoding == "cp1252":
        return lambda raw, _: raw.decode("latin-1").translate(_CP1252)
    return lambda raw, errors: raw.decode(encoding, errors)


@functools.cache
def _holds_ascii(encoding: str) -> bool:
    ascii = bytes(range(128))
    return ascii.decode(encoding, "replace") == ascii.decode("ascii")


class _Transcoded(io.TextIOWrapper):
    """Reads lines in UTF-8 of a file in an encoding in which a line end is not one byte."""

    def __init__(self, file: Any, encoding: str) -> None:
        # Half a character goes on, and is a fault of its line.
        errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "strict"
        super().__init__(file, encoding=encoding, errors=errors, newline="\n")

    def readline(self, size: int = -1, /) -> bytes:  # type: ignore[override]
        """Return the next line, at most so many characters."""
        return super().readline(size).encode("utf-8", "surrogatepass")


def decoded_lines(path: Path, reading: Reading) -> Iterator[tuple[int, str]]:
    """Decode a file, also a gzipped one, line by line, so that an error can name its line.

    Args:
        path: an existing file.
        reading: takes the lines that are no text in the file's encoding.
    """
    with opened(path, reading.encoding) as file:
        reading.log_assumption(path, encoding=file.encoding)
        yield from lines_of(file, reading)


def lines_of(file: TextFile, reading: Reading) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of all lines; `reading` takes those that are no text."""
    for line in numbered_lines(file, reading):
        if line.fault is None:
            yield line.number, line.text
        else:
            reading.skip_or_raise(line.fault)


def usual_delimiter(path: Path) -> str:
    r"""Return what separates the columns of such a file where nothing else is known.

    >>> usual_delimiter(Path("a.csv")), usual_delimiter(Path("a.tsv.gz"))
    (',', '\t')
    """
    return "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]] else ","


class Line(NamedTuple):
    """A line, and what is wrong with it."""

    number: int
    text: str
    fault: ValueError | None = None


def numbered_lines(file: TextFile, reading: Reading) -> Iterator[Line]:
    """Yield all lines; `reading` takes the rest of a file that cannot be read on."""
    number = offset = 0
    path, _, encoding, _ = file
    decode = _decoder_of(encoding if _holds_ascii(encoding) else "utf-8")
    try:
        pieces = _pieces(file.file)
        for number, raw in enumerate(pieces, start=1):
            line, size = _decoded(file, decode, number, offset, raw), len(raw)
            if size >= _LINE_BYTES and not raw.endswith(_LINE_ENDS):
                size += _skip_line(pieces)
                fault = ValueError(
                    f"{path}, line {number}: longer than {_LINE_BYTES:,} bytes, expected a "
                    "text; put line ends between the texts"
                )
                line = Line(number, "", fault)
            yield line
            offset += size
    except _DAMAGE as error:
        reading.skip_or_raise(
            ValueError(
                f"{path}, line {number + 1}: not a whole gzip file ({error}), it cannot be "
                "read on; fetch it anew"
            )
        )
    except UnicodeError as error:
        reading.skip_or_raise(
            ValueError(
                f"{path}, line {number + 1}: not {_shown(encoding)} ({error}), it cannot be read "
                "on; pass another encoding= or save as UTF-8"
            )
        )


def _shown(encoding: str) -> str:
    return encoding.upper() if encoding.startswith("utf") else encoding


class _Readable(Protocol):
    def readline(self, size: int, /) -> bytes:
        """Return what is left up to the next line feed, at most so many bytes."""


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


def _skip_line(pieces: Iterator[bytes]) -> int:
    """Go on to the end of a line that is not kept; return how many bytes that took."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if piece.endswith(_LINE_ENDS):
            break
    return size


def _decoded(
    file: TextFile, decode: Callable[[bytes, str], str], number: int, offset: int, raw: bytes
) -> Line:
    fault = None
    try:
        text = decode(raw, "strict")
    except UnicodeDecodeError as error:
        fault = ValueError(
            f"{file.path}, line {number}: byte 0x{raw[error.start]:02x} is not "
            f"{_shown(file.encoding)} (offset {offset + error.start} of the text); save as UTF-8, "
            "or pass the encoding= of the whole file"
        )
        text = decode(raw, "replace")
    if b"\0" in raw:
        fault = fault or ValueError(
            f"{file.path}, line {number}: a NUL byte (offset {offset + raw.index(0)} of the text), "
            "expected text; remove it or fetch the file anew"
        )
        # Before Python 3.11 the csv module stops at one.
        text = text.replace("\0", " ")
    return Line(number, text.removeprefix("\ufeff") if number == 1 else text, fault)
