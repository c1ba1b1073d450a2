"""Choosing, forcing and explaining the backend; what each does in low precision and odd places."""

import pytest
import torch
from rounding import errors, reach
from test_functional import DROPOUTS, arguments, assert_close, gradients
from torch.autograd import forward_ad

import ulmfit_fast as uf
from ulmfit_fast.functional import layer, lstm
from ulmfit_fast.lstm import operators
from ulmfit_fast.lstm.eager import Recurrence


def test_auto_says_what_it_chose_and_why(without_native):
    x = torch.randn(5, 2, 4)
    assert uf.backend.explain(uf.LSTM(4, 8, gate_p=0.1), x).startswith("eager: ")
    assert uf.backend.explain(uf.LSTM(4, 8, gate_p=0.1).eval(), x).startswith("torch: ")
    assert uf.backend.explain(uf.LSTM(4, 8), x).startswith("torch: ")
    half = uf.LSTM(4, 8, dtype=torch.bfloat16)
    assert uf.backend.explain(half, x.bfloat16()).startswith("eager: ")
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]))
    assert "lengths" in uf.backend.explain(uf.LSTM(4, 8), packed)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"gate_p": 0.1}, "lstm_eager", id="eager"),
        pytest.param({}, "_lstm_torch", id="torch"),
        pytest.param({"backend": "eager"}, "lstm_eager", id="named"),
    ],
)
def test_the_explained_backend_is_the_one_that_runs(
    without_native, monkeypatch, settings, expected
):
    ran = []
    for room, name in ((operators, "lstm_eager"), (layer, "_lstm_torch")):
        original = getattr(room, name)

        def record(*args, name=name, original=original):
            ran.append(name)
            return original(*args)

        monkeypatch.setattr(room, name, record)
    uf.LSTM(4, 8, **settings)(torch.randn(5, 2, 4))
    assert ran == [expected]


@pytest.mark.parametrize("name", [name for name in uf.backend.BACKENDS if "triton" in name])
def test_triton_asked_for_by_name_raises_with_reason_and_mend(name):
    lstm = uf.LSTM(4, 8, backend=name)
    x = torch.randn(5, 2, 4)
    mend = r'need a CUDA device, and the input is on cpu; use "auto" or "eager"'
    with pytest.raises(RuntimeError, match=mend):
        lstm(x)
    assert uf.backend.explain(lstm, x).startswith(f"cannot run: {name} was asked for")


def test_torch_asked_for_by_name_does_not_fall_back():
    x = torch.randn(5, 2, 4)
    with pytest.raises(RuntimeError, match="cannot mask gates"):
        uf.LSTM(4, 8, gate_p=0.5, backend="torch")(x)
    with pytest.raises(RuntimeError, match="takes no lengths"):
        uf.LSTM(4, 8, backend="torch")(x, lengths=torch.tensor([5, 3]))


def test_use_forces_and_restores(without_native):
    lstm, x = uf.LSTM(4, 8), torch.randn(5, 2, 4)
    with uf.backend.use("reference"):
        assert uf.backend.explain(lstm, x).startswith("reference: ")
        with uf.backend.use("eager"):
            assert uf.backend.explain(lstm, x).startswith("eager: ")
        assert uf.backend.explain(lstm, x).startswith("reference: ")
    assert uf.backend.explain(lstm, x).startswith("torch: ")
    named = uf.LSTM(4, 8, backend="eager")
    with uf.backend.use("reference"):
        assert uf.backend.explain(named, x).startswith("eager: ")
    with pytest.raises(ValueError, match="expected one of auto"), uf.backend.use("fast"):
        pass


def test_environment_variable(monkeypatch):
    lstm, x = uf.LSTM(4, 8), torch.randn(5, 2, 4)
    monkeypatch.setenv("ULMFIT_FAST_BACKEND", "reference")
    assert uf.backend.explain(lstm, x) == "reference: asked for by ULMFIT_FAST_BACKEND=reference"
    monkeypatch.setenv("ULMFIT_FAST_BACKEND", "quick")
    with pytest.raises(ValueError, match="ULMFIT_FAST_BACKEND is 'quick'"):
        lstm(x)


