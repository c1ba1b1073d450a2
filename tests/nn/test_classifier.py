import copy
import math

import pytest
import torch
from torch import Tensor, nn

from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, TextClassifier
from ulmfit_fast.nn.pooling import ConcatPool

LENGTHS = [3, 11, 0, 27, 5, 8, 20]


def make(bptt: int = 5, max_len: int = 12, **overrides: object) -> TextClassifier:
    sizes = {"emb_size": 4, "hidden_size": 6, "num_layers": 2}
    encoder = AWDLSTM(AWDLSTMConfig.classifier(12, **{**sizes, **overrides}))
    return TextClassifier(encoder, 3, hidden=7, bptt=bptt, max_len=max_len).double()


def texts() -> list[Tensor]:
    return [torch.randint(2, 12, (length,)) for length in LENGTHS]


def batch(docs: list[Tensor], extra: int = 0) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(doc) for doc in docs])
    tokens = torch.ones(int(lengths.max()) + extra, len(docs), dtype=torch.int64)
    for row, doc in enumerate(docs):
        tokens[: len(doc), row] = doc
    return tokens, lengths


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-12)


def test_features_equal_pooling_over_the_whole_text() -> None:
    model, docs = make().eval(), texts()
    features = model.features(*batch(docs))
    assert features.shape == (7, 12)
    for doc, row in zip(docs, features, strict=True):
        if len(doc) == 0:
            assert not row.any()
            continue
        output = model.encoder(doc[:, None])[0][:, 0]
        span = output[-12:]
        assert close(row, torch.cat([output[-1], span.amax(0), span.mean(0)]))


@pytest.mark.parametrize("bptt", [1, 5, 12, 100], ids="bptt{}".format)
@pytest.mark.parametrize("max_len", [1, 5, 100], ids="max_len{}".format)
def test_regularisers_are_means_over_the_pooled_outputs(bptt: int, max_len: int) -> None:
    model, docs = make(bptt, max_len).eval(), texts()
    found = model.regularised(*batch(docs, extra=9), alpha=3.0, beta=0.5)
    assert close(found.logits, model(*batch(docs)))
    spans = [model.encoder(doc[:, None])[0][-max_len:, 0] for doc in docs if len(doc)]
    squares = torch.cat(spans).square()
    steps = torch.cat([span[1:] - span[:-1] for span in spans]).square()
    assert close(found.activation, 3.0 * squares.mean())
    assert close(found.temporal, 0.5 * steps.mean() if steps.numel() else torch.zeros(()).double())


def test_temporal_gradients_pass_from_window_to_window() -> None:
    """The difference is taken across the windows' border; the state alone has no gradient there."""
    model = make(4, 12)
    for p in model.encoder.parameters():
        p.requires_grad_(p is model.encoder.encoder.weight)
    tokens, lengths = batch([torch.tensor([2, 3, 4, 5, 6])])
    model.eval().regularised(tokens, lengths, alpha=0.0, beta=1.0).temporal.backward()
    grad = model.encoder.encoder.weight.grad
    model.zero_grad()
    outputs, state = model.encoder(tokens[:4])
    last, _ = model.encoder(tokens[4:], [(h.detach(), c.detach()) for h, c in state])
    outputs = torch.cat([outputs, last])
    (outputs[1:] - outputs[:-1]).square().mean().backward()
    assert grad is not None and close(grad, model.encoder.encoder.weight.grad)
    assert grad[6].any()


def test_regularisers_of_texts_without_tokens_are_none() -> None:
    found = make().eval().regularised(*batch([texts()[2]] * 2, extra=1))
    assert found.activation.item() == 0.0 == found.temporal.item()


@pytest.mark.parametrize("weights", [{"alpha": -1.0}, {"beta": float("nan")}])
def test_weights_of_regularisers_below_0_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least 0"):
        make().regularised(*batch(texts()), **weights)


@pytest.mark.parametrize("bptt", [1, 5, 12, 100], ids="bptt{}".format)
@pytest.mark.parametrize("max_len", [1, 5, 12, 100], ids="max_len{}".format)
def test_result_depends_on_the_text_alone(bptt: int, max_len: int) -> None:
    model, docs = make(bptt, max_len).eval(), texts()
    together = model(*batch(docs))
    alone = torch.cat([model(*batch([doc])) for doc in docs])
    padded = model(*batch(docs, extra=9))
    order = torch.randperm(len(docs))
    shuffled = torch.empty_like(together)
    shuffled[order] = model(*batch([docs[n] for n in order]))
    other_pad, lengths = batch(docs, extra=9)
    other_pad[torch.arange(len(other_pad))[:, None] >= lengths] = 7
    assert torch.isfinite(together).all()
    assert close(together, alone)
    assert close(together, padded)
    assert close(together, shuffled)
    assert close(together, model(other_pad, lengths))


