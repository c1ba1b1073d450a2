"""Every value of every preset, by its number, and that each of them trains."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ulmfit_fast import ULMFiT, presets
from ulmfit_fast.data import ClassifierBatches
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.training.evaluation import predict_logits
from ulmfit_fast.training.plan import make_optimizer
from ulmfit_fast.training.stages import (
    TrainingSettings,
    build_classifier,
    fit_classifier,
    train_language_model,
)

NAMES = ["paper", "fastai07", "fastai_v2", "multifit"]
STAGES = ["pretrain", "fine_tune_lm", "fit_classifier"]


def dropouts(input_p, output_p, weight_p, embed_p, hidden_p):
    """The order of the paper's code."""
    return {
        "input_p": input_p,
        "output_p": output_p,
        "weight_p": weight_p,
        "embed_p": embed_p,
        "hidden_p": hidden_p,
    }


STRONG = dropouts(0.4, 0.4, 0.5, 0.05, 0.3)
LIGHT = dropouts(0.25, 0.1, 0.2, 0.02, 0.15)
MULTIFIT = dropouts(0.2, 0.25, 0.15, 0.02, 0.1)

MODELS = {
    # hidden size, layers, tokenizer, words, occurrences, dropouts
    "paper": (1150, 3, "word", 60_000, 3, STRONG, STRONG),
    "fastai07": (1150, 3, "word", 30_000, 2, LIGHT, STRONG),
    "fastai_v2": (1152, 3, "word", 60_000, 3, LIGHT, STRONG),
    "multifit": (1550, 4, "subword", 15_000, 3, MULTIFIT, MULTIFIT),
}

ADAM_PAPER = {"optimizer": "adam", "betas": (0.7, 0.99), "eps": 1e-8, "weight_decay": 0.0}
ADAM_07 = {"optimizer": "adam", "betas": (0.8, 0.99), "eps": 1e-8}
ADAMW_V2 = {
    "optimizer": "adamw",
    "betas": (0.8, 0.99),
    "eps": 1e-5,
    "weight_decay": 0.1,
    "no_decay_on_bias_and_norm": True,
}
SLANTED = {"schedule": "slanted", "schedule_per": "run", "cut_frac": 0.1, "ratio": 32.0}
ONE_CYCLE = {"schedule": "one_cycle", "moms": (0.8, 0.7, 0.8), "div": 25.0}
V2 = {**ONE_CYCLE, "schedule_per": "stage", "pct_start": 0.25, "div_final": 1e5}
V1 = {**ONE_CYCLE, "pct_start": 0.3, "div_final": 250_000.0}
AR = {"alpha": 2.0, "beta": 1.0}
NONE = {"gradual_unfreezing": 0, "chain_thaw": False, "lr_decay": 1.0, "reset_optimizer": False}
FULL = {"precision": "float32", "capture": False, "valid_share": 0.0}
FIXED = {"random_bptt": False, "rescale_lr": True}

