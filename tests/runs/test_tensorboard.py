"""Curves for TensorBoard, and one line where it is not installed."""

import pytest
from typer.testing import CliRunner

from ulmfit_fast.cli.program import app
from ulmfit_fast.runs import Run

TEXT = "\n".join(["a fine film", "a dull, long story"] * 20)
SIZES = "--emb-size 8 --hidden-size 10 --num-layers 2 --min-freq 1 --bptt 10 --batch-size 8"


def pretrain(folder, *more):
    (folder / "texts.txt").write_text(TEXT)
    files = ["--text", str(folder / "texts.txt"), "--out", str(folder / "lm"), "--epochs", "1"]
    return CliRunner().invoke(app, ["pretrain", *files, *SIZES.split(), "--tensorboard", *more])


def test_every_number_becomes_a_curve(tmp_path):
    pytest.importorskip("tensorboard", reason="in the extra [tensorboard]")
    result = pretrain(tmp_path)
    assert result.exit_code == 0, result.output
    (events,) = (tmp_path / "lm" / "tensorboard").iterdir()
    data = events.read_bytes()
    for name in (b"pretrain/loss", b"pretrain/perplexity", b"pretrain/lr", b"pretrain/epoch/loss"):
        assert name in data


def test_without_it_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ulmfit-fast\[tensorboard\]'"):
        Run(tmp_path, tensorboard=True)
    result = pretrain(tmp_path)
    assert result.exit_code == 2 and "tensorboard is not installed" in result.stderr
    assert not (tmp_path / "lm").exists()
