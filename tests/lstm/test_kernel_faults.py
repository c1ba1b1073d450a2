"""What a fault in the middle of a step leaves behind, on the backends that are PyTorch's."""

import copy
import sys
import threading

import pytest
import torch
from failing_calls import (
    MadeUp,
    assert_nothing_is_left_over,
    memory_full_of,
    out_of_memory,
)
from small_models import CONFIG

import ulmfit_fast as uf
from ulmfit_fast import backend
from ulmfit_fast.kernels import tiles
from ulmfit_fast.kernels.device import Device
from ulmfit_fast.nn import AWDLSTM, LanguageModel, TextClassifier
from ulmfit_fast.system import seeds
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.objective import Objective

BACKENDS = ["eager", "torch", "reference"]
backends = pytest.mark.parametrize("name", BACKENDS)
T, B = 4, 3


def make_step(seed=0):
    torch.manual_seed(seed)
    model = LanguageModel(CONFIG)
    # The fused one calls nothing by which `out_of_memory` could stop it half way.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    return LanguageModelStep(model, optimizer, objective=Objective(clip=0.25))


def batch(number):
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(2, 14, (T + 1, B), generator=generator)
    return ids[:-1], ids[1:]


def everything(step):
    """Return copies of all that a step may change, the generator's state with them."""
    moments = [value for state in step.optimizer.state.values() for value in state.values()]
    carried = [tensor for pair in step.state or [] for tensor in pair]
    tensors = [*step.model.state_dict().values(), *moments, *carried, torch.get_rng_state()]
    return [tensor.clone() for tensor in tensors]


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@backends
def test_out_of_memory_at_any_call_leaves_a_step_that_can_be_taken_again(name):
    with backend.use(name):
        never_failed = make_step()
        for number in range(3):
            never_failed(*batch(number))
        expected = everything(never_failed)

        step = make_step()
        step(*batch(0))
        before = everything(step)
        with out_of_memory() as calls:
            step.forward_backward(*batch(1), step.state)
        forwards = len(calls)
        with out_of_memory() as calls, torch.no_grad():
            step.model.loss(*batch(1), step.state)
        assert 20 < len(calls) < forwards - 10
    for at in range(forwards):
        torch.set_rng_state(before[-1])
        with backend.use(name), out_of_memory(at), pytest.raises(MadeUp, match=f"at call {at},"):
            step(*batch(1))
        assert_nothing_is_left_over()
        torch.set_rng_state(before[-1])
        assert step.steps == 1
        assert_equal(everything(step), before)
    with backend.use(name):
        for number in (1, 2):
            step(*batch(number))
    assert_equal(everything(step), expected)


@backends
def test_a_classifier_that_ran_out_of_memory_goes_on(name):
    """Of its windows those before the last tokens are without a graph: that is switched back."""
    torch.manual_seed(0)
    model = TextClassifier(AWDLSTM(CONFIG), 2, bptt=3, max_len=4)
    tokens, lengths = torch.randint(2, 14, (11, B)), torch.tensor([11, 8, 10])

    def results(model):
        torch.manual_seed(5)
        logits = model(tokens, lengths)
        return [logits.detach(), *torch.autograd.grad(logits.square().sum(), model.parameters())]

    with backend.use(name):
        # BatchNorm counts a step whose forward was whole, so each failure has a copy of its own.
        expected = results(copy.deepcopy(model))
        tried = copy.deepcopy(model)
        with out_of_memory() as calls:
            results(tried)
        for at in range(0, len(calls), 17):
            tried = copy.deepcopy(model)
            with out_of_memory(at), pytest.raises(MadeUp):
                results(tried)
            assert torch.is_grad_enabled()
            tried.load_state_dict(model.state_dict())
            assert_equal(results(tried), expected)
    assert_nothing_is_left_over()


def layer_results(name, x, **settings):
    torch.manual_seed(1)
    return results_of(uf.LSTM(5, 6, weight_p=0.5, backend=name, **settings), x, seed=3)


def results_of(lstm, x, seed):
    x = x.detach().requires_grad_()
    output, (h, c) = lstm(x, seed=seed)
    loss = output.square().sum() + h.sum() + c.sum()
    return [output, h, c, *torch.autograd.grad(loss, [x, *lstm.parameters()])]


@backends
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30], ids=str)
def test_what_was_in_memory_before_does_not_matter(name, value):
    x = torch.randn(T, B, 5)
    gate_p = 0.0 if name == "torch" else 0.2
    with memory_full_of(0.0):
        expected = layer_results(name, x, gate_p=gate_p, bidirectional=True, num_layers=2)
    with memory_full_of(value):
        got = layer_results(name, x, gate_p=gate_p, bidirectional=True, num_layers=2)
    assert all(part.isfinite().all() for part in got)
    assert_equal(got, expected)