TABLE = {
    ("paper", "pretrain"): {
        **ADAM_PAPER, **SLANTED, **AR, **NONE, "epochs": 10, "lr": 0.004, "batch_size": 64,
        "bptt": 70, "factor": 1.0, "clip": None, "random_bptt": True, "rescale_lr": True,
        "label_smoothing": 0.0, "group_order": "depth", "lr_multipliers": None,
    },
    ("paper", "fine_tune_lm"): {
        **ADAM_PAPER, **SLANTED, **AR, **NONE, "epochs": 15, "lr": 0.004, "batch_size": 64,
        "bptt": 70, "factor": 2.6, "clip": None, "random_bptt": True, "rescale_lr": True,
        "label_smoothing": 0.0, "group_order": "depth", "lr_multipliers": None,
    },
    ("paper", "fit_classifier"): {
        **ADAM_PAPER, **SLANTED, **NONE, **FIXED, "gradual_unfreezing": 1, "epochs": 50,
        "alpha": 0.0, "beta": 0.0, "lr": 0.01, "batch_size": 64, "bptt": 70, "max_len": 1400,
        "factor": 2.6, "clip": None, "label_smoothing": 0.0, "lr_multipliers": None,
    },
    ("fastai07", "pretrain"): {
        **ADAM_07, **SLANTED, **AR, **NONE, "weight_decay": 1e-7, "epochs": 12, "lr": 0.001,
        "batch_size": 64, "bptt": 70, "lr_multipliers": (1 / 6, 1 / 3, 1.0, 1.0), "clip": None,
        "random_bptt": True, "rescale_lr": False, "group_order": "fastai", "label_smoothing": 0.0,
    },
    ("fastai07", "fine_tune_lm"): {
        **ADAM_07, **SLANTED, **AR, **NONE, "weight_decay": 1e-7, "epochs": 25, "lr": 0.004,
        "batch_size": 64, "bptt": 70, "lr_multipliers": (1 / 6, 1 / 3, 1.0, 0.5), "clip": 0.3,
        "random_bptt": True, "rescale_lr": False, "group_order": "fastai", "label_smoothing": 0.0,
    },
    ("fastai07", "fit_classifier"): {
        **AR, **ADAM_07, **FIXED, "weight_decay": 1e-6, "epochs": 52, "lr": 0.01, "batch_size": 32,
        "bptt": 70, "max_len": 1400, "factor": 2.6, "clip": 25.0, "lr_multipliers": None,
        "schedule": "slanted", "schedule_per": "stage", "cut_frac": (1 / 3, 1 / 3, 0.125),
        "ratio": 8.0, "gradual_unfreezing": (1, 1), "chain_thaw": False, "lr_decay": 1.0,
        "reset_optimizer": True, "label_smoothing": 0.0,
    },
    ("fastai_v2", "pretrain"): {
        **ADAMW_V2, **V2, **AR, **NONE, **FIXED, "epochs": 10, "lr": 0.005, "batch_size": 64,
        "bptt": 72, "factor": 1.0, "clip": None, "lr_multipliers": None, "group_order": "fastai",
        "label_smoothing": 0.0,
    },
    ("fastai_v2", "fine_tune_lm"): {
        **ADAMW_V2, **V2, **AR, **FIXED, "epochs": 11, "lr": 0.02, "batch_size": 256, "bptt": 80,
        "factor": 1.0, "clip": 0.1, "gradual_unfreezing": (1,), "lr_decay": 0.1,
        "reset_optimizer": True, "chain_thaw": False, "lr_multipliers": None,
        "group_order": "fastai", "label_smoothing": 0.0,
    },
    ("fastai_v2", "fit_classifier"): {
        **AR, **ADAMW_V2, **V2, **FIXED, "epochs": 5, "lr": 0.05, "batch_size": 64, "bptt": 72,
        "max_len": 1440, "factor": 2.6, "clip": 0.1, "gradual_unfreezing": (1, 1, 1),
        "lr_decay": (0.5, 0.5, 0.2), "reset_optimizer": True, "chain_thaw": False,
        "lr_multipliers": None, "label_smoothing": 0.0,
    },
    ("multifit", "pretrain"): {
        **V1, **AR, **NONE, **FIXED, "schedule_per": "run", "optimizer": "adam",
        "betas": (0.8, 0.99), "eps": 1e-8, "weight_decay": 1e-7, "epochs": 10, "lr": 0.005,
        "batch_size": 50, "bptt": 70, "factor": 1.0, "clip": 0.12, "lr_multipliers": None,
        "group_order": "fastai", "label_smoothing": 0.0, "no_decay_on_bias_and_norm": False,
    },
    ("multifit", "fine_tune_lm"): {
        **V1, **AR, **FIXED, "schedule_per": "stage", "optimizer": "adam", "betas": (0.8, 0.99),
        "eps": 1e-8, "weight_decay": 1e-7, "epochs": 21, "lr": 0.01, "batch_size": 20, "bptt": 70,
        "factor": 1.0, "clip": 0.12, "gradual_unfreezing": (1,), "lr_decay": 0.1,
        "reset_optimizer": True, "chain_thaw": False, "lr_multipliers": None,
        "group_order": "fastai", "label_smoothing": 0.0, "no_decay_on_bias_and_norm": False,
    },
    ("multifit", "fit_classifier"): {
        **AR, **V1, **NONE, **FIXED, "schedule_per": "run", "optimizer": "adamw",
        "betas": (0.8, 0.99), "eps": 1e-8, "weight_decay": 0.01, "epochs": 8, "lr": 0.02,
        "batch_size": 18, "bptt": 70, "max_len": 1400, "factor": pytest.approx(2.467088, rel=1e-5),
        "clip": 0.12, "label_smoothing": 0.1, "lr_multipliers": None,
        "no_decay_on_bias_and_norm": False,
    },
}  # fmt: skip
DROP_MULT = {
    ("fastai07", "pretrain"): 0.5,
    ("fastai_v2", "fit_classifier"): 0.5,
    ("multifit", "pretrain"): 0.0,
    ("multifit", "fine_tune_lm"): 0.3,
    ("multifit", "fit_classifier"): 0.5,
}


