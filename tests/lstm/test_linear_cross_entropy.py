"""The decoder with its loss in chunks: value, gradients, memory and refusals."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from rounding import errors, reach
from torch.utils._python_dispatch import TorchDispatchMode

from ulmfit_fast import backend
from ulmfit_fast.functional.cross_entropy import _even_chunks, linear_cross_entropy


def problem(rows=37, width=8, classes=50, dtype=torch.float64, bias=True):
    x = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(classes, width, dtype=dtype, requires_grad=True)
    b = torch.randn(classes, dtype=dtype, requires_grad=True) if bias else None
    targets = torch.randint(classes, (rows,))
    targets[::5] = -100
    return x, weight, b, targets


def gradients(loss, *inputs):
    return torch.autograd.grad(3 * loss, [t for t in inputs if t is not None])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("chunk_rows", [1, 10, 37, 1000, None])
def test_value_and_gradients_are_those_of_the_logits(bias, smoothing, chunk_rows):
    *inputs, targets = problem(bias=bias)
    loss = linear_cross_entropy(*inputs, targets, label_smoothing=smoothing, chunk_rows=chunk_rows)
    expected = F.cross_entropy(F.linear(*inputs), targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    for got, want in zip(gradients(loss, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        without = linear_cross_entropy(
            *inputs, targets, label_smoothing=smoothing, chunk_rows=chunk_rows
        )
    torch.testing.assert_close(without, expected.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_only_what_requires_a_gradient_gets_one(needed):
    *inputs, targets = problem()
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(index == needed)
    linear_cross_entropy(*inputs, targets, chunk_rows=10).backward()
    assert [tensor.grad is not None for tensor in inputs] == [n == needed for n in range(3)]


def test_where_no_target_counts_the_loss_and_gradients_are_zero():
    *inputs, targets = problem()
    loss = linear_cross_entropy(*inputs, targets.fill_(7), ignore_index=7)
    assert loss.item() == 0.0
    assert not any(grad.any() for grad in gradients(loss, *inputs))


def test_no_rows():
    *inputs, targets = problem(rows=0)
    loss = linear_cross_entropy(*inputs, targets)
    assert loss.item() == 0.0
    assert [tuple(grad.shape) for grad in gradients(loss, *inputs)] == [(0, 8), (50, 8), (50,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_at_most_twice_that_of_the_logits(dtype):
    *inputs, targets = problem(rows=200, width=32, dtype=dtype)

    def in_float64(operands):
        leaves = [operand.requires_grad_() for operand in operands]
        return gradients(F.cross_entropy(F.linear(*leaves), targets), *leaves)

    truth = in_float64([t.detach().double() for t in inputs])
    plain = gradients(F.cross_entropy(F.linear(*inputs).float(), targets), *inputs)
    ours = gradients(linear_cross_entropy(*inputs, targets, chunk_rows=48), *inputs)
    # A gradient of the weight sums over 200 rows.
    bounds = reach(in_float64, inputs, terms=200)
    for name, mine, theirs, bound in zip(
        ("x", "weight", "bias"), errors(ours, truth), errors(plain, truth), bounds, strict=True
    ):
        assert mine <= max(2 * theirs, bound), name


def test_autocast_keeps_the_weight_gradient_in_float32():
    *inputs, targets = problem(rows=200, width=32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(*inputs, targets, chunk_rows=64)
        plain = F.cross_entropy(F.linear(*inputs), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=2e-2, atol=2e-2)
    for got, want in zip(gradients(loss, *inputs), gradients(plain, *inputs), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2 * want.abs().max().item())


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_the_logits_are_never_held_at_once():
    *inputs, targets = problem(rows=1000, classes=500, dtype=torch.float32)
    with Largest() as seen:
        linear_cross_entropy(*inputs, targets, chunk_rows=100).backward()
    assert seen.elements <= 100 * 500
    with Largest() as seen:
        F.cross_entropy(F.linear(*inputs), targets).backward()
    assert seen.elements == 1000 * 500


@pytest.mark.parametrize(
    ("rows", "classes", "gib", "expected"),
    [
        (1120, 15_008, None, 560),
        (4480, 60_008, None, 560),
        (4480, 60_008, 8, 1120),
        (4480, 60_008, 24, 4480),
        (4480, 60_008, 2, 560),
        (100, 60_008, None, 100),
        (4480, 17, None, 4480),
        (0, 17, 8, 1),
    ],
)
def test_chunks_are_even_and_few(rows, classes, gib, expected, monkeypatch):
    device = torch.device("cpu" if gib is None else "cuda")
    memory = SimpleNamespace(total_memory=(gib or 0) << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    assert _even_chunks(rows, classes, torch.bfloat16, device) == expected


@pytest.mark.parametrize("needs", [[True, True, True], [False, True, False], [False] * 3])
def test_opcheck(needs):
    *inputs, targets = problem()
    for tensor, need in zip(inputs, needs, strict=True):
        tensor.requires_grad_(need)
    operator = torch.ops.ulmfit_fast.linear_cross_entropy.default
    arguments = (*inputs, targets, -100, 0.1, 10, torch.float64, needs)
    torch.library.opcheck(operator, arguments)


def test_compiles_whole():
    *inputs, targets = problem()
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    loss, expected = compiled(*inputs, targets), linear_cross_entropy(*inputs, targets)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(gradients(loss, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_second_derivative_is_refused_and_reference_has_it():
    *inputs, targets = problem()
    x = inputs[0]
    (grad,) = torch.autograd.grad(linear_cross_entropy(*inputs, targets), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        grad.square().sum().backward()
    with backend.use("reference"):
        (grad,) = torch.autograd.grad(linear_cross_entropy(*inputs, targets), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_retained_graph_gives_the_same_gradients_again():
    *inputs, targets = problem()
    loss = linear_cross_entropy(*inputs, targets)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    again = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"targets": torch.zeros(37)}, TypeError, "int64"),
        ({"targets": torch.zeros(36, dtype=torch.int64)}, ValueError, r"\(37,\)"),
        ({"targets": torch.full((37,), 50)}, ValueError, "50"),
        ({"x": torch.zeros(37, 9, dtype=torch.float64)}, ValueError, r"\(37, 9\)"),
        ({"x": torch.zeros(37, 8, dtype=torch.int64)}, TypeError, "int64"),
        ({"bias": torch.zeros(49)}, ValueError, r"\(50,\)"),
        ({"chunk_rows": 0}, ValueError, "chunk_rows"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing"),
    ],
)
def test_bad_input_is_named(change, error, words):
    x, weight, bias, targets = problem()
    arguments = {"x": x, "weight": weight, "bias": bias, "targets": targets, **change}
    with pytest.raises(error, match=words):
        linear_cross_entropy(**arguments)
