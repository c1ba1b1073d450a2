"""Several classifiers as one: a forward and a backward model, and the mean of what they say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data.columns import Label
from ulmfit_fast.data.reading.corpus import read_texts
from ulmfit_fast.data.reading.lines import OnError
from ulmfit_fast.serving.predictor import Predictor
from ulmfit_fast.system.directories import CONFIG, ENSEMBLE_FORMAT, read_version, write_directory
from ulmfit_fast.system.files import user_path, write_text
from ulmfit_fast.ulmfit.estimator import ULMFiT
from ulmfit_fast.ulmfit.evaluation import Evaluation
from ulmfit_fast.ulmfit.labelled import labelled_texts, text_weights
from ulmfit_fast.ulmfit.model_files import FORMAT_VERSION, read_config
from ulmfit_fast.ulmfit.model_schema import shown
from ulmfit_fast.ulmfit.trained import Texts
from ulmfit_fast.ulmfit.validation import evaluated

__all__ = ["Ensemble", "fit_ensemble"]


class Ensemble(Predictor):
    """Classifiers that answer together: the mean of their probabilities.

    Example:
        >>> import ulmfit_fast as uf
        >>> texts, labels = ["a fine film", "a dull film"] * 20, ["good", "bad"] * 20
        >>> sizes = dict(emb_size=8, hidden_size=16, num_layers=2, min_freq=1, progress=False)
        >>> models = [uf.ULMFiT(**sizes), uf.ULMFiT(**sizes, backwards=True)]
        >>> both = Ensemble([m.fit_classifier(texts, labels, epochs=1) for m in models])
        >>> both.predict_proba(["a fine film"]).shape
        (1, 2)

    Args:
        models: at least one `ULMFiT` with a classifier, all for the same labels.

    Raises:
        TypeError: if one of the models is something else.
        ValueError: if there is no model, one of them has no classifier, or labels differ.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146), section 3.3, for the two directions.
    """

    def __init__(self, models: Iterable[ULMFiT]) -> None:
        self.models = list(models)
        if not self.models:
            raise ValueError("models is empty, expected at least one ULMFiT with a classifier")
        for position, model in enumerate(self.models):
            if not isinstance(model, ULMFiT):
                raise TypeError(
                    f"models[{position}] is {model!r:.60} ({type(model).__name__}), expected a "
                    "ULMFiT; read a directory with ULMFiT.load"
                )
            if model.classifier is None:
                raise ValueError(
                    f"models[{position}] has no classifier yet; call fit_classifier(texts, labels)"
                )
        self.labels: list[Label] = list(self.models[0].labels)
        for position, model in enumerate(self.models):
            # 1 and True are equal, and not the same label.
            if [repr(x) for x in model.labels] != [repr(x) for x in self.labels]:
                raise ValueError(
                    f"models[{position}] has the labels {model.labels!r:.120} and models[0] "
                    f"{self.labels!r:.120}, expected the same; fit all of them on the same labels"
                )

    def _require_classifier(self) -> None:
        """Do nothing: each model has one."""

    def _probabilities(self, texts: list[str], batch_size: int) -> npt.NDArray[np.float32]:
        """Return the mean probability of each class."""
        parts = [model._probabilities(texts, batch_size) for model in self.models]
        mean: npt.NDArray[np.float32] = np.mean(parts, axis=0)
        return mean

    def evaluate(
        self,
        texts: Texts,
        labels: Iterable[Label] | None = None,
        *,
        text_column: str = "text",
        label_column: str = "label",
        on_error: OnError = "raise",
        delimiter: str | None = None,
        encoding: str | None = None,
        batch_size: int = 64,
    ) -> Evaluation:
        """Say how good the models are together, as `ULMFiT.evaluate` does for one.

        Args:
            texts: texts that none of the classifiers was fitted to.
            labels: of each; None reads them from `label_column`.
            text_column: column of a file or table.
            label_column: column of a file or table.
            on_error: "raise", or "skip" to leave out rows that cannot be read.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.
            batch_size: texts at a time; the result does not depend on it.

        Returns:
            As `ULMFiT.evaluate`, with the baselines of the first model that has a bag of words.

        Raises:
            TypeError: as `ULMFiT.evaluate`.
            ValueError: as `ULMFiT.evaluate`.
        """
        kept = [model.baselines for model in self.models if model.baselines is not None]
        kept.sort(key=lambda own: own.bag_of_words is None)
        return evaluated(
            *(self, texts, labels),
            baselines=kept[0] if kept else None,
            text_column=text_column,
            label_column=label_column,
            on_error=on_error,
            delimiter=delimiter,
            encoding=encoding,
            batch_size=batch_size,
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write all models into one directory, which changes by one step.

        Args:
            directory: where to; an older model there is replaced once the new one is complete.

        Raises:
            FileExistsError: if the directory holds something else, or another process holds it.
        """
        names = [f"model_{position}" for position in range(len(self.models))]

        def write(written: Path) -> None:
            for name, model in zip(names, self.models, strict=True):
                model.save(written / name)
            config = {"format": ENSEMBLE_FORMAT, "format_version": FORMAT_VERSION, "models": names}
            write_text(written / CONFIG, json.dumps(config, indent=2))

        write_directory(directory, write)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        *,
        device: str | None = None,
        progress: bool = True,
    ) -> Ensemble:
        """Read what `save` wrote.

        Args:
            directory: as `save` wrote it.
            device: "cpu", "cuda" or None for CUDA where there is any.
            progress: show progress bars on a terminal.

        Raises:
            FileNotFoundError: if the directory or a file of it is missing.
            ValueError: if it is of a newer version, or damaged.
        """

        def read(path: Path) -> Ensemble:
            names = read_config(path, ENSEMBLE_FORMAT).get("models")
            # Names alone: a path would lead out of the directory.
            wanted = [f"model_{n}" for n in range(len(names))] if isinstance(names, list) else []
            if not wanted or names != wanted:
                raise ValueError(
                    f"{path / CONFIG} is damaged: models is {shown(names)}, expected "
                    "['model_0', ...]; save it again"
                )
            models = [ULMFiT.load(path / name, device=device, progress=progress) for name in wanted]
            try:
                return cls(models)
            except ValueError as error:
                raise ValueError(f"{path} is damaged: {error}; save it again") from error

        return read_version(user_path(directory), read)


