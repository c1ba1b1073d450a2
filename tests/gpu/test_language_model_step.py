"""The language model's step on a device: its values, no waiting, and the captured graph."""

import math

import pytest
import torch
import torch.nn.functional as F
from rehearsal import DEVICE, REHEARSAL, never_waiting, rehearsed, sized
from rounding import errors, reach

from ulmfit_fast import backend
from ulmfit_fast.functional import dropout
from ulmfit_fast.functional.cross_entropy import linear_cross_entropy
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.precision import Precision
from ulmfit_fast.training.readings import LossReadings

STEPS, BATCH_SIZE, WIDTH, WORDS = sized((70, 64, 400, 60_008), (3, 2, 5, 17))
HALF = torch.float16 if REHEARSAL else torch.bfloat16
dtypes = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)


@pytest.fixture(autouse=True)
def kernels():
    """On a CPU the kernels run when they are asked for by name."""
    with backend.use("triton" if REHEARSAL else "auto"):
        yield


@rehearsed
@dtypes
def test_dropouts_are_those_of_the_cpu(dtype):
    x = torch.randn(STEPS, BATCH_SIZE, WIDTH, dtype=dtype)
    tokens = torch.randint(WORDS, (STEPS, BATCH_SIZE))
    weight = torch.randn(WORDS, WIDTH, dtype=dtype)
    seed, other = torch.tensor(2**40 + 17), torch.tensor(5)
    with backend.use("eager"):
        wanted = dropout.locked_dropout(x, seed, 0.3)
        looked_up = dropout.embed_dropped(weight, tokens, seed, 0.1, other, 0.4)
    got = dropout.locked_dropout(x.to(DEVICE), seed, 0.3).cpu()
    assert torch.equal(got == 0, wanted == 0)
    torch.testing.assert_close(got, wanted)
    got = dropout.embed_dropped(weight.to(DEVICE), tokens.to(DEVICE), seed, 0.1, other, 0.4).cpu()
    assert torch.equal(got == 0, looked_up == 0)
    torch.testing.assert_close(got, looked_up)


@rehearsed
@dtypes
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_decoder_is_as_near_to_float64_as_that_with_all_logits(dtype, smoothing):
    rows = STEPS * BATCH_SIZE
    values = torch.randn(rows, WIDTH), 0.05 * torch.randn(WORDS, WIDTH), torch.randn(WORDS)
    targets = torch.randint(WORDS, (rows,), device=DEVICE)
    targets[::7] = -100
    inputs = [value.to(DEVICE, dtype).requires_grad_() for value in values]
    truth = [value.detach().double().requires_grad_() for value in inputs]

    def results(loss, tensors):
        return [loss.detach(), *torch.autograd.grad(loss, tensors)]

    def in_float64(operands):
        leaves = [value.requires_grad_() for value in operands]
        return results(F.cross_entropy(F.linear(*leaves), targets, **options), leaves)

    options = {"label_smoothing": smoothing}
    wanted = results(F.cross_entropy(F.linear(*truth), targets, **options), truth)
    plain = results(F.cross_entropy(F.linear(*inputs).float(), targets, **options), inputs)
    ours = results(linear_cross_entropy(*inputs, targets, **options), inputs)
    bounds = reach(in_float64, inputs, terms=max(rows, WIDTH))
    for name, our, their, bound in zip(
        ("loss", "x", "weight", "bias"), errors(ours, wanted), errors(plain, wanted), bounds,
        strict=True,
    ):  # fmt: skip
        assert our <= max(2 * their, bound), name


def make_step(seed=1, autocast=None, **options):
    torch.manual_seed(seed)
    sizes = sized({}, {"emb_size": 6, "hidden_size": 16, "num_layers": 2})
    model = LanguageModel(AWDLSTMConfig.language_model(sized(15_008, 17), **sizes)).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    objective = Objective(clip=0.25, precision=Precision(autocast))
    return LanguageModelStep(model, optimizer, objective=objective, **options)


def batch(steps, seed):
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, sized(15_008, 17), (steps + 1, BATCH_SIZE), generator=drawn).to(DEVICE)
    return ids[:-1], ids[1:]


@rehearsed
def test_a_loss_that_is_not_finite_changes_no_parameter():
    step, readings = make_step(), LossReadings()
    step.waits = False
    list(readings.add(step(*batch(STEPS, 0)), [1e-3], 1))
    before = [p.detach().clone() for p in step.model.parameters()]
    handle = step.model.decoder.register_forward_hook(lambda *args: args[2] * math.nan)
    list_of_losses = [step(*batch(STEPS, 1))]
    handle.remove()
    list_of_losses.append(step(*batch(STEPS, 2)))
    assert all(torch.equal(p, b) for p, b in zip(step.model.parameters(), before, strict=True))
    with pytest.raises(FloatingPointError, match="at step 1 "):
        for loss in list_of_losses:
            list(readings.add(loss, [1e-3], 1))
        list(readings.rest())


@pytest.mark.gpu
def test_a_step_never_waits_for_the_device():
    step = make_step(autocast=torch.bfloat16)
    for n in range(3):
        step(*batch(STEPS, n))
    inputs, targets = batch(STEPS, 3)
    with never_waiting():
        step(inputs, targets)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_a_captured_step_trains_as_one_that_is_not(autocast):
    results = []
    for capture in (False, True):
        step = make_step(autocast=autocast, capture=capture)
        torch.manual_seed(4)
        losses = []
        for n, steps in enumerate((35, 35, 35, 35, 35, 20, 35, 35)):
            if n == 6:
                step.reset()
            losses.append(step(*batch(steps, n)).total)
        assert (step._graph is not None) == capture
        results.append((torch.stack(losses), [p.detach() for p in step.model.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    for eager, captured in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(captured, eager, rtol=1e-3, atol=1e-5)
