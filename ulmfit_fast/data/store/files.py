"""What lies in the directory of a token store, and a look at whether it is sound.

ids.bin         all ids, document after document: uint16 where the vocabulary allows, else int32
offsets.npy     int64, where each document begins in ids.bin, and where the last one ends
tokenizer.json  the tokenizer that made them
meta.json       format, version, counts, and a digest of the tokenizer
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.system.directories import STORE_FORMAT, STORE_META
from ulmfit_fast.system.files import parse_json

__all__ = [
    "DTYPES",
    "FORMAT",
    "IDS",
    "META",
    "OFFSETS",
    "TOKENIZER",
    "VERSION",
    "digest_of",
    "read_meta",
    "read_offsets",
]

FORMAT, VERSION = STORE_FORMAT, 1
IDS, OFFSETS, TOKENIZER, META = "ids.bin", "offsets.npy", "tokenizer.json", STORE_META
DTYPES = ("<u2", "<i4")
# Looked through a piece at a time, so that as much is in memory.
_OFFSETS_AT_ONCE = 1_000_000


def digest_of(tokenizer: Tokenizer) -> str:
    """Return a digest of a tokenizer, which no other one has."""
    return hashlib.sha256(tokenizer.to_json().encode("utf-8", "surrogatepass")).hexdigest()


def read_meta(directory: Path) -> dict[str, Any]:
    """Read what describes a store, and see that it is sound and its files are there.

    Raises:
        FileNotFoundError: if there is no store, or a file of it is missing.
        ValueError: if it is damaged or of a newer version.
    """
    path = directory / META
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} is no token store: it has no {META}; make one with TokenStore.build"
        )
    try:
        meta = parse_json(path.read_text(encoding="utf-8"), META)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); build the store anew") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"{path} is not that of a token store; choose another directory")
    if type(meta.get("version")) is not int or meta["version"] != VERSION:
        raise ValueError(
            f"{path} has version {meta.get('version')!r:.60}, expected {VERSION}; update "
            "ulmfit_fast"
        )
    for name in (IDS, OFFSETS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} has no {name}; build the store anew")
    for name, sound in _SOUND.items():
        value = meta.get(name)
        if not sound(value):
            raise ValueError(f"{path} is damaged ({name} is {value!r:.60}); build the store anew")
    return meta


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**63


_SOUND: dict[str, Callable[[object], bool]] = {
    "dtype": lambda value: value in DTYPES,
    "vocab_size": _is_count,
    "documents": _is_count,
    "tokens": _is_count,
    "tokenizer": lambda value: isinstance(value, str),
}


def read_offsets(path: Path, documents: int, tokens: int) -> npt.NDArray[np.int64]:
    """Map where the documents begin and end, and see that they lie one behind the other.

    Raises:
        ValueError: if the file is damaged, or does not belong to so many documents and tokens.
    """
    try:
        # Unlike np.load, it takes nothing but an array, and none of objects.
        offsets: Any = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    # NumPy reads the header with Python's own tokenizer, which has errors of many kinds.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason:.200}); build the store anew") from error
    sound = offsets.dtype == np.dtype("<i8") and offsets.shape == (documents + 1,)
    if not sound or offsets[0] != 0 or offsets[-1] != tokens:
        raise ValueError(
            f"{path} does not end at {tokens} tokens of {documents} documents; the store is "
            "damaged, build it anew"
        )
    for start in range(0, documents, _OFFSETS_AT_ONCE):
        if (np.diff(offsets[start : start + _OFFSETS_AT_ONCE + 1]) < 0).any():
            raise ValueError(
                f"{path} has documents that end before they begin; the store is damaged, build it "
                "anew"
            )
    return offsets  # type: ignore[no-any-return]
