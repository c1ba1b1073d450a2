"""fastai's models beside ours, with equal weights and equal masks."""

import warnings
from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import ulmfit_fast as uf
from ulmfit_fast import rng
from ulmfit_fast.compat.fastai import classifier_from_fastai, from_fastai
from ulmfit_fast.nn import LanguageModel, TextClassifier
from ulmfit_fast.system.seeds import draw_seed, seeds_from

pytest.importorskip(
    "fastai", reason="fastai is not installed: pip install 'ulmfit-fast[compat]' for these tests"
)
with warnings.catch_warnings():
    # What fastai does as it is imported.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    warnings.filterwarnings("ignore", "The 'mode.chained_assignment' option is deprecated")
    from fastai.text import all as fastai
    from fastai.text.models import awdlstm

VOCAB, EMB, HIDDEN, LAYERS = 56, 20, 28, 3
DROPOUT = {"input_p": 0.25, "hidden_p": 0.15, "embed_p": 0.1, "weight_p": 0.3, "output_p": 0.2}
# At weight_p = 0 fastai registers a second parameter, and fails at its next reset.
NO_DROPOUT = dict.fromkeys(DROPOUT, 0.0) | {"weight_p": 1e-9}


def language_models(dtype=torch.float64, sizes=(VOCAB, EMB, HIDDEN, LAYERS), **config):
    """Return fastai's language model and ours, with the same weights."""
    vocab, emb, hidden, layers = sizes
    dropout = DROPOUT | config
    theirs = {"emb_sz": emb, "n_hid": hidden, "n_layers": layers} | dropout
    old = fastai.get_language_model(fastai.AWD_LSTM, vocab, fastai.awd_lstm_lm_config | theirs).to(
        dtype
    )
    old.reset()
    return old, from_fastai(old.state_dict(), **{name: dropout[name] for name in DROPOUT}).train()


def classifiers(dtype=torch.float64, classes=3, bptt=8, max_len=1440, **dropout):
    """Return fastai's text classifier and ours, with the same weights."""
    dropout = DROPOUT | dropout
    theirs = {"emb_sz": EMB, "n_hid": HIDDEN, "n_layers": LAYERS} | dropout
    old = fastai.get_text_classifier(
        fastai.AWD_LSTM,
        VOCAB,
        classes,
        seq_len=bptt,
        config=fastai.awd_lstm_clas_config | theirs,
        max_len=max_len,
    ).to(dtype)
    new = classifier_from_fastai(old.state_dict(), bptt=bptt, max_len=max_len, **dropout)
    return old, new.train()


def our_name(name):
    """Return what we call a tensor of fastai's models, once more and apart from `from_fastai`.

    None for one that is there twice.
    """
    if ".encoder_dp." in name:
        return None
    name = name.replace("0.module.encoder", "0.encoder").replace("0.module.rnns", "0.rnns")
    for theirs, ours in (
        ("0.encoder.", "encoder.encoder."),
        ("0.rnns.", "encoder.rnns."),
        ("1.decoder.", "decoder."),
        ("1.layers.0.0.", "head.0."),
        ("1.layers.0.2.", "head.2."),
        ("1.layers.1.0.", "head.4."),
        ("1.layers.1.2.", "head.6."),
    ):
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            return name.replace(".module.", ".").replace("_raw", "")
    raise AssertionError(f"no name of ours for {name}")


def our_names(tensors):
    """Rename fastai's tensors."""
    return {our_name(name): value for name, value in tensors.items() if our_name(name)}


def gradients(model):
    """Return the gradient of each parameter under our names."""
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return grads if isinstance(model, (LanguageModel, TextClassifier)) else our_names(grads)


def assert_equal(ours, theirs, tolerance=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def assert_equal_gradients(new, old):
    """Compare all gradients; none may be missing, or zero throughout."""
    ours, theirs = gradients(new), gradients(old)
    assert set(ours) == set(theirs)
    for name, grad in ours.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(
            grad, theirs[name], rtol=1e-12, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )


@contextmanager
def recording(seeds):
    """Keep the seeds that our modules draw their masks from."""

    def drawn():
        seed = torch.randint(2**62, ())
        seeds.append(seed)
        return seed

    with seeds_from(drawn):
        yield


def locked_or_word_mask(seed, x, size, p):
    """Return what fastai's `dropout_mask` returns, made of a seed as our modules make it."""
    if len(size) == 2:  # (V, 1), a mask of words
        keep = rng.embedding_keep(seed, torch.arange(size[0]), p)
    else:  # (B, 1, F), a mask that is locked along time
        keep = rng.keep_mask(seed, size[0] * size[2], p, kind=rng.KIND_LOCKED)
    return keep.view(size).to(x.dtype) * rng.keep_scale(p)


@contextmanager
def drawing():
    """Have the modules of fastai that stay in an accelerated model draw their masks from seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            awdlstm, "dropout_mask", lambda *args: locked_or_word_mask(draw_seed(), *args)
        )
        yield


@contextmanager
def replaying(seeds):
    """Have fastai's modules drop what was dropped with these seeds, in the same order."""
    left = deque(seeds)

    def dropout(weight, p):
        masks = uf.dropout_masks(
            left.popleft(), hidden_size=weight.shape[1], weight_p=p, dtype=weight.dtype
        )
        return weight * masks.weight

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            awdlstm, "dropout_mask", lambda *args: locked_or_word_mask(left.popleft(), *args)
        )
        patch.setattr(awdlstm, "F", SimpleNamespace(dropout=dropout, embedding=F.embedding))
        yield
    assert not left, f"{len(left)} of {len(seeds)} masks were not asked for"


def regularised(loss, raw, dropped, *, alpha=2.0, beta=1.0):
    """Add AR and TAR as fastai's callback does, in the dtype of the outputs."""
    callback = fastai.RNNRegularizer(alpha=alpha, beta=beta)
    outputs = SimpleNamespace(out=dropped, raw_out=raw)
    # It adds in place, to what Learner has cloned.
    callback.learn = SimpleNamespace(loss_grad=loss.clone(), training=True, rnn=outputs)
    with pytest.MonkeyPatch.context() as patch:
        # The callback goes to float32, where nothing could be equal to 1e-12.
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        callback.after_loss()
    return callback.learn.loss_grad


def their_loss(model, tokens, targets, **weights):
    """Return the training loss of fastai's language model; tokens and targets are (T, B)."""
    logits, raw, dropped = model(tokens.t())
    loss = F.cross_entropy(logits.flatten(0, 1), targets.t().flatten())
    return loss, regularised(loss, raw, dropped, **weights)
