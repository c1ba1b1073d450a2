"""Files of other projects: nothing of them is run, and what is refused is named."""

import ast
import collections
import inspect
import io
import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ulmfit_fast.compat import files
from ulmfit_fast.compat.files import read_tensors, read_words
from ulmfit_fast.data import SPECIALS

WORDS = ["xxunk", "the", "café", "a b", "\n", ""]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Payload:
    """Pickled, it is a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Evaluated(Payload):
    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({str(self.path)!r})",)


PAYLOADS = pytest.mark.parametrize(
    ("payload", "name"),
    [(Payload, r"(posix|nt|os)\.mkdir"), (Evaluated, r"(builtins\.)?eval")],
    ids=["mkdir", "eval"],
)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older than 1.6"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda payload: payload,
        lambda payload: {"0.encoder.weight": torch.ones(2), "hook": payload},
        lambda payload: {"model": collections.OrderedDict(a=torch.ones(1)), "opt": [payload]},
        lambda payload: {payload: torch.ones(1)},
    ],
    ids=["bare", "beside tensors", "optimizer", "key"],
)
@PAYLOADS
def test_a_call_in_a_file_of_weights_is_named_and_not_made(
    tmp_path: Path, payload, name: str, wrap, zipped: bool
) -> None:
    made, path = tmp_path / "made", tmp_path / "lm.pth"
    torch.save(wrap(payload(made)), path, _use_new_zipfile_serialization=zipped)
    refused = rf"{path} is refused: it asks for {name}, and a file of weights may hold tensors"
    with pytest.raises(ValueError, match=refused):
        read_tensors(path)
    assert not made.exists()
    # It would have been made.
    torch.load(path, weights_only=False)
    assert made.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@PAYLOADS
def test_a_plain_pickle_for_weights(tmp_path: Path, payload, name: str, protocol: int) -> None:
    made, path = tmp_path / "made", tmp_path / "lm.pth"
    path.write_bytes(pickle.dumps({"weight": payload(made)}, protocol=protocol))
    with pytest.raises(ValueError, match=rf"{path} is refused: it asks for .*{name}"):
        read_tensors(path)
    assert not made.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "wrap", [lambda payload: payload, lambda payload: ["the", payload]], ids=["bare", "listed"]
)
@PAYLOADS
def test_a_call_in_a_vocabulary_is_named_and_not_made(
    tmp_path: Path, payload, name: str, wrap, protocol: int
) -> None:
    made, path = tmp_path / "made", tmp_path / "itos.pkl"
    path.write_bytes(pickle.dumps(wrap(payload(made)), protocol=protocol))
    with pytest.raises(
        ValueError, match=rf"{path} is refused: it asks for .*{name}, and a vocabulary may hold a"
    ):
        read_words(path)
    assert not made.exists()
    pickle.loads(path.read_bytes())
    assert made.exists()


class Word(str):
    """A string that comes with a class."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (("a", "b"), "is refused: it holds a tuple, expected a list of strings"),
        ({"a": 0}, "is refused: it holds a dict"),
        ("the cat", "is refused: it holds a str"),
        (["a", 1], "is refused: place 1 holds a int, expected a list of strings"),
        (["a", None], "is refused: place 1 holds a None"),
        (["a", ["b"]], "is refused: place 1 holds a list"),
        ([b"a"], "is refused: (place 0 holds a bytes|it asks for _codecs.encode)"),
        (np.array(["a"]), r"is refused: it asks for numpy\S*\._?reconstruct"),
        ([np.str_("a")], r"is refused: it asks for numpy\S*\.scalar"),
        (collections.UserList(["a"]), r"is refused: it asks for (collections|UserList)\.UserList"),
        (collections.OrderedDict(a=0), r"is refused: it asks for collections\.OrderedDict"),
        ([Word("a")], r"is refused: it asks for .*\.Word"),
        ({"a"}, r"is refused: it (holds a set|asks for (__builtin__|builtins)\.set)"),
        (print, r"is refused: it asks for (__builtin__|builtins)\.print"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_vocabulary_is_a_list_of_strings(
    tmp_path: Path, content, message: str, protocol: int
) -> None:
    path = tmp_path / "itos.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=message) as caught:
        read_words(path)
    assert str(path) in str(caught.value)


def test_a_stored_object_is_refused(tmp_path: Path) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return "elsewhere" if obj == "b" else None

    path = tmp_path / "itos.pkl"
    with path.open("wb") as file:
        Pickler(file).dump(["a", "b"])
    with pytest.raises(ValueError, match="is refused: it asks for a stored object 'elsewhere'"):
        read_words(path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_vocabularies_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    for name in ("itos.pkl", "itos", "itos.pickle"):
        (tmp_path / name).write_bytes(pickle.dumps(WORDS, protocol=protocol))
        assert read_words(tmp_path / name) == WORDS


def test_vocabularies_as_text(tmp_path: Path) -> None:
    path = tmp_path / "itos.json"
    path.write_text(json.dumps(WORDS))
    assert read_words(path) == WORDS
    path.write_text(json.dumps({"the": 0}))
    with pytest.raises(
        ValueError, match=r"itos\.json is refused: it holds a dict, expected a list"
    ):
        read_words(path)
    path.write_text("[")
    with pytest.raises(ValueError, match=r"itos\.json is no vocabulary, or it is damaged"):
        read_words(path)
    path = tmp_path / "itos.txt"
    for end in ("", "\n", "\r\n"):
        path.write_bytes(f"the{end or chr(10)}café\n\na\u2028b{end}".encode())
        assert read_words(path) == ["the", "café", "", "a\u2028b"]
    path.write_bytes(b"\xef\xbb\xbfthe\ncat")
    assert read_words(path) == ["the", "cat"]
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"itos\.txt is no vocabulary, or it is damaged \('utf-8'"):
        read_words(path)


@pytest.mark.parametrize("read", [read_tensors, read_words])
def test_files_that_are_not_there(tmp_path: Path, read) -> None:
    for name in ("none.pth", "none.safetensors", "none.json", "none.txt"):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / name)
    with pytest.raises(IsADirectoryError, match=rf"{tmp_path} is a directory, expected a"):
        read(tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(1), 3], ids=["list", "tensor", ""])
