"""The caller's program is as it was after a call, and how it is set does not matter to the call."""

import asyncio
import contextvars
import csv
import functools
import os
import random
import threading
import warnings

import numpy as np
import public_calls
import pytest
import torch
from native import AUTO
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import ulmfit_fast as uf
from ulmfit_fast.data.reading import records
from ulmfit_fast.system import scoped
from ulmfit_fast.system.seeds import draw_seed, own_generators, seeds_from

LAYER, X = uf.LSTM(3, 4), torch.ones(2, 2, 3)


def chosen():
    return uf.backend.explain(LAYER, X).partition(":")[0]


@pytest.fixture(autouse=True)
def _no_choice_is_left():
    yield
    assert chosen() == AUTO and scoped.backend is None and scoped.seed_source is None


def in_threads(*functions):
    """Run functions side by side and raise what one of them raised."""
    raised = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


def test_threads_choose_for_themselves():
    entered, first_left = threading.Barrier(3), threading.Event()

    def first():
        with uf.backend.use("reference"):
            entered.wait(20)
            assert chosen() == "reference"
        first_left.set()
        assert chosen() == AUTO

    def second():
        with uf.backend.use("eager"):
            entered.wait(20)
            assert first_left.wait(20) and chosen() == "eager"

    def outside():
        entered.wait(20)
        assert chosen() == AUTO

    in_threads(first, second, outside)


def test_tasks_choose_for_themselves():
    async def task(name, mine, other):
        with uf.backend.use(name):
            mine.set()
            await other.wait()
            return chosen()

    async def all_of_them():
        a, b = asyncio.Event(), asyncio.Event()
        with uf.backend.use("eager"):
            late = asyncio.create_task(task_of_the_block(a))
        found = await asyncio.gather(task("reference", a, b), task("eager", b, a), late)
        return [*found, chosen()]

    async def task_of_the_block(event):
        await event.wait()
        return chosen()

    assert asyncio.run(all_of_them()) == ["reference", "eager", "eager", AUTO]


def test_generators_that_end_in_any_order_leave_nothing_behind():
    def choosing(name):
        with uf.backend.use(name):
            yield chosen()
            yield chosen()

    first, second = choosing("reference"), choosing("eager")
    assert [next(first), next(second)] == ["reference", "eager"]
    first.close()
    assert [next(second), chosen()] == ["eager", "eager"]
    second.close()
    assert chosen() == AUTO
    elsewhere = choosing("reference")
    next(elsewhere)
    in_threads(elsewhere.close)


def test_an_exception_ends_the_choice():
    with pytest.raises(ZeroDivisionError), uf.backend.use("eager"):
        with uf.backend.use("auto"):
            assert chosen() == AUTO
        with pytest.raises(KeyError), uf.backend.use("reference"):
            raise KeyError
        assert chosen() == "eager"
        raise ZeroDivisionError


def test_the_choice_holds_for_the_backward_of_what_ran_inside():
    layer, x = uf.LSTM(3, 4).double(), X.double().requires_grad_()
    with uf.backend.use("reference"):
        output, _ = layer(x)
    (grad,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    assert torch.autograd.grad(grad.sum(), x)[0].abs().sum() > 0  # of the others none has a second


def test_what_a_backward_runs_again_takes_the_choice_of_its_block():
    ran = []

    def layer(x):
        ran.append(chosen())
        return LAYER(x)[0]

    x = X.clone().requires_grad_()
    with uf.backend.use("reference"):
        output = checkpoint(layer, x, use_reentrant=False)
        output.sum().backward()
    assert ran == ["reference"] * 2


def test_a_thread_of_autograd_takes_the_choice_of_the_backward():
    """A GPU's backward runs in such a thread, where PyTorch leaves the context of the caller."""
    with uf.backend.use("reference"):
        context = contextvars.copy_context()

    def of_autograd():
        torch._C._stash_obj_in_tls("context", context)
        assert chosen() == "reference"
        with uf.backend.use("eager"):
            assert chosen() == "eager"
        torch._C._stash_obj_in_tls("context", None)
        assert chosen() == AUTO

    in_threads(of_autograd)


def block_inside(x):
    with uf.backend.use("reference"):
        output, _ = LAYER(x)
    return output, LAYER(x)[0]


def block_around(x):
    return uf.functional.lstm(x, None, LAYER.weight_ih_l0, LAYER.weight_hh_l0)[0]


@pytest.mark.parametrize("function", [block_inside, block_around])
def test_what_is_compiled_in_a_block_is_for_that_choice(function):
    torch._dynamo.reset()
    count = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, backend=count, fullgraph=True)

    def ours():
        name = "lstm_native" if AUTO == "native" else "lstm_eager"
        return sum(name in str(node.target) for node in count.graphs[-1].graph.nodes)

    compiled(X)
    assert (count.frame_count, ours()) == (1, 1)
    with uf.backend.use("reference"):
        compiled(X)
        assert (count.frame_count, ours()) == (2, 0)
    compiled(X)
    in_threads(lambda: compiled(X))
    assert count.frame_count == 2
    with uf.backend.use("reference"):
        compiled(X)
        assert count.frame_count == 2


