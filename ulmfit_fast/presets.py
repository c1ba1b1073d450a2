"""The protocols of four sources, with the values that the sources really have, and two small ones.

A preset is four sets of keyword arguments: of `ULMFiT`, and of its methods `pretrain`,
`fine_tune_lm` and `fit_classifier`. The three stages hold fields of `TrainingSettings`, and
"drop_mult" where the source has another factor on the dropouts of that stage than on the model's.

What no preset reproduces: fastai takes a classifier's AR and TAR over padding as well, here they
are means over real tokens; fastai 0.7 has a decoder without a bias, pools over padding too, and
pre-trains with a sampled softmax; MultiFiT has QRNN layers where LSTM layers stand here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ulmfit_fast.system.lazy import lazy_attributes

__all__ = [
    "Preset",
    "fastai07",
    "fastai_v2",
    "medium",
    "multifit",
    "named",
    "paper",
    "small",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__, __all__)


@dataclass(frozen=True)
class Preset:
    """Keyword arguments of a model and its three stages.

    Example:
        >>> from ulmfit_fast import presets
        >>> presets.paper().fine_tune_lm["lr"]
        0.004

    Attributes:
        name: of the function that makes it.
        model: of `ULMFiT`.
        pretrain: of `ULMFiT.pretrain`.
        fine_tune_lm: of `ULMFiT.fine_tune_lm`.
        fit_classifier: of `ULMFiT.fit_classifier`.
    """

    name: str
    model: dict[str, Any]
    pretrain: dict[str, Any]
    fine_tune_lm: dict[str, Any]
    fit_classifier: dict[str, Any]


def _dropouts(
    *, input_p: float, hidden_p: float, embed_p: float, weight_p: float, output_p: float
) -> dict[str, float]:
    """Return dropout values by name."""
    return {
        "input_p": input_p,
        "hidden_p": hidden_p,
        "embed_p": embed_p,
        "weight_p": weight_p,
        "output_p": output_p,
    }


def _model(
    *,
    hidden_size: int,
    num_layers: int,
    tokenizer: str,
    max_vocab: int,
    min_freq: int,
    lm: dict[str, float],
    classifier: dict[str, float],
) -> dict[str, Any]:
    """Return the arguments of `ULMFiT`; the embedding has 400 units in all sources."""
    return {
        "emb_size": 400,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "tokenizer": tokenizer,
        "max_vocab": max_vocab,
        "min_freq": min_freq,
        "drop_mult": 1.0,
        "lm_dropout": dict(lm),
        "classifier_dropout": dict(classifier),
    }


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
    values = _dropouts(input_p=0.4, hidden_p=0.3, embed_p=0.05, weight_p=0.5, output_p=0.4)
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
        model=_model(
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
        model=_model(
            hidden_size=1150,
            num_layers=3,
            tokenizer="word",
            max_vocab=30_000,
            min_freq=2,
            lm=_dropouts(input_p=0.25, hidden_p=0.15, embed_p=0.02, weight_p=0.2, output_p=0.1),
            classifier=_dropouts(
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
        model=_model(
            hidden_size=1152,
            num_layers=3,
            tokenizer="word",
            max_vocab=60_000,
            min_freq=3,
            lm=_dropouts(input_p=0.25, hidden_p=0.15, embed_p=0.02, weight_p=0.2, output_p=0.1),
            classifier=_dropouts(
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
    values = _dropouts(input_p=0.2, hidden_p=0.1, embed_p=0.02, weight_p=0.15, output_p=0.25)
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
        model=_model(
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


def small() -> Preset:
    """Return a protocol of this package's own, for a CPU and some hundred to ten thousand texts.

    The model is the demo's (E = 96, H = 192, two layers). A language model that reads little text
    has little dropout; its lower layers are fine-tuned at rates near that of the last one. Batch
    size and epochs are starting points, for which `ulmfit.job.train` goes by the texts.
    """
    return _own("small", emb_size=96, hidden_size=192, num_layers=2, max_vocab=10_000)


def medium() -> Preset:
    """Return a protocol of this package's own between `small` and the paper's.

    E = 200, H = 400, three layers: for a GPU, or a CPU and patience.
    """
    return _own("medium", emb_size=200, hidden_size=400, num_layers=3, max_vocab=20_000)


def _own(name: str, **sizes: int) -> Preset:
    language_model = {"batch_size": 16, "bptt": 40}
    return Preset(
        name,
        model={
            **sizes,
            "min_freq": 2,
            "drop_mult": 0.3,
            "lm_dropout": _dropouts(
                input_p=0.1, hidden_p=0.1, embed_p=0.02, weight_p=0.15, output_p=0.05
            ),
        },
        # At 5e-3 and more a model this small does not always leave the unigram plateau.
        pretrain={**language_model, "epochs": 5, "lr": 3e-3, "factor": 1.0},
        fine_tune_lm={**language_model, "epochs": 5, "lr": 4e-3, "factor": 1.3},
        fit_classifier={"epochs": 10, "lr": 2.5e-2, "batch_size": 16, "gradual_unfreezing": 1},
    )


_ALL: dict[str, Callable[[], Preset]] = {
    make.__name__: make for make in (paper, fastai07, fastai_v2, multifit, small, medium)
}


def named(name: str) -> Preset:
    """Return a preset by its name.

    Example:
        >>> named("multifit").fit_classifier["label_smoothing"]
        0.1

    Args:
        name: "paper", "fastai07", "fastai_v2", "multifit", "small" or "medium".

    Raises:
        ValueError: for another name.
    """
    if name not in _ALL:
        raise ValueError(f"preset is {name!r}, expected one of {', '.join(_ALL)}")
    return _ALL[name]()
