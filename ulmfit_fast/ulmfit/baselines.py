"""What a task gives away without a language model: the majority class and a bag of words."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ulmfit_fast.nn.weights import Place, check_finite
from ulmfit_fast.system.scoped import ignoring
from ulmfit_fast.ulmfit.evaluation import BAG_OF_WORDS, MAJORITY
from ulmfit_fast.ulmfit.model_schema import shown

__all__ = ["NO_BAG_OF_WORDS", "BagOfWords", "Baselines", "tfidf_pipeline"]

Array = npt.NDArray[Any]

# The default pattern of scikit-learn would drop "a" and all punctuation, and with them neighbours
# that matter.
_PATTERN = r"\w+|[^\w\s]"
_WORDS = re.compile(_PATTERN)
_NGRAMS = (1, 2)
# Of words and pairs; and of these times the classes, so that the file stays below 16 MB.
_MOST_FEATURES, _MOST_WEIGHTS, _FEWEST_FEATURES = 50_000, 4_000_000, 1_000

NO_BAG_OF_WORDS = (
    "There is no bag of words to compare with: fit the classifier with scikit-learn installed (pip "
    "install 'ulmfit-fast[sklearn]') and baseline=True, in the shell without --no-baseline."
)


def tfidf_pipeline(
    ngrams: tuple[int, int] = _NGRAMS, *, max_features: int | None = None, extra: str = "sklearn"
) -> Any:
    """Return TF-IDF with logistic regression, a pipeline of scikit-learn to be fitted.

    >>> tfidf_pipeline().fit(["a fine day", "a bad day"], [1, 0]).predict(["fine"]).tolist()
    [1]

    Args:
        ngrams: shortest and longest run of words that is a feature.
        max_features: keep the most frequent ones, or None for all.
        extra: which brings scikit-learn, for the error.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"scikit-learn is not installed; pip install 'ulmfit-fast[{extra}]'", name=error.name
        ) from error
    features = TfidfVectorizer(
        ngram_range=ngrams, sublinear_tf=True, token_pattern=_PATTERN, max_features=max_features
    )
    return make_pipeline(features, LogisticRegression(C=10.0, max_iter=1000))


