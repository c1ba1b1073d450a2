"""A model directory: JSON for what a model is, safetensors for its weights; nothing is unpickled.

    config.json                  format, version, sizes, dropouts, labels
    tokenizer.json               tokenizer and vocabulary
    language_model.safetensors   weights, the tied decoder once
    classifier.safetensors       weights, when there is a classifier

A directory is written beside its destination and put in place by renaming, so that a reader sees
the old model or the new one, and an error in writing leaves the old one as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ulmfit_fast.data.tokenizer import Tokenizer
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier

__all__ = ["FORMAT_VERSION", "ModelParts", "load_model", "save_model"]

FORMAT_VERSION = 1
_FORMAT = "ulmfit_fast model"
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_LANGUAGE_MODEL, _CLASSIFIER = "language_model.safetensors", "classifier.safetensors"


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


def save_model(directory: str | os.PathLike[str], parts: ModelParts) -> None:
    """Write a model directory, replacing one that is there.

    Args:
        directory: where to; its parent is created when missing.
        parts: what to write.

    Raises:
        FileExistsError: if the directory exists and is no model directory, or this process works
            in it.
        OSError: if it cannot be written; an older model there stays as it was.
    """
    # Resolved, so that behind a link it is the model that is replaced.
    target = Path(directory).resolve()
    if target.exists() and not _may_replace(target):
        raise FileExistsError(
            f"{target} exists and is no model directory (it has no {_CONFIG}); "
            "choose another directory or remove it"
        )
    if Path.cwd().is_relative_to(target):
        raise FileExistsError(
            f"{target} is the working directory, which cannot be replaced; "
            "choose a directory in it or beside it"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write(written, parts)
        _replace(written, target)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _may_replace(target: Path) -> bool:
    return target.is_dir() and ((target / _CONFIG).is_file() or not any(target.iterdir()))


def _replace(written: Path, target: Path) -> None:
    """Rename a finished directory into place; the old one goes only when the new one stands."""
    os.chmod(written, 0o777 & ~_umask())
    if not target.exists():
        os.replace(written, target)
        return
    old = written.with_name(f"{written.name}-old")
    try:
        os.replace(target, old)
        os.replace(written, target)
    except BaseException:
        # An interruption between the two, too, must leave a model where it was.
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(directory: Path, parts: ModelParts) -> None:
    config: dict[str, Any] = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "labels": parts.labels,
        "settings": parts.settings,
        "language_model": None,
        "classifier": None,
    }
    if parts.language_model is not None:
        config["language_model"] = parts.language_model.config.to_dict()
        config["language_model_dtype"] = _dtype_name(parts.language_model)
        _save_tensors(directory / _LANGUAGE_MODEL, parts.language_model)
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
        _save_tensors(directory / _CLASSIFIER, classifier)
    _write_text(directory / _TOKENIZER, parts.tokenizer.to_json())
    _write_text(directory / _CONFIG, json.dumps(config, indent=2, ensure_ascii=False))


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _save_tensors(path: Path, model: nn.Module) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_model as save_safetensors

    try:
        save_safetensors(model, str(path))
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}; make room or move") from error
    # It is written for its owner alone and may not have reached the disk.
    path.chmod(0o666 & ~_umask())
    with path.open("r+b") as file:
        os.fsync(file.fileno())


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
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no directory; give the directory of a saved model")
    config = _read_config(path)
    try:
        tokenizer = _read_tokenizer(path)
        language_model = classifier = None
        if config["language_model"] is not None:
            lm_config = AWDLSTMConfig.from_dict(config["language_model"])
            _check_vocabulary(path, tokenizer, lm_config)
            language_model = LanguageModel(lm_config).to(_dtype(config["language_model_dtype"]))
            _load_tensors(path, _LANGUAGE_MODEL, language_model, device)
        if config["classifier"] is not None:
            sizes = config["classifier"]
            encoder_config = AWDLSTMConfig.from_dict(sizes["encoder"])
            _check_vocabulary(path, tokenizer, encoder_config)
            names = ("hidden", "output_p", "head_p", "bptt", "max_len")
            classifier = TextClassifier(
                AWDLSTM(encoder_config),
                len(config["labels"]),
                **{name: sizes[name] for name in names},
            ).to(_dtype(sizes["dtype"]))
            _load_tensors(path, _CLASSIFIER, classifier, device)
        labels, settings = list(config["labels"]), dict(config["settings"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / _CONFIG} is damaged: {error!r}; save the model again") from error
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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(path, _CONFIG))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / _CONFIG} is damaged: {error}; save the model again") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise ValueError(f"{path / _CONFIG} does not describe an ulmfit_fast model")
    version = config.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"{path / _CONFIG} is damaged: format version {version!r}")
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
            f"{path / _TOKENIZER} has {len(tokenizer.vocab)} words and {_CONFIG} "
            f"{config.vocab_size}, expected those of one model; save the model again"
        )


def _dtype_name(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name!r} is no dtype")
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
            f"{path / name} does not fit its {_CONFIG}: {reason}; save the model again"
        ) from error
    model.to(device).eval()
