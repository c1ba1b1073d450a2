"""A store whose files were tampered with is refused, and no code in it is run."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from ulmfit_fast.data import Tokenizer, TokenStore


@pytest.fixture
def store_directory(tmp_path: Path) -> Path:
    texts = ["a cat", "a dog", "cat dog"]
    tokenizer = Tokenizer.train(texts, min_freq=1)
    return TokenStore.build(tmp_path / "store", texts, tokenizer, workers=1).directory


def change_meta(directory: Path, **changes: object) -> None:
    meta = json.loads((directory / "meta.json").read_text())
    (directory / "meta.json").write_text(json.dumps({**meta, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "O"},
        {"dtype": "|V0"},
        {"dtype": ["<u2"]},
        {"tokens": -1},
        {"tokens": 10**30},
        {"tokens": 8.0},
        {"tokens": None},
        {"documents": 2**62},
        {"vocab_size": "11"},
        {"vocab_size": True},
        {"tokenizer": None},
    ],
    ids=str,
)
def test_descriptions_of_a_store(store_directory: Path, changes: dict) -> None:
    change_meta(store_directory, **changes)
    with pytest.raises(ValueError, match="damaged"):
        TokenStore(store_directory)


def objects_of_numpy(path: Path) -> None:
    np.save(path, np.array([print, 1, 2, 3], dtype=object), allow_pickle=True)


def an_archive_of_numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, offsets=np.arange(4))


@pytest.mark.parametrize(
    "write",
    [
        objects_of_numpy,
        an_archive_of_numpy,
        lambda path: path.write_bytes(pickle.dumps(print)),
        lambda path: path.write_bytes(b""),
        lambda path: np.save(path, np.array([0, 5, 2, 9])),
        lambda path: np.save(path, np.array([0, -5, 2, 9])),
        lambda path: np.save(path, np.array([1, 2, 3, 9])),
        lambda path: np.save(path, np.array([0.0, 2, 5, 9])),
        lambda path: np.save(path, np.array([[0], [2], [5], [9]])),
        lambda path: path.write_bytes(
            b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': " + bytes(200)
        ),
    ],
    ids=["objects", "npz", "pickle", "empty", "order", "negative", "start", "float", "2d", "torn"],
)
def test_offsets_of_a_store(store_directory: Path, write) -> None:
    assert json.loads((store_directory / "meta.json").read_text())["tokens"] == 9
    write(store_directory / "offsets.npy")
    with pytest.raises(ValueError, match=r"offsets\.npy .*damaged"):
        TokenStore(store_directory)


def test_ids_outside_the_vocabulary(store_directory: Path) -> None:
    ids = np.fromfile(store_directory / "ids.bin", dtype="<u2")
    ids[4] = 60_000
    ids.tofile(store_directory / "ids.bin")
    store = TokenStore(store_directory)
    assert store.stream()[:4].tolist() == ids[:4].tolist()
    for stream in (store.stream(), store.stream(seed=1), store.select(np.array([1])).stream()):
        with pytest.raises(
            ValueError, match=r"the store holds the id 60000, expected 0 to 11; ids"
        ):
            stream[:]


def test_a_store_without_a_file(store_directory: Path) -> None:
    for name in ("offsets.npy", "ids.bin"):
        kept = (store_directory / name).rename(store_directory / "kept")
        with pytest.raises(FileNotFoundError, match=rf"has no {name}; build the store anew"):
            TokenStore(store_directory)
        kept.rename(store_directory / name)
    (store_directory / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged .*; build the store anew"):
        TokenStore(store_directory).tokenizer()
