"""Files of weights, looked at before a model is built: names, dtypes and shapes, finite values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ulmfit_fast.model_schema import ModelDescription, Place, shown
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier

__all__ = ["SINGLE_FILE", "check_finite", "check_model", "check_room", "read_weights", "tensors_of"]

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
        with _opened(file, place) as stored:
            entries = {name: _entry(stored, name) for name in stored.keys()}
            parts = {name: _described(place, name, about, entries) for name in names}
            where = _compared(place, entries, list(parts.values()))
            for name, part in parts.items():
                tensors = {
                    # Not a view of the file, which others may change.
                    own: stored.get_tensor(kept).clone()
                    for own, kept in where[part.prefix].items()
                }
                check_finite(Place(file), tensors, prefix=part.prefix)
                found[name] = _filled(part.model, tensors)
    return found["language_model"], found["classifier"]


@contextmanager
def _opened(file: Path, place: Place) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as stored:
            yield stored
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise place.error(f"{reason:.300}") from error


def _entry(stored: Any, name: str) -> _Entry:
    tensor = stored.get_slice(name)
    return _Entry(tensor.get_dtype(), tuple(tensor.get_shape()))


def _described(
    place: Place, name: str, about: ModelDescription, entries: Mapping[str, _Entry]
) -> _Part:
    """Return a model without memory, which has no more layers than there are tensors for."""
    prefix = f"{name}." if about.single_file else ""
    config = about.language_model if name == "language_model" else about.encoder
    assert config is not None
    if 4 * config.num_layers > len(entries):
        raise place.error(
            f"it has {len(entries)} tensors, and {config.num_layers} layers are described, of 4 "
            "each"
        )
    if name == "language_model":
        return _Part(_without_memory(config), about.language_model_dtype, prefix)
    output = entries.get(f"{prefix}{_OUTPUT}")
    if output is not None and output.shape[:1] != (len(about.labels),):
        raise place.error(
            f"{prefix}{_OUTPUT} has shape {shown(output.shape)}, and there are "
            f"{len(about.labels)} labels, expected one for each row"
        )
    model = _without_memory(config, len(about.labels), **about.head)
    return _Part(model, about.classifier_dtype, prefix)


def _without_memory(
    config: AWDLSTMConfig, num_classes: int | None = None, **head: Any
) -> LanguageModel | TextClassifier:
    made: dict[str, Any] = {"device": "meta", "dtype": torch.float32}
    if num_classes is None:
        return LanguageModel(config, **made)
    return TextClassifier(AWDLSTM(config, **made), num_classes, **head, **made)


def _compared(
    place: Place, entries: Mapping[str, _Entry], parts: list[_Part]
) -> dict[str, dict[str, str]]:
    """Compare what is stored with what models need; return where each tensor of them stands."""
    where: dict[str, dict[str, str]] = {part.prefix: {} for part in parts}
    expected: dict[str, _Entry] = {}
    for part in parts:
        kept = part.model.state_dict()
        for names in _names_of(part.model):
            stored = next((n for n in names if f"{part.prefix}{n}" in entries), names[0])
            where[part.prefix] |= dict.fromkeys(names, f"{part.prefix}{stored}")
            tensor = kept[names[0]]
            dtype = tensor.dtype
            if tensor.is_floating_point():
                dtype = _dtype_of(part, stored, entries)
            expected[f"{part.prefix}{stored}"] = _Entry(_DTYPES[dtype], tuple(tensor.shape))
    lacking = [name for name in expected if name not in entries]
    if lacking:
        raise place.error(f"it lacks {_listed(lacking)}")
    surplus = [name for name in entries if name not in expected]
    if surplus:
        raise place.error(f"it has {_listed(surplus)}, expected no such tensor")
    for name, entry in entries.items():
        wanted = expected[name]
        if entry.shape != wanted.shape:
            raise place.error(f"{name} has shape {shown(entry.shape)}, expected {wanted.shape}")
        if entry.dtype != wanted.dtype:
            raise place.error(f"{name} has dtype {entry.dtype}, expected {wanted.dtype}")
    return where


def _dtype_of(part: _Part, name: str, entries: Mapping[str, _Entry]) -> torch.dtype:
    # Fitting puts a head in float32 on the encoder of a language model in another dtype.
    output = entries.get(f"{part.prefix}{_OUTPUT}")
    if name.startswith("head.") and output is not None and output.dtype == "F32":
        return torch.float32
    return part.dtype


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(map(shown, names[:_MOST_LISTED])) + more


def _filled(
    model: LanguageModel | TextClassifier, tensors: dict[str, Tensor]
) -> LanguageModel | TextClassifier:
    model.load_state_dict(tensors, assign=True)
    if isinstance(model, LanguageModel) and model.config.tie_weights:
        model.decoder.weight = model.encoder.encoder.weight
    return model.eval()


def check_finite(place: Place, tensors: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Refuse NaN and infinities, and statistics of BatchNorm that cannot be; one pass each.

    Args:
        place: what holds the tensors, for the error.
        tensors: by name, of floating dtypes or int64.
        prefix: in front of the names, for the error.

    Raises:
        ValueError: naming the tensor, the value and where it stands.
    """
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        low, high = (float(value) for value in torch.aminmax(tensor.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            first = tuple((~torch.isfinite(tensor)).nonzero()[0].tolist())
            raise place.error(
                f"{prefix}{name}{list(first)} is {float(tensor[first])}, expected finite numbers"
            )
        if low < 0 and name.endswith(("running_var", "num_batches_tracked")):
            raise place.error(f"{prefix}{name} has {low:g}, expected no number below 0")


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
        twin = _without_memory(model.config)
    else:
        if num_labels != model.num_classes:
            raise place.error(
                f"it has {model.num_classes} classes and there are {num_labels} labels, expected "
                "one for each"
            )
        twin = _without_memory(model.encoder.config, num_labels, hidden=model.hidden)
    dtype = next(model.parameters()).dtype
    if not (dtype in _DTYPES and dtype.is_floating_point):
        raise place.error(f"it has {dtype}, expected float32, float64, float16 or bfloat16")
    tensors = tensors_of(model)
    entries = {
        key: _Entry(_DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape))
        for key, value in tensors.items()
    }
    _compared(place, entries, [_Part(twin, dtype, "")])
    check_finite(place, tensors)
