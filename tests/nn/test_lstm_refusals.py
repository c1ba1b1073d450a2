"""What `uf.LSTM` refuses is an error of the kind that torch.nn.LSTM raises, and of today's kind."""

import inspect
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import ulmfit_fast as uf
from ulmfit_fast.checks import NumberError
from ulmfit_fast.lstm import checks

NAN = float("nan")
SIZES = [0, -1, 1.0, 1.5, NAN, "3", None, [3], np.float64(3)]
WRONG_SETTINGS = [
    *[{name: value} for name in ("input_size", "hidden_size", "num_layers") for value in SIZES],
    *[{"proj_size": value} for value in (-1, 5, 7, 1.0, "3", "", None, [], [3], NAN, True)],
    *[{"dropout": value} for value in (2, -0.1, NAN, "0.1", "x", None, True, False, [0.1], 1j)],
    *[
        {name: value}
        for name in ("bias", "batch_first")
        for value in (0, 1, 0.5, "no", "", None, np.bool_(True), torch.tensor(True), [])
    ],
    {"device": "nodevice"},
    {"device": 1.5},
    {"dtype": int},
    {"dtype": torch.int64},
    {"dtype": torch.bool},
    {"dtype": "float32"},
    {"weights": 3},
]
WRONG_ARGUMENTS = [
    (),
    (3,),
    (10, 20, 2, 0.5),
    (3, 5, 1, True, 0.5),
    (3, 5, 1, True, False, 0.0, False, 0, None, None, 0.5),
]
LAYERS, STEPS, BATCH, INPUT, HIDDEN = 2, 6, 4, 3, 5


def error_of(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except Exception as error:
            return error
    return None


def assert_same_kind(call):
    """Compare what both classes raise; what PyTorch lets pass by chance, ours may refuse."""
    theirs, ours = error_of(lambda: call(nn.LSTM)), error_of(lambda: call(uf.LSTM))
    assert ours is not None
    assert "\n" not in str(ours) or str(ours) == str(theirs)
    if theirs is not None:
        assert isinstance(ours, type(theirs)), f"{theirs!r}, ours {ours!r}"
        return type(theirs).__name__, type(ours).__name__
    return None


@pytest.mark.parametrize("wrong", WRONG_SETTINGS, ids=str)
def test_a_wrong_setting(wrong):
    sizes = {"input_size": INPUT, "hidden_size": HIDDEN, "num_layers": LAYERS}
    names = assert_same_kind(lambda kind: kind(**{**sizes, **wrong}))
    assert names is None or names[0] == names[1]


@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS, ids=str)
def test_wrong_positional_arguments(wrong):
    names = assert_same_kind(lambda kind: kind(*wrong))
    assert names is None or names[0] == names[1]


@pytest.mark.parametrize("value", [0, 1, "no", None, 0.5, torch.tensor(True)], ids=str)
def test_a_wrong_bidirectional_is_refused_before_the_forward_that_nn_lstm_fails_in(value):
    x = torch.zeros(STEPS, BATCH, INPUT)
    theirs = error_of(lambda: nn.LSTM(INPUT, HIDDEN, bidirectional=value)(x))
    ours = error_of(lambda: uf.LSTM(INPUT, HIDDEN, bidirectional=value))
    assert type(ours) is type(theirs) is TypeError


def test_dropout_in_one_layer_warns_as_nn_lstm_does():
    for kind in (nn.LSTM, uf.LSTM):
        with pytest.warns(UserWarning, match="num_layers"):
            kind(3, 5, dropout=0.5)


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


