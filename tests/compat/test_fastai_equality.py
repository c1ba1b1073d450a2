"""Our models compute what fastai's compute, in evaluation and with the same masks in training."""

import pytest
import torch
import torch.nn.functional as F
from fastai_parts import (
    EMB,
    HIDDEN,
    VOCAB,
    assert_equal,
    assert_equal_gradients,
    awdlstm,
    classifiers,
    fastai,
    language_models,
    our_names,
    recording,
    regularised,
    replaying,
    their_loss,
)

import ulmfit_fast as uf
from ulmfit_fast.compat.fastai import classifier_from_fastai, from_fastai, to_fastai
from ulmfit_fast.nn import detach_state, language_model_loss
from ulmfit_fast.nn.pooling import ConcatPool

# In windows of 8. Longest first; no text ends where the last window starts, and none starts within
# the batch's last 8 tokens: see test_classifications_are_right_where_fastai_s_are_not.
LENGTHS = [29, 27, 20, 12, 11]


@pytest.mark.parametrize(
    "make",
    [
        language_models,
        lambda: language_models(out_bias=False),
        lambda: language_models(tie_weights=False),
        classifiers,
    ],
    ids=["language model", "no bias", "untied", "classifier"],
)
def test_weights_go_to_fastai_and_back_by_name(make):
    old, new = make()
    expected = old.state_dict()
    for parameter in new.parameters():
        torch.nn.init.uniform_(parameter)
    found = to_fastai(new)
    assert list(found) == list(expected)
    assert [value.shape for value in found.values()] == [v.shape for v in expected.values()]
    old.load_state_dict(found)
    back = from_fastai if "1.decoder.weight" in found else classifier_from_fastai
    for name, value in back(old.state_dict()).state_dict().items():
        assert torch.equal(value, new.state_dict()[name]), name


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("steps", [1, 2, 70, 72])
def test_language_models_are_equal_in_evaluation(steps, batch):
    old, new = language_models()
    old.eval()
    new.eval()
    state = None
    for _ in range(2):
        tokens = torch.randint(VOCAB, (steps, batch))
        with torch.no_grad():
            logits, raw, _ = old(tokens.t())
            output = new(tokens, state)
        state = output.state
        assert_equal(output.logits, logits.transpose(0, 1))
        assert_equal(output.raw, raw.transpose(0, 1))
        for (h, c), (h_old, c_old) in zip(state, old[0].hidden, strict=True):
            assert_equal(h, h_old)
            assert_equal(c, c_old)


def test_language_models_are_equal_in_float32():
    old, new = language_models(torch.float32)
    old.eval()
    new.eval()
    tokens = torch.randint(VOCAB, (70, 16))
    assert_equal(new(tokens).logits, old(tokens.t())[0].transpose(0, 1), tolerance=1e-5)


@pytest.mark.parametrize("layers", [1, 4])
def test_language_models_of_other_depths_are_equal(layers):
    old, new = language_models(sizes=(30, 12, 17, layers))
    old.eval()
    new.eval()
    tokens = torch.randint(30, (9, 5))
    assert_equal(new(tokens).logits, old(tokens.t())[0].transpose(0, 1))


def test_training_outputs_are_equal_with_the_same_masks():
    old, new = language_models()
    tokens = torch.randint(VOCAB, (13, 5))
    with recording(seeds := []):
        output = new(tokens)
    assert len(seeds) == 2 + 3 + 2 + 1  # words, input; layers; between them; output
    with replaying(seeds):
        logits, raw, dropped = old(tokens.t())
    assert_equal(output.logits, logits.transpose(0, 1))
    assert_equal(output.raw, raw.transpose(0, 1))
    assert_equal(output.dropped, dropped.transpose(0, 1))
    assert (output.dropped == 0).any() and not torch.equal(output.raw, output.dropped)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("fused", [True, False], ids=["without logits", "with logits"])
