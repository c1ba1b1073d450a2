"""`ULMFiTClassifier`: ULMFiT as an estimator of scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "ULMFiTClassifier needs the package scikit-learn; pip install 'ulmfit-fast[sklearn]'"
    ) from error

from ulmfit_fast.data.columns import check_ordered, shown
from ulmfit_fast.data.tables import column_values, is_table
from ulmfit_fast.data.tokens.texts import CheckedTexts
from ulmfit_fast.nn.weights import Place
from ulmfit_fast.presets import Preset
from ulmfit_fast.ulmfit.estimator import ULMFiT
from ulmfit_fast.ulmfit.labelled import ClassWeight, require_labels, text_weights
from ulmfit_fast.ulmfit.model_schema import check_labels

__all__ = ["ULMFiTClassifier"]

_PREDICT_BATCH = 64


class ULMFiTClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify texts with ULMFiT inside pipelines, searches and cross-validations of scikit-learn.

    X is a list, an array or a column of str, or a table with a column "text". Texts need no
    vectorizer before them. `fit` never changes the language model that it is given. A search over
    the classifier's values need not train the language model each time: fine-tune it once, and pass
    `fine_tune_lm=False`.

    Example:
        >>> from sklearn.model_selection import cross_val_score
        >>> texts, labels = ["a fine film", "a dull film"] * 20, ["good", "bad"] * 20
        >>> sizes = dict(emb_size=8, hidden_size=16, num_layers=2, min_freq=1)
        >>> model = ULMFiTClassifier(epochs=1, model_options=sizes, random_state=0)
        >>> cross_val_score(model, texts, labels, cv=2).shape
        (2,)

    Args:
        language_model: what to start from: a `ULMFiT` with a language model, the directory of one,
            or None for none.
        fine_tune_lm: train the language model on the texts of `fit` first; where none is given,
            from scratch. False leaves it as it is.
        epochs: passes of the classifier over the texts; None as for `ULMFiT.fit_classifier`.
        lr: its largest learning rate; None as for `ULMFiT.fit_classifier`.
        batch_size: texts at a time; None as for `ULMFiT.fit_classifier`.
        drop_mult: the classifier's factor on every dropout; None as for `ULMFiT.fit_classifier`.
        gradual_unfreezing: None as for `ULMFiT.fit_classifier`.
        class_weight: "balanced", a mapping from label to weight, or None, as for
            `ULMFiT.fit_classifier`. A mapping with a weight for each class of `fit` may have more:
            a fold of a cross-validation can lack a rare class.
        lm_epochs: passes of the language model; None as for `ULMFiT.fine_tune_lm`.
        lm_lr: its largest learning rate; None as for `ULMFiT.fine_tune_lm`.
        classifier_options: further arguments of `ULMFiT.fit_classifier`.
        lm_options: further arguments of `ULMFiT.fine_tune_lm`, or of `ULMFiT.pretrain` where no
            language model is given.
        model_options: arguments of `ULMFiT` where no language model is given.
        preset: a published recipe by its name, or a `presets.Preset`; a language model that is
            given has its own.
        device: "cpu", "cuda" or None for CUDA where there is any.
        random_state: int, `RandomState` or None: weights, masks and the order of the texts.
        progress: show progress bars on a terminal.

    Attributes:
        classes_: the labels, sorted, `(C,)`.
        model_: the fitted `ULMFiT`, for `save`, `explain` and the like.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146).
    """

    def __init__(
        self,
        language_model: ULMFiT | str | os.PathLike[str] | None = None,
        *,
        fine_tune_lm: bool = True,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        drop_mult: float | None = None,
        gradual_unfreezing: int | None = None,
        class_weight: ClassWeight | None = None,
        lm_epochs: int | None = None,
        lm_lr: float | None = None,
        classifier_options: Mapping[str, Any] | None = None,
        lm_options: Mapping[str, Any] | None = None,
        model_options: Mapping[str, Any] | None = None,
        preset: Preset | str | None = None,
        device: str | None = None,
        random_state: int | np.random.RandomState | None = None,
        progress: bool = False,
    ) -> None:
        self.language_model = language_model
        self.fine_tune_lm = fine_tune_lm
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.drop_mult = drop_mult
        self.gradual_unfreezing = gradual_unfreezing
        self.class_weight = class_weight
        self.lm_epochs = lm_epochs
        self.lm_lr = lm_lr
        self.classifier_options = classifier_options
        self.lm_options = lm_options
        self.model_options = model_options
        self.preset = preset
        self.device = device
        self.random_state = random_state
        self.progress = progress

    def fit(
        self, X: Iterable[str], y: Any, sample_weight: Iterable[float] | None = None
    ) -> ULMFiTClassifier:
        """Fit on texts and their labels.

        Args:
            X: texts, `(N,)`.
            y: labels, `(N,)`: str, int or what else scikit-learn takes for classes.
            sample_weight: `(N,)`, how much the classifier's loss on each text counts, at least 0;
                a factor of class_weight, and for "balanced" texts are counted with it. The
                language model is trained on all texts alike. None weighs them alike.

        Returns:
            The estimator itself.

        Raises:
            TypeError: if X does not hold strings, or a weight is no number.
            ValueError: if X and y differ in length, a label is missing, X is a table without
                exactly one column "text", there is one class only, or a weight or an option does
                not fit.
        """
        check_ordered("X", X)
        texts = _texts(X)
        y = _labels(y)
        check_classification_targets(y)
        check_consistent_length(texts, y)
        classes, encoded = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y holds the one class {classes.tolist()}, expected at least two classes"
            )
        # What a saved model can hold; whole numbers may come as floats.
        labels = [int(c) if isinstance(c, float) else c for c in classes.tolist()]
        check_labels(Place("the classes of y", "write it in another way"), labels)
        for name in ("class_weight", "sample_weight", "weight_column"):
            if name in (self.classifier_options or {}):
                own = "class_weight=" if name == "class_weight" else "sample_weight to fit"
                raise ValueError(f"classifier_options has {name!r}, expected none; pass {own}")
        for name in ("valid", "valid_column", "refit"):
            if name in (self.classifier_options or {}):
                raise ValueError(
                    f"classifier_options has {name!r}, expected none; hold texts out with "
                    "scikit-learn's cross_val_score or train_test_split"
                )
        # Before the language model is trained.
        weights = text_weights(y.tolist(), self.class_weight, sample_weight, spare=True)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        model = self._starting_point(seed)
        options = {"epochs": self.lm_epochs, "lr": self.lm_lr, **(self.lm_options or {})}
        if self.fine_tune_lm and model.language_model is not None:
            model.fine_tune_lm(texts, **options)
        elif self.fine_tune_lm:
            model.pretrain(texts, **options)
        options = self._classifier_options()
        model.fit_classifier(texts, encoded, sample_weight=weights, **options)
        # Fitted on positions, for labels that JSON would not keep; these are the labels themselves.
        model.labels = labels
        self.model_, self.classes_ = model, classes
        return self

    def _classifier_options(self) -> dict[str, Any]:
        own = {
            "epochs": self.epochs,
            "lr": self.lr,
            "batch_size": self.batch_size,
            "drop_mult": self.drop_mult,
            "gradual_unfreezing": self.gradual_unfreezing,
        }
        return {
            **{name: value for name, value in own.items() if value is not None},
            **(self.classifier_options or {}),
        }

    def _starting_point(self, seed: int) -> ULMFiT:
        start = self.language_model
        if start is None:
            options = {"preset": self.preset, "device": self.device, **(self.model_options or {})}
            return ULMFiT(**options, seed=seed, progress=self.progress)
        for name in ("model_options", "preset"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is given beside language_model, which has its own; leave one out"
                )
        if isinstance(start, ULMFiT):
            if self.device not in (None, start.device):
                raise ValueError(
                    f"device is {self.device!r} and that of language_model {start.device!r}; pass "
                    "its directory, or leave device out"
                )
            model = start.copy(checkpoint_dir=None)
        elif isinstance(start, (str, os.PathLike)):
            model = ULMFiT.load(start, device=self.device)
        else:
            raise TypeError(
                f"language_model is {start!r:.60} ({type(start).__name__}), expected a ULMFiT, the "
                "directory of one, or None"
            )
        if model.language_model is None:
            raise ValueError("language_model has no language model yet; call pretrain(texts) first")
        model.seed, model.progress = seed, self.progress
        return model

    def predict(self, X: Iterable[str]) -> npt.NDArray[Any]:
        """Return the most probable label of each text, in the order of the texts.

        Args:
            X: texts, `(N,)`.

        Returns:
            `(N,)`, values of `classes_`.

        Raises:
            NotFittedError: if `fit` has not been called.
            TypeError: if X does not hold strings.
        """
        scores = self.predict_proba(X)
        labels: npt.NDArray[Any] = self.classes_[scores.argmax(axis=1)]
        return labels

    def predict_proba(self, X: Iterable[str]) -> npt.NDArray[np.float32]:
        """Return the probability of each class, in the order of `classes_`.

        Args:
            X: texts, `(N,)`.

        Returns:
            `(N, C)` in float32.

        Raises:
            NotFittedError: if `fit` has not been called.
            TypeError: if X does not hold strings.
        """
        check_is_fitted(self)
        model: ULMFiT = self.model_
        return model.predict_proba(_texts(X), batch_size=self.batch_size or _PREDICT_BATCH)

    def score(self, X: Iterable[str], y: Any, sample_weight: Any = None) -> float:
        """Return the share of texts whose most probable label is the given one.

        Args:
            X: texts, `(N,)`.
            y: labels, `(N,)`, as for `fit`.
            sample_weight: what each text counts, `(N,)`; None counts them alike.

        Returns:
            From 0 to 1.

        Raises:
            NotFittedError: if `fit` has not been called.
            TypeError: if X does not hold strings.
            ValueError: if a label is missing.
        """
        check_is_fitted(self)
        return float(super().score(X, _labels(y), sample_weight))

    def __sklearn_tags__(self) -> Any:
        """Declare to scikit-learn that X is a column of strings."""
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags


