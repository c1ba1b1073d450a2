"""The stages of ULMFiT as functions: train a language model, carry it over, fit a classifier."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ulmfit_fast.data.batches import ClassifierBatches
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.nn.vocabulary import with_vocabulary
from ulmfit_fast.system import distributed
from ulmfit_fast.training.classifier_step import relative_weights
from ulmfit_fast.training.cursor import Cursor
from ulmfit_fast.training.evaluation import recalibrate_batch_norm
from ulmfit_fast.training.lm_stage import Documents, EpochHook, perplexity, train_language_model
from ulmfit_fast.training.loop import train_classifier_epoch
from ulmfit_fast.training.plan import TrainingPlan
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.run_stage import StageRun, surviving
from ulmfit_fast.training.settings import TrainingSettings
from ulmfit_fast.training.snapshot import Training
from ulmfit_fast.training.state import History

__all__ = [
    "TrainingSettings",
    "build_classifier",
    "fit_classifier",
    "perplexity",
    "train_language_model",
    "with_vocabulary",
]


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
    seed: int = 0,
    progress: bool = True,
    after_epoch: EpochHook | None = None,
    run: StageRun | None = None,
) -> History:
    """Fit a classifier, then estimate the head's BatchNorm statistics anew with dropout off.

    Of several processes each reads `batch_size` texts of a batch, and the head sees those of all.

    Args:
        model: trained in place, left in evaluation mode.
        documents: token ids of each text, int32.
        labels: `(N,)` int64.
        settings: how to train.
        weights: `(N,)`, how much the loss of each text counts, see `classifier_step`; only their
            proportions matter. None weighs all alike.
        seed: of the order of the texts.
        progress: show the bar.
        after_epoch: called with the number of finished epochs and the history so far, when the
            model is ready to predict.
        run: keeps checkpoints and reports, and goes on with a run that was stopped; or None.

    Returns:
        The losses and learning rates of every step, and where each layer group was opened.

    Raises:
        ValueError: if a setting is for language models alone, a weight is not finite or below 0,
            there are not as many as texts or all of them are 0, or the run to go on with is another
            one.
    """
    _check_classifier_settings(settings)
    weights = relative_weights(weights, len(documents))
    device = next(model.parameters()).device
    precision = Precision.of(settings.precision, device)
    history, cursor = History(), Cursor()
    pad_id = model.encoder.config.pad_id
    batches = ClassifierBatches(
        documents,
        labels,
        settings.batch_size * distributed.world().size,
        pad_id=pad_id,
        shuffle=True,
        seed=seed,
    )
    plan = TrainingPlan(model, settings, [len(batches)] * settings.epochs)
    training = Training(model, plan, history, cursor, precision.scaler)
    shown = False
    surviving_run = surviving(run, training, settings, documents, seed, weights)
    with distributed.own_masks(device), plan.unfreezing_groups(), surviving_run:
        for epoch in range(cursor.epoch, settings.epochs):
            batches.set_epoch(epoch)
            if cursor.batch == 0 and plan.begin_epoch(epoch):
                history.unfreeze_steps.append(len(history.losses))
            train_classifier_epoch(
                model,
                batches,
                plan.optimizer,
                plan.scheduler,
                alpha=settings.alpha,
                beta=settings.beta,
                clip=settings.clip,
                label_smoothing=settings.label_smoothing,
                weights=weights,
                precision=precision,
                history=history,
                cursor=cursor,
                run=None if run is None else run.run,
                description=f"classifier, epoch {epoch + 1}/{settings.epochs}",
                progress=progress,
            )
            if after_epoch is not None or epoch + 1 == settings.epochs:
                recalibrate_batch_norm(model, batches, autocast=precision.dtype)
            if after_epoch is not None:
                after_epoch(epoch + 1, history)
            shown = True
            cursor.next_epoch()
            if run is not None:
                run.run.epoch_ended(None, best=False)
        # Where all epochs were over before this call.
        if after_epoch is not None and not shown:
            after_epoch(cursor.epoch, history)
    return history


def _check_classifier_settings(settings: TrainingSettings) -> None:
    wrong = {
        "optimizer": settings.optimizer == "nt_asgd",
        "valid_share": settings.valid_share > 0,
        "patience": settings.patience > 0,
        "random_bptt": settings.random_bptt,
        "capture": settings.capture,
    }
    for name, given in wrong.items():
        if given:
            raise ValueError(
                f"{name} is {getattr(settings, name)!r}, which is for language models; leave it "
                "out for a classifier"
            )
