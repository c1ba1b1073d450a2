"""Weights of fastai and awd-lstm-lm: found by name in every format, equal before and after."""

import copy

import pytest
import torch
from fastai_formats import FORMATS, E, V, assert_right, encoder, parallel, state_dict
from torch import Tensor, nn

from ulmfit_fast import compat
from ulmfit_fast.compat import fastai_learner
from ulmfit_fast.compat.fastai import from_fastai, to_fastai
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier

# The ratio of 1152 and of 1150 units to 400.
WIDTHS = pytest.mark.parametrize("hidden", [24, 23], ids=["1152", "1150"])


@WIDTHS
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_its_own_logits(kind: str, hidden: int, layers: int) -> None:
    tensors = state_dict(kind, hidden, layers)
    model = from_fastai(tensors)
    assert_right(model, tensors)
    config = model.config
    assert (config.vocab_size, config.emb_size, config.num_layers) == (V, E, layers)
    assert layers == 1 or config.hidden_size == hidden
    assert config.tie_weights and config.out_bias == (kind != "0.7")
    assert model.decoder.weight is model.encoder.encoder.weight and not model.training


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: {"model": d, "opt": {"state": []}},
        parallel,
        lambda d: {"model": parallel(parallel(d)), "opt": None},
        lambda d: {f"_orig_mod.{name}": value for name, value in d.items()},
        lambda d: {name: nn.Parameter(value) for name, value in d.items()},
    ],
    ids=["with an optimizer", "parallel", "both", "compiled", "parameters"],
)
@pytest.mark.parametrize("kind", FORMATS)
def test_wrapped_formats(kind: str, wrap) -> None:
    tensors = state_dict(kind)
    assert_right(from_fastai(wrap(tensors)), tensors)


@pytest.mark.parametrize("kind", FORMATS)
def test_names_count_and_positions_do_not(kind: str) -> None:
    tensors = state_dict(kind)
    shuffled = [list(tensors)[n] for n in torch.randperm(len(tensors))]
    for order in (reversed(tensors), sorted(tensors), shuffled):
        assert_right(from_fastai({name: tensors[name] for name in order}), tensors)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("prefix", ["", "0.", "0.module."], ids=["bare", "lm's", "classifier's"])
def test_an_encoder_gets_a_shared_decoder_with_a_bias_of_zeros(kind: str, prefix: str) -> None:
    whole = {f"0.{name.removeprefix('0.')}": v for name, v in state_dict(kind).items()}
    whole = {name: v for name, v in whole.items() if "decoder" not in name}
    model = from_fastai({f"{prefix}{name}": value for name, value in encoder(whole).items()})
    assert model.config.tie_weights and not model.decoder.bias.any()
    assert_right(model, whole | {"1.decoder.weight": whole["0.encoder.weight"]})


def test_a_decoder_of_its_own_stays_one() -> None:
    tensors = state_dict() | {"1.decoder.weight": torch.randn(V, E, dtype=torch.float64)}
    model = from_fastai(tensors)
    assert not model.config.tie_weights
    assert_right(model, tensors)
    back = to_fastai(model)
    assert back["1.decoder.weight"].equal(tensors["1.decoder.weight"])
    assert back["0.encoder_dp.emb.weight"] is back["0.encoder.weight"]


def test_equal_copies_of_the_embedding_are_one_parameter() -> None:
    tensors = {name: value.clone() for name, value in state_dict().items()}
    model = from_fastai(tensors)
    assert model.decoder.weight is model.encoder.encoder.weight
    assert_right(model, tensors)


def test_a_model_of_nan_is_still_tied() -> None:
    tensors = state_dict()
    tensors["0.encoder.weight"].fill_(torch.nan)
    assert from_fastai(tensors).config.tie_weights


@pytest.mark.parametrize(
    "kept", ["0.encoder.weight", "0.encoder_dp.emb.weight", "1.decoder.weight"]
)
def test_a_shared_tensor_may_be_stored_under_one_name(kept: str) -> None:
    # As safetensors' save_model does it.
    tensors = state_dict()
    shared = {"0.encoder.weight", "0.encoder_dp.emb.weight", "1.decoder.weight"} - {kept}
    model = from_fastai({name: v for name, v in tensors.items() if name not in shared})
    assert_right(model, tensors)


