"""The estimator of scikit-learn: its conventions, its tools, and texts in place of numbers."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn import config_context
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import balanced_accuracy_score, make_scorer, recall_score
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from ulmfit_fast import ULMFiT
from ulmfit_fast.ulmfit.sklearn_classifier import ULMFiTClassifier

TEXTS = [f"a {word} {thing}" for thing in ("film", "story", "song") for word in ("fine", "dull")]
TEXTS, LABELS = TEXTS * 10, ["good", "bad"] * 30
SIZES = {"emb_size": 8, "hidden_size": 10, "num_layers": 2, "min_freq": 1}
LEARNS = {"epochs": 12, "lr": 0.03, "batch_size": 16, "drop_mult": 0.1, "gradual_unfreezing": 0}

# Those that look at parameters alone. The others feed columns of numbers (check_fit2d_1sample,
# check_estimators_dtypes, check_classifiers_train, those of sample_weight and so on), ask for
# sparse matrices or features by name, and a text has none of these; what they ask of X, y, the
# order of the samples and their weights is asked below with texts.
APPLICABLE = (
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_mixin_order",
)


def new(**options) -> ULMFiTClassifier:
    values = {"fine_tune_lm": False, "model_options": SIZES, "random_state": 0, **LEARNS}
    return ULMFiTClassifier(**{**values, **options})


@pytest.fixture(scope="module")
def fitted() -> ULMFiTClassifier:
    return new().fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def pretrained() -> ULMFiT:
    model = ULMFiT(**SIZES, progress=False)
    return model.pretrain(TEXTS, epochs=1, batch_size=8, bptt=10)


@pytest.mark.parametrize("name", APPLICABLE)
def test_checks_of_scikit_learn(name: str) -> None:
    check = getattr(estimator_checks, name, None)
    if check is None:
        pytest.skip(f"this version of scikit-learn has no {name}")
    check("ULMFiTClassifier", ULMFiTClassifier())


def test_learns_and_answers_in_order(fitted: ULMFiTClassifier) -> None:
    assert is_classifier(fitted) and fitted.score(TEXTS, LABELS) == 1.0
    order = np.random.default_rng(0).permutation(60)
    shuffled = [TEXTS[n] for n in order]
    assert fitted.predict(shuffled).tolist() == [LABELS[n] for n in order]
    scores = fitted.predict_proba(TEXTS)
    assert scores.shape == (60, 2) and np.allclose(scores.sum(1), 1)
    assert np.allclose(fitted.predict_proba(shuffled), scores[order], atol=1e-6)
    alone = np.concatenate([fitted.predict_proba([text]) for text in TEXTS[:6]])
    assert np.allclose(alone, scores[:6], atol=1e-6)
    assert fitted.classes_.tolist() == ["bad", "good"] == fitted.model_.labels


def test_fit_returns_itself_and_changes_no_parameter() -> None:
    model = new(epochs=1)
    before = dict(model.get_params())
    assert model.fit(TEXTS, LABELS) is model
    after = model.get_params()
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def test_random_state(fitted: ULMFiTClassifier) -> None:
    again = new().fit(TEXTS, LABELS)
    assert np.array_equal(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    generator = np.random.RandomState(0)
    drawn = [new(epochs=1, random_state=generator).fit(TEXTS, LABELS) for _ in range(2)]
    one, two = (model.predict_proba(TEXTS) for model in drawn)
    assert not np.array_equal(one, two), "a generator goes on"
    assert np.array_equal(one, new(epochs=1).fit(TEXTS, LABELS).predict_proba(TEXTS))
    np.random.seed(3)
    first = new(epochs=1, random_state=None).fit(TEXTS, LABELS).predict_proba(TEXTS)
    np.random.seed(3)
    second = new(epochs=1, random_state=None).fit(TEXTS, LABELS).predict_proba(TEXTS)
    assert np.array_equal(first, second)


def test_clone_pickle_and_set_params(fitted: ULMFiTClassifier, pretrained: ULMFiT) -> None:
    twin = clone(fitted)
    assert not hasattr(twin, "model_") and twin.get_params() == fitted.get_params()
    assert twin.set_params(lr=0.5).lr == 0.5 and fitted.lr == 0.03
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert again.predict(TEXTS[:2]).tolist() == ["good", "bad"]
    assert clone(new(language_model=pretrained, model_options=None)).language_model is not None


def test_search_and_cross_validation() -> None:
    search = GridSearchCV(new(), {"lr": [1e-7, 0.03]}, cv=2).fit(TEXTS, LABELS)
    assert search.best_params_ == {"lr": 0.03} and search.best_score_ > 0.9
    assert search.predict(["a fine film", "a dull film"]).tolist() == ["good", "bad"]
    assert cross_val_score(new(), TEXTS, LABELS, cv=2).mean() > 0.9
    assert (cross_val_predict(new(), TEXTS, LABELS, cv=2) == np.array(LABELS)).mean() > 0.9


def test_stands_at_the_end_of_a_pipeline() -> None:
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, new(epochs=1))
    pipeline.set_params(ulmfitclassifier__epochs=12).fit([t.upper() for t in TEXTS], LABELS)
    assert pipeline.score(TEXTS, LABELS) == 1.0


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([7, -2], [-2, 7]),
        ([True, False], [False, True]),
        ([1.0, 0.0], [0.0, 1.0]),
        (["b", "a"], ["a", "b"]),
    ],
    ids=["int", "bool", "float", "str"],
)
def test_labels_of_any_kind(labels: list, classes: list) -> None:
    y = np.array(labels * 30)
    model = new().fit(np.array(TEXTS), y)
    assert model.classes_.tolist() == classes and model.classes_.dtype == y.dtype
    assert model.predict(TEXTS).dtype == y.dtype and model.score(TEXTS, y) == 1.0


MISSING = [None, float("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), ""]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_a_missing_label_is_named_with_its_row(fitted: ULMFiTClassifier, missing) -> None:
    what = "empty" if isinstance(missing, str) else ".*"
    labels = [*LABELS[:19], missing]
    for y in (labels, pd.Series(labels), pd.Series(labels, dtype=object), np.array(labels, object)):
        for use in (new().fit, fitted.score):
            with pytest.raises(
                ValueError, match=rf"y\[19\] is {what}, expected a label; fill it in"
            ):
                use(TEXTS[:20], y)


def test_a_missing_label_among_numbers_or_in_a_frame_is_named() -> None:
    numbers = pd.Series([1, 0] * 9 + [1, None])
    for y in (numbers, numbers.convert_dtypes(), numbers.to_numpy(), pa.array([1, 0, None])):
        with pytest.raises(ValueError, match=r"y\[(19|2)\] is (nan|<NA>|None), expected a label"):
            new().fit(TEXTS[: len(y)], y)
    frame = pd.DataFrame({"label": ["good", "bad", None]})
    with (
        pytest.warns(UserWarning, match="column-vector"),
        pytest.raises(ValueError, match=r"y\[2\] is (nan|None), expected a label"),
    ):
        new().fit(TEXTS[:3], frame)


@pytest.mark.parametrize(
    "y",
    [
        [True, False] * 30,
        np.array([True, False] * 30, dtype=object),
        pd.Series([True, False] * 30),
        pd.Series([True, False] * 30, dtype="boolean"),
        pd.Series([True, False] * 30, dtype=object),
        pd.Series([True, False] * 30, dtype="category"),
        pa.array([True, False] * 30),
        pa.chunked_array([[True, False]] * 30),
    ],
    ids=lambda y: f"{type(y).__name__}-{getattr(y, 'dtype', '')}",
)
def test_booleans_are_labels_in_every_column(y) -> None:
    model = new().fit(TEXTS, y)
    assert model.classes_.dtype == bool and model.classes_.tolist() == [False, True]
    assert model.predict(TEXTS[:2]).tolist() == [True, False] and model.score(TEXTS, y) == 1.0
    assert model.model_.labels == [False, True]


def test_a_table_is_read_by_its_column_of_texts(fitted: ULMFiTClassifier) -> None:
    frame = pd.DataFrame({"label": LABELS, "text": TEXTS})
    for table in (frame, frame[["text"]], pa.table(frame), {"text": TEXTS}):
        found = new().fit(table, LABELS)
        assert found.predict(table).tolist() == fitted.predict(TEXTS).tolist()
        assert np.array_equal(found.predict_proba(table), fitted.predict_proba(TEXTS))
        assert found.score(table, LABELS) == 1.0
    assert cross_val_score(new(), frame, frame["label"], cv=2).mean() > 0.9
    twice = pd.concat([frame, frame], axis=1)
    for use in (lambda X: new().fit(X, LABELS), fitted.predict, fitted.predict_proba):
        with pytest.raises(ValueError, match="the column 'text' 2 times; its columns are 'label'"):
            use(twice)
        with pytest.raises(ValueError, match="no column 'text'; its columns are 'label'; pass the"):
            use(frame[["label"]])
        with pytest.raises(ValueError, match="X has 0 samples, expected at least one text"):
            use(frame[:0])


def test_a_label_never_seen_counts_as_wrong(fitted: ULMFiTClassifier) -> None:
    truth = ["good", "bad", "odd", "good"]
    assert fitted.score(TEXTS[:4], truth) == 0.5


def test_texts_of_other_words_and_without_words(fitted: ULMFiTClassifier) -> None:
    scores = fitted.predict_proba(["", "wholly unheard-of words", "\N{SNOWMAN}", " "])
    assert scores.shape == (4, 2) and np.isfinite(scores).all()


def test_starts_from_a_language_model_and_leaves_it_alone(
    pretrained: ULMFiT, tmp_path: Path
) -> None:
    pretrained.save(tmp_path / "model")
    before = pretrained.perplexity(TEXTS)
    frozen = {"epochs": 1, "gradual_unfreezing": 1, "model_options": None}  # the head alone
    for start in (pretrained, tmp_path / "model", str(tmp_path / "model")):
        model = new(language_model=start, **frozen).fit(TEXTS, LABELS).model_
        weight = pretrained.language_model.encoder.encoder.weight
        assert weight.equal(model.classifier.encoder.encoder.weight)
    options = {"lm_epochs": 2, "lm_options": {"batch_size": 8}}
    tuned = new(language_model=pretrained, fine_tune_lm=True, **frozen, **options)
    histories = tuned.fit(TEXTS, LABELS).model_.histories
    assert [len(history.epochs) for history in histories.values()] == [1, 2, 1]
    assert pretrained.perplexity(TEXTS) == before and pretrained.classifier is None
    scratch = new(fine_tune_lm=True, **options).fit(TEXTS, LABELS)
    assert list(scratch.model_.histories) == ["pretrain", "fit_classifier"]


def test_options_reach_their_stage() -> None:
    model = new(preset="fastai_v2", classifier_options={"max_len": 3}, batch_size=7, epochs=5)
    classifier = model.fit(TEXTS, LABELS).model_.classifier
    assert classifier.max_len == 3 and model.model_.settings.preset.name == "fastai_v2"
    assert classifier.encoder.config.weight_p == pytest.approx(0.05), "0.5 times drop_mult"
    assert len(model.model_.histories["fit_classifier"].losses) == 5 * 9


class NotAnArray:
    """Numbers that NumPy can be made of, and no more."""

    def __init__(self, values) -> None:
        self.values = np.array(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


def scores(model: ULMFiTClassifier) -> np.ndarray:
    return model.predict_proba(TEXTS)


SHORT = {"epochs": 2, "lr": 0.03, "batch_size": 8}
DRAWN = np.random.default_rng(0).integers(1, 4, 60).astype(float)


def test_weights_of_samples_of_any_kind_and_left_as_they_were() -> None:
    expected = scores(new(**SHORT).fit(TEXTS, LABELS, DRAWN))
    series = pd.Series(DRAWN, index=range(60, 0, -1))
    for weights in (DRAWN.tolist(), series, NotAnArray(DRAWN), DRAWN.astype(np.float32) * 2):
        assert np.array_equal(scores(new(**SHORT).fit(TEXTS, LABELS, weights)), expected)
    before = DRAWN.copy()
    new(**SHORT, class_weight="balanced").fit(TEXTS, LABELS, sample_weight=DRAWN)
    assert np.array_equal(DRAWN, before)
    plain = scores(new(**SHORT).fit(TEXTS, LABELS))
    assert not np.allclose(expected, plain, atol=1e-4)
    assert np.array_equal(scores(new(**SHORT).fit(TEXTS, LABELS, np.ones(60))), plain)


@pytest.mark.parametrize("class_weight", [None, "balanced", {"good": 3}], ids=str)
def test_weights_of_0_and_1_are_the_samples_that_are_there(class_weight) -> None:
    """What scikit-learn's check_sample_weight_equivalence asks, with texts."""
    there = np.random.default_rng(1).random(60) < 0.6
    texts, labels = ([x for x, own in zip(xs, there, strict=True) if own] for xs in (TEXTS, LABELS))
    options = {**SHORT, "class_weight": class_weight}
    removed = new(**options).fit(texts, labels, DRAWN[there])
    assert np.array_equal(scores(new(**options).fit(TEXTS, LABELS, DRAWN * there)), scores(removed))


