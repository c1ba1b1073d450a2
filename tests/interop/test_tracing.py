"""What walks a model with nn.LSTM in it walks one with uf.LSTM: jit, fx, export, quantization."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import ulmfit_fast as uf
from ulmfit_fast import functional
from ulmfit_fast.compat.fastai_learner import WeightDropLSTM
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:torch.compile is ignored when called:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    # PyTorch's own: its exporter's, its scripted graph modules', its quantization's.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]


class Output(nn.Module):
    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x):
        return self.lstm(x)[0]


class Everything(Output):
    def forward(self, x, h: torch.Tensor, c: torch.Tensor, lengths: torch.Tensor):
        output, (h_n, c_n) = self.lstm(x, (h, c), lengths=lengths)
        return output, h_n, c_n


class Packed(Output):
    def forward(self, x, h: torch.Tensor, c: torch.Tensor, lengths: torch.Tensor):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, (h_n, c_n) = self.lstm(packed, (h, c))
        padded, _ = pad_packed_sequence(output)
        return padded, h_n, c_n


class PackedAlone(Output):
    def forward(self, x, lengths: torch.Tensor):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, (h_n, c_n) = self.lstm(packed)
        padded, _ = pad_packed_sequence(output)
        return padded, h_n, c_n


def layer(**options):
    """Return a layer in evaluation whose masks would drop something if they were drawn."""
    settings = {"num_layers": 2, "dropout": 0.3, "weight_p": 0.5, "gate_p": 0.1, **options}
    return uf.LSTM(4, 3, dtype=torch.float64, **settings).eval()


LAYERS = {
    "two-way": {"bidirectional": True},
    "batch-first": {"batch_first": True},
    "no-bias": {"bias": False, "bidirectional": True, "batch_first": True},
    "one": {"num_layers": 1, "dropout": 0.0},
}
layers = pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())


def example(lstm, steps, batch, lengths):
    rows = lstm.num_layers * (2 if lstm.bidirectional else 1)
    shape = (batch, steps, 4) if lstm.batch_first else (steps, batch, 4)
    x = torch.randn(shape, dtype=torch.float64)
    state = [torch.randn(rows, batch, 3, dtype=torch.float64) for _ in "hc"]
    return x, *state, torch.tensor(lengths)


def flat(values):
    if isinstance(values, torch.Tensor):
        return [values]
    return [tensor for value in values for tensor in flat(value)]


def assert_same(actual, expected):
    torch.testing.assert_close(flat(actual), flat(expected), rtol=1e-10, atol=1e-10)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


def uses_own_operators(text):
    return "ulmfit_fast::" in text or "ops.ulmfit_fast" in text


# --- torch.jit.trace ---


@layers
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
def test_a_trace_passes_its_check_and_runs_at_other_sizes(options, grad):
    lstm = layer(**options)
    small, large = example(lstm, 5, 2, [5, 3]), example(lstm, 7, 3, [2, 0, 7])
    for module, take in ((Output(lstm), 1), (Everything(lstm), 4)):
        module.eval()
        with torch.set_grad_enabled(grad):
            traced = torch.jit.trace(module, small[:take])
        assert "aten::lstm" in str(traced.inlined_graph)
        assert not uses_own_operators(str(traced.inlined_graph))
        for clone in (traced, saved_and_loaded(traced), copy.deepcopy(traced)):
            assert_same(clone(*large[:take]), module(*large[:take]))


def test_a_trace_of_the_layer_itself_has_no_training_flag():
    lstm = layer()
    traced = torch.jit.trace(lstm, example(lstm, 5, 2, [])[0])
    x = example(lstm, 3, 4, [])[0]
    assert_same(traced(x), lstm(x))
    assert_same(torch.jit.freeze(traced)(x), lstm(x))
    one = torch.jit.trace(lstm, x[:, 0])
    assert_same(one(x[:2, 1]), lstm(x[:2, 1]))


def test_a_trace_of_the_function_passes_its_check():
    lstm = layer(num_layers=1, dropout=0.0)

    weights = [weight.detach() for weight in lstm.all_weights[0]]

    def run(x):
        return functional.lstm(x, None, *weights, training=False)[0]

    small, large = example(lstm, 5, 2, [])[0], example(lstm, 7, 3, [])[0]
    assert_same(torch.jit.trace(run, small)(large), run(large))


def test_a_trace_trains_where_nothing_is_dropped():
    lstm = uf.LSTM(4, 3, dtype=torch.float64)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    traced = torch.jit.trace(lstm, x)
    gradients = []
    for module in (traced, lstm):
        lstm.zero_grad()
        module(x)[0].sin().sum().backward()
        gradients.append([weight.grad.clone() for weight in lstm.parameters()])
    assert_same(*gradients)


@pytest.mark.parametrize(
    "take", [torch.jit.trace, lambda m, _: torch.jit.script(m)], ids=["trace", "script"]
)
def test_packed_batches_are_traced_and_scripted(take):
    lstm = layer(bidirectional=True)
    small, large = example(lstm, 5, 2, [3, 5]), example(lstm, 7, 3, [2, 7, 3])
    for module, pick in ((Packed(lstm), slice(None)), (PackedAlone(lstm), slice(None, None, 3))):
        taken = take(module.eval(), small[pick])
        assert not uses_own_operators(str(taken.inlined_graph))
        assert_same(taken(*large[pick]), module(*large[pick]))


def test_the_models_are_traced_where_the_output_can_be():
    class Wrapped(nn.Module):
        def __init__(self, model, take):
            super().__init__()
            self.model, self.take = model, take

        def forward(self, tokens):
            return self.take(self.model(tokens))

    models = [
        (AWDLSTM(AWDLSTMConfig(10, emb_size=4, hidden_size=6)), lambda output: output[0]),
        (LanguageModel(AWDLSTMConfig(10, emb_size=4, hidden_size=6)), lambda out: out.logits),
    ]
    for model, take in models:
        module = Wrapped(model, take).eval()
        traced = torch.jit.trace(module, torch.randint(10, (5, 2)))
        tokens = torch.randint(10, (9, 3))
        torch.testing.assert_close(traced(tokens), module(tokens))


# --- torch.jit.script ---


@layers
def test_a_scripted_parent_gives_what_the_layer_gives(options):
    lstm = layer(**options)
    args = example(lstm, 7, 3, [2, 0, 7])
    for module, take in ((Output(lstm), 1), (Everything(lstm), 4)):
        scripted = torch.jit.script(module.eval())
        assert not uses_own_operators(str(scripted.inlined_graph))
        for clone in (
            scripted,
            saved_and_loaded(scripted),
            copy.deepcopy(scripted),
            torch.jit.freeze(scripted),
            torch.jit.optimize_for_inference(torch.jit.script(module)),
        ):
            assert_same(clone(*args[:take]), module(*args[:take]))
    unbatched = args[0][0] if lstm.batch_first else args[0][:, 0]
    output = Output(lstm).eval()
    assert_same(torch.jit.script(output)(unbatched), output(unbatched))


def test_scripting_leaves_the_model_and_shares_its_parameters():
    module = Output(layer()).eval()
    scripted = torch.jit.script(module)
    assert type(module.lstm) is uf.LSTM and module.lstm.weight_p == 0.5
    assert list(scripted.state_dict()) == list(module.state_dict())
    x = example(module.lstm, 5, 2, [])[0]
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1)
    assert_same(scripted(x), module(x))
    scripted.load_state_dict({name: 0 * value for name, value in module.state_dict().items()})
    assert scripted(x).abs().max() == 0 and module(x).abs().max() == 0
    halved = torch.jit.script(Output(layer()).eval()).float()
    assert halved(x.float()).dtype == torch.float32


def test_scripted_and_traced_after_one_another():
    module = Output(layer()).eval()
    small, large = example(module.lstm, 5, 2, [])[0], example(module.lstm, 7, 3, [])[0]
    expected = module(large)
    traced = torch.jit.trace(module, small)
    assert_same(torch.jit.script(nn.Sequential(traced))(large), expected)
    for again in (torch.jit.script(module), torch.jit.script(module)):
        assert_same(again(large), expected)
    assert_same(torch.jit.trace(module, small)(large), expected)
    for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same(clone(large), expected)
        assert_same(torch.jit.script(clone)(large), expected)
    assert_same(torch.jit.script(uf.restore_lstm(module))(large), expected)


@pytest.mark.parametrize("dropping", [{"weight_p": 0.1}, {"gate_p": 0.1}])
def test_a_scripted_layer_refuses_to_drop(dropping):
    module = Output(uf.LSTM(4, 3, **dropping))
    scripted = torch.jit.script(module)
    x = torch.randn(5, 2, 4)
    with pytest.raises(torch.jit.Error, match=r"ulmfit_fast\.restore_lstm"):
        scripted(x)
    torch.testing.assert_close(scripted.eval()(x), module.eval()(x))
    plain = torch.jit.script(Output(uf.LSTM(4, 3)))
    assert plain(x).requires_grad


# --- torch.fx ---


@pytest.mark.parametrize("kind", [Output, Everything])
def test_fx_keeps_the_layer_as_one_node(kind):
    module = kind(layer(bidirectional=True)).eval()
    args = example(module.lstm, 7, 3, [2, 0, 7])[: 1 if kind is Output else 4]
    graph = torch.fx.symbolic_trace(module)
    graph.graph.lint()
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["lstm"]
    again = torch.fx.symbolic_trace(graph)
    for clone in (graph, again, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert type(clone.lstm) is uf.LSTM
        assert_same(clone(*args), module(*args))
    if kind is Output:
        assert_same(torch.jit.script(graph)(*args), module(*args))


def test_fx_runs_hooks_once():
    module = Output(layer()).eval()
    module.lstm.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    module.lstm.register_forward_hook(lambda _, inputs, output: (output[0] * 2, output[1]))
    x = example(module.lstm, 5, 2, [])[0]
    graph = torch.fx.symbolic_trace(module)
    for clone in (graph, torch.fx.symbolic_trace(graph), copy.deepcopy(graph)):
        assert_same(clone(x), module(x))


def test_fx_trains_with_the_masks_of_the_layer():
    module = Output(layer()).train()
    graph = torch.fx.symbolic_trace(module)
    x = example(module.lstm, 5, 2, [])[0]
    outputs = []
    for kind in (graph, module):
        torch.manual_seed(3)
        outputs.append(kind(x))
    assert_same(*outputs)
    assert not torch.allclose(outputs[0], module.eval()(x))


def test_fx_says_that_it_cannot_trace_through_a_layer():
    with pytest.raises(TypeError, match="trace a module that has the layer in it"):
        torch.fx.symbolic_trace(layer())


# --- torch.export ---


@layers
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_an_exported_program_is_of_pytorchs_operators(options, strict):
    module = Output(layer(**options)).eval()
    x = example(module.lstm, 5, 2, [])[0]
    program = torch.export.export(module, (x,), strict=strict)
    lowered = program.run_decompositions()
    for one in (program, lowered):
        assert not uses_own_operators(str(one.graph))
        assert_same(one.module()(x), module(x))
    assert "aten.lstm" in str(program.graph) and "aten.lstm" not in str(lowered.graph)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_an_exported_program_takes_other_sizes(strict):
    module = Output(layer(bidirectional=True)).eval()
    small, large = example(module.lstm, 5, 2, [])[0], example(module.lstm, 7, 3, [])[0]
    steps, batch = torch.export.Dim("steps", max=99), torch.export.Dim("batch", max=99)
    shapes = ({0: steps, 1: batch},)
    program = torch.export.export(module, (small,), dynamic_shapes=shapes, strict=strict)
    assert_same(program.module()(large), module(large))
    shapes = ({1: batch},)
    program = torch.export.export(module, (small,), dynamic_shapes=shapes, strict=strict)
    assert not uses_own_operators(str(program.graph))
    assert_same(program.module()(large[:5]), module(large[:5]))


@layers
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_lengths_and_any_t_are_exported_in_pytorchs_operators(options, strict, training):
    lstm = layer(**options)
    if training:
        lstm.weight_p = lstm.gate_p = lstm.dropout = 0.0
    module = Everything(lstm).train(training)
    small, large = example(lstm, 5, 2, [5, 3]), example(lstm, 7, 3, [2, 0, 7])
    steps, batch = torch.export.Dim("steps", max=99), torch.export.Dim("batch", max=99)
    shapes = (
        {0: batch, 1: steps} if lstm.batch_first else {0: steps, 1: batch},
        {1: batch},
        {1: batch},
        {0: batch},
    )
    program = torch.export.export(module, small, dynamic_shapes=shapes, strict=strict)
    fixed = torch.export.export(module, small, strict=strict)
    assert not uses_own_operators(str(program.graph) + str(fixed.graph))
    assert_same(program.module()(*large), module(*large))
    assert_same(fixed.module()(*small), module(*small))


def test_an_export_starts_no_compiler(monkeypatch):
    # Dynamo's guards of an earlier export can fail in a later one, of another model.
    def refuse(*_, **__):
        raise AssertionError("compiled")

    module = Everything(layer(bidirectional=True)).eval()
    small, large = example(module.lstm, 5, 2, [5, 3]), example(module.lstm, 7, 3, [2, 0, 7])
    steps, batch = torch.export.Dim("steps", max=99), torch.export.Dim("batch", max=99)
    shapes = ({0: steps, 1: batch}, {1: batch}, {1: batch}, {0: batch})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", refuse)
        program = torch.export.export(module, small, dynamic_shapes=shapes)
        fixed = torch.export.export(module, small)
    assert_same(program.module()(*large), module(*large))
    assert_same(fixed.module()(*small), module(*small))


def test_an_exported_program_trains_where_nothing_is_dropped():
    lstm = layer(num_layers=1, dropout=0.0, weight_p=0.0, gate_p=0.0).train()
    module = Everything(lstm)
    program = torch.export.export(module, example(lstm, 5, 2, [5, 3])).module()
    args = example(lstm, 5, 2, [2, 4])
    gradients = []
    for one in (program, module):
        one.zero_grad()
        sum(output.sin().sum() for output in one(*args)).backward()
        gradients.append([weight.grad.clone() for weight in one.parameters()])
    assert_same(*gradients)


class Repacked(Output):
    """A packed batch by its parts, since torch.export has no dynamic shapes for the whole."""

    def forward(self, parts, hx=None):
        output, state = self.lstm(PackedSequence(*parts), hx)
        return output.data, state


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize("in_order", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "zeros"])
def test_a_packed_sequence_is_exported(strict, in_order, with_state):
    lstm = layer(num_layers=1, dropout=0.0, bidirectional=True)
    rows, steps, batch = (torch.export.Dim(name, max=99) for name in ("rows", "steps", "batch"))
    calls = []
    for lengths in ([3, 5], [7, 2, 3]):
        lengths = sorted(lengths, reverse=True) if in_order else lengths
        x, h, c, lengths = example(lstm, max(lengths), len(lengths), lengths)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=in_order)
        calls.append((packed, (h, c)) if with_state else (packed,))
    program = torch.export.export(lstm, calls[0], strict=strict)
    output, state = program.module()(*calls[0])
    expected, expected_state = lstm(*calls[0])
    assert type(output) is PackedSequence
    assert_same([output.data, state], [expected.data, expected_state])
    module = Repacked(lstm).eval()
    small, large = ((tuple(packed[: 2 if in_order else 4]), *hx) for packed, *hx in calls)
    parts = [{0: rows}, {0: steps}] + [{0: batch}] * (0 if in_order else 2)
    shapes = (tuple(parts), ({1: batch}, {1: batch}))[: len(small)]
    program = torch.export.export(module, small, dynamic_shapes=shapes, strict=strict)
    assert not uses_own_operators(str(program.graph))
    for call in (small, large):
        assert_same(program.module()(*call), module(*call))


def test_packing_inside_of_an_export_names_the_mend():
    module = PackedAlone(layer()).eval()
    x, _, _, lengths = example(module.lstm, 5, 2, [3, 5])
    with pytest.raises(RuntimeError, match="give the layer lengths="):
        torch.export.export(module, (x, lengths), strict=False)


# --- what drops in training ---


def traced(module, x):
    return torch.jit.trace(module, x, check_trace=False)


RECORDED = {
    "trace": traced,
    "script": lambda module, _: torch.jit.script(module),
    "export": lambda module, x: torch.export.export(module, (x,)).module(),
    "strict export": lambda module, x: torch.export.export(module, (x,), strict=True).module(),
}


@pytest.mark.parametrize("record", RECORDED.values(), ids=RECORDED.keys())
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True}])
def test_dropout_between_layers_is_that_of_pytorchs_lstm(record, options):
    module = Output(uf.LSTM(4, 3, 3, dropout=0.5, dtype=torch.float64, **options))
    theirs = nn.LSTM(4, 3, 3, dropout=0.5, dtype=torch.float64, **options)
    theirs.load_state_dict(module.lstm.state_dict())
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    recorded = record(module, x)
    torch.manual_seed(3)
    ours = recorded(x)
    torch.manual_seed(3)
    assert_same(ours, theirs(x)[0])
    assert not torch.allclose(recorded(x), recorded(x))


@pytest.mark.parametrize("way", ["trace", "export", "strict export"])
@pytest.mark.parametrize("dropping", [{"weight_p": 0.5}, {"gate_p": 0.5}])
def test_what_only_this_package_drops_is_told(way, dropping):
    module = Output(uf.LSTM(4, 3, **dropping))
    with pytest.warns(UserWarning, match=r"ulmfit_fast is imported.*ulmfit_fast\.restore_lstm"):
        recorded = RECORDED[way](module, torch.randn(5, 2, 4))
    x = torch.randn(5, 2, 4)
    assert not torch.allclose(recorded(x), recorded(x))


def test_what_a_trace_cannot_drop_names_the_mend():
    lstm = uf.LSTM(4, 3, 2, dropout=0.5, weight_p=0.5)
    with pytest.raises(RuntimeError, match=r"eval\(\) first.*ulmfit_fast\.restore_lstm"):
        torch.jit.trace(lstm, torch.randn(5, 2, 4))


def test_dropout_between_layers_of_an_exported_program_with_any_t_is_told():
    shapes = ({0: torch.export.Dim("steps", max=99)},)
    lstm = uf.LSTM(4, 3, 2, dropout=0.5)
    with pytest.warns(UserWarning, match=r"ulmfit_fast is imported.*ulmfit_fast\.restore_lstm"):
        torch.export.export(lstm, (torch.randn(5, 2, 4),), dynamic_shapes=shapes)


# --- a classifier ---


def classifier():
    config = AWDLSTMConfig.classifier(10, emb_size=4, hidden_size=6, num_layers=2)
    return TextClassifier(AWDLSTM(config), num_classes=2, bptt=3, max_len=4).eval()


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_a_classifier_is_exported_for_any_texts(strict):
    model = classifier()
    sizes = torch.export.Dim("steps", max=99), torch.export.Dim("batch", max=99)
    program = torch.export.export(
        model,
        (torch.randint(10, (5, 2)), torch.tensor([5, 2])),
        dynamic_shapes=(dict(enumerate(sizes)), {0: sizes[1]}),
        strict=strict,
    )
    assert not uses_own_operators(str(program.graph))
    texts = torch.randint(10, (9, 4)), torch.tensor([9, 0, 3, 8])
    torch.testing.assert_close(program.module()(*texts), model(*texts))


def test_a_traced_classifier_reads_the_lengths_that_it_is_given():
    model = classifier()
    traced = torch.jit.trace(model, (torch.randint(10, (5, 2)), torch.tensor([5, 2])))
    assert not uses_own_operators(str(traced.inlined_graph))
    texts = torch.randint(10, (9, 4)), torch.tensor([9, 0, 3, 8])
    for clone in (traced, saved_and_loaded(traced)):
        torch.testing.assert_close(clone(*texts), model(*texts))


@pytest.mark.parametrize("take", [torch.jit.script, torch.fx.symbolic_trace], ids=["script", "fx"])
def test_what_cannot_read_a_model_names_what_can(take):
    config = AWDLSTMConfig(10, emb_size=4, hidden_size=6)
    for model in (classifier(), AWDLSTM(config), LanguageModel(config)):
        with pytest.raises(TypeError, match=rf"{type(model).__name__}.*torch\.export\.export"):
            take(model)


def test_fx_keeps_a_classifier_as_one_node_where_it_is_told_to():
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, TextClassifier) or super().is_leaf_module(module, name)

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = classifier()

        def forward(self, tokens, lengths):
            return self.model(tokens, lengths).softmax(1)

    module = Scores().eval()
    graph = torch.fx.GraphModule(module, Tracer().trace(module))
    texts = torch.randint(10, (9, 4)), torch.tensor([9, 0, 3, 8])
    torch.testing.assert_close(graph(*texts), module(*texts))


@pytest.mark.parametrize("take", [torch.export.export, torch.jit.trace], ids=["export", "trace"])
def test_a_classifier_in_training_is_not_recorded(take):
    args = torch.randint(10, (5, 2)), torch.tensor([5, 2])
    with pytest.raises(RuntimeError, match=r"call eval\(\).*serving\.export_classifier"):
        take(classifier().train(), args)


def test_a_classifier_is_not_compiled_whole():
    args = torch.randint(10, (5, 2)), torch.tensor([5, 2])
    model = classifier()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"leave fullgraph out, compile its"):
        torch.compile(model, fullgraph=True, backend="eager")(*args)
    torch.testing.assert_close(torch.compile(model, backend="eager")(*args), model(*args))


# --- torch.func ---


def test_functional_transforms_take_an_evaluated_layer():
    lstm = layer(bidirectional=True)
    x = example(lstm, 3, 2, [])[0]
    weights = {name: 2 * value.detach() for name, value in lstm.named_parameters()}
    doubled = copy.deepcopy(lstm)
    doubled.load_state_dict(weights)
    assert_same(torch.func.functional_call(lstm, weights, (x,)), doubled(x))
    rows = torch.stack([x, -x])
    assert_same(torch.func.vmap(lstm)(rows)[0], torch.stack([lstm(row)[0] for row in rows]))
    jacobian = torch.func.jacrev(lambda x: lstm(x)[0])(x)
    assert_same(jacobian, torch.autograd.functional.jacobian(lambda x: lstm(x)[0], x))


def test_lengths_are_mapped_over():
    lstm = layer(bidirectional=True)
    x = torch.randn(2, 3, 5, 2, 4, dtype=torch.float64)
    lengths = torch.tensor([[5, 3], [0, 1]])
    weights = [weight.detach() for weight in lstm.all_weights[0]]

    def gradient(lengths):
        return torch.func.grad(lambda x: lstm(x, lengths=lengths)[0].sin().sum())(x[0, 0])

    for call in (
        lambda lengths: lstm(x[0, 0], lengths=lengths)[0],
        lambda lengths: functional.lstm(x[0, 0], None, *weights, lengths=lengths)[0],
        gradient,
    ):
        expected = torch.stack([call(row) for row in lengths])
        assert_same(torch.func.vmap(call)(lengths), expected)
        twice = torch.func.vmap(torch.func.vmap(call))(lengths.expand(3, 2, 2))
        assert_same(twice, expected.expand(3, *expected.shape))
    pairs = torch.func.vmap(lambda x, lengths: lstm(x, lengths=lengths)[0])(x[:, 0], lengths)
    expected = [lstm(*pair[:1], lengths=pair[1])[0] for pair in zip(x[:, 0], lengths, strict=True)]
    assert_same(pairs, torch.stack(expected))
    with pytest.raises(ValueError, match="lengths run from 1 to 6"):
        torch.func.vmap(lambda lengths: lstm(x[0, 0], lengths=lengths)[0])(lengths + 1)


def test_a_classifier_refuses_lengths_that_are_mapped_over():
    model = classifier()
    tokens, lengths = torch.randint(10, (3, 5, 2)), torch.tensor([[5, 3], [0, 1]])
    with pytest.raises(ValueError, match=r"lengths is mapped over by torch\.func\.vmap"):
        torch.func.vmap(lambda lengths: model(tokens[0], lengths))(lengths)
    got = torch.func.vmap(lambda tokens: model(tokens, lengths[0]))(tokens)
    torch.testing.assert_close(got, torch.stack([model(one, lengths[0]) for one in tokens]))


# --- a layer under other names ---


@pytest.mark.parametrize(
    "take",
    [
        torch.jit.trace,
        lambda module, _: torch.jit.script(module),
        lambda module, _: torch.fx.symbolic_trace(module),
        lambda module, args: torch.export.export(module, args).module(),
    ],
    ids=["trace", "script", "fx", "export"],
)
def test_the_layer_that_stands_in_for_fastais(take):
    module = Output(WeightDropLSTM(4, 3, weight_p=0.5, dtype=torch.float64)).eval()
    args = (torch.randn(2, 5, 4, dtype=torch.float64),)
    assert_same(take(module, args)(*args), module(*args))


# --- torch.ao.quantization ---


class Tagger(Output):
    def __init__(self, lstm):
        super().__init__(lstm)
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        return self.out(super().forward(x))


@pytest.mark.parametrize(
    "asked",
    [{nn.LSTM}, {uf.LSTM}, {nn.LSTM, nn.Linear}, None],
    ids=["pytorchs", "ours", "two", "default"],
)
def test_quantize_dynamic_does_not_pass_by_in_silence(asked):
    module = Tagger(uf.LSTM(4, 3, weight_p=0.5)).eval()
    with pytest.raises(TypeError, match=r"ulmfit_fast\.restore_lstm\(model\) first"):
        quantize_dynamic(module, asked)
    assert not hasattr(module.lstm, "qconfig")


def test_quantize_dynamic_takes_the_restored_model():
    module = Tagger(uf.LSTM(4, 3, weight_p=0.5)).eval()
    x = torch.randn(5, 2, 4)
    expected = module(x)
    small = quantize_dynamic(uf.restore_lstm(copy.deepcopy(module)), {nn.LSTM})
    assert "Quantized" in repr(small.lstm)
    # 8 bits over weights within 1/sqrt(3) and outputs within 1.
    torch.testing.assert_close(small(x), expected, rtol=0, atol=0.05)


def test_quantization_of_what_is_beside_the_layer():
    module = Tagger(uf.LSTM(4, 3)).eval()
    assert "Quantized" in repr(quantize_dynamic(module, {nn.Linear}).out)
    module.lstm.qconfig = None
    small = quantize_dynamic(module, {nn.LSTM, nn.Linear})
    assert type(small.lstm) is uf.LSTM and "Quantized" in repr(small.out)
    with pytest.raises(TypeError, match="set the layer's qconfig to None"):
        uf.LSTM(4, 3).qconfig = default_dynamic_qconfig
