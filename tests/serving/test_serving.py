"""Predictions in a stream, a classifier in int8, and one that runs without this package."""

import io
import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ulmfit_fast import Ensemble, ULMFiT
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, TextClassifier
from ulmfit_fast.serving import Prediction, export_classifier, predictor, quantize

GOOD, BAD = "a fine and moving film", "a dull story , badly told"
# No two neighbours of one length, none at all, and one that is longer than a window.
VARIED = [(GOOD if n % 2 else BAD) + " film" * (n * 7 % 23) for n in range(40)] + [
    "",
    "film " * 100,
]


@pytest.fixture(scope="module")
def model() -> ULMFiT:
    sizes = {"emb_size": 12, "hidden_size": 20, "num_layers": 2, "min_freq": 1, "drop_mult": 0.1}
    learner = ULMFiT(**sizes, progress=False, device="cpu")
    texts = [GOOD, BAD, GOOD + " film" * 9, BAD + " film" * 9] * 8
    learner.fit_classifier(texts, ["good", "bad"] * 16, epochs=12, lr=0.05, batch_size=8)
    return learner


def stacked(predictions) -> np.ndarray:
    return np.array([prediction.probabilities for prediction in predictions], dtype=np.float32)


def test_a_prediction_is_the_likeliest_class(model):
    found = list(model.predict_stream([GOOD, BAD]))
    assert [type(one) for one in found] == [Prediction, Prediction]
    assert [one.label for one in found] == ["good", "bad"] == model.predict([GOOD, BAD])
    for one in found:
        assert one.probability == max(one.probabilities) > 0.5
        assert one.probabilities[model.labels.index(one.label)] == one.probability
        assert sum(one.probabilities) == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("chunk_size", [1, 5, 1024])
def test_neither_batch_nor_chunk_changes_a_text(model, batch_size, chunk_size):
    alone = np.concatenate([model.predict_proba([text]) for text in VARIED])
    assert alone[:, 0].min() < 0.2 and alone[:, 0].max() > 0.8
    stream = model.predict_stream(VARIED, batch_size=batch_size, chunk_size=chunk_size)
    # Products of other sizes are rounded otherwise; nothing else may differ.
    np.testing.assert_allclose(stacked(stream), alone, rtol=0, atol=1e-5)


def test_all_ways_of_asking_agree_to_the_bit(model):
    proba = model.predict_proba(VARIED)
    stream = list(model.predict_stream(VARIED))
    assert np.array_equal(stacked(stream), proba)
    assert [one.label for one in stream] == model.predict(VARIED)


def test_a_string_is_a_text_unless_it_is_a_path(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model.predict(GOOD) == model.predict([GOOD])[0] == "good"
    assert np.array_equal(model.predict_proba(BAD), model.predict_proba([BAD])[0])
    assert [one.label for one in model.predict_stream(BAD)] == ["bad"]
    assert isinstance(model.predict(""), str) and isinstance(model.predict("a\0b" * 9999), str)
    with pytest.raises(FileNotFoundError, match=r"none\.CSV does not exist"):
        model.predict("none.CSV")
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "one.txt").write_text(GOOD)
    assert model.predict("reviews") == model.predict(tmp_path / "reviews") == ["good"]


def test_a_chunk_is_answered_before_the_next_is_read(model):
    read = []

    def texts():
        for number in range(100):
            read.append(number)
            yield VARIED[number % len(VARIED)]

    stream = model.predict_stream(texts(), chunk_size=4)
    assert read == []
    for number in range(9):
        next(stream)
        assert len(read) == 4 * (number // 4 + 1)


def test_long_texts_make_a_chunk_smaller(model, monkeypatch):
    monkeypatch.setattr(predictor, "BLOCK_CHARACTERS", 100)
    read = []
    stream = model.predict_stream(read.append(1) or "film " * 15 for _ in range(9))
    next(stream)
    assert len(read) == 2


def test_memory_does_not_grow_with_the_number_of_texts(model):
    def peak(chunks):
        texts = (f"{GOOD} {number} " + "film " * 200 for number in range(16 * chunks))
        tracemalloc.start()
        try:
            total = sum(1 for _ in model.predict_stream(texts, chunk_size=16, batch_size=16))
            return total, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)
    (few, small), (many, large) = peak(4), peak(80)
    assert (few, many) == (64, 1280)
    # What is not a chunk's, some 40 kB of garbage not yet collected, is there after a few of them.
    assert large < 2 * small < many * 1000 / 5


