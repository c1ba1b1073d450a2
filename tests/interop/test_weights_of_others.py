"""Weights of texts out of frames and datasets of other libraries."""

import pytest

from ulmfit_fast import ULMFiT
from ulmfit_fast.data import read_weighted

datasets = pytest.importorskip("datasets")
pl = pytest.importorskip("polars")

TEXTS, LABELS = ["a fine film", "a dull film"] * 6, ["good", "bad"] * 6
WEIGHTS = [0.5 + n for n in range(12)]
COLUMNS = {"text": TEXTS, "label": LABELS, "weight": WEIGHTS}


@pytest.mark.parametrize(
    "source",
    [pl.DataFrame(COLUMNS), datasets.Dataset.from_dict(COLUMNS)],
    ids=lambda source: type(source).__module__.partition(".")[0],
)
def test_a_column_of_weights(source) -> None:
    assert read_weighted(source) == (TEXTS, LABELS, WEIGHTS)
    sizes = {"emb_size": 8, "hidden_size": 10, "min_freq": 1, "progress": False}
    models = [
        ULMFiT(**sizes).fit_classifier(source, epochs=1, batch_size=4, **own)
        for own in ({"weight_column": "weight"}, {"sample_weight": source["weight"]})
    ]
    models.append(
        ULMFiT(**sizes).fit_classifier(
            source, source, epochs=1, batch_size=4, sample_weight=source, weight_column="weight"
        )
    )
    losses = [model.histories["fit_classifier"].losses for model in models]
    assert losses[0] == losses[1] == losses[2]
