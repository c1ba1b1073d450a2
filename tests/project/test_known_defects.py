"""Defects of other implementations of AWD-LSTM and ULMFiT, each with a test that it would fail.

Where the behaviour has a closer test of its own, the docstring names it.
"""

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ulmfit_fast import LSTM, ULMFiT, dropout_masks
from ulmfit_fast.data import Tokenizer, Vocab
from ulmfit_fast.nn import (
    AWDLSTM,
    AWDLSTMConfig,
    LanguageModel,
    TextClassifier,
    detach_state,
    language_model_loss,
)

SIZES = {"emb_size": 6, "hidden_size": 8, "num_layers": 3}
SMALL = {**SIZES, "min_freq": 1, "progress": False}
TEXTS = ["a fine film", "a dull film"] * 20
LABELS = ["good", "bad"] * 20


def language_model(drop_mult: float = 1.0, **options) -> LanguageModel:
    config = AWDLSTMConfig.language_model(12, **SIZES, **options)
    return LanguageModel(config.scaled(drop_mult))


def classifier(**options) -> TextClassifier:
    encoder = AWDLSTM(AWDLSTMConfig.classifier(12, **SIZES))
    return TextClassifier(encoder, 3, **{"hidden": 7, "bptt": 4, "max_len": 8, **options})


def words(steps: int = 5, rows: int = 3) -> torch.Tensor:
    return torch.randint(2, 12, (steps, rows))


def train_step(model: nn.Module) -> None:
    """One step with everything that a step leaves behind."""
    if isinstance(model, LanguageModel):
        loss, _ = model.loss(words(), words())
        total = loss.total
    else:
        total = model(words(), torch.tensor([5, 3, 1])).logsumexp(1).sum()
    model.zero_grad()
    total.backward()
    torch.optim.SGD(model.parameters(), 0.01).step()


MODELS = pytest.mark.parametrize("make", [language_model, classifier], ids=lambda f: f.__name__)


@pytest.mark.parametrize("off", [{"weight_p": 0.0}, {"drop_mult": 0.0}], ids=str)
def test_no_dropout_at_all(off: dict[str, float]) -> None:
    """F.dropout with p = 0 returns the parameter itself, which then is registered a second time:
    the state_dict grows, and the next evaluation cannot assign the weight (fastai 2.8.12)."""
    model = language_model(**off)
    names = list(model.state_dict())
    for _ in range(2):
        train_step(model.train())
        assert list(model.state_dict()) == names
        with torch.no_grad():
            model.eval()(words())
    if "drop_mult" in off:
        tokens = words()
        assert torch.equal(model.train()(tokens).logits, model.eval()(tokens).logits)


def test_a_whole_protocol_without_dropout() -> None:
    """The same in `ULMFiT`, whose stages alternate training and evaluation; MultiFiT needs it."""
    model = ULMFiT(**SMALL, drop_mult=0.0)
    options = {"epochs": 1, "batch_size": 8, "bptt": 5}
    model.pretrain(TEXTS, **options).fine_tune_lm(TEXTS, **options)
    model.fit_classifier(TEXTS, LABELS, epochs=1)
    assert model.perplexity(TEXTS) > 1 and len(model.predict(TEXTS)) == 40


@MODELS
def test_deepcopy_and_pickle_after_a_training_forward(make) -> None:
    """A dropped weight or a state kept on the module is no leaf, and deepcopy refuses it."""
    model = make()
    train_step(model.train())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(twin.state_dict()) == list(model.state_dict())
        assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))
        train_step(twin)
        assert not all(map(torch.equal, model.parameters(), twin.parameters()))
        if isinstance(twin, LanguageModel):
            assert twin.decoder.weight is twin.encoder.encoder.weight


@MODELS
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averages_of_weights(make, kind: str) -> None:
    """AveragedModel copies the model, and averages what `parameters` lists: a weight beside the
    parameters would be left out, a tied one averaged twice."""
    model = make()
    train_step(model.train())
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(0.5) if kind == "ema" else None
    )
    average.update_parameters(model)
    first = [p.detach().clone() for p in model.parameters()]
    train_step(model)
    average.update_parameters(model)
    for one, two, mean in zip(first, model.parameters(), average.module.parameters(), strict=True):
        assert torch.allclose(mean, (one + two) / 2, atol=1e-7)
    train_step(average.module.train())


@MODELS
def test_train_eval_train(make) -> None:
    """Where evaluation stores the raw parameter under the dropped weight's name, the second
    training forward raises (awd-lstm-lm, PyTorch-NLP); or evaluation still drops."""
    model = make()
    tokens = words()
    lengths = [torch.tensor([5, 3, 1])] if isinstance(model, TextClassifier) else []
    results = []
    for _ in range(2):
        train_step(model.train())
        model.eval()
        results.append([model(tokens, *lengths)[0] for _ in range(2)])
    assert all(torch.equal(one, two) for one, two in results)
    assert not torch.equal(results[0][0], results[1][0]), "what was trained shows"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtype_moved_mid_stream(dtype: torch.dtype) -> None:
    """A dropped copy or a state on the module stays in the old dtype, and the forward crashes.
    See also test_awd_lstm.py, test_dtype_may_change_mid_stream."""
    model = language_model()
    state = detach_state(model(words()).state)
    output = model.to(dtype)(words(), state)
    assert output.logits.dtype == dtype
    output.logits.float().sum().backward()
    loss, _ = model.loss(words(), words(), detach_state(output.state))
    assert torch.isfinite(loss.total)