def test_explain_wants_our_lstm():
    with pytest.raises(TypeError, match=r"expected a uf\.LSTM"):
        uf.backend.explain(torch.nn.LSTM(4, 8), torch.randn(5, 2, 4))


def test_explain_takes_what_forward_takes(without_native):
    lstm, x = uf.LSTM(4, 8), torch.randn(5, 2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert uf.backend.explain(lstm, x).startswith("eager: bfloat16 on the cpu")
    assert "lengths" in uf.backend.explain(lstm, x, lengths=torch.tensor([5, 3]))
    wide = torch.zeros(1, 2, 8), torch.zeros(1, 2, 8, dtype=torch.float64)
    assert "round the state" in uf.backend.explain(lstm, x, wide)
    assert uf.backend.explain(lstm, x[:, 0]).startswith("torch: ")
    assert uf.LSTM(4, 8, batch_first=True).backend_request(x).batch_size == 5
    with pytest.raises(ValueError, match=r"input has shape \(4,\)"):
        uf.backend.explain(lstm, x[0, 0])


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", torch.bfloat16, "torch"),
        ("cpu", torch.bfloat16, "eager"),
        ("cpu", torch.float32, "eager"),
    ],
    ids=str,
)
def test_a_wider_state_keeps_the_fused_lstm_on_cuda_alone(
    device, dtype, expected, monkeypatch, without_native
):
    none = uf.backend.KernelPlan(None, "of some reason")
    monkeypatch.setattr(uf.backend, "kernel_plan", lambda *_: none)
    request = uf.backend.Request(torch.device(device), dtype, 2, 4, 8, mixed_state=True)
    assert uf.backend.choose("auto", request).name == expected


@pytest.mark.parametrize(
    ("forced", "interpreted", "expected"),
    [
        ("auto", True, "torch"),
        ("eager", True, "torch"),
        ("triton-stepwise", True, "triton"),
        ("triton", False, "torch"),
        ("reference", True, "reference"),
    ],
)
def test_a_step_around_the_lstm_is_chosen_as_a_layer_is(forced, interpreted, expected, monkeypatch):
    """It has torch operations, so that a backend that cannot run it is no error."""
    monkeypatch.setenv("TRITON_INTERPRET", str(int(interpreted)))
    request = uf.backend.step_request(torch.zeros(2, dtype=torch.bfloat16))
    under_grad = []

    def record(x):
        under_grad.append(uf.backend.choose("auto", request).name)
        return x

    with uf.backend.use(forced):
        choice = uf.backend.choose("auto", request)
        torch.func.grad(record)(torch.tensor(1.0))
    assert choice.name == expected
    assert ("asked for" in choice.reason) == (expected != "torch")
    assert under_grad == ["reference"]


FUNC = torch.func
TRANSFORMS = {
    "grad": lambda f, x: FUNC.grad(f)(x),
    "vjp": lambda f, x: FUNC.vjp(f, x)[1](torch.ones((), dtype=x.dtype))[0],
    "jacrev": lambda f, x: FUNC.jacrev(f)(x),
    "jacfwd": lambda f, x: FUNC.jacfwd(f)(x),
    "jvp": lambda f, x: FUNC.jvp(f, (x,), (torch.ones_like(x),))[1],
    "dual": lambda f, x: tangent(f, x),
    "grads-of-rows": lambda f, x: FUNC.vmap(FUNC.grad(f))(x[None])[0],
}
# PyTorch compiles its own forward derivatives with it.
scripted = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())


def tangent(function, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def loss_of_weight(*sizes, **kwargs):
    """Return a loss as a function of backend and recurrent weight, and such a weight."""
    x, state, w_ih, weight, *biases = arguments(*sizes)

    def loss(backend, w_hh):
        output, _ = lstm(x, state, w_ih, w_hh, *biases, seed=5, **kwargs, backend=backend)
        return output.sin().sum()

    return loss, weight


@scripted
@transforms
@pytest.mark.parametrize("name", ["none", "weight", "both"])
def test_auto_is_right_under_transforms(transform, name):
    loss, weight = loss_of_weight(3, 2, 2, 3, **DROPOUTS[name])
    leaf = weight.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss("reference", leaf), leaf)
    actual = transform(lambda w_hh: loss("auto", w_hh), weight)
    assert_close([actual], [expected if actual.dim() else expected.sum()])


