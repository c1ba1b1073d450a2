"""What comes from elsewhere is data: nothing of it is run, none of it leads out of its place."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ulmfit_fast import ULMFiT
from ulmfit_fast.checkpoint import ModelParts, load_model, save_model
from ulmfit_fast.compat.files import read_words
from ulmfit_fast.data import Tokenizer, TokenStore, Vocab, read_labelled, read_texts
from ulmfit_fast.ensemble import Ensemble
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "ulmfit_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])

# By the last two names of what is called; modules that do nothing else are refused whole.
FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("torch.jit.load", "jit.load", "export.load", "package.PackageImporter", "hub.load"),
    *("yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "pandas.read_pickle"),
    *("shutil.unpack_archive", "importlib.import_module", "runpy.run_path", "code.interact"),
}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {"extractall", "extract", "read_pickle", "unpack_archive"}
FORBIDDEN_MODULES = {"joblib", "dill", "cloudpickle", "shelve", "marshal", "yaml", "runpy"}


def faults_of(source: str) -> list[str]:
    """Return what a source may not do, by line."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [module or "", *(alias.name for alias in node.names)]
            full = [f"{module}.{alias.name}" for alias in node.names]
            wrong = FORBIDDEN_MODULES & {name.split(".")[0] for name in names}
            faults += [f"{node.lineno}: import {name}" for name in wrong | (FORBIDDEN & {*full})]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last_two = ".".join(called.split(".")[-2:])
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        wrong = (
            last_two in FORBIDDEN
            or called in FORBIDDEN_NAMES
            or called.split(".")[-1] in FORBIDDEN_METHODS
            or (last_two == "torch.load" and options.get("weights_only") != "True")
            or (last_two == "np.load" and options.get("allow_pickle", "False") != "False")
            or options.get("shell", "False") != "False"
            or options.get("trust_remote_code", "False") != "False"
        )
        if wrong:
            faults.append(f"{node.lineno}: {called}")
    return faults


# The public names that are imported when they are asked for stand in a table in the code.
AUDITED = {"ulmfit_fast/__init__.py": {"importlib.import_module"}}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_runs_what_it_reads(path: Path) -> None:
    allowed = AUDITED.get(str(path.relative_to(ROOT)), set())
    faults = faults_of(path.read_text(encoding="utf-8"))
    assert [fault for fault in faults if fault.split(": ")[1] not in allowed] == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('a')",
        "torch.load('a', weights_only=False)",
        "from pickle import loads",
        "pickle.Unpickler(file).load()",
        "import joblib",
        "from joblib import load",
        "eval('1')",
        "exec(text)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "tarfile.open(path).extractall()",
        "yaml.load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "os.system(text)",
    ],
)
def test_the_scan_finds(source: str) -> None:
    assert faults_of(source)


def test_the_scan_lets_pass() -> None:
    fine = (
        "model.eval()\nnp.load(p, mmap_mode='r')\ntorch.load(p, weights_only=True)\nre.compile(x)"
    )
    assert faults_of(fine) == []


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
from ulmfit_fast.checkpoint import load_model
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
    with pytest.raises(ValueError, match=r"tokenizer\.json has 11 words and config\.json 10000000"):
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
        {"texts": []},
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


def tampered(kind: str, change) -> str:
    texts = ["the cat sat", "on a mat"]
    own = Tokenizer.train(texts, "word" if kind == "huggingface" else kind, 60, 1)
    if kind == "huggingface":
        own = Tokenizer.from_huggingface(own.to_huggingface())
    content = json.loads(own.to_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("word", lambda c: c.update(words=[*c["words"], 3])),
        ("word", lambda c: c.update(words=[*c["words"], "cat"])),
        ("word", lambda c: c.update(words=c["words"][1:])),
        ("word", lambda c: c.update(words=[*c["words"], "\ud800"])),
        ("word", lambda c: c.update(kind=["word"])),
        ("subword", lambda c: c["scores"].__setitem__(-1, float("nan"))),
        ("subword", lambda c: c["scores"].__setitem__(-1, "1")),
        ("subword", lambda c: c["scores"].__setitem__(-1, True)),
        ("subword", lambda c: c["scores"].__setitem__(-1, 10**400)),
        ("huggingface", lambda c: c.update(huggingface=None)),
        ("huggingface", lambda c: c["huggingface"]["model"].update(unk_token="gone")),
        ("huggingface", lambda c: c["huggingface"]["model"]["vocab"].update(cat=10**6)),
        ("huggingface", lambda c: c["huggingface"]["model"]["vocab"].pop("xxpad")),
    ],
    ids=[
        *("number", "twice", "specials", "surrogate", "kind", "nan", "string", "bool", "huge"),
        *("none", "unknown", "gap", "lacks"),
    ],
)
def test_tampered_tokenizers_are_refused(kind: str, change) -> None:
    with pytest.raises(ValueError):
        Tokenizer.from_json(tampered(kind, change))


def test_a_piece_that_stands_twice_in_a_tokenizer(tmp_path: Path) -> None:
    """The library gives ids past the last word of such a tokenizer."""
    own = Tokenizer.train(["the cat sat", "on a mat"], "subword", 60)
    content = json.loads(own.to_huggingface().to_str())
    content["model"]["vocab"] += content["model"]["vocab"][-3:]
    content["added_tokens"], content["post_processor"] = [], None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{path} is damaged: .*; save it anew"):
        Tokenizer.from_huggingface(path)


def test_lengths_in_a_tokenizer_are_not_obeyed() -> None:
    padding = {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "xxpad",
    }
    text = tampered("huggingface", lambda c: c["huggingface"].update(padding=padding))
    assert len(Tokenizer.from_json(text).encode_batch(["the cat"])[0]) == 3


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