def test_device_moved_mid_stream() -> None:
    """The same for the device; "meta" stands in for one where there is no other."""
    device = "cuda" if torch.cuda.is_available() else "meta"
    model = language_model().eval()
    state = detach_state(model(words()).state)
    output = model.to(device)(words().to(device), state)
    assert output.logits.device.type == device
    assert all(h.device.type == c.device.type == device for h, c in output.state)


def test_autocast_then_float32_without_reset() -> None:
    """The state that autocast carried is bfloat16, and the next float32 forward refuses it."""
    model, tokens = language_model().eval(), words()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = detach_state(model(tokens).state)
    output = model(tokens, state)
    assert output.logits.dtype == torch.float32
    expected = model(tokens, detach_state(model(tokens).state))
    assert torch.allclose(output.logits, expected.logits, atol=0.02)


def test_bidirectional_reverse_weights_are_dropped() -> None:
    """Where only weight_hh_l0 is dropped, every reverse connection has a gradient (fastai)."""
    lstm = LSTM(5, 16, bidirectional=True, weight_p=0.4)
    lstm(torch.randn(7, 4, 5), seed=1)[0].sum().backward()
    dropped = []
    for name in ("weight_hh_l0", "weight_hh_l0_reverse"):
        zeros = getattr(lstm, name).grad == 0
        assert 0.3 < zeros.float().mean() < 0.5
        dropped.append(zeros)
    assert not torch.equal(*dropped), "each direction has masks of its own"


def test_bidirectional_reverse_equals_the_flipped_input() -> None:
    """The second direction is the first with its weights and masks on the text from its end."""
    both, one = LSTM(5, 6, bidirectional=True, weight_p=0.5), LSTM(5, 6, weight_p=0.5)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            parameter.copy_(getattr(both, f"{name}_reverse"))
    x = torch.randn(7, 4, 5)
    masks = [dropout_masks(3, hidden_size=6, weight_p=0.5, reverse=r) for r in (False, True)]
    for found, expected in (
        (both.eval()(x)[0], one.eval()(x.flip(0))[0]),
        (both.train()(x, masks=masks)[0], one.train()(x.flip(0), masks=masks[1:])[0]),
    ):
        assert torch.allclose(found[..., 6:].flip(0), expected, atol=1e-6)


