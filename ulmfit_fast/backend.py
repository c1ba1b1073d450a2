"""Which implementation runs an LSTM layer: choose it, force it, explain it.

| name        | what it is                                                   | where it runs     |
|-------------|--------------------------------------------------------------|-------------------|
| `triton`    | fused kernels, both dropouts inside                          | CUDA, interpreter |
| `native`    | the same fused kernels in C, both dropouts inside            | CPU, C compiler   |
| `torch`     | PyTorch's own fused LSTM, given the dropped recurrent weight | no gate dropout   |
| `eager`     | hand-written forward and backward in torch operations        | everywhere        |
| `reference` | the equations in plain autograd; double backward             | everywhere        |
| `auto`      | the fastest of them that can run the call                    |                   |

`triton` chooses between two forms, which have names of their own: `triton-persistent`, one launch
for all time steps, and `triton-stepwise`, one launch a step. Of the former there are two again:
`triton-pipelined` copies the weight on chip at each step, `triton-resident` keeps it there.

A backend asked for by name runs or raises; only `auto` chooses another one. Under forward-mode
differentiation and torch.func's grad, vjp, jacrev and hessian `reference` alone is right; it is
also what torch.onnx.export is given where PyTorch's own LSTM cannot do what was asked for.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd import forward_ad

from ulmfit_fast.system import scoped

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BACKENDS", "Choice", "Request", "choose", "explain", "use"]

BACKENDS = (
    "auto",
    "triton",
    "triton-persistent",
    "triton-pipelined",
    "triton-resident",
    "triton-stepwise",
    "native",
    "torch",
    "eager",
    "reference",
)
_NATIVE_DTYPES = (torch.float32, torch.bfloat16)
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROUNDED = "PyTorch's fused LSTM would round the state to the input's dtype"
_PREDICTED = "predicted, not measured"
# Up to this H cuDNN has a persistent algorithm of its own in any dtype (`get_algo` in PyTorch's
# cudnn/RNN.cpp: LSTM forwards up to 192, backwards up to 128).
_CUDNN_PERSISTENT_HIDDEN = 192
_ENVIRONMENT_VARIABLE = "ULMFIT_FAST_BACKEND"
# The choice of a block that is traced into a graph, which cannot set a context variable. Never set
# outside of Dynamo.
_traced: str | None = None


class Choice(NamedTuple):
    """The backend that runs a call, and why.

    Attributes:
        name: one of `BACKENDS`, but neither "auto" nor one of the forms' names.
        reason: why.
        form: for "triton": the one that was asked for, or "auto", which may still fall back from
            persistent to stepwise when the device refuses the launch.
    """

    name: str
    reason: str
    form: str = "auto"


class KernelPlan(NamedTuple):
    """What the kernels say about a call.

    Attributes:
        form: "persistent" or "stepwise", or None when they cannot run it.
        reason: why this form, or why not.
    """

    form: str | None
    reason: str


class Request(NamedTuple):
    """What is asked of a backend: a call, as far as the choice depends on it.

    It is a layer's call, or a step around the LSTM, as a dropout or a loss, whose device and dtype
    are all that counts: the other defaults are those of the smallest of layers, which asks no more
    of a device than a step does.

    Attributes:
        device: device of the tensors.
        dtype: compute dtype.
        batch_size: B.
        input_size: E.
        hidden_size: H.
        has_gate_mask: gate dropout is on, or a gate mask was injected.
        injected_gate_mask: a gate mask was given as a tensor.
        has_lengths: rows have lengths of their own.
        mixed_state: the state's dtype is wider than the input's.
        drops: masks are drawn for the weight or the gates.
        is_step: a step around the LSTM.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int = 1
    input_size: int = 1
    hidden_size: int = 16
    has_gate_mask: bool = False
    injected_gate_mask: bool = False
    has_lengths: bool = False
    mixed_state: bool = False
    drops: bool = False
    is_step: bool = False


