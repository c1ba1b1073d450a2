"""Whole runs on a device: killed and resumed bit for bit, and in float16 with scaled gradients."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from mortal_runs import TOKENIZER, Died, MortalRun, assert_equal_runs
from rehearsal import DEVICE, REHEARSAL, never_waiting, rehearsed, sized
from torch.amp import GradScaler

from ulmfit_fast import backend
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.runs import Run
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.stages import (
    TrainingSettings,
    build_classifier,
    fit_classifier,
    train_language_model,
)

WORDS, TEXTS = sized((5_000, 1_200), (17, 10))
CONFIG = AWDLSTMConfig.language_model(
    WORDS, **sized({}, {"emb_size": 6, "hidden_size": 16, "num_layers": 1})
)
LANGUAGE_MODEL = TrainingSettings(
    batch_size=sized(64, 3), bptt=sized(70, 4), lr=2e-3, epochs=2, clip=0.25
)
CLASSIFIER = replace(
    LANGUAGE_MODEL, batch_size=sized(64, 6), bptt=sized(70, 6), epochs=3, gradual_unfreezing=1
)
# The interpreter has no bfloat16.
PRECISIONS = sized(["float32", "bfloat16", "float16"], ["float16"])
KINDS = pytest.mark.parametrize("kind", ["language model", "classifier"])


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """On a CPU the kernels run when they are asked for by name, and float16 is let through."""
    chosen = Precision.of

    def of(cls, name, device):
        if name == "float16":
            # A scale that grows every other step, and that is part of what a run goes on with.
            return cls(torch.float16, GradScaler(DEVICE, init_scale=2.0**8, growth_interval=2))
        return chosen(name, device)

    monkeypatch.setattr(Precision, "of", classmethod(of))
    with backend.use("triton" if REHEARSAL else "auto"):
        yield


def documents():
    """Texts of two kinds: each favours another half of the words."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(*sized((20, 140), (2, 6)), TEXTS)
    half = WORDS // 2
    # Squared, so that some words are frequent: there is something to learn without labels too.
    drawn = [(draw.random(n) ** 2 * (half - 2)).astype(np.int32) + 2 for n in lengths]
    return [ids + half * (n % 2) for n, ids in enumerate(drawn)]


def fit(kind, settings, run=None):
    torch.manual_seed(0)
    language_model = LanguageModel(CONFIG)
    if kind == "language model":
        model = language_model.to(DEVICE)
    else:
        model = build_classifier(language_model, CONFIG, 2, settings).to(DEVICE)
    options = {"seed": 3, "progress": False, "run": run, "tokenizer": TOKENIZER}
    torch.manual_seed(11)
    if kind == "language model":
        return model, train_language_model(model, documents(), settings, **options)
    labels = torch.arange(TEXTS) % 2
    return model, fit_classifier(model, documents(), labels, settings, **options)


def settings_of(kind, **options):
    return replace(LANGUAGE_MODEL if kind == "language model" else CLASSIFIER, **options)


@rehearsed
@KINDS
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, kind, precision):
    settings = settings_of(kind, precision=precision)
    expected = fit(kind, settings)
    steps = len(expected[1].losses)
    assert steps >= 5 and np.isfinite(expected[1].losses).all()
    for n, at in enumerate([2, 5]):
        run = MortalRun(tmp_path, at, checkpoint_steps=2, resume=n > 0)
        with pytest.raises(Died):
            fit(kind, settings, run)
    assert_equal_runs(expected, fit(kind, settings, Run(tmp_path, resume=True)))


@pytest.mark.gpu
def test_a_killed_run_of_captured_steps_goes_on(tmp_path):
    """The first steps after a resumption are not replayed, and cuBLAS may compute them anew."""
    settings = settings_of("language model", capture=True, precision="bfloat16")
    model, history = fit("language model", settings)
    with pytest.raises(Died):
        fit("language model", settings, MortalRun(tmp_path, 9, checkpoint_steps=4))
    resumed, again = fit("language model", settings, Run(tmp_path, resume=True))
    assert again.losses == pytest.approx(history.losses, rel=1e-3)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@KINDS
def test_a_long_run_in_float16_learns_as_one_in_float32(kind):
    losses = {}
    for precision in ("float32", "float16"):
        settings = settings_of(kind, precision=precision, epochs=12)
        model, history = fit(kind, settings)
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
        losses[precision] = np.array(history.losses)
        assert np.isfinite(losses[precision]).all()
    start, end = (np.mean(losses["float32"][part]) for part in (slice(3), slice(-10, None)))
    assert end < start - 0.3
    assert np.mean(losses["float16"][-10:]) == pytest.approx(end, rel=0.05)
    assert not np.array_equal(losses["float16"], losses["float32"])


# NumPy, which the interpreter computes with, tells of an overflow.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@rehearsed
def test_float16_gradients_that_overflow_leave_the_weights_and_lower_the_scale():
    torch.manual_seed(0)
    model = LanguageModel(CONFIG).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    # A loss of some 8.5 times 2**100 is a float32, its gradients are no float16.
    scaler = GradScaler(DEVICE, init_scale=2.0**100, backoff_factor=2.0**-30)
    objective = Objective(clip=0.25, precision=Precision(torch.float16, scaler))
    step = LanguageModelStep(model, optimizer, objective=objective)
    before = [p.detach().clone() for p in model.parameters()]
    batches = itertools.repeat(
        torch.randint(2, WORDS, (LANGUAGE_MODEL.bptt + 1, LANGUAGE_MODEL.batch_size)).to(DEVICE)
    )
    skipped = 0
    for ids in itertools.islice(batches, 8):
        loss = step(ids[:-1], ids[1:])
        assert math.isfinite(loss.total)
        moved = any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        if moved:
            break
        skipped += 1
        assert scaler.get_scale() == 2.0 ** (100 - 30 * skipped)
    assert moved and 1 <= skipped <= 4
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.gpu
def test_a_step_with_scaled_gradients_never_waits_for_the_device():
    torch.manual_seed(0)
    model = LanguageModel(CONFIG).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    objective = Objective(clip=0.25, precision=Precision(torch.float16, GradScaler(DEVICE)))
    step = LanguageModelStep(model, optimizer, objective=objective)
    ids = torch.randint(2, WORDS, (LANGUAGE_MODEL.bptt + 1, LANGUAGE_MODEL.batch_size)).to(DEVICE)
    for _ in range(3):
        step(ids[:-1], ids[1:])
    with never_waiting():
        step(ids[:-1], ids[1:])
