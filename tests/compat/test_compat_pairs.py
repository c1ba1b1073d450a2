"""Pairs of weights and vocabulary in files: every format is read, fastai's is written whole."""

import collections
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai_formats import FORMATS, V, assert_right, state_dict
from safetensors.torch import save_file

from ulmfit_fast.compat.fastai import read_fastai, write_fastai
from ulmfit_fast.compat.files import read_tensors, write_tensors_and_words
from ulmfit_fast.data import SPECIALS, Vocab
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older than 1.6"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_from_a_file(tmp_path: Path, kind: str, zipped: bool) -> None:
    tensors = state_dict(kind)
    path, itos = tmp_path / "fwd.h5", tmp_path / "itos.pkl"
    stored = collections.OrderedDict(tensors)
    stored._metadata = collections.OrderedDict(version=1)
    torch.save(stored, path, _use_new_zipfile_serialization=zipped)
    words = [*SPECIALS, *(f"w{n}" for n in range(V - 9))]
    itos.write_bytes(pickle.dumps(words))
    model, tokenizer = read_fastai(path, itos)
    assert_right(model, tensors)
    assert tokenizer.vocab.words == tuple(words) and tokenizer.kind == "word"


def test_tensors_as_pytorch_0_3_pickled_them(tmp_path: Path, monkeypatch) -> None:
    def reduce(tensor: torch.Tensor, protocol: int):
        storage = torch.storage.TypedStorage(
            wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
        )
        where = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        return torch._utils._rebuild_tensor, (storage, *where)

    tensors = state_dict("0.7")
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__reduce_ex__", reduce)
        torch.save(tensors, tmp_path / "fwd_wt103.h5", _use_new_zipfile_serialization=False)
    content = (tmp_path / "fwd_wt103.h5").read_bytes()
    assert b"_rebuild_tensor\n" in content and b"_rebuild_tensor_v2" not in content
    read = read_tensors(tmp_path / "fwd_wt103.h5")
    assert list(read) == list(tensors)
    assert all(read[name].equal(value) for name, value in tensors.items())


def list_of_fastcore(items: list[object]) -> object:
    """Return a list that says it is fastcore's, as fastai's optimizer keeps its values in it."""
    kind = type("L", (), {"__module__": "fastcore.foundation"})
    made = kind()
    made.items = items
    return made


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older than 1.6"])
def test_an_optimizer_of_fastai_beside_the_model_is_passed_over(
    tmp_path: Path, monkeypatch, zipped: bool
) -> None:
    module = type(os)("fastcore.foundation")
    hyper = list_of_fastcore([{"lr": np.float64(1e-3), "mom": 0.8}])
    module.L = type(hyper)
    tensors, path = state_dict(), tmp_path / "learner.pth"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fastcore", type(os)("fastcore"))
        patch.setitem(sys.modules, "fastcore.foundation", module)
        saved = {"model": tensors, "opt": {"state": [{"step": 3}], "hypers": hyper}}
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    read = read_tensors(path)
    assert all(read["model"][name].equal(value) for name, value in tensors.items())
    # Nothing of it is left in what PyTorch takes for safe.
    with pytest.raises(pickle.UnpicklingError, match=r"fastcore\.foundation\.L|numpy"):
        torch.load(path, weights_only=True)


def test_what_is_passed_over_is_no_weight(tmp_path: Path, monkeypatch) -> None:
    module = type(os)("fastcore.foundation")
    weight = list_of_fastcore([1.0])
    module.L = type(weight)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fastcore", type(os)("fastcore"))
        patch.setitem(sys.modules, "fastcore.foundation", module)
        torch.save({"0.encoder.weight": weight}, tmp_path / "lm.pth")
    (tmp_path / "itos.json").write_text("[]")
    with pytest.raises(ValueError, match=r"lm\.pth: the state_dict holds a L under '0\.encoder"):
        read_fastai(tmp_path / "lm.pth", tmp_path / "itos.json")


def test_safetensors(tmp_path: Path) -> None:
    tensors = state_dict()
    path = tmp_path / "lm.safetensors"
    save_file({name: value.clone() for name, value in tensors.items()}, path)
    read = read_tensors(path)
    assert all(read[name].equal(value) for name, value in tensors.items())
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"lm\.safetensors is no safetensors file, or it is dam"):
        read_tensors(path)


def model(words: int = 11) -> LanguageModel:
    return LanguageModel(AWDLSTMConfig(words, emb_size=4, hidden_size=6)).eval()


def test_the_pair_of_files_is_plain(tmp_path: Path) -> None:
    lm, vocab = model(), Vocab(["the", "cat"])
    paths = write_fastai(lm, vocab, tmp_path / "new" / "lm.pth")
    assert paths == (tmp_path / "new" / "lm.pth", tmp_path / "new" / "lm.pkl")
    words = pickle.loads(paths[1].read_bytes())
    assert type(words) is list and words == [*SPECIALS, "the", "cat"]
    tensors = torch.load(paths[0], weights_only=True)
    shared = ("0.encoder.weight", "0.encoder_dp.emb.weight", "1.decoder.weight")
    assert len({tensors[name].data_ptr() for name in shared}) == 1
    again, tokenizer = read_fastai(*paths)
    tokens = torch.randint(11, (5, 2))
    with torch.no_grad():
        assert again(tokens).logits.equal(lm(tokens).logits)
    assert tokenizer.vocab == vocab
    write_fastai(lm, vocab, paths[0], encoder_only=True)
    assert "encoder.weight" in torch.load(paths[0], weights_only=True)
    assert sorted(os.listdir(tmp_path / "new")) == ["lm.pkl", "lm.pth"]


def test_files_are_for_all_that_the_umask_lets_in(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        paths = write_tensors_and_words(tmp_path / "lm.pth", {}, [])
    finally:
        os.umask(mask)
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o640, 0o640]


def test_places_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lm\.h5 does not end in \.pth, where fastai looks"):
        write_fastai(model(), Vocab(["the", "cat"]), tmp_path / "lm.h5")
    with pytest.raises(ValueError, match="the vocabulary has 10 words and the model 11, expected"):
        write_fastai(model(), Vocab(["the"]), tmp_path / "lm.pth")
    (tmp_path / "lm.pkl").mkdir()
    with pytest.raises(IsADirectoryError, match=r"lm\.pkl is a directory, expected a file"):
        write_fastai(model(), Vocab(["the", "cat"]), tmp_path / "lm.pth")
    assert os.listdir(tmp_path) == ["lm.pkl"]


@pytest.mark.parametrize("name", ["torch.save", "pickle.dump", "os.fsync"])
def test_a_full_disk_leaves_the_older_files(tmp_path: Path, monkeypatch, name: str) -> None:
    paths = write_fastai(model(), Vocab(["the", "cat"]), tmp_path / "lm.pth")
    before = [path.read_bytes() for path in paths]

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(name, fail)
    with pytest.raises(OSError, match="No space left on device"):
        write_fastai(model(), Vocab(["a", "b"]), tmp_path / "lm.pth")
    assert [path.read_bytes() for path in paths] == before
    assert sorted(os.listdir(tmp_path)) == ["lm.pkl", "lm.pth"]


def test_words_and_rows_must_be_as_many(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "lm.pth")
    (tmp_path / "itos.json").write_text(json.dumps(["the", "cat"]))
    with pytest.raises(ValueError, match=r"itos\.json has 2 words and .*lm\.pth 56 rows, expected"):
        read_fastai(tmp_path / "lm.pth", tmp_path / "itos.json")
