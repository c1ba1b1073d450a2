"""What the object refuses: in one line that names the value, and before it changes anything."""

import numpy as np
import pytest

from ulmfit_fast import ULMFiT

SMALL = {"emb_size": 8, "hidden_size": 10, "num_layers": 2, "min_freq": 1, "progress": False}
TEXTS = ["a fine film", "a dull story"] * 20


def new(**options) -> ULMFiT:
    return ULMFiT(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"tokenizer": "char"},
            ValueError,
            "tokenizer is 'char', expected .word., .subword., .spacy. or",
        ),
        ({"max_vocab": 5}, ValueError, "max_vocab is 5, expected at least 9: the specials"),
        ({"min_freq": 0}, ValueError, "min_freq is 0"),
        ({"emb_size": 0}, ValueError, "emb_size must be at least 1, got 0"),
        ({"hidden_size": 1.5}, TypeError, "hidden_size must be an integer, got 1.5"),
        ({"drop_mult": -1}, ValueError, "drop_mult must be at least 0, got -1"),
        ({"drop_mult": 3.0}, ValueError, "input_p is 1.2"),
        ({"lm_dropout": {"weight_p": 1.5}}, ValueError, "weight_p is 1.5, expected a probability"),
        ({"classifier_dropout": {"weigt_p": 0.1}}, ValueError, "has 'weigt_p', expected names"),
        ({"lm_dropout": {"emb_size": 3}}, ValueError, "has 'emb_size', expected names of input_p"),
        ({"seed": -1}, ValueError, "seed is -1, expected a whole number from 0"),
        ({"seed": 1.5}, ValueError, "seed is 1.5, expected a whole number from 0"),
        ({"device": "gpu"}, ValueError, "device is 'gpu', expected cpu, or cuda where there is"),
        *(
            ({"device": device}, ValueError, "^device is .*, expected cpu, or cuda .{,60} here")
            for device in (
                "mps",
                "meta",
                "xla",
                "hpu",
                "mkldnn",
                "cuda:99",
                "",
                True,
                [1],
                "\ud800",
            )
        ),
        ({"embedding": 3}, TypeError, "unexpected keyword argument 'embedding'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_construction_refuses(options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        new(**options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.fine_tune_lm(TEXTS), ValueError, "no language model yet; call pretrain"),
        (lambda m: m.perplexity(TEXTS), ValueError, "no language model yet; call pretrain"),
        (lambda m: m.use_vocabulary_of(TEXTS), ValueError, "no language model yet"),
        (lambda m: m.predict(TEXTS), ValueError, "no classifier yet; call fit_classifier"),
        (lambda m: m.save("never"), ValueError, "there is no vocabulary yet"),
        (lambda m: m.pretrain([]), ValueError, "is empty, expected at least one text"),
        (lambda m: m.pretrain(["a b"]), ValueError, "expected at least 65 for batch_size=64"),
        (lambda m: m.pretrain(TEXTS, epoch=3), ValueError, "no setting 'epoch'; pass one of"),
        (lambda m: m.pretrain(TEXTS, lr=-1), ValueError, "lr is -1, expected a positive number"),
        (lambda m: m.fit_classifier(TEXTS, ["a"]), ValueError, "1 labels for 40 texts, expected"),
        (lambda m: m.fit_classifier(TEXTS, ["a"] * 40), ValueError, "the one class .'a'., exp"),
        (lambda m: m.fit_classifier(TEXTS), ValueError, "no labels; pass labels, or the path"),
        (lambda m: m.fit_classifier(TEXTS, ["\ud83d", "b"] * 20), ValueError, "half a character"),
        (lambda m: m.fit_classifier(TEXTS, "label"), TypeError, "labels is the string 'label'"),
        (lambda m: m.fit_classifier(TEXTS, ["a", None] * 20), TypeError, "labels.1. is None"),
        (lambda m: m.fit_classifier(TEXTS, np.full(40, 0.5)), TypeError, "labels.0. is 0.5 .float"),
        (lambda m: m.fit_classifier(TEXTS, np.eye(40)), TypeError, "labels.0. is array"),
    ],
    ids=[
        "fine-tune first", "perplexity first", "vocabulary first", "predict first", "save first",
        "empty corpus", "small corpus", "unknown setting", "bad rate", "too few labels",
        "one class", "no labels", "half a label", "string of labels", "missing label",
        "float label", "2-D labels",
    ],
)  # fmt: skip
def test_calls_that_are_refused(call, error: type[Exception], message: str) -> None:
    model = new()
    with pytest.raises(error, match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value) and model.classifier is None


@pytest.mark.parametrize("tokenizer", ["word", "subword"])
def test_a_refused_call_leaves_the_model_as_it_was(tokenizer: str) -> None:
    model = new(tokenizer=tokenizer, max_vocab=40).pretrain(TEXTS, epochs=1, batch_size=8)
    model.fit_classifier(TEXTS, ["a", "b"] * 20, epochs=1)
    before = model.predict_proba(TEXTS), model.perplexity(TEXTS)
    for labels in (["a"] * 40, ["a", "b"], ["a", None] * 20, ["0", 0] * 20):
        with pytest.raises((ValueError, TypeError)):
            model.fit_classifier(TEXTS, labels)
    # Found out late: when the batches and the schedule are made.
    with pytest.raises(ValueError, match=r"cut_frac is 0\.0"):
        model.fit_classifier(TEXTS, ["a", "b"] * 20, cut_frac=0.0)
    with pytest.raises(ValueError, match="expected at least 1001 for batch_size=1000"):
        model.fine_tune_lm(["a fine film"], batch_size=1000, epochs=1)
    for texts in ([], [3], "missing.txt"):
        with pytest.raises((ValueError, TypeError, FileNotFoundError)):
            model.fine_tune_lm(texts)
    assert np.array_equal(model.predict_proba(TEXTS), before[0])
    assert model.perplexity(TEXTS) == before[1]


@pytest.mark.parametrize("texts", ["abc", []], ids=["string", "empty"])
def test_a_vocabulary_comes_from_texts_alone(texts) -> None:
    model = new().pretrain(TEXTS, epochs=1, batch_size=8)
    words = model.tokenizer.vocab.words
    with pytest.raises(ValueError, match=r"pass a list of texts|is empty"):
        model.use_vocabulary_of(texts)
    assert model.tokenizer.vocab.words == words
