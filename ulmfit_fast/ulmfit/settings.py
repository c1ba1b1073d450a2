"""The settings of `ULMFiT` and its stages: the caller's word, then a preset's, then defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ulmfit_fast.data.tokens.vocab import SPECIALS, check_vocabulary_limits
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.nn.vocabulary import drawn_anew
from ulmfit_fast.nn.weights import Place
from ulmfit_fast.presets import Preset, named
from ulmfit_fast.training.stages import TrainingSettings
from ulmfit_fast.ulmfit.checks import training_settings
from ulmfit_fast.ulmfit.model_schema import as_read, check_settings

__all__ = [
    "check_model_settings",
    "classifier_config",
    "language_model_config",
    "model_settings",
    "preset_values",
    "stage_settings",
    "with_dropout",
]

_DROPOUTS = ("input_p", "hidden_p", "embed_p", "weight_p", "gate_p", "output_p")

_SIZES = ("emb_size", "hidden_size", "num_layers")

_MODEL: dict[str, Any] = {
    "emb_size": 400,
    "hidden_size": 1152,
    "num_layers": 3,
    "tokenizer": "word",
    "max_vocab": 60_000,
    "min_freq": 3,
    "drop_mult": 1.0,
    "lm_dropout": {},
    "classifier_dropout": {},
    "backwards": False,
}
_OF_STAGES = ("lr_decay", "reset_optimizer", "chain_thaw", "schedule_per")
_PER_STAGE = ("cut_frac", "pct_start")
_STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {"epochs": 10, "lr": 4e-3, "factor": 1.0},
    "fine_tune_lm": {"epochs": 15, "lr": 4e-3},
    # The paper speaks of AR and TAR for the language model alone.
    "fit_classifier": {
        "epochs": 10,
        "lr": 1e-2,
        "gradual_unfreezing": 1,
        "alpha": 0.0,
        "beta": 0.0,
    },
}


def preset_values(preset: Preset | str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a preset as plain values that JSON holds.

    Args:
        preset: a `Preset`, the name of one, the values of one from a model directory, or None.

    Raises:
        TypeError: if it is something else.
        ValueError: if there is none of this name.
    """
    if preset is None:
        return None
    if isinstance(preset, str):
        preset = named(preset)
    elif isinstance(preset, Mapping):
        preset = Preset(**preset)
    elif not isinstance(preset, Preset):
        raise TypeError(
            f"preset is {preset!r:.60} ({type(preset).__name__}), expected a Preset or its name"
        )
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(preset)))
    return values


def model_settings(preset: Mapping[str, Any] | None, **given: Any) -> dict[str, Any]:
    """Return the settings of a model; of `lm_dropout` and its like each entry counts by itself.

    Args:
        preset: what `preset_values` returned.
        given: the caller's values, None where the caller says nothing.
    """
    settings = {**_MODEL, **(preset or {}).get("model", {})}
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(_MODEL[name], dict):
            settings[name] = {**settings[name], **{k: _plain(v) for k, v in value.items()}}
        else:
            settings[name] = _plain(value)
    return {name: dict(v) if isinstance(v, dict) else v for name, v in settings.items()}


def _plain(value: Any) -> Any:
    """Return a number of NumPy as the one of Python that JSON holds."""
    return value.item() if isinstance(value, np.generic) else value


def check_model_settings(settings: Mapping[str, Any]) -> None:
    """Refuse values that no model can have, or that could not be read again once it is saved.

    Raises:
        TypeError: if a size is no whole number, or `backwards` no truth value.
        ValueError: if a name, a choice, a size, a probability or a limit does not fit.
    """
    if settings["tokenizer"] not in ("word", "subword", "spacy", "huggingface"):
        raise ValueError(
            f'tokenizer is {settings["tokenizer"]!r}, expected "word", "subword", "spacy" or a '
            "Tokenizer"
        )
    for name in ("max_vocab", "min_freq"):
        if isinstance(settings[name], bool) or not isinstance(settings[name], int):
            raise TypeError(f"{name} is {settings[name]!r:.60}, expected a whole number")
    check_vocabulary_limits(settings["max_vocab"], settings["min_freq"], name="max_vocab")
    if not isinstance(settings["backwards"], bool):
        raise TypeError(f"backwards is {settings['backwards']!r}, expected True or False")
    for argument in ("lm_dropout", "classifier_dropout"):
        unknown = sorted(set(settings[argument]) - set(_DROPOUTS))
        if unknown:
            raise ValueError(
                f"{argument} has {unknown[0]!r}, expected names of {', '.join(_DROPOUTS)}"
            )
    for config in (language_model_config, classifier_config):
        config(settings, settings["drop_mult"])
    check_settings(Place("the model", "pass another value"), as_read(settings))


def stage_settings(
    settings: Mapping[str, Any], stage: str, **given: Any
) -> tuple[TrainingSettings, float]:
    """Return how a stage trains, and its factor on every dropout.

    A caller who asks for no unfreezing plan also gets rid of what the preset says of its stages.

    Args:
        settings: those of the model, its `preset` among them.
        stage: "pretrain", "fine_tune_lm" or "fit_classifier".
        given: the caller's values; epochs, lr, gradual_unfreezing and drop_mult may be None where
            the caller says nothing.

    Raises:
        ValueError: if a name is unknown or a value does not fit.
    """
    silent = ("epochs", "lr", "gradual_unfreezing", "drop_mult")
    said = {name: v for name, v in given.items() if v is not None or name not in silent}
    recipe = dict((settings["preset"] or {}).get(stage, {}))
    if said.get("gradual_unfreezing") in (0, (), []):
        # Without an unfreezing plan there is nothing for these to apply to.
        recipe = {
            name: value
            for name, value in recipe.items()
            if name not in _OF_STAGES and not (name in _PER_STAGE and isinstance(value, list))
        }
    values = {**_STAGES[stage], **recipe, **said}
    drop_mult = values.pop("drop_mult", settings["drop_mult"])
    return training_settings(**values), drop_mult


def language_model_config(
    settings: Mapping[str, Any], drop_mult: float, vocab_size: int = len(SPECIALS)
) -> AWDLSTMConfig:
    """Return the language model's configuration.

    Args:
        settings: those of the model.
        drop_mult: factor on every dropout.
        vocab_size: V; as long as it is not known, any size serves to check the rest.

    Raises:
        TypeError: if a size is no whole number.
        ValueError: if a size or a probability does not fit.
    """
    sizes = {name: settings[name] for name in _SIZES}
    config = AWDLSTMConfig.language_model(vocab_size, **sizes, **settings["lm_dropout"])
    return config.scaled(drop_mult)


def classifier_config(
    settings: Mapping[str, Any], drop_mult: float, vocab_size: int = len(SPECIALS)
) -> AWDLSTMConfig:
    """Return the configuration of the classifier's encoder; see `language_model_config`."""
    sizes = {name: settings[name] for name in _SIZES}
    config = AWDLSTMConfig.classifier(vocab_size, **sizes, **settings["classifier_dropout"])
    return config.scaled(drop_mult)


def with_dropout(model: LanguageModel, values: AWDLSTMConfig) -> LanguageModel:
    """Return the language model with the dropout probabilities of `values` and its own weights."""
    config = dataclasses.replace(model.config, **{n: getattr(values, n) for n in _DROPOUTS})
    if config == model.config:
        return model
    return drawn_anew(config, model.state_dict())