@pytest.mark.parametrize(
    ("labels", "class_weight"),
    [
        ([7, -2], {7: 3}),
        ([7, -2], {"7": 3}),
        ([True, False], {True: 3}),
        ([1.0, 0.0], {1: 3}),
        (["b", "a"], {np.str_("b"): 3}),
        (["b", "a"], {"a": 1, "b": 3, "c": 9}),
    ],
    ids=repr,
)
def test_weights_of_classes_are_those_of_their_samples(labels, class_weight) -> None:
    y = np.array(labels * 30)
    found = new(**SHORT, class_weight=class_weight).fit(TEXTS, y)
    by_sample = new(**SHORT).fit(TEXTS, y, sample_weight=np.where(y == labels[0], 3.0, 1.0))
    assert np.array_equal(scores(found), scores(by_sample))
    assert found.class_weight is class_weight and clone(found).class_weight == class_weight


def test_a_search_over_weights_of_classes() -> None:
    texts = ["a good film", "a good story", "a bad film", "a bad story", "a bad song"] * 24
    # Of the good ones the fewer are called rare: without weights none is found.
    labels = ["rare" if "good" in text and n % 3 == 0 else "common" for n, text in enumerate(texts)]
    search = GridSearchCV(
        new(epochs=8),
        {"class_weight": [None, "balanced", {"rare": 8.0, "common": 1.0}]},
        scoring=make_scorer(recall_score, pos_label="rare"),
        cv=2,
    ).fit(texts, labels)
    assert search.cv_results_["mean_test_score"][0] < 0.2 and search.best_score_ > 0.8
    assert search.best_params_["class_weight"] is not None
    assert balanced_accuracy_score(labels, search.predict(texts)) > 0.7