def step_request(x: Tensor) -> Request:
    """Describe a step around the LSTM on a tensor."""
    return Request(x.device, x.dtype, is_step=True)


def check_name(name: str, source: str = "backend") -> str:
    """Return a valid backend name or raise a ValueError that lists them."""
    if name not in BACKENDS:
        raise ValueError(f"{source} is {name!r}, expected one of {', '.join(BACKENDS)}")
    return name


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run every `backend="auto"` call inside the block with one backend.

    The choice is the thread's, or asyncio task's, own; a thread that is started inside chooses for
    itself. It holds for the backward of what runs inside. A function under
    `torch.utils.checkpoint`, which runs once more in the backward, takes the choice that holds
    there; with the block inside the function the two are one.

    Example:
        >>> import torch
        >>> import ulmfit_fast as uf
        >>> lstm = uf.LSTM(4, 8)
        >>> with uf.backend.use("reference"):
        ...     print(uf.backend.explain(lstm, torch.randn(5, 2, 4)))
        reference: asked for by backend.use("reference")

    Args:
        name: one of `BACKENDS`. Layers that name a backend themselves keep theirs. The environment
            variable ULMFIT_FAST_BACKEND does the same for a whole process.

    Raises:
        ValueError: if the name is unknown.
    """
    global _traced
    check_name(name)
    if not torch.compiler.is_dynamo_compiling():
        with scoped.setting("backend", name):
            yield
        return
    previous, _traced = _traced, name
    try:
        yield
    finally:
        _traced = previous


def requested(backend: str) -> tuple[str, str]:
    """Return the name of the backend that was asked for, and who asked for it."""
    if check_name(backend) != "auto":
        return backend, f'asked for by backend="{backend}"'
    forced: str | None = _traced or scoped.backend
    if forced is not None:
        return forced, f'asked for by backend.use("{forced}")'
    from_environment = os.environ.get(_ENVIRONMENT_VARIABLE, "auto")
    check_name(from_environment, _ENVIRONMENT_VARIABLE)
    return from_environment, f"asked for by {_ENVIRONMENT_VARIABLE}={from_environment}"


def _transforms() -> tuple[str, ...]:
    """Return the names of torch.func's active transforms; an open dual level counts as Jvp."""
    names = [level.key().name for level in torch._C._functorch.get_interpreter_stack() or ()]
    if forward_ad._current_level >= 0:
        names.append("Jvp")
    return tuple(names)


# What torch.compiler.assume_constant_result does, without its import of the whole compiler. Dynamo
# guards on the transforms itself, and compiles anew when they change.
_transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]


