"""The public surface, pinned: a change here is a change for users."""

import inspect

import torch

import ulmfit_fast as uf

NAMES = [
    "DropoutMasks",
    "Ensemble",
    "GradualUnfreezing",
    "LSTM",
    "Run",
    "SlantedTriangularLR",
    "ULMFiT",
    "ULMFiTClassifier",
    "__version__",
    "backend",
    "compat",
    "convert_lstm",
    "data",
    "discriminative_groups",
    "dropout_masks",
    "find_lr",
    "fit_ensemble",
    "functional",
    "nn",
    "optim",
    "presets",
    "restore_lstm",
    "rng",
    "runs",
    "serving",
    "train",
]


def test_public_names():
    assert sorted(uf.__all__) == NAMES
    for name in NAMES:
        assert getattr(uf, name) is not None


def test_public_things_have_docstrings_with_an_example():
    for thing in (uf.LSTM, uf.ULMFiT, uf.SlantedTriangularLR, uf.GradualUnfreezing):
        assert ">>>" in thing.__doc__
    functions = [uf.dropout_masks, uf.discriminative_groups, uf.functional.lstm]
    for function in [*functions, uf.convert_lstm, uf.restore_lstm]:
        assert ">>>" in function.__doc__


def test_lstm_takes_what_nn_lstm_takes_and_keywords_of_its_own():
    parameters = inspect.signature(uf.LSTM).parameters
    names = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
    names += ["bidirectional", "proj_size", "device", "dtype"]
    own = ["weight_p", "gate_p", "gate_mask", "recompute_gates", "backend"]
    assert list(parameters) == names + own
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in own)
    theirs = inspect.signature(torch.nn.RNNBase).parameters
    for name in names[2:]:
        assert parameters[name].default == theirs[name].default


def test_signatures_of_the_protocol():
    def names(function):
        return list(inspect.signature(function).parameters)

    schedule = ["optimizer", "total_steps", "cut_frac", "ratio", "last_epoch"]
    assert names(uf.SlantedTriangularLR) == schedule
    assert names(uf.discriminative_groups) == ["model", "lr", "factor", "multipliers"]
    assert names(uf.GradualUnfreezing) == ["model_groups", "epochs_per_stage"]
    for method in (
        "pretrain",
        "fine_tune_lm",
        "fit_classifier",
        "predict",
        "generate",
        "save",
        "load",
    ):
        assert callable(getattr(uf.ULMFiT, method))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(uf, "LSTN")
