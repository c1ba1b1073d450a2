"""pytest-benchmark: training steps at small shapes, for any machine.

pytest benchmarks/test_steps.py --benchmark-only
"""

import pytest
import torch

import ulmfit_fast as uf
from benchmarks.compared.baselines import make_weights
from benchmarks.harness.settings import Settings
from benchmarks.questions import layers, lm_step, masks

SETTINGS = Settings(tiny=True)
MAKERS = {
    "F.dropout + nn.LSTM": layers.today(SETTINGS),
    "nn.LSTM": layers.plain(SETTINGS),
    **{name: layers.ours(SETTINGS, name) for name in ("auto", "eager", "reference")},
    "eager with gate_p": layers.ours(SETTINGS, "eager", weight_p=0.5, gate_p=0.1),
}


@pytest.mark.parametrize("passes", ["forward", "training"])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.benchmark(group="layer")
def test_layer(benchmark, name, passes):
    torch.manual_seed(0)
    implementation = MAKERS[name](make_weights((128, 256), "cpu"))
    x, grad = torch.randn(40, 16, 128), torch.randn(40, 16, 256)
    benchmark(layers.step_of(implementation.run, implementation, [x], grad, passes), 0)


@pytest.mark.parametrize("make", [lm_step.make_plain, lm_step.make_ours])
@pytest.mark.benchmark(group="language model step")
def test_language_model_step(benchmark, make):
    asked = lm_step.problem(SETTINGS)
    step, _ = make(asked.config, asked, torch.float32)
    batch = asked.batches()[0]
    assert benchmark(step, *batch).isfinite()


@pytest.mark.parametrize("draw", ["weight_keep", "bernoulli_"])
@pytest.mark.benchmark(group="masks")
def test_masks(benchmark, draw):
    mask, seed = torch.empty(1024, 256), torch.tensor(5)
    if draw == "bernoulli_":
        benchmark(mask.bernoulli_, 1 - masks.P)
    else:
        benchmark(uf.rng.weight_keep, seed, 256, (masks.P,) * 4)
