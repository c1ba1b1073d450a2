"""Files of weights, looked at before a model is built: names, dtypes and shapes, finite values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.nn.weights import Place, check_finite
from ulmfit_fast.system.files import name_in_utf8
from ulmfit_fast.ulmfit.model_schema import ModelDescription, shown

__all__ = ["SINGLE_FILE", "check_model", "check_room", "opened", "read_weights", "tensors_of"]

SINGLE_FILE = "model.safetensors"
_OUTPUT = "head.6.weight"
# As safetensors calls them.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
_MOST_LISTED = 3


class _Entry(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


class _Part(NamedTuple):
    """A model, its tensors without memory as long as they are not read."""

    model: LanguageModel | TextClassifier
    dtype: torch.dtype
    prefix: str


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return what the state_dict holds, a shared tensor under the first of its names alone."""
    kept = model.state_dict()
    return {names[0]: kept[names[0]].contiguous() for names in _names_of(model)}


def _names_of(model: nn.Module) -> list[list[str]]:
    """Return the names of each tensor of the state_dict; a shared one has several."""
    kept = model.state_dict()
    names: dict[int, list[str]] = {}
    for source in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in source:
            if name in kept:
                names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def check_room(path: Path, about: ModelDescription) -> None:
    """Refuse sizes that the files of weights cannot have, before memory is taken for them.

    Args:
        path: of the model's directory.
        about: what its config.json says.

    Raises:
        FileNotFoundError: if a file of weights is missing.
        ValueError: if it is too small for what is described.
    """
    models = (
        ("language_model", about.language_model, about.language_model_dtype, 0),
        ("classifier", about.encoder, about.classifier_dtype, about.head.get("hidden", 0)),
    )
    for name, config, dtype, width in models:
        if config is None:
            continue
        file = _file_of(path, name, about)
        emb, hidden, layers = config.emb_size, config.hidden_size, config.num_layers
        first, last = 4 * hidden * (emb + hidden), 4 * emb * (hidden + emb)
        several = first + 8 * hidden**2 * (layers - 2) + last
        encoder = config.vocab_size * emb + (8 * emb**2 if layers == 1 else several)
        head = width * (3 * emb + len(about.labels))
        # A head may be in float32 beside an encoder in float64.
        least = encoder * dtype.itemsize + head * min(dtype.itemsize, 4)
        held = file.stat().st_size
        if least > held:
            raise Place(f"{file} does not fit its config.json").error(
                f"it has {held:,} bytes, and at least {least:,} are described"
            )


def _file_of(path: Path, name: str, about: ModelDescription) -> Path:
    file = path / (SINGLE_FILE if about.single_file else f"{name}.safetensors")
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} has no {file.name}, so it is no complete model directory; save the model again"
        )
    return file


def read_weights(
    path: Path, about: ModelDescription
) -> tuple[LanguageModel | None, TextClassifier | None]:
    """Build the models of a directory around the tensors of its files, on the CPU.

    No random weight is drawn. Every tensor has to have the name, dtype and shape that the
    config.json asks for, and finite values.

    Args:
        path: of the model's directory; `check_room` has looked at it.
        about: what its config.json says.

    Returns:
        The language model and the classifier in evaluation mode, or None.

    Raises:
        FileNotFoundError: if a file of weights is missing.
        ValueError: if a file is damaged or does not fit.
    """
    found: dict[str, Any] = {"language_model": None, "classifier": None}
    configs = {"language_model": about.language_model, "classifier": about.encoder}
    described = [name for name, config in configs.items() if config is not None]
    for names in [described] if about.single_file else [[name] for name in described]:
        file = _file_of(path, "".join(names[:1]), about)
        place = Place(f"{file} does not fit its config.json")
        with opened(file, place) as stored:
            kept_names = set(stored.keys())
            parts = {name: _described(place, name, about, kept_names) for name in names}
            where = _located(place, kept_names, list(parts.values()))
            entries = {name: _entry(stored, name) for name in kept_names}
            _compare(place, entries, list(parts.values()), where)
            for name, part in parts.items():
                own = where[part.prefix]
                # Not views of the file, which others may change.
                read = {
                    kept: stored.get_tensor(kept).clone() for kept in dict.fromkeys(own.values())
                }
                check_finite(Place(file), read)
                found[name] = _filled(part.model, {key: read[kept] for key, kept in own.items()})
    return found["language_model"], found["classifier"]


