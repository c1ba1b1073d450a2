"""`ULMFiT`: the whole protocol behind one object."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ulmfit_fast import pipeline
from ulmfit_fast.checkpoint import ModelParts, load_model, save_model
from ulmfit_fast.data.batches import ClassifierBatches
from ulmfit_fast.data.corpus import read_labelled, read_texts
from ulmfit_fast.data.tokenizer import Tokenizer
from ulmfit_fast.data.vocab import check_vocabulary_limits
from ulmfit_fast.estimator_checks import (
    Label,
    checked_device,
    checked_seed,
    plain_labels,
    training_settings,
)
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.pipeline import TrainingSettings
from ulmfit_fast.training import History, predict_logits

__all__ = ["ULMFiT"]

Path = str | os.PathLike[str]
Texts = Iterable[str] | Path | Sequence[Path]

_DROPOUTS = ("input_p", "hidden_p", "embed_p", "weight_p", "gate_p", "output_p")


class ULMFiT:
    """Pre-train a language model, fine-tune it on your text, fit a classifier on few labels.

    Example:
        >>> import ulmfit_fast as uf
        >>> texts = ["a fine film", "a dull film"] * 20
        >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, num_layers=2, min_freq=1, progress=False)
        >>> _ = model.pretrain(texts, epochs=1, batch_size=4)
        >>> _ = model.fine_tune_lm(texts, epochs=1, batch_size=4)
        >>> _ = model.fit_classifier(texts, ["good", "bad"] * 20, epochs=2)
        >>> len(model.predict(["a fine film"]))
        1

    Texts are any iterable of str, or the path (or a list of paths) of .txt files with one text a
    line, .csv or .jsonl files.

    Args:
        emb_size: E, embedding width.
        hidden_size: H, units of the inner LSTM layers.
        num_layers: LSTM layers; the last one has E units.
        tokenizer: "word", with the marks of capitals and repetition, or "subword" (unigram).
        max_vocab: largest vocabulary, the nine specials among it.
        min_freq: how often a word must occur to be in the vocabulary.
        drop_mult: factor on every dropout probability.
        lm_dropout: dropout values of the language model that differ from the defaults, by name,
            such as {"weight_p": 0.1}.
        classifier_dropout: the same for the classifier.
        device: "cpu", "cuda" or None for CUDA where there is any.
        seed: fixes initial weights, masks and the order of the texts.
        checkpoint_dir: the model is saved here after every epoch, so that an interrupted stage
            leaves its last epoch behind; None saves nothing by itself.
        progress: show progress bars on a terminal.

    Raises:
        ValueError: if a size, a probability or the device does not fit.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146).
    """

    def __init__(
        self,
        *,
        emb_size: int = 400,
        hidden_size: int = 1152,
        num_layers: int = 3,
        tokenizer: Literal["word", "subword"] = "word",
        max_vocab: int = 60_000,
        min_freq: int = 3,
        drop_mult: float = 1.0,
        lm_dropout: dict[str, float] | None = None,
        classifier_dropout: dict[str, float] | None = None,
        device: str | None = None,
        seed: int = 0,
        checkpoint_dir: Path | None = None,
        progress: bool = True,
    ) -> None:
        self.settings: dict[str, Any] = {
            "emb_size": emb_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "tokenizer": tokenizer,
            "max_vocab": max_vocab,
            "min_freq": min_freq,
            "drop_mult": drop_mult,
            "lm_dropout": dict(lm_dropout or {}),
            "classifier_dropout": dict(classifier_dropout or {}),
        }
        if tokenizer not in ("word", "subword"):
            raise ValueError(f'tokenizer is {tokenizer!r}, expected "word" or "subword"')
        check_vocabulary_limits(max_vocab, min_freq, name="max_vocab")
        self.device = checked_device(device)
        self.seed = checked_seed(seed)
        self.checkpoint_dir = checkpoint_dir
        self.progress = progress
        self.tokenizer: Tokenizer | None = None
        self.language_model: LanguageModel | None = None
        self.classifier: TextClassifier | None = None
        self.labels: list[Label] = []
        self.histories: dict[str, History] = {}
        for argument in ("lm_dropout", "classifier_dropout"):
            unknown = sorted(set(self.settings[argument]) - set(_DROPOUTS))
            if unknown:
                raise ValueError(
                    f"{argument} has {unknown[0]!r}, expected names of {', '.join(_DROPOUTS)}"
                )
        # Refuse wrong sizes and dropouts now, not after the texts have been read.
        self._lm_config(16)
        self._classifier_config(16)

    def _sizes(self) -> dict[str, int]:
        return {name: self.settings[name] for name in ("emb_size", "hidden_size", "num_layers")}

    def _lm_config(self, vocab_size: int) -> AWDLSTMConfig:
        config = AWDLSTMConfig.language_model(
            vocab_size, **self._sizes(), **self.settings["lm_dropout"]
        )
        return config.scaled(self.settings["drop_mult"])

    def _classifier_config(self, vocab_size: int) -> AWDLSTMConfig:
        config = AWDLSTMConfig.classifier(
            vocab_size, **self._sizes(), **self.settings["classifier_dropout"]
        )
        return config.scaled(self.settings["drop_mult"])

    def pretrain(
        self,
        texts: Texts,
        *,
        epochs: int = 10,
        lr: float = 4e-3,
        text_column: str = "text",
        **settings: Any,
    ) -> ULMFiT:
        """Train a language model from scratch on general text (stage 1).

        Args:
            texts: the corpus.
            epochs: passes over it.
            lr: largest learning rate, for all layers.
            text_column: column of .csv and .jsonl files.
            settings: further fields of `pipeline.TrainingSettings`.

        Returns:
            The object itself.

        Raises:
            ValueError: if the corpus is empty or too small, or a setting does not fit.
        """
        training = training_settings(epochs=epochs, lr=lr, **{"factor": 1.0, **settings})
        corpus = list(read_texts(texts, text_column=text_column))
        torch.manual_seed(self.seed)
        tokenizer = self._train_tokenizer(corpus)
        model = LanguageModel(self._lm_config(len(tokenizer.vocab))).to(self.device)
        self._train_lm("pretrain", "pre-training", tokenizer, model, corpus, training)
        return self

    def fine_tune_lm(
        self,
        texts: Texts,
        *,
        epochs: int = 15,
        lr: float = 4e-3,
        text_column: str = "text",
        **settings: Any,
    ) -> ULMFiT:
        """Adapt the language model to the text of the task, labels not needed (stage 2).

        With a word tokenizer the vocabulary becomes that of the new texts; a word known before
        keeps its weights, a new word starts from the mean of all. A subword vocabulary stays.

        Args:
            texts: text like that of the task.
            epochs: passes over it.
            lr: largest learning rate, that of the last layer; lower layers have lr / 2.6 each.
            text_column: column of .csv and .jsonl files.
            settings: further fields of `pipeline.TrainingSettings`.

        Returns:
            The object itself.

        Raises:
            ValueError: if there is no language model yet, the corpus is empty or too small, or a
                setting does not fit.
        """
        training = training_settings(epochs=epochs, lr=lr, **settings)
        self._require_language_model()
        corpus = list(read_texts(texts, text_column=text_column))
        torch.manual_seed(self.seed + 1)
        if self.settings["tokenizer"] == "word":
            tokenizer, model = self._carried_over(corpus)
        else:
            # A copy, so that a stage that fails leaves the model as it was.
            tokenizer = self._require_tokenizer()
            model = copy.deepcopy(self._require_language_model())
        self._train_lm("fine_tune_lm", "fine-tuning", tokenizer, model, corpus, training)
        return self

    def use_vocabulary_of(self, texts: Texts, *, text_column: str = "text") -> ULMFiT:
        """Carry the language model over to the vocabulary of other texts, untrained.

        Args:
            texts: where the new vocabulary comes from.
            text_column: column of .csv and .jsonl files.

        Returns:
            The object itself.

        Raises:
            ValueError: if there is no language model yet, or no text.
        """
        self._require_language_model()
        corpus = list(read_texts(texts, text_column=text_column))
        self.tokenizer, self.language_model = self._carried_over(corpus)
        self.classifier, self.labels = None, []
        return self

    def _carried_over(self, corpus: Sequence[str]) -> tuple[Tokenizer, LanguageModel]:
        model, old = self._require_language_model(), self._require_tokenizer()
        new = self._train_tokenizer(corpus)
        return new, pipeline.with_vocabulary(model, old.vocab, new.vocab)

    def _train_tokenizer(self, corpus: Sequence[str]) -> Tokenizer:
        names = ("max_vocab", "min_freq")
        limits = {name: self.settings[name] for name in names}
        return Tokenizer.train(corpus, kind=self.settings["tokenizer"], **limits)

    def _train_lm(
        self,
        stage: str,
        description: str,
        tokenizer: Tokenizer,
        model: LanguageModel,
        corpus: Sequence[str],
        training: TrainingSettings,
    ) -> None:
        parts = {
            "tokenizer": tokenizer,
            "language_model": model,
            "classifier": None,
            "labels": [],
        }
        pipeline.train_language_model(
            model,
            tokenizer.encode_batch(corpus),
            training,
            seed=self.seed,
            description=description,
            progress=self.progress,
            after_epoch=lambda _, history: self._adopt(stage, history, parts),
        )
        model.eval()

    def _adopt(self, stage: str, history: History, parts: dict[str, Any]) -> None:
        """Take over what a stage has trained; until then the object is what it was before."""
        for name, value in parts.items():
            setattr(self, name, value)
        self.histories[stage] = history
        if self.checkpoint_dir is not None:
            self.save(self.checkpoint_dir)

    def fit_classifier(
        self,
        texts: Texts,
        labels: Iterable[Label] | None = None,
        *,
        epochs: int = 10,
        lr: float = 1e-2,
        gradual_unfreezing: int = 1,
        text_column: str = "text",
        label_column: str = "label",
        **settings: Any,
    ) -> ULMFiT:
        """Fit a classifier on the encoder of the language model (stage 3).

        Without a language model the encoder starts from scratch.

        Args:
            texts: the labelled texts.
            labels: a str or int for each text, in a list, an array or the like; None reads them
                from `label_column` of the files.
            epochs: passes over the texts.
            lr: largest learning rate, that of the head; lower layers have lr / 2.6 each.
            gradual_unfreezing: open one more layer group every so many epochs; 0 trains all.
            text_column: column of .csv and .jsonl files.
            label_column: column of .csv and .jsonl files.
            settings: further fields of `pipeline.TrainingSettings`.

        Returns:
            The object itself.

        Raises:
            TypeError: if a label is neither a str nor an int.
            ValueError: if labels do not match the texts, there are fewer than two classes, or a
                setting does not fit.
        """
        training = training_settings(
            epochs=epochs, lr=lr, gradual_unfreezing=gradual_unfreezing, **settings
        )
        if labels is None:
            corpus, found = read_labelled(texts, text_column=text_column, label_column=label_column)
            own: list[Label] = list(found)
        else:
            corpus, own = list(read_texts(texts, text_column=text_column)), plain_labels(labels)
        if len(corpus) != len(own):
            raise ValueError(
                f"there are {len(own)} labels for {len(corpus)} texts, expected one for each text"
            )
        classes = sorted(set(own), key=lambda label: (str(type(label)), label))
        if len(classes) < 2:
            raise ValueError(f"labels hold the one class {classes}, expected at least two classes")
        torch.manual_seed(self.seed + 2)
        tokenizer = self.tokenizer or self._train_tokenizer(corpus)
        config = self._classifier_config(len(tokenizer.vocab))
        model = pipeline.build_classifier(self.language_model, config, len(classes), training)
        model = model.to(self.device)
        parts = {"tokenizer": tokenizer, "classifier": model, "labels": classes}

        def adopt(epoch: int, history: History) -> None:
            self._adopt("fit_classifier", history, parts)

        history = pipeline.fit_classifier(
            model,
            tokenizer.encode_batch(corpus),
            torch.tensor([classes.index(label) for label in own]),
            training,
            seed=self.seed,
            progress=self.progress,
            # Making the model ready to predict after every epoch costs a pass over the texts.
            after_epoch=None if self.checkpoint_dir is None else adopt,
        )
        if self.checkpoint_dir is None:
            adopt(training.epochs, history)
        return self

    def predict(
        self, texts: Texts, *, text_column: str = "text", batch_size: int = 64
    ) -> list[Label]:
        """Return the most probable label of each text, in the order of the texts.

        Args:
            texts: what to classify.
            text_column: column of .csv and .jsonl files.
            batch_size: texts at a time; the result does not depend on it.

        Raises:
            ValueError: if no classifier has been fitted.
        """
        scores = self.predict_proba(texts, text_column=text_column, batch_size=batch_size)
        return [self.labels[index] for index in scores.argmax(axis=1)]

    def predict_proba(
        self, texts: Texts, *, text_column: str = "text", batch_size: int = 64
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the probability of each class, `(N, C)`, classes in the order of `labels`.

        Args:
            texts: what to classify.
            text_column: column of .csv and .jsonl files.
            batch_size: texts at a time; the result does not depend on it.

        Raises:
            ValueError: if no classifier has been fitted.
        """
        if self.classifier is None:
            raise ValueError("there is no classifier yet; call fit_classifier(texts, labels) first")
        corpus = list(read_texts(texts, text_column=text_column))
        documents = self._require_tokenizer().encode_batch(corpus)
        pad_id = self.classifier.encoder.config.pad_id
        batches = ClassifierBatches(documents, None, batch_size, pad_id=pad_id)
        logits = predict_logits(self.classifier, batches, len(documents))
        probabilities: np.ndarray[Any, np.dtype[np.float32]] = logits.softmax(dim=1).numpy()
        return probabilities

    def perplexity(self, texts: Texts, *, text_column: str = "text") -> float:
        """Return the language model's perplexity on texts, in its present vocabulary.

        Args:
            texts: held-out text.
            text_column: column of .csv and .jsonl files.

        Raises:
            ValueError: if there is no language model yet.
        """
        model = self._require_language_model()
        corpus = list(read_texts(texts, text_column=text_column))
        return pipeline.perplexity(model, self._require_tokenizer().encode_batch(corpus))

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
        """Write the model directory: JSON and safetensors, put in place by renaming.

        Args:
            directory: where to; an older model there is replaced once the new one is complete.

        Raises:
            ValueError: if there is nothing to save yet.
            FileExistsError: if the directory holds something else.
        """
        parts = ModelParts(
            self._require_tokenizer(),
            self.language_model,
            self.classifier,
            list(self.labels),
            {**self.settings, "seed": self.seed},
        )
        save_model(directory, parts)

    @classmethod
    def load(cls, directory: Path, *, device: str | None = None, progress: bool = True) -> ULMFiT:
        """Read a model directory.

        Args:
            directory: as `save` wrote it.
            device: as for the class.
            progress: as for the class.

        Raises:
            FileNotFoundError: if the directory or a file of it is missing.
            ValueError: if it is of a newer version, or damaged.
        """
        parts = load_model(directory)
        try:
            model = cls(**parts.settings, device=device, progress=progress)
        except TypeError as error:
            raise ValueError(f"{directory} is damaged: {error}; save the model again") from error
        model.tokenizer, model.labels = parts.tokenizer, list(parts.labels)
        if parts.language_model is not None:
            model.language_model = parts.language_model.to(model.device)
        if parts.classifier is not None:
            model.classifier = parts.classifier.to(model.device)
        return model

    def copy(self, **changes: Any) -> ULMFiT:
        """Return an independent copy, with attributes such as `seed` changed.

        Args:
            changes: attributes of the copy.
        """
        twin = copy.deepcopy(self)
        for name, value in changes.items():
            if not hasattr(twin, name):
                raise AttributeError(f"ULMFiT has no attribute {name!r}")
            setattr(twin, name, value)
        return twin
