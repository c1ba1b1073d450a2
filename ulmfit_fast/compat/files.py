"""Files of other projects, read without running what is in them, and written whole or not at all.

Tensors come through `torch.load(weights_only=True)`, a pickled vocabulary by following its
instructions as far as they make lists and strings, without an unpickler. What else a file holds is
refused by name.
"""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ulmfit_fast.system.files import files_in_place, name_in_utf8, user_path
from ulmfit_fast.system.scoped import ignoring

__all__ = ["read_tensors", "read_words", "write_tensors_and_words"]

Source = str | os.PathLike[str]

_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")
# Of a file of weights, to look into for a name that it asks for.
_START = 2**20
_UNPICKLING_REASON = re.compile(r"WeightsUnpickler error: (.+)")


class _Ignored:
    """Stands where an optimizer's state holds something that is no tensor; does nothing."""

    def __new__(cls, *args: object) -> _Ignored:
        return object.__new__(cls)

    def __init__(self, *args: object) -> None:
        """Take no notice."""

    def __setstate__(self, state: object) -> None:
        """Take no notice."""


# fastai saves its optimizer beside the model by default, with these in it. PyTorch knows
# a class by its module and name, so that what is read is always the class that does nothing.
_IGNORED: list[Any] = [
    type(name, (_Ignored,), {"__module__": module})
    for module, name in (
        ("fastcore.foundation", "L"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
    )
]


def read_tensors(path: Source) -> dict[str, Any]:
    """Read what `torch.save` wrote, running nothing of it, or a safetensors file.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.ones(2)}, f"{folder}/lm.pth")
        ...     read_tensors(f"{folder}/lm.pth")
        {'weight': tensor([1., 1.])}

    Args:
        path: a file of tensors by name, of any age of PyTorch: fastai's .pth, and also .h5 of
            fastai 0.7 and .pt; or .safetensors.

    Returns:
        What the file holds, tensors on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but tensors and plain values, or is damaged.
    """
    path = user_path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, expected a file of weights; add its name")
    try:
        # It remarks on pickles of other protocols before it refuses them. What is safe is the
        # process's, as the filters are, and stays within their lock.
        with ignoring(UserWarning), torch.serialization.safe_globals(_IGNORED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _REFUSED_GLOBAL.search(str(error))
        name = found[1] if found else _first_global(path)
        if name is None:
            raise ValueError(_no_weights(path, error)) from error
        raise ValueError(
            f"{path} is refused: it asks for {name}, and a file of weights may hold tensors and "
            "plain values alone; a whole model must be loaded by the project that made it, and its "
            "state_dict saved"
        ) from error
    except (*PICKLE_ERRORS, RuntimeError) as error:
        raise ValueError(_no_weights(path, error)) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, expected tensors by name; save a state_dict"
        )
    return dict(content)


def _no_weights(path: Path, error: Exception) -> str:
    # PyTorch advises to read the file in the way that runs what is in it; the reason stands behind.
    found = _UNPICKLING_REASON.search(str(error))
    reason = found[1] if found else (str(error).splitlines() or [""])[0]
    if not reason or "weights_only" in reason:
        reason = type(error).__name__
    return f"{path} is no file of weights that torch.save wrote, or it is damaged ({reason:.200})"


def _first_global(path: Path) -> str | None:
    """Return what a pickle asks for first, where PyTorch gave up before it saw that."""
    with path.open("rb") as file:
        start = file.read(_START)
    try:
        lists_and_strings(start)
    except Refused as refused:
        return str(refused)
    except PICKLE_ERRORS:
        return None
    return None


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package safetensors; pip install 'ulmfit-fast[text]'"
        ) from error
    try:
        with name_in_utf8(path) as name:
            return dict(load_file(name))
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or it is damaged ({error})") from error


def read_words(path: Source) -> list[str]:
    """Read a vocabulary: a pickled list of strings, a .json list, or .txt with one word a line.

    Example:
        >>> import pickle, tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "itos.pkl")
        ...     _ = path.write_bytes(pickle.dumps(["xxunk", "the"]))
        ...     read_words(path)
        ['xxunk', 'the']

    Args:
        path: .json, .txt in UTF-8, or a pickle by any other name.

    Returns:
        The words in the order of their ids.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but a list of strings, or is damaged.
    """
    path = user_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, expected a vocabulary; add its name")
    try:
        if path.suffix == ".txt":
            # splitlines would also part a word at signs that are no line ends in a file.
            return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        if path.suffix == ".json":
            words = json.loads(path.read_text(encoding="utf-8-sig"))
        else:
            words = lists_and_strings(path.read_bytes())
    except Refused as error:
        raise ValueError(
            f"{path} is refused: it asks for {error}, and a vocabulary may hold a list of strings "
            "alone; write pickle.dump(list(words), file)"
        ) from error
    except (*PICKLE_ERRORS, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is no vocabulary, or it is damaged ({reason:.200})") from error
    # The class itself: a subclass could only come from something that was asked for by name.
    if type(words) is not list:
        raise ValueError(
            f"{path} is refused: it holds a {kind_of(words)}, expected a list of strings"
        )
    for position, word in enumerate(words):
        if type(word) is not str:
            raise ValueError(
                f"{path} is refused: place {position} holds a {kind_of(word)}, expected a list of "
                "strings"
            )
    return words


def write_tensors_and_words(
    path: Source, tensors: Mapping[str, Tensor], words: Sequence[str]
) -> tuple[Path, Path]:
    """Write the pair of files that fastai calls `pretrained_fnames`.

    Both are complete on the disk before the first is put in its place.

    Args:
        path: name of the weights, ending in .pth; the vocabulary gets the same name with .pkl.
            Files that are there are replaced.
        tensors: written by `torch.save`.
        words: written as a pickled plain list.

    Returns:
        The two paths.

    Raises:
        ValueError: if the name does not end in .pth, where fastai looks.
        OSError: if a file cannot be written; older ones stay as they were.
    """
    path = user_path(path)
    if path.suffix != ".pth":
        raise ValueError(f"{path} does not end in .pth, where fastai looks for weights; rename it")
    vocabulary = path.with_suffix(".pkl")
    for target in (path, vocabulary):
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a directory, expected a file; choose another")
    with files_in_place(path, vocabulary) as (weights, itos):
        torch.save(dict(tensors), weights)
        with itos.open("wb") as file:
            pickle.dump(list(words), file, protocol=4)
    return path, vocabulary


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
            stack.append(_pop_to_mark(stack))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else _pop_to_mark(stack)
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
            _execute(opcode, stack)
    raise ValueError("a pickle without an end")


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    """Take off and return what stands above the last mark, and the mark."""
    items = []
    while (item := stack.pop()) is not pickletools.markobject:
        items.append(item)
    return items[::-1]


def _execute(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> None:
    """Do to the stack what an instruction does that makes something else."""
    taken = len(opcode.stack_before)
    if pickletools.stackslice in opcode.stack_before:
        _pop_to_mark(stack)
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
