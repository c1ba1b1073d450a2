"""Situations of users that once went wrong, each on another path than the tests beside it."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import ulmfit_fast as uf
from ulmfit_fast.cli.program import app
from ulmfit_fast.data import TokenStore, read_labelled, read_texts
from ulmfit_fast.optim import OneCycleLR
from ulmfit_fast.ulmfit.sklearn_classifier import ULMFiTClassifier

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


@pytest.mark.parametrize("sign", [";", "\t", "|"])
@pytest.mark.parametrize("names", [["text", "label"], ["id", "text", "label"]])
def test_a_csv_of_another_delimiter_is_read(tmp_path: Path, sign: str, names: list) -> None:
    path = tmp_path / "a.csv"
    path.write_text("".join(sign.join(row) + "\n" for row in (names, ["a, b"] * len(names))))
    assert read_labelled(path) == (["a, b"], ["a, b"]) and list(read_texts(path)) == ["a, b"]
    path.write_text("a;b,c\n1,2\n")
    message = r"its columns are 'a;b', 'c'; pass the name of one as text_column=$"
    with pytest.raises(ValueError, match=message):
        read_labelled(path)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ({"y": ["+", "-"] * 6}, "(dict), expected (N,), a label for each text; pass a list, or"),
        ({"y": [], "z": []}, "y is {'y': [], 'z': []} (dict), expected (N,), a label for"),
        (pd.DataFrame({"a": [0, 1] * 6, "b": 0}), "y should be a 1d array, got an array of shape"),
        (np.array([("a",)] * 12, [("y", "U1")]), "(ndarray), expected (N,), a label for each text"),
        ("+-" * 6, "(str), expected (N,), a label for each text"),
        ({"+", "-"}, "(set), expected (N,), a label for each text"),
        (["+", 1] * 6, "y[1] is 1 (int) and y[0] is '+' (str), expected one kind; write each as a"),
        (np.array(["+", 1] * 6, object), "y[1] is 1 (int) and y[0] is '+' (str), expected one"),
        (pd.Series([1, "+"] * 6), "y[1] is '+' (str) and y[0] is 1 (int), expected one kind"),
        (["+", True] * 6, "y[1] is True (bool) and y[0] is '+' (str), expected one kind"),
        ([True, 1] * 6, "y[1] is 1 (int) and y[0] is True (bool), expected one kind"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_labels_that_are_no_column_of_one_kind(y: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        fitted(y)
    assert "\n" not in str(caught.value)


def test_labels_of_an_iterator() -> None:
    assert fitted(iter(["+", "-"] * 6)) == ["+", "-"]
    assert fitted([1, np.int32(2), np.int64(3)] * 4) == [1, 2, 3]


def test_a_store_or_a_model_is_no_text(folder: Path) -> None:
    model = uf.ULMFiT.load(folder / "lm", progress=False)
    store = TokenStore.build(folder / "store", TEXTS, model.tokenizer, workers=1)
    for command in (
        "find-lr --model @lm --out @a.svg",
        "fit-classifier --model @lm --out @new",
        "predict --model @model",
        "explain --model @model --out @a.html",
        "tokenize --model @lm --out @new",
    ):
        code, error = run(folder, f"{command} --text @store")
        assert (
            code == 2 and "store is a token store, expected text: pretrain and fine-tune" in error
        )
        code, error = run(folder, f"{command} --text @lm")
        assert (
            code == 2 and "lm is the directory of a model, expected text; pass the files" in error
        )
    for take in (read_labelled, lambda source: list(read_texts(source)), model.fit_classifier):
        with pytest.raises(ValueError, match="store is a token store, expected text: pretrain"):
            take(folder / "store")
    fitted = uf.ULMFiT.load(folder / "model", progress=False)
    for take in (fitted.predict, lambda ids: model.fit_classifier(ids, ["+"] * 12)):
        with pytest.raises(TypeError, match="expected a str; pass the texts, not the ids"):
            take(store)


@pytest.mark.parametrize(
    ("labels", "given", "near"),
    [
        ([True, False], "true", "True"),
        ([True, False], "FALSE ", "False"),
        (["Good", "bad"], "good", "'Good'"),
        ([1, 2], "1.0", "1"),
    ],
)
def test_the_nearest_class_is_named(folder: Path, labels: list, given: str, near: str) -> None:
    rows = [{"text": text, "label": y} for text, y in zip(TEXTS, labels * 6, strict=True)]
    (folder / "near.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = f"--class-weight has {given!r}, which is no class of the texts; their classes are "
    for command in ("fit-classifier --out @no", "find-lr --label-column label --out @no.svg"):
        arguments = f"{command} --model @lm --text @near.jsonl".replace("@", f"{folder}/").split()
        done = CliRunner().invoke(app, [*arguments, "--class-weight", f"{given}=2"])
        assert done.exit_code == 2 and message in done.stderr
        assert done.stderr.endswith(f"; pass one of them, such as {near}\n")
    with pytest.raises(ValueError, match=f"pass one of them, such as {near}$"):
        fitted([labels[n % 2] for n in range(12)], class_weight={given: 2})


def test_the_nearest_class_to_explain_is_named(folder: Path) -> None:
    model = uf.ULMFiT(**SIZES, progress=False).fit_classifier(TEXTS, [True, False] * 6, epochs=1)
    with pytest.raises(ValueError, match=r"label is 'true', expected .*, such as True"):
        model.explain(TEXTS[:1], "true")
