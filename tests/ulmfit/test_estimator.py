"""The whole protocol behind one object: what it learns, keeps, saves and refuses."""

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ulmfit_fast import ULMFiT
from ulmfit_fast.training import stages
from ulmfit_fast.training.evaluation import predict_logits
from ulmfit_fast.training.state import EpochResult

FILLERS = "the a of and it was film story with some very long music night".split()
LM = {"epochs": 2, "batch_size": 8, "bptt": 10}
FIT = {"epochs": 2, "batch_size": 8}
SMALL = {"emb_size": 8, "hidden_size": 10, "num_layers": 2, "min_freq": 1, "progress": False}


def colours(seed: int, count: int) -> tuple[list[str], list[str]]:
    """Texts of the same words in either class; it is their order that makes the class."""
    rng, texts, labels = random.Random(seed), [], []
    for n in range(count):
        words = [rng.choice(FILLERS) for _ in range(rng.randrange(4, 10))]
        first, second = sorted(rng.sample(range(len(words) + 2), 2))
        pair = [("red", "blue"), ("blue", "red")][n % 2]
        words.insert(first, pair[0])
        words.insert(second, pair[1])
        texts.append(" ".join(words))
        labels.append(f"{pair[0]} first")
    return texts, labels


TEXTS, LABELS = colours(0, 40)


def new(**options) -> ULMFiT:
    return ULMFiT(**{**SMALL, **options})


@pytest.fixture(scope="module")
def fitted() -> ULMFiT:
    model = new(seed=3).pretrain(TEXTS, **LM).fine_tune_lm([*TEXTS, "a green film"], **LM)
    return model.fit_classifier(TEXTS, LABELS, **FIT)