def test_backward_models_and_ensembles_stream_as_well(model):
    other = model.copy()
    other.settings = replace(other.settings, backwards=True)
    both = Ensemble([model, other])
    means = (model.predict_proba(VARIED) + other.predict_proba(VARIED)) / 2
    assert not np.allclose(means, model.predict_proba(VARIED), atol=1e-3)
    stream = both.predict_stream(iter(VARIED), chunk_size=8, batch_size=3)
    np.testing.assert_allclose(stacked(stream), means, rtol=0, atol=1e-5)
    assert both.predict([GOOD, BAD]) == ["good", "bad"]


@pytest.mark.parametrize("name", ["chunk_size", "batch_size"])
def test_a_size_below_one_is_refused_before_a_text_is_read(model, name):
    def texts():
        raise AssertionError("read")
        yield

    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        model.predict_stream(texts(), **{name: 0})
    with pytest.raises(ValueError, match="there is no classifier yet"):
        ULMFiT(progress=False, device="cpu").predict_stream(texts())


def test_an_error_in_the_texts_comes_after_what_was_before_it(model):
    stream = model.predict_stream(iter([GOOD, BAD, 3]), chunk_size=2)
    assert [next(stream).label, next(stream).label] == ["good", "bad"]
    with pytest.raises(TypeError, match=r"texts\[2\] is 3 \(int\)"):
        next(stream)


def test_int8_answers_as_float32_does(model):
    small = quantize(model)
    expected = model.predict_proba(VARIED)
    alone = small.predict_proba(VARIED, batch_size=1)
    assert 1e-6 < np.abs(alone - expected).max() < 0.05
    assert (alone.argmax(1) == expected.argmax(1)).mean() > 0.95
    # The scale of a step's activations is that of all rows: other rows, other rounding.
    assert np.abs(small.predict_proba(VARIED) - expected).max() < 0.05
    assert np.array_equal(model.predict_proba(VARIED), expected)
    assert small.copy().predict([GOOD, BAD]) == ["good", "bad"]


def test_int8_weights_take_a_quarter():
    wide = TextClassifier(AWDLSTM(AWDLSTMConfig.classifier(10, emb_size=64, hidden_size=256)), 2)

    def size(made):
        file = io.BytesIO()
        torch.save(made.encoder.rnns.state_dict(), file)
        return len(file.getvalue())

    assert size(quantize(wide.eval())) < 0.3 * size(wide)


def test_an_int8_model_only_predicts(model):
    small = quantize(model)
    assert small.language_model is None
    with pytest.raises(ValueError, match="the classifier is in int8, which is not saved"):
        small.save("never-written")
    assert not os.path.exists("never-written")
    for forbidden in (small.classifier.train, lambda: small.explain([GOOD])):
        with pytest.raises(RuntimeError, match="the one that it was made from"):
            forbidden()
        assert not any(module.training for module in small.classifier.modules())
    with pytest.raises(ValueError, match="in int8 already, and cannot be quantised"):
        quantize(small)
    with pytest.raises(ValueError, match="in int8 already, and cannot be exported"):
        export_classifier(small, "never-written.pt2")


