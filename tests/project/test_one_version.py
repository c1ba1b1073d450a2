"""A reader beside a writer: the old content whole or the new, by reading alone."""

import contextlib
import json
import multiprocessing
import os
import shutil
import stat
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

import ulmfit_fast as uf
from ulmfit_fast.data import Tokenizer, TokenStore, Vocab
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.system import directories
from ulmfit_fast.system.directories import read_version, recover
from ulmfit_fast.system.locks import directory_lock
from ulmfit_fast.ulmfit.ensemble import Ensemble
from ulmfit_fast.ulmfit.model_files import ModelParts, load_model, save_model

SIZES = {"emb_size": 4, "hidden_size": 6, "num_layers": 2}
SECONDS = 1.0


def parts(number: int, *, lm: bool = True) -> ModelParts:
    """Return a model all of whose parts tell its number."""
    words = Tokenizer.from_vocab(Vocab([f"word{number}", f"other{number}"]))
    config = AWDLSTMConfig.language_model(11, **SIZES)
    classifier = TextClassifier(AWDLSTM(AWDLSTMConfig.classifier(11, **SIZES)), 2, hidden=4)
    language_model = LanguageModel(config) if lm else None
    for model in (language_model, classifier):
        for parameter in () if model is None else model.parameters():
            torch.nn.init.constant_(parameter, float(number))
    settings = {"number": number}
    return ModelParts(words, language_model, classifier, [f"a{number}", f"b{number}"], settings)


def numbers_in(found: ModelParts) -> set[int]:
    numbers = {found.settings["number"], int(found.labels[0][1:])}
    numbers.add(int(found.tokenizer.vocab.words[9].removeprefix("word")))
    for model in (found.language_model, found.classifier):
        numbers |= set() if model is None else {int(p.mean()) for p in model.parameters()}
    return numbers


def models(number: int) -> Ensemble:
    members = []
    for _ in range(2):
        member = uf.ULMFiT(**SIZES, progress=False, device="cpu", seed=number)
        made = parts(number, lm=False)
        member.tokenizer, member.classifier = made.tokenizer, made.classifier
        member.labels = made.labels
        members.append(member)
    return Ensemble(members)


def save(kind: str, directory: Path, number: int) -> None:
    if kind == "ensemble":
        models(number).save(directory)
    elif kind == "token store":
        made = parts(number)
        texts = [f"word{number} other{number}"] * number
        TokenStore.build(directory, texts, made.tokenizer, workers=1, progress=False)
    else:
        save_model(directory, parts(number), single_file=kind == "single file")


