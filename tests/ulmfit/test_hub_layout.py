"""The layout of the Hugging Face Hub: three files, every tensor once, and nothing else fetched."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ulmfit_fast import ULMFiT

TEXTS = ["a fine film", "a dull film"] * 20
LABELS = ["good", "bad"] * 20
SIZES = {"emb_size": 8, "hidden_size": 10, "num_layers": 2, "min_freq": 1, "progress": False}


@pytest.fixture(scope="module")
def fitted() -> ULMFiT:
    model = ULMFiT(**SIZES, seed=2).pretrain(TEXTS, epochs=1, batch_size=8)
    return model.fit_classifier(TEXTS, LABELS, epochs=1)


@pytest.fixture
def directory(fitted: ULMFiT, tmp_path: Path) -> Path:
    fitted.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_three_files_with_every_tensor_once(fitted: ULMFiT, directory: Path) -> None:
    names = {"config.json", "tokenizer.json", "model.safetensors"}
    assert {path.name for path in directory.iterdir()} == names
    assert json.loads((directory / "config.json").read_text())["model_type"] == "ulmfit"
    tensors = load_file(directory / "model.safetensors")
    shape = fitted.language_model.encoder.encoder.weight.shape
    embeddings = [name for name, value in tensors.items() if value.shape == shape]
    assert len(embeddings) == 2, "one of each model; the decoder has none of its own"
    assert sorted(name.split(".")[0] for name in embeddings) == ["classifier", "language_model"]
    assert {name.split(".")[0] for name in tensors} == {"classifier", "language_model"}
    numbers = sum(value.numel() for value in tensors.values())
    models = (fitted.language_model, fitted.classifier)
    held = sum(p.numel() for m in models for p in (*m.parameters(), *m.buffers()))
    assert numbers == held
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("read", [ULMFiT.from_pretrained, ULMFiT.load], ids=["hub", "load"])
def test_round_trip_keeps_answers_settings_and_the_tie(
    fitted: ULMFiT, directory: Path, read
) -> None:
    loaded = read(directory, progress=False)
    assert np.array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert loaded.perplexity(TEXTS) == fitted.perplexity(TEXTS)
    assert loaded.settings == fitted.settings and loaded.seed == 2
    model = loaded.language_model
    assert model.decoder.weight is model.encoder.encoder.weight
    assert model.decoder.weight.data_ptr() == model.encoder.encoder.weight.data_ptr()


def test_either_layout_replaces_the_other(fitted: ULMFiT, directory: Path) -> None:
    fitted.save(directory)
    assert not (directory / "model.safetensors").exists()
    assert ULMFiT.from_pretrained(str(directory)).predict(TEXTS) == fitted.predict(TEXTS)
    fitted.save_pretrained(directory)
    assert not (directory / "classifier.safetensors").exists()
    assert ULMFiT.load(directory).predict(TEXTS) == fitted.predict(TEXTS)


def test_a_language_model_alone(tmp_path: Path) -> None:
    model = ULMFiT(**SIZES).pretrain(TEXTS, epochs=1, batch_size=8)
    model.save_pretrained(tmp_path)
    loaded = ULMFiT.from_pretrained(tmp_path)
    assert loaded.classifier is None and loaded.perplexity(TEXTS) == model.perplexity(TEXTS)
    assert len(load_file(tmp_path / "model.safetensors")) == len(
        list(model.language_model.parameters())
    )


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_weights(directory: Path, damage: str) -> None:
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises((FileNotFoundError, ValueError), match="save the model again"):
        ULMFiT.from_pretrained(directory)


def test_weights_of_another_size_are_refused(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["language_model"]["hidden_size"] = 11
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit its config\.json"):
        ULMFiT.from_pretrained(directory)


class Hub(ModuleType):
    """Stands in for huggingface_hub, without a network."""

    def __init__(self, directory: Path) -> None:
        super().__init__("huggingface_hub")
        self.directory, self.calls = directory, []

    def snapshot_download(self, repo_id: str, **options: object) -> str:
        self.calls.append((repo_id, options))
        return str(self.directory)


def test_a_name_is_fetched_from_the_hub(fitted, directory: Path, monkeypatch) -> None:
    hub = Hub(directory)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    loaded = ULMFiT.from_pretrained("user/film-reviews", revision="v1", progress=False)
    assert np.array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    ((name, options),) = hub.calls
    assert name == "user/film-reviews" and options["revision"] == "v1"
    assert options["allow_patterns"] == [
        *("config.json", "tokenizer.json", "validation.json", "*.safetensors")
    ]
    ULMFiT.from_pretrained(directory)
    assert len(hub.calls) == 1, "a directory that is there is read where it is"


@pytest.mark.parametrize(
    "name", ["nowhere", "./user/model", "/user/model", "a/b/c", "../x", "user/..", "a b/c"]
)
def test_a_path_is_not_asked_of_the_hub(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(FileNotFoundError, match="is no directory, nor a name such as user/model"):
        ULMFiT.from_pretrained(name)
    with pytest.raises(FileNotFoundError, match="is no directory, nor a name"):
        ULMFiT.from_pretrained(tmp_path / "user" / "model")
    assert hub.calls == []


def test_without_the_hub_library_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"user/model is no directory; .* pip install hugging"):
        ULMFiT.from_pretrained("user/model")


def test_dtype_is_kept(fitted: ULMFiT, tmp_path: Path) -> None:
    model = fitted.copy()
    model.classifier.bfloat16()
    model.save_pretrained(tmp_path)
    loaded = ULMFiT.from_pretrained(tmp_path)
    assert loaded.classifier.encoder.encoder.weight.dtype == torch.bfloat16
    assert loaded.language_model.encoder.encoder.weight.dtype == torch.float32
