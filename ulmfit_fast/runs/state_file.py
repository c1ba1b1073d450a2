"""Nested plain values and tensors as one safetensors file, with a checksum; nothing is pickled."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ulmfit_fast.system.files import file_in_place, name_in_utf8

__all__ = ["DamagedState", "read_state", "write_state"]

_FORMAT = "ulmfit_fast run"
_VERSION = 1
# Keys of the objects that stand for what JSON does not have; no state has such keys itself.
_TENSOR, _TUPLE, _PAIRS = "$tensor", "$tuple", "$pairs"


class DamagedState(ValueError):
    """A file that is not what was written: torn, truncated or changed."""


def write_state(path: Path, state: Any) -> None:
    """Write a state to a file that is there as a whole or not at all.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> write_state(file, {"step": 3, "betas": (0.9, 0.99), "rows": {0: torch.ones(2)}})
        >>> read_state(file)
        {'step': 3, 'betas': (0.9, 0.99), 'rows': {0: tensor([1., 1.])}}

    Args:
        path: the file; an older one is replaced once the new one is on the disk.
        state: None, truth values, numbers, strings and tensors, in dicts (keys str or int), lists
            and tuples.

    Raises:
        TypeError: if the state holds anything else.
        OSError: if it cannot be written; an older file stays as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    values = json.dumps(_packed(state, tensors, "state"))
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "values": values,
        "checksum": str(_checksum(values, tensors)),
    }
    try:
        with file_in_place(path) as file:
            save_file(tensors, str(file), metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}; make room or move") from error


def read_state(path: Path) -> Any:
    """Read what `write_state` wrote, tensors on the CPU.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is none.
        DamagedState: if it is not what was written.
        ValueError: if it is of a newer version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with name_in_utf8(path) as place, safe_open(place, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, RuntimeError) as error:
        raise DamagedState(f"{path} is damaged: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise DamagedState(f"{path} holds no state of a run")
    if metadata.get("version") != str(_VERSION):
        raise ValueError(
            f"{path} has format version {metadata.get('version')}, this ulmfit_fast reads "
            f"{_VERSION}; install a newer ulmfit_fast"
        )
    if metadata.get("checksum") != str(_checksum(metadata.get("values", ""), tensors)):
        raise DamagedState(f"{path} is damaged: its checksum is not that of its content")
    try:
        return _unpacked(json.loads(metadata["values"]), tensors)
    # Whoever changes the content can also change the checksum.
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DamagedState(f"{path} is damaged: {error!r:.200}") from error


def _packed(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    if isinstance(value, Tensor):
        # Of a tensor that stands in two places safetensors would refuse the second.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise TypeError(f"{name} has keys other than str and int, which a state cannot hold")
        packed = [[key, _packed(v, tensors, f"{name}.{key}")] for key, v in value.items()]
        return dict(packed) if all(isinstance(key, str) for key in value) else {_PAIRS: packed}
    if isinstance(value, list | tuple):
        items = [_packed(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is {value!r:.60} ({type(value).__name__}), which a state cannot hold")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_unpacked(value[_TUPLE], tensors))
    if _PAIRS in value:
        return {key: _unpacked(v, tensors) for key, v in value[_PAIRS]}
    return {key: _unpacked(v, tensors) for key, v in value.items()}


def _checksum(values: str, tensors: dict[str, Tensor]) -> int:
    total = zlib.crc32(values.encode())
    for name in sorted(tensors):
        data: Any = tensors[name].reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(data, zlib.crc32(name.encode(), total))
    return total
