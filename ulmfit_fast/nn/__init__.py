"""Modules: the LSTM, the AWD-LSTM built from it, and the heads and losses of ULMFiT."""

from typing import TYPE_CHECKING

from ulmfit_fast.nn.awd_lstm import AWDLSTM
from ulmfit_fast.nn.config import AWDLSTMConfig
from ulmfit_fast.nn.convert import convert_lstm, restore_lstm
from ulmfit_fast.nn.dropout import EmbeddingDropout, LockedDropout
from ulmfit_fast.nn.heads import TextClassifier
from ulmfit_fast.nn.language_model import LanguageModel
from ulmfit_fast.nn.loss import LMLoss, LMOutput, language_model_loss
from ulmfit_fast.nn.lstm import LSTM
from ulmfit_fast.nn.state import State, detach_state, resize_state
from ulmfit_fast.system.lazy import lazy_attributes

__all__ = [
    "AWDLSTM",
    "LSTM",
    "AWDLSTMConfig",
    "EmbeddingDropout",
    "LMLoss",
    "LMOutput",
    "LanguageModel",
    "LockedDropout",
    "State",
    "TextClassifier",
    "convert_lstm",
    "detach_state",
    "language_model_loss",
    "resize_state",
    "restore_lstm",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__, __all__)
