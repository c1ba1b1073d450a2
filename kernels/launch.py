"""Launching kernels: arguments of the masks, refused launches, the barrier's error flag."""

import contextlib
import os
import threading
from typing import NamedTuple

import torch

from ulmfit_fast.kernels import device as devices
from ulmfit_fast.kernels import tiles

__all__ = [
    "DropArguments",
    "LaunchRefused",
    "LayerCall",
    "cdiv",
    "give_key",
    "interpreted",
    "launch",
    "matmul_precision",
    "on",
    "plan_layer",
    "raise_failed",
    "watch",
]

_WORDS = 1 << 32
# Launches whose error flag has not been seen yet: (event, flag on the host).
_pending = []
# Between a look at the first one and its removal another thread may remove it.
_pending_lock = threading.Lock()
# Kernels, and what they call, that have their keys in Triton's cache.
_keyed = set()


class LaunchRefused(RuntimeError):
    """The device cannot run this launch; nothing has run."""


class DropArguments(NamedTuple):
    """Four probabilities as a kernel takes them.

    Attributes:
        active: whether anything is dropped.
        arguments: four thresholds floor(p 2^32), each the upper half of a 64-bit number, and four
            scales 1/(1-p).
    """

    active: bool
    arguments: tuple

    @classmethod
    def of(cls, p):
        """Build them from four probabilities."""
        thresholds, scales = [], []
        for value in p:
            # p = 1 has no 32-bit threshold: its scale of 0 drops what the largest one keeps.
            threshold = min(int(value * 2.0**32), _WORDS - 1)
            # Triton compiles a kernel anew for a number that is 1, a multiple of 16, or of another
            # width, in a tuple whatever one asks for. This is odd and a signed number of 64 bits,
            # not of 32, whatever p is; its upper half costs no instruction to take.
            lower = 1 if threshold >= _WORDS // 2 else _WORDS // 2 + 1
            signed = threshold - _WORDS if threshold >= _WORDS // 2 else threshold
            thresholds.append(signed * _WORDS + lower)
            scales.append(0.0 if value >= 1.0 else 1.0 / (1.0 - value))
        return cls(any(p), (*thresholds, *scales))


class LayerCall(NamedTuple):
    """What both directions of one layer's call have in common.

    Attributes:
        weight_drop: mask of the recurrent weight.
        gate_drop: mask of the activated gates.
        gate_mask: 0 for none, 1 for a new mask each step, 2 for one for the sequence.
        reverse: from the last step to the first.
        mask_stream: 2 * layer + reverse.
        precision: of float32 products, "tf32" or "ieee".
        keep_gates: whether the forward leaves the activated gates for the backward.
        keep_cells: whether it leaves the cell states.
    """

    weight_drop: DropArguments
    gate_drop: DropArguments
    gate_mask: int
    reverse: bool
    mask_stream: int
    precision: str
    keep_gates: bool = True
    keep_cells: bool = True


def cdiv(a, b):
    """Divide and round up."""
    return -(-a // b)


def interpreted():
    """Say whether Triton runs in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def matmul_precision(device):
    """Return "tf32" or "ieee" for float32 products, as torch's own switch for nn.LSTM says."""
    if device.type != "cuda":
        return "ieee"
    rnn = getattr(torch.backends.cudnn, "rnn", None)
    if rnn is not None and hasattr(rnn, "fp32_precision"):
        # "none" is what the older switch, allow_tf32 = False, leaves here.
        return "tf32" if rnn.fp32_precision == "tf32" else "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


def plan_layer(device, *, batch_size, hidden_size, dtype, form=None):
    """Choose form and tiles of a layer's call, as its device and torch's own switches are now.

    Both who asks what would run and the operator that runs it ask here. Only the operator knows B
    in a graph that is compiled or exported for any, so that it cannot be handed what was chosen.

    Args:
        device: torch.device of the tensors.
        batch_size: B.
        hidden_size: H.
        dtype: compute dtype of the layer.
        form: as `tiles.choose` takes it.

    Returns:
        A `tiles.Plan`.
    """
    return tiles.choose(
        devices.describe_device(device),
        batch_size=batch_size,
        hidden_size=hidden_size,
        dtype=dtype,
        precision=matmul_precision(device),
        form=form,
    )


def on(device):
    """Make a device the current one in a block: Triton launches there, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def launch(kernel, grid, args, constants, options, *, begun=False):
    """Launch a kernel on the device of its tensors, and its current stream.

    Args:
        kernel: the kernel.
        grid: numbers of blocks.
        args: its arguments, tensors of one device among them.
        constants: those that it is compiled for.
        options: of the compilation.
        begun: earlier launches of the same call have run, and written over what they read.

    Raises:
        LaunchRefused: if the blocks cannot be on the device together, or ask for too much of it.
        RuntimeError: if that is so and the call has begun, so that no other form can take over.
    """
    device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
    give_key(kernel)
    try:
        with on(device):
            kernel[grid](*args, **constants, **options)
    except Exception as error:
        if _is_refusal(error) and begun:
            raise RuntimeError(
                f"{kernel.__name__} on a grid of {grid} was refused, and launches before it have "
                f'run: {error}; use backend="triton-stepwise", whose blocks need not be together'
            ) from error
        if _is_refusal(error):
            raise LaunchRefused(f"{kernel.__name__} on a grid of {grid}: {error}") from error
        raise


def give_key(function):
    """Have Triton make the keys of what a kernel calls before the kernel's own.

    It puts the globals of a called function into a key only if that one has a key already: what
    other processes have compiled would be found or not by the kernels that ran here before.
    """
    # Not the function itself: what Triton makes of it may have its key as its hash.
    if not hasattr(type(function), "cache_key") or function.fn in _keyed:
        return
    _keyed.add(function.fn)
    for name in function.fn.__code__.co_names:
        give_key(function.fn.__globals__.get(name))
    _ = function.cache_key


def _is_refusal(error):
    if type(error).__name__ == "OutOfResources":
        return True
    text = str(error).lower()
    return "cooperative" in text or "too many blocks" in text


def watch(error, what):
    """Have a later `raise_failed` report the barrier's error flag, without waiting for it now."""
    if error.device.type != "cuda":
        if int(error):
            raise RuntimeError(_message(what))
        return
    with on(error.device):
        if torch.cuda.is_current_stream_capturing():
            # A replay cannot raise; a barrier that gave up shows as NaN in the outputs.
            return
        flag = torch.empty(1, dtype=torch.int32, device="cpu", pin_memory=True)
        flag.copy_(error, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
    _pending.append((event, flag, what))


def raise_failed(wait=False):
    """Raise for a launch that has ended with its error flag set.

    Args:
        wait: wait for all launches to end first.

    Raises:
        RuntimeError: if a grid barrier gave up; the outputs of that launch are NaN.
    """
    if not _pending or torch.cuda.is_current_stream_capturing():
        return
    with _pending_lock:
        while _pending:
            event, flag, what = _pending[0]
            if wait:
                event.synchronize()
            elif not event.query():
                return
            _pending.pop(0)
            if int(flag):
                raise RuntimeError(_message(what))


def _message(what):
    return (
        f"the grid barrier of {what} gave up waiting: its blocks were not all running, and its "
        'outputs are NaN; use backend="triton-stepwise", which needs no barrier'
    )
