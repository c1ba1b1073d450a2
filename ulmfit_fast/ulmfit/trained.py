"""What can be done with a trained model: predict, explain, write text and save."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ulmfit_fast.data.batches import ClassifierBatches
from ulmfit_fast.data.columns import Label
from ulmfit_fast.data.reading.corpus import read_texts
from ulmfit_fast.data.reading.lines import OnError
from ulmfit_fast.data.store.store import TokenStore
from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.serving.generation import generate
from ulmfit_fast.serving.int8 import is_quantized
from ulmfit_fast.serving.predictor import Predictor
from ulmfit_fast.serving.saliency import Explanations, Method, explain
from ulmfit_fast.training import stages
from ulmfit_fast.training.evaluation import predict_logits
from ulmfit_fast.training.state import History
from ulmfit_fast.ulmfit.baselines import Baselines
from ulmfit_fast.ulmfit.evaluation import Evaluation
from ulmfit_fast.ulmfit.model_files import ModelParts, save_model
from ulmfit_fast.ulmfit.record import RunRecord
from ulmfit_fast.ulmfit.settings import ModelSettings

__all__ = ["Path", "TextModel", "Texts", "Trained", "corpus_of"]

Path = str | os.PathLike[str]
Texts = Iterable[str] | Path | Sequence[Path] | TokenStore

Own = TypeVar("Own", bound="TextModel")


def corpus_of(
    texts: Texts, text_column: str, on_error: OnError = "raise", **form: str | None
) -> list[str] | TokenStore:
    """Return texts in memory, or the store that they are in; `form` is of `read_texts`."""
    if isinstance(texts, TokenStore):
        return texts
    return list(read_texts(texts, text_column=text_column, on_error=on_error, **form))


@dataclass(frozen=True)
class Trained:
    """What a stage leaves behind: a tokenizer, and models over its vocabulary.

    Attributes:
        tokenizer: text to token ids.
        language_model: the language model, or None.
        classifier: the classifier, or None.
        labels: the classifier's classes, in the order of its logits.
        baselines: simpler classifiers, fitted to the same texts, or None.
        validation: how good the classifier is on texts held out, or None.
    """

    tokenizer: Tokenizer
    language_model: LanguageModel | None
    classifier: TextClassifier | None = None
    labels: list[Label] = field(default_factory=list)
    baselines: Baselines | None = None
    validation: Evaluation | None = None


class TextModel(Predictor):
    """A tokenizer, a language model and a classifier, as far as there are any of them yet.

    `ULMFiT` makes and trains them.

    Attributes:
        settings: what the model was made with.
        device: where the models are.
        seed: fixes what a stage draws.
        tokenizer: text to token ids, or None.
        language_model: the language model, or None.
        classifier: the classifier, or None.
        labels: the classifier's classes, in the order of its logits.
        baselines: the majority class and a bag of words, fitted to the same texts, or None.
        validation: how good the classifier was on texts that were held out, or None.
        histories: of each stage trained here, its losses and learning rates.
        report: what the run of `train` that made the model was and found, or None.
    """

    def __init__(self, settings: ModelSettings, *, device: str, seed: int) -> None:
        self.settings = settings
        self.device = device
        self.seed = seed
        self.tokenizer: Tokenizer | None = None
        self.language_model: LanguageModel | None = None
        self.classifier: TextClassifier | None = None
        self.labels: list[Label] = []
        self.baselines: Baselines | None = None
        self.validation: Evaluation | None = None
        self.histories: dict[str, History] = {}
        self.report: RunRecord | None = None

    def __repr__(self) -> str:
        """Say what the model is, and how far it has been trained."""
        own = self.settings
        parts = [f"{own.emb_size}/{own.hidden_size}, {own.num_layers} layers", own.tokenizer]
        if self.tokenizer is not None:
            parts.append(f"{len(self.tokenizer.vocab):,} tokens")
        if self.language_model is not None:
            parts.append("language model")
        if self.classifier is not None:
            parts.append(f"classifier of {len(self.labels)} classes")
        trained = self.language_model is not None or self.classifier is not None
        state = "" if trained else ", not trained yet"
        return f"{type(self).__name__}({', '.join(parts)} on {self.device}{state})"

    @property
    def history(self) -> Any:
        """The epochs of all stages of this object so far, a `pandas.DataFrame` of a row each.

        Columns are stage, epoch, loss and seconds, and where texts are held out valid_loss,
        accuracy and macro_f1. pandas has to be installed; `histories` has the same without it.
        """
        try:
            import pandas  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "history is a table of pandas, which is not installed; pip install pandas, or take "
                "histories",
                name=error.name,
            ) from error
        rows = [
            {"stage": stage, **row}
            for stage, history in self.histories.items()
            for row in history.rows()
        ]
        return pandas.DataFrame(rows)

    @property
    def backwards(self) -> bool:
        """Whether texts are read from their end."""
        return self.settings.backwards

    def _set_parts(self, trained: Trained) -> None:
        """Take over what a stage has left."""
        self.tokenizer, self.language_model = trained.tokenizer, trained.language_model
        self.classifier, self.labels = trained.classifier, trained.labels
        self.baselines, self.validation = trained.baselines, trained.validation
        self.settings = replace(self.settings, tokenizer=trained.tokenizer.kind)

    def _encoded(
        self, tokenizer: Tokenizer, corpus: Iterable[str] | TokenStore
    ) -> Sequence[npt.NDArray[np.integer[Any]]]:
        """Return the token ids of each text in the order in which the model reads them."""
        if isinstance(corpus, TokenStore):
            if self.backwards:
                raise ValueError(
                    f"{corpus!r} holds texts from their beginning, and this model reads from their "
                    "end; pass the texts themselves"
                )
            corpus.require(tokenizer)
            return corpus
        documents = tokenizer.encode_batch(corpus)
        if not self.backwards:
            return documents
        return [np.ascontiguousarray(ids[::-1]) for ids in documents]

    def _require_classifier(self) -> None:
        if self.classifier is None:
            raise ValueError("there is no classifier yet; call fit_classifier(texts, labels) first")

    def _probabilities(self, texts: list[str], batch_size: int) -> npt.NDArray[np.float32]:
        assert self.classifier is not None
        documents = self._encoded(self._require_tokenizer(), texts)
        pad_id = self.classifier.encoder.config.pad_id
        batches = ClassifierBatches(documents, None, batch_size, pad_id=pad_id)
        logits = predict_logits(self.classifier, batches, len(documents))
        probabilities: npt.NDArray[np.float32] = logits.softmax(dim=1).numpy()
        return probabilities

    def explain(
        self,
        texts: Texts,
        label: Label | None = None,
        *,
        method: Method = "gradient_x_input",
        text_column: str = "text",
        delimiter: str | None = None,
        encoding: str | None = None,
        batch_size: int = 16,
    ) -> Explanations:
        """Score each token of texts by its effect on the answer.

        Args:
            texts: what to explain.
            label: the class that is asked for; None takes the most probable one of each text.
            method: "gradient_x_input", with a sign, or "intrinsic_attention", without.
            text_column: column of a file or table.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.
            batch_size: texts at a time; the result does not depend on it.

        Raises:
            ValueError: if no classifier has been fitted, or the label or method is unknown.
        """
        corpus = list(
            read_texts(texts, text_column=text_column, delimiter=delimiter, encoding=encoding)
        )
        return explain(self, corpus, label, method=method, batch_size=batch_size)

    def generate(self, prompt: str = "", **options: Any) -> str:
        """Continue a text with the language model, token by token.

        Args:
            prompt: the text to go on from; empty starts a new text.
            options: max_tokens, temperature, top_k, top_p, min_tokens, stop, no_unk and seed.

        Raises:
            ValueError: if there is no language model yet, or an option is out of range.
        """
        return generate(self, prompt, **options)

    def perplexity(
        self,
        texts: Texts,
        *,
        text_column: str = "text",
        delimiter: str | None = None,
        encoding: str | None = None,
    ) -> float:
        """Return the language model's perplexity on texts, in its present vocabulary.

        Args:
            texts: held-out text.
            text_column: column of a file or table.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.

        Raises:
            ValueError: if there is no language model yet.
        """
        model = self._require_language_model()
        corpus = corpus_of(texts, text_column, delimiter=delimiter, encoding=encoding)
        return stages.perplexity(model, self._encoded(self._require_tokenizer(), corpus))

    def _require_language_model(self) -> LanguageModel:
        if self.language_model is None:
            raise ValueError(
                "there is no language model yet; call pretrain(texts) or load(dir) first"
            )
        return self.language_model

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("there is no vocabulary yet; call pretrain(texts) or load(dir) first")
        return self.tokenizer

    def save(self, directory: Path) -> None:
        """Write the model directory: JSON and safetensors; it changes by one step.

        Args:
            directory: where to; an older model there is replaced once the new one is complete.

        Raises:
            ValueError: if there is nothing to save yet, or it could not be read again: a weight
                that is not finite, a tensor or label that does not fit.
            FileExistsError: if the directory holds something else.
        """
        save_model(directory, self._parts())

    def save_pretrained(self, directory: Path) -> None:
        """Write the model directory in the Hugging Face layout, all weights in one file.

        The files are config.json, tokenizer.json and model.safetensors, in which the embedding
        that the decoder shares stands once; a bag of words has a file of its own. Of `validation`
        the texts are left out, which others are not to see. `load` reads this layout as well.

        Args:
            directory: where to; an older model there is replaced once the new one is complete.

        Raises:
            ValueError: if there is nothing to save yet, or it could not be read again: a weight
                that is not finite, a tensor or label that does not fit.
            FileExistsError: if the directory holds something else.
        """
        save_model(directory, self._parts(), single_file=True)

    def _parts(self) -> ModelParts:
        if self.classifier is not None and is_quantized(self.classifier):
            raise ValueError(
                "the classifier is in int8, which is not saved; save the model that it was made "
                "from, and quantise it again when it is loaded"
            )
        return ModelParts(
            self._require_tokenizer(),
            self.language_model,
            self.classifier,
            list(self.labels),
            {**self.settings.to_dict(), "seed": self.seed},
            self.baselines,
            self.validation,
        )

    def copy(self: Own, **changes: Any) -> Own:
        """Return an independent copy, with attributes such as `seed` changed.

        Args:
            changes: attributes of the copy.
        """
        copied = copy.deepcopy(self)
        for name, value in changes.items():
            if not hasattr(copied, name):
                raise AttributeError(f"ULMFiT has no attribute {name!r}")
            setattr(copied, name, value)
        return copied
