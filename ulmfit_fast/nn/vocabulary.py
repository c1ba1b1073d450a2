"""A language model over another vocabulary: the rows of its embedding and its decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ulmfit_fast.data.tokens.vocab import PAD, Vocab, transfer_rows
from ulmfit_fast.nn.config import AWDLSTMConfig
from ulmfit_fast.nn.language_model import LanguageModel

__all__ = ["language_model", "rebuilt", "use_rows", "with_vocabulary"]

_VOCABULARY_TENSORS = {"encoder.encoder.weight", "decoder.weight", "decoder.bias"}


def with_vocabulary(model: LanguageModel, old: Vocab, new: Vocab) -> LanguageModel:
    """Return a copy of a language model for another vocabulary.

    A word that both know keeps its embedding row and decoder bias; a new word gets the mean row
    and the mean bias.

    Args:
        model: the language model over `old`.
        old: its vocabulary.
        new: the vocabulary wanted.

    Returns:
        A new model; the old one is untouched.

    Source:
        Howard & Ruder 2018 and the code that accompanies it: new words start from the mean row.
    """
    config = replace(model.config, vocab_size=len(new))
    return rebuilt(config, _transferred_tensors(model, new.transfer(old)))


def use_rows(model: LanguageModel, index: Tensor) -> LanguageModel:
    """Return a copy of a language model over other rows of its embedding and decoder.

    Example:
        >>> model = LanguageModel(AWDLSTMConfig(4, emb_size=4, hidden_size=6))
        >>> use_rows(model, torch.tensor([0, 1, 3, -1, -1])).config.vocab_size
        5

    Args:
        model: the language model over the old vocabulary.
        index: int64, `(V_new,)`: the old row, or -1 for the mean of all; from
            `vocabulary_from_fastai`.

    Returns:
        A new model in evaluation mode, whose padding is id 1; the old one is untouched.

    Raises:
        TypeError: if index is not int64.
        ValueError: if index points past the old vocabulary.
    """
    config = replace(model.config, vocab_size=len(index), pad_id=PAD)
    return language_model(config, _transferred_tensors(model, index))


def _transferred_tensors(model: LanguageModel, index: Tensor) -> dict[str, Tensor]:
    """Return copies of a model's tensors, those of the vocabulary over other rows."""
    return {
        name: transfer_rows(value, index) if name in _VOCABULARY_TENSORS else value.clone()
        for name, value in model.state_dict().items()
    }


def language_model(config: AWDLSTMConfig, tensors: Mapping[str, Tensor]) -> LanguageModel:
    """Build a language model around tensors, drawing no random weights.

    Args:
        config: sizes that fit the tensors, and dropout values.
        tensors: every entry of the state_dict; they become the parameters themselves.

    Returns:
        The model in evaluation mode.
    """
    model = LanguageModel(config, device="meta")
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def rebuilt(config: AWDLSTMConfig, tensors: Mapping[str, Tensor]) -> LanguageModel:
    """Build a language model and load tensors into it, once its weights have been drawn.

    A stage of training draws its masks after them, from the same generator.

    Args:
        config: sizes that fit the tensors, and dropout values.
        tensors: every entry of the state_dict, which give the dtype and the device.

    Returns:
        The model in training mode.
    """
    weight = tensors["decoder.weight"]
    model = LanguageModel(config, device="cpu", dtype=torch.float32)
    model.to(weight.device, weight.dtype)
    model.load_state_dict(tensors)
    return model
