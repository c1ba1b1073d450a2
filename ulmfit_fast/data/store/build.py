"""How a token store is made: texts in blocks, encoded by processes, written in their order."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data.reading.corpus import Source
from ulmfit_fast.data.store.files import (
    DTYPES,
    FORMAT,
    IDS,
    META,
    OFFSETS,
    TOKENIZER,
    VERSION,
    digest_of,
)
from ulmfit_fast.data.tokens.texts import BLOCK_CHARACTERS, text_blocks
from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.system.files import file_in_place, user_path, write_text
from ulmfit_fast.system.progress import progress_bar

__all__ = ["cpus", "expected_blocks", "write_store"]

# Fewer blocks are encoded before a process has started.
_BLOCKS_WORTH_WORKERS = 8
# Blocks that wait for each worker, so that none is idle and memory stays bounded.
_BLOCKS_AHEAD = 2

# The ids of all texts of a block, and the length of each.
_Encoded = tuple[bytes, npt.NDArray[np.int64]]


def write_store(
    directory: Path, texts: Iterable[str], tokenizer: Tokenizer, *, workers: int, expected: int
) -> None:
    """Write the files of a store.

    Args:
        directory: an empty one.
        texts: at least one.
        tokenizer: turns them into ids.
        workers: processes that encode; 1 is this one.
        expected: blocks of texts, for a bar on a terminal; 0 for none.
    """
    dtype = np.dtype(DTYPES[len(tokenizer.vocab) > 2**16])
    lengths: list[npt.NDArray[np.int64]] = []
    documents = tokens = 0
    with (
        progress_bar("tokenising", expected, enabled=expected > 0) as advance,
        file_in_place(directory / IDS) as path,
        path.open("wb") as file,
    ):
        for ids, own in _encoded(texts, tokenizer, dtype, workers):
            file.write(ids)
            lengths.append(own)
            documents, tokens = documents + len(own), tokens + len(ids) // dtype.itemsize
            advance(f"{documents:,} documents, {tokens:,} tokens")
    with file_in_place(directory / OFFSETS) as path:
        np.save(path, np.cumsum(np.concatenate([[0], *lengths]), dtype="<i8"))
    write_text(directory / TOKENIZER, tokenizer.to_json())
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": dtype.str,
        "vocab_size": len(tokenizer.vocab),
        "kind": tokenizer.kind,
        "tokenizer": digest_of(tokenizer),
        "documents": documents,
        "tokens": tokens,
    }
    write_text(directory / META, json.dumps(meta, indent=2))


def _encoded(
    texts: Iterable[str], tokenizer: Tokenizer, dtype: np.dtype[np.integer], workers: int
) -> Iterator[_Encoded]:
    blocks: Iterator[list[str]] = text_blocks(texts)
    ahead = list(itertools.islice(blocks, _BLOCKS_WORTH_WORKERS))
    few = len(ahead) < _BLOCKS_WORTH_WORKERS
    blocks = itertools.chain(ahead, blocks)
    del ahead
    if workers == 1 or few:
        yield from map(_BlockEncoder(tokenizer, dtype), blocks)
        return
    pool = ProcessPoolExecutor(
        workers,
        # A fork would copy threads' locks, and macOS does not allow it.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_init_worker,
        initargs=(tokenizer.to_json(), dtype),
    )
    waiting: deque[Future[_Encoded]] = deque()
    try:
        for block in blocks:
            waiting.append(pool.submit(_encode_in_worker, block))
            if len(waiting) > workers * _BLOCKS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker died, out of memory perhaps, or because the script lacks "
            "`if __name__ == '__main__':`; call again, with fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _BlockEncoder:
    """Encodes lists of texts and remembers the words between them."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[np.integer]) -> None:
        self._encode = tokenizer.encoder()
        self._dtype = dtype

    def __call__(self, texts: list[str]) -> _Encoded:
        ids = self._encode(texts)
        lengths = np.array([len(document) for document in ids], dtype=np.int64)
        return np.concatenate(ids).astype(self._dtype).tobytes(), lengths


_encoder: _BlockEncoder | None = None


def _init_worker(tokenizer: str, dtype: np.dtype[np.integer]) -> None:
    """Make a new process ready; it ends when the one that started it does."""
    global _encoder
    # Ctrl-C reaches every process of a terminal; the one that started this answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # There is a process for each CPU already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = _BlockEncoder(Tokenizer.from_json(tokenizer), dtype)


def _encode_in_worker(texts: list[str]) -> _Encoded:
    assert _encoder is not None
    return _encoder(texts)


def _exit_with_parent() -> None:
    # A killed parent closes nothing, and its workers would wait for it for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def cpus() -> int:
    """Return how many CPUs this process may use: of the machine's, a container may have few."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def expected_blocks(source: Source) -> int:
    """Return how many blocks a corpus of files or listed texts has, about; 0 if not known."""
    if isinstance(source, (str, os.PathLike)):
        source = [user_path(source)]
    if not isinstance(source, (list, tuple)):
        return 0
    size = 0
    for item in source:
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, os.PathLike):
            path = user_path(item)
            files = path.rglob("*") if path.is_dir() else [path]
            size += sum(file.stat().st_size for file in files if file.is_file())
    return -(-size // BLOCK_CHARACTERS)