@pytest.mark.parametrize("name", NAMES)
def test_models(name):
    hidden, layers, tokenizer, words, occurrences, lm, classifier = MODELS[name]
    preset = presets.named(name)
    assert preset.name == name and preset == getattr(presets, name)()
    assert preset.model == {
        "emb_size": 400,
        "hidden_size": hidden,
        "num_layers": layers,
        "tokenizer": tokenizer,
        "max_vocab": words,
        "min_freq": occurrences,
        "drop_mult": 1.0,
        "lm_dropout": lm,
        "classifier_dropout": classifier,
    }


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", NAMES)
def test_stages(name, stage):
    given = dict(getattr(presets.named(name), stage))
    assert given.pop("drop_mult", 1.0) == DROP_MULT.get((name, stage), 1.0)
    settings = TrainingSettings(**given)
    for field, value in {**TABLE[name, stage], **FULL}.items():
        assert getattr(settings, field) == value, field
    # What the table does not name is what the preset does not set.
    unnamed = set(given) - set(TABLE[name, stage])
    assert unnamed <= {"group_order"}, unnamed


def test_a_preset_is_made_anew_each_time():
    presets.paper().model["lm_dropout"]["input_p"] = 0.9
    presets.paper().fine_tune_lm["lr"] = 9.0
    assert presets.paper().model["lm_dropout"]["input_p"] == 0.4
    assert presets.paper().model["classifier_dropout"]["input_p"] == 0.4
    assert presets.paper().fine_tune_lm["lr"] == 0.004


@pytest.mark.parametrize(("name", "sizes"), [("small", (96, 192, 2)), ("medium", (200, 400, 3))])
def test_the_package_s_own_presets_make_a_model_and_its_stages(name, sizes):
    settings = ULMFiT(preset=name, device="cpu", progress=False).settings
    assert (settings.emb_size, settings.hidden_size, settings.num_layers) == sizes
    assert settings.preset == presets.named(name) == getattr(presets, name)()
    for stage, lr in (("pretrain", 3e-3), ("fine_tune_lm", 4e-3), ("fit_classifier", 2.5e-2)):
        training, drop_mult = settings.stage(stage)
        assert (training.lr, training.batch_size, drop_mult) == (lr, 16, 0.3)


def test_an_unknown_preset_lists_the_known_ones():
    message = (
        "preset is 'fastai', expected one of paper, fastai07, fastai_v2, multifit, small, medium"
    )
    with pytest.raises(ValueError, match=message):
        presets.named("fastai")


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_names_its_source_and_what_differs(name):
    text = " ".join(getattr(presets, name).__doc__.split())
    assert re.search(r"Source: .*(arXiv|fastai \d)", text)


def small_model(preset, emb_size=8, hidden_size=12):
    """The preset's layers and dropouts at a toy's sizes."""
    layers = preset.model["num_layers"]
    config = AWDLSTMConfig(20, emb_size=emb_size, hidden_size=hidden_size, num_layers=layers)
    lm = replace(config, **preset.model["lm_dropout"])
    return lm, replace(config, **preset.model["classifier_dropout"])


def toy_settings(given, epochs):
    given = {key: value for key, value in given.items() if key != "drop_mult"}
    return TrainingSettings(**{**given, "epochs": epochs, "batch_size": 4, "bptt": 10})