@scripted
def test_hessian_under_auto():
    loss, weight = loss_of_weight(2, 1, 2, 2, weight_p=0.3)
    hessian = torch.func.hessian(lambda w_hh: loss("auto", w_hh))(weight)
    expected = torch.autograd.functional.hessian(lambda w_hh: loss("reference", w_hh), weight)
    assert_close([hessian], [expected])


@scripted
@transforms
@pytest.mark.parametrize("backend", ["eager", "torch"])
def test_a_named_backend_refuses_transforms(transform, backend):
    loss, weight = loss_of_weight(3, 2, 2, 3)
    with pytest.raises(RuntimeError, match=f"{backend} was asked for.*reference"):
        transform(lambda w_hh: loss(backend, w_hh), weight)


def test_explain_says_why_it_is_the_reference(without_native):
    layer, x = uf.LSTM(4, 8), torch.randn(5, 2, 4)
    with forward_ad.dual_level():
        assert uf.backend.explain(layer, x).startswith("reference: forward-mode")
    assert uf.backend.explain(layer, x).startswith("torch: ")


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_vmap_alone_needs_no_reference(backend):
    x, *rest = arguments()
    rows = torch.stack([x, 2 * x])

    def function(x):
        return lstm(x, *rest, seed=5, weight_p=0.3, backend=backend)[0]

    assert_close([torch.func.vmap(function)(rows)], [torch.stack([function(x) for x in rows])])


@pytest.mark.parametrize("hidden", [6, 512], ids=["H6", "H512"])
@pytest.mark.parametrize("backend", ["eager", "torch", "reference"])
def test_a_batch_of_none_runs(backend, hidden):
    args = arguments(batch=0, hidden=hidden, dtype=torch.float32)
    output, h, c, *grads = gradients(backend, args, weight_p=0.3)
    assert (output.shape, h.shape, c.shape) == ((5, 0, hidden), (0, hidden), (0, hidden))
    assert all(torch.all(grad == 0) for grad in grads)


def low_and_truth(dtype, hidden, **kwargs):
    """Return arguments in a dtype, what they give in float64, and how far rounding may take it."""
    (x, (h0, c0), *weights) = arguments(steps=6, batch=4, inputs=hidden, hidden=hidden)
    scales = [1.0, 1.0, 1.0, 0.05, 0.05, 1.0, 1.0]
    operands = [
        (part * scale).to(dtype) for part, scale in zip((x, h0, c0, *weights), scales, strict=True)
    ]

    def in_float64(moved):
        x, h0, c0, *weights = moved
        return gradients("reference", (x, (h0, c0), *weights), **kwargs)

    x, h0, c0, *weights = operands
    truth = in_float64([operand.double() for operand in operands])
    return (x, (h0, c0), *weights), truth, reach(in_float64, operands, terms=4 * hidden)


def assert_at_most_twice_as_far(ours, theirs, truth, bounds):
    """Three-way tolerance: against float64, beside another implementation in the same dtype.

    Of one draw either may be lucky; what rounding may do is allowed to both.
    """
    for our, their, bound in zip(errors(ours, truth), errors(theirs, truth), bounds, strict=True):
        assert our <= max(2 * their, bound), f"{our:.2e}, the other {their:.2e}, {bound:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hidden", [17, 400], ids=["H17", "H400"])
def test_error_is_at_most_twice_that_of_pytorch(dtype, hidden):
    low, truth, bounds = low_and_truth(dtype, hidden)
    ours, theirs = (gradients(name, low) for name in ("eager", "torch"))
    assert_at_most_twice_as_far(ours, theirs, truth, bounds)


