import copy
import math
import pickle

import pytest
import torch

from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, State, detach_state, resize_state

SIZES = {"emb_size": 4, "hidden_size": 6, "num_layers": 3}
NO_DROPOUT = {"input_p": 0.0, "hidden_p": 0.0, "embed_p": 0.0, "weight_p": 0.0, "output_p": 0.0}


def config(**overrides: object) -> AWDLSTMConfig:
    return AWDLSTMConfig.language_model(12, **{**SIZES, **overrides})


def tokens(steps: int, batch: int) -> torch.Tensor:
    return torch.randint(12, (steps, batch))


def test_config_default_tables() -> None:
    lm, classifier = AWDLSTMConfig.language_model(60), AWDLSTMConfig.classifier(60)
    names = ("input_p", "hidden_p", "embed_p", "weight_p", "output_p", "gate_p")
    assert [getattr(lm, name) for name in names] == [0.25, 0.15, 0.02, 0.2, 0.1, 0.0]
    assert [getattr(classifier, name) for name in names] == [0.4, 0.3, 0.05, 0.5, 0.4, 0.0]
    assert (lm.emb_size, lm.hidden_size, lm.num_layers, lm.pad_id) == (400, 1152, 3, 1)
    assert lm.tie_weights and lm.out_bias


def test_config_scales_every_dropout_and_nothing_else() -> None:
    base = config(gate_p=(0.0, 0.0, 0.2, 0.0))
    half = base.scaled(0.5)
    assert half.gate_p == (0.0, 0.0, 0.1, 0.0)
    assert (half.input_p, half.hidden_p, half.embed_p) == (0.125, 0.075, 0.01)
    assert (half.weight_p, half.output_p) == (0.1, 0.05)
    assert half.hidden_size == base.hidden_size
    with pytest.raises(ValueError, match=r"input_p is 1\.25, expected a probability"):
        base.scaled(5.0)
    with pytest.raises(ValueError, match="drop_mult must be at least 0, got -1"):
        base.scaled(-1)


def test_config_round_trip() -> None:
    original = config(gate_p=[0, 0, 0.1, 0], tie_weights=False)
    assert AWDLSTMConfig.from_dict(original.to_dict()) == original


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"vocab_size": 0}, ValueError, "vocab_size must be at least 1, got 0"),
        ({"vocab_size": 2.5}, TypeError, "vocab_size must be an integer, got 2.5"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"pad_id": 12}, ValueError, "pad_id must be in .0, 12., the vocabulary, got 12"),
        ({"hidden_p": 1.5}, ValueError, "hidden_p is 1.5, expected a probability"),
        ({"input_p": "half"}, TypeError, "input_p is 'half', expected a probability"),
        (
            {"weight_p": (0.1, 0.2)},
            ValueError,
            "weight_p has 2 values, expected one number or four",
        ),
        ({"gate_p": (0, 0, 2, 0)}, ValueError, "gate_p is 2.0, expected a probability"),
        ({"tie_weights": 1}, TypeError, "tie_weights must be True or False, got 1"),
        ({"droput": 0.1}, ValueError, "unknown configuration key 'droput': expected one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_config_refuses(values: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AWDLSTMConfig.from_dict({"vocab_size": 12, **values})


def test_config_needs_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="no vocab_size"):
        AWDLSTMConfig.from_dict({})


def test_shapes_names_and_groups() -> None:
    encoder = AWDLSTM(config())
    output, state = encoder(tokens(7, 3))
    assert output.shape == (7, 3, 4)
    assert [(h.shape, c.shape) for h, c in state] == [((1, 3, n), (1, 3, n)) for n in (6, 6, 4)]
    layer = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    names = ["encoder.weight", *(f"rnns.{n}.{name}" for n in range(3) for name in layer)]
    assert list(encoder.state_dict()) == names
    groups = encoder.layer_groups()
    assert groups[0] == [encoder.encoder.weight]
    assert [len(group) for group in groups] == [1, 4, 4, 4]
    assert {id(p) for group in groups for p in group} == {id(p) for p in encoder.parameters()}


def test_initial_values() -> None:
    encoder = AWDLSTM(AWDLSTMConfig(500, emb_size=32, hidden_size=64))
    weight = encoder.encoder.weight.detach()
    assert 0.09 < weight.abs().max() <= 0.1
    assert torch.equal(weight[1], torch.zeros(32))
    for rnn, width in zip(encoder.rnns, (64, 64, 32), strict=True):
        bound = 1 / math.sqrt(width)
        assert 0.9 * bound < max(p.abs().max() for p in rnn.parameters()) <= bound