def classifier(**changes) -> TextClassifier:
    config = AWDLSTMConfig.classifier(30, emb_size=8, hidden_size=12, num_layers=2)
    made = TextClassifier(AWDLSTM(config), 3, bptt=4, max_len=10)
    # BatchNorm that does nothing would hide one that was left out.
    with torch.no_grad():
        for name, buffer in made.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2.0)
        for parameter in made.parameters():
            parameter.mul_(2)
    return made.eval()


@pytest.mark.parametrize("make", [quantize, lambda model: export_classifier(model, "no.pt2")])
def test_what_cannot_be_made_to_predict_is_refused(make):
    with pytest.raises(ValueError, match=r"in training mode.*call eval\(\) on it"):
        make(classifier().train())
    with pytest.raises(ValueError, match=r'on meta, expected cpu.*device="cpu"'):
        make(classifier().to("meta"))
    with pytest.raises(ValueError, match=r"torch.bfloat16, expected torch.float32.*float\(\)"):
        make(classifier().bfloat16())
    with pytest.raises(ValueError, match="there is no classifier yet"):
        make(ULMFiT(progress=False, device="cpu"))
    with pytest.raises(TypeError, match="expected a TextClassifier or ULMFiT"):
        make(torch.nn.Linear(2, 2))
    assert not os.path.exists("no.pt2")


def test_no_engine_for_int8_is_said(monkeypatch):
    none = SimpleNamespace(engine="none", supported_engines=["none"])
    monkeypatch.setattr(torch.backends, "quantized", none)
    with pytest.raises(RuntimeError, match="no engine for int8 products"):
        quantize(classifier())


ALONE = """
import json, sys
import torch

extra = {"labels.json": ""}
program = torch.export.load("classifier.pt2", extra_files=extra).module()
logits = [program(*call).tolist() for call in torch.load("calls.pt")]
assert not [name for name in sys.modules if name.split(".")[0] == "ulmfit_fast"]
try:
    program(torch.full((2, 1), 3), torch.tensor([3]))
except RuntimeError as error:
    refused = str(error)
print(json.dumps([logits, extra["labels.json"], refused]))
"""


@pytest.mark.slow
def test_an_exported_classifier_runs_where_only_torch_is(tmp_path):
    ours = classifier()
    export_classifier(ours, tmp_path / "classifier.pt2")
    calls = []
    # Windows of 4 and the last 10 tokens: texts below, at and above both, and none.
    for steps, lengths in ((1, [1]), (3, [3, 0]), (4, [4, 1, 2]), (23, [23, 10, 11, 4, 0])):
        tokens = torch.randint(2, 30, (steps, len(lengths)))
        calls.append((tokens, torch.tensor(lengths)))
    torch.save(calls, tmp_path / "calls.pt")
    # -S: the package, which is installed in place, would be found by a hook at the start.
    path = os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", ALONE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    logits, labels, refused = json.loads(done.stdout)
    assert labels == "" and "outside [0, T]" in refused
    for got, call in zip(logits, calls, strict=True):
        torch.testing.assert_close(torch.tensor(got), ours(*call), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_an_exported_model_has_its_labels_and_replaces_the_file_at_once(model, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_text("of old")
    export_classifier(model, path)
    extra = {"labels.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["labels.json"]) == model.labels
    assert os.listdir(tmp_path) == ["model.pt2"]
    ids = torch.from_numpy(model.tokenizer.encode_batch([GOOD])[0]).unsqueeze(1)
    logits = program(ids.long(), torch.tensor([len(ids)]))
    np.testing.assert_allclose(logits.softmax(1).numpy(), model.predict_proba([GOOD]), atol=1e-5)


def test_a_failed_export_leaves_the_older_file(model, tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("of old")

    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "export", lambda *args, **options: None)
    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        export_classifier(model, path)
    assert os.listdir(tmp_path) == ["model.pt2"] and path.read_text() == "of old"
    with pytest.raises(ValueError, match=r"model.bin', expected a name that ends in .pt2"):
        export_classifier(model, tmp_path / "model.bin")
