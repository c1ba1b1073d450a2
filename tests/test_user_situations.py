"""Situations of users that once went wrong, each on another path than the tests beside it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import ulmfit_fast as uf
from ulmfit_fast.cli import app
from ulmfit_fast.data import read_labelled
from ulmfit_fast.optim import OneCycleLR
from ulmfit_fast.sklearn_classifier import ULMFiTClassifier

TEXTS = ["a fine film", "a dull film", "so so"] * 4
SIZES = {"emb_size": 6, "hidden_size": 8, "num_layers": 2, "min_freq": 1}


def fitted(y: object, **options: object) -> list:
    model = ULMFiTClassifier(
        epochs=1, fine_tune_lm=False, random_state=0, model_options=SIZES, **options
    )
    return model.fit(TEXTS, y).classes_.tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("situations")
    model = uf.ULMFiT(**SIZES, progress=False)
    model.pretrain(TEXTS, epochs=1, batch_size=2).save(path / "lm")
    model.fit_classifier(TEXTS, ["+", "-", "0"] * 4, epochs=1).save(path / "model")
    model.save(path / "other")
    (path / "new.csv").write_text("text\na fine film\n")
    return path


def run(folder: Path, command: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, command.replace("@", f"{folder}/").split())
    return result.exit_code, result.stderr


@pytest.mark.parametrize("dtype", ["Int64", "int64[pyarrow]", "int64"])
def test_large_integers_stay_apart(dtype: str) -> None:
    y = pd.Series([2**53, 2**53 + 1, 7] * 4, dtype=dtype)
    assert fitted(y) == [7, 2**53, 2**53 + 1]


def test_a_frame_of_one_column_of_booleans() -> None:
    y = pd.DataFrame({"y": pd.Series([True, False] * 6, dtype="boolean")})
    with pytest.warns(UserWarning, match="column-vector"):
        assert fitted(y, class_weight={"True": 2}) == [False, True]


def test_what_is_masked_is_missing() -> None:
    hidden = np.ma.array([0, 1] * 6, mask=[0] * 11 + [1])
    with pytest.raises(ValueError, match=r"y\[11\] is masked"):
        fitted(hidden)
    with pytest.raises((TypeError, ValueError), match=r"sample_weight\[11\]"):
        uf.ULMFiT(**SIZES, progress=False).fit_classifier(
            TEXTS, ["+", "-"] * 6, epochs=1, sample_weight=hidden
        )


def test_a_missing_integer_of_a_file_is_named_with_its_row(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS[:4], "label": [0, 1, None, 1]})
    frame.to_parquet(tmp_path / "f.parquet")
    with pytest.raises(ValueError, match=r"f.parquet, row 2: 'label' is .*, expected a label"):
        read_labelled(tmp_path / "f.parquet")


def test_the_learning_rate_finder_takes_the_labels_that_fitting_takes(folder: Path) -> None:
    for name, labels in (("one", ["x"] * 12), ("mixed", ["good", 1, "bad"] * 4)):
        rows = ({"text": t, "label": y} for t, y in zip(TEXTS, labels, strict=True))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = "find-lr --model @lm --label-column label --steps 10 --text "
    code, error = run(folder, command + "@one.jsonl --out @one.svg")
    assert code == 2 and "one class ['x'], expected at least two" in error
    assert run(folder, command + "@mixed.jsonl --out @mixed.svg")[0] == 0


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "classifier.safetensors"])
def test_answers_never_replace_a_file_of_a_model(folder: Path, name: str) -> None:
    before = (folder / "model" / name).read_bytes()
    for model in ("model", "other"):
        command = f"predict --model @{model} --text @new.csv --out @model/{name} --overwrite"
        assert run(folder, command)[0] == 2
    assert (folder / "model" / name).read_bytes() == before


def test_the_ending_of_the_answers_names_their_format(folder: Path) -> None:
    command = "predict --model @model --text @new.csv --out @"
    assert run(folder, command + "answers.jsonl")[0] == 0
    assert "label" in json.loads((folder / "answers.jsonl").read_text())
    for wrong in ("a.parquet", "a.csv.gz", "a.csv --format jsonl"):
        code, error = run(folder, command + wrong)
        assert code == 2 and "expected ." in error and not (folder / wrong.split()[0]).exists()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_stages_and_explanations_need_no_gradient_mode(folder: Path, mode: type) -> None:
    model = uf.ULMFiT.load(folder / "model", progress=False)
    expected = model.explain(TEXTS[:1])
    with mode():
        again = model.explain(TEXTS[:1])
        model.fine_tune_lm(TEXTS, epochs=1, batch_size=2)
        model.fit_classifier(TEXTS, ["+", "-", "0"] * 4, epochs=1)
    assert str(again) == str(expected)


def test_arguments_of_another_kind_are_named() -> None:
    with pytest.raises(TypeError, match="Linear is not an Optimizer"):
        OneCycleLR(nn.Linear(1, 1), 5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"moms is 0\.9, expected three numbers"):
        OneCycleLR(optimizer, 5, moms=0.9)
    with pytest.raises(TypeError, match=r"module is a list, expected a torch\.nn\.Module"):
        uf.convert_lstm([nn.LSTM(2, 3)])