def _labels(y: Any) -> npt.NDArray[Any]:
    """Return labels as scikit-learn has them, all there."""
    if is_table(y) and len(getattr(y, "columns", ())) == 1 and hasattr(y, "iloc"):
        # A frame of one column: scikit-learn warns and takes it for that column, in NumPy's kinds.
        column_or_1d(y, warn=True)
        y = y.iloc[:, 0]
    if isinstance(y, (str, bytes, Set, Mapping)) or (isinstance(y, np.ndarray) and is_table(y)):
        raise ValueError(
            f"y is {shown(y)} ({type(y).__name__}), expected (N,), a label for each text; pass a "
            'list, or one column, such as frame["label"]'
        )
    if isinstance(y, Iterable) and not is_table(y):
        # As they come: NumPy would write the NaN beside a string as "nan".
        values = list(column_values(y, "y"))
        require_labels("y", values)
        _require_one_kind(values)
        y = values if isinstance(y, Iterator) else y
        # pandas' own kinds of booleans and integers would become floats, which merge large ones.
        if values and all(isinstance(value, (bool, np.bool_)) for value in values):
            y = np.array(values, dtype=bool)
        elif values and all(type(value) in (int, np.int64) for value in values):
            y = np.array(values)
    labels: npt.NDArray[Any] = column_or_1d(y, warn=True)
    require_labels("y", labels)
    return labels


def _require_one_kind(labels: list[Any]) -> None:
    """Refuse strings, bools and others beside each other: NumPy merges or cannot sort them."""
    for position, label in enumerate(labels):
        if _kind_of(label) is not _kind_of(labels[0]):
            first = labels[0]
            raise ValueError(
                f"y[{position}] is {shown(label)} ({type(label).__name__}) and y[0] is "
                f"{shown(first)} ({type(first).__name__}), expected one kind; write each as a "
                "string"
            )


def _kind_of(label: Any) -> type:
    if isinstance(label, (bool, np.bool_)):
        return bool
    return str if isinstance(label, str) else object


def _texts(X: Iterable[str]) -> list[str]:
    """Return a column of texts as a list, or say what it is instead."""
    shape = None if is_table(X) else getattr(X, "shape", None)
    if shape is not None and len(shape) != 1:
        raise ValueError(
            f"X has shape {tuple(shape)}, expected (N,), one text each; pass one column, such as "
            'frame["text"]'
        )
    # NumPy's strings are str as well, but slower to handle.
    texts = [str(text) for text in CheckedTexts(X, name="X")]
    if not texts:
        raise ValueError("X has 0 samples, expected at least one text")
    return texts
