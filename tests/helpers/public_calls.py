"""The public calls that seed, draw or make tensors, each at a tiny size, for what must not matter.

Each takes the models of `start` and an empty directory, and returns what it gives as a structure of
tensors, arrays and plain values.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from small_models import CONFIG, documents
from torch import nn

import ulmfit_fast as uf
from ulmfit_fast.compat import fastai
from ulmfit_fast.data import LMBatches, Tokenizer, TokenStore, Vocab
from ulmfit_fast.nn import AWDLSTM, LanguageModel, TextClassifier
from ulmfit_fast.runs import DryRun, Run
from ulmfit_fast.serving import export_classifier, quantize
from ulmfit_fast.training import stages
from ulmfit_fast.training.lr_finder import find_lr
from ulmfit_fast.training.stages import TrainingSettings
from ulmfit_fast.ulmfit import ensemble
from ulmfit_fast.ulmfit.sklearn_classifier import ULMFiTClassifier

TEXTS = ["what a fine and moving film", "a long and tiresome evening"] * 12
LABELS = ["+", "-"] * 12
SIZES = {"emb_size": 8, "hidden_size": 12, "num_layers": 2, "min_freq": 1, "progress": False}
LM = {"epochs": 2, "batch_size": 4, "bptt": 6}
SETTINGS = TrainingSettings(batch_size=4, bptt=5, lr=0.02)


@functools.cache
def start():
    """Return a `ULMFiT` with all that there can be, and the modules that stand alone."""
    torch.manual_seed(5)
    model = uf.ULMFiT(**SIZES).pretrain(TEXTS, **LM).fit_classifier(TEXTS, LABELS, epochs=1)
    torch.manual_seed(6)
    encoder = AWDLSTM(CONFIG)
    return model, LanguageModel(CONFIG), TextClassifier(encoder, 2, hidden=5).eval()


def of(module):
    return {} if module is None else module.state_dict()


def models(learner):
    return [of(learner.language_model), of(learner.classifier)]


def course(history):
    return [history.losses.tolist(), history.lrs.tolist(), list(history.valid_losses)]


def pretrain(start, out):
    learner = uf.ULMFiT(**SIZES, seed=3).pretrain(TEXTS, **LM)
    return models(learner), course(learner.histories["pretrain"])


def pretrain_averaged(start, out):
    options = {"optimizer": "nt_asgd", "nonmono": 1, "valid_share": 0.2, "random_bptt": True}
    learner = uf.ULMFiT(**SIZES, seed=3).pretrain(TEXTS, **LM, **options, lr=5.0)
    return models(learner), course(learner.histories["pretrain"])


def pretrain_subwords(start, out):
    learner = uf.ULMFiT(**SIZES, tokenizer="subword", backwards=True)
    learner.pretrain(TEXTS, **LM, precision="bfloat16").fine_tune_lm(TEXTS, **LM)
    return models(learner), learner.tokenizer.to_json()


def pretrain_on_a_store(start, out):
    store = TokenStore.build(out / "store", TEXTS, start[0].tokenizer, workers=1)
    return models(uf.ULMFiT(**SIZES).pretrain(store, **LM))


def resume(start, out):
    class Died(BaseException):
        pass

    class Mortal(Run):
        def report(self, reading):
            super().report(reading)
            if self._state.steps == 5:
                raise Died

    try:
        uf.ULMFiT(**SIZES).pretrain(TEXTS, **LM, run=Mortal(out, checkpoint_steps=2))
    except Died:
        pass
    learner = uf.ULMFiT(**SIZES).pretrain(TEXTS, **LM, run=Run(out, resume=True))
    return models(learner), course(learner.histories["pretrain"])


def dry_run(start, out):
    dry = DryRun(steps=2)
    with dry.measuring():
        uf.ULMFiT(**SIZES).pretrain(TEXTS, **LM, run=dry)
    return dry.estimate.parameters, dry.estimate.epoch_steps


def fine_tune(start, out):
    learner = (
        start[0].copy().fine_tune_lm(TEXTS[:-3], **LM, drop_mult=0.3, patience=1, valid_share=0.2)
    )
    return models(learner), course(learner.histories["fine_tune_lm"])


def use_vocabulary(start, out):
    return models(start[0].copy().use_vocabulary_of(["a film that is new"]))


def fit_classifier(start, out):
    learner = start[0].copy(seed=4)
    learner.fit_classifier(TEXTS, LABELS, epochs=2, alpha=2.0, beta=1.0, label_smoothing=0.1)
    return models(learner), course(learner.histories["fit_classifier"])


def fit_from_scratch(start, out):
    return models(uf.ULMFiT(**SIZES, preset="fastai_v2").fit_classifier(TEXTS, LABELS, epochs=1))


def perplexity(start, out):
    return start[0].perplexity(TEXTS)


def predict(start, out):
    stream = start[0].predict_stream(iter(TEXTS), chunk_size=5)
    return start[0].predict(TEXTS), start[0].predict_proba(TEXTS), [p.probability for p in stream]


def explain(start, out):
    methods = "gradient_x_input", "intrinsic_attention"
    found = [start[0].explain(TEXTS[:3], method=method) for method in methods]
    return [[(e.label, e.probability, [t.score for t in e.tokens]) for e in own] for own in found]


def generate(start, out):
    return start[0].generate("what a", max_tokens=8, seed=1, top_k=5, top_p=0.9, min_tokens=4)


def save_and_load(start, out):
    start[0].save(out / "m")
    start[0].save_pretrained(out / "h")
    loaded = uf.ULMFiT.load(out / "m", progress=False)
    other = uf.ULMFiT.from_pretrained(out / "h", progress=False)
    return models(loaded), models(other), loaded.predict_proba(TEXTS)


def copied(start, out):
    return models(start[0].copy(seed=7))


def rate_of_language_model(start, out):
    return find_lr(start[1], documents(), SETTINGS, steps=20, seed=2, progress=False).losses


def rate_of_classifier(start, out):
    labels = torch.arange(12, device="cpu") % 2
    found = find_lr(start[2], documents(), SETTINGS, labels=labels, steps=20, progress=False)
    return found.losses, found.lrs


def both_directions(start, out):
    options = {"pretrain": LM, "fine_tune_lm": LM, "fit_classifier": {"epochs": 1}}
    both = ensemble.fit_ensemble(TEXTS, LABELS, pretrain_texts=TEXTS, **options, **SIZES)
    both.save(out / "both")
    return both.predict_proba(TEXTS), uf.Ensemble.load(out / "both").predict_proba(TEXTS)


def scikit_learn(start, out):
    sizes = {name: value for name, value in SIZES.items() if name != "progress"}
    options = {"epochs": 1, "lm_epochs": 1, "lm_options": {"batch_size": 4}, "random_state": 0}
    fitted = ULMFiTClassifier(**options, model_options=sizes).fit(TEXTS, LABELS)
    return fitted.predict(TEXTS).tolist(), fitted.predict_proba(TEXTS)


def tokenizers(start, out):
    kinds = [Tokenizer.train(TEXTS, kind=kind, min_freq=1) for kind in ("word", "subword")]
    return [(own.to_json(), own.encode_batch(TEXTS)) for own in kinds]


def streams(start, out):
    store = TokenStore.build(out / "store", TEXTS, start[0].tokenizer, workers=1)
    ids = torch.arange(60, dtype=torch.int64, device="cpu")
    batches = [*LMBatches(ids, 2, 5), *LMBatches(list(range(60)), 2, 5, random_bptt=True)]
    return batches, store.stream(3)[:20], Vocab(["a"]).transfer(Vocab(["b", "a"]))


def quantised(start, out):
    return quantize(start[0]).predict_proba(TEXTS)


def exported(start, out):
    tokens = torch.tensor([[2], [5], [7]], dtype=torch.int64, device="cpu")
    program = export_classifier(start[2], out / "c.pt2").module()
    return program(tokens, torch.tensor([3], dtype=torch.int64, device="cpu"))


def other_libraries_weights(start, out):
    files = fastai.write_fastai(start[0].language_model, start[0].tokenizer.vocab, out / "lm.pth")
    read, tokenizer = fastai.read_fastai(*files)
    classifier = fastai.classifier_from_fastai(fastai.to_fastai(start[2]))
    return of(read), tokenizer.to_json(), of(classifier)


def swapped_layers(start, out):
    with torch.random.fork_rng([]):
        layer = nn.LSTM(3, 4, 2, dropout=0.5, device="cpu", dtype=torch.float32)
    layers = nn.ModuleList([layer])
    for parameter in layers.parameters():
        nn.init.constant_(parameter, 0.1)
    x = torch.full((5, 2, 3), 0.5, dtype=torch.float32, device="cpu")
    ours = uf.convert_lstm(layers).eval()[0](x)
    return ours, uf.restore_lstm(layers).eval()[0](x)


def layers(start, out):
    """Masks of a given seed, and a layer with weights that are there, on every backend."""
    x = torch.linspace(-1, 1, 40, dtype=torch.float32, device="cpu").view(5, 2, 4)
    w_ih, w_hh = (torch.linspace(-1, 1, n, dtype=torch.float32, device="cpu") for n in (96, 144))
    found = []
    for backend in ("eager", "torch", "reference"):
        weights = [w.view(24, -1).clone().requires_grad_() for w in (w_ih, w_hh)]
        drops = {"weight_p": 0.3, "gate_p": 0.0 if backend == "torch" else 0.2, "seed": 3}
        lengths = None if backend == "torch" else torch.tensor([5, 3], device="cpu")
        output, state = uf.functional.lstm(
            x, None, *weights, **drops, lengths=lengths, backend=backend
        )
        output.sum().backward()
        found.append([output.detach(), *state, *(w.grad for w in weights)])
    kind = {"dtype": torch.float32, "device": "cpu"}
    return found, list(uf.dropout_masks(7, hidden_size=6, weight_p=0.2, gate_p=0.1, **kind))


def stages_as_functions(start, out):
    """Their masks come from PyTorch's generator, which the caller seeds."""
    torch.manual_seed(1)
    model = stages.build_classifier(start[1], CONFIG, 2, SETTINGS)
    labels = torch.arange(12, device="cpu") % 2
    history = stages.fit_classifier(model, documents(), labels, SETTINGS, progress=False)
    other = stages.with_vocabulary(start[1], Vocab(list("abcde")), Vocab(list("cdxyz")))
    own = stages.train_language_model(other, documents(), SETTINGS, progress=False)
    return of(model), of(other), course(history), course(own)


# Those that draw from PyTorch's generator, as a module that is made and a training step do.
DRAWING = {stages_as_functions}
CALLS = [
    *(pretrain, pretrain_averaged, pretrain_subwords, pretrain_on_a_store, resume, dry_run),
    *(fine_tune, use_vocabulary, fit_classifier, fit_from_scratch, perplexity, predict, explain),
    *(generate, save_and_load, copied, rate_of_language_model, rate_of_classifier),
    *(both_directions, scikit_learn, tokenizers, streams, quantised, exported),
    *(other_libraries_weights, swapped_layers, layers, stages_as_functions),
]


def result(call):
    """Return what a call gives, as values that can be compared."""
    with tempfile.TemporaryDirectory() as folder:
        return _plain(call(start(), Path(folder)))


def _plain(value):
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu"
        value = value.detach()
        bits = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), bits
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items()}
    return [_plain(own) for own in value] if isinstance(value, list | tuple) else value
