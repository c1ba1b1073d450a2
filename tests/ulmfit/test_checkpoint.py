"""Model directories: whole or not there, readable by anybody, and never unpickled."""

import ast
import inspect
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ulmfit_fast.data import Tokenizer, Vocab
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.system import files
from ulmfit_fast.ulmfit import model_files, model_schema, model_weights
from ulmfit_fast.ulmfit.model_files import FORMAT_VERSION, ModelParts, load_model, save_model

WORDS = [f"word{n}" for n in range(491)]
FILES = {
    "config.json", "tokenizer.json", "language_model.safetensors", "classifier.safetensors"
}  # fmt: skip
TOKENS = torch.arange(2, 42).view(10, 4)
LENGTHS = torch.tensor([10, 3, 0, 7])


def parts(seed: int = 0, *, lm: bool = True, classifier: bool = True, **config) -> ModelParts:
    torch.manual_seed(seed)
    sizes = AWDLSTMConfig(500, **{"emb_size": 8, "hidden_size": 10, "num_layers": 2, **config})
    kwargs = {"hidden": 7, "output_p": 0.7, "head_p": 0.6, "bptt": 4, "max_len": 6}
    head = TextClassifier(AWDLSTM(sizes), 2, **kwargs).eval()
    head.head[0].running_mean.normal_()
    return ModelParts(
        Tokenizer.from_vocab(Vocab(WORDS)),
        LanguageModel(sizes).eval() if lm else None,
        head if classifier else None,
        ["good", "bad"] if classifier else [],
        {"tokenizer": "word", "seed": seed},
    )


def predictions(model: ModelParts) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model.language_model(TOKENS).logits, model.classifier(TOKENS, LENGTHS)


def alike(a: ModelParts, b: ModelParts) -> bool:
    return all(torch.equal(x, y) for x, y in zip(predictions(a), predictions(b), strict=True))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", parts())
    return tmp_path / "model"


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize(("emb_size", "hidden_size"), [(2, 90), (90, 2)])
def test_lopsided_sizes_come_back(
    tmp_path: Path, layers: int, emb_size: int, hidden_size: int
) -> None:
    """A model is not taken for one that its file has no room for."""
    sizes = {"emb_size": emb_size, "hidden_size": hidden_size, "num_layers": layers}
    model = parts(**sizes)
    save_model(tmp_path / "model", model)
    assert alike(load_model(tmp_path / "model"), model)


@pytest.mark.parametrize(
    "config", [{}, {"tie_weights": False}, {"gate_p": (0, 0, 0.1, 0)}], ids=str
)
def test_round_trip_bit_for_bit(tmp_path: Path, config: dict[str, object]) -> None:
    model = parts(**config)
    save_model(tmp_path / "deep" / "model", model)
    loaded = load_model(str(tmp_path / "deep" / "model"))
    assert alike(model, loaded)
    assert loaded.labels == ["good", "bad"] and loaded.settings == model.settings
    assert loaded.tokenizer.vocab == model.tokenizer.vocab
    assert loaded.language_model.config == model.language_model.config
    head = loaded.classifier
    assert (head.bptt, head.max_len, head.hidden, head.output_p, head.head_p) == (4, 6, 7, 0.7, 0.6)
    assert not any(m.training for m in (loaded.language_model, loaded.classifier))
    decoder = loaded.language_model.decoder.weight
    tied = decoder.data_ptr() == loaded.language_model.encoder.encoder.weight.data_ptr()
    assert tied == model.language_model.config.tie_weights


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_round_trip_keeps_the_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model = parts()
    model.language_model.to(dtype)
    model.classifier.to(dtype)
    save_model(tmp_path / "model", model)
    loaded = load_model(tmp_path / "model")
    assert loaded.language_model.decoder.weight.dtype == dtype
    assert alike(model, loaded)


def test_a_tokenizer_of_another_model_is_refused(directory: Path) -> None:
    other = Tokenizer.from_vocab(Vocab(["one", "two"]))
    (directory / "tokenizer.json").write_text(other.to_json())
    with pytest.raises(ValueError, match=r"json: the tokenizer has 11 words and its model 500"):
        load_model(directory)


@pytest.mark.parametrize("labels", [[3, 5], [False, True], ["1", 2], ["ä", ""]], ids=str)
def test_labels_keep_their_types(tmp_path: Path, labels: list[str | int]) -> None:
    model = parts(lm=False)
    model.labels = labels
    save_model(tmp_path / "model", model)
    loaded = load_model(tmp_path / "model")
    assert [(type(label), label) for label in loaded.labels] == [(type(x), x) for x in labels]
    assert loaded.language_model is None


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    for single_file in (False, True):
        for n in range(4):
            save_model(tmp_path / f"{single_file} {n}", parts(), single_file=single_file)
        files = [
            {path.name: path.read_bytes() for path in (tmp_path / f"{single_file} {n}").iterdir()}
            for n in range(4)
        ]
        assert files[0] == files[1] == files[2] == files[3]


def test_embedding_is_stored_once(directory: Path) -> None:
    weights = sum(4 * p.numel() for p in parts().language_model.parameters())
    size = (directory / "language_model.safetensors").stat().st_size
    assert weights < size < weights + 500 * 8 * 4 / 2


