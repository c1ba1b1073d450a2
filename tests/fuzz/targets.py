"""What is fuzzed: each target takes bytes and fails if anything but the documented errors comes.

Each has seeds, which are good inputs, and runs in a folder of its own.
"""

import gzip
import io
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from ulmfit_fast.compat.files import read_words
from ulmfit_fast.data import SPECIALS, Tokenizer, TokenStore, Vocab, read_labelled, read_texts
from ulmfit_fast.data.reading.published import read_class_csv, read_wikitext
from ulmfit_fast.data.tokens.rules import apply_rules, restore_text
from ulmfit_fast.data.tokens.vocab import BOS
from ulmfit_fast.ulmfit.model_files import load_model

TEXTS = [
    "The cat sat on the mat!!! It's 3.14, isn't it?",
    "The the the DOG-house &amp; co.",
    "né ß",
]


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def written(name: str, content: bytes) -> Path:
    path = folder() / name
    path.write_bytes(content)
    return path


def reads(name: str, content: bytes) -> None:
    """A file of texts is read, or its fault is told with its name; skipping leads on to the end."""
    path = written(name, content)
    try:
        texts = list(read_texts(path))
    except ValueError as error:
        assert str(path) in str(error), error
        texts = None
    for text in texts or ():
        text.encode("utf-8")
    try:
        kept = list(read_texts(path, on_error="skip"))
    except ValueError as error:
        assert texts is None
        assert "is empty" in str(error) or "its columns are" in str(error), error
    else:
        assert texts is None or kept == texts
    with suppress(ValueError):
        read_labelled(path, on_error="skip")


def txt(content: bytes) -> None:
    reads("a.txt", content)
    with suppress(ValueError):
        list(read_wikitext(folder() / "a.txt", on_error="skip"))


def csv(content: bytes) -> None:
    reads("a.csv", content)
    with suppress(ValueError):
        list(read_class_csv(folder() / "a.csv", on_error="skip"))


def jsonl(content: bytes) -> None:
    reads("a.jsonl", content)


def gz(content: bytes) -> None:
    reads("a.txt.gz", content)


def parquet(content: bytes) -> None:
    reads("a.parquet", content)


def rules(content: bytes) -> None:
    pieces = apply_rules(content.decode("utf-8", "surrogateescape"))
    for piece in pieces:
        assert piece in range(len(SPECIALS)) if isinstance(piece, int) else len(piece.split()) == 1
    restore_text(pieces).encode("utf-8")


@cache
def tokenizers() -> tuple[Tokenizer, ...]:
    texts = TEXTS * 4
    kinds = [Tokenizer.train(texts, kind, max_vocab=80, min_freq=1) for kind in ("word", "subword")]
    return (*kinds, Tokenizer.from_huggingface(kinds[0].to_huggingface()))


def tokenizer(content: bytes) -> None:
    """Ids are in range and those of the tokens, one text at a time or many, and can be decoded."""
    text = content.decode("utf-8", "replace")
    for found in tokenizers():
        both = found.encode_batch([text, "cat", text])
        ids = both[0].tolist()
        assert ids[0] == BOS and ids == both[2].tolist() == found.encode_batch([text])[0].tolist()
        assert min(ids) >= 0 and max(ids) < len(found.vocab)
        tokens = found.tokens(text)
        assert [found.vocab.index(token) for token in tokens] == ids
        found.decode(ids).encode("utf-8")


def tokenizer_json(content: bytes) -> None:
    """A tokenizer.json of ours is read, and then works, or refused."""
    try:
        found = Tokenizer.from_json(content.decode("utf-8", "replace"))
    except ValueError:
        return
    ids = found.encode_batch([TEXTS[0]])[0].tolist()
    assert max(ids) < len(found.vocab)
    found.decode(ids)
    Tokenizer.from_json(found.to_json())


def huggingface_json(content: bytes) -> None:
    """A tokenizer.json of Hugging Face is taken over, or refused; the file is named."""
    path = written("tokenizer.json", content)
    try:
        found = Tokenizer.from_huggingface(path)
    except ValueError as error:
        assert str(path) in str(error), error
        return
    with suppress(ValueError):
        ids = found.encode_batch([TEXTS[0]])[0].tolist()
        assert max(ids) < len(found.vocab)
        found.decode(ids)
    tokenizer_json(found.to_json().encode("utf-8"))


def vocabulary(content: bytes) -> None:
    try:
        words = Vocab.from_json(content.decode("utf-8", "replace"))
    except ValueError:
        return
    words.to_json().encode("utf-8")
    path = written("itos.json", content)
    with suppress(ValueError):
        assert all(type(word) is str for word in read_words(path))


