"""Runs that die at a step or at the end of an epoch, for the tests of what comes after."""

import json
from dataclasses import replace

import pytest
import torch
from small_models import documents, make

from ulmfit_fast.data import Tokenizer
from ulmfit_fast.runs import Run
from ulmfit_fast.training.stages import (
    TrainingSettings,
    fit_classifier,
    train_language_model,
)

TOKENIZER = Tokenizer.train(["a fine film"] * 3, min_freq=1)
BASE = TrainingSettings(batch_size=3, bptt=5, lr=0.02, epochs=4)
LM = {
    "plain": BASE,
    "held out": replace(BASE, valid_share=0.3, clip=0.2, weight_decay=0.1),
    "random lengths": replace(BASE, random_bptt=True, bptt=8, optimizer="adam"),
    "averaging": replace(BASE, optimizer="nt_asgd", nonmono=1, lr=5.0, valid_share=0.3, epochs=6),
    "one cycle a stage": replace(
        BASE, schedule="one_cycle", schedule_per="stage", gradual_unfreezing=(1, 2),
        reset_optimizer=True, lr_decay=0.5, no_decay_on_bias_and_norm=True, weight_decay=0.01,
    ),
    "cosine": replace(BASE, schedule="cosine", gradual_unfreezing=1, chain_thaw=True),
    "patience": replace(BASE, valid_share=0.3, patience=1, epochs=9, lr=0.4),
    "bfloat16": replace(BASE, precision="bfloat16", label_smoothing=0.1),
}  # fmt: skip
CLASSIFIER = {
    "paper": replace(BASE, gradual_unfreezing=1, epochs=5),
    "regularised": replace(BASE, alpha=2.0, beta=1.0, schedule="one_cycle", max_len=4),
    "thaw": replace(BASE, chain_thaw=True, gradual_unfreezing=1, optimizer="sgd", alpha=0, beta=0),
    "patience": replace(BASE, patience=2, epochs=9, lr=0.2),
    "keep best": replace(BASE, keep_best=True, gradual_unfreezing=1, lr=0.2, epochs=6),
}
CASES = [("language model", name) for name in LM] + [("classifier", name) for name in CLASSIFIER]


class Died(BaseException):
    """What stands for a process that is gone."""


class MortalRun(Run):
    """Die at a step, before or after its loss is entered, or at the end of an epoch."""

    def __init__(self, directory, at=None, epoch=None, **options):
        super().__init__(directory, **options)
        self.at, self.epoch = at, epoch

    def report(self, reading):
        super().report(reading)
        if self._state.steps == self.at:
            raise Died

    def epoch_ended(self, loss, valid_loss, **kept):
        if self._state.epoch == self.epoch:
            raise Died
        super().epoch_ended(loss, valid_loss, **kept)


def settings_of(kind, name):
    return (LM if kind == "language model" else CLASSIFIER)[name]


def fit(kind, settings, run=None, **options):
    """Train from the start, or go on; return the model and its history."""
    model = make(kind)
    torch.manual_seed(11)
    docs = documents(40)
    options |= {"seed": 3, "progress": False, "run": run, "tokenizer": TOKENIZER}
    if kind == "language model":
        return model, train_language_model(model, docs, settings, **options)
    labels = torch.arange(40) % 2
    if settings.keeps_best:
        options["valid"] = documents(52)[40:], torch.arange(12) % 2
    return model, fit_classifier(model, docs, labels, settings, **options)


def assert_equal_runs(a, b):
    (model, history), (other, again) = a, b
    names = ("losses", "regularisers", "lrs", "unfreeze_steps", "valid_losses", "valid_scores")
    for name in names:
        assert getattr(history, name) == getattr(again, name), name
    assert history.average_step == again.average_step
    assert [e[:2] for e in history.epochs] == [e[:2] for e in again.epochs]
    own = other.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name]), name


def reports(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def untimed(directory):
    return [
        {name: value for name, value in report.items() if not name.endswith("_per_second")}
        for report in reports(directory)
    ]


def stopped(directory, at=6, **options):
    with pytest.raises(Died):
        fit("language model", BASE, MortalRun(directory, at, checkpoint_steps=4, **options))