def test_equals_plain_pytorch_without_dropout() -> None:
    encoder = AWDLSTM(config(**NO_DROPOUT)).double()
    x, words = encoder.encoder.weight.detach(), tokens(9, 3)
    x = x[words]
    for rnn in encoder.rnns:
        plain = torch.nn.LSTM(rnn.input_size, rnn.hidden_size).double()
        plain.load_state_dict(rnn.state_dict())
        x, _ = plain(x)
    assert torch.allclose(encoder(words)[0], x, rtol=0, atol=1e-12)


def test_dropout_is_off_in_eval_and_each_kind_acts_in_training() -> None:
    words = tokens(6, 4)
    for name in ("input_p", "hidden_p", "embed_p", "weight_p", "gate_p"):
        encoder = AWDLSTM(config(**{**NO_DROPOUT, name: 0.5}))
        assert not torch.equal(encoder(words)[0], encoder(words)[0]), name
        encoder.eval()
        assert torch.equal(encoder(words)[0], encoder(words)[0]), name


def test_output_has_no_output_dropout() -> None:
    encoder = AWDLSTM(config(**{**NO_DROPOUT, "output_p": 0.9}))
    words = tokens(6, 4)
    assert torch.equal(encoder(words)[0], encoder.eval()(words)[0])


def test_chunks_with_carried_state_equal_the_whole() -> None:
    encoder = AWDLSTM(config()).double().eval()
    words = tokens(11, 3)
    whole, last = encoder(words)
    state: State | None = None
    parts = []
    for chunk in words.split([4, 1, 6]):
        part, state = encoder(chunk, state)
        parts.append(part)
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-14)
    for (h, c), (h_last, c_last) in zip(state, last, strict=True):
        assert torch.allclose(h, h_last, rtol=0, atol=1e-14)
        assert torch.allclose(c, c_last, rtol=0, atol=1e-14)


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_half_precision_does_not_depend_on_the_windows(autocast: bool) -> None:
    # At width 1 nothing is summed, whose order could differ between the windows and the whole.
    encoder = AWDLSTM(config(emb_size=1, hidden_size=1)).eval()
    for rnn in encoder.rnns:
        rnn.weight_hh_l0.data *= 4
    if not autocast:
        encoder.bfloat16()
    words = tokens(60, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        whole, last = encoder(words)
        state: State | None = None
        parts = []
        for chunk in words.split(7):
            part, state = encoder(chunk, state)
            parts.append(part)
    assert (torch.cat(parts) - whole).abs().max() == 0
    for (h, c), (h_last, c_last) in zip(state, last, strict=True):
        assert torch.equal(h, h_last) and torch.equal(c, c_last)
        assert (h.dtype, c.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_full_precision_is_that_of_the_layers_bit_for_bit(dtype: torch.dtype) -> None:
    encoder = AWDLSTM(config()).to(dtype).eval()
    states: State | list[None] = [None] * 3
    state: State | None = None
    for words in tokens(9, 3).split(5):
        x = encoder.encoder(words)
        for layer, rnn in enumerate(encoder.rnns):
            x, states[layer] = rnn(x, states[layer])
        output, state = encoder(words, state)
        assert torch.equal(output, x)
        for pair, expected in zip(state, states, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pair, expected, strict=True))
            assert {value.dtype for value in pair} == {dtype}


def test_lengths_stop_a_row() -> None:
    encoder = AWDLSTM(config()).double().eval()
    words = tokens(6, 3)
    output, state = encoder(words, lengths=torch.tensor([6, 2, 0]))
    alone, alone_state = encoder(words[:2, 1:2])
    assert torch.allclose(output[:2, 1:2], alone, rtol=0, atol=1e-14)
    assert torch.equal(output[2:, 1], torch.zeros(4, 4, dtype=torch.float64))
    for (h, c), (h_alone, c_alone) in zip(state, alone_state, strict=True):
        assert torch.allclose(h[:, 1:2], h_alone, rtol=0, atol=1e-14)
        assert torch.allclose(c[:, 1:2], c_alone, rtol=0, atol=1e-14)
        assert not h[:, 2].any() and not c[:, 2].any()


def test_state_rows_follow_the_batch() -> None:
    encoder = AWDLSTM(config()).double().eval()
    _, ten = encoder(tokens(3, 10))
    words = tokens(3, 6)
    output, six = encoder(words, ten)
    expected, _ = encoder(words, [(h[:, :6], c[:, :6]) for h, c in ten])
    assert torch.equal(output, expected)
    words = tokens(3, 10)
    output, _ = encoder(words, six)
    kept, _ = encoder(words[:, :6], six)
    fresh, _ = encoder(words[:, 6:])
    expected = torch.cat([kept, fresh], dim=1)
    assert torch.allclose(output, expected, rtol=0, atol=1e-14)


def test_resize_state() -> None:
    h, c = torch.randn(2, 1, 4, 3)
    ((h_less, c_less),) = resize_state([(h, c)], 2)
    assert torch.equal(h_less, h[:, :2]) and torch.equal(c_less, c[:, :2])
    ((h_more, c_more),) = resize_state([(h, c)], 5)
    assert torch.equal(h_more[:, :4], h) and torch.equal(c_more[:, :4], c)
    assert not h_more[:, 4].any() and not c_more[:, 4].any()
    ((h_same, c_same),) = resize_state([(h, c)], 4)
    assert h_same is h and c_same is c


def test_detached_state_cuts_the_graph() -> None:
    encoder = AWDLSTM(config())
    _, state = encoder(tokens(3, 2))
    assert state[0][0].requires_grad, "the loop detaches, not the module"
    assert not any(value.requires_grad for pair in detach_state(state) for value in pair)


def test_nothing_of_the_state_stays_on_the_module() -> None:
    encoder = AWDLSTM(config())
    keys = list(encoder.state_dict())
    output, _ = encoder(tokens(3, 2))
    output.sum().backward()
    assert list(encoder.state_dict()) == keys
    words = tokens(4, 2)
    encoder.eval()
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin(words)[0], encoder(words)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtype_may_change_mid_stream(dtype: torch.dtype) -> None:
    encoder = AWDLSTM(config())
    _, state = encoder(tokens(3, 2))
    encoder.to(dtype)
    output, state = encoder(tokens(3, 2), state)
    assert output.dtype == dtype
    output, _ = encoder.float()(tokens(3, 2), state)
    assert output.dtype == torch.float32


def test_autocast_may_come_and_go_mid_stream() -> None:
    encoder = AWDLSTM(config())
    _, state = encoder(tokens(3, 2))
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, state = encoder(tokens(3, 2), state)
    output, state = encoder(tokens(3, 2), state)
    output.sum().backward()
    assert output.dtype == torch.float32
    assert all(value.dtype == torch.float32 for pair in state for value in pair)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda s: s[:2], ValueError, "state has 2 layers, the model has 3"),
        (lambda s: s[0][0], TypeError, "list of .h, c., one per layer, got Tensor"),
        (lambda s: [h for h, _ in s], TypeError, "state of layer 0 must be a pair .h, c."),
        (lambda s: s[::-1], ValueError, r"h of shape \(1, 2, 4\), expected \(1, B, 6\)"),
        (lambda s: [(h[0], c) for h, c in s], ValueError, r"h of shape \(2, 6\), expected"),
        (lambda s: [(h.long(), c) for h, c in s], TypeError, "h of layer 0 must be a floating"),
        (lambda s: [(h, c[:, :1]) for h, c in s], ValueError, "h of 2 rows and c of 1"),
    ],
    ids=["layers", "tensor", "no-pairs", "width", "rank", "dtype", "rows"],
)
def test_state_of_another_model_is_refused(spoil, error, message) -> None:
    encoder = AWDLSTM(config())
    _, state = encoder(tokens(3, 2))
    with pytest.raises(error, match=message):
        encoder(tokens(3, 2), spoil(state))


def test_tokens_must_be_time_first_and_known() -> None:
    encoder = AWDLSTM(config())
    with pytest.raises(ValueError, match=r"tokens must be \(T, B\), time first, got shape \(5,\)"):
        encoder(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"token id 12 is outside the vocabulary \[0, 12\)"):
        encoder(torch.full((2, 2), 12))


@pytest.mark.parametrize("frozen", [1, 2, 3, 4], ids="frozen{}".format)
def test_frozen_groups_have_no_graph(frozen: int) -> None:
    encoder = AWDLSTM(config())
    groups = encoder.layer_groups()
    for group in groups[:frozen]:
        for parameter in group:
            parameter.requires_grad_(False)
    outputs = []
    for rnn in encoder.rnns:
        rnn.register_forward_hook(lambda module, args, result: outputs.append(result[0]))
    output, _ = encoder(tokens(5, 2))
    assert [out.grad_fn is None for out in outputs] == [n + 2 <= frozen for n in range(3)]
    if frozen < 4:
        output.sum().backward()
    assert [group[0].grad is None for group in groups] == [n < frozen for n in range(4)]