def weights(model: ULMFiT, part: str = "classifier") -> list[torch.Tensor]:
    return [value.clone() for value in getattr(model, part).state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_protocol_learns_a_class_that_only_the_word_order_gives_away() -> None:
    texts, labels = colours(1, 200)
    held_out, truth = colours(2, 100)
    model = new(emb_size=20, hidden_size=28, drop_mult=0.2)
    before = model.pretrain(colours(3, 500)[0], epochs=3, lr=1e-2, batch_size=16, bptt=20)
    assert before.perplexity(held_out) < 25, "words drawn evenly from 17 types and the end"
    model.fine_tune_lm(texts, epochs=2, lr=1e-2, batch_size=16, bptt=20)
    model.fit_classifier(texts, labels, epochs=12, lr=3e-2, batch_size=16)
    right = sum(p == t for p, t in zip(model.predict(held_out), truth, strict=True))
    assert right >= 85, "chance is 50; ten seeds gave 100"


def test_stages_and_what_they_leave(fitted: ULMFiT) -> None:
    model = new(seed=3)
    assert model.pretrain(TEXTS, **LM) is model
    pretrained, words = model.copy(), model.tokenizer.vocab.words
    assert "red" in words and "green" not in words
    model.fine_tune_lm([*TEXTS, "a green film"], **LM)
    assert "green" in model.tokenizer.vocab.words and len(words) < len(model.tokenizer.vocab)
    assert same(weights(pretrained, "language_model"), weights(pretrained.copy(), "language_model"))
    before = weights(model, "language_model")
    model.fit_classifier(TEXTS, LABELS, **FIT)
    assert same(weights(model, "language_model"), before)
    assert list(model.histories) == ["pretrain", "fine_tune_lm", "fit_classifier"]
    assert all(len(history.epochs) == 2 for history in model.histories.values())
    assert model.histories["fit_classifier"].unfreeze_steps == [0, 5]
    highest = [history.lrs[0][-1] / history.lrs[0][0] for history in model.histories.values()]
    assert highest == pytest.approx([1.0, 2.6**2, 2.6**3])
    assert model.labels == ["blue first", "red first"]
    # The same seed and texts as the fixture's.
    assert same(weights(model), weights(fitted))
    assert np.array_equal(model.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


def test_classifier_starts_from_the_encoder_of_the_language_model(fitted: ULMFiT) -> None:
    model = fitted.copy().fit_classifier(TEXTS, LABELS, epochs=1)  # the head alone
    encoders = model.classifier.encoder, model.language_model.encoder
    assert all(torch.equal(a, b) for a, b in zip(*(e.parameters() for e in encoders), strict=True))
    scratch = new().fit_classifier(TEXTS, LABELS, epochs=1)
    assert scratch.language_model is None and len(scratch.predict(TEXTS)) == 40


def test_another_seed_gives_another_model(fitted: ULMFiT) -> None:
    twin = fitted.copy(seed=4).fit_classifier(TEXTS, LABELS, **FIT)
    again = fitted.copy().fit_classifier(TEXTS, LABELS, **FIT)
    assert same(weights(again), weights(fitted)) and not same(weights(twin), weights(fitted))


def test_the_seed_decides_the_order_of_the_labelled_texts(fitted: ULMFiT, monkeypatch) -> None:
    orders = []

    def record(step, batches, *args, **kwargs):
        orders.append([batch.positions.tolist() for batch in batches])
        return EpochResult(0.0, 1, 1.0)

    monkeypatch.setattr(stages, "train_epoch", record)
    for seed in (0, 0, 1):
        fitted.copy(seed=seed).fit_classifier(TEXTS, ["a", "b"] * 20, epochs=2, batch_size=8)
    first, second, *_, other, _ = orders
    assert orders[2:4] == [first, second]
    assert first not in (second, other)


def test_vocabulary_is_carried_over_by_name() -> None:
    model = new().pretrain(["red blue", "blue red"] * 20, **LM)
    old, bias = model.language_model.encoder.encoder.weight.clone(), model.tokenizer.vocab
    model.use_vocabulary_of(["blue green"] * 3)
    new_words, rows = model.tokenizer.vocab, model.language_model.encoder.encoder.weight
    assert torch.equal(rows[new_words.index("blue")], old[bias.index("blue")])
    assert torch.equal(rows[new_words.index("green")], old.mean(0))
    assert "red" not in new_words


@pytest.mark.parametrize(
    ("kind", "lacking", "of"),
    [
        ("word", "100.0%", "running words and {} of its 3 distinct ones"),
        ("subword", "50.0%", "tokens"),
    ],
)
def test_the_log_tells_which_words_a_model_lacks(caplog, kind: str, lacking: str, of: str) -> None:
    caplog.set_level(logging.INFO, "ulmfit_fast.vocabulary")
    model = new(tokenizer=kind, max_vocab=60).pretrain(
        ["a fine film", "a dull film"] * 20, epochs=1, batch_size=4, bptt=5
    )
    settings = dict(epochs=1, batch_size=4, bptt=5)
    for text, level in (("a fine film", "INFO"), ("привет, мир", "WARNING")):
        caplog.clear()
        model.copy().fine_tune_lm([text] * 40, **settings)
        (record,) = [r for r in caplog.records if r.name == "ulmfit_fast.vocabulary"]
        assert record.levelname == level
        share = "0.0%" if level == "INFO" else lacking
        line = record.getMessage()
        assert f"lacks {share} of the text's {of.format(share)}" in line
        assert ("take a model of this language" in line) == (level == "WARNING")


def test_labels_that_are_several_in_one_are_refused() -> None:
    texts = ["a fine film", "a dull film", "a film", "fine"] * 5
    said = r"5 of 20 labels are several in one, such as 'a\|b', and .*multi-label is not supported"
    with pytest.raises(ValueError, match=said):
        new(min_freq=1).fit_classifier(texts, ["a|b", "a", "b", "c"] * 5, epochs=1)
    # One class among others, of few texts, or of a hierarchy.
    for labels in (
        ["yes|no", "a", "b", "c"] * 5,
        ["a|b", *["a", "b", "c"] * 6, "a"],
        ["a|b", "a|c", "d|b", "d|c"] * 5,
    ):
        model = new(min_freq=1).fit_classifier(texts, labels, epochs=1)
        assert labels[0] in model.labels


def test_subword_vocabulary_stays() -> None:
    model = new(tokenizer="subword", max_vocab=60).pretrain(TEXTS, **LM)
    vocabulary = model.tokenizer.vocab
    model.fine_tune_lm(["a green film"] * 20, **LM).fit_classifier(TEXTS, LABELS, **FIT)
    assert model.tokenizer.vocab == vocabulary
    assert set(model.predict(["a green film"])) <= set(LABELS)


def test_training_lowers_the_perplexity() -> None:
    texts = ["one two three four five"] * 40
    model = new(drop_mult=0.0).pretrain(texts, epochs=1, lr=1e-6, batch_size=8)
    assert model.perplexity(texts) > 10, "15 types, all but even"
    model.fine_tune_lm(texts, epochs=25, lr=0.05, batch_size=4, bptt=10)
    assert model.perplexity(texts) < 5


@pytest.mark.parametrize("batch_size", [1, 7, 100], ids="batch{}".format)
def test_predictions_stand_in_the_order_of_the_texts(fitted: ULMFiT, batch_size: int) -> None:
    texts = ["", *TEXTS[:9], "red", "green green unknown"]
    alone = np.concatenate([fitted.predict_proba([text]) for text in texts])
    together = fitted.predict_proba(texts, batch_size=batch_size)
    assert together.shape == (12, 2) and together.dtype == np.float32
    assert np.allclose(together, alone, atol=1e-6) and np.allclose(together.sum(1), 1)
    assert not np.allclose(together, np.roll(together, 1, axis=0), atol=1e-4)
    expected = [fitted.labels[int(row.argmax())] for row in alone]
    assert fitted.predict(iter(texts), batch_size=batch_size) == expected


def test_predictions_are_the_softmax_of_the_classifier(fitted: ULMFiT) -> None:
    documents = fitted.tokenizer.encode_batch(TEXTS[:5])
    batches = [(torch.as_tensor(d).long()[:, None], torch.tensor([len(d)])) for d in documents]
    logits = predict_logits(
        fitted.classifier, [(*b, None, torch.tensor([n])) for n, b in enumerate(batches)], 5
    )
    assert np.allclose(fitted.predict_proba(TEXTS[:5]), logits.softmax(1).numpy(), atol=1e-6)


class Column:
    """Like a column of a data frame: it has a length and is gone through, and no more."""

    def __init__(self, values) -> None:
        self.values = np.asarray(values)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self):
        return iter(self.values)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a"] * 20, ["a", "b"]),
        ([7, -2] * 20, [-2, 7]),
        ([1, "x"] * 20, [1, "x"]),
        ((n % 2 for n in range(40)), [0, 1]),
        (np.array([7, -2] * 20), [-2, 7]),
        (np.array(["b", "a"] * 20), ["a", "b"]),
        ([np.int32(7), np.uint8(2)] * 20, [2, 7]),
        (Column([7, -2] * 20), [-2, 7]),
        (Column(["b", "a"] * 20), ["a", "b"]),
        (torch.tensor([7, -2] * 20), [-2, 7]),
    ],
    ids=[
        "str", "int", "mixed", "generator", "int array", "str array", "numpy int", "int column",
        "str column", "tensor",
    ],
)  # fmt: skip
def test_labels_of_many_kinds(fitted: ULMFiT, tmp_path: Path, labels, expected) -> None:
    model = fitted.copy().fit_classifier(Column(TEXTS), labels, epochs=1)
    assert [(type(x), x) for x in model.labels] == [(type(x), x) for x in expected]
    model.save(tmp_path / "model")
    predictions = ULMFiT.load(tmp_path / "model", progress=False).predict(TEXTS)
    assert predictions == model.predict(TEXTS)
    assert {type(x) for x in predictions} <= {type(x) for x in expected}


