"""What a model directory or an archive holds is data: nothing is run, nothing leads outside."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ulmfit_fast import ULMFiT
from ulmfit_fast.compat.files import read_words
from ulmfit_fast.data import Tokenizer, TokenStore, Vocab, read_labelled, read_texts
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.ulmfit.ensemble import Ensemble
from ulmfit_fast.ulmfit.model_files import ModelParts, load_model, save_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    words = Tokenizer.from_vocab(Vocab(["cat", "dog"]))
    sizes = {"emb_size": 4, "hidden_size": 4, "num_layers": 2}
    language_model = LanguageModel(AWDLSTMConfig.language_model(11, **sizes))
    classifier = TextClassifier(AWDLSTM(AWDLSTMConfig.classifier(11, **sizes)), 2, hidden=4)
    parts = ModelParts(words, language_model, classifier, ["no", "yes"], {})
    save_model(tmp_path / "model", parts)
    return tmp_path / "model"


def rewrite(directory: Path, change) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


ABSURD = {
    "emb": lambda c: c["language_model"].update(emb_size=10**6),
    "hidden": lambda c: c["language_model"].update(hidden_size=10**12),
    "layers": lambda c: c["language_model"].update(num_layers=10**9),
    "head": lambda c: c["classifier"].update(hidden=10**12),
    "encoder": lambda c: c["classifier"]["encoder"].update(emb_size=10**9),
    "negative": lambda c: c["classifier"].update(hidden=-5),
    "unknown": lambda c: c["language_model"].update(colour="red"),
    "lacking": lambda c: c["language_model"].pop("vocab_size"),
    "settings": lambda c: c.update(settings="abc"),
}
# Each file is read with a quarter of a gigabyte more than there is already, in 60 s for all.
LIMITED = """
import resource, sys
from ulmfit_fast.ulmfit.model_files import load_model
from ulmfit_fast.compat.files import read_words
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
read = {"load_model": load_model, "read_words": read_words}[sys.argv[1]]
for path in sys.argv[2:]:
    try:
        print("read", path, read(path))
    except ValueError as error:
        print(error)
    except BaseException as error:
        print("fault", path, repr(error))
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")


