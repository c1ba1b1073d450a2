"""pytest-benchmark: a training step of each backend at a small shape, for any machine."""

import pytest
import torch

import ulmfit_fast as uf


@pytest.mark.parametrize("backend", ["eager", "torch", "reference"])
@pytest.mark.parametrize("gate_p", [0.0, 0.1], ids=["no-gate-dropout", "gate-dropout"])
def test_training_step(benchmark, backend, gate_p):
    if backend == "torch" and gate_p > 0:
        pytest.skip("PyTorch's fused LSTM cannot mask gates")
    torch.manual_seed(0)
    layer = uf.LSTM(128, 256, weight_p=0.5, gate_p=gate_p, backend=backend)
    x = torch.randn(40, 16, 128)

    def step():
        layer.zero_grad()
        layer(x)[0].square().mean().backward()

    benchmark(step)
    assert layer.weight_hh_l0.grad.abs().sum() > 0
