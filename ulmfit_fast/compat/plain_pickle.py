"""A pickle's lists and strings, read by following its instructions, without an unpickler."""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
from typing import Any

__all__ = ["PICKLE_ERRORS", "Other", "Refused", "kind_of", "lists_and_strings"]

# What following a pickle that is damaged, or none, may raise beside `Refused`.
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


class Refused(ValueError):
    """A pickle asks for something by name."""


class Other:
    """Stands where a pickle has something that is neither a list nor a string.

    Args:
        kind: the name of what it is.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind


_SEPARATED = re.compile(r"[ \n]+")
_STORING = {"PUT", "BINPUT", "LONG_BINPUT"}
_FETCHING = {"GET", "BINGET", "LONG_BINGET"}
_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
# Strings of Python 2, bytes of no known encoding beyond ASCII.
_OLD_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_NAMING = {"GLOBAL", "INST"}
_EXTENSIONS = {"EXT1", "EXT2", "EXT4"}


def lists_and_strings(content: bytes) -> object:
    r"""Follow a pickle as far as it makes lists and strings, without an unpickler.

    >>> lists_and_strings(b"]X\x03\x00\x00\x00cata.")
    ['cat']

    Python's own would take gigabytes or years for some pickles of a few bytes, and what it may call
    has to be kept from it. Here there is nothing to call. Whatever else a pickle makes is an
    `Other`.

    Args:
        content: the pickle's bytes.

    Raises:
        Refused: if it asks for something by name.
        ValueError: if it has no end, or one of the other `PICKLE_ERRORS` for other damage.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in _STRINGS:
            stack.append(argument)
        elif name in _OLD_STRINGS:
            if not argument.isascii():
                raise ValueError(f"a string of Python 2 that is not ASCII: {argument!r:.60}")
            stack.append(argument)
        elif name in _STORING or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _FETCHING:
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(pickletools.markobject)
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "LIST":
            stack.append(_down_to_mark(stack))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else _down_to_mark(stack)
            if type(stack[-1]) is list:
                stack[-1].extend(items)
        elif name in _NAMING:
            raise Refused(_SEPARATED.sub(".", argument))
        elif name == "STACK_GLOBAL":
            module, wanted = stack[-2:]
            raise Refused(f"{_shown(module)}.{_shown(wanted)}")
        elif name in ("PERSID", "BINPERSID"):
            raise Refused(f"a stored object {argument or stack[-1]!r:.60}")
        elif name in _EXTENSIONS:
            raise Refused(f"the extension {argument}")
        elif name == "STOP":
            return stack.pop()
        else:
            _follow(opcode, stack)
    raise ValueError("a pickle without an end")


def _down_to_mark(stack: list[Any]) -> list[Any]:
    """Take off and return what stands above the last mark, and the mark."""
    items = []
    while (item := stack.pop()) is not pickletools.markobject:
        items.append(item)
    return items[::-1]


def _follow(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> None:
    """Do to the stack what an instruction does that makes something else."""
    taken = len(opcode.stack_before)
    if pickletools.stackslice in opcode.stack_before:
        _down_to_mark(stack)
        # The mark and what stands above it are two of those it takes.
        taken -= 2
    if taken > len(stack):
        raise IndexError("a pickle takes what it has not made")
    if taken:
        del stack[-taken:]
    stack.extend(Other(kind.name) for kind in opcode.stack_after)


def _shown(part: object) -> str:
    return part[:60] if isinstance(part, str) else kind_of(part)


def kind_of(value: object) -> str:
    """Return the name of what a place of a pickle holds.

    Args:
        value: from `lists_and_strings`.
    """
    return value.kind if isinstance(value, Other) else type(value).__name__
