"""ULMFiT as its paper says it, and as the code beside the paper does it."""

from __future__ import annotations

from typing import Any

from ulmfit_fast.presets.preset import Preset, dropouts, model

__all__ = ["fastai07", "paper"]


def paper() -> Preset:
    """Return the protocol as the paper's text has it.

    One slanted triangle over all steps of a stage, rates smaller by 2.6 from layer to layer, one
    more layer group an epoch. Adam without weight decay or clipping; random sequence lengths with
    the rate in proportion, as in the paper that the text refers to for them. Fine-tuning runs for
    15 epochs and the classifier for 50, as in the paper's analysis.

    The text does not say: the vocabulary (60,000 words that occur three times, as in fastai), the
    epochs and rate of pre-training (10, and that of fine-tuning), and the pooled length, "as fits
    into memory" (20 windows, as in the paper's code). The paper's code has other values in many
    places: see `fastai07`.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146v5), sections 3 and 4.1; Merity et al. 2018
        (arXiv:1708.02182) for the random lengths.
    """
    values = dropouts(input_p=0.4, hidden_p=0.3, embed_p=0.05, weight_p=0.5, output_p=0.4)
    common: dict[str, Any] = {
        "batch_size": 64,
        "bptt": 70,
        "optimizer": "adam",
        "betas": (0.7, 0.99),
        "weight_decay": 0.0,
        "clip": None,
        "schedule": "slanted",
        "schedule_per": "run",
        "cut_frac": 0.1,
        "ratio": 32.0,
        "group_order": "depth",
    }
    language_model = {**common, "alpha": 2.0, "beta": 1.0, "random_bptt": True, "rescale_lr": True}
    return Preset(
        "paper",
        model=model(
            hidden_size=1150,
            num_layers=3,
            tokenizer="word",
            max_vocab=60_000,
            min_freq=3,
            lm=values,
            classifier=values,
        ),
        pretrain={**language_model, "epochs": 10, "lr": 4e-3, "factor": 1.0},
        fine_tune_lm={
            **language_model,
            "epochs": 15,
            "lr": 4e-3,
            "factor": 2.6,
            "gradual_unfreezing": 0,
        },
        fit_classifier={
            **common,
            "epochs": 50,
            "alpha": 0.0,
            "beta": 0.0,
            "lr": 1e-2,
            "factor": 2.6,
            "max_len": 1400,
            "gradual_unfreezing": 1,
        },
    )


def fastai07() -> Preset:
    """Return the protocol of the code that accompanies the paper.

    Where it differs from the paper's text: the first decay rate of Adam is 0.8, not 0.7; the
    language model has about half the dropout; its rates are lr/6, lr/3, lr for the three LSTM
    layers and lr/2 for embedding and decoder, all trained from the start; gradients are clipped and
    weights decayed (added to the gradient); random sequence lengths leave the rate alone. The
    classifier opens the head, then the last layer, an epoch each, and then everything, with a new
    triangle each time, of ratio 8 and a rise of 1/3, 1/3 and 1/8 of the steps; batches are halved.

    Left out: the first batch of an epoch, which is 25 tokens longer to claim memory. The epochs are
    those of the examples in the scripts' description.

    Source:
        fastai 0.7, courses/dl2/imdb_scripts: tok2id.py, pretrain_lm.py, finetune_lm.py,
        train_clas.py.
    """
    common: dict[str, Any] = {
        "bptt": 70,
        "optimizer": "adam",
        "betas": (0.8, 0.99),
        "schedule": "slanted",
    }
    language_model = {
        **common,
        "batch_size": 64,
        "weight_decay": 1e-7,
        "alpha": 2.0,
        "beta": 1.0,
        "schedule_per": "run",
        "cut_frac": 0.1,
        "ratio": 32.0,
        "group_order": "fastai",
        "random_bptt": True,
        "rescale_lr": False,
    }
    return Preset(
        "fastai07",
        model=model(
            hidden_size=1150,
            num_layers=3,
            tokenizer="word",
            max_vocab=30_000,
            min_freq=2,
            lm=dropouts(input_p=0.25, hidden_p=0.15, embed_p=0.02, weight_p=0.2, output_p=0.1),
            classifier=dropouts(
                input_p=0.4, hidden_p=0.3, embed_p=0.05, weight_p=0.5, output_p=0.4
            ),
        ),
        pretrain={
            **language_model,
            "epochs": 12,
            "lr": 1e-3,
            "lr_multipliers": (1 / 6, 1 / 3, 1.0, 1.0),
            "clip": None,
            "drop_mult": 0.5,
        },
        fine_tune_lm={
            **language_model,
            "epochs": 25,
            "lr": 4e-3,
            "lr_multipliers": (1 / 6, 1 / 3, 1.0, 1 / 2),
            "clip": 0.3,
            "gradual_unfreezing": 0,
        },
        fit_classifier={
            **common,
            "epochs": 52,
            "lr": 1e-2,
            "factor": 2.6,
            "batch_size": 32,
            "weight_decay": 1e-6,
            "alpha": 2.0,
            "beta": 1.0,
            "clip": 25.0,
            "max_len": 1400,
            "schedule_per": "stage",
            "cut_frac": (1 / 3, 1 / 3, 1 / 8),
            "ratio": 8.0,
            "gradual_unfreezing": (1, 1),
            "reset_optimizer": True,
        },
    )
