"""The protocols of four sources, with the values that the sources really have.

A preset is four sets of keyword arguments: of `ULMFiT`, and of its methods `pretrain`,
`fine_tune_lm` and `fit_classifier`. The three stages hold fields of `TrainingSettings`, and
"drop_mult" where the source has another factor on the dropouts of that stage than on the model's.

What no preset reproduces: fastai takes a classifier's AR and TAR over padding as well, here they
are means over real tokens; fastai 0.7 has a decoder without a bias, pools over padding too, and
pre-trains with a sampled softmax; MultiFiT has QRNN layers where LSTM layers stand here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ulmfit_fast.lazy import lazy_attributes
from ulmfit_fast.presets.howard_ruder import fastai07, paper
from ulmfit_fast.presets.later import fastai_v2, multifit
from ulmfit_fast.presets.preset import Preset

__all__ = ["Preset", "fastai07", "fastai_v2", "multifit", "named", "paper"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_attributes(__name__, __all__)

_ALL: dict[str, Callable[[], Preset]] = {
    make.__name__: make for make in (paper, fastai07, fastai_v2, multifit)
}


def named(name: str) -> Preset:
    """Return a preset by its name.

    Example:
        >>> named("multifit").fit_classifier["label_smoothing"]
        0.1

    Args:
        name: "paper", "fastai07", "fastai_v2" or "multifit".

    Raises:
        ValueError: for another name.
    """
    if name not in _ALL:
        raise ValueError(f"preset is {name!r}, expected one of {', '.join(_ALL)}")
    return _ALL[name]()
