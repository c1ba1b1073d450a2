"""`ULMFiT`: the whole protocol behind one object."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch

from ulmfit_fast.data.columns import Label
from ulmfit_fast.data.reading.lines import OnError
from ulmfit_fast.data.reading.outputs import check_apart, paths_in
from ulmfit_fast.data.store.store import TokenStore
from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.data.tokens.unknown import log_unknown_words
from ulmfit_fast.nn import LanguageModel
from ulmfit_fast.nn.vocabulary import with_vocabulary
from ulmfit_fast.nn.weights import Place
from ulmfit_fast.presets import Preset
from ulmfit_fast.runs.dry_run import DryRun
from ulmfit_fast.runs.run import Run, RunIsOver, holding
from ulmfit_fast.system.directories import check_target, local_directory
from ulmfit_fast.system.distributed import shared_text, world
from ulmfit_fast.system.files import user_path
from ulmfit_fast.system.seeds import own_generators
from ulmfit_fast.training import stages as pipeline
from ulmfit_fast.training.stages import TrainingSettings, resumed_tokenizer
from ulmfit_fast.training.state import History
from ulmfit_fast.ulmfit.baselines import NO_BAG_OF_WORDS, Baselines
from ulmfit_fast.ulmfit.evaluation import Evaluation
from ulmfit_fast.ulmfit.labelled import ClassWeight, classes_of, labelled_texts, with_weights
from ulmfit_fast.ulmfit.model_files import load_model
from ulmfit_fast.ulmfit.model_schema import check_labels
from ulmfit_fast.ulmfit.settings import (
    ModelSettings,
    checked_device,
    checked_seed,
    with_dropout,
)
from ulmfit_fast.ulmfit.sizing import classifier_sizes, too_few_lm_steps, too_few_steps
from ulmfit_fast.ulmfit.trained import Path, TextModel, Texts, Trained, corpus_of
from ulmfit_fast.ulmfit.validation import (
    Divided,
    Labelled,
    Valid,
    divided,
    evaluated,
    positions_of,
)

__all__ = ["ULMFiT"]

_log = logging.getLogger("ulmfit_fast.progress")

_REFIT = "refit_classifier"

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Own = TypeVar("Own", bound="ULMFiT")


def _locks_directories(stage: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have a stage of `ULMFiT` hold the directories that it writes into, before it reads a text."""

    @wraps(stage)
    def locked_stage(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        model: Any = args[0]
        run: Any = kwargs.get("run")
        directories = []
        if isinstance(run, Run):
            directories.append(run.directory)
        if model.checkpoint_dir is not None:
            directories.append(user_path(model.checkpoint_dir).resolve())
            check_target(directories[-1])
        if isinstance(run, DryRun):
            directories.clear()
        read = paths_in(args[1] if len(args) > 1 else kwargs.get("texts"))
        read += paths_in(kwargs.get("valid"))
        for directory in directories:
            check_apart(directory, read, is_text=True)
        # A stage trains, whatever the mode it is called in.
        with torch.inference_mode(False), torch.enable_grad(), holding(*directories):
            try:
                found = stage(*args, **kwargs)
            except RunIsOver as over:
                found = model._take_over(run.directory, over.fingerprint.get("language_model"))
            saved = isinstance(run, Run) and user_path(run.directory).resolve() in directories[1:]
            if saved and not run.keep_checkpoints:
                run.tidy(stage.__name__, *([_REFIT] if kwargs.get("refit") else []))
            return found

    return locked_stage


def _digest(model: LanguageModel | None) -> str:
    """Return what another language model does not have as well; nothing of none."""
    if model is None:
        return ""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:32]


def _further(
    run: Run | DryRun | None, model: LanguageModel | None, **values: Any
) -> dict[str, Any]:
    """Return what a run is known by beside its settings and texts; nothing where none is kept."""
    return {"language_model": _digest(model), **values} if isinstance(run, Run) else {}


def _check_refit(run: Run, refit: bool) -> None:
    """Refuse to go on with a run that is over where its model is not the one asked for."""
    was_refit = run.finished(_REFIT)
    if was_refit if not refit else run.is_tidied("fit_classifier") and not was_refit:
        raise FileExistsError(
            f"the run in {run.directory} is over already, and was with{'' if was_refit else 'out'} "
            "refit; overwrite=True begins anew"
        )