def load(kind: str, directory: Path) -> set[int]:
    """Return the numbers of the versions that a reader was given parts of."""
    if kind == "ensemble":
        found = Ensemble.load(directory, progress=False)
        numbers = {int(found.labels[0][1:])} | {m.seed for m in found.models}
        for member in found.models:
            numbers |= {int(p.mean()) for p in member.classifier.parameters()}
        return numbers
    if kind == "token store":
        store = TokenStore(directory)
        return {len(store), len(store.ids) // 3}
    return numbers_in(load_model(directory))


KINDS = ["model", "single file", "run", "ensemble", "token store"]


def saving(kind: str, directory: Path, begun: Path, stop: Path) -> int:
    torch.set_num_threads(1)
    saves = 0
    while not stop.exists():
        saves += 1
        save(kind, directory, 1 + saves % 2)
        begun.touch()
    return saves


@pytest.fixture(scope="module")
def writer():
    """Another process, whose start takes longer than the tests that it is for."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        yield pool


@pytest.mark.parametrize("kind", KINDS)
def test_every_load_beside_a_loop_of_saves_is_of_one_version(
    tmp_path: Path, writer: ProcessPoolExecutor, kind: str
) -> None:
    directory, begun, stop = (tmp_path / name for name in ("out", "begun", "stop"))
    save(kind, directory, 1)
    if kind == "run":
        (directory / "metrics.jsonl").write_text("{}\n")
        (directory / "checkpoints").mkdir()
    saves = writer.submit(saving, kind, directory, begun, stop)
    seen, loads = set(), 0
    deadline = time.monotonic() + 60
    try:
        while not begun.exists() and not saves.done() and time.monotonic() < deadline:
            time.sleep(0.01)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or (len(seen) < 2 and time.monotonic() < deadline):
            found = load(kind, directory)
            assert len(found) == 1, f"load {loads} has parts of {found}"
            seen |= found
            loads += 1
    finally:
        stop.touch()
    assert saves.result(60) >= 2
    assert loads >= 2 and seen == {1, 2}
    assert not [path.name for path in tmp_path.rglob(".*")]
    if kind == "run":
        assert (directory / "metrics.jsonl").read_text() == "{}\n"
        assert (directory / "checkpoints").is_dir()


class Died(BaseException):
    """What stands for a process that is gone."""


def dying(at: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the process die at its step number `at` of those that change names on the disk."""
    steps: list[str] = []

    def counted(name: str, real):
        def step(*args, **options):
            if len(steps) == at:
                raise Died
            steps.append(name)
            return real(*args, **options)

        return step

    for name in ("replace", "rename", "link", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(directories.os, name, counted(name, getattr(os, name)))
    return steps


def tree(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(directory)): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
    }


@pytest.mark.parametrize("kind", ["model", "run", "ensemble"])
def test_a_writer_that_dies_at_any_step_leaves_the_old_version_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    at, seen = 0, []
    while True:
        directory = tmp_path / f"out{at}"
        save(kind, directory, 1)
        if kind == "run":
            (directory / "metrics.jsonl").write_text("{}\n")
        with monkeypatch.context() as patch:
            steps = dying(at, patch)
            # What undoes things in the process does not happen when it is killed.
            patch.setattr(shutil, "rmtree", lambda *args, **options: None)
            patch.setattr(os, "fsync", lambda descriptor: None)
            try:
                save(kind, directory, 2)
            except Died:
                pass
        before = tree(directory)
        found = load(kind, directory)
        assert len(found) == 1, (at, found)
        assert tree(directory) == before, "a reader has changed something"
        seen += found
        if len(steps) < at:
            break
        # The next writer finds its way, and leaves nothing of the one that died.
        save(kind, directory, 3)
        assert load(kind, directory) == {3}
        assert not [path.name for path in directory.rglob(".*")], at
        # Of a run more is there than of a model, and of an ensemble more is written.
        at += {"model": 1, "run": 3, "ensemble": 7}[kind]
    assert at > 10 and seen == sorted(seen) and set(seen) == {1, 2}


def test_a_first_save_that_dies_at_any_step_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, loaded = 0, 0
    while True:
        directory = tmp_path / f"out{at}"
        with monkeypatch.context() as patch:
            steps = dying(at, patch)
            patch.setattr(shutil, "rmtree", lambda *args, **options: None)
            patch.setattr(os, "fsync", lambda descriptor: None)
            with contextlib.suppress(Died):
                save("model", directory, 1)
        with contextlib.suppress(FileNotFoundError):
            loaded += load("model", directory) == {1}
        save("model", directory, 2)
        assert load("model", directory) == {2} and len(os.listdir(directory)) == 4, at
        if len(steps) < at:
            break
        at += 1
    assert 0 < loaded < at


@pytest.mark.parametrize("moved", range(4))
def test_what_an_earlier_version_had_begun_to_move_out_is_lost_to_nobody(
    tmp_path: Path, moved: int
) -> None:
    directory = tmp_path / "out"
    save("model", directory, 1)
    save("model", tmp_path / "new", 2)
    (tmp_path / "new").rename(directory / ".incoming")
    names = ["classifier.safetensors", "language_model.safetensors", "tokenizer.json"]
    for name in names[:moved]:
        (directory / ".incoming" / name).replace(directory / name)
    with directory_lock(directory):
        recover(directory)
    assert load("model", directory) == {2} and len(os.listdir(directory)) == 4


def test_an_error_of_the_new_version_is_told_as_it_is(tmp_path: Path) -> None:
    save("model", tmp_path / "out", 1)
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"out has no tokenizer\.json"):
        load_model(tmp_path / "out")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files have no names here")
def test_what_is_replaced_whenever_it_is_read_is_read_from_open_files(tmp_path: Path) -> None:
    directory, places = tmp_path / "out", []
    save("run", directory, 1)

    def read(path: Path) -> set[int]:
        places.append(path)
        save("run", directory, 1 + len(places) % 2)
        return numbers_in(load_model(path))

    assert read_version(directory, read) == {2}
    assert places[0] == directory and places[1] != directory and len(places) == 2
    assert not places[1].exists()


def test_what_is_replaced_over_and_over_is_told_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "_LONGEST_WAIT", 0.0)
    monkeypatch.setattr(directories, "DESCRIPTORS", str(tmp_path / "none"))
    save("model", tmp_path / "out", 1)
    with pytest.raises(OSError, match=r"out was replaced 20 times while it was read; read it"):
        read_version(tmp_path / "out", lambda path: save("model", tmp_path / "out", 2))