@contextmanager
def opened(file: Path, place: Place) -> Iterator[Any]:
    """Open a file of safetensors; what is wrong with it is an error of the place.

    Args:
        file: the file.
        place: what it is, for the error.

    Raises:
        ValueError: if it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with name_in_utf8(file) as name, safe_open(name, "pt") as stored:
            yield stored
    except (SafetensorError, RuntimeError) as error:
        # The library quotes the file.
        reason = " ".join(str(error).split()).encode("unicode_escape").decode()
        raise place.error(f"{reason:.300}") from error


def _entry(stored: Any, name: str) -> _Entry:
    tensor = stored.get_slice(name)
    return _Entry(tensor.get_dtype(), tuple(tensor.get_shape()))


def _described(place: Place, name: str, about: ModelDescription, stored: Collection[str]) -> _Part:
    """Return a model without memory, once there are tensors for all of its layers."""
    prefix = f"{name}." if about.single_file else ""
    config = about.language_model if name == "language_model" else about.encoder
    assert config is not None
    layers = (f"{prefix}encoder.rnns.{n}.weight_hh_l0" for n in range(config.num_layers))
    lacking = next((key for key in layers if key not in stored), None)
    if lacking is not None:
        raise place.error(
            f"it lacks {shown(lacking)}, and {config.num_layers} layers are described"
        )
    if name == "language_model":
        return _Part(_without_memory(config), about.language_model_dtype, prefix)
    model = _without_memory(config, len(about.labels), **about.head)
    return _Part(model, about.classifier_dtype, prefix)


def _without_memory(
    config: AWDLSTMConfig, num_classes: int | None = None, **head: Any
) -> LanguageModel | TextClassifier:
    made: dict[str, Any] = {"device": "meta", "dtype": torch.float32}
    if num_classes is None:
        return LanguageModel(config, **made)
    return TextClassifier(AWDLSTM(config, **made), num_classes, **head, **made)


def _located(
    place: Place, stored: Collection[str], parts: list[_Part]
) -> dict[str, dict[str, str]]:
    """Return, by prefix, where each tensor of a model stands; a shared one has one of its names."""
    where: dict[str, dict[str, str]] = {}
    for prefix, model in ((part.prefix, part.model) for part in parts):
        where[prefix] = {}
        for names in _names_of(model):
            name = next((name for name in names if f"{prefix}{name}" in stored), names[0])
            where[prefix] |= dict.fromkeys(names, f"{prefix}{name}")
    needed = {name: None for names in where.values() for name in names.values()}
    lacking = [name for name in needed if name not in stored]
    if lacking:
        raise place.error(f"it lacks {_listed(lacking)}")
    surplus = sorted(name for name in stored if name not in needed)
    if surplus:
        raise place.error(f"it has {_listed(surplus)}, expected no such tensor")
    return where


def _compare(
    place: Place,
    entries: Mapping[str, _Entry],
    parts: list[_Part],
    where: Mapping[str, Mapping[str, str]],
) -> None:
    """Refuse tensors of another shape or dtype than the models have."""
    for part in parts:
        for own, tensor in part.model.state_dict().items():
            name = where[part.prefix][own]
            entry, shape = entries[name], tuple(tensor.shape)
            if entry.shape != shape:
                labels = ", one row for each of the labels" if own == _OUTPUT else ""
                raise place.error(
                    f"{name} has shape {shown(entry.shape)}, expected {shape}{labels}"
                )
            dtype = _dtype_of(part, own, entries) if tensor.is_floating_point() else tensor.dtype
            if entry.dtype != _DTYPES[dtype]:
                raise place.error(f"{name} has dtype {entry.dtype}, expected {_DTYPES[dtype]}")


def _dtype_of(part: _Part, name: str, entries: Mapping[str, _Entry]) -> torch.dtype:
    # Fitting puts a head in float32 on the encoder of a language model in another dtype.
    is_float32 = name.startswith("head.") and entries[f"{part.prefix}{_OUTPUT}"].dtype == "F32"
    return torch.float32 if is_float32 else part.dtype


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(map(shown, names[:_MOST_LISTED])) + more


def _filled(
    model: LanguageModel | TextClassifier, tensors: dict[str, Tensor]
) -> LanguageModel | TextClassifier:
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def check_model(name: str, model: LanguageModel | TextClassifier, num_labels: int) -> None:
    """Refuse a model that could not be read again, before it is written.

    Args:
        name: of the model, for the error.
        model: a language model or a classifier.
        num_labels: as many labels as there are.

    Raises:
        ValueError: if its tensors are not those of its configuration, or are not finite.
    """
    place = Place(f"the {name} cannot be saved", "mend it, or keep its state_dict by torch.save")
    if isinstance(model, LanguageModel):
        expected = _without_memory(model.config)
    else:
        if num_labels != model.num_classes:
            raise place.error(
                f"it has {model.num_classes} classes and there are {num_labels} labels, expected "
                "one for each"
            )
        expected = _without_memory(model.encoder.config, num_labels, hidden=model.hidden)
    dtype = next(model.parameters()).dtype
    if not (dtype in _DTYPES and dtype.is_floating_point):
        raise place.error(f"it has {dtype}, expected float32, float64, float16 or bfloat16")
    tensors = tensors_of(model)
    entries = {
        key: _Entry(_DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape))
        for key, value in tensors.items()
    }
    part = _Part(expected, dtype, "")
    _compare(place, entries, [part], _located(place, entries, [part]))
    check_finite(place, tensors)
