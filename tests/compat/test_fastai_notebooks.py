"""What fastai's own tests claim of its classes, claimed of them and of ours.

The facts are those of its notebooks 14, 30, 32, 33, 34 and 37; what they claim of vocabularies and
batches is in test_fastai_data.py, of single rules in test_fastai_tokens.py.
"""

import pytest
import torch
from fastai_parts import (
    EMB,
    HIDDEN,
    VOCAB,
    assert_equal,
    classifiers,
    fastai,
    language_models,
    recording,
)

import ulmfit_fast as uf
from ulmfit_fast import rng
from ulmfit_fast.compat.fastai import accelerate
from ulmfit_fast.data import LMBatches, Tokenizer, Vocab
from ulmfit_fast.nn import (
    AWDLSTM,
    AWDLSTMConfig,
    EmbeddingDropout,
    LanguageModel,
    LockedDropout,
    TextClassifier,
)
from ulmfit_fast.nn.pooling import ConcatPool
from ulmfit_fast.optim import OneCycleLR, discriminative_groups
from ulmfit_fast.training.evaluation import evaluate_language_model

WHOSE = pytest.mark.parametrize("whose", ["fastai", "ours"])


class TimeFirst:
    """A module of fastai's that takes and gives what ours do, time first."""

    def __init__(self, module):
        self.module = module

    def __call__(self, x, *args):
        result = self.module(x.transpose(0, 1), *args)
        first, *rest = result if isinstance(result, tuple) else (result,)
        return (first.transpose(0, 1), *rest) if rest else first.transpose(0, 1)


def weight_dropped(whose, p):
    """Return an LSTM with weight-drop, (T, B, E) to (T, B, H), and its recurrent weight."""
    if whose == "ours":
        layer = uf.LSTM(5, 7, weight_p=p)
        return layer, layer.weight_hh_l0
    layer = fastai.WeightDropout(torch.nn.LSTM(5, 7), p)
    if whose == "accelerated":
        layer = accelerate(torch.nn.Sequential(layer))[0]
    return layer, layer.weight_hh_l0_raw


@WHOSE
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_masks_hold_zeros_and_the_inverse_of_what_is_kept(whose, p):
    if whose == "fastai":
        mask = fastai.dropout_mask(torch.randn(3, 4), [40, 30], p)
    else:
        mask = uf.dropout_masks(3, hidden_size=20, weight_p=p).weight
    assert mask.shape == ((40, 30) if whose == "fastai" else (80, 20))
    assert_equal(mask.unique(), torch.tensor([0.0, 1 / (1 - p)]), 1e-6)
    assert (mask == 0).float().mean() == pytest.approx(p, abs=0.06)


@WHOSE
def test_a_locked_mask_is_one_along_time_and_new_for_each_row_and_forward(whose):
    drop = TimeFirst(fastai.RNNDropout(0.3)) if whose == "fastai" else LockedDropout(0.3)
    first, second = drop(torch.ones(20, 4, 30)), drop(torch.ones(20, 4, 30))
    assert (first == first[0]).all()
    assert_equal(first.unique(), torch.tensor([0.0, 1 / 0.7]), 1e-6)
    assert not torch.equal(first, second)
    assert not any(torch.equal(first[0, 0], first[0, row]) for row in range(1, 4))


@pytest.mark.parametrize("whose", ["fastai", "accelerated", "ours"])
def test_recurrent_weights_are_dropped_and_stay_as_they_are(whose):
    layer, weight = weight_dropped(whose, p=0.4)
    before = weight.detach().clone()
    x = torch.randn(6, 3, 5)
    outputs = []
    for _ in range(2):
        outputs.append(layer(x)[0])
        outputs[-1].sum().backward()
        dropped = (weight.grad == 0).float().mean()
        assert 0.2 < dropped < 0.6
        weight.grad = None
    assert not torch.equal(*outputs)
    assert torch.equal(weight, before)
    layer.eval()
    expected = layer(x)[0]
    assert torch.equal(layer(x)[0], expected)
    expected.sum().backward()
    assert (weight.grad != 0).all()


@WHOSE
def test_the_rows_of_an_embedding_are_kept_or_dropped_as_wholes(whose):
    embedding = torch.nn.Embedding(10, 7, padding_idx=1)
    drop = fastai.EmbeddingDropout(embedding, 0.5)
    if whose == "ours":
        drop = EmbeddingDropout(embedding, 0.5)
    tokens = torch.randint(10, (9, 8))
    found = drop(tokens)
    kept = found.abs().sum(2) > 0
    expected = embedding.weight[tokens] * 2 * kept.unsqueeze(2)
    assert_equal(found, expected, 1e-6)
    for token in tokens.unique():
        fate = kept[tokens == token]
        assert fate.all() or not fate.any() or token == 1
    assert 0 < kept.float().mean() < 1
    drop.eval()
    assert_equal(drop(tokens), embedding.weight[tokens], 1e-6)


