"""A model directory: JSON for what a model is, safetensors for its weights; nothing is unpickled.

    config.json                  format, version, sizes, dropouts, labels
    tokenizer.json               tokenizer and vocabulary
    language_model.safetensors   weights, the tied decoder once
    classifier.safetensors       weights, when there is a classifier
    bag_of_words.safetensors     a simpler classifier to compare with, when there is one
    validation.json              how good the classifier was, when that was measured

With `single_file` the weights of both stand in `model.safetensors`, as on the Hugging Face Hub.

A directory changes by one step: a reader gets the old model whole or the new one, and an error in
writing leaves the old one as it was.

It holds what has been learnt, for whoever predicts or trains further. Where a stage that was
stopped goes on, with its optimizer and place in the texts, stands in a run's checkpoints: `runs`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ulmfit_fast.data.columns import Label
from ulmfit_fast.data.tokens.tokenizer import Tokenizer, largest_json
from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.nn.weights import Place
from ulmfit_fast.system.directories import (
    BAG_OF_WORDS,
    CONFIG,
    ENSEMBLE_FORMAT,
    MODEL_FORMAT,
    VALIDATION,
    read_version,
    write_directory,
)
from ulmfit_fast.system.files import file_in_place, parse_json, user_path, write_text
from ulmfit_fast.ulmfit.baselines import BagOfWords, Baselines
from ulmfit_fast.ulmfit.evaluation import Evaluation
from ulmfit_fast.ulmfit.model_schema import ModelDescription, describe, shown
from ulmfit_fast.ulmfit.model_weights import (
    SINGLE_FILE,
    check_model,
    check_room,
    opened,
    read_weights,
    tensors_of,
)

__all__ = [
    "FORMAT_VERSION",
    "ModelParts",
    "load_model",
    "read_config",
    "save_model",
]

FORMAT_VERSION = 1
_TOKENIZER = "tokenizer.json"
# A million labels fit in; what is larger would take memory to no end.
_LARGEST_CONFIG = 2**24
# Of fifty texts of a million characters, and the scores of thousands of classes.
_LARGEST_VALIDATION = 2**29
# Of the one note in the file of a bag of words: of two the order would change by itself.
_TERMS = "terms"


@dataclass
class ModelParts:
    """What a model directory holds.

    Attributes:
        tokenizer: text to token ids, with the vocabulary.
        language_model: the language model, or None.
        classifier: the classifier, or None.
        labels: the classifier's classes, in the order of its logits.
        settings: those of a `ULMFiT`, and further plain values, kept as they are.
        baselines: fitted to the same texts as the classifier, or None.
        validation: how good the classifier was on texts held out, or None.
    """

    tokenizer: Tokenizer
    language_model: LanguageModel | None
    classifier: TextClassifier | None
    labels: list[Label]
    settings: dict[str, Any]
    baselines: Baselines | None = None
    validation: Evaluation | None = None

    @property
    def backwards(self) -> bool:
        """Whether the models read texts from their end."""
        return bool(self.settings.get("backwards", False))


def save_model(
    directory: str | os.PathLike[str], parts: ModelParts, *, single_file: bool = False
) -> None:
    """Write a model directory, replacing one that is there.

    Args:
        directory: where to; made when missing. What is in it beside a model stays.
        parts: what to write.
        single_file: put all weights into `model.safetensors`, the layout of the Hugging Face Hub;
            texts that were held out, which others are not to see, are then not written.

    Raises:
        FileExistsError: if the directory exists and is no model directory, or another process
            holds it.
        OSError: if it cannot be written; an older model there stays as it was.
        ValueError: if it could not be read again, as with weights that are not finite.
    """
    text = json.dumps(_config(parts, single_file), indent=2, ensure_ascii=False)
    describe(Place("the model cannot be saved", "set it right"), json.loads(text))
    for name, model in _models(parts).items():
        check_model(name, model, len(parts.labels))
    write_directory(directory, lambda written: _write(written, parts, single_file, text))


def _config(parts: ModelParts, single_file: bool) -> dict[str, Any]:
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
    if parts.baselines is not None:
        config["class_counts"] = list(parts.baselines.counts)
        config["bag_of_words"] = parts.baselines.bag_of_words is not None
    config["validation"] = parts.validation is not None
    return config


def _write(directory: Path, parts: ModelParts, single_file: bool, config: str) -> None:
    for name, model in _weight_files(parts, single_file).items():
        # The note is what libraries of the Hub look for; of two the order would change by itself.
        _save_tensors(directory / name, tensors_of(model), {"format": "pt"})
    if parts.baselines is not None and parts.baselines.bag_of_words is not None:
        words = parts.baselines.bag_of_words
        notes = {_TERMS: json.dumps(words.terms)}
        _save_tensors(directory / BAG_OF_WORDS, words.tensors(), notes)
    if parts.validation is not None:
        own = parts.validation.without_texts() if single_file else parts.validation
        # As ASCII: half a character of a text is no UTF-8.
        write_text(directory / VALIDATION, json.dumps(own.to_dict(), indent=1))
    write_text(directory / _TOKENIZER, parts.tokenizer.to_json())
    write_text(directory / CONFIG, config)


def _models(parts: ModelParts) -> dict[str, LanguageModel | TextClassifier]:
    found = {"language_model": parts.language_model, "classifier": parts.classifier}
    return {name: model for name, model in found.items() if model is not None}


def _weight_files(parts: ModelParts, single_file: bool) -> dict[str, nn.Module]:
    """Return what stands in each file of weights."""
    models = _models(parts)
    if single_file:
        return {SINGLE_FILE: nn.ModuleDict(models)}
    return {f"{name}.safetensors": model for name, model in models.items()}


def _save_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with file_in_place(path) as file:
            save_file(tensors, str(file), metadata=notes)
    except SafetensorError as error:
        raise OSError(f"{path.name} cannot be written: {error}; make room or move") from error


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
    about = describe(Place(path / CONFIG), read_config(path, MODEL_FORMAT))
    check_room(path, about)
    tokenizer = _read_tokenizer(path, about)
    language_model, classifier = read_weights(path, about)
    for model in (language_model, classifier):
        if model is not None:
            model.to(device)
    return ModelParts(
        tokenizer,
        language_model,
        classifier,
        about.labels,
        about.settings,
        _read_baselines(path, about),
        _read_validation(path, about),
    )


def _read_baselines(path: Path, about: ModelDescription) -> Baselines | None:
    if about.class_counts is None:
        return None
    words = None
    if about.bag_of_words:
        file = path / BAG_OF_WORDS
        _require(path, BAG_OF_WORDS)
        place = Place(file)
        with opened(file, place) as stored:
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}
            note = (stored.metadata() or {}).get(_TERMS, "null")
        try:
            terms = parse_json(note, _TERMS)
        except ValueError as error:
            raise place.error(str(error)) from error
        words = BagOfWords.from_tensors(terms, tensors, len(about.labels), place)
    return Baselines(tuple(about.class_counts), words)


def _read_validation(path: Path, about: ModelDescription) -> Evaluation | None:
    if not about.validation:
        return None
    place = Place(path / VALIDATION)
    try:
        values = parse_json(_read(path, VALIDATION, _LARGEST_VALIDATION), VALIDATION)
    except ValueError as error:
        raise ValueError(f"{path / VALIDATION} is damaged: {error}") from error
    return Evaluation.from_dict(values, about.labels, place)


def _require(path: Path, name: str) -> None:
    if not (path / name).is_file():
        raise FileNotFoundError(
            f"{path} has no {name}, so it is no complete model directory; save the model again"
        )


def _read(path: Path, name: str, largest: int | None) -> str:
    _require(path, name)
    size = (path / name).stat().st_size
    if largest is not None and size > largest:
        raise ValueError(
            f"{path / name} has {size:,} bytes, expected at most {largest:,}; save the model again"
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
    text = _read(path, CONFIG, _LARGEST_CONFIG)
    try:
        config: dict[str, Any] = parse_json(text, CONFIG)
    except ValueError as error:
        raise ValueError(f"{path / CONFIG} is damaged: {error}") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != expected:
        readers = {MODEL_FORMAT: "ULMFiT", ENSEMBLE_FORMAT: "Ensemble"}
        reader = readers.get(found) if isinstance(found, str) else None
        hint = (
            f"; {reader}.load reads it"
            if reader
            else f": format is {shown(found)}; give that of a saved model"
        )
        raise ValueError(f"{path / CONFIG} does not describe an {expected}{hint}")
    version = config.get("format_version")
    if type(version) is not int or version < 1:
        raise ValueError(
            f"{path / CONFIG} is damaged: format_version is {shown(version)}, expected a whole "
            "number, at least 1; save the model again"
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {shown(version)}, this ulmfit_fast reads up to "
            f"{FORMAT_VERSION}; install a newer ulmfit_fast"
        )
    return config


def _read_tokenizer(path: Path, about: ModelDescription) -> Tokenizer:
    """Read the tokenizer; one that has other words than the models is seen before it is built."""
    config = about.language_model or about.encoder
    vocab_size = None if config is None else config.vocab_size
    text = _read(path, _TOKENIZER, None if vocab_size is None else largest_json(vocab_size))
    try:
        return Tokenizer.from_json(text, vocab_size=vocab_size)
    except ValueError as error:
        raise ValueError(f"{path / _TOKENIZER}: {error}") from error


def _dtype_name(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
