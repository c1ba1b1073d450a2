"""Scores of classifiers, as scikit-learn computes them, and their resamples."""

import numpy as np
import pytest
from sklearn import metrics

from ulmfit_fast.training import scores
from ulmfit_fast.training.scores import (
    BINS,
    SCORES,
    bootstrap,
    class_scores,
    confusion_matrix,
    reliability,
    scores_of,
)


def answers(rows, classes, seed=0, answered=None):
    """Return classes of texts and probabilities that have something to do with them."""
    draw = np.random.default_rng(seed)
    truth = draw.choice(classes, rows, p=draw.dirichlet(np.full(classes, 2.0)))
    chances = draw.dirichlet(np.full(classes, 0.3), rows)
    chances[np.arange(rows), truth] += 0.4
    if answered is not None:
        chances[:, answered:] *= 1e-6
    return truth, (chances / chances.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "classes", "answered"), [(1, 2, None), (50, 2, None), (300, 7, 3), (40, 30, None)]
)
def test_they_are_those_of_scikit_learn(rows, classes, answered):
    truth, chances = answers(rows, classes, answered=answered)
    predicted = chances.argmax(axis=1)
    found = scores_of(truth, chances)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    for name in ("macro", "weighted"):
        expected = metrics.f1_score(truth, predicted, average=name, zero_division=0)
        assert found[f"{name}_f1"] == pytest.approx(expected)
    # scikit-learn warns where the sum of float32 is not 1 in float64.
    exact = chances.astype(np.float64) / chances.sum(axis=1, keepdims=True, dtype=np.float64)
    expected = metrics.log_loss(truth, exact, labels=range(classes))
    assert found["log_loss"] == pytest.approx(expected, rel=1e-6)
    confusion = confusion_matrix(truth, predicted, classes)
    assert np.array_equal(
        confusion, metrics.confusion_matrix(truth, predicted, labels=range(classes))
    )
    parts = metrics.precision_recall_fscore_support(
        truth, predicted, labels=range(classes), zero_division=np.nan
    )
    for own, expected in zip(class_scores(confusion), parts, strict=False):
        np.testing.assert_allclose(own, expected)


def test_the_calibration_error_is_the_sum_over_bins_written_out():
    truth, chances = answers(400, 4)
    sure, right = chances.max(axis=1).astype(float), chances.argmax(axis=1) == truth
    expected = 0.0
    for n, (count, probability, share) in enumerate(reliability(truth, chances)):
        inside = (sure >= n / BINS) & (sure < (n + 1) / BINS)
        assert count == inside.sum()
        if count:
            assert probability == pytest.approx(sure[inside].mean())
            assert share == pytest.approx(right[inside].mean())
            expected += count / 400 * abs(sure[inside].mean() - right[inside].mean())
    assert scores_of(truth, chances)["calibration_error"] == pytest.approx(expected)
    assert expected > 0.01


def test_a_sure_answer_that_is_wrong_costs_no_infinity():
    found = scores_of(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert found["log_loss"] == pytest.approx(-np.log(np.finfo(np.float32).eps) / 2, rel=1e-6)
    assert reliability(np.array([1]), np.array([[0.0, 1.0]]))[-1] == (1, 1.0, 1.0)


def test_a_resample_is_the_scores_of_the_rows_drawn():
    (truth, first), (_, second) = answers(60, 3), answers(60, 3, seed=1)
    found = bootstrap(truth, [first, second], resamples=5, seed=7)
    draw = np.random.default_rng(7)
    for n in range(5):
        rows = draw.integers(0, 60, 60)
        for position, chances in enumerate((first, second)):
            expected = scores_of(truth[rows], chances[rows])
            assert found[position, n] == pytest.approx([expected[name] for name in SCORES])
    assert np.array_equal(found, bootstrap(truth, [first, second], resamples=5, seed=7))


def test_many_rows_have_fewer_resamples(monkeypatch):
    monkeypatch.setattr(scores, "_MOST_DRAWN", 2_000)
    monkeypatch.setattr(scores, "_FEWEST_RESAMPLES", 30)
    truth, chances = answers(50, 2)
    for rows, expected in ((10, 100), (50, 40)):
        found = bootstrap(truth[:rows], [chances[:rows]], resamples=100)
        assert found.shape == (1, expected, len(SCORES))
    monkeypatch.setattr(scores, "_MOST_DRAWN", 1)
    assert bootstrap(truth, [chances]).shape[1] == 30