def fit_ensemble(
    texts: Texts,
    labels: Iterable[Label] | None = None,
    *,
    pretrain_texts: Texts | None = None,
    fine_tune_texts: Texts | None = None,
    language_models: Sequence[ULMFiT] | None = None,
    pretrain: Mapping[str, Any] | None = None,
    fine_tune_lm: Mapping[str, Any] | None = None,
    fit_classifier: Mapping[str, Any] | None = None,
    text_column: str = "text",
    label_column: str = "label",
    delimiter: str | None = None,
    encoding: str | None = None,
    **options: Any,
) -> Ensemble:
    """Take a forward and a backward model through all stages of ULMFiT, and put them together.

    Example:
        >>> texts, labels = ["a fine film", "a dull film"] * 20, ["good", "bad"] * 20
        >>> sizes = dict(emb_size=8, hidden_size=16, num_layers=2, min_freq=1, progress=False)
        >>> lm = dict(epochs=1, batch_size=4)
        >>> both = fit_ensemble(texts, labels, pretrain_texts=texts, pretrain=lm, fine_tune_lm=lm,
        ...                     fit_classifier=dict(epochs=1), **sizes)
        >>> [model.backwards for model in both.models]
        [False, True]

    Args:
        texts: the labelled texts.
        labels: a label for each text, as for `ULMFiT.fit_classifier`; None reads them from
            `label_column` of the texts.
        pretrain_texts: general text for stage 1; None leaves it out.
        fine_tune_texts: text like that of the task for stage 2, labelled or not; None takes
            `texts`. Stage 2 is left out where there is no language model to fine-tune.
        language_models: pre-trained models to start from in place of stage 1, one that reads
            forwards and one backwards; they stay as they are.
        pretrain: arguments of `ULMFiT.pretrain`.
        fine_tune_lm: arguments of `ULMFiT.fine_tune_lm`.
        fit_classifier: arguments of `ULMFiT.fit_classifier`, class_weight, sample_weight and
            weight_column among them.
        text_column: column of a file or table.
        label_column: column of a file or table.
        delimiter: of .csv and .tsv files, as for `data.read_texts`.
        encoding: of text files, as for `data.read_texts`.
        options: arguments of `ULMFiT`, such as preset, seed and device.

    Returns:
        The two models as one.

    Raises:
        TypeError: if `backwards` is among the options: both directions are made here.
        ValueError: if there are both `language_models` and `pretrain_texts`, arguments of a stage
            that is left out, the models do not read in two directions, or as for the stages.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146), section 3.3: the mean of both models' predictions.
    """
    if pretrain is not None and pretrain_texts is None:
        raise ValueError("pretrain is given without pretrain_texts; pass the general text, too")
    models = _starting_points(language_models, pretrain_texts, options)
    if language_models is None and pretrain_texts is None and (fine_tune_lm or fine_tune_texts):
        raise ValueError(
            "there is no language model to fine-tune; pass pretrain_texts or language_models"
        )
    last = dict(fit_classifier or {})
    class_weight, *weights = (
        last.pop(name, None) for name in ("class_weight", "sample_weight", "weight_column")
    )
    form: dict[str, Any] = {
        "text_column": text_column,
        "delimiter": delimiter,
        "encoding": encoding,
    }
    corpus, own, sample_weight = labelled_texts(
        texts, labels, *weights, label_column=label_column, **form
    )
    # Once for both models, and refused before the first is trained.
    last["sample_weight"] = text_weights(own, class_weight, sample_weight)
    general = [] if pretrain_texts is None else list(read_texts(pretrain_texts, **form))
    target = corpus if fine_tune_texts is None else list(read_texts(fine_tune_texts, **form))
    for model in models:
        if pretrain_texts is not None:
            model.pretrain(general, **(pretrain or {}))
        if model.language_model is not None:
            model.fine_tune_lm(target, **(fine_tune_lm or {}))
        model.fit_classifier(corpus, own, **last)
    return Ensemble(models)


