"""torch.onnx.export takes uf.LSTM as it takes nn.LSTM; onnxruntime gives the same numbers."""

import logging

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import ulmfit_fast as uf
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier

onnxruntime = pytest.importorskip("onnxruntime", reason="in the extra [interop]")
pytest.importorskip("onnxscript", reason="in the extra [interop]")

pytestmark = [
    # The exporters' own, and onnxscript's.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*ONNX:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LSTM:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
    pytest.mark.filterwarnings("ignore:Exporting a model while it is in training:UserWarning"),
]


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


class Everything(nn.Module):
    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x, h, c, lengths):
        output, (h_n, c_n) = self.lstm(x, (h, c), lengths=lengths)
        return output, h_n, c_n


class Packed(Everything):
    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, (h_n, c_n) = self.lstm(packed)
        return pad_packed_sequence(output)[0], h_n, c_n


def layer(**options):
    settings = {"num_layers": 2, "dropout": 0.3, "weight_p": 0.5, "gate_p": 0.1, **options}
    return uf.LSTM(4, 3, **settings).eval()


def everything(steps, lengths):
    batch = len(lengths)
    state = [torch.randn(4, batch, 3) for _ in "hc"]
    return torch.randn(steps, batch, 4), *state, torch.tensor(lengths)


def flat(values):
    if isinstance(values, torch.Tensor):
        return [values]
    return [tensor for value in values for tensor in flat(value)]


def assert_exports(folder, module, args, *others, **options):
    """Export with the arguments, and compare with the module on these and on others."""
    path = folder / "model.onnx"
    if options.get("dynamo", True):
        options["verbose"] = False
    torch.onnx.export(module, args, path, **options)
    session = onnxruntime.InferenceSession(path)
    for call in (args, *others):
        names = [one.name for one in session.get_inputs()]
        given = {name: value.numpy() for name, value in zip(names, call, strict=True)}
        got = [torch.from_numpy(value) for value in session.run(None, given)]
        torch.testing.assert_close(got, flat(module(*call)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True}, {"batch_first": True, "bias": False, "bidirectional": True}],
    ids=["one-way", "two-way", "batch-first"],
)
def test_defaults_export_the_layer(tmp_path, options):
    lstm = layer(**options)
    small, large = torch.randn(5, 5, 4), torch.randn(5, 5, 4)
    assert_exports(tmp_path, lstm, (small,), (large,))
    assert_exports(tmp_path, lstm, (small[0],), (large[1],))


def test_defaults_export_any_batch_size(tmp_path):
    shapes = {"input": {1: "batch"}}
    calls = (torch.randn(5, 2, 4),), (torch.randn(5, 7, 4),)
    assert_exports(tmp_path, layer(bidirectional=True), *calls, dynamic_shapes=shapes)


def test_defaults_export_lengths_and_state(tmp_path):
    module = Everything(layer(bidirectional=True)).eval()
    assert_exports(tmp_path, module, everything(5, [5, 0, 3]), everything(5, [1, 4, 2]))


def test_defaults_export_the_models(tmp_path):
    tokens, others = torch.randint(10, (5, 2)), torch.randint(10, (5, 2))
    for kind in (AWDLSTM, LanguageModel):
        model = kind(AWDLSTMConfig(10, emb_size=4, hidden_size=6)).eval()
        for dynamo in (True, False):
            assert_exports(tmp_path, model, (tokens,), (others,), dynamo=dynamo)


def test_defaults_export_a_classifier_and_any_length(tmp_path):
    config = AWDLSTMConfig.classifier(10, emb_size=4, hidden_size=6, num_layers=2)
    model = TextClassifier(AWDLSTM(config), num_classes=2, bptt=3, max_len=4).eval()
    calls = [
        (torch.randint(10, (steps, len(lengths))), torch.tensor(lengths))
        for steps, lengths in ((5, [5, 2]), (9, [9, 1, 3, 8]))
    ]
    shapes = {"tokens": {0: "steps", 1: "batch"}, "lengths": {0: "batch"}}
    assert_exports(tmp_path, model, *calls, dynamic_shapes=shapes)
    older = {"dynamo": False, "input_names": list(shapes), "dynamic_axes": shapes}
    assert_exports(tmp_path, model, *calls, **older)
    module = Everything(layer(bidirectional=True)).eval()
    shapes = {"x": {0: "steps", 1: "batch"}, "h": {1: "batch"}, "c": {1: "batch"}}
    shapes |= {"lengths": {0: "batch"}}
    calls = everything(5, [5, 3]), everything(7, [1, 0, 7])
    assert_exports(tmp_path, module, *calls, dynamic_shapes=shapes)


def test_the_older_exporter_takes_any_size(tmp_path):
    dynamic = {"x": {0: "steps", 1: "batch"}, "lengths": {0: "batch"}}
    dynamic |= {"h": {1: "batch"}, "c": {1: "batch"}}
    lstm = layer(bidirectional=True)
    axes = {"input": {0: "steps", 1: "batch"}}
    options = {"dynamo": False, "input_names": ["input"], "dynamic_axes": axes}
    assert_exports(tmp_path, lstm, (torch.randn(5, 2, 4),), (torch.randn(7, 3, 4),), **options)
    small, large = everything(5, [3, 5]), everything(7, [2, 7, 3])
    for module, pick, names in (
        (Everything(lstm).eval(), slice(None), ["x", "h", "c", "lengths"]),
        (Packed(lstm).eval(), slice(None, None, 3), ["x", "lengths"]),
    ):
        axes = {name: dynamic[name] for name in names}
        options = {"dynamo": False, "input_names": names, "dynamic_axes": axes}
        assert_exports(tmp_path, module, small[pick], large[pick], **options)


@pytest.mark.parametrize("dynamo", [True, False], ids=["default", "older"])
@pytest.mark.parametrize("dropping", [{"weight_p": 0.5}, {"num_layers": 2, "dropout": 0.5}])
def test_what_drops_names_the_mend(tmp_path, dynamo, dropping):
    options = {"verbose": False} if dynamo else {"training": torch.onnx.TrainingMode.TRAINING}
    with pytest.raises(RuntimeError, match=r"ulmfit_fast\.restore_lstm"):
        torch.onnx.export(
            uf.LSTM(4, 3, **dropping),
            (torch.randn(5, 2, 4),),
            tmp_path / "model.onnx",
            dynamo=dynamo,
            **options,
        )


def test_a_backend_of_this_package_asked_for_by_name_is_refused(tmp_path):
    lstm = uf.LSTM(4, 3, backend="eager").eval()
    with pytest.raises(RuntimeError, match=r'torch\.onnx knows no operator.*use "auto"'):
        torch.onnx.export(lstm, (torch.randn(5, 2, 4),), tmp_path / "model.onnx", verbose=False)