def rows(path: Path, kind: str, texts: list[str]) -> Path:
    path = path / f"texts.{kind}"
    lines = {
        "txt": texts,
        "csv": ["n,text,label", *(f"{n // 2},{t},{n % 2}" for n, t in enumerate(texts))],
        "jsonl": [f'{{"text": "{t}", "label": {n % 2}}}' for n, t in enumerate(texts)],
    }
    path.write_text("\n".join(lines[kind]))
    return path


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_texts_come_from_files(fitted: ULMFiT, tmp_path: Path, kind: str) -> None:
    path = rows(tmp_path, kind, TEXTS)
    model = new().pretrain(path, **LM)
    assert same(
        weights(model, "language_model"), weights(new().pretrain(TEXTS, **LM), "language_model")
    )
    assert model.perplexity([path]) == model.perplexity(TEXTS)
    assert np.array_equal(fitted.predict_proba(str(path)), fitted.predict_proba(TEXTS))
    if kind == "txt":
        with pytest.raises(ValueError, match="has no labels"):
            model.fit_classifier(path)
    else:
        model.fit_classifier(path, **FIT)
        assert model.labels == ([0, 1] if kind == "jsonl" else ["0", "1"])
    if kind == "csv":
        assert model.fit_classifier(path, epochs=1, label_column="n").labels[:2] == ["0", "1"]
        assert len(model.labels) == 20


