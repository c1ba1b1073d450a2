"""The settings of `ULMFiT` and its stages: the caller's word, then a preset's, then defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ulmfit_fast.data.columns import nearest
from ulmfit_fast.data.tokens.vocab import SPECIALS, check_vocabulary_limits
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.nn.vocabulary import rebuilt
from ulmfit_fast.nn.weights import Place
from ulmfit_fast.presets import Preset, named
from ulmfit_fast.system.scoped import ignoring
from ulmfit_fast.training.settings import TrainingSettings
from ulmfit_fast.ulmfit.model_schema import check_preset, check_settings

__all__ = [
    "ModelSettings",
    "checked_device",
    "checked_seed",
    "training_settings",
    "with_dropout",
]

_DROPOUTS = ("input_p", "hidden_p", "embed_p", "weight_p", "gate_p", "output_p")
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
# Their sizes are starting points; a published recipe is followed to the letter.
_OWN = ("small", "medium")
_UNFIT = Place("the model", "pass another value")


@dataclass(frozen=True)
class ModelSettings:
    """What a `ULMFiT` is made with: the "settings" of its config.json, in the order there.

    Values are those that JSON holds: lists in place of tuples, and Python's own numbers. Of the
    preset all values are kept, also those that the caller has others for.

    Example:
        >>> settings = ModelSettings.of("paper", emb_size=100)
        >>> settings.emb_size, settings.hidden_size, settings.preset.name
        (100, 1150, 'paper')

    Attributes:
        preset: the recipe that the model and its stages follow where the caller says nothing.
        emb_size: E.
        hidden_size: H.
        num_layers: LSTM layers.
        tokenizer: kind of the tokenizer.
        max_vocab: largest vocabulary, the nine specials among it.
        min_freq: how often a word must occur to be in the vocabulary.
        drop_mult: factor on every dropout probability.
        lm_dropout: dropout values of the language model that differ from the defaults, by name.
        classifier_dropout: the same for the classifier.
        backwards: whether texts are read from their end.

    Raises:
        TypeError: if a size is no whole number, or `backwards` no truth value.
        ValueError: if a name, a choice, a size, a probability or a limit does not fit, or could
            not be read again once it is saved.
    """

    preset: Preset | None = None
    emb_size: int = 400
    hidden_size: int = 1152
    num_layers: int = 3
    tokenizer: str = "word"
    max_vocab: int = 60_000
    min_freq: int = 3
    drop_mult: float = 1.0
    lm_dropout: Mapping[str, Any] = field(default_factory=dict)
    classifier_dropout: Mapping[str, Any] = field(default_factory=dict)
    backwards: bool = False

    @property
    def is_sized(self) -> bool:
        """Whether the amount of text says batch sizes and epochs, as no published recipe does."""
        return self.preset is None or self.preset.name in _OWN

    def __post_init__(self) -> None:
        for own in dataclasses.fields(self):
            # A frozen dataclass is assigned through object while it is being made.
            object.__setattr__(self, own.name, _plain(getattr(self, own.name)))
        if self.tokenizer not in ("word", "subword", "spacy", "huggingface"):
            raise ValueError(
                f'tokenizer is {self.tokenizer!r}, expected "word", "subword", "spacy" or a '
                "Tokenizer"
            )
        for name in ("max_vocab", "min_freq"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {value!r:.60}, expected a whole number")
        check_vocabulary_limits(self.max_vocab, self.min_freq, name="max_vocab")
        if not isinstance(self.backwards, bool):
            raise TypeError(f"backwards is {self.backwards!r}, expected True or False")
        for name in ("lm_dropout", "classifier_dropout"):
            unknown = sorted(set(getattr(self, name)) - set(_DROPOUTS))
            if unknown:
                raise ValueError(
                    f"{name} has {unknown[0]!r}, expected names of {', '.join(_DROPOUTS)}"
                )
        for config in (self.language_model_config, self.classifier_config):
            config(self.drop_mult)
        check_settings(_UNFIT, self.to_dict())

    @classmethod
    def of(cls, preset: Preset | str | None = None, **given: Any) -> ModelSettings:
        """Return settings with what the caller gives, what a preset says, and defaults.

        Args:
            preset: a `Preset`, the name of one, or None.
            given: fields by name, None where the caller says nothing; of `lm_dropout` and its like
                each entry counts by itself.

        Raises:
            TypeError: if the preset is something else, and as for the class.
            ValueError: if there is no preset of this name, and as for the class.
        """
        recipe = named(preset) if isinstance(preset, str) else preset
        values: dict[str, Any] = {}
        if isinstance(recipe, Preset):
            plain = _plain(vars(recipe))
            check_preset(_UNFIT, "settings.preset", plain)
            values |= plain["model"]
        elif recipe is not None:
            raise TypeError(
                f"preset is {preset!r:.60} ({type(preset).__name__}), expected a Preset or its name"
            )
        for name, value in given.items():
            if isinstance(value, Mapping):
                values[name] = {**values.get(name, {}), **value}
            elif value is not None:
                values[name] = value
        return cls(recipe, **values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSettings:
        """Return what `to_dict` was called on.

        Args:
            values: from a config.json, each of its kind and range; a name that is left out has the
                preset's value, or the default.

        Raises:
            ValueError: if a name is no field, or values do not fit each other.
        """
        unknown = sorted(set(values).difference(own.name for own in dataclasses.fields(cls)))
        if unknown:
            raise ValueError(f"settings has the unknown field {unknown[0]!r:.60}")
        recipe = values.get("preset")
        preset = None if recipe is None else Preset(**recipe)
        return cls.of(**{**values, "preset": preset})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON holds, as a config.json has them."""
        return dataclasses.asdict(self)

    def language_model_config(
        self, drop_mult: float, vocab_size: int = len(SPECIALS)
    ) -> AWDLSTMConfig:
        """Return the language model's configuration.

        Args:
            drop_mult: factor on every dropout.
            vocab_size: V; as long as it is not known, any size serves to check the rest.

        Raises:
            TypeError: if a size is no whole number.
            ValueError: if a size or a probability does not fit.
        """
        config = AWDLSTMConfig.language_model(vocab_size, **self._sizes, **self.lm_dropout)
        return config.scaled(drop_mult)

    def classifier_config(self, drop_mult: float, vocab_size: int = len(SPECIALS)) -> AWDLSTMConfig:
        """Return the configuration of the classifier's encoder.

        Args:
            drop_mult: factor on every dropout.
            vocab_size: V; as long as it is not known, any size serves to check the rest.

        Raises:
            TypeError: if a size is no whole number.
            ValueError: if a size or a probability does not fit.
        """
        config = AWDLSTMConfig.classifier(vocab_size, **self._sizes, **self.classifier_dropout)
        return config.scaled(drop_mult)

    @property
    def _sizes(self) -> dict[str, int]:
        return {
            "emb_size": self.emb_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
        }

    def stage(self, name: str, **given: Any) -> tuple[TrainingSettings, float]:
        """Return how a stage trains, and its factor on every dropout.

        A caller who asks for no unfreezing plan also gets rid of what the preset says of its
        stages.

        Args:
            name: "pretrain", "fine_tune_lm" or "fit_classifier".
            given: the caller's values; those that are arguments of a stage may be None where the
                caller says nothing.

        Raises:
            ValueError: if a name is unknown or a value does not fit.
        """
        silent = ("epochs", "lr", "batch_size", "bptt", "precision", "gradual_unfreezing")
        said = {
            key: v for key, v in given.items() if v is not None or key not in (*silent, "drop_mult")
        }
        recipe: dict[str, Any] = {} if self.preset is None else getattr(self.preset, name)
        if said.get("gradual_unfreezing") in (0, (), []):
            # Without an unfreezing plan there is nothing for these to apply to.
            recipe = {
                key: value
                for key, value in recipe.items()
                if key not in _OF_STAGES and not (key in _PER_STAGE and isinstance(value, list))
            }
        values = {**_STAGES[name], **recipe, **said}
        drop_mult = values.pop("drop_mult", self.drop_mult)
        return training_settings(**values), drop_mult


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back, with lists and dicts of its own."""
    if isinstance(value, Preset):
        return Preset(**_plain(vars(value)))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def training_settings(**values: Any) -> TrainingSettings:
    """Return the default settings with these changed; an unknown name is a ValueError."""
    known = TrainingSettings.__dataclass_fields__
    for name in values:
        if name not in known:
            names = ", ".join(known)
            raise ValueError(
                f"there is no setting {name!r}; pass one of {names}{nearest(name, known)}"
            )
    try:
        return TrainingSettings(**values)
    except TypeError as error:
        raise ValueError(str(error)) from error


def checked_seed(seed: int) -> int:
    """Return a seed that PyTorch and NumPy both take, or raise a ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}, expected a whole number from 0 to 2**63 - 1")
    return int(seed)


def checked_device(device: str | torch.device | int | None) -> str:
    """Return a device that can hold numbers, CUDA where there is any if None is given."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # A number is read back: of the device meta there is none. Some names come with a warning.
        with ignoring(UserWarning):
            made = torch.ones((), dtype=torch.float32, device=device)
            made.item()
    except Exception as error:
        # PyTorch has a class of error for each kind of device, and pages of text for some.
        count = torch.cuda.device_count()
        reason = f" ({str(error).splitlines()[0]:.80})" if count else ""
        raise ValueError(
            f"device is {device!r:.60}, expected cpu, or cuda where there is a GPU; PyTorch finds "
            f"{count} of them here{reason}"
        ) from None
    return device if isinstance(device, str) else str(made.device)


def with_dropout(model: LanguageModel, values: AWDLSTMConfig) -> LanguageModel:
    """Return the language model with the dropout probabilities of `values` and its own weights."""
    config = dataclasses.replace(model.config, **{n: getattr(values, n) for n in _DROPOUTS})
    if config == model.config:
        return model
    return rebuilt(config, model.state_dict())
