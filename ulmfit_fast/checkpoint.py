"""A model directory: JSON for what a model is, safetensors for its weights; nothing is unpickled.

    config.json                  format, version, sizes, dropouts, labels
    tokenizer.json               tokenizer and vocabulary
    language_model.safetensors   weights, the tied decoder once
    classifier.safetensors       weights, when there is a classifier

With `single_file` the weights of both stand in `model.safetensors`, as on the Hugging Face Hub.

A directory changes by one step, see `directories`: a reader gets the old model whole or the new
one, and an error in writing leaves the old one as it was.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit_fast.data.tokenizer import Tokenizer
from ulmfit_fast.directories import (
    CONFIG,
    ENSEMBLE_FORMAT,
    MODEL_FORMAT,
    read_version,
    write_directory,
)
from ulmfit_fast.files import open_to_umask, user_path, write_text
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.seeds import own_generators

__all__ = [
    "FORMAT_VERSION",
    "ModelParts",
    "load_model",
    "read_config",
    "save_model",
]

FORMAT_VERSION = 1
_TOKENIZER, _WEIGHTS = "tokenizer.json", "model.safetensors"


@dataclass
class ModelParts:
    """What a model directory holds.

    Attributes:
        tokenizer: text to token ids, with the vocabulary.
        language_model: the language model, or None.
        classifier: the classifier, or None.
        labels: the classifier's classes, in the order of its logits.
        settings: further plain values, kept as they are.
    """

    tokenizer: Tokenizer
    language_model: LanguageModel | None
    classifier: TextClassifier | None
    labels: list[str | int]
    settings: dict[str, Any]


def save_model(
    directory: str | os.PathLike[str], parts: ModelParts, *, single_file: bool = False
) -> None:
    """Write a model directory, replacing one that is there.

    Args:
        directory: where to; made when missing. What is in it beside a model stays.
        parts: what to write.
        single_file: put all weights into `model.safetensors`, the layout of the Hugging Face Hub.

    Raises:
        FileExistsError: if the directory exists and is no model directory, or another process
            holds it.
        OSError: if it cannot be written; an older model there stays as it was.
    """
    write_directory(directory, lambda written: _write(written, parts, single_file))


def _write(directory: Path, parts: ModelParts, single_file: bool) -> None:
    config: dict[str, Any] = {
        "format": MODEL_FORMAT,
        "format_version": FORMAT_VERSION,
        "model_type": "ulmfit",
        "single_file": single_file,
        "labels": parts.labels,
        "settings": parts.settings,
        "language_model": None,
        "classifier": None,
    }
    if parts.language_model is not None:
        config["language_model"] = parts.language_model.config.to_dict()
        config["language_model_dtype"] = _dtype_name(parts.language_model)
    if parts.classifier is not None:
        classifier = parts.classifier
        config["classifier"] = {
            "encoder": classifier.encoder.config.to_dict(),
            "bptt": classifier.bptt,
            "max_len": classifier.max_len,
            "hidden": classifier.hidden,
            "output_p": classifier.output_p,
            "head_p": classifier.head_p,
            "dtype": _dtype_name(classifier),
        }
    files = _weight_files(parts.language_model, parts.classifier, single_file)
    for name, model in files.items():
        _save_tensors(directory / name, model)
    write_text(directory / _TOKENIZER, parts.tokenizer.to_json())
    write_text(directory / CONFIG, json.dumps(config, indent=2, ensure_ascii=False))


def _weight_files(
    language_model: LanguageModel | None, classifier: TextClassifier | None, single_file: bool
) -> dict[str, nn.Module]:
    """Return what stands in each file of weights."""
    found = {"language_model": language_model, "classifier": classifier}
    models: dict[str, nn.Module] = {n: model for n, model in found.items() if model is not None}
    if single_file:
        return {_WEIGHTS: nn.ModuleDict(models)}
    return {f"{name}.safetensors": model for name, model in models.items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what the state_dict holds, a shared tensor under the first of its names alone."""
    named = [*model.named_parameters(), *model.named_buffers()]
    kept = model.state_dict()
    return {name: kept[name].contiguous() for name, _ in named if name in kept}


def _save_tensors(path: Path, model: nn.Module) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        # The note is what libraries of the Hub look for; of two the order would change by itself.
        save_file(_tensors(model), str(path), metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}; make room or move") from error
    # It is written for its owner alone and may not have reached the disk.
    open_to_umask(path)
    with path.open("r+b") as file:
        os.fsync(file.fileno())


@own_generators()
def load_model(directory: str | os.PathLike[str], device: str = "cpu") -> ModelParts:
    """Read a model directory.

    Args:
        directory: as `save_model` wrote it.
        device: where the weights go.

    Returns:
        Its parts, models in evaluation mode.

    Raises:
        FileNotFoundError: if the directory or a file of it is missing.
        ValueError: if it is of a newer version, or a file of it is damaged.
    """
    return read_version(user_path(directory), lambda path: _load(path, device))


