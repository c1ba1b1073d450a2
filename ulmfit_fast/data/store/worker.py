"""What a process does that encodes blocks of texts for a token store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext

import numpy as np

from ulmfit_fast.data.tokens.tokenizer import Tokenizer

__all__ = ["BlockEncoder", "begin", "context", "encode"]


class BlockEncoder:
    """Encodes lists of texts into bytes and remembers the words between them."""

    def __init__(self, tokenizer: Tokenizer, dtype: str) -> None:
        self._encode = tokenizer.encoder()
        self._dtype = np.dtype(dtype)

    def __call__(self, texts: list[str]) -> tuple[bytes, bytes]:
        """Return the ids of all texts, and the length of each as int64."""
        ids = self._encode(texts)
        lengths = np.array([len(document) for document in ids], dtype="<i8")
        return np.concatenate(ids).astype(self._dtype).tobytes(), lengths.tobytes()


_encoder: BlockEncoder | None = None


def context() -> SpawnContext:
    """Return how worker processes are started."""
    return multiprocessing.get_context("spawn")


def begin(tokenizer: str, dtype: str) -> None:
    """Make a new process ready; it ends when the one that started it does."""
    global _encoder
    # Ctrl-C reaches every process of a terminal; the one that started this answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # There is a process for each CPU already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = BlockEncoder(Tokenizer.from_json(tokenizer), dtype)


def encode(texts: list[str]) -> tuple[bytes, bytes]:
    """Encode a block in a process that `begin` has made ready."""
    if _encoder is None:
        raise RuntimeError("the worker has no tokenizer; call begin first")
    return _encoder(texts)


def _end_with_parent() -> None:
    # A killed parent closes nothing, and its workers would wait for it for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
