"""The benchmark of predictions: checked, timed, and without int8 where there is none."""

import pytest

from benchmarks.harness.settings import Settings
from benchmarks.questions import predict
from ulmfit_fast import ULMFiT


def run(**values):
    return predict.run(Settings(tiny=True, repeats=2, say=lambda line: None, **values))


def test_rows_are_checked_and_timed() -> None:
    rows = run()
    names = [row.implementation for row in rows]
    for name in (predict.ONE, predict.UNSORTED, predict.OURS):
        assert names.count(name) == 2
    # For each kind of text with one text a batch, and with as many as in float32.
    assert names.count(predict.INT8) == 4
    assert all(row.right and row.tokens_per_second > 0 and row.times_as_fast > 0 for row in rows)
    exact = [row for row in rows if row.implementation != predict.INT8]
    assert all(row.error < 1e-5 for row in exact)
    assert {row.dtype for row in rows if row not in exact} == {"int8"}


def test_texts_out_of_order_have_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ULMFiT._probabilities

    def reversed_order(self, texts, batch_size):
        return real(self, texts, batch_size)[::-1].copy()

    monkeypatch.setattr(ULMFiT, "_probabilities", reversed_order)
    ours = [row for row in run() if row.implementation == predict.OURS]
    assert len(ours) == 2 and all(not row.right and row.median_us is None for row in ours)


def test_a_gpu_is_not_asked_for_int8() -> None:
    names = {row.implementation for row in run(gpu=True)}
    assert names == {predict.ONE, predict.UNSORTED, predict.OURS}
    assert predict.run_accuracy(Settings(gpu=True, tiny=True)) == []


def test_the_classifier_answers_differently_to_different_texts() -> None:
    settings = Settings(tiny=True)
    model = predict.model_of(settings)
    texts = predict.texts_of(settings, model)[0].texts
    before = model.predict_proba(texts)[:, 0]
    after = predict._telling_apart(model, texts).predict_proba(texts)[:, 0]
    assert before.max() - before.min() < 0.05 < 0.2 < after.max() - after.min()
    assert (model.predict_proba(texts)[:, 0] == before).all()
