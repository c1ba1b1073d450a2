"""Presets in the estimator: what is said wins, and what is not said comes from the recipe."""

from pathlib import Path

import pytest
import torch

from ulmfit_fast import ULMFiT, presets
from ulmfit_fast.presets import Preset
from ulmfit_fast.training import stages as pipeline
from ulmfit_fast.training.settings import TrainingSettings
from ulmfit_fast.ulmfit.sizing import classifier_sizes

TEXTS = ["a fine film", "a dull film"] * 40
LABELS = ["good", "bad"] * 40
SIZES = {"emb_size": 8, "hidden_size": 10, "num_layers": 2, "min_freq": 1, "progress": False}
NAMES = ["paper", "fastai07", "fastai_v2", "multifit"]
OWN = Preset(
    "own",
    model={"emb_size": 6, "hidden_size": 7, "drop_mult": 0.5, "lm_dropout": {"weight_p": 0.4}},
    pretrain={"epochs": 2, "lr": 0.01, "batch_size": 4, "drop_mult": 0.0, "betas": (0.8, 0.9)},
    fine_tune_lm={"epochs": 1, "batch_size": 4, "bptt": 11, "drop_mult": 0.25},
    fit_classifier={"epochs": 1, "batch_size": 8, "gradual_unfreezing": 0},
)


@pytest.fixture
def stages(monkeypatch) -> list[tuple[TrainingSettings, object]]:
    """Settings and dropouts that each stage trains with; nothing is trained."""
    seen = []

    def language_model(model, documents, settings, *, after_epoch, **options):
        seen.append((settings, model.config))
        after_epoch(1, None)

    def classifier(model, documents, labels, settings, **options):
        seen.append((settings, model.encoder.config))

    monkeypatch.setattr(pipeline, "train_language_model", language_model)
    monkeypatch.setattr(pipeline, "fit_classifier", classifier)
    return seen


def run(model: ULMFiT, **options) -> ULMFiT:
    model.pretrain(TEXTS, **options).fine_tune_lm(TEXTS, **options)
    return model.fit_classifier(TEXTS, LABELS, **options)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_reaches_model_and_stages(name: str, stages) -> None:
    recipe = presets.named(name)
    small = {"emb_size": 8, "hidden_size": 10, "max_vocab": 20, "min_freq": 1}
    model = run(ULMFiT(preset=name, **small, progress=False))
    for key, value in {**recipe.model, **small}.items():
        assert getattr(model.settings, key) == value
    parts = (recipe.pretrain, recipe.fine_tune_lm, recipe.fit_classifier)
    for part, (settings, config) in zip(parts, stages, strict=True):
        for key, value in part.items():
            if key != "drop_mult":
                assert getattr(settings, key) == value
        which = "classifier_dropout" if part is recipe.fit_classifier else "lm_dropout"
        for key, value in recipe.model[which].items():
            factor = part.get("drop_mult", recipe.model["drop_mult"])
            assert getattr(config, key) == pytest.approx(factor * value)


def test_what_the_caller_says_wins(stages) -> None:
    model = ULMFiT(preset=OWN, emb_size=9, min_freq=1, lm_dropout={"embed_p": 0.3}, progress=False)
    assert model.settings.emb_size == 9 and model.settings.hidden_size == 7
    assert model.settings.num_layers == 3, "nobody says"
    assert model.settings.lm_dropout == {"weight_p": 0.4, "embed_p": 0.3}
    run(model, epochs=3, drop_mult=1.0, clip=0.5)
    assert [settings.epochs for settings, _ in stages] == [3, 3, 3]
    assert [settings.clip for settings, _ in stages] == [0.5] * 3
    assert [settings.batch_size for settings, _ in stages] == [4, 4, 8]
    assert stages[0][1].weight_p == stages[1][1].weight_p == pytest.approx(0.4)
    assert stages[0][1].embed_p == pytest.approx(0.3)