def encoder(whose, bidir=False):
    """Return an encoder from (B, T) to (B, T, E) that keeps its state, and how to see the state."""
    if whose == "ours":
        config = AWDLSTMConfig(100, emb_size=20, hidden_size=10, num_layers=2, pad_id=1)
        model = AWDLSTM(config)
        held = {"state": None}

        def run(tokens):
            output, held["state"] = model(tokens.t(), held["state"])
            return output.transpose(0, 1)

        return model, run, lambda: held["state"]
    model = fastai.AWD_LSTM(
        100, 20, 10, 2, hidden_p=0.2, embed_p=0.02, input_p=0.1, weight_p=0.2, bidir=bidir
    )
    if whose == "accelerated":
        accelerate(model)
    model.reset()
    return model, model, lambda: model.hidden


@pytest.mark.parametrize(
    ("whose", "bidir"),
    [
        ("fastai", False),
        ("accelerated", False),
        ("ours", False),
        ("fastai", True),
        ("accelerated", True),
    ],
)
def test_the_encoder_keeps_its_state_whatever_the_batch(whose, bidir):
    model, run, state = encoder(whose, bidir)
    directions = 2 if bidir else 1
    tokens = torch.randint(100, (10, 5))
    output = run(tokens)
    assert output.shape == (10, 5, 20)
    widths = [10 // directions, 20 // directions]
    for (h, c), width in zip(state(), widths, strict=True):
        assert h.shape == c.shape == (directions, 10, width)
    if not bidir:
        assert_equal(output[:, -1], state()[-1][0][0], 1e-6)
    model.eval()
    before = [h.clone() for h, _ in state()]
    first, second = run(tokens), run(tokens)
    assert not torch.allclose(first, second)  # the state has gone on
    kept = [(h.clone(), c.clone()) for h, c in state()]
    few = run(tokens[:6])
    assert few.shape == (6, 5, 20)
    assert all(h.shape[1] == 6 for h, _ in state())
    # Row by row, the first six went on from what they were.
    other, go_on, _ = encoder(whose, bidir)
    other.load_state_dict(model.state_dict())
    other.eval()
    if whose == "ours":
        expected = other(tokens[:6].t(), [(h[:, :6], c[:, :6]) for h, c in kept])[0].transpose(0, 1)
    else:
        go_on(tokens)
        other.hidden = kept
        expected = go_on(tokens[:6])
    assert_equal(few, expected, 1e-6)
    run(tokens)
    assert all(h.shape == b.shape for (h, _), b in zip(state(), before, strict=True))


@WHOSE
def test_the_decoder_is_tied_and_gives_three_things(whose):
    old, new = language_models(torch.float32)
    tokens = torch.randint(VOCAB, (5, 4))
    if whose == "fastai":
        logits, raw, dropped = (part.transpose(0, 1) for part in old(tokens.t()))
        decoder, tied = old[1].decoder, old[0].encoder.weight
    else:
        logits, raw, dropped, _ = new(tokens)
        decoder, tied = new.decoder, new.encoder.encoder.weight
    assert decoder.weight is tied
    assert logits.shape == (5, 4, VOCAB) and raw.shape == dropped.shape == (5, 4, EMB)
    assert_equal(logits, dropped @ decoder.weight.t() + decoder.bias, 1e-5)
    kept = dropped != 0
    assert_equal(dropped[kept], raw[kept] / 0.8, 1e-5)
    assert (kept == kept[0]).all() and 0.6 < kept.float().mean() < 0.95


def test_drop_mult_scales_every_dropout():
    old = fastai.get_language_model(fastai.AWD_LSTM, 100, drop_mult=0.5)
    new = LanguageModel(AWDLSTMConfig.language_model(100).scaled(0.5))
    theirs = old[0]
    for layer, other in zip(new.encoder.rnns, theirs.rnns, strict=True):
        assert layer.weight_p == other.weight_p
    config = new.config
    assert config.embed_p == theirs.encoder_dp.embed_p == 0.01
    assert config.input_p == theirs.input_dp.p == 0.125
    assert config.hidden_p == theirs.hidden_dps[0].p == 0.075
    assert config.output_p == old[1].output_dp.p == new.output_dropout.p == 0.05
    clas = fastai.get_text_classifier(fastai.AWD_LSTM, 100, 3, drop_mult=0.5)
    config = AWDLSTMConfig.classifier(100).scaled(0.5)
    ours = TextClassifier(AWDLSTM(config), 3, output_p=config.output_p)
    theirs = clas[0].module
    assert config.weight_p == theirs.rnns[0].weight_p and config.input_p == theirs.input_dp.p
    assert config.hidden_p == theirs.hidden_dps[0].p and config.embed_p == theirs.encoder_dp.embed_p
    dropouts = [
        [m.p for m in head.modules() if isinstance(m, torch.nn.Dropout)]
        for head in (clas[1], ours.head)
    ]
    assert dropouts == [[0.2, 0.1], [0.2, 0.1]]


@pytest.mark.parametrize("whose", ["fastai", "accelerated"])
def test_reset_reaches_the_encoder(whose):
    model, _ = language_models()
    if whose == "accelerated":
        accelerate(model)
    model.eval()
    tokens = torch.randint(VOCAB, (3, 4))
    first, second = model(tokens)[0], model(tokens)[0]
    assert not torch.equal(first, second)
    model.reset()
    assert all((part == 0).all() for pair in model[0].hidden for part in pair)
    assert torch.equal(model(tokens)[0], first)


def test_an_evaluation_starts_from_zeros():
    _, new = language_models(torch.float32)
    batches = LMBatches(torch.randint(VOCAB, (200,)), batch_size=3, bptt=7)
    first = evaluate_language_model(new, batches)
    assert evaluate_language_model(new, batches) == first


@pytest.mark.parametrize("whose", ["fastai", "accelerated"])
def test_a_window_of_padding_in_front_changes_nothing(whose):
    model, _ = classifiers()
    if whose == "accelerated":
        accelerate(model)
    model.eval()
    tokens = torch.randint(9, VOCAB, (2, 13))
    alone, mask = model[0](tokens)
    window = torch.ones(2, 8, dtype=torch.int64)
    # Two longer texts come first; the two behind them begin with the second window.
    longer = torch.randint(9, VOCAB, (2, 21))
    outputs, padded_mask = model[0](torch.cat([longer, torch.cat([window, tokens], dim=1)]))
    assert_equal(outputs[2:, 8:], alone)
    assert padded_mask[2:, :8].all() and not padded_mask[2:, 8:].any() and not mask.any()


def test_pools_are_last_largest_and_mean():
    output = torch.randn(2, 4, 5)
    mask = torch.tensor([[False] * 4, [False, False, True, True]])
    lengths = torch.tensor([4, 2])
    pool = ConcatPool(torch.zeros(2, dtype=torch.int64), lengths, like=output)
    pool.add(output.transpose(0, 1), 0)
    changed = output.masked_fill(mask[:, :, None], 1e6)
    for found in (
        fastai.masked_concat_pool(output, mask, 2),
        fastai.masked_concat_pool(changed, mask, 2),
        pool.result(),
    ):
        for row, length in enumerate(lengths.tolist()):
            real = output[row, :length]
            expected = torch.cat([real[-1], real.amax(0), real.mean(0)])
            assert_equal(found[row], expected, 1e-6)


@WHOSE
def test_a_classifier_does_not_see_padding(whose):
    old, new = classifiers(classes=4)
    old.eval()
    new.eval()
    tokens = torch.randint(9, VOCAB, (6, 2))
    lengths = torch.tensor([6, 6])
    padded = torch.cat([tokens, torch.ones(2, 2, dtype=torch.int64)])
    if whose == "ours":
        alone, more = new(tokens, lengths), new(padded, lengths)
    else:
        alone, more = old(tokens.t())[0], old(padded.t())[0]
    assert alone.shape == (2, 4)
    assert_equal(more, alone)


def test_marks_are_undone():
    marked = ["xxmaj text", "xxrep 4 !", "xxup nasa", "xxwrep 3 no"]
    theirs = [fastai.decode_spec_tokens(words.split()) for words in marked]
    assert theirs == [["Text"], ["!!!!"], ["NASA"], ["no", "no", "no"]]
    words = " ".join(marked).split()
    vocab = Vocab([word for word in words if not word.startswith("xx")])
    tokenizer = Tokenizer.from_vocab(vocab)
    assert tokenizer.decode([vocab.index(w) for w in words]) == "Text!!!! NASA no no no"
    # fastai goes on to repeat whatever comes after a repetition.
    assert fastai.decode_spec_tokens("xxrep 4 ! so".split()) == ["!!!!", "sosososo"]
    assert tokenizer.decode([vocab.index(w) for w in "xxrep 4 ! text".split()]) == "!!!! text"


def test_one_cycle_goes_as_fastai_s(in_float64):
    # fastai keeps the shares of the two parts in the default dtype.
    steps = 83
    rate = fastai.combined_cos(0.25, 1e-2 / 25, 1e-2, 1e-2 / 1e5)
    momentum = fastai.combined_cos(0.25, 0.8, 0.7, 0.8)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = OneCycleLR(optimizer, total_steps=steps)
    for step in range(steps):
        group = optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(float(rate(step / steps)), rel=1e-12)
        assert group["betas"][0] == pytest.approx(float(momentum(step / steps)), rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_discriminative_rates_are_fastai_s_slice():
    old, new = classifiers()
    optimizer = fastai.Adam(fastai.awd_lstm_clas_split(old), lr=1.0)
    optimizer.set_hyper("lr", slice(1e-2 / 2.6**4, 1e-2))
    theirs = [hypers["lr"] for hypers in optimizer.hypers]
    groups = discriminative_groups(new, lr=1e-2, factor=2.6)
    assert [group["lr"] for group in groups] == pytest.approx(theirs, rel=1e-12)
    assert [sum(p.numel() for p in group["params"]) for group in groups] == [
        sum(p.numel() for p in group) for group in optimizer.param_lists
    ]


def test_seeds_are_drawn_once_a_mask():
    _, new = language_models()
    with recording(seeds := []):
        new(torch.randint(VOCAB, (3, 2)))
    masks = [rng.keep_mask(seed, HIDDEN, 0.5, kind=rng.KIND_LOCKED) for seed in seeds]
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks) == 8