def test_a_plain_recurrent_weight_serves_where_there_is_no_raw_one() -> None:
    tensors = state_dict()
    plain = {n.replace(".weight_hh_l0_raw", ".module.weight_hh_l0"): v for n, v in tensors.items()}
    assert_right(from_fastai(plain), tensors)
    plain = {name.replace("module.", ""): value for name, value in plain.items()}
    assert_right(from_fastai(plain), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tensors_are_copied_in_their_dtype_and_no_random_number_is_drawn(dtype) -> None:
    tensors = {name: value.to(dtype) for name, value in state_dict().items()}
    before, seed = copy.deepcopy(tensors), torch.get_rng_state()
    model = from_fastai(tensors)
    back = to_fastai(model)
    assert torch.get_rng_state().equal(seed)
    assert {p.dtype for p in model.parameters()} == {v.dtype for v in back.values()} == {dtype}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    for values in (tensors, back):
        assert all(values[name].equal(value) for name, value in before.items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(value.requires_grad for value in back.values())


def test_overrides_are_dropout_values_and_padding() -> None:
    config = from_fastai(state_dict(), weight_p=0.4, gate_p=(0, 0, 0.1, 0), pad_id=0).config
    assert (config.weight_p, config.gate_p, config.pad_id) == (0.4, (0, 0, 0.1, 0), 0)
    assert from_fastai(state_dict()).config == AWDLSTMConfig(V, E, 24)
    for name in ("vocab_size", "hidden_size", "tie_weights", "out_bias"):
        with pytest.raises(ValueError, match=f"{name}=1 is given, but it is read off the weights"):
            from_fastai(state_dict(), **{name: 1})
    with pytest.raises(ValueError, match="unknown configuration key 'dropout'"):
        from_fastai(state_dict(), dropout=0.1)


def without(*names: str) -> dict[str, Tensor]:
    return {name: value for name, value in state_dict().items() if name not in names}


RNN = "0.rnns.1.module."
DIFFERENT = "are two names of one tensor but hold different values"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda: {}, "unknown names: none; missing: encoder.weight, rnns.0.weight_hh_l0_raw, "),
        (
            lambda: without(f"{RNN}bias_hh_l0", "0.rnns.0.weight_hh_l0_raw"),
            "none; missing: rnns.0.weight_hh_l0_raw, rnns.1.module.bias_hh_l0$",
        ),
        (
            lambda: state_dict() | {"0.layers.2": torch.ones(1), "head": torch.ones(1)},
            "unknown names: 0.layers.2, head; missing: none",
        ),
        (
            lambda: state_dict() | {f"{RNN}weight_hh_l0_reverse": torch.ones(1)},
            "weight_hh_l0_reverse; missing: none; layers of two directions are not supported",
        ),
        (
            lambda: {name.replace("rnns.2", "rnns.9000000000"): v for name, v in encoder(
                state_dict()).items()},
            r"missing: rnns.2.weight_hh_l0_raw, .* and \d+ more",
        ),
        (
            lambda: {f"features.{n}.weight": torch.ones(1) for n in range(15)},
            "unknown names: features.0.weight, .*features.11.weight and 3 more; missing: encoder.w",
        ),
        (
            lambda: state_dict() | {f"{RNN}weight_ih_l0": torch.ones(96, 23).double()},
            r"0.rnns.1.module.weight_ih_l0 has shape \(96, 23\), expected \(96, 24\) in a model of "
            "vocab_size 56, emb_size 8, hidden_size 24, num_layers 3",
        ),
        (
            lambda: state_dict() | {"1.decoder.bias": torch.ones(V, 1).double()},
            r"1.decoder.bias has shape \(56, 1\), expected \(56,\)",
        ),
        (
            lambda: state_dict() | {"0.rnns.0.weight_hh_l0_raw": torch.ones(()).double()},
            r"0.rnns.0.weight_hh_l0_raw has shape \(\), expected \(0, 0\)",
        ),
        (
            lambda: {n: v.flatten() if v.shape == (V, E) else v for n, v in state_dict().items()},
            r"0.encoder.weight has shape \(448,\), expected \(448, 0\)",
        ),
        (
            lambda: state_dict() | {"0.encoder_dp.emb.weight": torch.ones(V, E).double()},
            f"0.encoder.weight and 0.encoder_dp.emb.weight {DIFFERENT}",
        ),
        (
            lambda: state_dict() | {f"{RNN}weight_hh_l0_raw": torch.ones(96, 24).double()},
            f"0.rnns.1.weight_hh_l0_raw and 0.rnns.1.module.weight_hh_l0_raw {DIFFERENT}",
        ),
        (
            lambda: to_fastai(TextClassifier(AWDLSTM(AWDLSTMConfig(9, 4, 6)), 2)),
            "is that of a classifier .*; use classifier_from_fastai",
        ),
    ],
    ids=[
        "nothing", "missing", "unknown", "two directions", "number", "another model", "shape",
        "bias's shape", "no shape", "flat", "embeddings", "raw weights", "classifier",
    ],
)  # fmt: skip
def test_state_dicts_that_are_refused(tensors, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_fastai(tensors())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (nn.Linear(1, 1), "the state_dict is a Linear, expected tensors by name; pass model.state"),
        ({"0.encoder.weight": [1.0]}, "holds a list under '0.encoder.weight', expected tensors"),
        ({1: torch.ones(1)}, "holds a Tensor under 1, expected tensors by name"),
        (
            state_dict() | {f"{RNN}bias_hh_l0": torch.ones(96)},
            "module.bias_hh_l0 has dtype torch.float32, expected one .* being torch.float64",
        ),
        (
            {name: value.long() for name, value in state_dict().items()},
            "0.encoder.weight has dtype torch.int64, expected one floating dtype",
        ),
    ],
    ids=["module", "list", "number", "two dtypes", "integers"],
)
def test_values_that_are_no_weights(tensors, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        from_fastai(tensors)


LANGUAGE_MODEL = """
0.encoder.weight 60008,400
0.encoder_dp.emb.weight 60008,400
0.rnns.0.weight_hh_l0_raw 4608,1152
0.rnns.0.module.weight_ih_l0 4608,400
0.rnns.0.module.bias_ih_l0 4608
0.rnns.0.module.bias_hh_l0 4608
0.rnns.1.weight_hh_l0_raw 4608,1152
0.rnns.1.module.weight_ih_l0 4608,1152
0.rnns.1.module.bias_ih_l0 4608
0.rnns.1.module.bias_hh_l0 4608
0.rnns.2.weight_hh_l0_raw 1600,400
0.rnns.2.module.weight_ih_l0 1600,1152
0.rnns.2.module.bias_ih_l0 1600
0.rnns.2.module.bias_hh_l0 1600
1.decoder.weight 60008,400
1.decoder.bias 60008
""".split()
HEAD = """
1.layers.0.0.weight 1200
1.layers.0.0.bias 1200
1.layers.0.0.running_mean 1200
1.layers.0.0.running_var 1200
1.layers.0.0.num_batches_tracked -
1.layers.0.2.weight 50,1200
1.layers.1.0.weight 50
1.layers.1.0.bias 50
1.layers.1.0.running_mean 50
1.layers.1.0.running_var 50
1.layers.1.0.num_batches_tracked -
1.layers.1.2.weight 2,50
""".split()


def shapes(tensors: dict[str, Tensor]) -> list[str]:
    pairs = [(name, ",".join(map(str, v.shape)) or "-") for name, v in tensors.items()]
    return [word for pair in pairs for word in pair]


def test_names_order_and_shapes_of_the_full_models() -> None:
    with torch.device("meta"):
        model = LanguageModel(AWDLSTMConfig.language_model(60_008))
        classifier = TextClassifier(AWDLSTM(AWDLSTMConfig.classifier(60_008)), 2)
    assert shapes(to_fastai(model)) == LANGUAGE_MODEL
    inner = [word.removeprefix("0.") for word in LANGUAGE_MODEL[: 2 * 14]]
    for encoder_only in (
        to_fastai(model.encoder),
        to_fastai(model, encoder_only=True),
        to_fastai(classifier, encoder_only=True),
    ):
        assert shapes(encoder_only) == inner
    prefixed = [word.replace("0.", "0.module.", 1) if word[:2] == "0." else word for word in
                LANGUAGE_MODEL[: 2 * 14]]  # fmt: skip
    assert shapes(to_fastai(classifier)) == prefixed + HEAD


@WIDTHS
@pytest.mark.parametrize("bias", [True, False])
def test_there_and_back_is_the_same_dict(hidden: int, bias: bool) -> None:
    tensors = state_dict(hidden=hidden, bias=bias)
    # Another order of the names, for to_fastai to put right.
    back = to_fastai(from_fastai(dict(sorted(tensors.items(), reverse=True))))
    assert [name for name in LANGUAGE_MODEL[::2] if bias or "bias" not in name[:14]] == list(back)
    assert all(value.equal(tensors[name]) for name, value in back.items())
    pointers = {back[name].data_ptr() for name in back if back[name].shape == (V, E)}
    assert len(pointers) == 1
    if not bias:
        assert "1.decoder.bias" not in back


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="model is a LSTM, expected a LanguageModel, a TextClass"):
        to_fastai(nn.LSTM(1, 1))
    with pytest.raises(TypeError, match="model is a LSTM"):
        to_fastai(nn.LSTM(1, 1), encoder_only=True)


def test_the_facade_has_the_learner_s_functions() -> None:
    assert compat.fastai.accelerate is fastai_learner.accelerate
    assert compat.fastai.restore is fastai_learner.restore
