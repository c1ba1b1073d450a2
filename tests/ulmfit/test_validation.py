"""Which texts are held out, what a classifier says of them, and what is kept of that."""

import json
import logging
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

import ulmfit_fast as uf
from ulmfit_fast.ulmfit.validation import divided, positions_of, stratified_split

SIZES = {"emb_size": 8, "hidden_size": 10, "num_layers": 2, "min_freq": 1, "progress": False}
WORDS = {"good": "fine great superb".split(), "bad": "dull poor awful".split()}
TEXTS = [f"a {WORDS[y][n % 3]} film number {n}" for n in range(30) for y in ("good", "bad")]
LABELS = ["good", "bad"] * 30
FIT = {"epochs": 2, "batch_size": 8}


def new(**options):
    return uf.ULMFiT(**SIZES, **options)


@pytest.fixture(scope="module")
def pretrained():
    return new(seed=3).pretrain(TEXTS, epochs=1, batch_size=8, bptt=10)


@pytest.fixture(scope="module")
def fitted(pretrained):
    return pretrained.copy().fit_classifier(TEXTS, LABELS, **FIT, valid=0.2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4)), min_size=1, max_size=80),
    st.floats(0.01, 0.9),
    st.integers(0, 3),
)
def test_copies_are_on_one_side_and_every_class_is_trained_on(rows, share, seed):
    texts = [(" Text %d", "TEXT %d\n")[n % 2] % number for n, (number, _) in enumerate(rows)]
    labels = [label for _, label in rows]
    train, held_out = stratified_split(texts, labels, share, seed)
    assert sorted([*train, *held_out]) == list(range(len(rows)))
    assert train == sorted(train) and held_out == sorted(held_out)
    sides = [{texts[n].strip().casefold() for n in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    # Copies may have several labels, and then go with the first one's.
    first = {
        text.strip().casefold(): label
        for text, label in zip(texts[::-1], labels[::-1], strict=True)
    }
    assert {first[text] for text in sides[1]} <= {first[text] for text in sides[0]}
    assert len(held_out) <= round(share * len(rows))
    assert (train, held_out) == stratified_split(texts, labels, share, seed)


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_each_class_has_its_share(share):
    counts = {"a": 200, "b": 60, "c": 7, "d": 1}
    labels = [label for label, count in counts.items() for _ in range(count)]
    texts = [f"text {n}" for n in range(len(labels))]
    held_out = Counter(labels[n] for n in stratified_split(texts, labels, share)[1])
    for label, count in counts.items():
        assert abs(held_out[label] - share * count) < 1 and held_out["d"] == 0
    assert held_out.total() == round(share * 267)
    # Of 77 classes with three texts each none has half a text to give, and 35 give one.
    many = [n % 77 for n in range(231)]
    texts = [f"text {n}" for n in range(231)]
    seeds = [{many[n] for n in stratified_split(texts, many, 0.15, seed)[1]} for seed in (0, 1)]
    assert [len(found) for found in seeds] == [35, 35] and seeds[0] != seeds[1]


def test_too_few_texts_hold_nothing_out_and_say_so(caplog, pretrained):
    for texts, labels in (
        (["a", "b"], ["x", "y"]),
        (["a"] * 20 + ["b"] * 20, ["x"] * 20 + ["y"] * 20),
    ):
        caplog.clear()
        parts = divided(texts, labels, valid=0.15)
        assert parts.held_out is None and parts.train.texts == texts
        assert f"no text of {len(texts)} is held out (they are too few, or copies" in caplog.text
    model = pretrained.copy().fit_classifier(
        ["a fine film"] * 4 + ["dull"] * 4, ["x"] * 4 + ["y"] * 4, **FIT, valid=0.15, patience=1,
        refit=True,
    )  # fmt: skip
    assert model.validation is None and list(model.histories)[-1] == "fit_classifier"
    assert model.baselines.counts == (4, 4)


def test_labels_that_are_no_classes_are_not_called_too_few(caplog):
    texts = [f"text {n}" for n in range(60)]
    assert divided(texts, texts, valid=0.15).held_out is None and caplog.text == ""


def test_a_class_with_one_text_is_trained_on_and_named(caplog, pretrained):
    caplog.set_level(logging.INFO, "ulmfit_fast.progress")
    model = pretrained.copy().fit_classifier(
        [*TEXTS, "so so"], [*LABELS, "middling"], **FIT, valid=0.2
    )
    assert "12 of 61 texts are held out to measure on" in caplog.text
    assert "none of them is of 'middling': too few texts, or none that is marked" in caplog.text
    assert [own.support for own in model.validation.classes] == [6, 6, 0]
    assert "classifier, epoch 2/2: loss " in caplog.text
    assert ", accuracy 0." in caplog.text and ", macro F1 0." in caplog.text


def write(path, rows, header="text,label,is_valid,weight"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_what_is_held_out_comes_from_a_share_a_file_a_column_or_texts(tmp_path, caplog):
    marks = ["True", "false", "1", "0.0", " TRUE "] * 12
    rows = list(zip(TEXTS, LABELS, marks, range(60), strict=True))
    data = write(tmp_path / "data.csv", rows)
    parts = divided(data, valid_column="is_valid")
    expected = [mark.strip().lower() in ("true", "1") for mark in marks]
    assert parts.held_out.texts == [t for t, mark in zip(TEXTS, expected, strict=True) if mark]
    assert parts.held_out.labels == [y for y, mark in zip(LABELS, expected, strict=True) if mark]
    assert parts.train.texts == [t for t, mark in zip(TEXTS, expected, strict=True) if not mark]
    assert parts.everything.texts == TEXTS and parts.train.weights is None
    weighed = divided(data, valid_column="is_valid", weight_column="weight")
    for side, mark in ((weighed.train, False), (weighed.held_out, True)):
        own = [n for n in range(60) if expected[n] is mark]
        # Weights are proportions.
        np.testing.assert_allclose(side.weights, np.array(own) / 59)
    table = {"text": TEXTS, "label": LABELS, "is_valid": expected}
    assert divided(table, valid_column="is_valid").held_out == parts.held_out
    other = write(tmp_path / "other.csv", rows[:7])
    for valid in (
        other,
        str(other),
        (TEXTS[:7], LABELS[:7]),
        {"text": TEXTS[:7], "label": LABELS[:7]},
    ):
        caplog.clear()
        parts = divided(TEXTS[5:], LABELS[5:], valid=valid)
        assert parts.train.texts == TEXTS[5:] and parts.held_out.texts == TEXTS[:7]
        assert parts.everything.labels == [*LABELS[5:], *LABELS[:7]]
        assert "2 of the 7 texts of valid are among those to train on" in caplog.text
    numbers = write(tmp_path / "numbers.csv", [("a", 1, 1, 1), ("b", 0, 1, 1), ("c", "x", 1, 1)])
    assert divided(["d", "e"], [0, 1], valid=numbers).everything.labels == [0, 1, 1, 0, "x"]
    weights = divided(TEXTS[5:], LABELS[5:], [1, 3] * 27 + [4], valid=other).everything.weights
    np.testing.assert_allclose(weights[-7:], weights[:55].mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "valid is None and valid_column None, expected one of them"),
        ({"valid": 0.1, "valid_column": "x"}, "valid is 0.1 and valid_column 'x', expected one"),
        ({"valid": 0.0}, "valid is 0.0, expected a share between 0 and 1, texts with labels or a"),
        ({"valid": True}, "valid is True, expected a share"),
        ({"valid": 15}, "valid is 15, expected a share"),
        (
            {"valid_column": "x"},
            r"valid_column is 'x' beside labels, .* pass valid=\(texts, labels",
        ),
        ({"valid": "none.csv"}, r"none.csv"),
    ],
    ids=str,
)
def test_what_cannot_be_held_out_is_refused(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        divided(TEXTS, LABELS, **options)


def test_marks_that_are_none_are_refused(tmp_path):
    rows = [("a fine film", "good", "yes", 1), ("dull", "bad", "1", 1)]
    data = write(tmp_path / "data.csv", rows)
    with pytest.raises(ValueError, match=r"'is_valid' is 'yes', expected True or False, 1 or 0"):
        divided(data, valid_column="is_valid")
    skipping = {"valid_column": "is_valid", "on_error": "skip"}
    with pytest.raises(ValueError, match=r"'is_valid' marks all of the 1 texts, expected some to"):
        divided(data, **skipping)
    with pytest.raises(ValueError, match=r"data.csv has no column 'held'; its columns are 'text'"):
        divided(data, valid_column="held")


def test_labels_that_the_model_does_not_know_are_named():
    assert positions_of([1, "2", True], ["1", "2", "True"]) == [0, 1, 2]
    message = (
        r"3 of 5 texts have labels that the model does not know, 'x', 'y'; its labels are "
        r"\['a', 'b'\]; mend or drop these rows"
    )
    with pytest.raises(ValueError, match=message):
        positions_of(["a", "x", "y", "x", "b"], ["a", "b"])
    with pytest.raises(ValueError, match=r"'l0', 'l1', .*'l4' and 2 more; its labels"):
        positions_of([f"l{n}" for n in range(7)], ["a"])


def test_the_numbers_are_those_of_the_rows_held_out(fitted):
    train, held_out = stratified_split(TEXTS, LABELS, 0.2, seed=3)
    found, history = fitted.validation, fitted.histories["fit_classifier"]
    texts, truth = [TEXTS[n] for n in held_out], [LABELS[n] for n in held_out]
    predicted = fitted.predict(texts)
    assert found.rows == 12 and found.labels == ["bad", "good"]
    assert found.scores["accuracy"].value == pytest.approx(accuracy_score(truth, predicted))
    expected = f1_score(truth, predicted, average="macro")
    assert found.scores["macro_f1"].value == pytest.approx(expected)
    assert history.valid_scores[-1] == {
        "accuracy": found.scores["accuracy"].value, "macro_f1": found.scores["macro_f1"].value,
    }  # fmt: skip
    assert history.valid_losses[-1] == pytest.approx(found.scores["log_loss"].value, rel=1e-4)
    assert fitted.evaluate(texts, truth) == found
    # The bag of words has read the same rows, and no others.
    other = found.baseline("bag of words").scores["accuracy"].value
    again = uf.ULMFiT(**SIZES).fit_classifier(
        [TEXTS[n] for n in train], [LABELS[n] for n in train], epochs=1, baseline=True
    )
    own = again.baselines.predict_proba(texts)["bag of words"].argmax(axis=1)
    assert other == np.mean([["bad", "good"][n] == y for n, y in zip(own, truth, strict=True)])


def same_weights(a, b):
    own, other = (list(model.classifier.state_dict().values()) for model in (a, b))
    return all(torch.equal(x, y) for x, y in zip(own, other, strict=True))


def test_holding_out_is_training_on_the_other_rows(fitted, pretrained):
    train, _ = stratified_split(TEXTS, LABELS, 0.2, seed=3)
    plain = pretrained.copy().fit_classifier(
        [TEXTS[n] for n in train], [LABELS[n] for n in train], **FIT
    )
    assert same_weights(plain, fitted) and plain.validation is None
    assert plain.baselines.counts == (24, 24) and plain.baselines.bag_of_words is None


def test_refit_is_a_fit_to_all_rows_in_as_many_epochs_as_were_best(pretrained, tmp_path):
    model = pretrained.copy(checkpoint_dir=tmp_path)
    options = {"valid": 0.2, "lr": 0.3, "class_weight": {"good": 3}}
    model.fit_classifier(TEXTS, LABELS, epochs=5, batch_size=8, **options, refit=True)
    losses = model.histories["fit_classifier"].valid_losses
    best = int(np.argmin(losses)) + 1
    assert len(losses) == 5 and best < 5
    plain = pretrained.copy().fit_classifier(
        TEXTS, LABELS, epochs=best, batch_size=8, lr=0.3, class_weight={"good": 3}, baseline=True
    )
    assert same_weights(plain, model)
    assert model.baselines.counts == (30, 30) and model.validation.rows == 12
    assert model.validation.notes == [
        "The classifier was then fitted anew to all 60 texts, in 4 epochs; the numbers are those "
        "of the one before."
    ]
    bags = [own.baselines.predict_proba(TEXTS)["bag of words"] for own in (plain, model)]
    assert np.array_equal(*bags)
    loaded = uf.ULMFiT.load(tmp_path, progress=False)
    assert same_weights(loaded, model) and loaded.validation == model.validation


def test_it_is_kept_with_the_model_and_texts_only_for_oneself(fitted, tmp_path):
    assert fitted.validation.mistakes, "nothing is shown"
    fitted.save(tmp_path / "own")
    assert uf.ULMFiT.load(tmp_path / "own", progress=False).validation == fitted.validation
    fitted.save_pretrained(tmp_path / "hub")
    text = (tmp_path / "hub" / "validation.json").read_text()
    assert not any(own.text in text for own in fitted.validation.mistakes)
    loaded = uf.ULMFiT.load(tmp_path / "hub", progress=False).validation
    assert loaded == fitted.validation.without_texts()
    values = json.loads(text)
    values["rows"] = "many"
    (tmp_path / "hub" / "validation.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"validation.json: rows is 'many', expected a whole numb"):
        uf.ULMFiT.load(tmp_path / "hub")
    (tmp_path / "hub" / "validation.json").write_text("{")
    with pytest.raises(ValueError, match=r"validation.json is damaged: .* is not valid JSON"):
        uf.ULMFiT.load(tmp_path / "hub")
    (tmp_path / "hub" / "validation.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no validation\.json, so it is no complete model"):
        uf.ULMFiT.load(tmp_path / "hub")


def test_another_stage_forgets_it(fitted):
    model = fitted.copy().fine_tune_lm(TEXTS, epochs=1, batch_size=8, bptt=10)
    assert model.validation is None and model.baselines is None
    with pytest.raises(ValueError, match="there is no classifier yet; call fit_classifier"):
        model.evaluate(TEXTS, LABELS)


def test_a_killed_refit_goes_on_and_ends_the_same(pretrained, tmp_path, monkeypatch):
    options = {"epochs": 3, "batch_size": 8, "valid": 0.2, "keep_best": True, "refit": True}
    whole = pretrained.copy().fit_classifier(TEXTS, LABELS, **options)

    class Died(BaseException):
        pass

    class Mortal(uf.Run):
        at = ("fit_classifier", 0)

        def report(self, reading):
            super().report(reading)
            if (self.stage, self._state.steps) == self.at:
                raise Died

    def fit(run):
        return pretrained.copy().fit_classifier(TEXTS, LABELS, **options, run=run)

    for n, at in enumerate(
        [("fit_classifier", 8), ("refit_classifier", 2), ("refit_classifier", 5)]
    ):
        run = Mortal(tmp_path, checkpoint_steps=2, resume=n > 0)
        run.at = at
        with pytest.raises(Died):
            fit(run)
    with pytest.raises(FileExistsError, match="holds a refit_classifier run that did not come to"):
        fit(uf.Run(tmp_path))
    again = fit(uf.Run(tmp_path, checkpoint_steps=2, resume=True))
    assert same_weights(whole, again) and whole.validation == again.validation
    for stage, history in whole.histories.items():
        assert again.histories[stage].losses == history.losses


def test_without_scikit_learn_it_is_said_and_left_out(pretrained, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    model = pretrained.copy().fit_classifier(TEXTS, LABELS, **FIT, valid=0.2)
    assert "There is no bag of words to compare with" in caplog.text
    assert [other.name for other in model.validation.baselines] == ["majority class"]
    assert "pip install 'ulmfit-fast[sklearn]'" in str(model.validation)
    caplog.clear()
    pretrained.copy().fit_classifier(TEXTS, LABELS, **FIT)
    assert "bag of words" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 2}, "patience is 2, which goes by the validation loss, and no text is held"),
        ({"keep_best": True}, "keep_best is True, which goes by the validation loss, and no text"),
        ({"refit": True}, "refit is True, which takes the best number of epochs, and no text is"),
        ({"valid_share": 0.1}, "valid_share is 0.1, which is for language models; pass valid in"),
        ({"valid": (["a film"], ["odd"])}, "1 of 1 texts have labels that the model does not know"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(pretrained, options, message):
    with pytest.raises(ValueError, match=message):
        pretrained.copy().fit_classifier(TEXTS, LABELS, **FIT, **options)


def test_a_dry_run_fits_no_bag_of_words(pretrained, monkeypatch):
    monkeypatch.setattr("ulmfit_fast.ulmfit.baselines.BagOfWords.fit", None)
    dry = uf.runs.DryRun(steps=1)
    with dry.measuring():
        pretrained.copy().fit_classifier(TEXTS, LABELS, **FIT, valid=0.2, run=dry)
    assert dry.estimate.epoch_steps == (6, 6)


def test_what_is_read_to_measure_on_is_not_written_over(pretrained, tmp_path):
    rows = [(TEXTS[0], "good", 1, 1), (TEXTS[1], "bad", 1, 1)]
    data = write(tmp_path / "valid.csv", rows)
    with pytest.raises(FileExistsError, match=r"is read, and would be written over"):
        pretrained.copy().fit_classifier(TEXTS, LABELS, **FIT, valid=tmp_path, run=uf.Run(tmp_path))
    assert list(tmp_path.iterdir()) == [data]


def test_an_ensemble_is_evaluated_as_one(fitted, pretrained, tmp_path):
    other = pretrained.copy(seed=9).fit_classifier(TEXTS, LABELS, **FIT)
    both = uf.Ensemble([other, fitted])
    found = both.evaluate(TEXTS, LABELS)
    assert [own.name for own in found.baselines] == ["bag of words", "majority class"]
    predicted = both.predict(TEXTS)
    assert found.scores["accuracy"].value == pytest.approx(accuracy_score(LABELS, predicted))
    both.save(tmp_path)
    assert uf.Ensemble.load(tmp_path, progress=False).evaluate(TEXTS, LABELS) == found


def test_an_estimator_of_scikit_learn_leaves_it_to_scikit_learn():
    for name, value in {"valid": 0.2, "valid_column": "is_valid", "refit": True}.items():
        model = uf.ULMFiTClassifier(classifier_options={name: value}, model_options=SIZES)
        with pytest.raises(
            ValueError, match=rf"classifier_options has '{name}', expected none; ho"
        ):
            model.fit(TEXTS, LABELS)