def test_files_are_for_all_that_the_umask_lets_in(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        save_model(tmp_path / "model", parts())
    finally:
        os.umask(mask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(FILES, 0o640)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("name", sorted(FILES))
def test_missing_file(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}, so it is no complete model"):
        load_model(directory)


@pytest.mark.parametrize("name", ["", "missing", "file"])
def test_no_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / name if name else tmp_path
    with pytest.raises(FileNotFoundError, match=r"is no directory|has no config\.json"):
        load_model(path)


def edit(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    config |= changes
    (directory / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value != "gone"})
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "another"}, "does not describe an ulmfit_fast model"),
        ({"format_version": FORMAT_VERSION + 1}, f"format version {FORMAT_VERSION + 1}, .* newer"),
        ({"format_version": "1"}, "is damaged: format_version is '1', expected a whole number"),
        ({"format_version": 0}, "is damaged: format_version is 0, expected a whole number"),
        ({"language_model_dtype": "float33"}, "language_model_dtype is 'float33', expected one of"),
        ({"labels": "gone"}, "config.json: labels is missing, expected a list .*; save the model"),
        ({"settings": "gone"}, "config.json: settings is missing, expected an object"),
        ({"labels": None}, "config.json: labels is None, expected a list of labels"),
        ({"classifier": {"bptt": 4, "max_len": 6}}, "config.json: classifier.encoder is missing"),
        ({"language_model": {"vocab_size": 500, "width": 3}}, "has the unknown field 'width'"),
        (
            {"labels": ["a", "b", "c"]},
            r"shape \(2, 7\), expected \(3, 7\), one row for each of the l",
        ),
        ({"language_model": {"vocab_size": 499}}, "encoder.vocab_size is 500, expected 499"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_config_that_does_not_fit(directory: Path, changes, message: str) -> None:
    edit(directory, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("damage", ["cut", "empty", "bytes"])
def test_damaged_file(directory: Path, name: str, damage: str) -> None:
    content = (directory / name).read_bytes()
    broken = {"cut": content[: len(content) // 2], "empty": b"", "bytes": b"\xff\xfe" + content}
    (directory / name).write_bytes(broken[damage])
    with pytest.raises(ValueError, match=r"save the model again|save it anew") as caught:
        load_model(directory)
    assert "\n" not in str(caught.value) and str(directory / name) in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_anything_but_a_model_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is no model directory .* choose another"):
        save_model(target, parts())
    assert os.listdir(tmp_path) == ["target"]
    assert (target if kind == "file" else target / "notes.txt").read_text() == "mine"


def test_the_working_directory_stays_the_working_directory(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for seed in range(2):
        save_model(".", parts(seed))
        assert load_model(".").settings["seed"] == seed
    assert os.listdir(tmp_path) == ["here"] and set(os.listdir(".")) == FILES


def test_replacing_leaves_no_stale_files(directory: Path) -> None:
    save_model(directory, parts(1, classifier=False))
    assert set(os.listdir(directory)) == FILES - {"classifier.safetensors"}
    assert os.listdir(directory.parent) == ["model"]
    assert load_model(directory).settings["seed"] == 1


def test_an_empty_directory_and_a_link_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for seed in range(2):
        save_model(tmp_path / "link", parts(seed))
        assert load_model(tmp_path / "empty").settings["seed"] == seed
    assert sorted(os.listdir(tmp_path)) == ["empty", "link"] and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("exists", [True, False], ids=["older model", "nothing there"])
@pytest.mark.parametrize("call", [0, 1], ids=["first tensors", "second tensors"])
def test_failing_writer_leaves_what_was_there(
    tmp_path: Path, monkeypatch, exists: bool, call: int
) -> None:
    if exists:
        save_model(tmp_path / "model", parts())
    calls = []

    def write(model: object, path: str, **options: object) -> None:
        Path(path).write_bytes(b"half of it")
        calls.append(path)
        if len(calls) > call:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", write)
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path / "model", parts(1))
    monkeypatch.undo()
    assert len(calls) == call + 1
    assert os.listdir(tmp_path) == (["model"] if exists else [])
    assert not exists or alike(load_model(tmp_path / "model"), parts())


def test_a_full_disk_is_an_os_error(tmp_path: Path, monkeypatch) -> None:
    def write(model: object, path: str, **options: object) -> None:
        raise SafetensorError("File too large (os error 27)")

    monkeypatch.setattr("safetensors.torch.save_file", write)
    with pytest.raises(OSError, match="safetensors cannot be written: File too large"):
        save_model(tmp_path / "model", parts())


@pytest.mark.parametrize("error", [OSError("renaming failed"), KeyboardInterrupt()], ids=repr)
def test_failing_rename_brings_the_older_model_back(
    directory: Path, monkeypatch, error: BaseException
) -> None:
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target) == directory / ".incoming":
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        save_model(directory, parts(1))
    monkeypatch.undo()
    assert os.listdir(directory.parent) == ["model"] and set(os.listdir(directory)) == FILES
    assert alike(load_model(directory), parts())


def test_every_file_is_on_the_disk_before_it_is_in_place(tmp_path: Path, monkeypatch) -> None:
    synced, fsync, kept = [], os.fsync, {".incoming-written", "model"}

    def note(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        # Of a temporary name, such as .config.json-x1y2z3.json, what it becomes.
        synced.append(name.removeprefix(".").rpartition("-")[0] if name not in kept else name)
        assert synced[-1] == "model" or not FILES & set(os.listdir(tmp_path / "model"))
        fsync(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("the names of open files are not known here")
    monkeypatch.setattr(os, "fsync", note)
    save_model(tmp_path / "model", parts())
    assert set(synced) == FILES | kept


def test_nothing_is_unpickled() -> None:
    sources = map(inspect.getsource, (model_files, model_schema, model_weights, files))
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    modules = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    modules |= {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}
    calls = {ast.unparse(n.func) for n in nodes if isinstance(n, ast.Call)}
    assert {"json", "safetensors.torch"} <= modules and "json.loads" in calls
    assert not {module.split(".")[0] for module in modules} & {"pickle", "joblib", "marshal"}
    assert not calls & {"torch.load", "np.load", "numpy.load", "load", "eval", "exec"}