def test_losses_and_gradients_are_equal_with_the_same_masks(alpha, beta, fused):
    old, new = language_models()
    state = None
    for _ in range(3):
        stretch = torch.randint(VOCAB, (13, 5))
        tokens, targets = stretch[:-1], stretch[1:]
        new.zero_grad()
        old.zero_grad()
        with recording(seeds := []):
            if fused:
                loss, state = new.loss(tokens, targets, state, alpha=alpha, beta=beta)
            else:
                output = new(tokens, state)
                loss = language_model_loss(output, targets, alpha=alpha, beta=beta)
                state = output.state
        state = detach_state(state)
        loss.total.backward()
        with replaying(seeds):
            cross_entropy, total = their_loss(old, tokens, targets, alpha=alpha, beta=beta)
        total.backward()
        assert_equal(loss.cross_entropy, cross_entropy)
        assert_equal(loss.total, total)
        assert_equal_gradients(new, old)


@pytest.mark.parametrize("backend", ["eager", "torch", "reference"])
def test_a_layer_with_a_mask_of_fastai_is_fastai_s_layer(backend):
    theirs = fastai.WeightDropout(
        torch.nn.LSTM(EMB, HIDDEN, batch_first=True), weight_p=0.4
    ).double()
    ours = uf.LSTM(EMB, HIDDEN, weight_p=0.4, backend=backend).double()
    ours.load_state_dict({our_layer_name(k): v for k, v in theirs.state_dict().items()})
    mask = F.dropout(torch.ones(4 * HIDDEN, HIDDEN, dtype=torch.float64), 0.4)
    x = torch.randn(11, 4, EMB, dtype=torch.float64)
    hx = [torch.randn(1, 4, HIDDEN, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(awdlstm.F, "dropout", lambda weight, p: weight * mask)
        for run in (
            lambda: ours(x, tuple(hx), masks=[uf.DropoutMasks(mask, None)]),
            lambda: theirs(x.transpose(0, 1), tuple(hx)),
        ):
            output, state = run()
            (output.square().sum() + sum(part.sum() for part in state)).backward()
            results.append([output, *state, *(part.grad for part in hx)])
            for part in hx:
                part.grad = None
    results[1][0] = results[1][0].transpose(0, 1)
    for mine, other in zip(*results, strict=True):
        assert_equal(mine, other)
    for name, parameter in theirs.named_parameters():
        assert_equal(getattr(ours, our_layer_name(name)).grad, parameter.grad)
    assert (ours.weight_hh_l0.grad[mask == 0] == 0).all()


@pytest.mark.parametrize("padded", [False, True], ids=["equal lengths", "padded"])
def test_classifiers_are_equal_in_evaluation(padded):
    old, new = classifiers()
    old.eval()
    new.eval()
    lengths = torch.tensor(LENGTHS if padded else [24] * 5)
    tokens = texts_of(lengths)
    logits, _, _ = old(for_fastai(tokens, lengths, bptt=8))
    assert_equal(new(tokens, lengths), logits)


def test_classifiers_are_equal_in_evaluation_beyond_max_len():
    # fastai counts max_len from the end of the padded batch, in whole windows; for texts of one
    # length, a multiple of the window, that is the text's own end.
    old, new = classifiers(max_len=16)
    old.eval()
    new.eval()
    lengths = torch.tensor([40] * 4)
    tokens = texts_of(lengths)
    assert_equal(new(tokens, lengths), old(for_fastai(tokens, lengths, bptt=8))[0])
    full, _ = classifiers()
    full.load_state_dict(old.state_dict())
    full.eval()
    assert not torch.allclose(new(tokens, lengths), full(tokens.t())[0])


@pytest.mark.parametrize("padded", [False, True], ids=["equal lengths", "padded"])
def test_classifiers_train_equally_with_the_same_masks(padded):
    old, new = classifiers()
    for model in (old, new):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):  # the head's, the same class in both
                module.p = 0.0
    lengths = torch.tensor([24, 20, 18, 17] if padded else [24] * 4)
    tokens = texts_of(lengths)
    labels = torch.tensor([0, 2, 1, 1])
    with recording(seeds := []):
        loss = F.cross_entropy(new(tokens, lengths), labels)
    loss.backward()
    assert len(seeds) == 3 * (2 + 3 + 2)
    with replaying(seeds):
        theirs = F.cross_entropy(old(for_fastai(tokens, lengths, bptt=8))[0], labels)
    theirs.backward()
    assert_equal(loss, theirs)
    assert_equal_gradients(new, old)
    for name, value in our_names(old.state_dict()).items():
        assert_equal(new.state_dict()[name], value)  # BatchNorm's averages among them


def test_regularisers_of_classifiers_are_equal_with_the_same_masks():
    """Where no text is padded: fastai takes the outputs of the padding in."""
    old, new = classifiers(max_len=16)
    for model in (old, new):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    lengths = torch.tensor([24] * 4)
    tokens, labels = texts_of(lengths), torch.tensor([0, 2, 1, 1])
    with recording(seeds := []):
        logits, activation, temporal = new.regularised(tokens, lengths, alpha=2.0, beta=1.0)
    loss = F.cross_entropy(logits, labels) + activation + temporal
    loss.backward()
    assert activation > 0 and temporal > 0
    with replaying(seeds):
        logits, raw, dropped = old(for_fastai(tokens, lengths, bptt=8))
    theirs = regularised(F.cross_entropy(logits, labels), raw, dropped)
    theirs.backward()
    assert_equal(loss, theirs)
    assert_equal_gradients(new, old)


@pytest.mark.parametrize("window", [5, 40])
def test_pooling_is_equal_to_masked_concat_pool(window):
    output = torch.randn(6, 23, EMB, dtype=torch.float64)
    lengths = torch.tensor([23, 21, 20, 19, 19, 22])
    mask = torch.arange(23) >= lengths[:, None]
    pool = ConcatPool(torch.zeros(6, dtype=torch.int64), lengths, like=output)
    for start in range(0, 23, window):
        pool.add(output[:, start : start + window].transpose(0, 1), start)
    assert_equal(pool.result(), fastai.masked_concat_pool(output, mask, bptt=window))


@pytest.mark.parametrize(
    "lengths",
    [
        # fastai takes the rows that read a window for the first ones of the batch.
        pytest.param([12, 29, 11, 27, 20], id="unsorted rows"),
        # Row 1 is over where the last window starts, so that fastai leaves row 2 out of it.
        pytest.param([29, 16, 11], id="a text that ends with a window"),
        # fastai counts the padding in front of row 1 as if it stood behind the text.
        pytest.param([29, 3], id="a text that starts in the last tokens"),
    ],
)
def test_classifications_are_right_where_fastai_s_are_not(lengths):
    old, new = classifiers()
    old.eval()
    new.eval()
    lengths = torch.tensor(lengths)
    tokens = texts_of(lengths)
    alone = [
        old(tokens[:n, row : row + 1].t())[0].detach() for row, n in enumerate(lengths.tolist())
    ]
    assert_equal(new(tokens, lengths), torch.cat(alone))
    assert not torch.allclose(old(for_fastai(tokens, lengths, bptt=8))[0], torch.cat(alone))


def test_texts_without_tokens_are_classified_where_fastai_fails():
    old, new = classifiers()
    old.eval()
    new.eval()
    lengths = torch.tensor([6, 0])
    tokens = texts_of(lengths)
    assert new(tokens, lengths).isfinite().all()
    with pytest.raises(IndexError):
        old(tokens.t())


def texts_of(lengths):
    """Return random texts of these lengths, (T, B), padded behind."""
    tokens = torch.randint(9, VOCAB, (int(lengths.max()), len(lengths)))
    return tokens.masked_fill(torch.arange(len(tokens))[:, None] >= lengths, 1)


def for_fastai(tokens, lengths, bptt):
    """Return texts as fastai pads them, (B, T): whole windows in front and the rest behind."""
    rows = [
        fastai.pad_chunk(row[:length], seq_len=bptt, pad_len=len(row))
        for row, length in zip(tokens.t(), lengths.tolist(), strict=True)
    ]
    return torch.stack(rows)


def our_layer_name(name):
    return name.removeprefix("module.").removesuffix("_raw")