def test_weights_are_tensors_by_name(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "lm.pth")
    with pytest.raises(ValueError, match=r"lm\.pth holds a \w+, expected tensors by name"):
        read_tensors(tmp_path / "lm.pth")


def damaged(content: bytes, count: int):
    """Yield cut and changed forms of a file."""
    chance = random.Random(0)
    for n in range(count):
        changed = bytearray(content)
        if n % 3 == 0:
            del changed[chance.randrange(len(changed)) :]
        else:
            for _ in range(chance.randint(1, 3)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
        yield bytes(changed)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older than 1.6"])
def test_damaged_weights_end_in_one_kind_of_error(tmp_path: Path, zipped: bool) -> None:
    buffer, path = io.BytesIO(), tmp_path / "lm.pth"
    saved = {"model": {"a": torch.ones(3, 2)}, "opt": [None, 1.0]}
    torch.save(saved, buffer, _use_new_zipfile_serialization=zipped)
    refused = 0
    for content in damaged(buffer.getvalue(), 200):
        path.write_bytes(content)
        try:
            read_tensors(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "weights_only" not in str(error)
            assert "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damaged_vocabularies_end_in_one_kind_of_error(tmp_path: Path, protocol: int) -> None:
    path, refused = tmp_path / "itos.pkl", 0
    for content in damaged(pickle.dumps([*SPECIALS, "café"], protocol=protocol), 200):
        path.write_bytes(content)
        try:
            words = read_words(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert type(words) is list and {type(word) for word in words} <= {str}
    assert refused > 66


def test_nothing_is_unpickled_but_by_torch_which_takes_weights_alone() -> None:
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(files))) if
             isinstance(node, ast.Call)]  # fmt: skip
    loads = [ast.unparse(c) for c in calls if ast.unparse(c.func).split(".")[-1] in
             ("load", "loads", "Unpickler")]  # fmt: skip
    assert sorted(loads) == [
        "json.loads(path.read_text(encoding='utf-8-sig'))",
        "torch.load(path, map_location='cpu', weights_only=True)",
    ]
