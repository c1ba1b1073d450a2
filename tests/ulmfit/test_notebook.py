"""What a notebook shows of a model, its history and its explanations."""

import sys
from html.parser import HTMLParser

import pytest

from ulmfit_fast import ULMFiT

TEXTS = [f"{kind} film number {n}" for n in range(20) for kind in ("a <b>fine</b>", "a dull")]
LABELS = ["good & fine", "bad"] * 20
SIZES = {"emb_size": 8, "hidden_size": 12, "num_layers": 2, "min_freq": 1, "progress": False}


@pytest.fixture(scope="module")
def model():
    made = ULMFiT(**SIZES, device="cpu").pretrain(TEXTS, epochs=2, batch_size=4, bptt=10)
    return made.fit_classifier(TEXTS, LABELS, epochs=3, batch_size=8, valid=0.2, baseline=False)


class Text(HTMLParser):
    def __init__(self, shown):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(shown)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_a_model_says_what_it_is(model):
    assert repr(ULMFiT(**SIZES, device="cpu")) == (
        "ULMFiT(8/12, 2 layers, word on cpu, not trained yet)"
    )
    count = len(model.tokenizer.vocab)
    assert repr(model) == (
        f"ULMFiT(8/12, 2 layers, word, {count} tokens, language model, classifier of 2 classes on "
        "cpu)"
    )


def test_the_history_is_a_table(model, monkeypatch):
    pytest.importorskip("pandas")
    table = model.history
    assert table["stage"].tolist() == ["pretrain"] * 2 + ["fit_classifier"] * 3
    assert table["epoch"].tolist() == [1, 2, 1, 2, 3]
    own = model.histories["fit_classifier"]
    last = table.iloc[2:]
    assert last["valid_loss"].tolist() == own.valid_losses
    assert last["accuracy"].tolist() == [scores["accuracy"] for scores in own.valid_scores]
    assert table["valid_loss"].isna().tolist() == [True, True, False, False, False]
    shown = Text(own._repr_html_())
    assert shown.tags.count("tr") == 4 and f"{own.valid_losses[-1]:.4g}" in shown.text
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas, or take histories"):
        model.history  # noqa: B018


def test_explanations_show_coloured_words(model):
    found = model.explain(TEXTS[:2])
    assert isinstance(found, list) and len(found) == 2
    shown = Text(found._repr_html_())
    assert shown.tags.count("p") == 2 and shown.tags.count("b") == 2
    assert shown.text.count("film") == 2 and "<" in shown.text
    assert found[0]._repr_html_() in found._repr_html_()
    label = str(found[0].label)
    assert label in shown.text and "rgba(" in found._repr_html_()


@pytest.mark.parametrize("stage", ["pretrain", "fine_tune_lm", "fit_classifier"])
def test_what_a_user_turns_is_an_argument(model, stage):
    made = model.copy()
    given = {"epochs": 1, "batch_size": 4, "precision": "bfloat16"}
    if stage == "fit_classifier":
        made.fit_classifier(TEXTS, LABELS, **given)
        assert len(made.histories[stage].losses) == 10
    else:
        getattr(made, stage)(TEXTS, bptt=10, **given)
        again = model.copy()
        getattr(again, stage)(TEXTS, bptt=10, epochs=1, batch_size=4)
        assert made.histories[stage].losses != again.histories[stage].losses
    with pytest.raises(ValueError, match="precision is 'int4'"):
        getattr(made, stage)(TEXTS, **{**given, "precision": "int4"})