class ULMFiT(TextModel):
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
    line, .csv, .tsv, .xlsx, .jsonl or .parquet files, folders of texts, tables with a column of
    texts; see `data.read_texts`. Language models also train on a `data.TokenStore`, which stays on
    disk.

    Args:
        preset: a published recipe, "paper", "fastai07", "fastai_v2" or "multifit", this package's
            own "small" or "medium", or a `presets.Preset`; it gives the values that are not given
            here and to the three stages.
        emb_size: E, embedding width; without a preset 400.
        hidden_size: H, units of the inner LSTM layers; without a preset 1152.
        num_layers: LSTM layers; the last one has E units; without a preset 3.
        tokenizer: "word", with the marks of capitals and repetition, the one without a preset;
            "subword" (unigram); "spacy", whose tokens are fastai's; or a `data.Tokenizer` to use as
            it is, such as that of `Tokenizer.from_huggingface`.
        max_vocab: largest vocabulary, the nine specials among it; without a preset 60,000.
        min_freq: how often a word must occur to be in the vocabulary; without a preset 3.
        drop_mult: factor on every dropout probability; without a preset 1.
        lm_dropout: dropout values of the language model that differ from the defaults, by name,
            such as {"weight_p": 0.1}.
        classifier_dropout: the same for the classifier.
        backwards: read every text from its end, `xxbos` last; such a model has weights of its own
            and stands beside a forward one, see `ensemble.fit_ensemble`.
        device: "cpu", "cuda" or None for CUDA where there is any.
        seed: fixes initial weights, masks and the order of the texts; PyTorch's own generators are
            left as they were. Stages that run at once in several threads of a process draw from
            the same generators, and then it fixes nothing: run them in processes.
        checkpoint_dir: the model is saved here after every epoch, so that an interrupted stage
            leaves its last epoch behind; None saves nothing by itself.
        progress: show progress bars on a terminal.

    Raises:
        TypeError: if the preset is none, or a size no whole number.
        ValueError: if a size, a probability or the device does not fit, or there is no preset of
            this name.

    Source:
        Howard & Ruder 2018 (arXiv:1801.06146).
    """

    def __init__(
        self,
        *,
        preset: Preset | str | None = None,
        emb_size: int | None = None,
        hidden_size: int | None = None,
        num_layers: int | None = None,
        tokenizer: Literal["word", "subword", "spacy"] | Tokenizer | None = None,
        max_vocab: int | None = None,
        min_freq: int | None = None,
        drop_mult: float | None = None,
        lm_dropout: Mapping[str, Any] | None = None,
        classifier_dropout: Mapping[str, Any] | None = None,
        backwards: bool | None = None,
        device: str | None = None,
        seed: int = 0,
        checkpoint_dir: Path | None = None,
        progress: bool = True,
    ) -> None:
        settings = ModelSettings.of(
            preset,
            emb_size=emb_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            tokenizer=tokenizer.kind if isinstance(tokenizer, Tokenizer) else tokenizer,
            max_vocab=max_vocab,
            min_freq=min_freq,
            drop_mult=drop_mult,
            lm_dropout=lm_dropout,
            classifier_dropout=classifier_dropout,
            backwards=backwards,
        )
        super().__init__(settings, device=checked_device(device), seed=checked_seed(seed))
        self.checkpoint_dir = checkpoint_dir
        self.progress = progress
        self._given_tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else None

    @classmethod
    def load(
        cls: type[Own], directory: Path, *, device: str | None = None, progress: bool = True
    ) -> Own:
        """Read a model directory.

        Args:
            directory: as `save` or `save_pretrained` wrote it.
            device: "cpu", "cuda" or None for CUDA where there is any.
            progress: show progress bars on a terminal.

        Raises:
            FileNotFoundError: if the directory or a file of it is missing.
            ValueError: if it is of a newer version, or damaged.
        """
        device = checked_device(device)
        parts = load_model(directory)
        values = {"seed": 0, **parts.settings}
        seed = values.pop("seed")
        try:
            settings = ModelSettings.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{directory} is damaged: {error}; save the model again") from error
        model = cls(**vars(settings), seed=seed, device=device, progress=progress)
        model.tokenizer, model.labels = parts.tokenizer, list(parts.labels)
        if parts.language_model is not None:
            model.language_model = parts.language_model.to(model.device)
        if parts.classifier is not None:
            model.classifier = parts.classifier.to(model.device)
        model.baselines, model.validation = parts.baselines, parts.validation
        return model

    @classmethod
    def from_pretrained(
        cls: type[Own],
        name: Path,
        *,
        revision: str | None = None,
        device: str | None = None,
        progress: bool = True,
    ) -> Own:
        """Read a model directory, or fetch one from the Hugging Face Hub.

        Args:
            name: a directory; or, where there is none, a repository such as "user/model", for
                which `huggingface_hub` has to be installed.
            revision: branch, tag or commit of the repository.
            device: "cpu", "cuda" or None for CUDA where there is any.
            progress: show progress bars on a terminal.

        Raises:
            FileNotFoundError: if there is no such directory, or a file of it is missing.
            ImportError: if `huggingface_hub` is needed and not installed.
            ValueError: if it is of a newer version, or damaged.
        """
        directory = local_directory(name, revision=revision)
        return cls.load(directory, device=device, progress=progress)

    @_locks_directories
    def pretrain(
        self,
        texts: Texts,
        *,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        bptt: int | None = None,
        precision: str | None = None,
        drop_mult: float | None = None,
        text_column: str = "text",
        on_error: OnError = "raise",
        delimiter: str | None = None,
        encoding: str | None = None,
        run: Run | DryRun | None = None,
        **settings: Any,
    ) -> ULMFiT:
        """Train a language model from scratch on general text (stage 1).

        Args:
            texts: the corpus.
            epochs: passes over it; None for the preset's, or 10.
            lr: largest learning rate, for all layers; None for the preset's, or 4e-3.
            batch_size: streams of text side by side; None for the preset's, or 64.
            bptt: tokens of a step; None for the preset's, or 70.
            precision: "float32", or "bfloat16" to compute in it; on a GPU also "float16".
            drop_mult: factor on every dropout here; None for the preset's, or the object's.
            text_column: column of a file or table.
            on_error: "raise", or "skip" to leave out rows that cannot be read.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.
            run: keeps checkpoints and reports, and goes on with a run that was stopped; or None.
            settings: further fields of `training.settings.TrainingSettings`.

        Returns:
            The object itself.

        Raises:
            ValueError: if the corpus is empty or too small, or a setting does not fit.
        """
        training, drop_mult = self.settings.stage(
            "pretrain",
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            bptt=bptt,
            precision=precision,
            drop_mult=drop_mult,
            **settings,
        )
        self.settings.language_model_config(drop_mult)  # refused before the texts are read
        if isinstance(run, Run):
            run.check("pretrain")
        corpus = corpus_of(texts, text_column, on_error, delimiter=delimiter, encoding=encoding)
        with own_generators(self.seed, self.device):
            tokenizer = self._given_tokenizer or self._tokenizer_of("pretrain", run, corpus)
            config = self.settings.language_model_config(drop_mult, len(tokenizer.vocab))
            model = LanguageModel(config, device="cpu", dtype=torch.float32).to(self.device)
            self._train_lm("pretrain", "pre-training", tokenizer, model, corpus, training, run)
        return self

    @_locks_directories
    def fine_tune_lm(
        self,
        texts: Texts,
        *,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        bptt: int | None = None,
        precision: str | None = None,
        drop_mult: float | None = None,
        text_column: str = "text",
        on_error: OnError = "raise",
        delimiter: str | None = None,
        encoding: str | None = None,
        run: Run | DryRun | None = None,
        **settings: Any,
    ) -> ULMFiT:
        """Adapt the language model to the text of the task, labels not needed (stage 2).

        With a word tokenizer the vocabulary becomes that of the new texts; a word known before
        keeps its weights, a new word starts from the mean of all. A subword vocabulary stays. The
        log tells which share of the texts' words the model's vocabulary lacks, and warns above
        20 %.

        Args:
            texts: text like that of the task.
            epochs: passes over it; None for the preset's, or 15.
            lr: largest learning rate, that of the last layer; lower layers have lr / 2.6 each.
                None for the preset's, or 4e-3.
            batch_size: streams of text side by side; None for the preset's, or 64.
            bptt: tokens of a step; None for the preset's, or 70.
            precision: "float32", or "bfloat16" to compute in it; on a GPU also "float16".
            drop_mult: factor on every dropout here; None for the preset's, or the object's.
            text_column: column of a file or table.
            on_error: "raise", or "skip" to leave out rows that cannot be read.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.
            run: keeps checkpoints and reports, and goes on with a run that was stopped; or None.
            settings: further fields of `training.settings.TrainingSettings`.

        Returns:
            The object itself.

        Raises:
            ValueError: if there is no language model yet, the corpus is empty or too small, or a
                setting does not fit.
        """
        training, drop_mult = self.settings.stage(
            "fine_tune_lm",
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            bptt=bptt,
            precision=precision,
            drop_mult=drop_mult,
            **settings,
        )
        dropout = self.settings.language_model_config(drop_mult)
        self._require_language_model()
        if isinstance(run, Run):
            run.check("fine_tune_lm")
        corpus = corpus_of(texts, text_column, on_error, delimiter=delimiter, encoding=encoding)
        with own_generators(self.seed + 1, self.device):
            if self.settings.tokenizer in ("word", "spacy"):
                tokenizer = self._tokenizer_of("fine_tune_lm", run, corpus)
                model = self._with_vocabulary_of(tokenizer)
            else:
                # A copy, so that a stage that fails leaves the model as it was.
                tokenizer = self._require_tokenizer()
                model = copy.deepcopy(self._require_language_model())
            model = with_dropout(model, dropout)
            self._train_lm("fine_tune_lm", "fine-tuning", tokenizer, model, corpus, training, run)
        return self

    def use_vocabulary_of(
        self,
        texts: Texts,
        *,
        text_column: str = "text",
        delimiter: str | None = None,
        encoding: str | None = None,
    ) -> ULMFiT:
        """Carry the language model over to the vocabulary of other texts, untrained.

        Args:
            texts: where the new vocabulary comes from.
            text_column: column of a file or table.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.

        Returns:
            The object itself.

        Raises:
            ValueError: if there is no language model yet, or no text.
        """
        self._require_language_model()
        corpus = corpus_of(texts, text_column, delimiter=delimiter, encoding=encoding)
        tokenizer = self._train_tokenizer(corpus)
        with own_generators():
            self._set_parts(Trained(tokenizer, self._with_vocabulary_of(tokenizer)))
        return self

    def _with_vocabulary_of(self, tokenizer: Tokenizer) -> LanguageModel:
        model, old = self._require_language_model(), self._require_tokenizer()
        return with_vocabulary(model, old.vocab, tokenizer.vocab)

    def _tokenizer_of(
        self, stage: str, run: Run | DryRun | None, corpus: Sequence[str] | TokenStore
    ) -> Tokenizer:
        """Return the tokenizer of the run that is resumed, or one that the corpus teaches."""
        kept = resumed_tokenizer(run, stage) if isinstance(run, Run) else None
        if kept is not None:
            return kept
        if world().size == 1:
            return self._train_tokenizer(corpus)
        text = shared_text(lambda: self._train_tokenizer(corpus).to_json())
        return Tokenizer.from_json(text)

    def _train_tokenizer(self, corpus: Sequence[str] | TokenStore) -> Tokenizer:
        if isinstance(corpus, TokenStore):
            return corpus.tokenizer()
        if self.settings.tokenizer == "huggingface":
            raise ValueError(
                'a tokenizer of the kind "huggingface" is not learnt here; pass '
                "tokenizer=Tokenizer.from_huggingface(...)"
            )
        return Tokenizer.train(
            corpus,
            kind=self.settings.tokenizer,  # type: ignore[arg-type]
            max_vocab=self.settings.max_vocab,
            min_freq=self.settings.min_freq,
        )

    def _train_lm(
        self,
        stage: str,
        description: str,
        tokenizer: Tokenizer,
        model: LanguageModel,
        corpus: Sequence[str] | TokenStore,
        training: TrainingSettings,
        run: Run | DryRun | None,
    ) -> None:
        trained = Trained(tokenizer, model)
        documents = self._encoded(tokenizer, corpus)
        if isinstance(corpus, list) and world().rank == 0 and (run is None or run.is_alone):
            few = too_few_lm_steps(training, sum(map(len, documents)))
            if few is not None:
                # Not measured, as it is for classifiers.
                _log.info("%s", few)
        if stage == "fine_tune_lm" and world().rank == 0:
            log_unknown_words(documents, tokenizer.vocab, self._require_tokenizer().vocab)
        further = {} if stage == "pretrain" else _further(run, self.language_model)
        pipeline.train_language_model(
            model,
            documents,
            training,
            seed=self.seed,
            description=description,
            progress=self.progress,
            after_epoch=lambda _, history: self._finish_epoch(stage, history, trained),
            run=run,
            stage=stage,
            tokenizer=tokenizer,
            further=further,
        )
        model.eval()

    def _take_over(self, directory: Path, began_with: str | None) -> ULMFiT:
        """Take over the model that a run which is over has left."""
        found = ULMFiT.load(directory, device=self.device)
        # One that goes on in its own directory has been replaced by what came of it.
        fits = {began_with, _digest(found.language_model)}
        if began_with is not None and _digest(self.language_model) not in fits:
            raise FileExistsError(
                f"the run in {directory} is over already, and began with another language model; "
                "overwrite=True begins anew, or choose another directory"
            )
        self._set_parts(
            Trained(
                *(found._require_tokenizer(), found.language_model, found.classifier),
                *(found.labels, found.baselines, found.validation),
            )
        )
        if world().rank == 0:
            _log.info("the run in %s is over already; nothing is left to do", directory)
        return self

    def _finish_epoch(self, stage: str, history: History, trained: Trained) -> None:
        """Take over what a stage has trained; until then the object is what it was before."""
        self._set_parts(trained)
        self.histories[stage] = history
        if self.checkpoint_dir is not None and world().rank == 0:
            self.save(self.checkpoint_dir)

    @_locks_directories
    def fit_classifier(
        self,
        texts: Texts,
        labels: Iterable[Label] | None = None,
        *,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        precision: str | None = None,
        gradual_unfreezing: int | Sequence[int] | None = None,
        drop_mult: float | None = None,
        class_weight: ClassWeight | None = None,
        sample_weight: Iterable[float] | None = None,
        text_column: str = "text",
        label_column: str = "label",
        weight_column: str | None = None,
        valid: Valid | None = None,
        valid_column: str | None = None,
        refit: bool = False,
        baseline: bool | None = None,
        on_error: OnError = "raise",
        delimiter: str | None = None,
        encoding: str | None = None,
        run: Run | DryRun | None = None,
        **settings: Any,
    ) -> ULMFiT:
        """Fit a classifier on the encoder of the language model (stage 3).

        Without a language model the encoder starts from scratch.

        With `valid` or `valid_column` texts are held out: after each epoch there are their loss,
        accuracy and macro F1 in the history, and in the end `validation` says how good the
        classifier is, beside simpler ones. `patience=2` then stops after two epochs without a new
        low of the validation loss, and keeps the weights of the lowest; `keep_best=True` does only
        the latter.

        Example:
            >>> import ulmfit_fast as uf
            >>> texts = [f"a {word} film {n}" for n in range(20) for word in ("fine", "dull")]
            >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, min_freq=1, progress=False)
            >>> _ = model.fit_classifier(texts, ["good", "bad"] * 20, epochs=2, valid=0.15)
            >>> model.validation.rows, len(model.histories["fit_classifier"].valid_scores)
            (6, 2)

        With weights the loss is sum(w_i * l_i) / sum(w_i) over the texts, w_i being the product of
        the weights of text i and its class: only proportions matter, a weight of 2 is as good as
        the text twice, and a text of weight 0 is left out. A batch has its share of that sum, so
        that one without the rare class counts less than one with it, see
        `classifier_step.ClassifierStep`; the losses of the history are the weighted ones. Neither
        the vocabulary and the language model, nor AR, TAR and BatchNorm know of weights.

        Example:
            >>> import ulmfit_fast as uf
            >>> texts, labels = ["a fine film", "a dull evening"] * 20, ["good", "bad"] * 20
            >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, num_layers=2, min_freq=1,
            ...                   progress=False)
            >>> _ = model.fit_classifier(texts, labels, epochs=4, lr=0.05, batch_size=8)
            >>> model.labels, model.predict("so fine a film")
            (['bad', 'good'], 'good')

        Args:
            texts: the labelled texts.
            labels: a str, int or bool for each text, in a list, an array, a table with
                `label_column` or the like; None reads them from `label_column` of the texts.
            epochs: passes over the texts; None for the preset's. Without one, or with "small" or
                "medium", as many as the number of texts asks for, see `sizing.classifier_sizes`.
            lr: largest learning rate, that of the head; lower layers have lr / 2.6 each. None for
                the preset's, or 1e-2.
            batch_size: texts of a step; None as for epochs.
            precision: "float32", or "bfloat16" to compute in it; on a GPU also "float16".
            gradual_unfreezing: open one more layer group every so many epochs; 0 trains all, also
                where the preset has stages. None for the preset's, or 1.
            drop_mult: factor on every dropout here; None for the preset's, or the object's.
            class_weight: "balanced", which lets all classes count alike, with the weights
                `n_samples / (n_classes * np.bincount(y))` and texts counted with their own weights;
                a mapping from label, or how it is written, to weight, 1 for a class that it leaves
                out; or None.
            sample_weight: a number for each text, in a list, an array, a table with a column
                "weight" (or `weight_column`) or the like; or None.
            text_column: column of a file or table.
            label_column: column of a file or table.
            weight_column: column of the weights of texts, where labels are read from a column, or
                of a table in sample_weight; or None.
            valid: what is held out: a share of the texts, drawn by the seed with each class in the
                share that it has and copies of a text on one side; a file or table with a column of
                labels; or a tuple of texts and their labels. None holds nothing out.
            valid_column: column of the texts that marks those to hold out, such as "is_valid", in
                the place of `valid`.
            refit: in the end fit to all texts, those held out as well, in as many epochs as were
                best; `validation` stays that of the classifier before.
            baseline: fit a bag of words to the same texts, to be kept with the model for
                `evaluate`; scikit-learn has to be installed. None does so where texts are held out.
            on_error: "raise", or "skip" to leave out rows that cannot be read.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.
            run: keeps checkpoints and reports, and goes on with a run that was stopped; or None.
            settings: further fields of `training.settings.TrainingSettings`, such as patience and
                keep_best.

        Returns:
            The object itself.

        Raises:
            TypeError: if a label is neither a str nor an int nor a bool, or a weight no number.
            ValueError: if labels or weights do not match the texts, one of them is missing, a label
                has a control character such as a line end, there are fewer than two classes, or
                with a weight above 0, a weight is not finite or below 0, class_weight has an
                unknown class, a text held out has a label that no other text has, or a setting does
                not fit.

        Source:
            scikit-learn 1.9, `utils.class_weight.compute_class_weight`, for class_weight.
        """
        settings["gradual_unfreezing"] = gradual_unfreezing
        training, drop_mult = self.settings.stage(
            "fit_classifier",
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            precision=precision,
            drop_mult=drop_mult,
            **settings,
        )
        self.settings.classifier_config(drop_mult)  # refused before the texts are read
        validates = valid is not None or valid_column is not None
        if refit and not validates:
            raise ValueError(
                "refit is True, which takes the best number of epochs, and no text is held out; "
                "pass valid=0.15"
            )
        chosen = epochs is not None or batch_size is not None
        if isinstance(run, Run):
            for stage in ("fit_classifier", _REFIT)[: 1 + refit]:
                run.check(stage)
        columns: Any = {
            "text_column": text_column,
            "label_column": label_column,
            "weight_column": weight_column,
            "on_error": on_error,
            "delimiter": delimiter,
            "encoding": encoding,
        }
        if validates:
            parts = divided(
                *(texts, labels, sample_weight),
                valid=valid,
                valid_column=valid_column,
                seed=self.seed,
                **columns,
            )
            if parts.held_out is None:
                # There is nothing to go by.
                training = replace(training, patience=0, keep_best=False)
        else:
            corpus, own, weights = labelled_texts(texts, labels, sample_weight, **columns)
            everything = Labelled(corpus, own, weights)
            parts = Divided(everything, None, everything)
        refit = refit and parts.held_out is not None
        if isinstance(run, Run) and run.resume:
            _check_refit(run, refit)
        rows = len(parts.train.texts)
        if self.settings.is_sized:
            most = classifier_sizes(rows)
            training = replace(
                training,
                batch_size=most[0] if batch_size is None else batch_size,
                epochs=most[1] if epochs is None else epochs,
            )
        few = too_few_steps(training, rows, is_sized=self.settings.is_sized)
        if chosen and few is not None and world().rank == 0 and (run is None or run.is_alone):
            _log.warning("%s", few)
        options: Any = {
            "drop_mult": drop_mult,
            "class_weight": class_weight,
            "bag_of_words": validates if baseline is None else baseline,
            "run": run,
        }
        self._fit_classifier(parts.train, training, held_out=parts.held_out, **options)
        if refit:
            losses = self.histories["fit_classifier"].valid_losses
            best = losses.index(min(losses)) + 1
            training = replace(training, epochs=best, patience=0, keep_best=False)
            self._fit_classifier(*(parts.everything, training), stage=_REFIT, **options)
        return self

    def _fit_classifier(
        self,
        data: Labelled,
        training: TrainingSettings,
        *,
        drop_mult: float,
        class_weight: ClassWeight | None,
        bag_of_words: bool,
        run: Run | DryRun | None,
        held_out: Labelled | None = None,
        stage: str = "fit_classifier",
    ) -> None:
        """Fit to labelled texts, and measure on those that are held out."""
        classes = classes_of(data.labels)
        check_labels(Place("the classes", "write it in another way"), classes)
        corpus, own, weights = with_weights(data.texts, data.labels, class_weight, data.weights)
        truth = None if held_out is None else positions_of(held_out.labels, classes)
        labels = [classes.index(label) for label in own]
        baselines = None
        if not isinstance(run, DryRun):
            shares = None if weights is None else weights.tolist()
            baselines = Baselines.fit(
                *(corpus, labels, len(classes), shares), bag_of_words=bag_of_words
            )
            if bag_of_words and baselines.bag_of_words is None and world().rank == 0:
                _log.warning("%s", NO_BAG_OF_WORDS)
        with own_generators(self.seed + 2, self.device):
            tokenizer = self.tokenizer or self._given_tokenizer
            if tokenizer is None:
                tokenizer = self._tokenizer_of(stage, run, corpus)
            config = self.settings.classifier_config(drop_mult, len(tokenizer.vocab))
            model = pipeline.build_classifier(self.language_model, config, len(classes), training)
            model.to(self.device)
            validation = None
            if stage == _REFIT and self.validation is not None:
                validation = self.validation.before_refit(len(data.texts), training.epochs)
            trained = Trained(
                *(tokenizer, self.language_model, model, classes, baselines, validation)
            )

            def finish_epoch(_: int, history: History) -> None:
                self._finish_epoch(stage, history, trained)

            history = pipeline.fit_classifier(
                model,
                self._encoded(tokenizer, corpus),
                torch.tensor(labels, dtype=torch.int64, device="cpu"),
                training,
                weights=weights,
                valid=None
                if held_out is None
                else (
                    self._encoded(tokenizer, held_out.texts),
                    torch.tensor(truth, dtype=torch.int64, device="cpu"),
                ),
                seed=self.seed,
                progress=self.progress,
                # Making the model ready to predict after every epoch costs a pass over the texts.
                after_epoch=None if self.checkpoint_dir is None else finish_epoch,
                run=run,
                stage=stage,
                tokenizer=tokenizer,
                further=_further(run, self.language_model, names=classes),
            )
        if held_out is not None:
            self._set_parts(trained)
            found = evaluated(self, held_out.texts, held_out.labels, baselines=baselines)
            trained = replace(trained, validation=found)
        if held_out is not None or self.checkpoint_dir is None:
            finish_epoch(training.epochs, history)

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
        """Say how good the classifier is on labelled texts, and what a bag of words says of them.

        Example:
            >>> import ulmfit_fast as uf
            >>> texts, labels = ["a fine film", "a dull film"] * 20, ["good", "bad"] * 20
            >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, min_freq=1, progress=False)
            >>> _ = model.fit_classifier(texts, labels, epochs=1, baseline=True)
            >>> found = model.evaluate(["a fine film", "dull"], ["good", "bad"])
            >>> found.rows, [other.name for other in found.baselines]
            (2, ['bag of words', 'majority class'])

        Args:
            texts: texts that the classifier was not fitted to.
            labels: of each, as for `fit_classifier`; None reads them from `label_column`.
            text_column: column of a file or table.
            label_column: column of a file or table.
            on_error: "raise", or "skip" to leave out rows that cannot be read.
            delimiter: of .csv and .tsv files, as for `data.read_texts`.
            encoding: of text files, as for `data.read_texts`.
            batch_size: texts at a time; the result does not depend on it.

        Returns:
            Accuracy, F1, log loss and calibration with their intervals, each class, the confusion
            matrix, the worst mistakes, and the same of the baselines that are kept with the model.

        Raises:
            TypeError: if a label is neither a str nor an int nor a bool.
            ValueError: if no classifier has been fitted, labels do not match the texts, one of them
                is missing, or the classifier does not know one.
        """
        self._require_classifier()
        return evaluated(
            *(self, texts, labels),
            baselines=self.baselines,
            text_column=text_column,
            label_column=label_column,
            on_error=on_error,
            delimiter=delimiter,
            encoding=encoding,
            batch_size=batch_size,
        )