def test_gradients_depend_on_the_text_alone() -> None:
    model, docs = make().eval(), texts()
    model(*batch(docs, extra=6))[3].sum().backward()
    twin = copy.deepcopy(model)
    twin.zero_grad()
    twin(*batch([docs[3]])).sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert close(a.grad, b.grad)


def test_windows_before_every_span_run_without_a_graph_and_padding_is_not_read() -> None:
    model, docs = make().eval(), [torch.randint(2, 12, (length,)) for length in (3, 27, 30)]
    seen = []
    model.encoder.register_forward_hook(
        lambda module, args, result: seen.append((len(args[0]), result[0].requires_grad))
    )
    model(*batch(docs, extra=20))
    assert seen == [(5, True)] * 6, "the short text is pooled from the first window on"
    seen.clear()
    model(*batch([*docs[1:], docs[0][:0]], extra=20))
    assert seen == [(5, False)] * 3 + [(5, True)] * 3, "spans start at 15 and 18"
    seen.clear()
    model(*batch([docs[1]]))
    assert seen[-1] == (2, True), "the last window ends with the longest text"


def test_gradient_does_not_cross_a_window_start() -> None:
    model = make(bptt=5, max_len=100).eval()
    doc = torch.arange(2, 12)[:, None]  # ten different words, so each row of E is one time step
    features = model.features(doc, torch.tensor([10]))
    features[0, :4].sum().backward()  # the last output alone
    used = model.encoder.encoder.weight.grad.abs().sum(1) > 0
    assert used[7:].all() and not used[:7].any()


def test_all_texts_empty() -> None:
    model = make().train()
    for steps in (0, 4):
        tokens = torch.ones(steps, 3, dtype=torch.int64)
        logits = model(tokens, torch.zeros(3, dtype=torch.int64))
        assert logits.shape == (3, 3) and torch.isfinite(logits).all()
        logits.sum().backward()


def test_training_with_an_empty_text_has_finite_gradients() -> None:
    model = make().train()
    logits = model(*batch(texts(), extra=3))
    logits.logsumexp(1).sum().backward()
    assert torch.isfinite(logits).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_frozen_encoder_is_left_alone() -> None:
    model = make().train()
    groups = model.layer_groups()
    assert groups[0] == [model.encoder.encoder.weight]
    assert len(groups) == 4 and groups[-1] == list(model.head.parameters())
    for group in groups[:-1]:
        for parameter in group:
            parameter.requires_grad_(False)
    tokens, lengths = batch(texts())
    assert not model.features(tokens, lengths).requires_grad
    model(tokens, lengths).logsumexp(1).sum().backward()
    assert [group[0].grad is None for group in groups] == [True, True, True, False]


def saved_bytes(model: TextClassifier, tokens: Tensor, lengths: Tensor) -> tuple[int, list[bool]]:
    """Return what autograd keeps of the layers, and which layers' inputs require a gradient."""
    kept, wanted = {}, []
    handles = [
        rnn.register_forward_pre_hook(lambda _, args: wanted.append(args[0].requires_grad))
        for rnn in model.encoder.rnns
    ]

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = model.features(tokens, lengths)
    for handle in handles:
        handle.remove()
    assert features.requires_grad
    return sum(kept.values()), wanted


@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "no-dropout"])
def test_below_the_lowest_trainable_layer_nothing_is_kept(dropout: bool) -> None:
    off = dict.fromkeys(["input_p", "hidden_p", "embed_p", "weight_p", "output_p"], 0.0)
    # A wide first layer: what is kept of it would show.
    model = make(50, 50, hidden_size=64, **({} if dropout else off)).train()
    tokens, lengths = batch([torch.randint(2, 12, (40,)) for _ in range(3)])
    every, wanted = saved_bytes(model, tokens, lengths)
    assert wanted == [True, True]
    groups = model.layer_groups()
    for parameter in [*groups[0], *groups[1]]:
        parameter.requires_grad_(False)
    top, wanted = saved_bytes(model, tokens, lengths)
    # The input of the last layer needs no gradient, so none is computed for it either.
    assert wanted == [False, False]
    # Gates and cells of the first layer: 40 steps, 3 rows, 5 times 64 units, 8 bytes.
    assert every - top >= 40 * 3 * 5 * 64 * 8
    assert top < every / 2