@dataclass(frozen=True, eq=False)
class BagOfWords:
    """TF-IDF of words and pairs of words with logistic regression, as it is kept with a model.

    It is fitted by scikit-learn and answers without it.

    Example:
        >>> texts, labels = ["a fine day", "a fine night", "a bad day", "a bad night"], [0, 0, 1, 1]
        >>> BagOfWords.fit(texts, labels, 2).predict_proba(["fine", "bad"]).argmax(axis=1).tolist()
        [0, 1]

    Attributes:
        terms: F words and pairs of words.
        idf: `(F,)` float32.
        weights: `(C, F)` float32 for the classes that it knows, `(1, F)` for the second of two.
        bias: as many as rows of the weights.
        known: positions of these classes among all.
        classes: how many there are.

    Source:
        scikit-learn 1.9, `TfidfVectorizer(sublinear_tf=True)` and `LogisticRegression`.
    """

    terms: list[str]
    idf: Tensor
    weights: Tensor
    bias: Tensor
    known: Tensor
    classes: int

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: Sequence[int],
        classes: int,
        weights: Sequence[float] | None = None,
    ) -> BagOfWords:
        """Fit to labelled texts; nothing is drawn.

        Args:
            texts: N of them.
            labels: the class of each by its position.
            classes: C.
            weights: how much each text counts, of which only the proportions matter; or None.

        Raises:
            ModuleNotFoundError: if scikit-learn is not installed.
            ValueError: if there is no word in the texts.
        """
        most = max(_FEWEST_FEATURES, min(_MOST_FEATURES, _MOST_WEIGHTS // classes))
        pipeline = tfidf_pipeline(max_features=most)
        from sklearn.exceptions import ConvergenceWarning

        own = None if weights is None else np.asarray(weights) / np.mean(weights)
        with ignoring(ConvergenceWarning):
            pipeline.fit(texts, np.asarray(labels), logisticregression__sample_weight=own)
        features, model = pipeline
        return cls(
            features.get_feature_names_out().tolist(),
            torch.tensor(features.idf_, dtype=torch.float32, device="cpu"),
            torch.tensor(model.coef_, dtype=torch.float32, device="cpu"),
            torch.tensor(model.intercept_, dtype=torch.float32, device="cpu"),
            torch.tensor(model.classes_, dtype=torch.int64, device="cpu"),
            classes,
        )

    def predict_proba(self, texts: Sequence[str]) -> Array:
        """Return the probability of each class, `(N, C)`, 0 for one that it does not know.

        Args:
            texts: N of them.
        """
        positions = {term: position for position, term in enumerate(self.terms)}
        idf, weights = self.idf.numpy(), self.weights.numpy().T.copy()
        scores = np.tile(self.bias.numpy().astype(np.float64), (len(texts), 1))
        for row, text in enumerate(texts):
            counts = Counter(positions[term] for term in _terms(text) if term in positions)
            if counts:
                found = np.fromiter(counts, np.int64)
                tf = 1 + np.log(np.fromiter(counts.values(), np.float64))
                values = tf * idf[found]
                scores[row] += values @ weights[found] / np.linalg.norm(values)
        if scores.shape[1] == 1:
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        probabilities = np.zeros((len(texts), self.classes))
        probabilities[:, self.known.numpy()] = torch.from_numpy(scores).softmax(dim=1).numpy()
        return probabilities

    def tensors(self) -> dict[str, Tensor]:
        """Return what of it a file of tensors holds, by name."""
        return {
            name: getattr(self, name).contiguous() for name in ("idf", "weights", "bias", "known")
        }

    @classmethod
    def from_tensors(
        cls, terms: Any, tensors: dict[str, Tensor], classes: int, place: Place
    ) -> BagOfWords:
        """Return what `terms` and `tensors` are of, each of its kind, shape and range.

        Args:
            terms: as JSON has them.
            tensors: by name.
            classes: C.
            place: where they are from, for the error.

        Raises:
            ValueError: if one does not fit.
        """
        is_words = type(terms) is list and all(type(term) is str for term in terms)
        if not is_words or not terms or len(set(terms)) < len(terms):
            raise place.error(f"terms is {shown(terms)}, expected a list of different strings")
        known = tensors.get("known")
        count = 0 if known is None else known.numel()
        rows = 1 if count == 2 else count
        expected = {
            "idf": ((len(terms),), torch.float32),
            "weights": ((rows, len(terms)), torch.float32),
            "bias": ((rows,), torch.float32),
            "known": ((count,), torch.int64),
        }
        for name, (shape, dtype) in expected.items():
            own = tensors.get(name)
            if own is None or tuple(own.shape) != shape or own.dtype != dtype:
                has = "missing" if own is None else f"{tuple(own.shape)} in {own.dtype}"
                raise place.error(f"{name} is {has}, expected {shape} in {dtype}")
        positions = tensors["known"].tolist()
        if len(positions) < 2 or sorted(set(positions) & set(range(classes))) != positions:
            raise place.error(
                f"known is {shown(positions)}, expected at least two positions of {classes} "
                "classes, in their order"
            )
        check_finite(place, tensors)
        parts = {name: tensors[name] for name in expected}
        return cls(terms=terms, classes=classes, **parts)


def _terms(text: str) -> Iterator[str]:
    words = _WORDS.findall(text.lower())
    yield from words
    yield from map(" ".join, pairwise(words))


@dataclass(frozen=True)
class Baselines:
    """The simpler classifiers that were fitted to the same texts as a classifier.

    Example:
        >>> Baselines((3, 1)).predict_proba(["a text"])
        {'majority class': array([[0.75, 0.25]])}

    Attributes:
        counts: texts of each class.
        bag_of_words: TF-IDF with logistic regression, or None.
    """

    counts: tuple[int, ...]
    bag_of_words: BagOfWords | None = None

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: Sequence[int],
        classes: int,
        weights: Sequence[float] | None = None,
        *,
        bag_of_words: bool = True,
    ) -> Baselines:
        """Fit to labelled texts.

        Args:
            texts: N of them.
            labels: the class of each by its position.
            classes: C.
            weights: how much each text counts for the bag of words, or None.
            bag_of_words: fit one, where scikit-learn is installed and there are words.
        """
        counts = tuple(np.bincount(np.asarray(labels), minlength=classes).tolist())
        fits = (
            bag_of_words
            and importlib.util.find_spec("sklearn") is not None
            and any(_WORDS.search(text) for text in texts)
        )
        return cls(counts, BagOfWords.fit(texts, labels, classes, weights) if fits else None)

    def predict_proba(self, texts: Sequence[str]) -> dict[str, Array]:
        """Return the probability of each class, `(N, C)`, by the name of who says so.

        Args:
            texts: N of them.
        """
        shares = np.array(self.counts) / sum(self.counts)
        majority = np.tile(shares, (len(texts), 1))
        if self.bag_of_words is None:
            return {MAJORITY: majority}
        return {BAG_OF_WORDS: self.bag_of_words.predict_proba(texts), MAJORITY: majority}