def test_seeds_from_elsewhere_are_for_one_thread():
    with seeds_from(lambda: torch.tensor(7)):
        assert draw_seed() == 7
        drawn = []
        in_threads(lambda: drawn.append(draw_seed()))
        assert drawn != [7]


def generators():
    """Return where every global generator is."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()


def move_generators(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


calls = pytest.mark.parametrize("call", public_calls.CALLS, ids=lambda call: call.__name__)


@calls
def test_the_generators_are_as_they_were(call):
    public_calls.start()
    found = []
    for seed in (1, 2):
        move_generators(seed)
        before = generators()
        found.append(public_calls.result(call))
        if call not in public_calls.DRAWING:
            assert generators() == before
    assert found[0] == found[1]


@functools.cache
def usual(call):
    return public_calls.result(call)


@calls
@pytest.mark.parametrize("default", ["float64", "bfloat16", "meta"])
def test_the_default_dtype_and_device_change_nothing(call, default):
    expected = usual(call)
    try:
        if default == "meta":
            torch.set_default_device(default)
        else:
            torch.set_default_dtype(getattr(torch, default))
        found = public_calls.result(call)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert found == expected


def test_layers_of_the_user_have_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        layer, theirs = uf.LSTM(3, 4), torch.nn.LSTM(3, 4)
        assert layer.weight_ih_l0.dtype == theirs.weight_ih_l0.dtype
        assert layer(torch.ones(2, 2, 3))[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_texts_that_draw_go_on_drawing():
    """What the caller's own code draws while it is read is not taken back."""

    def texts():
        for text in public_calls.TEXTS:
            torch.rand(1)
            yield text

    torch.manual_seed(1)
    for _ in texts():
        pass
    expected = torch.rand(1)
    torch.manual_seed(1)
    learner = uf.ULMFiT(**public_calls.SIZES)
    learner.fit_classifier(texts(), public_calls.LABELS, epochs=1)
    assert torch.equal(torch.rand(1), expected)


def test_an_error_gives_the_generators_back():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    learner = uf.ULMFiT(**public_calls.SIZES)
    with pytest.raises(FloatingPointError):
        learner.fit_classifier(public_calls.TEXTS, public_calls.LABELS, epochs=9, lr=1e38)
    assert torch.equal(torch.get_rng_state(), before)


def test_blocks_within_blocks_go_on_where_they_were():
    with own_generators(1):
        expected = torch.rand(2)
    with own_generators(1):
        found = [torch.rand(1)]
        with own_generators(1):
            torch.rand(7)
        found.append(torch.rand(1))
    assert torch.equal(torch.cat(found), expected)


def test_a_generator_is_seeded_as_by_hand():
    torch.manual_seed(2**63 + 1)
    expected = torch.rand(3)
    with own_generators(2**63 + 1):
        assert torch.equal(torch.rand(3), expected)


def with_filters(inside):
    with scoped.ignoring(UserWarning):
        inside()


def with_field_limit(inside):
    def lines():
        inside()
        yield "a,b"

    records._next_row(csv.reader(lines()))


def with_generators(inside):
    with own_generators(5):
        torch.rand(3)
        inside()
        with own_generators():
            torch.rand(3)


@pytest.mark.parametrize("change", [with_generators, with_filters, with_field_limit])
def test_threads_that_overlap_put_back_what_the_process_had(change):
    def state():
        limits = csv.field_size_limit(), torch.get_rng_state().tolist()
        return list(warnings.filters), limits

    before = state()
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def inside_first():
        first_is_in.set()
        second_is_in.wait(0.5)  # it does not come in where one waits for the other

    def first():
        change(inside_first)
        first_is_out.set()

    def inside_second():
        second_is_in.set()
        first_is_out.wait(20)

    def second():
        first_is_in.wait(20)
        change(inside_second)

    in_threads(first, second)
    assert state() == before


def test_the_umask_is_never_touched(tmp_path, monkeypatch):
    mask = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)
        for _ in range(2):
            public_calls.start()[0].save(tmp_path / "m")
    finally:
        monkeypatch.undo()
        os.umask(mask)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o750
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "m").iterdir()} == {0o640}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