def padded(lengths: list[int], extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.ones(max(lengths) + extra, len(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[:length, row] = torch.randint(2, 12, (length,), generator=generator)
    return tokens, torch.tensor(lengths)


def test_unsorted_padded_batch() -> None:
    """Where the rows that still run are taken to be the first ones, an unsorted batch mixes up
    states (fastai). See also test_classifier.py, test_result_depends_on_the_text_alone."""
    model, (tokens, lengths) = classifier().eval(), padded([3, 11, 5, 8])
    together = model(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model(tokens[:length, row : row + 1], lengths[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-6)
    order = lengths.argsort(descending=True)
    assert torch.allclose(model(tokens[:, order], lengths[order]), together[order], atol=1e-6)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_row_without_tokens(training: bool) -> None:
    """A mean over 0 tokens is NaN, a maximum over none -inf, and fastai raises an IndexError."""
    model, (tokens, lengths) = classifier().train(training), padded([4, 0, 9])
    logits = model(tokens, lengths)
    assert torch.isfinite(logits).all()
    logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert torch.isfinite(model(tokens[:0], torch.zeros(3, dtype=torch.int64))).all()


def test_text_of_padding_or_nothing_in_the_estimator() -> None:
    model = ULMFiT(**SMALL).fit_classifier(["", *TEXTS[1:]], LABELS, epochs=1)
    scores = model.predict_proba(["", "xxpad xxpad", "\0", "a fine film"])
    assert np.isfinite(scores).all()


def test_max_len_does_not_depend_on_batch_mates() -> None:
    """Counted from the longest row's end, a short row's pooled span shrinks beside a long one."""
    model, (tokens, lengths) = classifier(max_len=4).eval(), padded([6, 23])
    short = tokens[:6, :1]
    features = model.features(tokens, lengths)
    assert torch.allclose(features[:1], model.features(short, lengths[:1]), atol=1e-6)
    span = model.encoder(short)[0][-4:, 0]
    expected = torch.cat([span[-1], span.amax(0), span.mean(0)])
    assert torch.allclose(features[0], expected, atol=1e-6), "its last four tokens, not fewer"


def test_temporal_regulariser_at_length_one() -> None:
    """A mean over no differences is NaN. See also test_loss.py."""
    model = language_model()
    loss, _ = model.loss(words(1), words(1), beta=1.0)
    assert loss.temporal == 0 and loss.activation > 0 and torch.isfinite(loss.total)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_temporal_regulariser_at_batch_one() -> None:
    """Where the number of rows is looked at in place of the length, one stream has none."""
    model = language_model().eval()
    tokens, targets = words(6, 1), words(6, 1)
    output = model(tokens)
    expected = (output.raw[1:] - output.raw[:-1]).pow(2).mean()
    for parts in (
        model.loss(tokens, targets, beta=1.0)[0],
        language_model_loss(output, targets, beta=1.0),
    ):
        assert parts.temporal > 0 and torch.allclose(parts.temporal, expected)


def test_batch_norm_with_one_document_in_the_last_batch() -> None:
    """Batch normalisation of one row raises, in a model at the end of an epoch, hours in."""
    model = classifier().train()
    logits = model(words(4, 1), torch.tensor([4]))
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    fitted = ULMFiT(**SMALL)
    fitted.fit_classifier(TEXTS[:17], LABELS[:17], epochs=2, batch_size=16)
    assert len(fitted.histories["fit_classifier"].losses) == 2, "no batch of one was made"
    fitted.fit_classifier(TEXTS[:2], LABELS[:2], epochs=2, batch_size=1)
    assert np.isfinite(fitted.predict_proba(TEXTS[:1])).all()


@MODELS
def test_weights_are_loaded_by_name(make) -> None:
    """By position, a state_dict in another order loads without a word and answers at random."""
    model, twin = make().eval(), make().eval()
    state = list(model.state_dict().items())
    twin.load_state_dict(OrderedDict(reversed(state)))
    tokens = words()
    lengths = [torch.tensor([5, 3, 1])] if isinstance(model, TextClassifier) else []
    assert torch.equal(model(tokens, *lengths)[0], twin(tokens, *lengths)[0])


def test_files_are_loaded_by_name(tmp_path) -> None:
    """The same for a model directory whose tensors stand in another order."""
    model = ULMFiT(**SMALL).fit_classifier(TEXTS, LABELS, epochs=1)
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "classifier.safetensors"
    tensors = load_file(path)
    save_file({f"{n}": tensors[n].clone() for n in reversed(list(tensors))}, path)
    loaded = ULMFiT.load(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(TEXTS), model.predict_proba(TEXTS))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Tom &amp; Jerry", "xxbos xxmaj tom & xxmaj jerry"),
        ("a &lt; b &gt; c", "xxbos a < b > c"),
        ("&quot;fine&quot;", 'xxbos " fine "'),
        ("camp; lamp; &amp;amp;", "xxbos camp ; lamp ; &"),
    ],
    ids=["amp", "lt", "quot", "words"],
)
def test_html_entities_are_not_damaged(text: str, tokens: str) -> None:
    """Replacing "amp;" by "&" before unescaping makes "&&" of "&amp;" (fastai), "c&" of "camp;"."""
    assert " ".join(Tokenizer.from_vocab(Vocab([])).tokens(text)) == tokens


@pytest.mark.parametrize("kind", ["word", "subword"])
def test_no_token_contains_a_space(kind: str) -> None:
    """A splitter that keeps blanks in a token breaks every file with tokens between blanks."""
    odd = [
        "10\u00a0000 a\u2003b",
        "don\u2009't \u3000wide",
        "a\tb\nc\r\nd",
        "\ufeffa \x1c b\u200b c",
    ]
    odd += ["New York  N.Y. ", "e.g. 3 . 14", "so so so !!! "]
    tokenizer = Tokenizer.train(odd * 3, kind, max_vocab=80, min_freq=1)
    for text in odd:
        for token in tokenizer.tokens(text):
            assert token and not any(character.isspace() for character in token)
    for word in tokenizer.vocab.words:
        assert not any(character.isspace() for character in word)


def test_a_label_never_seen_in_training() -> None:
    """Looking up an unknown label raises a KeyError in the middle of an evaluation.
    See also test_sklearn_classifier.py, test_a_label_never_seen_counts_as_wrong."""
    sklearn_classifier = pytest.importorskip("ulmfit_fast.ulmfit.sklearn_classifier")
    options = {"model_options": {**SIZES, "min_freq": 1}, "fine_tune_lm": False, "random_state": 0}
    model = sklearn_classifier.ULMFiTClassifier(epochs=1, **options).fit(TEXTS, LABELS)
    assert model.score(["a fine film", "a dull film"], ["odd", "strange"]) == 0.0


def test_batches_of_other_sizes_mid_stream() -> None:
    """A state of 10 rows before a batch of 6, and of 10 again, raises or restarts all rows."""
    model = language_model().eval()
    tokens = words(4, 10)
    state = detach_state(model(tokens).state)
    six = model(tokens[:, :6], state)
    expected = model(tokens, state).logits[:, :6]
    assert torch.allclose(six.logits, expected, atol=1e-6)
    ten = model(tokens, detach_state(six.state))
    fresh = model(tokens[:, 6:])
    assert torch.allclose(ten.logits[:, 6:], fresh.logits, atol=1e-6), "new rows start from zeros"
    loss, _ = model.train().loss(words(1, 1), words(1, 1), detach_state(ten.state))
    assert torch.isfinite(loss.total)