def in_jit_trace() -> bool:
    """Say whether torch.jit.trace records what is run, as it also does for torch.onnx."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def in_onnx_export() -> bool:
    """Say whether torch.onnx.export is at work, which knows no operator of this package."""
    return torch.onnx.is_in_onnx_export()


# For Dynamo the answer of PyTorch's own function is always no.
in_onnx_export._dynamo_marked_constant = True  # type: ignore[attr-defined]


def warn_of_own_operators() -> None:
    """Say of a program that is being recorded that it will need this package."""
    warnings.warn(
        "dropout in training is recorded as operators of this package, and the result runs only "
        "where ulmfit_fast is imported: call eval() before tracing or exporting, or take "
        "what ulmfit_fast.restore_lstm makes of the model",
        stacklevel=4,
    )


# Dynamo runs it while it records, instead of recording it.
warn_of_own_operators._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _why_reference(transforms: tuple[str, ...]) -> str | None:
    """The other backends have neither forward derivatives nor rules for torch.func."""
    if "Jvp" in transforms:
        return "forward-mode differentiation needs plain autograd"
    if "Grad" in transforms:
        return "torch.func's grad, vjp, jacrev and hessian need plain autograd"
    if in_onnx_export():
        return "torch.onnx knows no operator of this package"
    return None


def _why_not_torch(request: Request) -> str | None:
    if request.has_gate_mask:
        return "PyTorch's fused LSTM cannot mask gates"
    if request.has_lengths:
        return "PyTorch's fused LSTM takes no lengths here"
    return None


def choose(backend: str, request: Request) -> Choice:
    """Choose the implementation of one layer's call, or of a step around the LSTM.

    Args:
        backend: what the caller asked for.
        request: the call.

    Returns:
        The backend's name and the reason for it. Of a step: "triton" for the kernels, "torch" for
        torch operations and backwards written by hand, "reference" for plain autograd alone.

    Raises:
        RuntimeError: if a backend asked for by name cannot run the layer's call. A step never
            raises, as each has torch operations.
    """
    name, who = requested(backend)
    transforms = _transforms()
    if request.is_step:
        return _choose_for_step(name, who, transforms, request)
    why_reference = _why_reference(transforms)
    why_not_torch = _why_not_torch(request)
    if name not in ("auto", "reference") and why_reference:
        raise RuntimeError(f'{name} was {who}, but {why_reference}; use "auto" or "reference"')
    if name.startswith("triton"):
        form = name.removeprefix("triton").removeprefix("-") or None
        plan = layer_plan(form, request)
        if plan.form is None:
            raise RuntimeError(f'{name} was {who}, but {plan.reason}; use "auto" or "eager"')
        return Choice("triton", f"{plan.form} form, {who}; {plan.reason}", form or "auto")
    if name == "native":
        why_not = why_not_native(request)
        if why_not:
            raise RuntimeError(f'native was {who}, but {why_not}; use "auto" or "eager"')
        return Choice(name, f"{who}; {_native_products(request.dtype)}")
    if name == "torch" and why_not_torch:
        raise RuntimeError(f'torch was {who}, but {why_not_torch}; use "auto" or "eager"')
    if name != "auto":
        return Choice(name, who)
    if why_reference:
        return Choice("reference", why_reference)
    if torch.compiler.is_exporting() and not request.drops:
        return Choice("reference", "an exported program has PyTorch's operators alone")
    if "Vmap" in transforms:
        return Choice("eager", "torch.func.vmap has no rule for the fused LSTMs")
    if request.device.type == "cuda":
        return _choose_on_cuda(request, why_not_torch)
    if request.device.type == "cpu":
        return _choose_on_cpu(request, why_not_torch)
    if why_not_torch:
        return Choice("eager", why_not_torch)
    if request.mixed_state:
        return Choice("eager", _ROUNDED)
    return Choice("torch", "no gate dropout")


def _cudnn_persists(request: Request) -> bool:
    """Say whether cuDNN has a persistent algorithm for (B, E, H), some 2 us a step.

    Source:
        `get_algo`, `use_persist_common_heuristics` and `use_persist_device_heuristics` in PyTorch's
        cudnn/RNN.cpp. What they ask of the device is left out: it is 98 multiprocessors or more,
        and compute capability 8.0 or above but not 8.6.
    """
    batch_size, input_size, hidden_size = request[2:5]
    if hidden_size <= _CUDNN_PERSISTENT_HIDDEN:
        return True
    whole = hidden_size % 128 == 0 and input_size % 128 == 0 and batch_size % 8 == 0
    return request.dtype == torch.float16 and whole and hidden_size <= 1024 and batch_size <= 128


def _choose_on_cuda(request: Request, why_not_torch: str | None) -> Choice:
    """Choose by what is known of cuDNN's algorithms; no measurement of ours stands behind it yet.

    Above a small H, and in bfloat16 and float32 altogether, cuDNN launches two or more kernels a
    step, where the persistent form launches one in all. The stepwise form launches one a step from
    Python, which a launch-bound cuDNN does from C++: it serves what cuDNN cannot do.
    """
    plan = layer_plan(None, request)
    if plan.form is not None and (why_not_torch or torch.compiler.is_compiling()):
        why = why_not_torch or "torch.compile takes this operator whole"
        return Choice("triton", f"{plan.form} form, {plan.reason}; {why}")
    if why_not_torch:
        return Choice("eager", f"{why_not_torch}, and the kernels cannot run: {plan.reason}")
    if plan.form == "persistent" and _cudnn_persists(request):
        what = "B = {}, E = {}, H = {}".format(*request[2:5])
        return Choice("torch", f"{what}: cuDNN has a persistent algorithm of its own; {_PREDICTED}")
    if plan.form == "persistent":
        return Choice("triton", f"persistent form, {plan.reason}; {_PREDICTED}")
    return Choice("torch", f"no gate dropout, and no persistent form: {plan.reason}; {_PREDICTED}")


def _choose_on_cpu(request: Request, why_not_torch: str | None) -> Choice:
    """Take the C kernels, but for what is to run without this package.

    In float32 at any B and H: beside PyTorch's LSTM on a weight that a C mask has dropped they are
    as fast up to H = 800 and 1.4 times at 1152 (an EPYC of Zen 4, `scaling` in the benchmarks'
    results), and they drop gates as well.

    Half precision never goes to PyTorch's fused LSTM, which computes it many times slower than
    eager, and whose gradients in bfloat16 are wrong on a CPU with AMX from H = 1024 on (torch
    2.13.0 and 2.14.1).
    """
    why_not = why_not_native(request)
    if why_not is None and not in_jit_trace():
        return Choice("native", _native_products(request.dtype))
    # What the C kernels are not made for says nothing of this machine.
    also = "" if why_not is None or request.dtype not in _NATIVE_DTYPES else f"; {why_not}"
    if why_not_torch or request.mixed_state:
        return Choice("eager", (why_not_torch or _ROUNDED) + also)
    if request.dtype in (torch.bfloat16, torch.float16):
        return Choice("eager", f"{str(request.dtype).removeprefix('torch.')} on the cpu{also}")
    if torch.compiler.is_compiling():
        return Choice("eager", f"torch.compile takes this operator whole{also}")
    return Choice("torch", f"no gate dropout{also}")


def native_status() -> str:
    """Say which instructions and how many threads the C kernels of a CPU use, or why not.

    It compiles them where that has not been done yet.
    """
    from ulmfit_fast.kernels.cpu import calls, library

    status: str = library.status()
    if library.library() is None:
        return f"none: {status}"
    return f"{status}, {calls.threads()} threads" if "OpenMP" in status else status


def _why_no_library() -> str | None:
    from ulmfit_fast.kernels.cpu import library

    return None if library.library() is not None else library.status()


# Constant for Dynamo: it depends on the machine alone.
_why_no_library._dynamo_marked_constant = True  # type: ignore[attr-defined]
native_status._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_not_native(request: Request) -> str | None:
    """Say why the C kernels cannot run a call, None if they can."""
    if request.device.type != "cpu":
        return f"the C kernels need a CPU, and the input is on {request.device}"
    if request.dtype not in _NATIVE_DTYPES:
        name = str(request.dtype).removeprefix("torch.")
        return f"the C kernels compute float32 and bfloat16, and the input is {name}"
    if request.injected_gate_mask:
        return "the C kernels draw gate masks, they take none"
    return _why_no_library()


def _native_products(dtype: torch.dtype) -> str:
    """Say what the C kernels compute with."""
    products = "bfloat16" if dtype == torch.bfloat16 and _fast_products() else "float32"
    return f"{native_status()}, products in {products}"


def _fast_products() -> bool:
    from ulmfit_fast.kernels.cpu import lstm

    return bool(lstm.has_bfloat16_products(torch.bfloat16))


_native_products._dynamo_marked_constant = True  # type: ignore[attr-defined]


def kernel_plan(form: str | None, request: Request) -> KernelPlan:
    """Ask the kernels whether, and in which form, they can run a call.

    Args:
        form: "persistent", "stepwise", or None for the better one that can run.
        request: the call.
    """
    device = request.device
    if request.injected_gate_mask:
        return KernelPlan(None, "the Triton kernels draw gate masks, they take none")
    if device.type != "cuda":
        if device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
            why = f"the Triton kernels need a CUDA device, and the input is on {device}"
            return KernelPlan(None, why)
    if importlib.util.find_spec("triton") is None:
        return KernelPlan(None, "the package triton is not installed")
    from ulmfit_fast.kernels import launch

    # The operator asks the same function once more: of a graph for any B this is the plan of one.
    plan = launch.plan_layer(
        device,
        batch_size=request.batch_size,
        hidden_size=request.hidden_size,
        dtype=request.dtype,
        form=form,
    )
    reason = f"{plan.reason}, {plan.tiles()}" if plan.form else plan.reason
    return KernelPlan(plan.form, reason)


def _plan_of_graph(
    form: str | None, device: torch.device, dtype: torch.dtype, hidden_size: int, injected: bool
) -> KernelPlan:
    # A graph for any B takes the kernels in either form: it asks for none in particular.
    request = Request(device, dtype, hidden_size=hidden_size, injected_gate_mask=injected)
    return kernel_plan(form, request)


# Constant for Dynamo: it depends on the device, not on a tensor's values. Of a tuple Dynamo cannot
# make the constant that such a function takes.
_plan_of_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def layer_plan(form: str | None, request: Request) -> KernelPlan:
    """Ask `kernel_plan`, also where `torch.compile` makes a graph."""
    if not torch.compiler.is_compiling():
        return kernel_plan(form, request)
    injected = request.injected_gate_mask
    return _plan_of_graph(form, request.device, request.dtype, request.hidden_size, injected)


@functools.lru_cache(maxsize=64)
def _device_runs_steps(device: torch.device, dtype: torch.dtype) -> bool:
    return kernel_plan("stepwise", Request(device, dtype)).form is not None


def _has_step_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    if dtype not in _KERNEL_DTYPES or importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == "cuda" and _device_runs_steps(device, dtype)


_has_step_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _choose_for_step(name: str, who: str, transforms: tuple[str, ...], request: Request) -> Choice:
    if name == "reference":
        return Choice(name, who)
    if transforms:
        return Choice("reference", "torch.func and forward-mode differentiation: plain autograd")
    wanted = name.startswith("triton") or (name == "auto" and request.device.type == "cuda")
    if wanted and _has_step_kernels(request.device, request.dtype):
        return Choice("triton", who if name != "auto" else "one pass each")
    return Choice("torch", "torch operations run everywhere")


def explain(
    module: Any,
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    lengths: Tensor | None = None,
) -> str:
    """Say which backend a layer would run on an input, and why.

    Example:
        >>> import torch
        >>> import ulmfit_fast as uf
        >>> uf.backend.explain(uf.LSTM(4, 8, backend="eager"), torch.randn(5, 2, 4))
        'eager: asked for by backend="eager"'

    Args:
        module: a `uf.LSTM`.
        x: its input, as the forward takes it.
        hx: the initial states (h_0, c_0), as the forward takes them; None for zeros.
        lengths: `(B,)` int64, or None.

    Returns:
        "name: reason"; for a backend that was asked for and cannot run, "cannot run: reason".

    Raises:
        TypeError: if the module is not a `uf.LSTM`.
        ValueError: if the input's shape does not fit.
    """
    request = getattr(module, "backend_request", None)
    if request is None:
        raise TypeError(f"module is a {type(module).__name__}, expected a uf.LSTM")
    # What does not fit is a RuntimeError too, and no answer.
    asked = request(x, hx, lengths)
    try:
        choice = choose(module.backend, asked)
    except RuntimeError as error:
        return f"cannot run: {error}"
    return f"{choice.name}: {choice.reason}"