@pytest.mark.parametrize("name", NAMES)
def test_rates_of_the_groups(name):
    """Worked values: embedding, layers, head; for fastai's language models decoder last."""
    preset = presets.named(name)
    lm, classifier = small_model(preset)
    wanted = {
        "paper": ([0.00022758, 0.00059172, 0.00153846, 0.004], [0.01 / 45.6976, 0.01]),
        "fastai07": ([0.004 / 6, 0.004 / 3, 0.004, 0.002], [0.01 / 45.6976, 0.01]),
        "fastai_v2": ([0.02] * 4, [0.05 / 45.6976, 0.05]),
        "multifit": ([0.01] * 5, [0.01 / 45.6976, 0.02]),
    }[name]
    settings = toy_settings(preset.fine_tune_lm, 1)
    groups = make_optimizer(LanguageModel(lm), settings).param_groups
    rates = [group["lr"] for group in groups if not group.get("twin")]
    assert rates == pytest.approx(wanted[0], rel=1e-4)
    settings = toy_settings(preset.fit_classifier, 1)
    model = build_classifier(None, classifier, 2, settings)
    groups = make_optimizer(model, settings).param_groups
    rates = [group["lr"] for group in groups if not group.get("twin")]
    assert [rates[0], rates[-1]] == pytest.approx(wanted[1], rel=1e-4)
    ratios = [b / a for a, b in pairwise(rates)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    # The second dropout of the head is 0.1 in all of them, whatever drop_mult says.
    assert model.head_p == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_trains_from_end_to_end(name):
    # Of another seed the head of fastai07 learns less than its bounds, whatever the kernels are.
    torch.manual_seed(3)
    preset = presets.named(name)
    lm, classifier = small_model(preset, emb_size=20, hidden_size=28)
    draw = np.random.default_rng(0)
    labels = torch.arange(60) % 2
    # Texts of the two classes have no word in common.
    docs = [np.r_[2, draw.integers(4, 12, 9) + 8 * int(y)].astype(np.int32) for y in labels]
    model = LanguageModel(lm.scaled(preset.pretrain.get("drop_mult", 1.0)))
    first = train_language_model(model, docs, toy_settings(preset.pretrain, 6), progress=False)
    assert first.epochs[-1].loss < first.epochs[0].loss
    tuned = train_language_model(model, docs, toy_settings(preset.fine_tune_lm, 3), progress=False)
    assert tuned.epochs[-1].loss < first.epochs[0].loss
    stages = {"paper": 0, "fastai07": 0, "fastai_v2": 2, "multifit": 2}[name]
    assert len(tuned.unfreeze_steps) == stages
    settings = toy_settings(preset.fit_classifier, 12)
    config = classifier.scaled(preset.fit_classifier.get("drop_mult", 1.0))
    model = build_classifier(model, config, 2, settings)
    history = fit_classifier(model, docs, labels, settings, progress=False)
    stages = {"paper": 5, "fastai07": 3, "fastai_v2": 4, "multifit": 0}[name]
    assert len(history.unfreeze_steps) == stages
    logits = predict_logits(model, ClassifierBatches(docs, labels, 8), 60)
    assert F.cross_entropy(logits, labels) < 0.55, "0.69 is a guess"
    assert (logits.argmax(1) == labels).float().mean() > 0.8


def test_the_published_rates_of_fastai_v2():
    """One epoch each at lr, lr/2, lr/4, then two at lr/20, the last group's peak."""
    preset = presets.fastai_v2()
    _, classifier = small_model(preset)
    settings = toy_settings(preset.fit_classifier, 5)
    docs = [np.arange(2, 12, dtype=np.int32)] * 160
    model = build_classifier(None, classifier, 2, settings)
    history = fit_classifier(model, docs, torch.arange(160) % 2, settings, progress=False)
    peaks = [
        max(rates[-1] for rates in history.lrs[start:stop])
        for start, stop in ((0, 40), (40, 80), (80, 120), (120, 200))
    ]
    assert peaks == pytest.approx([0.05, 0.025, 0.0125, 0.0025])
    assert history.lrs[0][-1] == pytest.approx(0.05 / 25)
