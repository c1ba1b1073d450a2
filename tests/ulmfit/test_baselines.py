"""The bag of words that is kept with a model: scikit-learn's, without scikit-learn."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression

from ulmfit_fast import ULMFiT
from ulmfit_fast.ulmfit import baselines
from ulmfit_fast.ulmfit.baselines import BagOfWords, Baselines, tfidf_pipeline

WORDS = "Ärger, der die das 'n und nicht! a is ist 😀 no123 ok ok".split()


def texts_of(count, seed=0):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("weighs", [False, True])
def test_it_answers_as_scikit_learn_does(classes, weighs):
    texts, labels = texts_of(80), [n % classes for n in range(80)]
    weights = np.linspace(0.1, 3, 80) if weighs else None
    # With words that it has not seen, upper case, white space and nothing at all.
    new = [*texts_of(30, seed=1), "", "  ", "unseen words", "NICHT und\tnicht\nund"]
    found = BagOfWords.fit(texts, labels, classes, weights).predict_proba(new)
    own = None if weights is None else weights / weights.mean()
    expected = tfidf_pipeline().fit(texts, labels, logisticregression__sample_weight=own)
    np.testing.assert_allclose(found, expected.predict_proba(new), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_a_class_without_texts_has_no_probability():
    texts = texts_of(40)
    found = BagOfWords.fit(texts, [1 + 2 * (n % 2) for n in range(40)], 5).predict_proba(texts)
    assert found.shape == (40, 5) and not found[:, [0, 2, 4]].any()
    expected = tfidf_pipeline().fit(texts, [n % 2 for n in range(40)]).predict_proba(texts)
    np.testing.assert_allclose(found[:, [1, 3]], expected, atol=1e-6)


def test_its_size_is_bounded(monkeypatch):
    texts, labels = texts_of(60), [n % 3 for n in range(60)]
    monkeypatch.setattr(baselines, "_FEWEST_FEATURES", 4)
    monkeypatch.setattr(baselines, "_MOST_FEATURES", 12)
    assert len(BagOfWords.fit(texts, labels, 3).terms) == 12
    monkeypatch.setattr(baselines, "_MOST_WEIGHTS", 30)
    few = BagOfWords.fit(texts, labels, 3)
    assert few.weights.shape == (3, 10)
    expected = tfidf_pipeline(max_features=10).fit(texts, labels).predict_proba(texts)
    np.testing.assert_allclose(few.predict_proba(texts), expected, atol=1e-6)


def test_one_that_does_not_converge_is_no_warning(monkeypatch):
    pipeline = baselines.tfidf_pipeline

    def hasty(*args, **kwargs):
        made = pipeline(*args, **kwargs)
        return made.set_params(logisticregression=LogisticRegression(max_iter=1))

    monkeypatch.setattr(baselines, "tfidf_pipeline", hasty)
    BagOfWords.fit(texts_of(40), [n % 2 for n in range(40)], 2)


def test_without_scikit_learn_or_words_there_is_only_the_majority_class(monkeypatch):
    wordless = Baselines.fit([" ", "\n"], [0, 1], 2)
    assert wordless == Baselines((1, 1), None)
    assert Baselines.fit(["a"] * 3, [0, 1, 1], 2, bag_of_words=False) == Baselines((1, 2), None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    found = Baselines.fit(["a", "b", "c"], [0, 2, 2], 3)
    assert found == Baselines((1, 0, 2), None)
    assert list(found.predict_proba(["a"])) == ["majority class"]
    assert found.predict_proba(["a"])["majority class"].tolist() == [[1 / 3, 0, 2 / 3]]


@pytest.fixture(scope="module")
def fitted():
    texts = [f"a {word} film {n}" for n in range(10) for word in ("fine", "dull")]
    model = ULMFiT(emb_size=8, hidden_size=10, num_layers=2, min_freq=1, progress=False)
    return model.fit_classifier(texts, ["good", "bad"] * 10, epochs=1, baseline=True)


@pytest.mark.parametrize("save", ["save", "save_pretrained"])
def test_it_comes_back_with_the_model_bit_for_bit(fitted, tmp_path, monkeypatch, save):
    getattr(fitted, save)(tmp_path / "a")
    getattr(fitted, save)(tmp_path / "b")
    first, second = (tmp_path / name / "bag_of_words.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    # It answers where scikit-learn is not installed.
    monkeypatch.setitem(sys.modules, "sklearn", None)
    loaded = ULMFiT.load(tmp_path / "a", progress=False).baselines
    assert loaded.counts == (10, 10)
    texts = ["a fine film", "dull"]
    for name, expected in fitted.baselines.predict_proba(texts).items():
        assert np.array_equal(loaded.predict_proba(texts)[name], expected)


def test_a_model_without_one_loads_and_replaces_one_with(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    without = fitted.copy(baselines=None)
    without.save(tmp_path / "model")
    assert not (tmp_path / "model" / "bag_of_words.safetensors").exists()
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    assert "class_counts" not in config
    # As models of before are, which do not have this either.
    del config["validation"]
    path.write_text(json.dumps(config))
    loaded = ULMFiT.load(tmp_path / "model", progress=False)
    assert loaded.baselines is None and loaded.validation is None
    assert np.array_equal(loaded.predict_proba(["a film"]), fitted.predict_proba(["a film"]))


def test_a_file_of_the_user_with_the_name_stays(fitted, tmp_path):
    fitted.copy(baselines=None).save(tmp_path)
    own = tmp_path / "bag_of_words.safetensors"
    own.write_text("mine")
    fitted.copy(baselines=None).save(tmp_path)
    assert own.read_text() == "mine"
    with pytest.raises(FileExistsError, match=r"bag_of_words\.safetensors is of something else"):
        fitted.save(tmp_path)
    assert own.read_text() == "mine"


FAULTS = {
    "idf": (lambda t: t.update(idf=t["idf"][:-1]), r"idf is \(\d+,\) in torch.float32, expected"),
    "weights": (lambda t: t.pop("weights"), r"weights is missing, expected \(1, \d+\)"),
    "dtype": (lambda t: t.update(bias=t["bias"].double()), r"bias is \(1,\) in torch.float64"),
    "finite": (lambda t: t["idf"].fill_(float("nan")), r"idf\[0\] is nan, expected finite"),
    "known": (lambda t: t["known"].fill_(1), r"known is \[1, 1\], expected at least two"),
    "beyond": (lambda t: t["known"].add_(1), r"known is \[1, 2\], expected .* of 2 classes"),
    "none": (lambda t: t.pop("known"), r"weights is .*, expected \(0, \d+\)"),
}


def load(directory):
    return ULMFiT.load(directory, progress=False)


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_file_is_refused(fitted, tmp_path, name):
    change, message = FAULTS[name]
    fitted.save(tmp_path)
    path = tmp_path / "bag_of_words.safetensors"
    tensors = load_file(path)
    change(tensors)
    terms = json.dumps(fitted.baselines.bag_of_words.terms)
    save_file(tensors, path, metadata={"terms": terms})
    with pytest.raises(ValueError, match=rf"bag_of_words.safetensors: {message}.*; save the model"):
        load(tmp_path)


@pytest.mark.parametrize("terms", [None, "{", "{}", "[]", '["a", 1]', '["a", "a"]'])
def test_damaged_terms_are_refused(fitted, tmp_path, terms):
    fitted.save(tmp_path)
    path = tmp_path / "bag_of_words.safetensors"
    save_file(load_file(path), path, metadata=None if terms is None else {"terms": terms})
    with pytest.raises(ValueError, match=r"bag_of_words.safetensors: terms is .*; save"):
        load(tmp_path)


def test_a_file_that_is_none_or_missing_is_refused(fitted, tmp_path):
    fitted.save(tmp_path)
    path = tmp_path / "bag_of_words.safetensors"
    path.write_bytes(b"\x08" + b"\0" * 7 + b"{}      ")
    with pytest.raises(ValueError, match=r"bag_of_words.safetensors: "):
        load(tmp_path)
    path.write_bytes(torch.zeros(3).numpy().tobytes())
    with pytest.raises(ValueError, match=r"bag_of_words.safetensors: "):
        load(tmp_path)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no bag_of_words\.safetensors, so it is no complet"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_counts": [1]}, r"class_counts is \[1\], expected 2 numbers, one for each"),
        ({"class_counts": [1, -1]}, "class_counts is .*, expected a whole number for each class"),
        ({"class_counts": [0, 0]}, "class_counts is .*, expected a whole number for each class"),
        ({"class_counts": None}, "bag_of_words is true and class_counts null, expected both"),
        ({"bag_of_words": 1}, "bag_of_words is 1, expected true or false"),
        ({"validation": "yes"}, "validation is 'yes', expected true or false"),
    ],
    ids=str,
)
def test_what_the_description_says_of_it_is_checked(fitted, tmp_path, change, message):
    fitted.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