def test_save_and_load_keep_everything(fitted: ULMFiT, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = ULMFiT.load(tmp_path / "model", progress=False)
    assert loaded.settings == fitted.settings and loaded.seed == 3
    assert np.array_equal(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert loaded.perplexity(TEXTS) == fitted.perplexity(TEXTS)
    twin = fitted.copy()
    for model in (loaded, twin):
        model.fine_tune_lm(TEXTS, **LM).fit_classifier(TEXTS, LABELS, **FIT)
    assert same(weights(loaded), weights(twin)) and not same(weights(twin), weights(fitted))


def test_load_refuses_settings_that_it_does_not_know(fitted: ULMFiT, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"drop_mult"', '"drop_mutl"'))
    with pytest.raises(ValueError, match=r"is damaged: .*'drop_mutl'.*; save the model again"):
        ULMFiT.load(tmp_path)


def test_copy_is_independent(fitted: ULMFiT) -> None:
    before, twin = weights(fitted), fitted.copy(seed=9, progress=True)
    assert (twin.seed, twin.progress, fitted.seed, fitted.progress) == (9, True, 3, False)
    language_model = twin.language_model
    assert language_model.decoder.weight is language_model.encoder.encoder.weight
    with torch.no_grad():
        for parameter in (*twin.classifier.parameters(), *language_model.parameters()):
            parameter.zero_()
    twin.settings.lm_dropout["weight_p"] = 1.0
    assert same(weights(fitted), before) and fitted.settings.lm_dropout == {}
    with pytest.raises(AttributeError, match="ULMFiT has no attribute 'sead'"):
        fitted.copy(sead=1)


@pytest.mark.parametrize("stage", ["pretrain", "fine_tune_lm", "fit_classifier"])
def test_interruption_leaves_the_last_finished_epoch(
    fitted: ULMFiT, tmp_path: Path, monkeypatch, stage: str
) -> None:
    part = "classifier" if stage == "fit_classifier" else "language_model"
    train, finished = stages.train_epoch, []

    def epoch(model, *args, **options):
        if finished:
            finished.append(weights(interrupted, part))
        result = train(model, *args, **options)
        if len(finished) == 2:
            raise KeyboardInterrupt
        finished.append([])
        return result

    monkeypatch.setattr(stages, "train_epoch", epoch)
    interrupted = fitted.copy(checkpoint_dir=tmp_path / "model")
    labels = [LABELS] if stage == "fit_classifier" else []
    with pytest.raises(KeyboardInterrupt):
        getattr(interrupted, stage)(TEXTS, *labels, epochs=3, batch_size=8)
    loaded = ULMFiT.load(tmp_path / "model", progress=False)
    assert same(weights(loaded, part), finished[1])
    assert not same(weights(interrupted, part), finished[1])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert len(loaded.predict(TEXTS)) == 40 if labels else loaded.perplexity(TEXTS) > 1