@backends
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("where", ["x", "h0", "c0"])
def test_an_illegal_value_stays_in_its_row(name, value, where):
    torch.manual_seed(2)
    lstm = uf.LSTM(5, 6, weight_p=0.5, backend=name)
    healthy = {"x": torch.randn(T, B, 5), "h0": torch.randn(1, B, 6), "c0": torch.randn(1, B, 6)}
    ill = {key: tensor.clone() for key, tensor in healthy.items()}
    ill[where][:, 1] = value
    rows = [0, 2]
    results = []
    for given in (healthy, ill):
        x = given["x"].requires_grad_()
        output, (h, c) = lstm(x, (given["h0"], given["c0"]), seed=3)
        parts = [output[:, rows], h[:, rows], c[:, rows]]
        (grad,) = torch.autograd.grad(sum(part.square().sum() for part in parts), x)
        results.append([*parts, grad[:, rows]])
    if value != value:
        # Nor does it come out as if nothing had happened. An infinite one may saturate its gates.
        assert output[:, 1].isnan().any() and c[:, 1].isnan().all()
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected)


@backends
def test_layers_in_two_threads_give_what_they_give_alone(name):
    """Each call has a seed of its own here; those drawn in threads come in any order."""
    gate_p = 0.0 if name == "torch" else 0.2
    inputs = [torch.randn(T, B, 5) for _ in range(2)]

    def train(number):
        lstm, x = models[number], inputs[number]
        return [results_of(lstm, x, seed=100 * number + turn) for turn in range(15)]

    torch.manual_seed(1)
    models = [uf.LSTM(5, 6, weight_p=0.5, gate_p=gate_p, backend=name) for _ in inputs]
    alone = [train(number) for number in range(2)]
    together, start = [None, None], threading.Barrier(2)

    def work(number):
        start.wait()
        together[number] = train(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for got, expected in zip(together, alone, strict=True):
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other)


def test_seeds_drawn_in_threads_are_those_of_one_thread_in_some_order():
    torch.manual_seed(4)
    alone = sorted(int(seeds.draw_seed()) for _ in range(400))
    torch.manual_seed(4)
    drawn = []

    def draw():
        drawn.extend(int(seeds.draw_seed()) for _ in range(100))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(drawn)) == 400 and sorted(drawn) == alone


# Slices of an H100 and an H200 (1g to 7g), and what lies between.
COUNTS = [*range(1, 133), 148, 304]


@pytest.mark.parametrize("shared", [49_152, 101_376, 166_912, 232_448])
@pytest.mark.parametrize("hidden_size", [17, 128, 400, 1150, 1152, 2048])
def test_no_launch_is_larger_than_a_slice_of_a_device(shared, hidden_size):
    forms = {}
    for count in COUNTS:
        device = Device("cuda", (9, 0), count, shared)
        for batch_size in (1, 20, 64, 300):
            plan = tiles.choose(
                device, batch_size=batch_size, hidden_size=hidden_size, dtype=torch.bfloat16
            )
            forms[count, batch_size] = plan.form
            named = tiles.choose(
                device,
                batch_size=batch_size,
                hidden_size=hidden_size,
                dtype=torch.bfloat16,
                form="persistent",
            )
            assert plan.form == "persistent" or plan.reason
            assert plan.forward_step.rows and plan.backward_step.rows
            if named.form is None:
                assert plan.form == "stepwise" and named.reason == plan.reason
                continue
            forward, backward = named.forward, named.backward
            slices = -(-hidden_size // forward.units)
            parts = -(-hidden_size // backward.columns) * backward.k_parts
            for tile, blocks in ((forward, slices), (backward, parts)):
                assert 1 <= tile.groups and blocks * tile.groups <= count
                assert tile.stages >= 1 and not tile.resident
                # No copy of less than 16 bytes a thread: L1 would serve it.
                assert 2 * tile.rows * tile.block_k >= 16 * 32 * tile.warps
                # All that one block holds at once.
                width = 4 * tile.units if tile is forward else tile.columns
                held = tile.stages * (width + tile.rows)
                assert 2 * tile.block_k * held <= shared
            if count < max(slices, parts):
                pytest.fail(f"{count} multiprocessors cannot run {max(slices, parts)} blocks")
    # More of a device never takes the better form away.
    for batch_size in (1, 64):
        found = [forms[count, batch_size] == "persistent" for count in COUNTS]
        assert found == sorted(found)


@pytest.mark.parametrize(
    ("count", "form"),
    [
        (16, "stepwise"),
        (26, "stepwise"),
        (60, "persistent"),
        (72, "persistent"),
        (132, "persistent"),
    ],
)
def test_a_slice_of_an_h200_goes_stepwise_at_the_usual_size(count, form):
    device = Device("cuda", (9, 0), count, 232_448)
    plan = tiles.choose(device, batch_size=64, hidden_size=1152, dtype=torch.bfloat16)
    assert plan.form == form
    if form == "stepwise":
        assert plan.reason == (
            f"H = 1152 needs 36 blocks at once, the device has {count} multiprocessors"
        )


def test_a_device_is_described_anew_at_each_call(monkeypatch):
    """A slice is what PyTorch says at the call, not at the import."""
    asked = []

    def described(device):
        asked.append(device)
        return Device("cuda", (9, 0), 16, 232_448)

    monkeypatch.setattr("ulmfit_fast.kernels.device.describe_device", described)
    request = backend.Request(torch.device("cuda"), torch.bfloat16, hidden_size=1152)
    plan = backend.kernel_plan(None, request)
    assert asked and plan.form == "stepwise" and "the device has 16" in plan.reason