def _load(path: Path, device: str) -> ModelParts:
    config = read_config(path, MODEL_FORMAT)
    try:
        tokenizer = _read_tokenizer(path)
        language_model = classifier = None
        single_file = bool(config.get("single_file", False))
        if config["language_model"] is not None:
            lm_config = AWDLSTMConfig.from_dict(config["language_model"])
            dtype = _dtype(config["language_model_dtype"])
            _check_vocabulary(path, tokenizer, lm_config)
            _check_size(path, "language_model", single_file, lm_config, dtype)
            language_model = LanguageModel(lm_config, device="cpu", dtype=torch.float32).to(dtype)
        if config["classifier"] is not None:
            sizes = config["classifier"]
            encoder_config = AWDLSTMConfig.from_dict(sizes["encoder"])
            dtype, hidden = _dtype(sizes["dtype"]), sizes["hidden"]
            _check_vocabulary(path, tokenizer, encoder_config)
            head = hidden * (3 * encoder_config.emb_size + len(config["labels"]))
            _check_size(path, "classifier", single_file, encoder_config, dtype, head)
            names = ("hidden", "output_p", "head_p", "bptt", "max_len")
            classifier = TextClassifier(
                AWDLSTM(encoder_config, device="cpu", dtype=torch.float32),
                len(config["labels"]),
                **{name: sizes[name] for name in names},
                device="cpu",
                dtype=torch.float32,
            ).to(dtype)
        for name, model in _weight_files(language_model, classifier, single_file).items():
            _load_tensors(path, name, model, device)
        labels, settings = list(config["labels"]), dict(config["settings"])
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(
            f"{path / CONFIG} is damaged: {error!r:.300}; save the model again"
        ) from error
    return ModelParts(tokenizer, language_model, classifier, labels, settings)


def _read(path: Path, name: str) -> str:
    if not (path / name).is_file():
        raise FileNotFoundError(
            f"{path} has no {name}, so it is no complete model directory; save the model again"
        )
    try:
        return (path / name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path / name} is damaged: {error}; save the model again") from error


def read_config(path: Path, expected: str) -> dict[str, Any]:
    """Read the `config.json` of a model directory, or of an ensemble's.

    Args:
        path: the directory.
        expected: the format that it has to name.

    Raises:
        FileNotFoundError: if there is no such directory or file.
        ValueError: if it is of another format, of a newer version or damaged.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no directory; give the directory of a saved model")
    text = _read(path, CONFIG)
    try:
        config: dict[str, Any] = json.loads(text)
    # Deep nesting ends in RecursionError, a number of thousands of digits in a plain ValueError.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path / CONFIG} is damaged: {error}; save the model again") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != expected:
        readers = {MODEL_FORMAT: "ULMFiT", ENSEMBLE_FORMAT: "Ensemble"}
        reader = readers.get(found) if isinstance(found, str) else None
        hint = f"; {reader}.load reads it" if reader else ""
        raise ValueError(f"{path / CONFIG} does not describe an {expected}{hint}")
    version = config.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path / CONFIG} is damaged: format version {version!r}")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this ulmfit_fast reads up to {FORMAT_VERSION}; "
            "install a newer ulmfit_fast"
        )
    return config


def _read_tokenizer(path: Path) -> Tokenizer:
    text = _read(path, _TOKENIZER)
    try:
        return Tokenizer.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path / _TOKENIZER}: {error}") from error


def _check_vocabulary(path: Path, tokenizer: Tokenizer, config: AWDLSTMConfig) -> None:
    if len(tokenizer.vocab) != config.vocab_size:
        raise ValueError(
            f"{path / _TOKENIZER} has {len(tokenizer.vocab)} words and {CONFIG} "
            f"{config.vocab_size}, expected those of one model; save the model again"
        )


def _check_size(
    path: Path,
    key: str,
    single_file: bool,
    config: AWDLSTMConfig,
    dtype: torch.dtype,
    head: int = 0,
) -> None:
    """Refuse sizes that the file of weights cannot have, before memory is taken for them."""
    name = _WEIGHTS if single_file else f"{key}.safetensors"
    if not (path / name).is_file():
        raise FileNotFoundError(
            f"{path} has no {name}, so it is no complete model directory; save the model again"
        )
    emb, hidden, layers = config.emb_size, config.hidden_size, config.num_layers
    first, last = 4 * hidden * (emb + hidden), 4 * emb * (hidden + emb)
    several = first + 8 * hidden**2 * (layers - 2) + last
    least = config.vocab_size * emb + head + (8 * emb**2 if layers == 1 else several)
    held = (path / name).stat().st_size // dtype.itemsize
    if least > held:
        raise ValueError(
            f"{path / name} does not fit its {CONFIG}: it has room for {held:,} weights, and at "
            f"least {least:,} are described; save the model again"
        )


def _dtype_name(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"{name!r} is no dtype of weights")
    return dtype


def _load_tensors(path: Path, name: str, model: nn.Module, device: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_model as load_safetensors

    if not (path / name).is_file():
        raise FileNotFoundError(
            f"{path} has no {name}, so it is no complete model directory; save the model again"
        )
    try:
        load_safetensors(model, str(path / name))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"{path / name} does not fit its {CONFIG}: {reason}; save the model again"
        ) from error
    model.to(device).eval()