STATE = zeros(LAYERS, BATCH, HIDDEN)
WRONG_INPUTS = {
    "scalar": zeros(),
    "1d": zeros(INPUT),
    "4d": zeros(1, STEPS, BATCH, INPUT),
    "no-steps": zeros(0, BATCH, INPUT),
    "no-steps-unbatched": zeros(0, INPUT),
    "features": zeros(STEPS, BATCH, 7),
    "features-unbatched": zeros(STEPS, 7),
    "float64": zeros(STEPS, BATCH, INPUT, dtype=torch.float64),
    "float16": zeros(STEPS, BATCH, INPUT, dtype=torch.float16),
    "float64-unbatched": zeros(STEPS, INPUT, dtype=torch.float64),
    "tokens": zeros(STEPS, BATCH, INPUT, dtype=torch.int64),
    "bool": zeros(STEPS, BATCH, INPUT, dtype=torch.bool),
    "complex": zeros(STEPS, BATCH, INPUT, dtype=torch.complex64),
    "meta": zeros(STEPS, BATCH, INPUT, device="meta"),
    "none": None,
    "list": [[0.0]],
    "tuple": (zeros(STEPS, BATCH, INPUT),),
    "numpy": np.zeros((STEPS, BATCH, INPUT), np.float32),
    "str": "text",
}
WRONG_STATES = {
    "batch": zeros(LAYERS, 7, HIDDEN),
    "batch-1": zeros(LAYERS, 1, HIDDEN),
    "layers": zeros(3, BATCH, HIDDEN),
    "features": zeros(LAYERS, BATCH, 6),
    "2d": zeros(BATCH, HIDDEN),
    "4d": zeros(1, LAYERS, BATCH, HIDDEN),
    "float16": STATE.half(),
    "int": STATE.long(),
    "meta": STATE.to("meta"),
    "none": None,
    "number": 0.0,
    "list": [[0.0]],
    "numpy": STATE.numpy(),
}
WRONG_PAIRS = {
    "tensor": STATE,
    "stacked": torch.stack((STATE, STATE)),
    "three": (STATE,) * 3,
    "dict": {0: STATE, 1: STATE},
    "number": 5,
    "generator": (state for state in (STATE, STATE)),
    "nones": (None, None),
}


def layer(kind, **options):
    return kind(INPUT, HIDDEN, LAYERS, **options)


@pytest.mark.parametrize("backend", ["auto", "reference", "eager"])
@pytest.mark.parametrize("wrong", WRONG_INPUTS)
def test_a_wrong_input(wrong, backend):
    def call(kind):
        options = {"backend": backend} if kind is uf.LSTM else {}
        layer(kind, **options)(WRONG_INPUTS[wrong])

    theirs, ours = assert_same_kind(call)
    assert theirs == ours


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("part", [0, 1], ids=["h_0", "c_0"])
@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_a_wrong_state(wrong, part, batch_first):
    state = [STATE, STATE]
    state[part] = WRONG_STATES[wrong]
    shape = (BATCH, STEPS, INPUT) if batch_first else (STEPS, BATCH, INPUT)
    x = zeros(*shape)
    theirs, ours = assert_same_kind(
        lambda kind: layer(kind, batch_first=batch_first)(x, tuple(state))
    )
    assert theirs == ours


@pytest.mark.parametrize("wrong", WRONG_PAIRS)
def test_a_state_that_is_no_pair(wrong):
    x = zeros(STEPS, BATCH, INPUT)
    assert_same_kind(lambda kind: layer(kind)(x, WRONG_PAIRS[wrong]))


@pytest.mark.parametrize(
    "state",
    [STATE, zeros(LAYERS, 1, HIDDEN), zeros(3, HIDDEN), zeros(LAYERS, 6), zeros(HIDDEN)],
    ids=lambda state: str(tuple(state.shape)),
)
def test_a_wrong_state_beside_an_unbatched_input(state):
    x = zeros(STEPS, INPUT)
    theirs, ours = assert_same_kind(lambda kind: layer(kind)(x, (state, state)))
    assert theirs == ours


def packed(sorted_, **options):
    lengths = torch.tensor([6, 5, 2, 1] if sorted_ else [1, 6, 5, 2])
    x = zeros(STEPS, BATCH, options.pop("features", INPUT), **options)
    return pack_padded_sequence(x, lengths, enforce_sorted=sorted_)