def _starting_points(
    language_models: Sequence[ULMFiT] | None,
    pretrain_texts: Texts | None,
    options: Mapping[str, Any],
) -> list[ULMFiT]:
    """Return a forward and a backward model, not yet trained on anything here."""
    if "backwards" in options:
        raise TypeError("backwards is given, and both directions are made here; leave it out")
    if "checkpoint_dir" in options:
        raise TypeError("checkpoint_dir is given for two models; save the ensemble instead")
    if language_models is None:
        return [ULMFiT(**options, backwards=backwards) for backwards in (False, True)]
    if pretrain_texts is not None:
        raise ValueError(
            "there are pretrain_texts and language_models; pass the texts to pre-train, or the "
            "models that were"
        )
    if sorted(model.backwards for model in language_models) != [False, True]:
        raise ValueError(
            f"language_models read {[_direction(model) for model in language_models]}, expected "
            "one forwards and one backwards; make the other one with ULMFiT(backwards=True)"
        )
    for model in language_models:
        if model.language_model is None:
            raise ValueError(
                f"the model that reads {_direction(model)} has no language model; call pretrain"
            )
    if set(options) - {"seed", "progress"}:
        names = ", ".join(sorted(set(options) - {"seed", "progress"}))
        raise ValueError(f"{names} given beside language_models, which have their own; leave out")
    return [
        model.copy(**options, checkpoint_dir=None)
        for model in sorted(language_models, key=lambda model: model.backwards)
    ]


def _direction(model: ULMFiT) -> str:
    return "backwards" if model.backwards else "forwards"