def test_what_is_replaced_over_and_over_and_wrong_is_told_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "_LONGEST_WAIT", 0.0)
    save("model", tmp_path / "out", 1)

    def read(path: Path) -> None:
        save("model", tmp_path / "out", 2)
        raise ValueError("no such word")

    with pytest.raises(OSError, match=r"out was replaced .* times") as told:
        read_version(tmp_path / "out", read)
    assert isinstance(told.value.__cause__, ValueError)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_directory_that_may_only_be_read_is_read(tmp_path: Path) -> None:
    save("run", tmp_path / "out", 1)
    (tmp_path / "out").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert load("run", tmp_path / "out") == {1}


def test_what_else_is_in_the_directory_stays(tmp_path: Path) -> None:
    directory = tmp_path / "out"
    save("model", directory, 1)
    (directory / "README.md").write_text("mine")
    (directory / ".git").mkdir()
    (directory / "model_0").mkdir()
    (directory / "model_0" / "notes.txt").write_text("mine")
    for number, single_file in ((2, False), (3, True)):
        save_model(directory, parts(number, lm=False), single_file=single_file)
        assert load("model", directory) == {number}
    assert sorted(os.listdir(directory)) == [
        ".git", "README.md", "config.json", "model.safetensors", "model_0", "tokenizer.json",
    ]  # fmt: skip
    # An ensemble would have to replace what is called model_0.
    with pytest.raises(FileExistsError, match="model_0 is of something else"):
        models(1).save(directory)
    assert load("model", directory) == {3}
    assert (directory / "model_0" / "notes.txt").read_text() == "mine"


def test_a_smaller_ensemble_and_a_model_leave_no_member_behind(tmp_path: Path) -> None:
    three = Ensemble([*models(1).models, models(1).models[0]])
    three.save(tmp_path / "out")
    (tmp_path / "out" / "model_2" / "notes.txt").write_text("mine")
    models(2).save(tmp_path / "out")
    assert load("ensemble", tmp_path / "out") == {2}
    assert os.listdir(tmp_path / "out" / "model_2") == ["notes.txt"]
    save("model", tmp_path / "out", 3)
    assert load("model", tmp_path / "out") == {3}
    assert not (tmp_path / "out" / "model_0").exists()


OTHERS = [
    {"config.json": '{"model_type": "bert"}', "pytorch_model.bin": "theirs"},
    {"config.json": "{}", "metrics.jsonl": "{}\n"},
    {"config.json": "no json", "notes.txt": "mine"},
    {"meta.json": '{"title": "mine"}', "ids.bin": "mine"},
]


@pytest.mark.parametrize("files", OTHERS, ids=lambda files: " ".join(files))
@pytest.mark.parametrize("kind", ["model", "ensemble", "token store"])
def test_a_directory_of_another_project_is_left_alone(
    tmp_path: Path, files: dict[str, str], kind: str
) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_text(content)
    with pytest.raises(FileExistsError, match=r"theirs exists and is no (model dir|token store)"):
        save(kind, directory, 1)
    assert {path.name: path.read_text() for path in directory.iterdir()} == files


def test_a_damaged_model_may_be_saved_again_as_its_error_says(tmp_path: Path) -> None:
    save("model", tmp_path / "out", 1)
    (tmp_path / "out" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged.*save it anew"):
        load_model(tmp_path / "out")
    save("model", tmp_path / "out", 2)
    assert load("model", tmp_path / "out") == {2}


def test_a_flat_directory_may_be_edited_in_place_after_any_number_of_saves(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save("run", tmp_path / "out", number)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["labels"] = ["other", "labels"]
    path.write_text(json.dumps(config))
    assert load_model(tmp_path / "out").labels == ["other", "labels"]


def test_where_files_have_one_name_only_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(directories.os, "link", unknown)
    for number in (1, 2):
        save("model", tmp_path / "out", number)
        assert load("model", tmp_path / "out") == {number}


def test_a_model_that_cannot_get_its_place_counts_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save("model", tmp_path / "out", 1)
    with monkeypatch.context() as patch:

        def full(*args: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(directories, "_link", full)
        save("model", tmp_path / "out", 2)
    assert "the next save moves them" in caplog.text
    assert load("model", tmp_path / "out") == {2}
    save("model", tmp_path / "out", 3)
    assert load("model", tmp_path / "out") == {3} and len(os.listdir(tmp_path / "out")) == 4