@pytest.mark.parametrize("name", ["none", "weight", "both", "sequence"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_eager_and_reference_err_alike_under_masks(dtype, name):
    kwargs = {"seed": 5, **DROPOUTS[name]}
    low, truth, bounds = low_and_truth(dtype, 64, **kwargs)
    eager, reference = gradients("eager", low, **kwargs), gradients("reference", low, **kwargs)
    assert_at_most_twice_as_far(eager, reference, truth, bounds)
    assert_at_most_twice_as_far(reference, eager, truth, bounds)
    for ours, theirs in zip(
        errors(eager[:3], truth[:3]), errors(reference[:3], truth[:3]), strict=True
    ):
        assert theirs <= 1.2 * ours


@pytest.mark.parametrize("batch", [1, 16, 33])
def test_large_weights_equal_the_reference(batch):
    """At B = 1 and 16 oneDNN multiplies them."""
    onednn = batch <= 32 and torch.backends.mkldnn.is_available()
    assert (Recurrence(torch.zeros(2048, 512), batch)._opaque is not None) == onednn
    x, state, *weights = arguments(steps=2, batch=batch, hidden=512, dtype=torch.float32)
    args = (x, state, *(weight * 0.05 for weight in weights))
    kwargs = {"seed": 5, "weight_p": 0.3}
    for ours, theirs in zip(
        gradients("eager", args, **kwargs), gradients("reference", args, **kwargs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_half_precision_rounds_h_once_a_step_and_never_c(backend, chunk):
    """A chunk hands over h in the input's dtype and c in float32: as the loop inside does."""
    x, (h0, c0), *weights = arguments(steps=6, dtype=torch.bfloat16)
    kwargs = {"weight_p": 0.3, "seed": 1, "backend": backend}
    state = h0, c0.float()
    whole, (h_n, c_n) = lstm(x, state, *weights, **kwargs)
    outputs = []
    for part in x.split(chunk):
        output, state = lstm(part, state, *weights, **kwargs)
        outputs.append(output)
    assert_close([torch.cat(outputs), *state], [whole, h_n, c_n], tolerance=1e-6)
    assert torch.any(c_n != c_n.bfloat16())
    assert lstm(x, None, *weights, **kwargs)[1][1].dtype == torch.bfloat16


def test_cell_state_may_be_wider_than_the_input():
    x, (h0, c0), *weights = arguments(dtype=torch.bfloat16)
    for backend in ("eager", "torch", "reference"):
        output, (h, c) = lstm(x, (h0, c0.float()), *weights, backend=backend)
        assert (output.dtype, h.dtype, c.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("backend", ["eager", "torch", "reference"])
def test_autocast_runs_in_its_dtype(backend):
    x, (h0, c0), *weights = arguments(dtype=torch.float32, grad=True)
    kwargs = {"weight_p": 0.2, "seed": 1, "backend": backend}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = lstm(x, (h0, c0), *weights, **kwargs)
    low, low_h0, *low_weights = (tensor.bfloat16() for tensor in (x, h0, *weights))
    expected, expected_state = lstm(low, (low_h0, c0), *low_weights, **kwargs)
    assert_close([output, *state], [expected, *expected_state], tolerance=0)
    output.float().sum().backward()
    assert weights[0].grad.dtype == torch.float32


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_operators_pass_opcheck(transposed, dtype):
    x, (h0, c0), *weights = arguments(dtype=dtype, grad=True)

    def strided(tensor):
        with torch.no_grad():
            leaf = tensor.t() if tensor.dim() == 2 else tensor.transpose(0, 1)
            leaf = leaf.contiguous().transpose(0, 1) if transposed else tensor.clone()
        return leaf.requires_grad_()

    x, h0, c0, w_ih, w_hh = map(strided, (x, h0, c0, *weights[:2]))
    seed, ps = torch.tensor(3), [0.3] * 4
    check = torch.library.opcheck
    scalars = (None, seed, ps, ps, False, 0, None, None)
    check(operators.lstm_eager, (x, h0, c0, w_ih, w_hh, *weights[2:], *scalars))
    check(operators.drop_weight, (w_hh, seed, ps, 0))
    x, h0, c0, w_ih, w_hh = (tensor.detach() for tensor in (x, h0, c0, w_ih, w_hh))
    out, h_n, c_n, *kept = operators.lstm_eager(x, h0, c0, w_ih, w_hh, None, None, *scalars)
    saved = (x, h0, c0, w_ih, w_hh, *scalars, out, *kept)
    for needs in ([True] * 6, [False, True] * 3):
        check(operators.lstm_eager_backward, (out, h_n, c_n, *saved, needs))
    dropped = strided(operators.drop_weight(w_hh, seed, ps, 0)).detach()
    for weight in (w_hh, w_hh * 0):
        args = (strided(w_hh).detach(), weight, seed, dropped, ps, 0)
        check(operators._drop_weight_backward, args)
