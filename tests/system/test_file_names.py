"""Files whose names hold bytes that are not UTF-8, as Linux allows; libraries in Rust do not."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ulmfit_fast as uf
from ulmfit_fast.compat.files import read_tensors
from ulmfit_fast.data import read_labelled, read_texts
from ulmfit_fast.runs import Run
from ulmfit_fast.system.files import name_in_utf8

TEXTS, LABELS = ["a fine film", "a dull film"] * 8, ["+", "-"] * 8
SMALL = {"emb_size": 6, "hidden_size": 8, "num_layers": 1, "min_freq": 1, "progress": False}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / os.fsdecode(b"d\xff d")
    try:
        path.mkdir()
    except OSError:
        pytest.skip("this file system knows names in UTF-8 alone")
    return path


def test_a_model_is_read_where_it_was_written(place: Path) -> None:
    model = uf.ULMFiT(**SMALL).fit_classifier(TEXTS, LABELS, epochs=1, batch_size=4)
    model.save(place / "m")
    model.save_pretrained(place / "p")
    wanted = model.predict_proba(TEXTS[:2])
    for found in (uf.ULMFiT.load(place / "m"), uf.ULMFiT.from_pretrained(place / "p")):
        assert (found.predict_proba(TEXTS[:2]) == wanted).all()


def test_a_run_goes_on(place: Path) -> None:
    def pretrained(**options):
        run = Run(place / "r", checkpoint_steps=1, **options)
        return uf.ULMFiT(**SMALL).pretrain(TEXTS, epochs=2, batch_size=2, run=run)

    whole = pretrained().histories["pretrain"].losses
    assert pretrained(resume=True).histories["pretrain"].losses == whole


def test_weights_are_read(place: Path) -> None:
    # What writes them here takes no such name either.
    save_file({"weight": torch.ones(2)}, place.parent / "w.safetensors")
    (place.parent / "w.safetensors").rename(place / "w.safetensors")
    assert torch.equal(read_tensors(place / "w.safetensors")["weight"], torch.ones(2))


def test_a_parquet_file(place: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": TEXTS, "label": LABELS}), place.parent / "a.parquet")
    (place.parent / "a.parquet").rename(place / "a.parquet")
    assert read_labelled(place / "a.parquet") == (TEXTS, LABELS)
    assert list(read_texts(place)) == TEXTS


def test_a_plain_name_stays_and_no_file_is_left_open(place: Path) -> None:
    (place / "a").write_text("content")
    with name_in_utf8(Path("größe \U0001f602")) as name:
        assert name == "größe \U0001f602"
    with name_in_utf8(place / "a") as name:
        assert Path(name).read_text() == "content" and name.isprintable()
    assert not Path(name).exists()
    with pytest.raises(FileNotFoundError), name_in_utf8(place / "none"):
        pass
