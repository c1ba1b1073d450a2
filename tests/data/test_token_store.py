"""The token store: what it holds, that it is the same however it was built, and what it refuses."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ulmfit_fast.data import Tokenizer, Vocab, concatenate_documents
from ulmfit_fast.data.store import build
from ulmfit_fast.data.store.store import TokenStore
from ulmfit_fast.data.tokens import texts

TEXTS = [f"The cat number {i} sat on mat {i * i}." + " Again!!!" * (i % 7) for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, min_freq=2)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BLOCK_CHARACTERS", 500)


@pytest.fixture(scope="module")
def store(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return TokenStore.build(tmp_path_factory.mktemp("stores") / "store", TEXTS, tokenizer)


def contents(directory: Path) -> dict[str, bytes]:
    assert [path.name for path in directory.parent.iterdir() if path.name.startswith(".")] == []
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_documents_are_those_of_the_tokenizer(store: TokenStore, tokenizer: Tokenizer) -> None:
    expected = tokenizer.encode_batch(TEXTS)
    assert len(store) == len(expected) == 300
    assert [ids.tolist() for ids in store] == [ids.tolist() for ids in expected]
    assert store[-1].tolist() == expected[-1].tolist()
    assert [ids.tolist() for ids in store[5:9:2]] == [expected[5].tolist(), expected[7].tolist()]
    assert store.ids.dtype == np.uint16 and isinstance(store.ids, np.memmap)
    assert store[3].base is not None and not store[3].flags.writeable
    assert len(store.ids) == store.offsets[-1] == sum(map(len, expected))
    for index in (300, -301):
        with pytest.raises(IndexError, match=f"document {index} of 300"):
            store[index]
    twin = pickle.loads(pickle.dumps(store))
    assert twin[7].tolist() == expected[7].tolist() and "300 documents" in repr(twin)
    assert store.tokenizer().to_json() == tokenizer.to_json()


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    words = ["q".join(str(i)) for i in range(70_000)]
    large = Tokenizer.from_vocab(Vocab(words))
    store = TokenStore.build(tmp_path / "store", ["6q9q9q9q9 0"], large)
    assert store.ids.dtype == np.int32 and store[0].tolist() == [2, 70_008, 9]


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_the_stream_is_the_concatenation(store: TokenStore, seed: int | None) -> None:
    wanted = concatenate_documents(store, seed).numpy()
    stream = store.stream(seed)
    assert len(stream) == len(wanted)
    assert stream[:].dtype == np.int64 and (stream[:] == wanted).all()
    for part in (slice(0, 1), slice(17, 171), slice(-9, None), slice(5, 5), slice(9, 4)):
        assert (stream[part] == wanted[part]).all()
    starts = np.array([0, 40, 41, len(wanted) - 30])
    assert (stream.window(starts, 30) == np.stack([wanted[s : s + 30] for s in starts], 1)).all()
    for start in (-1, len(wanted) - 29):
        with pytest.raises(IndexError, match=f"pieces of 30 tokens start at {start}"):
            stream.window(np.array([start]), 30)
    with pytest.raises(ValueError, match="step of a slice is 2"):
        stream[::2]


def test_a_language_model_trains_on_it(store: TokenStore, tokenizer: Tokenizer) -> None:
    from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
    from ulmfit_fast.training import stages

    losses = []
    for documents in (store, tokenizer.encode_batch(TEXTS)):
        torch.manual_seed(0)
        config = AWDLSTMConfig.language_model(
            store.vocab_size, emb_size=8, hidden_size=8, num_layers=1
        )
        settings = stages.TrainingSettings(batch_size=8, bptt=20)
        history = stages.train_language_model(
            LanguageModel(config), documents, settings, progress=False
        )
        losses.append(history.losses)
    assert losses[0] == losses[1] and len(losses[0]) > 5


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_blocks_do_not_change_the_store(
    tmp_path: Path, tokenizer: Tokenizer, store: TokenStore, small_blocks, workers: int
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    # Workers are given blocks, wherever the texts are from.
    for source in (path, iter(TEXTS))[workers - 1 :]:
        built = TokenStore.build(tmp_path / "store", source, tokenizer, workers=workers)
        assert contents(built.directory) == contents(store.directory)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_texts_are_taken_as_they_are_written(
    tmp_path: Path, tokenizer: Tokenizer, small_blocks, workers: int, monkeypatch
) -> None:
    ahead, done = [], [0]

    @contextmanager
    def counted(*args, **options):
        yield lambda shown: done.append(int(shown.split()[0].replace(",", "")))

    def watched():
        for number in range(2_000):
            ahead.append(number - done[-1])
            yield TEXTS[number % 300]

    monkeypatch.setattr(build, "progress_bar", counted)
    assert len(TokenStore.build(tmp_path / "store", watched(), tokenizer, workers=workers)) == 2_000
    # Eight blocks of some twelve texts to begin with, and two for each worker later.
    assert max(ahead) < 250


def test_columns_of_a_table(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.csv"
    path.write_text("n,body\n1,The cat\n2,sat\n", encoding="utf-8")
    store = TokenStore.build(tmp_path / "store", path, tokenizer, text_column="body")
    assert [tokenizer.decode(ids) for ids in store] == ["The cat", "sat"]


@pytest.mark.slow
def test_the_kind_spacy_in_workers(tmp_path: Path, small_blocks) -> None:
    pytest.importorskip("spacy", reason="needs the package spacy")
    spacy = Tokenizer.train(TEXTS, "spacy")
    store = TokenStore.build(tmp_path / "store", TEXTS, spacy, workers=2)
    assert [i.tolist() for i in store] == [i.tolist() for i in spacy.encode_batch(TEXTS)]


KILLED = """
import json, multiprocessing, os, signal, sys
from pathlib import Path
from ulmfit_fast.data import Tokenizer
from ulmfit_fast.data.store import build
from ulmfit_fast.data.store.store import TokenStore
from ulmfit_fast.data.tokens import texts
from ulmfit_fast.system import directories

