"""Sizes and dropout values of an AWD-LSTM, checked once and passed around as one value."""

from __future__ import annotations

import dataclasses
import numbers
import sys
from collections.abc import Mapping
from typing import Any, TypeAlias

from ulmfit_fast.checks import gate_probabilities, probability

GateP: TypeAlias = float | tuple[float, float, float, float]

_SIZES = ("vocab_size", "emb_size", "hidden_size", "num_layers")
_ROW_P = ("input_p", "hidden_p", "embed_p", "output_p")
_GATE_P = ("weight_p", "gate_p")
_FLAGS = ("tie_weights", "out_bias")
_CLASSIFIER_P = {
    "input_p": 0.4,
    "hidden_p": 0.3,
    "embed_p": 0.05,
    "weight_p": 0.5,
    "output_p": 0.4,
}


@dataclasses.dataclass(frozen=True)
class AWDLSTMConfig:
    """Sizes and dropout values of an AWD-LSTM.

    The default dropout values are those of `language_model`.

    Example:
        >>> AWDLSTMConfig.classifier(1000).scaled(0.5).weight_p
        0.25

    Args:
        vocab_size: V, number of word types.
        emb_size: E, width of the embedding and of the last layer.
        hidden_size: H, width of the layers before the last.
        num_layers: number of LSTM layers; widths E -> H, H -> H, ..., H -> E.
        pad_id: token id of padding, in [0, V).
        input_p: locked dropout on the embedded input.
        hidden_p: locked dropout between the layers.
        embed_p: dropout of whole word types.
        weight_p: dropout of recurrent connections; one value or four for the gates i, f, g, o.
        gate_p: dropout of activated gates; one value or four for the gates i, f, g, o.
        output_p: locked dropout before the decoder.
        tie_weights: share the embedding with the decoder.
        out_bias: give the decoder a bias.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if a size is below 1, a probability outside [0, 1] or pad_id outside [0, V).

    Source:
        Merity et al., "Regularizing and Optimizing LSTM Language Models" (2018), section 4.
    """

    vocab_size: int
    emb_size: int = 400
    hidden_size: int = 1152
    num_layers: int = 3
    pad_id: int = 1
    input_p: float = 0.25
    hidden_p: float = 0.15
    embed_p: float = 0.02
    weight_p: GateP = 0.2
    gate_p: GateP = 0.0
    output_p: float = 0.1
    tie_weights: bool = True
    out_bias: bool = True

    def __post_init__(self) -> None:
        for name in _SIZES:
            if _integer(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= _integer("pad_id", self.pad_id) < self.vocab_size:
            raise ValueError(
                f"pad_id must be in [0, {self.vocab_size}), the vocabulary, got {self.pad_id}"
            )
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        # A frozen dataclass is assigned through object while it is being made.
        for name in _ROW_P:
            object.__setattr__(self, name, probability(name, getattr(self, name)))
        for name in _GATE_P:
            object.__setattr__(self, name, _gate_probabilities(name, getattr(self, name)))

    @classmethod
    def language_model(cls, vocab_size: int, **overrides: Any) -> AWDLSTMConfig:
        """Make the configuration for language modelling.

        Example:
            >>> AWDLSTMConfig.language_model(1000, num_layers=2).input_p
            0.25

        Args:
            vocab_size: V.
            **overrides: fields to set otherwise.

        Returns:
            The configuration.
        """
        return cls.from_dict({"vocab_size": vocab_size, **overrides})

    @classmethod
    def classifier(cls, vocab_size: int, **overrides: Any) -> AWDLSTMConfig:
        """Make the configuration for the encoder of a classifier, with stronger dropout.

        Example:
            >>> AWDLSTMConfig.classifier(1000).input_p
            0.4

        Args:
            vocab_size: V.
            **overrides: fields to set otherwise.

        Returns:
            The configuration.
        """
        return cls.from_dict({"vocab_size": vocab_size, **_CLASSIFIER_P, **overrides})

    def scaled(self, drop_mult: float) -> AWDLSTMConfig:
        """Multiply every dropout value.

        Example:
            >>> AWDLSTMConfig(1000, gate_p=(0, 0, 0.1, 0)).scaled(2.0).gate_p
            (0.0, 0.0, 0.2, 0.0)

        Args:
            drop_mult: factor, at least 0; no product may pass 1.

        Returns:
            A new configuration.

        Raises:
            TypeError: if drop_mult is no number.
            ValueError: if drop_mult is negative or brings a value above 1.
        """
        if isinstance(drop_mult, bool) or not isinstance(drop_mult, numbers.Real):
            raise TypeError(f"drop_mult must be a number, got {drop_mult!r}")
        if not drop_mult >= 0.0:
            raise ValueError(f"drop_mult must be at least 0, got {drop_mult}")
        if drop_mult > sys.float_info.max:
            raise ValueError(f"drop_mult must be finite, got {drop_mult}")
        changes: dict[str, Any] = {name: getattr(self, name) * drop_mult for name in _ROW_P}
        for name in _GATE_P:
            p = getattr(self, name)
            changes[name] = (
                tuple(value * drop_mult for value in p) if isinstance(p, tuple) else p * drop_mult
            )
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold.

        Example:
            >>> AWDLSTMConfig(1000, gate_p=(0, 0, 0.1, 0)).to_dict()["gate_p"]
            [0.0, 0.0, 0.1, 0.0]

        Returns:
            One entry per field.
        """
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AWDLSTMConfig:
        """Make a configuration from what `to_dict` gave.

        Example:
            >>> AWDLSTMConfig.from_dict(AWDLSTMConfig(1000).to_dict()) == AWDLSTMConfig(1000)
            True

        Args:
            values: fields by name; fields left out keep their defaults.

        Returns:
            The configuration.

        Raises:
            ValueError: if a key is not a field, or vocab_size is missing.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ValueError(
                f"unknown configuration key {unknown[0]!r}: expected one of {', '.join(fields)}"
            )
        if "vocab_size" not in values:
            raise ValueError("the configuration has no vocab_size: add the number of word types")
        return cls(**values)


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    return value


def _gate_probabilities(name: str, p: object) -> GateP:
    if not isinstance(p, (list, tuple)):
        return probability(name, p)
    i, f, g, o = gate_probabilities(name, p)
    return i, f, g, o