def pickled(content: bytes) -> None:
    """A pickle gives a list of strings, the one that Python's unpickler makes, or is refused."""
    path = written("itos.pkl", content)
    try:
        words = read_words(path)
    except ValueError as error:
        assert str(path) in str(error), error
        return
    assert type(words) is list and all(type(word) is str for word in words)
    with suppress(Exception):
        assert _Nothing(io.BytesIO(content)).load() == words


class _Nothing(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> None:
        raise AssertionError(f"{module}.{name} was asked for, and not refused")


@cache
def store_files() -> dict[str, bytes]:
    store = TokenStore.build(folder() / "good store", TEXTS * 3, tokenizers()[0], progress=False)
    return {path.name: path.read_bytes() for path in store.directory.iterdir()}


def store(content: bytes) -> None:
    """A store with one file that is anything at all opens and is read, or is refused."""
    names = sorted(store_files())
    directory = folder() / "store"
    directory.mkdir(exist_ok=True)
    chosen = names[content[0] % len(names)] if content else names[0]
    for name, good in store_files().items():
        (directory / name).write_bytes(content[1:] if name == chosen else good)
    try:
        found = TokenStore(directory)
        found.tokenizer()
        stream = found.stream(seed=0)
        assert len(stream[:]) == len(stream) == sum(map(len, found))
    except ValueError as error:
        assert "damaged" in str(error) or "another tokenizer" in str(error) or "store" in str(error)


@cache
def model_files() -> dict[str, bytes]:
    from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
    from ulmfit_fast.ulmfit.model_files import ModelParts, save_model

    found = Tokenizer.from_vocab(Vocab(["cat"]))
    sizes = AWDLSTMConfig.language_model(10, emb_size=4, hidden_size=4, num_layers=1)
    save_model(folder() / "good model", ModelParts(found, LanguageModel(sizes), None, [], {}))
    return {path.name: path.read_bytes() for path in (folder() / "good model").iterdir()}


def model(content: bytes) -> None:
    """A model directory with one file that is anything at all is read or refused."""
    names = sorted(model_files())
    directory = folder() / "model"
    directory.mkdir(exist_ok=True)
    chosen = names[content[0] % len(names)] if content else names[0]
    for name, good in model_files().items():
        (directory / name).write_bytes(content[1:] if name == chosen else good)
    try:
        load_model(directory)
    except (ValueError, FileNotFoundError) as error:
        assert str(directory) in str(error), error


def _parquet_seed() -> list[bytes]:
    try:
        import pyarrow
        from pyarrow import parquet as writer
    except ImportError:
        return []
    file = io.BytesIO()
    writer.write_table(pyarrow.table({"text": TEXTS, "label": [0, 1, 0]}), file, row_group_size=2)
    return [file.getvalue()]


def _json_of(kind: int) -> bytes:
    return tokenizers()[kind].to_json().encode()


def seeds(name: str) -> list[bytes]:
    """Good inputs of a target."""
    texts = [text.encode() for text in TEXTS]
    rows = b"".join(b'{"text": %s, "label": 1}\n' % json.dumps(t).encode() for t in TEXTS)
    whole = {
        "txt": [b"\n".join(texts), b" \n = A = \n \n one @-@ two\n", "x".encode("utf-16")],
        "csv": [
            b'text,label\n"a ""b"", c",x\nd,y\n',
            b'"1","a","b"\n"2","c\nd","e"\n',
            b'text\n"a\n',
            b"sep=;\ntext;n\nn\xe3o, \xe9;1\n",
            "text\tn\né\t1\n".encode("utf-16"),
        ],
        "jsonl": [rows, b'{"text": "\\ud83d \\u0000"}\n', b'{"text": null}\n[1]\n'],
        "gz": [gzip.compress(b"\n".join(texts))],
        "rules": [*texts, b"xxbos <unk> a a a aaaa AAAA &lt;br /&gt; a @,@ b\\n"],
        "tokenizer": [*texts, b"xxbos <unk> a a a aaaa AAAA &lt;br /&gt; a @,@ b\\n"],
        "vocabulary": [Vocab(["cat", "dog"]).to_json().encode(), b'["a"]'],
        "pickled": [pickle.dumps(["a", "b", "a", "é"], protocol=p) for p in range(6)]
        + [pickle.dumps({"a": (1, 2.0, None, b"x")}, protocol=p) for p in (0, 4)]
        + [pickle.dumps(os.system, protocol=p) for p in (0, 4)],
    }
    if name in whole:
        return whole[name]
    if name == "parquet":
        return _parquet_seed()
    if name == "tokenizer_json":
        return [_json_of(kind) for kind in range(3)]
    if name == "huggingface_json":
        return [found.to_huggingface().to_str().encode() for found in tokenizers()]
    files = store_files() if name == "store" else model_files()
    return [bytes([n]) + files[key] for n, key in enumerate(sorted(files))]


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(txt, csv, jsonl, gz, parquet, rules, tokenizer, tokenizer_json, huggingface_json),
        *(vocabulary, pickled, store, model),
    )
}
