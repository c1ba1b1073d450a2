"""Texts to batches: reading files, tokens, the vocabulary, and batches for both kinds of model."""

from typing import TYPE_CHECKING

from ulmfit_fast.data.batches import (
    ClassifierBatch,
    ClassifierBatches,
    LMBatches,
    concatenate_documents,
)
from ulmfit_fast.data.reading.corpus import read_labelled, read_texts, read_weighted
from ulmfit_fast.data.reading.table_check import TableCheck, check_table
from ulmfit_fast.data.store.store import TokenStore
from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.data.tokens.vocab import SPECIALS, Vocab, transfer_rows
from ulmfit_fast.system.lazy import lazy_attributes

__all__ = [
    "SPECIALS",
    "ClassifierBatch",
    "ClassifierBatches",
    "LMBatches",
    "TableCheck",
    "TokenStore",
    "Tokenizer",
    "Vocab",
    "check_table",
    "concatenate_documents",
    "read_labelled",
    "read_texts",
    "read_weighted",
    "transfer_rows",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__, __all__)
