"""What came after the paper: fastai 2 and MultiFiT."""

from __future__ import annotations

from typing import Any

from ulmfit_fast.presets.preset import Preset, dropouts, model

__all__ = ["fastai_v2", "multifit"]


def fastai_v2() -> Preset:
    """Return the protocol of fastai 2 on IMDb.

    AdamW with a one-cycle schedule for each stage of unfreezing, the momentum against the rate.
    The language model trains embedding and decoder alone for an epoch, then everything for ten at a
    tenth of the rate. The classifier opens one more group for an epoch each, at half the rate of
    the stage before, and from the fourth stage on trains everything at a fifth.

    The weight decay is the notebook's 0.1; the library's own default is 0.01. The notebook computes
    in float16, for which pass precision="float16" on a GPU. How the published weights were
    pre-trained is not in the library: `pretrain` has the rate of its WikiText-2 example and ten
    epochs. In fastai 2.2 to 2.8.3 AR and TAR were off by mistake; they are on here.

    Source:
        fastai 2.8.12: `text.models.awdlstm`, `text.learner`, `callback.schedule`,
        nbs/examples/ulmfit.ipynb.
    """
    common: dict[str, Any] = {
        "optimizer": "adamw",
        "betas": (0.8, 0.99),
        "eps": 1e-5,
        "weight_decay": 0.1,
        "no_decay_on_bias_and_norm": True,
        "schedule": "one_cycle",
        "schedule_per": "stage",
        "pct_start": 0.25,
        "div": 25.0,
        "div_final": 1e5,
        "moms": (0.8, 0.7, 0.8),
        "group_order": "fastai",
    }
    language_model = {**common, "alpha": 2.0, "beta": 1.0, "factor": 1.0}
    return Preset(
        "fastai_v2",
        model=model(
            hidden_size=1152,
            num_layers=3,
            tokenizer="word",
            max_vocab=60_000,
            min_freq=3,
            lm=dropouts(input_p=0.25, hidden_p=0.15, embed_p=0.02, weight_p=0.2, output_p=0.1),
            classifier=dropouts(
                input_p=0.4, hidden_p=0.3, embed_p=0.05, weight_p=0.5, output_p=0.4
            ),
        ),
        pretrain={**language_model, "epochs": 10, "lr": 5e-3, "batch_size": 64, "bptt": 72},
        fine_tune_lm={
            **language_model,
            "epochs": 11,
            "lr": 2e-2,
            "batch_size": 256,
            "bptt": 80,
            "clip": 0.1,
            "gradual_unfreezing": (1,),
            "lr_decay": 0.1,
            "reset_optimizer": True,
        },
        fit_classifier={
            **common,
            "epochs": 5,
            "lr": 5e-2,
            "factor": 2.6,
            "batch_size": 64,
            "bptt": 72,
            "max_len": 1440,
            "clip": 0.1,
            "alpha": 2.0,
            "beta": 1.0,
            "gradual_unfreezing": (1, 1, 1),
            "lr_decay": (0.5, 0.5, 0.2),
            "reset_optimizer": True,
            "drop_mult": 0.5,
        },
    )


def multifit() -> Preset:
    """Return the protocol of MultiFiT, on LSTM layers.

    Subwords, four layers, a one-cycle schedule in place of the slanted triangle, label smoothing
    and no gradual unfreezing. The language model is pre-trained without dropout, fine-tuned with
    0.3 of it (an epoch of embedding and decoder alone at ten times the rate first), and the
    classifier fitted with 0.5. The classifier's rates go from 0.01/2.6^4 for the embedding to 0.02
    for the head in equal ratios, which over six layer groups is a factor of about 2.47.

    Where the code differs from the paper: it divides the label smoothing of 0.1 by the number of
    classes. Its weight decay is added to the gradient for the language models and decoupled for the
    classifier, as here.

    Source:
        Eisenschlos et al. 2019 (arXiv:1909.04761); n-waves/multifit, `multifit_paper_version`, on
        fastai 1.0.
    """
    values = dropouts(input_p=0.2, hidden_p=0.1, embed_p=0.02, weight_p=0.15, output_p=0.25)
    common: dict[str, Any] = {
        "bptt": 70,
        "betas": (0.8, 0.99),
        "clip": 0.12,
        "schedule": "one_cycle",
        "pct_start": 0.3,
        "div": 25.0,
        "div_final": 25e4,
        "moms": (0.8, 0.7, 0.8),
        "group_order": "fastai",
    }
    language_model = {
        **common,
        "optimizer": "adam",
        "weight_decay": 1e-7,
        "alpha": 2.0,
        "beta": 1.0,
        "factor": 1.0,
    }
    return Preset(
        "multifit",
        model=model(
            hidden_size=1550,
            num_layers=4,
            tokenizer="subword",
            max_vocab=15_000,
            min_freq=3,
            lm=values,
            classifier=values,
        ),
        pretrain={
            **language_model,
            "epochs": 10,
            "lr": 5e-3,
            "batch_size": 50,
            "drop_mult": 0.0,
        },
        fine_tune_lm={
            **language_model,
            "epochs": 21,
            "lr": 1e-2,
            "batch_size": 20,
            "schedule_per": "stage",
            "gradual_unfreezing": (1,),
            "lr_decay": 0.1,
            "reset_optimizer": True,
            "drop_mult": 0.3,
        },
        fit_classifier={
            **common,
            "optimizer": "adamw",
            "epochs": 8,
            "lr": 2e-2,
            "factor": (2 * 2.6**4) ** (1 / 5),
            "batch_size": 18,
            "max_len": 1400,
            "weight_decay": 0.01,
            "label_smoothing": 0.1,
            "alpha": 2.0,
            "beta": 1.0,
            "gradual_unfreezing": 0,
            "drop_mult": 0.5,
        },
    )
