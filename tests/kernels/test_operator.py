"""`lstm_triton` as an operator of PyTorch."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 in a process of its own", allow_module_level=True)

from comparison import tensors

from ulmfit_fast.kernels import lstm_operator, weight_drop
from ulmfit_fast.kernels.lstm_operator import KEEP_CELLS, KEEP_GATES, KEEP_NOTHING, lstm_triton


def arguments(
    *, grad=True, lengths=None, stream=0, bias=True, steps=3, keep=KEEP_GATES, form="auto"
):
    inputs = [t.requires_grad_(grad) for t in tensors(steps, 2, 5, 16, torch.float32)[:6]]
    if not bias:
        inputs[5] = None
    drops = ([0.5] * 4, [0.1, 0.0, 0.2, 0.0], False, stream)
    return (*inputs, lengths, torch.tensor(7), *drops, form, keep)


def close(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stream": 1, "lengths": torch.tensor([2, 1])},
        {"bias": False, "keep": KEEP_CELLS, "form": "persistent"},
        {"grad": False, "keep": KEEP_NOTHING},
        {"steps": 0},
        {"steps": 0, "stream": 3, "grad": False, "keep": KEEP_NOTHING},
    ],
    ids=str,
)
def test_opcheck(settings):
    torch.library.opcheck(lstm_triton, arguments(**{"steps": 2, **settings}))


def test_opcheck_of_the_dropped_weight():
    weight = torch.randn(64, 16, requires_grad=True)
    torch.library.opcheck(
        weight_drop.drop_weight_triton, (weight, torch.tensor(3), [0.5, 0.0, 1.0, 0.2], 1)
    )


@pytest.mark.parametrize("form", ["stepwise", "persistent"])
@pytest.mark.parametrize("stream", [0, 1])
def test_what_is_kept_does_not_change_what_comes_out(form, stream):
    lengths = torch.tensor([3, 2])
    results = [
        lstm_triton(*arguments(grad=False, keep=keep, form=form, stream=stream, lengths=lengths))
        for keep in (KEEP_NOTHING, KEEP_CELLS, KEEP_GATES)
    ]
    for other in results[:2]:
        for a, b in zip(other[:3], results[2][:3], strict=True):
            assert torch.equal(a, b)
    nothing, cells, gates = ([part.numel() for part in result[3:]] for result in results)
    assert nothing == [0, 0]
    assert cells == [0, 4 * 2 * 16]
    assert gates == [3 * 2 * 64, 4 * 2 * 16]


@pytest.mark.parametrize("form", ["stepwise", "persistent"])
def test_gates_computed_again_give_the_same_gradients(form):
    results = []
    for keep in (KEEP_CELLS, KEEP_GATES):
        args = arguments(keep=keep, form=form, stream=1, lengths=torch.tensor([3, 1]))
        output, h_n, c_n, *_ = lstm_triton(*args)
        loss = output.square().sum() + h_n.sum() + c_n.square().sum()
        results.append(torch.autograd.grad(loss, args[:6]))
    close(*results)


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize("keep", [KEEP_CELLS, KEEP_GATES])
def test_no_steps_leave_the_state_as_it_is(stream, keep):
    args = arguments(steps=0, stream=stream, keep=keep)
    output, h_n, c_n, *_ = lstm_triton(*args)
    assert output.shape == (0, 2, 16)
    assert torch.equal(h_n, args[1]) and torch.equal(c_n, args[2])
    grads = torch.autograd.grad((2 * h_n + 3 * c_n).sum(), args[:6])
    assert (grads[1] == 2).all() and (grads[2] == 3).all()
    assert not any(grad.any() for grad in (grads[0], *grads[3:]))


def test_what_is_frozen_gets_no_gradient():
    everything = arguments()
    expected = torch.autograd.grad(lstm_triton(*everything)[0].square().sum(), everything[:6])
    for trainable in [[0, 3], [1], [2, 5], [4]]:
        args = arguments(grad=False)
        for index in trainable:
            args[index].requires_grad_()
        lstm_triton(*args)[0].square().sum().backward()
        assert [i for i in range(6) if args[i].grad is not None] == trainable
        close([args[i].grad for i in trainable], [expected[i] for i in trainable])


def test_second_derivatives_are_refused():
    args = arguments()
    (grad,) = torch.autograd.grad(lstm_triton(*args)[0].sum(), args[0], create_graph=True)
    with pytest.raises(NotImplementedError, match='use backend="reference"'):
        grad.sum().backward()


def test_no_mask_and_no_dropped_weight_is_saved():
    args = arguments()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        lstm_triton(*args)
    own = {t.data_ptr() for t in args if isinstance(t, torch.Tensor)}
    shapes = [tuple(t.shape) for t in saved if t.data_ptr() not in own]
    assert sorted(shapes) == sorted([(3, 2, 16), (3, 2, 64), (4, 2, 16)])


def test_the_operator_refuses_what_it_cannot_run():
    wide = [t.double() for t in tensors(3, 2, 5, 16, torch.float32)[:6]]
    with pytest.raises(RuntimeError, match=r"cannot run this call: .* not float64"):
        lstm_triton(*wide, *arguments()[6:])


def test_a_refused_launch_goes_to_the_stepwise_form_unless_persistent_was_named(monkeypatch):
    def refuse(*args):
        raise lstm_operator.LaunchRefused("too many blocks")

    plan = lstm_operator.tiles.choose

    def persistent(*args, **settings):
        return plan(*args, **{**settings, "form": "persistent"})

    expected = lstm_triton(*arguments(form="stepwise"))
    monkeypatch.setattr(lstm_operator.tiles, "choose", persistent)
    monkeypatch.setattr(lstm_operator.forward_persistent, "run", refuse)
    monkeypatch.setattr(lstm_operator.backward_persistent, "run", refuse)
    args = arguments(form="auto")
    result = lstm_triton(*args)
    assert torch.equal(result[0], expected[0])
    result[0].sum().backward()
    assert args[4].grad.abs().sum() > 0
    with pytest.raises(lstm_operator.LaunchRefused, match="too many blocks"):
        lstm_triton(*arguments(form="persistent"))
