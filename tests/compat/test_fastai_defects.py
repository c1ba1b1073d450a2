"""What fastai 2.8.12 fails at on a current PyTorch, and an accelerated model does.

Each test shows the failure first, so that one which fastai mends is taken out of here.
"""

import copy
import pickle

import pytest
import torch
from fastai_parts import DROPOUT, EMB, HIDDEN, VOCAB, fastai

from ulmfit_fast.compat.fastai import accelerate


def language_model(*, accelerated, **config):
    sizes = {"emb_sz": EMB, "n_hid": HIDDEN, "n_layers": 2}
    config = fastai.awd_lstm_lm_config | sizes | DROPOUT | config
    model = fastai.get_language_model(fastai.AWD_LSTM, VOCAB, config)
    return accelerate(model) if accelerated else model


@pytest.fixture
def tokens():
    return torch.randint(VOCAB, (4, 6))


def test_a_model_is_copied_after_a_step(tokens):
    old = language_model(accelerated=False)
    old(tokens)
    with pytest.raises(RuntimeError, match="support the deepcopy protocol"):
        copy.deepcopy(old)
    new = language_model(accelerated=True)
    new(tokens)[0].sum().backward()
    twin = copy.deepcopy(new)
    assert twin[1].decoder.weight is twin[0].encoder.weight
    for a, b in zip(new.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    new.eval()
    twin.eval()
    assert torch.equal(new(tokens)[0], twin(tokens)[0])
    again = pickle.loads(pickle.dumps(new))
    assert torch.equal(new(tokens)[0], again(tokens)[0])


def test_an_average_of_the_weights_is_kept(tokens):
    old = language_model(accelerated=False)
    old(tokens)
    with pytest.raises(RuntimeError, match="support the deepcopy protocol"):
        torch.optim.swa_utils.AveragedModel(old)
    new = language_model(accelerated=True)
    optimizer = torch.optim.SGD(new.parameters(), lr=0.1)
    new(tokens)[0].square().sum().backward()
    average = torch.optim.swa_utils.AveragedModel(new)
    weights = []
    for _ in range(2):
        average.update_parameters(new)
        weights.append(new[0].rnns[0].weight_hh_l0_raw.detach().clone())
        optimizer.step()
    kept = average.module[0].rnns[0].weight_hh_l0_raw
    torch.testing.assert_close(kept, (weights[0] + weights[1]) / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_changes_between_two_batches(tokens, dtype):
    old = language_model(accelerated=False).eval()
    old(tokens)
    with pytest.raises((RuntimeError, ValueError)):
        old.to(dtype)(tokens)
    new = language_model(accelerated=True).eval()
    with torch.no_grad():
        new(tokens)
        expected = copy.deepcopy(new)(tokens)[0]
        output = new.to(dtype)(tokens)[0]
    assert output.dtype == dtype
    # The state has come along: from zeros the output would be another one.
    torch.testing.assert_close(output.float(), expected, rtol=2e-2, atol=2e-3)


def test_float32_after_autocast(tokens):
    old = language_model(accelerated=False).eval()
    with pytest.raises(RuntimeError), torch.no_grad():
        # A CPU without bfloat16 instructions fails here already, others at the second forward.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            old(tokens)
        old(tokens)
    new = language_model(accelerated=True).eval()
    with torch.no_grad():
        new(tokens)
        expected = copy.deepcopy(new)(tokens)[0]
        new.reset()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            new(tokens)
        output = new(tokens)[0]
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-3)


def test_a_weight_p_of_zero(tokens):
    old = language_model(accelerated=False, weight_p=0.0)
    names = list(old.state_dict())
    old(tokens)
    assert len(old.state_dict()) == len(names) + 2
    with pytest.raises(TypeError, match=r"cannot assign .* as parameter 'weight_hh_l0'"):
        old.reset()
    new = language_model(accelerated=True, weight_p=0.0)
    for mode in (True, False, True):
        new.train(mode)
        assert new(tokens)[0].isfinite().all()
        new.reset()
    assert list(new.state_dict()) == names


def test_training_evaluation_and_training_again(tokens):
    new = language_model(accelerated=True)
    weights = {name: value.clone() for name, value in new.state_dict().items()}
    for mode in (True, False, True, False):
        new.train(mode)
        outputs = [new(tokens)[0], new.reset() or new(tokens)[0], new.reset() or new(tokens)[0]]
        assert torch.equal(outputs[1], outputs[2]) != mode
    for name, value in new.state_dict().items():
        assert torch.equal(value, weights[name])


def test_the_second_direction_is_dropped(tokens):
    zeros = {}
    for accelerated in (False, True):
        model = language_model(accelerated=accelerated, bidir=True, weight_p=0.5)
        model(tokens)[0].square().sum().backward()
        grad = model[0].rnns[0].module.weight_hh_l0_reverse.grad
        zeros[accelerated] = (grad == 0).double().mean()
    assert zeros[False] == 0 and 0.4 < zeros[True] < 0.6


def test_the_recurrent_layers_compile_in_one_piece(tokens):
    x = torch.randn(3, 5, EMB)
    old = language_model(accelerated=False)[0].rnns[0].eval()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(old, fullgraph=True, backend="eager")(x)
    torch._dynamo.reset()
    new = language_model(accelerated=True)[0].rnns[0]
    compiled = torch.compile(new, fullgraph=True, backend="eager")
    hx = (torch.zeros(1, 3, HIDDEN), torch.zeros(1, 3, HIDDEN))
    torch.testing.assert_close(compiled(x, hx, seed=7)[0], new(x, hx, seed=7)[0])
