"""Both directions: what a backward model reads, the mean of the answers, and one directory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ulmfit_fast import ULMFiT
from ulmfit_fast.ulmfit.ensemble import Ensemble, fit_ensemble

TEXTS = [f"{word} {thing} here" for thing in ("film", "story") for word in ("fine", "dull")] * 10
LABELS = ["good", "bad"] * 20
SIZES = {"emb_size": 8, "hidden_size": 10, "num_layers": 2, "min_freq": 1, "progress": False}
LM = {"epochs": 1, "batch_size": 8, "bptt": 10}
FIT = {"epochs": 2, "batch_size": 8}


def fit(**options) -> ULMFiT:
    return ULMFiT(**{**SIZES, **options}).fit_classifier(TEXTS, LABELS, **FIT)


@pytest.fixture(scope="module")
def pair() -> list[ULMFiT]:
    return [fit(), fit(backwards=True)]


def reversed_words(texts: list[str]) -> list[str]:
    return [" ".join(reversed(text.split())) for text in texts]


def test_a_backward_model_reads_every_text_from_its_end(monkeypatch) -> None:
    from ulmfit_fast.training import stages as pipeline
    from ulmfit_fast.ulmfit import trained

    seen = {}

    def stop(model, documents, *args, **kwargs):
        seen["documents"] = [document.tolist() for document in documents]
        raise KeyboardInterrupt

    model = ULMFiT(**SIZES, backwards=True)
    for name, stage in (
        ("train_language_model", lambda: model.pretrain(TEXTS)),
        ("fit_classifier", lambda: model.fit_classifier(TEXTS, LABELS)),
    ):
        monkeypatch.setattr(pipeline, name, stop)
        with pytest.raises(KeyboardInterrupt):
            stage()
        words = [["xxbos", *text.split()][::-1] for text in TEXTS]
        index = {tuple(w): tuple(ids) for w, ids in zip(words, seen["documents"], strict=True)}
        assert all(ids[-1] == 2 and len(ids) == len(w) for w, ids in index.items())
        assert len({ids[0] for ids in index.values()}) == 1, "all of them end with one word"
    assert trained.TextModel.backwards.fget(model) is True


def test_a_backward_model_is_the_forward_model_of_reversed_texts() -> None:
    """Except for xxbos, which comes last: the answers differ, the words seen do not."""
    backward = ULMFiT(**SIZES, backwards=True).pretrain(TEXTS, **LM)
    tokenizer = backward.tokenizer
    ids = backward._encoded(tokenizer, ["fine film here"])[0]
    assert [tokenizer.vocab.words[n] for n in ids] == ["here", "film", "fine", "xxbos"]
    assert ids.flags.c_contiguous
    forward = backward.copy()
    forward.settings = replace(forward.settings, backwards=False)
    assert backward.perplexity(TEXTS) != forward.perplexity(TEXTS)


def test_direction_is_kept_by_save_load_and_copy(pair: list[ULMFiT], tmp_path: Path) -> None:
    pair[1].save(tmp_path / "model")
    loaded = ULMFiT.load(tmp_path / "model", progress=False)
    assert loaded.backwards and loaded.copy().backwards and not pair[0].backwards
    assert np.array_equal(loaded.predict_proba(TEXTS), pair[1].predict_proba(TEXTS))
    with pytest.raises(TypeError, match="backwards is 1, expected True or False"):
        ULMFiT(backwards=1)


def test_order_alone_decides_and_both_directions_learn_it() -> None:
    texts, labels = ["red then blue", "blue then red"] * 20, ["r", "b"] * 20
    options = {"epochs": 12, "batch_size": 8, "lr": 0.03, "drop_mult": 0.1}
    for backwards in (False, True):
        model = ULMFiT(**SIZES, backwards=backwards)
        model.fit_classifier(texts, labels, **options, gradual_unfreezing=0)
        assert model.predict(texts) == labels
        assert model.predict(reversed_words(texts)) == ["b", "r"] * 20


def test_the_answer_is_the_mean_of_the_probabilities(pair: list[ULMFiT]) -> None:
    both = Ensemble(pair)
    one, two = (model.predict_proba(TEXTS) for model in pair)
    assert not np.allclose(one, two)
    found = both.predict_proba(iter(TEXTS), batch_size=7)
    assert np.allclose(found, (one + two) / 2, atol=1e-6) and found.dtype == np.float32
    assert both.predict(TEXTS) == [both.labels[n] for n in ((one + two) / 2).argmax(1)]
    assert both.labels == ["bad", "good"]
    assert np.allclose(Ensemble(pair[:1]).predict_proba(TEXTS), one)


def test_save_and_load_in_one_directory(pair: list[ULMFiT], tmp_path: Path) -> None:
    both = Ensemble(pair)
    for _ in range(2):
        both.save(tmp_path / "both")
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == [
        "config.json", "model_0", "model_1"
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["both"]
    loaded = Ensemble.load(tmp_path / "both", progress=False)
    assert [model.backwards for model in loaded.models] == [False, True]
    assert np.array_equal(loaded.predict_proba(TEXTS), both.predict_proba(TEXTS))
    with pytest.raises(ValueError, match=r"not describe an ulmfit_fast model; Ensemble.load reads"):
        ULMFiT.load(tmp_path / "both")
    with pytest.raises(ValueError, match=r"an ulmfit_fast ensemble; ULMFiT.load reads it"):
        Ensemble.load(tmp_path / "both" / "model_0")
    with pytest.raises(FileNotFoundError, match="is no directory"):
        Ensemble.load(tmp_path / "nowhere")


@pytest.mark.parametrize("models", ['["model_0", "../other"]', '"model_0"', "[]"])
def test_a_damaged_ensemble_is_refused(pair: list[ULMFiT], tmp_path: Path, models: str) -> None:
    Ensemble(pair).save(tmp_path / "both")
    path = tmp_path / "both" / "config.json"
    text = path.read_text()
    start = text.index('"models":')
    path.write_text(text[:start] + f'"models": {models}}}')
    with pytest.raises(ValueError, match=r"models is .*; save it again|models is empty"):
        Ensemble.load(tmp_path / "both")


def test_a_failing_save_leaves_the_older_ensemble(pair, tmp_path: Path, monkeypatch) -> None:
    Ensemble(pair).save(tmp_path / "both")
    calls = []

    def save(self, directory):
        calls.append(directory)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(ULMFiT, "save", save)
    with pytest.raises(OSError, match="No space left"):
        Ensemble(pair).save(tmp_path / "both")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["both"]
    assert len(Ensemble.load(tmp_path / "both").models) == 2


def test_models_that_do_not_belong_together_are_refused(pair: list[ULMFiT]) -> None:
    other = ULMFiT(**SIZES).fit_classifier(TEXTS, ["x", "y"] * 20, **FIT)
    with pytest.raises(ValueError, match=r"models\[1\] has the labels \['x', 'y'\] and models\[0"):
        Ensemble([pair[0], other])
    with pytest.raises(ValueError, match=r"models\[1\] has no classifier yet; call fit_cl"):
        Ensemble([pair[0], ULMFiT()])
    with pytest.raises(TypeError, match=r"models\[0\] is 'model' \(str\), expected a ULMFiT"):
        Ensemble(["model"])
    with pytest.raises(ValueError, match="models is empty"):
        Ensemble([])


def test_one_call_takes_both_directions_through_all_stages() -> None:
    general = (f"general {text}" for text in TEXTS)  # read once, used twice
    both = fit_ensemble(
        iter(TEXTS), iter(LABELS), pretrain_texts=general, pretrain=LM, fine_tune_lm=LM,
        fit_classifier=FIT, seed=5, **SIZES,
    )  # fmt: skip
    assert [model.backwards for model in both.models] == [False, True]
    stages = ["pretrain", "fine_tune_lm", "fit_classifier"]
    assert all(list(model.histories) == stages for model in both.models)
    assert [model.seed for model in both.models] == [5, 5]
    alone = ULMFiT(**SIZES, seed=5, backwards=True)
    alone.pretrain([f"general {text}" for text in TEXTS], **LM).fine_tune_lm(TEXTS, **LM)
    alone.fit_classifier(TEXTS, LABELS, **FIT)
    assert np.array_equal(alone.predict_proba(TEXTS), both.models[1].predict_proba(TEXTS))


def test_one_call_from_language_models_or_from_nothing() -> None:
    models = [ULMFiT(**SIZES, backwards=b).pretrain(TEXTS, **LM) for b in (True, False)]
    before = [model.perplexity(TEXTS) for model in models]
    both = fit_ensemble(
        TEXTS, LABELS, language_models=models, fine_tune_texts=["fine words"] * 20,
        fine_tune_lm=LM, fit_classifier=FIT,
    )  # fmt: skip
    assert [model.backwards for model in both.models] == [False, True]
    assert all("words" in model.tokenizer.vocab for model in both.models)
    assert [model.perplexity(TEXTS) for model in models] == before
    assert all(model.classifier is None for model in models)
    scratch = fit_ensemble(TEXTS, LABELS, fit_classifier=FIT, **SIZES)
    assert all(list(model.histories) == ["fit_classifier"] for model in scratch.models)


def test_labels_come_from_files(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    rows = zip(TEXTS, LABELS, strict=True)
    path.write_text("\n".join(["body,kind", *(",".join(row) for row in rows)]))
    columns = {"text_column": "body", "label_column": "kind"}
    both = fit_ensemble(path, fit_classifier=FIT, **columns, **SIZES)
    assert both.labels == ["bad", "good"] and len(both.predict(path, text_column="body")) == 40


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backwards": True}, TypeError, "both directions are made here; leave it out"),
        ({"checkpoint_dir": "x"}, TypeError, "checkpoint_dir is given for two models"),
        ({"pretrain": LM}, ValueError, "pretrain is given without pretrain_texts"),
        ({"fine_tune_lm": LM}, ValueError, "there is no language model to fine-tune"),
        ({"language_models": "two", "pretrain_texts": TEXTS}, ValueError, "pass the texts to pre"),
        ({"language_models": "same"}, ValueError, "one forwards and one backwards"),
        ({"language_models": "two"}, ValueError, "reads forwards has no language model"),
        ({"language_models": "two", "emb_size": 4}, ValueError, "emb_size given beside langu"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_one_call_refuses(options: dict, error: type[Exception], message: str) -> None:
    models = {"same": [ULMFiT(**SIZES)] * 2}
    models["two"] = [ULMFiT(**SIZES), ULMFiT(**SIZES, backwards=True)]
    if "emb_size" in options:
        models["two"] = [model.pretrain(TEXTS, **LM) for model in models["two"]]
    if "language_models" in options:
        options = {**options, "language_models": models[options["language_models"]]}
    with pytest.raises(error, match=message):
        fit_ensemble(TEXTS, LABELS, **options)
