"""What a saved model may be: tensors of their dtype and finite, labels that can be told apart."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_hostile_models import linux, read_within_limits, rewrite
from typer.testing import CliRunner

from ulmfit_fast import ULMFiT
from ulmfit_fast.cli.program import app
from ulmfit_fast.compat.fastai import read_fastai, to_fastai
from ulmfit_fast.data import Tokenizer, TokenStore, Vocab
from ulmfit_fast.data.tokens import tokenizer as tokenizer_module
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.presets import Preset
from ulmfit_fast.ulmfit.ensemble import Ensemble
from ulmfit_fast.ulmfit.model_files import ModelParts, load_model, save_model
from ulmfit_fast.ulmfit.sklearn_classifier import ULMFiTClassifier

TEXTS, LABELS = ["a fine film", "a dull film"] * 4, ["good", "bad"] * 4
SIZES = {"emb_size": 4, "hidden_size": 5, "num_layers": 2, "min_freq": 1, "progress": False}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = pytest.mark.parametrize("single_file", [False, True], ids=["two files", "single file"])


def parts(labels=("no", "yes"), **config) -> ModelParts:
    torch.manual_seed(0)
    sizes = {"emb_size": 4, "hidden_size": 4, "num_layers": 2, **config}
    classifier = TextClassifier(AWDLSTM(AWDLSTMConfig.classifier(11, **sizes)), 2, hidden=4)
    classifier.head[0].running_mean.normal_()
    return ModelParts(
        Tokenizer.from_vocab(Vocab(["cat", "dog"])),
        LanguageModel(AWDLSTMConfig.language_model(11, **sizes)),
        classifier,
        list(labels),
        {},
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", parts())
    return tmp_path / "model"


def refused(directory: Path, *words: str, read=load_model) -> None:
    """One line that names the directory, what is said in words, and the mend."""
    with pytest.raises(ValueError) as caught:
        read(directory)
    message = str(caught.value)
    assert message.startswith(str(directory)) and message.isprintable() and len(message) < 900
    assert message.endswith(("; save the model again", "; save it anew", "; save it again"))
    for word in words:
        assert word in message, message


def states(found: ModelParts) -> dict[str, torch.Tensor]:
    models = {"language_model": found.language_model, "classifier": found.classifier}
    return {f"{n}.{k}": v for n, m in models.items() for k, v in m.state_dict().items()}


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", [{}, {"tie_weights": False, "out_bias": False}], ids=str)
def test_every_dtype_that_can_be_saved_comes_back_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, single_file: bool, config: dict
) -> None:
    model = parts(**config)
    for part in (model.language_model, model.classifier):
        part.to(dtype)
    save_model(tmp_path / "model", model, single_file=single_file)
    before = torch.get_rng_state()
    loaded = load_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before), "loading draws no numbers"
    own, found = states(model), states(loaded)
    assert own.keys() == found.keys()
    for name, value in own.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    assert all(p.requires_grad for p in loaded.classifier.parameters())
    decoder = loaded.language_model.decoder.weight
    assert (decoder is loaded.language_model.encoder.encoder.weight) == (not config)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_a_head_in_float32_on_an_encoder_of_another_dtype_stays_so(
    tmp_path: Path, dtype: torch.dtype, single_file: bool
) -> None:
    """As fitting on a language model in another dtype makes it; rounded it answers otherwise."""
    model = ULMFiT(**SIZES).pretrain(TEXTS * 2, epochs=1, batch_size=2)
    model.language_model.to(dtype)
    model.fit_classifier(TEXTS, LABELS, epochs=1)
    assert model.classifier.head[2].weight.dtype == torch.float32
    (model.save_pretrained if single_file else model.save)(tmp_path / "model")
    loaded = ULMFiT.load(tmp_path / "model", progress=False)
    assert np.array_equal(loaded.predict_proba(TEXTS), model.predict_proba(TEXTS))
    found = loaded.classifier.state_dict()
    for name, value in model.classifier.state_dict().items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_weights_are_no_view_of_the_file(directory: Path) -> None:
    loaded = load_model(directory)
    before = {name: value.clone() for name, value in states(loaded).items()}
    for name in ("language_model", "classifier"):
        file = directory / f"{name}.safetensors"
        size = file.stat().st_size
        with file.open("r+b") as content:
            content.seek(size // 2)
            content.write(b"\xff" * (size - size // 2))
    assert all(torch.equal(value, before[name]) for name, value in states(loaded).items())


def tamper(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def weight_files(directory: Path, single_file: bool) -> list[Path]:
    if single_file:
        save_model(directory, load_model(directory), single_file=True)
    return sorted(directory.glob("*.safetensors"))


@LAYOUTS
@pytest.mark.parametrize(
    "dtype",
    [*DTYPES[1:], torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e5m2],
    ids=str,
)
def test_a_tensor_of_another_dtype_is_refused(
    directory: Path, single_file: bool, dtype: torch.dtype
) -> None:
    for file in weight_files(directory, single_file):
        content = file.read_bytes()
        for name, value in load_file(file).items():
            if value.dtype == dtype:
                continue
            tamper(file, lambda tensors, name=name: tensors.update({name: tensors[name].to(dtype)}))
            refused(directory, file.name, f"{name} has dtype", "expected")
            file.write_bytes(content)


@LAYOUTS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_a_weight_that_is_not_finite_is_refused(
    directory: Path, single_file: bool, value: float
) -> None:
    for file in weight_files(directory, single_file):
        content = file.read_bytes()
        for name, tensor in load_file(file).items():
            if tensor.is_floating_point():
                place = tensor.numel() - 1
                tamper(file, lambda ts, n=name, p=place: ts[n].view(-1)[p : p + 1].fill_(value))
                refused(directory, file.name, f"{name}[", f"is {value}, expected finite numbers")
                file.write_bytes(content)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_in_every_dtype_a_weight_is_finite(tmp_path: Path, dtype: torch.dtype) -> None:
    model = parts()
    model.classifier.to(dtype)
    save_model(tmp_path / "model", model)
    file = tmp_path / "model" / "classifier.safetensors"
    tamper(file, lambda tensors: tensors["head.2.weight"][1, 3:].fill_(torch.nan))
    refused(tmp_path / "model", "head.2.weight[1, 3] is nan")


@pytest.mark.parametrize("name", ["head.0.running_var", "head.4.num_batches_tracked"])
def test_statistics_below_zero_are_refused(directory: Path, name: str) -> None:
    tamper(directory / "classifier.safetensors", lambda tensors: tensors[name].fill_(-1))
    refused(directory, f"{name} has -1, expected no number below 0")


@LAYOUTS
def test_names_and_shapes_are_those_of_the_configuration(
    directory: Path, single_file: bool
) -> None:
    for file in weight_files(directory, single_file):
        content = file.read_bytes()
        for name in load_file(file):
            changes = {
                f"it lacks '{name}'": lambda ts, n=name: ts.pop(n),
                f"it has '{name}x'": lambda ts, n=name: ts.update({f"{n}x": ts[n].clone()}),
                f"{name} has shape": lambda ts, n=name: ts.update({n: ts[n].unsqueeze(0)}),
            }
            for words, change in changes.items():
                tamper(file, change)
                refused(directory, f"{file.name} does not fit its config.json: {words}")
                file.write_bytes(content)


def test_a_shared_tensor_may_stand_under_its_other_name_and_under_one_alone(
    directory: Path,
) -> None:
    file = directory / "language_model.safetensors"
    first, other = "encoder.encoder.weight", "decoder.weight"
    own = states(load_model(directory))
    tamper(file, lambda tensors: tensors.update({other: tensors.pop(first)}))
    found = load_model(directory)
    assert all(torch.equal(value, own[name]) for name, value in states(found).items())
    tamper(file, lambda tensors: tensors.update({first: tensors[other].clone()}))
    refused(directory, f"it has '{other}', expected no such tensor")


def test_a_file_that_quotes_escapes_to_a_terminal(directory: Path) -> None:
    file = directory / "classifier.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["head.6.weight"]["dtype"] = "\x1b[2J\n"
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    refused(directory, r"\x1b[2J")
    file.write_bytes(content)
    tamper(file, lambda tensors: tensors.update({"\x1b[2J\n": torch.zeros(1)}))
    refused(directory, r"it has '\x1b[2J\n', expected no such tensor")
    shown = CliRunner().invoke(
        app, ["predict", "--model", "\x1b[2J\n", "--text", str(directory / "config.json")]
    )
    assert shown.exit_code == 2 and shown.stderr.strip().isprintable()


def test_layers_that_are_not_there_are_not_built(directory: Path, monkeypatch) -> None:
    file = directory / "classifier.safetensors"
    tamper(file, lambda tensors: tensors.update({"more": torch.zeros(10**6)}))
    rewrite(directory, lambda c: c.update(language_model=None))
    rewrite(directory, lambda c: c["classifier"]["encoder"].update(num_layers=7_000))
    monkeypatch.setattr("ulmfit_fast.ulmfit.model_weights.AWDLSTM", None)
    refused(directory, "it lacks 'encoder.rnns.2.weight_hh_l0', and 7000 layers are described")


BAD_LABELS = {
    "twice": ["a", "a"],
    "written alike": [1, "1"],
    "true written": [True, "True"],
    "equal": [1, True],
    "zero": [False, 0],
    "string": "ab",
    "mapping": {"a": 1, "b": 2},
    "null": None,
    "nulls": [None, "a"],
    "lists": [["a"], ["b"]],
    "floats": [0.5, 1.5],
    "whole float": [1.0, 2],
    "nan": [float("nan"), 1],
    "escape": ["\x1b[2J", "b"],
    "bell": ["b", "a\x07"],
    "newline": ["a\n", "b"],
    "tab": ["a\tb", "b"],
    "nul": ["\0", "b"],
    "delete": ["\x7f", "b"],
    "c1": ["\x9b31m", "b"],
    "half": ["\ud800", "b"],
    "one": ["a"],
    "three": ["a", "b", "c"],
    "none": [],
}


@pytest.mark.parametrize("labels", BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_that_are_none_are_refused(directory: Path, labels: object) -> None:
    rewrite(directory, lambda config: config.update(labels=labels))
    refused(directory, "labels")
    shown = CliRunner().invoke(
        app, ["predict", "--model", str(directory), "--text", str(directory / "config.json")]
    )
    assert shown.exit_code == 2 and len(shown.stderr.splitlines()) == 1


@pytest.mark.parametrize("labels", [[True, False], [0, 1], ["", "é"], ["1", 2], [-5, 2**70]])
def test_labels_that_can_be_told_apart_come_back(tmp_path: Path, labels: list) -> None:
    save_model(tmp_path / "model", parts(labels))
    assert [repr(x) for x in load_model(tmp_path / "model").labels] == [repr(x) for x in labels]


def test_what_could_not_be_read_again_is_not_written(directory: Path) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    broken = {
        "labels[1] is 'a' beside labels[0]": lambda p: p.labels.__setitem__(
            slice(None), ["a", "a"]
        ),
        "it has 2 classes and there are 3 labels": lambda p: p.labels.append("maybe"),
        "settings.seed is -1": lambda p: p.settings.update(seed=-1),
        "head.2.weight[0, 0] is nan": lambda p: p.classifier.head[2].weight.data.fill_(torch.nan),
        "decoder.bias has dtype F64, expected F32": lambda p: setattr(
            p.language_model.decoder.bias, "data", torch.zeros(11, dtype=torch.float64)
        ),
        "it lacks 'head.0.weight', 'head.0.bias', 'head.2.weight' and 9 more": lambda p: setattr(
            p.classifier, "head", torch.nn.Identity()
        ),
    }
    for words, damage in broken.items():
        model = parts()
        damage(model)
        with pytest.raises(ValueError, match="cannot be saved: ") as caught:
            save_model(directory, model)
        assert words in str(caught.value), caught.value
    assert before == {path.name: path.read_bytes() for path in directory.iterdir()}
    assert [path.name for path in directory.parent.iterdir()] == ["model"]


def test_labels_with_control_characters_are_refused_before_the_training() -> None:
    model = ULMFiT(**SIZES)
    for label in ("good\n", "\x1b[31mgood", "go\tod"):
        labels = [label, "bad"] * 4
        with pytest.raises(
            ValueError, match=r"the classes: labels\[\d\] is .*; write it in another"
        ):
            model.fit_classifier(TEXTS, labels, epochs=1)
        with pytest.raises(ValueError, match=r"the classes of y: labels\[\d\] is "):
            ULMFiTClassifier(model_options=SIZES).fit(TEXTS, np.array(labels, dtype=object))
    assert model.classifier is None


@pytest.mark.parametrize("y", [[0.0, 1.0], [False, True], [3, 5], ["a", "b"]], ids=str)
def test_what_scikit_learn_has_fitted_can_be_saved_and_read(tmp_path: Path, y: list) -> None:
    options = {name: value for name, value in SIZES.items() if name != "progress"}
    model = ULMFiTClassifier(epochs=1, fine_tune_lm=False, model_options=options, random_state=0)
    fitted = model.fit(TEXTS, np.array(y * 4))
    fitted.model_.save(tmp_path / "model")
    loaded = ULMFiT.load(tmp_path / "model", progress=False)
    assert loaded.labels == y and loaded.predict(TEXTS) == model.predict(TEXTS).tolist()


FIELDS = {
    "single_file": 1,
    "model_type": "bert",
    "language_model_dtype": "double",
    "language_model.emb_size": 4.0,
    "language_model.hidden_size": "4",
    "language_model.num_layers": True,
    "language_model.vocab_size": 10**30,
    "language_model.pad_id": 11,
    "language_model.input_p": float("nan"),
    "language_model.weight_p": [0.1, 0.1, 0.1, 1.1],
    "language_model.tie_weights": "yes",
    "classifier.max_len": 2**63,
    "classifier.bptt": 72.0,
    "classifier.hidden": -5,
    "classifier.output_p": float("inf"),
    "classifier.head_p": [0.1],
    "classifier.dtype": None,
    "classifier.encoder.out_bias": 0,
    "settings.seed": True,
    "settings.tokenizer": ["word"],
    "settings.max_vocab": 8,
    "settings.min_freq": 0.5,
    "settings.drop_mult": float("nan"),
    "settings.backwards": "no",
    "settings.lm_dropout": [0.1],
    "settings.classifier_dropout": {"weight_p": "0.1"},
    "settings.preset": "paper",
    "settings.preset.name": 3,
    "settings.preset.model": {"hidden_size": 0},
    "settings.preset.pretrain": {"lr": 10**400},
    "settings.preset.fine_tune_lm": {"gradual_unfreezing": ["1"]},
    "settings.preset.fit_classifier": {"max_len": 10**30, "drop_mult": 1},
}


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_is_refused_by_name(directory: Path, field: str) -> None:
    def change(config: dict) -> None:
        config["settings"] = ULMFiT(preset="paper").settings.to_dict()
        *outer, last = field.split(".")
        for name in outer:
            config = config[name]
        config[last] = FIELDS[field]

    rewrite(directory, change)
    refused(directory, "config.json: ", field.rsplit(".", 1)[-1])


@pytest.mark.parametrize(
    "version", [True, 1.0, 0, -1, 1e400, 10**4000, None, [1], "1"], ids=lambda v: f"{v!s:.12}"
)
def test_versions_that_are_none(directory: Path, version: object) -> None:
    rewrite(directory, lambda config: config.update(format_version=version))
    with pytest.raises(ValueError, match=r"format.version") as caught:
        load_model(directory)
    assert len(str(caught.value)) < 400


def test_a_key_that_stands_twice_is_refused(directory: Path) -> None:
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text.replace('"labels"', '"labels": [3, 4], "labels"'))
    refused(directory, "config.json is damaged", "the key 'labels' occurs 2 times")


def test_a_description_of_absurd_length(directory: Path) -> None:
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text + " " * 2**24)
    refused(directory, "config.json has", "bytes, expected at most 16,777,216")


def test_settings_name_no_other_argument(tmp_path: Path, directory: Path) -> None:
    """A model that is loaded would save itself there while it is trained further."""
    rewrite(directory, lambda c: c["settings"].update(checkpoint_dir=str(tmp_path / "elsewhere")))
    refused(directory, "settings has the unknown field 'checkpoint_dir'", read=ULMFiT.load)


def test_settings_that_fit_each_by_itself_alone(directory: Path) -> None:
    rewrite(directory, lambda c: c["settings"].update(drop_mult=100.0))
    refused(directory, "is damaged: ", "expected a probability between 0 and 1", read=ULMFiT.load)
    with pytest.raises(ValueError, match=r"^device is 'abacus'"):
        ULMFiT.load(directory, device="abacus")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_vocab": 1e5}, "max_vocab is 100000.0"),
        ({"min_freq": 2.5}, "min_freq is 2.5"),
        ({"drop_mult": "1"}, "drop_mult must be a number"),
        ({"drop_mult": float("inf")}, "drop_mult must be finite"),
        ({"preset": Preset("own", {"colour": 1}, {}, {}, {})}, "unknown field 'colour'"),
        ({"preset": Preset("own", {}, {"max_len": 10**30}, {}, {})}, "max_len is 1000"),
        ({"lm_dropout": {"weight_p": 10**400}}, "weight_p"),
    ],
    ids=str,
)
def test_what_no_saved_model_may_have_no_new_one_has(arguments: dict, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        ULMFiT(**{**SIZES, **arguments})


def test_numbers_of_numpy_are_saved(tmp_path: Path) -> None:
    own = {"max_vocab": np.int64(40), "drop_mult": np.float32(0.5)}
    dropout = {"weight_p": np.float32(0.25), "gate_p": (0, 0, 0.1, 0)}
    model = ULMFiT(**SIZES, **own, lm_dropout=dropout).fit_classifier(TEXTS, LABELS, epochs=1)
    model.save(tmp_path / "model")
    loaded = ULMFiT.load(tmp_path / "model", progress=False)
    assert loaded.settings.max_vocab == 40 and loaded.settings.lm_dropout["weight_p"] == 0.25


def test_a_tokenizer_is_counted_before_it_is_built(directory: Path, monkeypatch) -> None:
    content = json.loads((directory / "tokenizer.json").read_text())
    built = []
    monkeypatch.setattr(tokenizer_module, "vocabulary_of", lambda words: built.append(len(words)))
    for count in (1, 200):
        own = {**content, "words": content["words"] + [f"w{n}" for n in range(count)]}
        (directory / "tokenizer.json").write_text(json.dumps(own))
        refused(directory, f"the tokenizer has {11 + count} words and its model 11")
    monkeypatch.setattr(tokenizer_module, "parse_json", lambda *_: built.append("parsed"))
    own["words"] += [f"w{n}" for n in range(30_000)]
    (directory / "tokenizer.json").write_text(json.dumps(own))
    refused(directory, "values and its model 11 words")
    assert not built


def many_words(file: Path, count: int) -> None:
    """Add words to a tokenizer.json without holding them."""
    content = json.loads(file.read_text())
    text = json.dumps({**content, "words": "HERE"})
    before, behind = text.split('"HERE"')
    with file.open("w") as written:
        written.write(before + json.dumps(content["words"])[:-1])
        written.writelines(f', "w{n}"' for n in range(count))
        written.write("]" + behind)


@linux
def test_millions_of_words_beside_a_small_model_take_no_memory(
    tmp_path: Path, directory: Path
) -> None:
    paths = []
    for count in (10**6, 10**7):
        path = shutil.copytree(directory, tmp_path / f"{count} words")
        many_words(path / "tokenizer.json", count)
        paths.append(path)
    for path, line in zip(paths, read_within_limits("load_model", paths), strict=True):
        assert line.startswith(str(path / "tokenizer.json")) and "expected at most" in line, line


@pytest.mark.parametrize("version", [True, 1.0], ids=str)
def test_versions_of_a_tokenizer_and_a_store(tmp_path: Path, version: object) -> None:
    tokenizer = Tokenizer.train(TEXTS, min_freq=1)
    content = json.loads(tokenizer.to_json()) | {"version": version}
    with pytest.raises(ValueError, match="the tokenizer has version"):
        Tokenizer.from_json(json.dumps(content))
    store = TokenStore.build(tmp_path / "store", TEXTS, tokenizer, progress=False)
    meta = json.loads((store.directory / "meta.json").read_text()) | {"version": version}
    (store.directory / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="has version"):
        TokenStore(store.directory)


def test_a_special_that_occurs_again_in_a_tokenizer() -> None:
    content = json.loads(Tokenizer.train(TEXTS, min_freq=1).to_json())
    content["words"].insert(9, "xxpad")
    with pytest.raises(ValueError, match="a special occurs twice"):
        Tokenizer.from_json(json.dumps(content))


def test_a_store_beside_a_tokenizer_of_more_words(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, min_freq=1)
    store = TokenStore.build(tmp_path / "store", TEXTS, tokenizer, progress=False)
    many_words(store.directory / "tokenizer.json", 50_000)
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged \(.* expected at most"):
        store.tokenizer()


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory) -> Path:
    """Every weight is finite, and the answer is not."""
    model = ULMFiT(**SIZES).fit_classifier(TEXTS, LABELS, epochs=1)
    with torch.no_grad():
        model.classifier.head[2].weight.fill_(3e38)
        model.classifier.head[2].weight[:, ::2] = -3e38
        model.classifier.head[6].weight.fill_(3e38)
    folder = tmp_path_factory.mktemp("overflowing")
    model.save(folder / "model")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    return folder


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_an_answer_that_is_no_number_is_none(overflowing: Path, format: str) -> None:
    model = ULMFiT.load(overflowing / "model", progress=False)
    for ask in (model.predict, model.predict_proba, Ensemble([model, model]).predict):
        with pytest.raises(ValueError, match=r"the probabilities of text 0 are \[nan"):
            ask(TEXTS)
    with pytest.raises(ValueError, match="answer or its gradient is not finite"):
        model.explain(TEXTS)
    out = overflowing / f"answers.{format}"
    options = ["--model", str(overflowing / "model"), "--text", str(overflowing / "texts.txt")]
    for more in ([], ["--out", str(out)]):
        shown = CliRunner().invoke(app, ["predict", *options, "--format", format, "--all", *more])
        assert shown.exit_code == 2 and shown.stdout == "" and not out.exists()
        assert shown.stderr.startswith("error: the probabilities of text 0")
        assert len(shown.stderr.splitlines()) == 1


def test_ensembles_say_which_directory_is_damaged(tmp_path: Path) -> None:
    model = ULMFiT(**SIZES).fit_classifier(TEXTS, LABELS, epochs=1)
    both = tmp_path / "both"
    Ensemble([model, model]).save(both)
    for models in ([], {}, "model_0", ["model_1"], [["model_0"]], None, [None], [True]):
        rewrite(both, lambda config, models=models: config.update(models=models))
        refused(both, "config.json is damaged: models is", read=Ensemble.load)
    rewrite(both, lambda config: config.update(models=["model_0", "model_1"]))
    rewrite(both / "model_1", lambda config: config.update(labels=["other", "labels"]))
    refused(both, "expected the same", read=Ensemble.load)
    rewrite(both / "model_1", lambda config: config.update(classifier=None))
    refused(both, "models[1] has no classifier", read=Ensemble.load)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("1.decoder.bias", lambda t: t[3:4].fill_(torch.nan), r"1.decoder.bias\[3\] is nan"),
        ("0.rnns.0.weight_hh_l0_raw", lambda t: t[:1].fill_(torch.inf), r"_raw\[0, 0\] is inf"),
    ],
)
def test_weights_of_fastai_are_finite(tmp_path: Path, name: str, change, words: str) -> None:
    tensors = to_fastai(parts().language_model)
    change(tensors[name])
    torch.save(tensors, tmp_path / "lm.pth")
    (tmp_path / "itos.json").write_text(json.dumps(parts().tokenizer.vocab.words))
    with pytest.raises(ValueError, match=rf"lm\.pth: .*{words}, expected finite numbers; give"):
        read_fastai(tmp_path / "lm.pth", tmp_path / "itos.json")


def test_a_vocabulary_of_fastai_out_of_proportion_is_not_read(tmp_path: Path, monkeypatch) -> None:
    torch.save(to_fastai(parts().language_model), tmp_path / "lm.pth")
    with (tmp_path / "itos.json").open("wb") as file:
        file.truncate(2**27)
    monkeypatch.setattr("ulmfit_fast.compat.fastai.read_words", None)
    with pytest.raises(
        ValueError, match=r"itos\.json has 134,217,728 bytes, expected at most 67,1"
    ):
        read_fastai(tmp_path / "lm.pth", tmp_path / "itos.json")


@pytest.mark.parametrize(
    "sizes", [{"max_len": 10**30}, {"bptt": 7.5}, {"hidden": True}, {"hidden": "4"}], ids=str
)
def test_a_classifier_takes_whole_numbers_that_pytorch_takes(sizes: dict) -> None:
    config = AWDLSTMConfig.classifier(11, emb_size=4, hidden_size=4)
    with pytest.raises((TypeError, ValueError), match=f"{next(iter(sizes))} must be"):
        TextClassifier(AWDLSTM(config), 2, **sizes)