def test_what_nobody_says_is_as_without_a_preset(stages) -> None:
    run(ULMFiT(**SIZES))
    (first, lm), (second, _), (third, classifier) = stages
    assert (first.epochs, first.lr, first.factor) == (10, 4e-3, 1.0)
    assert (second.epochs, second.lr, second.factor) == (15, 4e-3, 2.6)
    # The number of texts says how many of them, and in how large batches.
    assert (third.batch_size, third.epochs) == classifier_sizes(len(TEXTS)) == (8, 20)
    assert (third.lr, third.gradual_unfreezing) == (1e-2, 1)
    assert (lm.weight_p, classifier.weight_p) == (0.2, 0.5)


def test_a_caller_without_an_unfreezing_plan_drops_the_plan_of_the_preset(stages) -> None:
    model = ULMFiT(preset="fastai07", **SIZES)
    model.fit_classifier(TEXTS, LABELS, gradual_unfreezing=0)
    settings, _ = stages[0]
    assert settings.gradual_unfreezing == 0 and settings.schedule_per == "run"
    assert settings.lr_decay == 1.0 and not settings.reset_optimizer and settings.cut_frac == 0.1
    assert settings.clip == 25.0, "the rest stays"


def test_each_stage_has_its_own_dropout_and_keeps_the_weights(stages) -> None:
    for tokenizer in ("word", "subword"):
        stages.clear()
        model = ULMFiT(preset=OWN, tokenizer=tokenizer, max_vocab=20, min_freq=1, progress=False)
        model.pretrain(TEXTS)
        before = [weight.clone() for weight in model.language_model.state_dict().values()]
        model.fine_tune_lm(TEXTS)
        after = list(model.language_model.state_dict().values())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        tied = model.language_model
        assert tied.decoder.weight is tied.encoder.encoder.weight
        assert [config.weight_p for _, config in stages] == pytest.approx([0.0, 0.1])
        assert [rnn.weight_p for rnn in tied.encoder.rnns] == pytest.approx([0.1] * 3)
        assert tied.encoder.input_dropout.p == pytest.approx(0.25 * 0.25)
        assert tied.output_dropout.p == pytest.approx(0.25 * 0.1)


def test_the_preset_is_saved_with_the_model(tmp_path: Path, stages) -> None:
    run(ULMFiT(preset=OWN, min_freq=1, progress=False)).save(tmp_path)
    loaded = ULMFiT.load(tmp_path, progress=False)
    assert loaded.settings.preset.name == "own"
    again = run(loaded.copy())
    assert [settings for settings, _ in stages[:3]] == [settings for settings, _ in stages[3:]]
    assert stages[3][0].betas == (0.8, 0.9)
    assert again.settings == loaded.settings == ULMFiT(preset=OWN, min_freq=1).settings


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "fastai"}, ValueError, "preset is 'fastai', expected one of paper, fastai07"),
        ({"preset": 3}, TypeError, r"preset is 3 \(int\), expected a Preset or its name"),
    ],
    ids=["name", "type"],
)
def test_unknown_presets(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ULMFiT(**options)


@pytest.mark.parametrize("stage", ["pretrain", "fine_tune_lm", "fit_classifier"])
def test_a_wrong_drop_mult_is_refused_before_the_texts_are_read(stage: str) -> None:
    labels = [LABELS] if stage == "fit_classifier" else []
    with pytest.raises(ValueError, match=r"drop_mult must be at least 0, got -1"):
        getattr(ULMFiT(**SIZES), stage)("missing.txt", *labels, drop_mult=-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_runs(name: str) -> None:
    small = {"emb_size": 8, "hidden_size": 10, "max_vocab": 20, "min_freq": 1, "seed": 1}
    model = ULMFiT(preset=name, **small, progress=False)
    texts = TEXTS * 6
    options = {"batch_size": 8, "bptt": 10}
    model.pretrain(texts, epochs=2, **options).fine_tune_lm(texts, epochs=3, **options)
    model.fit_classifier(TEXTS, LABELS, epochs=5)
    assert set(model.predict(TEXTS[:3])) <= {"good", "bad"}