def test_head_follows_the_paper() -> None:
    model = make()
    kinds = (nn.BatchNorm1d, nn.Dropout, nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Dropout, nn.Linear)
    assert all(isinstance(a, b) for a, b in zip(model.head, kinds, strict=True))
    assert [model.head[1].p, model.head[5].p] == [0.4, 0.1]
    assert [model.head[n].weight.shape for n in (2, 6)] == [(7, 12), (3, 7)]
    assert model.head[2].bias is None and model.head[6].bias is None


def test_one_row_in_training_uses_the_running_statistics() -> None:
    model = make().train()
    model(*batch(texts()))
    before = {name: value.clone() for name, value in model.named_buffers()}
    logits = model(*batch([torch.arange(2, 9)]))
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name


def test_autocast_and_half_precision() -> None:
    model, docs = make().float().train(), texts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(*batch(docs))
    logits.float().sum().backward()
    assert model.eval().bfloat16()(*batch(docs)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8], ids=str)
def test_lengths_of_any_integer_type(dtype: torch.dtype) -> None:
    model = make().eval()
    tokens, lengths = batch(texts())
    assert close(model(tokens.int(), lengths.to(dtype)), model(tokens, lengths))


@pytest.mark.parametrize(
    ("tokens", "lengths", "error", "message"),
    [
        (torch.ones(4), torch.tensor([4]), ValueError, r"tokens must be \(T, B\), time first"),
        (torch.ones(4, 2), [4, 1], TypeError, r"lengths is \[4, 1\] .list.*torch.tensor"),
        (torch.ones(4, 2), torch.tensor([4.0, 1.0]), TypeError, r"torch.float32 \[4.0, 1.0\]"),
        (torch.ones(4, 2), torch.tensor([4]), ValueError, r"one per column.*\(1,\), \[4\]: count"),
        (torch.ones(4, 2), torch.tensor([4, 5]), ValueError, r"length 5 of row 1 is outside"),
        (torch.ones(4, 2), torch.tensor([-1, 4]), ValueError, r"length -1 of row 0 is outside"),
        (torch.full((4, 1), 12), torch.tensor([4]), ValueError, "token id 12 is outside"),
    ],
    ids=["rank", "list", "float", "count", "long", "negative", "token"],
)
def test_bad_input(tokens, lengths, error, message) -> None:
    with pytest.raises(error, match=message):
        make()(tokens.long(), lengths)


@pytest.mark.parametrize("name", ["num_classes", "hidden", "bptt", "max_len"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TextClassifier(make().encoder, **{"num_classes": 2, name: 0})


def test_tokens_given_as_a_list_are_refused() -> None:
    with pytest.raises(TypeError, match=r"tokens is \[\[4\]\] \(list\), expected a tensor"):
        make()([[4]], torch.tensor([1]))


@pytest.mark.parametrize(
    ("dtype", "value", "steps"),
    [(torch.bfloat16, 1.0, 512), (torch.float16, 60_000.0, 4)],
    ids=["bfloat16", "float16"],
)
def test_half_precision_is_pooled_in_float32(dtype: torch.dtype, value: float, steps: int) -> None:
    output = torch.full((steps, 1, 2), value, dtype=dtype)
    pool = ConcatPool(torch.tensor([0]), torch.tensor([steps]), like=output)
    # In bfloat16 the sum would stand still at 256 + 1 = 256, in float16 it would overflow.
    for start, window in enumerate(output.split(1)):
        pool.add(window, start)
    assert pool.result().dtype == torch.float32
    assert torch.equal(pool.result(), output[:1, 0].float().repeat(1, 3))


def test_pool_gradient_reaches_the_pooled_steps_only() -> None:
    output = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    pool = ConcatPool(torch.tensor([1, 0, 3]), torch.tensor([5, 0, 3]), like=output)
    pool.add(output[:4], 0)
    pool.add(output[4:], 4)
    result = pool.result()
    result.sum().backward()
    assert not result[1:].any(), "an empty span is zeros, wherever it lies"
    assert not output.grad[:, 1:].any() and not output.grad[[0, 5], 0].any()
    assert math.isclose(output.grad.sum().item(), 3 * 4, abs_tol=1e-12)
