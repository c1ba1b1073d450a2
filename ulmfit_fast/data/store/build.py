"""How a token store is made: texts in blocks, encoded by processes, written in their order.

A block is done when its ids and lengths are on the disk and the state that counts them has been
renamed into place. Whatever a kill leaves behind that count is cut off when the work goes on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ulmfit_fast.data.reading.bad_rows import OnError
from ulmfit_fast.data.reading.corpus import Source, read_texts
from ulmfit_fast.data.store import worker as worker
from ulmfit_fast.data.store.files import (
    DTYPES,
    FORMAT,
    IDS,
    META,
    OFFSETS,
    TOKENIZER,
    VERSION,
)
from ulmfit_fast.data.store.store import TokenStore, digest_of
from ulmfit_fast.data.tokens.texts import BLOCK_CHARACTERS, text_blocks
from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.system.directories import put_in_place, recover
from ulmfit_fast.system.files import user_path
from ulmfit_fast.system.json_text import parse_json
from ulmfit_fast.system.locks import held
from ulmfit_fast.system.progress import progress_bar

__all__ = ["StoreBuilder", "building"]

_log = logging.getLogger("ulmfit_fast")

_LENGTHS, _STATE = "lengths.bin", "state.json"
# Fewer blocks are encoded before a process has started.
_BLOCKS_WORTH_WORKERS = 8
# Blocks that wait for each worker, so that none is idle and memory stays bounded.
_BLOCKS_AHEAD = 2


def building(target: Path) -> AbstractContextManager[None]:
    """Keep others, and this thread itself, from building a store meanwhile.

    Args:
        target: where the store is to be, resolved. The lock lies beside it, as does what becomes
            the store.

    Raises:
        FileExistsError: if it is being built already.
    """
    return held(target, target.with_name(f".{target.name}.lock"), alone=True)


class _State(NamedTuple):
    """What of a store is done: counts, and a digest of the texts behind them."""

    documents: int = 0
    tokens: int = 0
    texts: str = ""


class StoreBuilder:
    """Builds one store, in a hidden directory beside its place; see `TokenStore.build`."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        tokenizer: Tokenizer,
        *,
        workers: int | None,
        progress: bool,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}, expected at least 1, or None for all CPUs")
        self._target = user_path(directory).resolve()
        self._partial = self._target.with_name(f".{self._target.name}.partial")
        self._tokenizer = tokenizer
        self._digest = digest_of(tokenizer)
        self._workers = workers or _cpus()
        self._progress = progress
        self._dtype = np.dtype(DTYPES[len(tokenizer.vocab) > 2**16])

    def build(self, source: Source, text_column: str, *, on_error: OnError, resume: bool) -> None:
        """Build the store, or find that it is complete."""
        target = self._target
        if target.exists() and not TokenStore.is_store(target):
            if not target.is_dir() or any(target.iterdir()):
                other = (target / META).exists()
                why = f"its {META} is of another kind" if other else f"it has no {META}"
                raise FileExistsError(
                    f"{target} exists and is no token store ({why}); choose another directory or "
                    "remove it"
                )
        expected = _expected_blocks(source)
        texts = read_texts(source, text_column=text_column, on_error=on_error)
        if resume and TokenStore.is_store(target):
            self._compare(TokenStore(target, self._tokenizer), texts)
            return
        with building(target):
            self._partial.mkdir(exist_ok=True)
            if not resume:
                _empty(self._partial)
            state = begun = self._begun()
            began = time.perf_counter()
            bar = progress_bar("tokenising", expected, enabled=self._progress and expected > 0)
            with bar as advance:
                for done in self._written(texts, begun):
                    advance(f"{done.documents:,} documents, {done.tokens:,} tokens")
                    state = done
            rate = (state.tokens - begun.tokens) / max(time.perf_counter() - began, 1e-9)
            self._finish(state)
        _log.info(
            "%s: %d documents, %d tokens, %.0f tokens/s",
            target, state.documents, state.tokens, rate,
        )  # fmt: skip

    def _compare(self, store: TokenStore, texts: Iterable[str]) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for text in texts:
            _add_text(digest, text)
        if digest.hexdigest() != store.texts_digest:
            raise ValueError(
                f"{self._target} was made from other texts, expected the same ones; choose another "
                "directory, or build it anew with resume=False"
            )

    def _begun(self) -> _State:
        """Return the state of what is there, or begin."""
        path = self._partial / _STATE
        if not path.is_file():
            _empty(self._partial)
            _write_whole(self._partial / TOKENIZER, self._tokenizer.to_json())
            self._commit(_State())
            return _State()
        try:
            content = parse_json(path.read_text(encoding="utf-8"), _STATE)
            begun_with = content.pop("tokenizer")
            state = _State(**content)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); build the store anew with resume=False"
            ) from error
        if begun_with != self._digest:
            raise ValueError(
                f"{self._target} was begun with another tokenizer, expected the same; finish it "
                "with that one, or build it anew with resume=False"
            )
        return state

    def _commit(self, state: _State) -> None:
        content = {**state._asdict(), "tokenizer": self._digest}
        _write_whole(self._partial / _STATE, json.dumps(content))

    def _written(self, texts: Iterator[str], state: _State) -> Iterator[_State]:
        """Write block after block, and yield the state after each."""
        digest = hashlib.blake2b(digest_size=16)
        if state.documents:
            self._skip(texts, state, digest)
            _log.info("%s: going on after %d documents", self._target, state.documents)
        with (
            _opened(self._partial / IDS, state.tokens * self._dtype.itemsize) as ids_file,
            _opened(self._partial / _LENGTHS, state.documents * 8) as lengths_file,
        ):
            for ids, lengths, texts_digest in self._encoded(texts, digest):
                for file, content in ((ids_file, ids), (lengths_file, lengths)):
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                state = _State(
                    state.documents + len(lengths) // 8,
                    state.tokens + len(ids) // self._dtype.itemsize,
                    texts_digest,
                )
                self._commit(state)
                yield state

    def _skip(self, texts: Iterator[str], state: _State, digest: Any) -> None:
        done = 0
        for text in itertools.islice(texts, state.documents):
            _add_text(digest, text)
            done += 1
        if done < state.documents or digest.hexdigest() != state.texts:
            raise ValueError(
                f"the first {state.documents} texts are not those that {self._target} was begun "
                "with, expected the same; pass them again, or build it anew with resume=False"
            )

    def _encoded(self, texts: Iterator[str], digest: Any) -> Iterator[tuple[bytes, bytes, str]]:
        """Yield ids, lengths and the digest of all texts so far, block by block in order."""
        blocks: Iterator[list[str]] = text_blocks(texts)
        ahead = list(itertools.islice(blocks, _BLOCKS_WORTH_WORKERS))
        few = len(ahead) < _BLOCKS_WORTH_WORKERS
        digested = _digested(itertools.chain(ahead, blocks), digest)
        del ahead
        if self._workers == 1 or few:
            encode = worker.BlockEncoder(self._tokenizer, self._dtype.str)
            for block, texts_digest in digested:
                yield (*encode(block), texts_digest)
            return
        yield from self._encoded_by_workers(digested)

    def _encoded_by_workers(
        self, blocks: Iterator[tuple[list[str], str]]
    ) -> Iterator[tuple[bytes, bytes, str]]:
        pool = ProcessPoolExecutor(
            self._workers,
            # A fork would copy threads' locks, and macOS does not allow it.
            mp_context=worker.context(),
            initializer=worker.begin,
            initargs=(self._tokenizer.to_json(), self._dtype.str),
        )
        waiting: deque[tuple[Future[tuple[bytes, bytes]], str]] = deque()
        try:
            for block, texts_digest in blocks:
                waiting.append((pool.submit(worker.encode, block), texts_digest))
                if len(waiting) > self._workers * _BLOCKS_AHEAD:
                    future, done_digest = waiting.popleft()
                    yield (*future.result(), done_digest)
            for future, done_digest in waiting:
                yield (*future.result(), done_digest)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker died, out of memory perhaps, or because the script lacks "
                "`if __name__ == '__main__':`; what is done is kept: call again, with fewer workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _finish(self, state: _State) -> None:
        """Turn lengths into offsets, describe the store and give it its name."""
        partial = self._partial
        shape = (state.documents + 1,)
        offsets = np.lib.format.open_memmap(partial / OFFSETS, "w+", np.dtype("<i8"), shape)
        lengths = np.memmap(partial / _LENGTHS, dtype="<i8", mode="r")
        offsets[0] = 0
        np.cumsum(lengths, out=offsets[1:])
        offsets.flush()
        del offsets, lengths
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self._dtype.str,
            "vocab_size": len(self._tokenizer.vocab),
            "kind": self._tokenizer.kind,
            "tokenizer": self._digest,
            **state._asdict(),
        }
        _write_whole(partial / META, json.dumps(meta, indent=2))
        for name in (_LENGTHS, _STATE):
            (partial / name).unlink(missing_ok=True)
        if self._target.exists():
            recover(self._target)
            put_in_place(partial, self._target)
        else:
            os.replace(partial, self._target)


def _cpus() -> int:
    # Of the machine's CPUs, a container may have few.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _expected_blocks(source: Source) -> int:
    """Return how many blocks a corpus of files or listed texts has, about; 0 if none can tell."""
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


def _digested(blocks: Iterable[list[str]], digest: Any) -> Iterator[tuple[list[str], str]]:
    for block in blocks:
        for text in block:
            _add_text(digest, text)
        yield block, digest.hexdigest()


def _add_text(digest: Any, text: str) -> None:
    content = text.encode("utf-8", "surrogatepass")
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)


@contextmanager
def _opened(path: Path, size: int) -> Iterator[BinaryIO]:
    """Open a file to write on after its first bytes; what a kill left behind them is cut off."""
    with path.open("ab") as file:
        if file.tell() < size:
            raise ValueError(f"{path} has {file.tell()} bytes, expected {size}; use resume=False")
        file.truncate(size)
        yield file


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
