"""The stages of ULMFiT as functions: train a language model, carry it over, fit a classifier."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit_fast.data.batches import (
    ClassifierBatches,
    LMBatches,
    concatenate_documents,
    random_lengths,
)
from ulmfit_fast.data.store.store import StoredDocuments, TokenStream
from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.nn.vocabulary import with_vocabulary
from ulmfit_fast.optim import NTASGD
from ulmfit_fast.runs import DryRun, Run
from ulmfit_fast.runs.outlook import Outlook
from ulmfit_fast.system import distributed
from ulmfit_fast.training.classifier_step import ClassifierStep, relative_weights
from ulmfit_fast.training.evaluation import (
    SizedIterable,
    evaluate_language_model,
    predict_logits,
    recalibrate_batch_norm,
)
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.loop import train_epoch
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.plan import TrainingPlan
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.scores import scores_of
from ulmfit_fast.training.settings import TrainingSettings
from ulmfit_fast.training.state import EpochResult, History, TrainingState
from ulmfit_fast.training.step import TrainingStep

__all__ = [
    "TrainingSettings",
    "build_classifier",
    "classifier_batches",
    "fit_classifier",
    "perplexity",
    "resumed_tokenizer",
    "train_language_model",
    "training_stream",
    "with_vocabulary",
]

Documents = Sequence[np.ndarray[Any, np.dtype[np.integer[Any]]]]
EpochHook = Callable[[int, History], None]

# What the shell shows while a stage runs.
_progress_log = logging.getLogger("ulmfit_fast.progress")

# Beside the checkpoints of a run, whose ids mean nothing without it.
_TOKENIZER = "tokenizer.json"


def train_language_model(
    model: LanguageModel,
    documents: Documents,
    settings: TrainingSettings,
    *,
    valid_documents: Documents | None = None,
    seed: int = 0,
    description: str = "language model",
    progress: bool = True,
    after_epoch: EpochHook | None = None,
    run: Run | DryRun | None = None,
    stage: str = "pretrain",
    tokenizer: Tokenizer | None = None,
    further: Mapping[str, Any] | None = None,
) -> History:
    """Train a language model on documents in an order drawn anew each epoch.

    Args:
        model: trained in place.
        documents: token ids of each document, integers; a `TokenStore` stays on disk.
        settings: how to train.
        valid_documents: evaluated after every epoch, in their own order; None takes
            `settings.valid_share` of the documents, which then are not trained on.
        seed: of the order of the documents, of those held out, and of random lengths.
        description: shown beside the progress bar.
        progress: show the bar.
        after_epoch: called with the number of finished epochs and the history so far. Once
            NT-ASGD averages, the model then has the averaged weights.
        run: keeps checkpoints and reports, and goes on with a run that was stopped; or None.
        stage: what the run calls it, "pretrain" or "fine_tune_lm".
        tokenizer: of the texts, which the run keeps; or None.
        further: plain values that have to be those of a run to go on with as well; or None.

    Returns:
        The losses and learning rates of every step, and the validation loss of every epoch.

    Raises:
        ValueError: if the corpus is too small for one batch, there is nothing to evaluate on where
            the settings need it, or the run to go on with is another one.
    """
    device = next(model.parameters()).device
    objective = Objective.of(settings, device)
    documents, valid = _held_out(documents, valid_documents, settings, seed)
    # Gone once it is asked for: a stream may hold the whole corpus.
    first = [training_stream(documents, settings, seed, 0, device)]
    plan = TrainingPlan(model, settings, _epoch_steps(first[0], settings, seed))

    def batches_of(epoch: int) -> LMBatches:
        stream = first.pop() if first else None
        if stream is None or epoch > 0:
            stream = training_stream(documents, settings, seed, epoch, device)
        return stream

    def validate(epoch: int) -> float | None:
        if valid is None:
            return None
        return evaluate_language_model(
            model, valid, autocast=objective.precision.dtype, shared=True
        )

    state = TrainingState(model, plan, objective.precision.scaler)
    watched = Outlook() if run is None and progress else run
    return _train(
        state,
        plan,
        objective,
        lambda objective: LanguageModelStep(
            model, plan.optimizer, plan.scheduler, objective=objective, capture=settings.capture
        ),
        batches_of,
        validate,
        _resumed(watched, stage, state, plan, tokenizer, documents, seed, further),
        run=watched,
        after_epoch=after_epoch,
        description=description,
        progress=progress,
    )


def _train(
    state: TrainingState,
    plan: TrainingPlan,
    objective: Objective,
    make_step: Callable[[Objective], TrainingStep[Any]],
    batches_of: Callable[[int], SizedIterable],
    validate: Callable[[int], float | None],
    resumed: contextlib.AbstractContextManager[None],
    *,
    run: Run | DryRun | Outlook | None,
    after_epoch: EpochHook | None,
    description: str,
    progress: bool,
) -> History:
    """Train epoch after epoch, from where the state is.

    Args:
        state: of the training.
        plan: of the same one.
        objective: of its steps.
        make_step: makes a step for an epoch.
        batches_of: returns the batches of an epoch, numbered from 0.
        validate: makes the model ready after an epoch, and returns its validation loss or None.
        resumed: in whose block the state is where the run goes on.
        run: is given every reading and epoch; or None.
        after_epoch: called with the number of finished epochs and the history so far.
        description: shown beside the progress bar.
        progress: show the bar.
    """
    model, settings, history = state.model, plan.settings, state.history
    optimizer, shown = plan.optimizer, False
    averaging = optimizer if isinstance(optimizer, NTASGD) else None
    device = next(model.parameters()).device
    with distributed.own_masks(device), plan.unfreezing_groups(), resumed:
        for epoch in range(state.epoch, settings.epochs):
            if state.epochs_since_best >= settings.patience > 0:
                break
            if state.batch == 0 and plan.begin_epoch(epoch):
                history.unfreeze_steps.append(state.steps)
            if isinstance(run, DryRun):
                # A step with layers that are frozen takes a fraction of those to come.
                plan.begin_epoch(settings.epochs - 1)
                run.measure(
                    settings.precision,
                    lambda name: train_epoch(
                        make_step(objective.at(name, device)),
                        batches_of(0),
                        run=run,
                        description=f"{description}, {name}",
                        progress=progress,
                    ),
                )
            result = train_epoch(
                # Of this epoch alone: a captured step holds the memory of its graph.
                make_step(objective),
                batches_of(epoch),
                state,
                run=run,
                description=f"{description}, epoch {epoch + 1}/{settings.epochs}",
                progress=progress,
            )
            with contextlib.nullcontext() if averaging is None else averaging.averaged():
                valid_loss = validate(epoch)
                best = valid_loss is not None and state.record_validation(valid_loss)
                scores = history.valid_scores[-1] if history.valid_scores else None
                if valid_loss is not None:
                    name = f"{description}, epoch {epoch + 1}/{settings.epochs}"
                    _log_epoch(name, result, valid_loss, scores)
                if best and settings.keeps_best:
                    state.best_weights = copy.deepcopy(model.state_dict())
                if after_epoch is not None:
                    after_epoch(epoch + 1, history)
            if averaging is not None and valid_loss is not None and averaging.evaluated(valid_loss):
                history.average_step = state.steps
            state.next_epoch()
            if isinstance(run, Run):
                # As large as the model and its optimizer: of a classifier for those who ask alone.
                keeps = best and (settings.keeps_best or isinstance(model, LanguageModel))
                run.epoch_ended(result.loss, valid_loss, best=keeps, scores=scores)
            elif isinstance(run, Outlook):
                run.epoch_ended(result.loss, valid_loss)
            shown = state.best_weights is None
        plan.reached_end()
        if state.best_weights is not None:
            model.load_state_dict(state.best_weights)
            if distributed.world().rank == 0:
                kept = history.valid_losses.index(min(history.valid_losses)) + 1
                _progress_log.info("%s: the weights of epoch %d are kept", description, kept)
        # Where the best epoch was not the last one, or all epochs were over before this call.
        if after_epoch is not None and not shown:
            after_epoch(state.epoch, history)
    return history


def _log_epoch(
    name: str, result: EpochResult, valid_loss: float, scores: Mapping[str, float] | None
) -> None:
    """Tell a reader what an epoch came to on what is held out."""
    if distributed.world().rank > 0:
        return
    parts = [f"{name}: loss {result.loss:.4f}", f"validation loss {valid_loss:.4f}"]
    if scores is not None:
        parts += [f"accuracy {scores['accuracy']:.3f}", f"macro F1 {scores['macro_f1']:.3f}"]
    _progress_log.info("%s, %.0f s", ", ".join(parts), result.seconds)


def training_stream(
    documents: Documents, settings: TrainingSettings, seed: int, epoch: int, device: torch.device
) -> LMBatches:
    """Return the batches of an epoch, the documents in an order of its own.

    Args:
        documents: token ids of each document, integers; a `TokenStore` stays on disk.
        settings: sizes of the batches.
        seed: of the order and of random lengths.
        epoch: 0 or larger.
        device: where they are to go.

    Raises:
        ValueError: if there is too little text for one batch.
    """
    # Folding the epoch into the seed keeps an epoch's order independent of how many ran before.
    batches = LMBatches(
        _stream(documents, (seed * 1009 + epoch) % 2**63),
        settings.batch_size,
        settings.bptt,
        random_bptt=settings.random_bptt,
        seed=seed,
        epoch=epoch,
        part=distributed.world(),
    )
    return batches.pin_memory() if device.type == "cuda" else batches


def _epoch_steps(first: LMBatches, settings: TrainingSettings, seed: int) -> list[int]:
    """Return the number of batches of every epoch, which random lengths change."""
    if not settings.random_bptt:
        return [len(first)] * settings.epochs
    tokens = sum(first.lengths)
    lengths = (random_lengths(tokens, settings.bptt, seed, e) for e in range(settings.epochs))
    return [len(own) for own in lengths]


def _held_out(
    documents: Documents, valid: Documents | None, settings: TrainingSettings, seed: int
) -> tuple[Documents, LMBatches | None]:
    """Return the documents to train on and batches of those to evaluate on."""
    if valid is not None and settings.valid_share > 0:
        raise ValueError(
            f"valid_share is {settings.valid_share} and valid_documents are given as well, "
            "expected one of them; leave the other out"
        )
    if settings.valid_share > 0:
        if len(documents) < 2:
            raise ValueError(
                f"valid_share is {settings.valid_share} of {len(documents)} documents, expected at "
                "least 2; pass valid_documents, or split the text into documents"
            )
        order = np.random.default_rng(seed % 2**64).permutation(len(documents)).tolist()
        count = min(max(1, round(settings.valid_share * len(documents))), len(documents) - 1)
        valid = _chosen(documents, sorted(order[:count]))
        documents = _chosen(documents, sorted(order[count:]))
    if valid is None:
        for name, needs in (
            ("optimizer", settings.optimizer == "nt_asgd"),
            ("patience", settings.patience > 0),
            ("keep_best", settings.keep_best),
        ):
            if needs:
                raise ValueError(
                    f"{name} is {getattr(settings, name)!r}, which goes by the validation loss, "
                    "and there is nothing to evaluate on; pass valid_share=0.1, or valid_documents"
                )
        return documents, None
    return documents, _in_order(valid, settings.batch_size, settings.bptt, part=distributed.world())


def _chosen(documents: Documents, positions: list[int]) -> Documents:
    if isinstance(documents, StoredDocuments):
        return documents.select(np.array(positions))
    return [documents[i] for i in positions]


def _stream(documents: Documents, seed: int | None = None) -> torch.Tensor | TokenStream:
    """Join documents in an order that the seed draws; those of a store stay on disk."""
    if isinstance(documents, StoredDocuments):
        return documents.stream(seed)
    return concatenate_documents(documents, seed=seed)


def _in_order(
    documents: Documents, batch_size: int, bptt: int, *, part: tuple[int, int] = (0, 1)
) -> LMBatches:
    """Return batches of documents in their own order, with fewer streams when they are short."""
    ids = _stream(documents)
    most = (len(ids) - 1) // (2 * part[1])
    if most == 0:
        # Too short to be shared out: each process takes all of it.
        most, part = max(1, (len(ids) - 1) // 2), (0, 1)
    return LMBatches(ids, max(1, min(batch_size, most)), bptt, part=part)


def perplexity(
    model: LanguageModel,
    documents: Documents,
    *,
    batch_size: int = 16,
    bptt: int = 70,
    precision: str = "float32",
) -> float:
    """Return the perplexity of a language model on documents, in their own order.

    Args:
        model: put into evaluation mode.
        documents: token ids of each document, integers; a `TokenStore` stays on disk.
        batch_size: streams; fewer when the text is short.
        bptt: tokens of a step; the value does not depend on it.
        precision: as in `TrainingSettings`.
    """
    dtype = Precision.of(precision, next(model.parameters()).device).dtype
    batches = _in_order(documents, batch_size, bptt)
    return math.exp(evaluate_language_model(model, batches, autocast=dtype))


def build_classifier(
    language_model: LanguageModel | None,
    config: AWDLSTMConfig,
    num_classes: int,
    settings: TrainingSettings,
) -> TextClassifier:
    """Put a new head on a copy of a language model's encoder, or on a new encoder.

    Args:
        language_model: where the encoder's weights come from; None starts from scratch.
        config: sizes as the language model's, dropout values of the classifier.
        num_classes: C.
        settings: give the window and the longest pooled span.
    """
    encoder = AWDLSTM(config, device="cpu", dtype=torch.float32)
    if language_model is not None:
        encoder.to(next(language_model.parameters()).dtype)
        encoder.load_state_dict(copy.deepcopy(language_model.encoder.state_dict()))
    return TextClassifier(
        encoder,
        num_classes,
        output_p=config.output_p,
        bptt=settings.bptt,
        max_len=settings.max_len,
        device="cpu",
        dtype=torch.float32,
    )


def fit_classifier(
    model: TextClassifier,
    documents: Documents,
    labels: Tensor,
    settings: TrainingSettings,
    *,
    weights: Tensor | None = None,
    valid: tuple[Documents, Tensor] | None = None,
    seed: int = 0,
    progress: bool = True,
    after_epoch: EpochHook | None = None,
    run: Run | DryRun | None = None,
    stage: str = "fit_classifier",
    tokenizer: Tokenizer | None = None,
    further: Mapping[str, Any] | None = None,
) -> History:
    """Fit a classifier, then estimate the head's BatchNorm statistics anew with dropout off.

    Of several processes each reads `batch_size` texts of a batch, and the head sees those of all.

    Args:
        model: trained in place, left in evaluation mode.
        documents: token ids of each text, int32.
        labels: `(N,)` int64.
        settings: how to train.
        weights: `(N,)`, how much the loss of each text counts, of which only the proportions
            matter; `ClassifierStep` has the formula. None weighs all alike.
        valid: token ids of the texts that are held out, and their labels, as above; they are scored
            after every epoch. None holds nothing out.
        seed: of the order of the texts.
        progress: show the bar.
        after_epoch: called with the number of finished epochs and the history so far, when the
            model is ready to predict.
        run: keeps checkpoints and reports, and goes on with a run that was stopped; or None.
        stage: what the run calls it.
        tokenizer: of the texts, which the run keeps; or None.
        further: plain values that have to be those of a run to go on with as well; or None.

    Returns:
        The losses and learning rates of every step, where each layer group was opened, and the
        scores on what is held out.

    Raises:
        ValueError: if a setting is for language models alone, or needs texts that are held out and
            there are none, a weight is not finite or below 0, there are not as many as texts or all
            of them are 0, or the run to go on with is another one.
    """
    _check_classifier_settings(settings, is_validated=valid is not None)
    weights = relative_weights(weights, len(documents))
    objective = Objective.of(settings, next(model.parameters()).device)
    batches_of = classifier_batches(
        model, documents, labels, settings.batch_size * distributed.world().size, seed
    )
    plan = TrainingPlan(model, settings, [len(batches_of(0))] * settings.epochs)

    def validate(epoch: int) -> float | None:
        dtype = objective.precision.dtype
        if valid is not None or after_epoch is not None or epoch + 1 == settings.epochs:
            recalibrate_batch_norm(model, batches_of(epoch), autocast=dtype)
        if valid is None:
            return None
        documents, truth = valid
        pad_id = model.encoder.config.pad_id
        batches = ClassifierBatches(documents, None, settings.batch_size, pad_id=pad_id)
        logits = predict_logits(model, batches, len(documents), autocast=dtype)
        scores = scores_of(truth.numpy(), logits.double().softmax(dim=1).numpy())
        state.history.valid_scores.append({name: scores[name] for name in ("accuracy", "macro_f1")})
        # The same in all processes, which decide by it whether to go on.
        loss = distributed.mean_(torch.nn.functional.cross_entropy(logits.double(), truth))
        return float(loss)

    state = TrainingState(model, plan, objective.precision.scaler)
    watched = Outlook() if run is None and progress else run
    return _train(
        state,
        plan,
        objective,
        lambda objective: ClassifierStep(
            model, plan.optimizer, plan.scheduler, objective=objective, weights=weights
        ),
        batches_of,
        validate,
        _resumed(
            *(watched, stage, state, plan, tokenizer, documents, seed, further),
            labels=labels,
            weights=weights,
            valid=valid,
        ),
        run=watched,
        after_epoch=after_epoch,
        description="classifier",
        progress=progress,
    )


def classifier_batches(
    model: TextClassifier, documents: Documents, labels: Tensor | None, batch_size: int, seed: int
) -> Callable[[int], ClassifierBatches]:
    """Return what gives the batches of an epoch, the texts in an order of its own.

    Args:
        model: the classifier.
        documents: token ids of each text.
        labels: `(N,)` int64.
        batch_size: texts of a batch.
        seed: of the order.
    """
    batches = ClassifierBatches(
        documents,
        labels,
        batch_size,
        pad_id=model.encoder.config.pad_id,
        shuffle=True,
        seed=seed,
    )

    def of_epoch(epoch: int) -> ClassifierBatches:
        batches.set_epoch(epoch)
        return batches

    return of_epoch


def _check_classifier_settings(settings: TrainingSettings, *, is_validated: bool) -> None:
    for name in ("patience", "keep_best"):
        if getattr(settings, name) and not is_validated:
            raise ValueError(
                f"{name} is {getattr(settings, name)!r}, which goes by the validation loss, and "
                "no text is held out; pass valid=0.15"
            )
    wrong = {
        "optimizer": settings.optimizer == "nt_asgd",
        "valid_share": settings.valid_share > 0,
        "random_bptt": settings.random_bptt,
        "capture": settings.capture,
    }
    for name, given in wrong.items():
        if given:
            mend = "pass valid in its place" if name == "valid_share" else "leave it out"
            raise ValueError(
                f"{name} is {getattr(settings, name)!r}, which is for language models; {mend} for "
                "a classifier"
            )


def resumed_tokenizer(run: Run, stage: str) -> Tokenizer | None:
    """Return the tokenizer of the run that is resumed, or None.

    Args:
        run: the run.
        stage: "pretrain", "fine_tune_lm" or "fit_classifier".

    Raises:
        ValueError: if its file is damaged.
    """
    return run.read_beside(stage, _TOKENIZER, Tokenizer.from_json)


def _resumed(
    run: Run | DryRun | Outlook | None,
    stage: str,
    state: TrainingState,
    plan: TrainingPlan,
    tokenizer: Tokenizer | None,
    documents: Sequence[Any],
    seed: int,
    further: Mapping[str, Any] | None,
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    valid: tuple[Documents, Tensor] | None = None,
) -> contextlib.AbstractContextManager[None]:
    """Return the context of `Run.training`, or one that does nothing where no run is kept."""
    model, settings = plan.model, plan.settings
    parameters = list(model.parameters())
    if run is not None:
        run.begin(parameters, plan.epoch_steps, copies=4 if "adam" in settings.optimizer else 2)
    if not isinstance(run, Run):
        return contextlib.nullcontext()
    chosen = asdict(settings)
    if not settings.keep_best:
        # Runs of before do not have it, and go on.
        del chosen["keep_best"]
    fingerprint = {
        "settings": chosen,
        "model": {**model.encoder.config.to_dict(), "kind": type(model).__name__},
        "dtype": str(parameters[0].dtype),
        "device": parameters[0].device.type,
        "seed": seed,
        "processes": distributed.world().size,
        "steps_of_epochs": plan.epoch_steps,
        "documents": len(documents),
        "first_documents": [_digest(documents[i]) for i in range(min(3, len(documents)))],
        **(further or {}),
    }
    if labels is not None:
        fingerprint["labelled"] = _summary_of_labelled(documents, labels)
    if isinstance(model, TextClassifier):
        fingerprint["classes"] = model.num_classes
        fingerprint["weights"] = None if weights is None else _summary(weights)
        fingerprint["valid"] = None if valid is None else _summary_of_labelled(*valid)
    return run.training(
        stage,
        state,
        fingerprint,
        # Before the first step an optimizer has no moments yet: up to two for each weight.
        size=3 * sum(p.numel() * p.element_size() for p in parameters),
        unit="tokens" if isinstance(model, LanguageModel) else "texts",
        beside={} if tokenizer is None else {_TOKENIZER: tokenizer.to_json},
    )


def _summary(weights: Tensor) -> str:
    """Return the range of weights for a reader, and what other weights do not have as well."""
    digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
    return f"{float(weights.min()):.4g} to {float(weights.max()):.4g}, {digest[:32]}"


def _summary_of_labelled(documents: Documents, labels: Tensor) -> str:
    """Return how many texts there are, and what others do not have as well."""
    found = hashlib.sha256(labels.numpy().tobytes())
    for document in documents:
        found.update(str(_digest(document)).encode())
    return f"{len(documents)} texts, {found.hexdigest()[:32]}"


def _digest(document: Any) -> list[int]:
    """Return some numbers that another document hardly has as well."""
    ids = np.asarray(document, dtype=np.int64)
    return [len(ids), int((ids * np.arange(1, len(ids) + 1)).sum())]