def test_weights_of_samples_through_a_pipeline_and_a_search() -> None:
    expected = scores(new(**SHORT).fit(TEXTS, LABELS, DRAWN))
    same = FunctionTransformer(lambda texts: texts)
    pipeline = Pipeline([("same", same), ("clf", new(**SHORT))])
    pipeline.fit(TEXTS, LABELS, clf__sample_weight=DRAWN)
    assert np.array_equal(scores(pipeline), expected)
    search = GridSearchCV(new(**SHORT), {"class_weight": [None, "balanced"]}, cv=2)
    search.fit(TEXTS, LABELS, sample_weight=DRAWN)
    with config_context(enable_metadata_routing=True):
        own = new(**SHORT).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        routed = Pipeline([("same", same), ("clf", own)])
        routed.fit(TEXTS, LABELS, sample_weight=DRAWN)
        again = GridSearchCV(own, {"class_weight": [None, "balanced"]}, cv=2)
        again.fit(TEXTS, LABELS, sample_weight=DRAWN)
    assert np.array_equal(scores(routed), expected)
    best = clone(search.best_estimator_).fit(TEXTS, LABELS, DRAWN)
    assert np.array_equal(scores(search), scores(best))
    assert np.array_equal(scores(again), scores(search))


def test_wrong_weights_are_refused_before_the_language_model_is_trained(monkeypatch) -> None:
    monkeypatch.setattr(ULMFiT, "pretrain", None)
    with pytest.raises(ValueError, match="which is no class of the texts"):
        new(fine_tune_lm=True, class_weight={"more": 2}).fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("fit", "error", "message"),
    [
        (lambda: new().fit(TEXTS, ["good"] * 60), ValueError, r"the one class \['good'\]"),
        (lambda: new().fit(TEXTS, LABELS[:3]), ValueError, "inconsistent numbers of samples"),
        (lambda: new().fit([], []), ValueError, "X has 0 samples"),
        (lambda: new().fit("a fine film", ["a"]), TypeError, "X is the string 'a fine film'"),
        (lambda: new().fit([1, 2], ["a", "b"]), TypeError, r"X\[0\] is 1 \(int\), expected a str"),
        (lambda: new().fit(["a", None], ["a", "b"]), TypeError, r"X\[1\] is None"),
        (lambda: new().fit(np.array([TEXTS]).T, LABELS), ValueError, r"X has shape \(60, 1\)"),
        (lambda: new().fit(TEXTS, np.linspace(0, 1, 60)), ValueError, "Unknown label type"),
        (lambda: new().fit(TEXTS, np.eye(60)), ValueError, "y should be a 1d array"),
        (lambda: new(language_model=3, model_options=None).fit(TEXTS, LABELS), TypeError,
         "language_model is 3 .int., expected a ULMFiT, the directory of one, or None"),
        (lambda: new(language_model=ULMFiT()).fit(TEXTS, LABELS), ValueError,
         "model_options is given beside language_model"),
        (lambda: new(language_model=ULMFiT(), model_options=None).fit(TEXTS, LABELS), ValueError,
         "language_model has no language model yet"),
        (lambda: new(language_model="nowhere", model_options=None).fit(TEXTS, LABELS),
         FileNotFoundError, "nowhere is no directory"),
        (lambda: new(lr=-1.0).fit(TEXTS, LABELS), ValueError, "lr is -1.0"),
        (lambda: new(class_weight={"godo": 2}).fit(TEXTS, LABELS), ValueError,
         "class_weight has 'godo', which is no class of the texts; their classes are .'bad', 'g"),
        (lambda: new(class_weight="auto").fit(TEXTS, LABELS), ValueError,
         "class_weight is 'auto' .str., expected .balanced. or a mapping"),
        (lambda: new().fit(TEXTS, LABELS, [1.0] * 59), ValueError,
         "there are 59 values of sample_weight for 60 texts"),
        (lambda: new().fit(TEXTS, LABELS, np.ones((60, 2))), ValueError,
         r"sample_weight has shape \(60, 2\)"),
        (lambda: new().fit(TEXTS, LABELS, [-1.0] * 60), ValueError,
         r"sample_weight\[0\] is -1.0, expected"),
        (lambda: new(classifier_options={"class_weight": "balanced"}).fit(TEXTS, LABELS),
         ValueError, "classifier_options has 'class_weight', expected none; pass class_weight="),
        (lambda: new(classifier_options={"weight_column": "w"}).fit(TEXTS, LABELS), ValueError,
         "classifier_options has 'weight_column', expected none; pass sample_weight to fit"),
        (lambda: new().predict(TEXTS), NotFittedError, "is not fitted yet"),
        (lambda: new().score(TEXTS, LABELS), NotFittedError, "is not fitted yet"),
    ],
    ids=[
        "one class", "lengths", "empty", "string", "numbers", "missing", "two columns",
        "continuous", "two-dimensional y", "no model", "both options", "untrained", "no directory",
        "bad rate", "unknown class", "unknown word", "few weights", "two columns of weights",
        "negative weight", "option", "column", "predict first", "score first",
    ],
)  # fmt: skip
def test_refuses(fit, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit()


def test_without_scikit_learn_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import ulmfit_fast.ulmfit.estimator\n"
        "try: import ulmfit_fast.ulmfit.sklearn_classifier\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'ulmfit-fast[sklearn]'" in found.stdout, found.stderr
