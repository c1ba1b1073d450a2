"""The benchmark of predictions: checked, timed, and without int8 where there is none."""

import pytest

from benchmarks.harness.settings import Settings
from benchmarks.questions import generate, predict
from ulmfit_fast import ULMFiT


def run(**values):
    return predict.run(Settings(tiny=True, repeats=2, say=lambda line: None, **values))


def test_rows_are_checked_and_timed() -> None:
    rows = run()
    names = [row.implementation for row in rows]
    for name in (predict.ONE, predict.UNSORTED, predict.OURS):
        assert names.count(name) == 2
    # For each kind of text with one text a batch, and with as many as in float32.
    assert names.count(predict.INT8) == names.count(predict.BFLOAT16) == 4
    assert all(row.right and row.tokens_per_second > 0 and row.times_as_fast > 0 for row in rows)
    exact = [row for row in rows if row.dtype == "float32"]
    assert all(row.error < 1e-5 for row in exact)
    for name, dtype in ((predict.INT8, "int8"), (predict.BFLOAT16, "bfloat16")):
        assert {row.dtype for row in rows if row.implementation == name} == {dtype}


def test_what_is_far_from_float32_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    real = predict._in_bfloat16
    monkeypatch.setattr(predict, "_in_bfloat16", lambda *args: 1 - real(*args) ** 2)
    rows = [row for row in run() if row.implementation == predict.BFLOAT16]
    assert len(rows) == 4 and all(not row.right and row.median_us is None for row in rows)


def test_a_language_model_writes_alike_with_every_lstm() -> None:
    rows = generate.run(Settings(tiny=True, repeats=2, say=lambda line: None))
    names = [generate.TORCH, generate.OURS, generate.BFLOAT16]
    assert [row.implementation for row in rows] == names
    assert all(row.right and row.tokens_per_second > 0 and row.steps == 4 for row in rows)
    assert rows[0].error == 0 and rows[1].error < 1e-5 < rows[2].error
    assert generate.run(Settings(gpu=True, tiny=True)) == []


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
    after = predict._with_fitted_statistics(model, texts).predict_proba(texts)[:, 0]
    assert before.max() - before.min() < 0.05 < 0.2 < after.max() - after.min()
    assert (model.predict_proba(texts)[:, 0] == before).all()
