"""The benchmark of the tokenizers: checked, timed, and silent on a GPU."""

import numpy as np
import pytest

from benchmarks.harness.settings import Settings
from benchmarks.questions import tokenize
from ulmfit_fast.data import Tokenizer


def test_rows_are_checked_and_timed() -> None:
    said: list[str] = []
    rows = tokenize.run(Settings(tiny=True, repeats=2, say=said.append))
    names = [row.implementation for row in rows]
    assert {"ulmfit_fast word", "ulmfit_fast subword"} <= set(names)
    assert all(row.right and row.tokens_per_second > 0 for row in rows)
    assert all(row.error == 0 for row in rows if row.implementation != tokenize.SPACY)


def test_wrong_ids_have_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tokenizer.encode_batch

    def wrong(self, texts):
        return [np.where(ids == 9, 10, ids) for ids in real(self, texts)]

    monkeypatch.setattr(Tokenizer, "encode_batch", wrong)
    rows = tokenize.run(Settings(tiny=True, repeats=2, say=lambda line: None))
    ours = [row for row in rows if row.implementation != tokenize.SPACY]
    assert len(ours) >= 2 and all(not row.right and row.median_us is None for row in ours)


def test_a_missing_spacy_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    settings = Settings(tiny=True, repeats=2, say=lambda line: None)
    rows = tokenize.run(settings)
    assert [row.implementation for row in rows] == ["ulmfit_fast word", "ulmfit_fast subword"]
    assert any("spaCy is left out" in note for note in settings.notes)
    assert tokenize.run(Settings(gpu=True, tiny=True)) == []