corpus, tokenizer, workers, *tasks = sys.argv[1:]
texts.BLOCK_CHARACTERS = 500

def die(*args):
    pids = [process.pid for process in multiprocessing.active_children()]
    Path(out + ".pids").write_text(json.dumps(pids))
    os.kill(os.getpid(), signal.SIGKILL)

def encoded_until(*args):
    for number, block in enumerate(real(*args)):
        yield block
        if number == 5:
            die()

real = build._encoded
# Each in a process of its own that imports nothing.
if __name__ == "__main__":
    found = Tokenizer.from_json(Path(tokenizer).read_text())
    for out, moment in zip(tasks[::2], tasks[1::2]):
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            continue
        if moment == "between blocks":
            build._encoded = encoded_until
        if moment == "before the description":
            build.digest_of = die
        if moment == "before it is in place":
            directories.put_in_place = die
        if moment == "half in place":
            directories._drop = die
        TokenStore.build(out, Path(corpus), found, workers=int(workers))
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


MOMENTS = ["between blocks", "before the description", "before it is in place", "half in place"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the platform has no SIGKILL")
@pytest.mark.parametrize(
    ("workers", "moments"),
    [(1, MOMENTS), pytest.param(2, MOMENTS[:1], marks=pytest.mark.slow)],
    ids=["alone", "workers"],
)
def test_a_killed_build_leaves_the_older_store_and_is_begun_again(
    tmp_path: Path,
    tokenizer: Tokenizer,
    store: TokenStore,
    small_blocks,
    workers: int,
    moments: list[str],
) -> None:
    corpus, saved = tmp_path / "corpus.txt", tmp_path / "tokenizer.json"
    corpus.write_text("\n".join(TEXTS), encoding="utf-8")
    saved.write_text(tokenizer.to_json(), encoding="utf-8")
    tasks = []
    for moment in moments:
        for kind in ("new", "older")[workers - 1 :]:
            out = tmp_path / f"{kind}, {moment}" / "store"
            out.parent.mkdir()
            if kind == "older":
                TokenStore.build(out, TEXTS[:5], tokenizer)
            tasks += [out, moment]
    script = tmp_path / "build.py"
    script.write_text(KILLED, encoding="utf-8")
    command = [sys.executable, script, corpus, saved, str(workers), *tasks]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(
        command, cwd=root, env=environment, timeout=120, check=True, stdout=subprocess.PIPE
    )
    assert list(map(int, run.stdout.split())) == [-signal.SIGKILL] * (len(tasks) // 2)
    for out, moment in zip(tasks[::2], tasks[1::2], strict=True):
        pids = json.loads(Path(f"{out}.pids").read_text())
        assert len(pids) == (2 if workers == 2 else 0)
        for _ in range(200):
            if not any(map(alive, pids)):
                break
            time.sleep(0.1)
        assert not any(map(alive, pids)), "workers outlive the process that was killed"
        Path(f"{out}.pids").unlink()
        if moment == "half in place":
            assert len(TokenStore(out, tokenizer)) == len(TEXTS), out
        elif out.parent.name.startswith("older"):
            assert len(TokenStore(out, tokenizer)) == 5, out
        else:
            assert not TokenStore.is_store(out), out
            with pytest.raises(FileNotFoundError, match=r"is no token store: it has no meta.json"):
                TokenStore(out)
        TokenStore.build(out, corpus, tokenizer, workers=1)
        assert contents(out) == contents(store.directory), out


def test_another_build_replaces_a_store(tmp_path: Path, tokenizer: Tokenizer) -> None:
    TokenStore.build(tmp_path / "store", TEXTS, tokenizer)
    other = Tokenizer.from_vocab(Vocab(["cat"]))
    assert len(TokenStore.build(tmp_path / "store", TEXTS[:2], other)) == 2
    with pytest.raises(ValueError, match=r"made by another tokenizer \(vocabulary of 10\) than"):
        TokenStore(tmp_path / "store", tokenizer)
    files = ["ids.bin", "meta.json", "offsets.npy", "tokenizer.json"]
    assert sorted(contents(tmp_path / "store")) == files


def test_an_error_leaves_the_older_store(tmp_path: Path, tokenizer: Tokenizer) -> None:
    TokenStore.build(tmp_path / "store", TEXTS[:5], tokenizer)
    with pytest.raises(TypeError, match=r"texts\[2\] is 3"):
        TokenStore.build(tmp_path / "store", iter(["a", "b", 3]), tokenizer)
    assert len(TokenStore(tmp_path / "store", tokenizer)) == 5
    assert len(contents(tmp_path / "store")) == 4


def test_two_builders_exclude_each_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("fcntl", reason="the platform has no such locks")

    def second():
        yield TEXTS[0]
        with pytest.raises(FileExistsError, match=r"store is held by process \d+ on .* since"):
            TokenStore.build(tmp_path / "store", TEXTS, tokenizer)
        yield TEXTS[1]

    assert len(TokenStore.build(tmp_path / "store", second(), tokenizer)) == 2


@pytest.mark.parametrize("workers", [0, -1])
def test_bad_workers(tmp_path: Path, tokenizer: Tokenizer, workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers is {workers}, expected at least 1"):
        TokenStore.build(tmp_path / "store", TEXTS, tokenizer, workers=workers)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_something_else_is_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is no token store \(it has no meta.json\)"):
        TokenStore.build(tmp_path / "store", TEXTS, tokenizer)
    with pytest.raises(ValueError, match="corpus passed is empty"):
        TokenStore.build(tmp_path / "none", [], tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ids.bin", lambda old: old[:-2], r"ids.bin has \d+ bytes, expected \d+; the store is dam"),
        ("offsets.npy", lambda old: old[:-8] + bytes(8), r"offsets.npy does not end at \d+ tokens"),
        ("meta.json", lambda old: old[:-5], r"meta.json is damaged \(.*build the store anew"),
        ("meta.json", lambda old: b"{}", r"meta.json is not that of a token store"),
        ("meta.json", lambda old: old.replace(b'n": 1', b'n": 9'), "version 9, expected 1; update"),
    ],
    ids=["ids", "offsets", "meta-cut", "meta-other", "newer"],
)
def test_damage_is_seen(tmp_path: Path, tokenizer: Tokenizer, name, change, message) -> None:
    store = TokenStore.build(tmp_path / "store", TEXTS[:9], tokenizer)
    path = store.directory / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        TokenStore(store.directory)


@pytest.mark.slow
def test_a_dead_worker_is_told(tmp_path: Path, tokenizer, store, small_blocks, monkeypatch) -> None:
    monkeypatch.setattr(build, "_encode_in_worker", _die)
    with pytest.raises(RuntimeError, match=r"a worker died, .* call again, with fewer workers"):
        TokenStore.build(tmp_path / "store", TEXTS, tokenizer, workers=2)
    monkeypatch.undo()
    TokenStore.build(tmp_path / "store", TEXTS, tokenizer, workers=1)
    assert contents(tmp_path / "store") == contents(store.directory)


def _die(block: list[str]) -> None:
    os._exit(9)
