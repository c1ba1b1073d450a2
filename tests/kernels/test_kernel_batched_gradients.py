"""Several gradients at once through the kernels' operators."""

import os

import pytest
import torch
from torch.autograd.functional import jacobian

import ulmfit_fast as uf
from ulmfit_fast.functional import dropout

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)


@pytest.mark.parametrize("form", ["stepwise", "persistent"])
def test_the_kernels_have_batched_gradients(form):
    layers = [
        uf.LSTM(3, 4, weight_p=0.5, gate_p=0.2, backend=backend)
        for backend in (f"triton-{form}", "reference")
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(2, 2, 3)
    lengths = torch.tensor([2, 1])

    def run(layer, vectorize):
        def last(x):
            return layer(x, seed=3, lengths=lengths)[1][0][:, :, 1:3]

        return jacobian(last, x, vectorize=vectorize)

    batched = run(layers[0], True)
    # The same kernels on the same numbers, one gradient after the other.
    torch.testing.assert_close(batched, run(layers[0], False), rtol=0, atol=0)
    torch.testing.assert_close(batched, run(layers[1], True))


@pytest.mark.parametrize("which", [0, 1], ids=["dropped", "mean-square"])
def test_the_regularisers_kernel_has_batched_gradients(which):
    x, seed = torch.randn(2, 1, 3), torch.tensor(7)

    def run(x):
        return dropout.dropout_and_regularisers(x, seed, 0.5)[which].view(-1)

    with uf.backend.use("triton"):
        batched = jacobian(run, x, vectorize=True)
    with uf.backend.use("eager"):
        torch.testing.assert_close(batched, jacobian(run, x))
