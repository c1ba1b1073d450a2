"""Several gradients at once, as jacobian(vectorize=True) asks for them, through every operator."""

import pytest
import torch
from torch.autograd.functional import jacobian

import ulmfit_fast as uf
from ulmfit_fast.functional import dropout as fused
from ulmfit_fast.functional.cross_entropy import linear_cross_entropy

CALLS = {
    "plain": ({}, {}),
    "lengths": ({}, {"lengths": torch.tensor([3, 0])}),
    "gate_p": ({"gate_p": (0.1, 0.2, 0.3, 0.4)}, {"seed": 5}),
    "weight_p": ({"weight_p": 0.5, "bias": False}, {"seed": 5}),
    "all": (
        {"weight_p": 0.5, "gate_p": 0.2, "num_layers": 2, "dropout": 0.3, "bidirectional": True},
        {"seed": 5, "lengths": torch.tensor([3, 2])},
    ),
}


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("name", CALLS)
def test_the_layer_has_batched_gradients(name, backend):
    options, call = CALLS[name]
    layers = [
        uf.LSTM(4, 5, **options, dtype=torch.float64, backend=kind)
        for kind in (backend, "reference")
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    rows = 4 if "num_layers" in options else 1
    names = [name for name, _ in layers[0].named_parameters()]
    weights = [weight.detach() for weight in layers[0].parameters()]
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    h, c = torch.randn(2, rows, 2, 5, dtype=torch.float64)

    def function(layer):
        def run(x, h, c, *weights):
            given = dict(zip(names, weights, strict=True))
            output, (h_n, c_n) = torch.func.functional_call(layer, given, (x, (h, c)), call)
            # A few of the results: each is a row of the Jacobian.
            return output[:, :, ::3].flatten(), h_n[0], c_n[-1, :, 1:3]

        return run

    actual = jacobian(function(layers[0]), (x, h, c, *weights), vectorize=True)
    expected = jacobian(function(layers[1]), (x, h, c, *weights))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    one_by_one = jacobian(function(layers[0]), (x, h, c, *weights))
    torch.testing.assert_close(actual, one_by_one, rtol=0, atol=1e-12)


def test_is_grads_batched_with_a_packed_sequence():
    lstm = uf.LSTM(4, 5, dtype=torch.float64)
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]))
    output = lstm(packed)[0].data
    grads = torch.randn(6, *output.shape, dtype=torch.float64)
    keep = {"retain_graph": True}
    (batched,) = torch.autograd.grad(output, x, grads, is_grads_batched=True, **keep)
    single = [torch.autograd.grad(output, x, grad, **keep)[0] for grad in grads]
    torch.testing.assert_close(batched, torch.stack(single), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_the_loss_in_chunks_has_batched_gradients(bias):
    x, weight = torch.randn(6, 4).double(), torch.randn(10, 4).double()
    targets = torch.tensor([1, 2, -100, 4, 9, 0])

    def losses(x, weight, *biases):
        b = biases[0] if biases else None
        loss = linear_cross_entropy(x, weight, b, targets, label_smoothing=0.1, chunk_rows=4)
        return torch.stack([loss, 3 * loss, loss.sin()])

    inputs = (x, weight, *([torch.randn(10).double()] if bias else []))
    actual = jacobian(losses, inputs, vectorize=True)
    with uf.backend.use("reference"):
        expected = jacobian(losses, inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "step",
    [
        lambda x, seed: fused.locked_dropout(x, seed, 0.5),
        lambda x, seed: fused.dropout_and_regularisers(x, seed, 0.5)[1].view(1),
        lambda x, seed: fused.embed_dropped(
            x.flatten(0, 1), torch.tensor([[1], [5]]), seed, 0.5, seed, 0.2
        ),
    ],
    ids=["locked", "regularisers", "embedding"],
)
def test_the_other_steps_have_batched_gradients(step):
    x, seed = torch.randn(3, 2, 4).double(), torch.tensor(7)

    def run(x):
        return step(x, seed)

    torch.testing.assert_close(jacobian(run, x, vectorize=True), jacobian(run, x))