def read_within_limits(read: str, paths: list[Path]) -> list[str]:
    command = [sys.executable, "-c", LIMITED, read, *map(str, paths)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    lines = shown.stdout.splitlines()
    assert len(lines) == len(paths), (lines, shown.returncode, shown.stderr[-500:])
    return lines


@linux
def test_absurd_sizes_are_refused_before_memory_is_taken(
    tmp_path: Path, model_directory: Path
) -> None:
    paths = [shutil.copytree(model_directory, tmp_path / name) for name in ABSURD]
    for path, change in zip(paths, ABSURD.values(), strict=True):
        rewrite(path, change)
    for path, line in zip(paths, read_within_limits("load_model", paths), strict=True):
        assert line.startswith(str(path)) and line.endswith("; save the model again")


def test_a_vocabulary_of_absurd_size(model_directory: Path) -> None:
    rewrite(model_directory, lambda c: c["language_model"].update(vocab_size=10**12))
    rewrite(model_directory, lambda c: c["classifier"]["encoder"].update(vocab_size=10**12))
    with pytest.raises(ValueError, match=r"bytes, and at least 16,000,000,00\d,\d{3} are desc"):
        load_model(model_directory)


@pytest.mark.parametrize("length", [2**63, 2**40, 10**8, 9], ids=str)
def test_a_header_of_weights_of_absurd_size(model_directory: Path, length: int) -> None:
    path = model_directory / "language_model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ValueError, match=r"language_model\.safetensors does not fit"):
        load_model(model_directory)


@pytest.mark.parametrize(
    "header",
    [
        {"decoder.bias": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"decoder.bias": {"dtype": "F32", "shape": [11], "data_offsets": [2**40, 2**40 + 44]}},
        {"decoder.bias": {"dtype": "F32", "shape": [-11], "data_offsets": [0, 44]}},
        {"../../decoder.bias": {"dtype": "F32", "shape": [11], "data_offsets": [0, 44]}},
    ],
    ids=["size", "offset", "negative", "path"],
)
def test_weights_that_are_not_there(model_directory: Path, header: dict) -> None:
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(1_000)
    (model_directory / "language_model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"language_model\.safetensors does not fit"):
        load_model(model_directory)


DEEP = "[" * 100_000 + "]" * 100_000


def test_deep_nesting_in_a_tokenizer(tmp_path: Path, model_directory: Path) -> None:
    for read in (Tokenizer.from_json, Vocab.from_json):
        with pytest.raises(ValueError, match="is not valid JSON"):
            read(DEEP)
    (model_directory / "tokenizer.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"tokenizer\.json: .* is not valid JSON"):
        load_model(model_directory)
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json"):
        Tokenizer.from_huggingface(model_directory / "tokenizer.json")
    (tmp_path / "itos.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"itos\.json is no vocabulary"):
        read_words(tmp_path / "itos.json")


def test_deep_nesting_in_a_configuration(model_directory: Path) -> None:
    (model_directory / "config.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_model(model_directory)


CODE = [
    {"format": "ulmfit_fast tokenizer", "version": 1, "kind": "__import__('os').mkdir('made')"},
    {"format": "ulmfit_fast tokenizer", "version": 1, "kind": "custom", "module": "os"},
    {"auto_map": {"AutoTokenizer": ["evil.py--Evil", None]}, "tokenizer_class": "Evil"},
    {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Custom", "code": "os"}},
    {"version": "1.0", "added_tokens": [], "model": {"type": "builtins.eval", "vocab": {}}},
    {"__reduce__": ["os.system", "true"]},
]


@pytest.mark.parametrize("content", CODE, ids=range(len(CODE)))
def test_a_tokenizer_that_names_code(
    tmp_path: Path, model_directory: Path, content: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"words": Tokenizer.from_vocab(Vocab(["cat"])).vocab.words, **content}
    (model_directory / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_model(model_directory)
    with pytest.raises(ValueError, match=r"is no tokenizer\.json"):
        Tokenizer.from_huggingface(model_directory / "tokenizer.json")
    assert not (tmp_path / "made").exists()


def test_code_beside_a_model_is_not_run(
    tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    for name in (
        "__init__.py",
        "conftest.py",
        "modeling.py",
        "tokenization.py",
        "sitecustomize.py",
    ):
        (model_directory / name).write_text(f"import os\nos.mkdir({str(made)!r})\n")

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(made),)

    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "vocab.pkl"):
        (model_directory / name).write_bytes(pickle.dumps(Payload()))
    monkeypatch.chdir(model_directory)
    assert ULMFiT.load(model_directory, progress=False).predict(["a cat"])
    assert not made.exists()


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/../../outside", "..\\outside", 3, None])
def test_names_in_a_configuration_lead_nowhere(tmp_path: Path, model_directory: Path, name) -> None:
    outside = shutil.copytree(model_directory, tmp_path / "outside")
    ensemble = tmp_path / "ensemble"
    ensemble.mkdir()
    content = {"format": "ulmfit_fast ensemble", "format_version": 1, "models": [name]}
    (ensemble / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json is damaged: models is"):
        Ensemble.load(ensemble)
    # Names of files are the code's own: those in a model's description change nothing.
    rewrite(model_directory, lambda c: c.update(tokenizer=name, weights=name, single_file=False))
    load_model(model_directory)
    assert sorted(p.name for p in outside.iterdir()) == sorted(
        p.name for p in model_directory.iterdir()
    )


def test_a_link_among_a_models_files_moves_nothing_in(
    tmp_path: Path, model_directory: Path
) -> None:
    """`.incoming` is where a model waits that was complete when a crash came; a link is not."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_text("secret")
    (model_directory / ".incoming").symlink_to(private)
    load_model(model_directory)
    assert (private / "key").read_text() == "secret"
    assert not (model_directory / "key").exists()


def test_links_of_a_cache_are_read_and_never_written_through(
    tmp_path: Path, model_directory: Path
) -> None:
    """The Hub's cache is made of links; saving over them replaces them."""
    blobs = tmp_path / "blobs"
    shutil.copytree(model_directory, blobs)
    for path in model_directory.iterdir():
        path.unlink()
        path.symlink_to(blobs / path.name)
    before = {path.name: path.read_bytes() for path in blobs.iterdir()}
    parts = load_model(model_directory)
    parts.labels[:] = ["other", "labels"]
    save_model(model_directory, parts)
    assert not any(path.is_symlink() for path in model_directory.iterdir())
    assert before == {path.name: path.read_bytes() for path in blobs.iterdir()}
    secret = tmp_path / "secret.txt"
    secret.write_text("top " + "secret " * 50)
    (model_directory / "config.json").unlink()
    (model_directory / "config.json").symlink_to(secret)
    with pytest.raises(ValueError, match=r"config\.json is damaged") as caught:
        load_model(model_directory)
    assert "secret secret" not in str(caught.value)


def archives(tmp_path: Path) -> list[Path]:
    escaping = tmp_path / "text.txt"
    escaping.write_text("a text\n")
    made = []
    for name, mode in (
        ("a.tar", "w"),
        ("a.tar.gz", "w:gz"),
        ("a.tgz", "w:gz"),
        ("a.tar.xz", "w:xz"),
    ):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(escaping, arcname="../../escaped.txt")
        made.append(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../escaped.txt", "a text\n")
    shutil.copy(tmp_path / "a.zip", tmp_path / "A.TXT.ZIP")
    return [*made, tmp_path / "a.zip", tmp_path / "A.TXT.ZIP"]


def test_archives_are_refused_by_name(tmp_path: Path) -> None:
    for path in archives(tmp_path):
        for read in (read_texts, read_labelled):
            with pytest.raises(ValueError, match=r"is an archive, and none is unpacked here; unpa"):
                list(read(path))
            with pytest.raises(ValueError, match="is an archive"):
                list(read([path], on_error="skip"))
        for load in (load_model, TokenStore, Ensemble.load, ULMFiT.load):
            with pytest.raises((FileNotFoundError, NotADirectoryError)):
                load(path)
        assert not (tmp_path.parents[1] / "escaped.txt").exists()
    # Under another name it is no text.
    (tmp_path / "a.zip").rename(tmp_path / "b.txt")
    with pytest.raises(ValueError, match=r"b\.txt, line 1: "):
        list(read_texts(tmp_path / "b.txt"))


BOMBS = {
    # A memo of two thousand million entries.
    "memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    # A string that is said to be long.
    "string": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b".",
    "bytearray": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
    # Tuples of twice the one before, whose hash would take 2**60 steps.
    "tuples": b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"}(h\x00Nu.",
    "marks": b"(" * 300_000 + b"1" * 300_000 + b".",
    "nested": b"]" * 200_000 + b"a" * 199_999 + b".",
}


@linux
def test_pickles_that_take_all_memory_or_time(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.pkl" for name in BOMBS]
    for path, content in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(content)
    first, *others = read_within_limits("read_words", paths)
    assert first == f"read {paths[0]} []"
    for path, line in zip(paths[1:], others, strict=True):
        assert line.startswith(str(path)) and "MemoryError" not in line