@pytest.mark.parametrize("sorted_", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize(
    "options", [{"features": 7}, {"dtype": torch.float64}, {"dtype": torch.int64}], ids=str
)
def test_a_wrong_packed_input(options, sorted_):
    sequence = packed(sorted_, **options)
    assert_same_kind(lambda kind: layer(kind)(sequence))


def test_packed_steps_with_a_dimension_too_many():
    good = packed(True)
    sequence = PackedSequence(good.data[:, None], good.batch_sizes)
    assert_same_kind(lambda kind: layer(kind)(sequence))


# nn.LSTM itself does not check how many layers such a state has, and reads past its end.
@pytest.mark.parametrize("wrong", ["batch", "features", "float16", "meta", "none", "numpy"])
@pytest.mark.parametrize("part", [0, 1], ids=["h_0", "c_0"])
def test_a_wrong_state_beside_a_packed_input(wrong, part):
    state = [STATE, STATE]
    state[part] = WRONG_STATES[wrong]
    assert_same_kind(lambda kind: layer(kind)(packed(True), tuple(state)))


@pytest.mark.parametrize("options", [{"dtype": torch.float64}, {"device": "meta"}], ids=str)
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "weight_ih_l1"])
def test_a_weight_that_does_not_fit_the_others(name, options):
    def call(kind):
        module = layer(kind)
        setattr(module, name, nn.Parameter(getattr(module, name).detach().to(**options)))
        module(zeros(STEPS, BATCH, INPUT))

    assert_same_kind(call)


def test_under_autocast():
    def call(kind):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(kind)(zeros(STEPS, BATCH, INPUT, dtype=torch.float64))

    assert_same_kind(call)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            layer(uf.LSTM)(zeros(STEPS, BATCH, INPUT, dtype=dtype))


def test_an_empty_batch_is_none():
    for kind in (nn.LSTM, uf.LSTM):
        output, (h, c) = layer(kind)(zeros(STEPS, 0, INPUT))
        assert (output.shape, h.shape, c.shape) == ((6, 0, 5), (2, 0, 5), (2, 0, 5))


def test_who_caught_value_errors_and_type_errors_still_does():
    module = layer(uf.LSTM)
    for x, hx, kind in (
        (zeros(STEPS, BATCH, 7), None, ValueError),
        (zeros(0, BATCH, INPUT), None, ValueError),
        (zeros(STEPS, BATCH, INPUT), (STATE, STATE[:1]), ValueError),
        (zeros(STEPS, BATCH, INPUT).double(), None, TypeError),
        (zeros(STEPS, BATCH, INPUT), STATE, TypeError),
        ([0.0], None, TypeError),
    ):
        with pytest.raises(kind):
            module(x, hx)
    with pytest.raises(TypeError):
        uf.LSTM(3, 5, dropout="0.1")


def test_these_errors_survive_another_process():
    kinds = [checks.FitError, checks.KindError, checks.InputError, NumberError]
    for kind in [*kinds, checks.TensorError]:
        error = pickle.loads(pickle.dumps(kind("words")))
        assert type(error) is kind and str(error) == "words"


def test_methods_that_code_around_nn_lstm_calls():
    ours, theirs = (layer(kind, bidirectional=True) for kind in (uf.LSTM, nn.LSTM))
    x, state = zeros(STEPS, BATCH, INPUT), zeros(2 * LAYERS, BATCH, HIDDEN)
    order = torch.tensor([2, 0, 3, 1])
    for module in (ours, theirs):
        assert module.get_expected_hidden_size(x, None) == (4, 4, 5)
        assert module.get_expected_cell_size(x, None) == (4, 4, 5)
        module.check_forward_args(x, (state, state), None)
        with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size"):
            module.check_forward_args(x, (state, state[:1]), None)
        h, _ = module.permute_hidden((torch.arange(4.0).expand(1, 1, 4).mT, state), order)
        assert h.flatten().tolist() == [2, 0, 3, 1]
        module.flatten_parameters()
    public = {name for name in dir(theirs) if not name.startswith("_")}
    assert public <= set(dir(ours))
    assert inspect.signature(nn.LSTM.forward).parameters.keys() <= (
        inspect.signature(uf.LSTM.forward).parameters.keys()
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "dropout": 0.5},
        {"bias": False, "batch_first": True},
        {"bidirectional": True},
    ],
    ids=str,
)
def test_it_describes_itself_as_nn_lstm_does(options):
    assert repr(uf.LSTM(3, 5, **options)) == repr(nn.LSTM(3, 5, **options))
