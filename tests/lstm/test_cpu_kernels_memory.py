"""The C kernels touch the memory that they are given, and all of what they return.

`make sanitize-cpu` runs this with AddressSanitizer and UndefinedBehaviorSanitizer, which see what
is read or written beside a tensor; here new memory is filled with NaN.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ulmfit_fast import functional
from ulmfit_fast.kernels.cpu import library as native

ROOT = Path(__file__).parents[2]
SANITIZED = "-fsanitize" in os.environ.get(native.FLAGS_VARIABLE, "")


@pytest.fixture(scope="module", autouse=True)
def library():
    loaded = native.library()
    if loaded is None:
        assert not SANITIZED, native.status()
        pytest.skip(f"no C kernels: {native.status()}")
    return loaded


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def displaced(tensor, dtype):
    """Return a copy that begins one element into its memory, and ends where that ends."""
    memory = torch.empty(tensor.numel() + 1, dtype=dtype)
    return memory[1:].copy_(tensor.flatten()).view(tensor.shape)


# T, B, E, H: on both sides of the vectors of all CPUs, of panels of four, and of the rows at once.
SIZES = [
    *[(1, 1, 1, 1), (3, 2, 5, 3), (2, 3, 1, 5), (2, 4, 16, 15), (2, 7, 17, 16), (3, 6, 2, 17)],
    *[(2, 5, 33, 31), (1, 13, 3, 63), (3, 1, 8, 64), (2, 2, 1, 65), (70, 5, 3, 9)],
    *[(1, 257, 3, 2), (2, 3, 1537, 7), (2, 49, 70, 35)],
]


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "bfloat16 products"])
def test_no_size_reads_or_writes_beside_its_memory(
    library, threads, nan_workspaces, monkeypatch, kind, size, reverse
):
    from ulmfit_fast.kernels.cpu import lstm

    fast = kind == "bfloat16 products"
    if fast and not library.has_bfloat16():
        pytest.skip("this library has no products in bfloat16")
    monkeypatch.setattr(lstm, "has_bfloat16_products", lambda dtype: fast)
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    steps, batch, inputs, hidden = size
    x, h0, c0 = (torch.randn(s) for s in ((steps, batch, inputs), (batch, hidden), (batch, hidden)))
    w_ih, w_hh, bias = (torch.randn(4 * hidden, n) / n**0.5 for n in (inputs, hidden, 1))
    grad = torch.randn(steps, batch, hidden)
    tensors = [displaced(t, dtype) for t in (x, h0)]
    tensors += [displaced(c0, torch.float32), *(displaced(t, dtype) for t in (w_ih, w_hh))]
    bias, grad = displaced(bias.squeeze(1), torch.float32), displaced(grad, dtype)
    for lengths, gate_p in ((None, 0.0), (torch.randint(steps + 1, (batch,)), 0.25)):
        truth = [t.double().requires_grad_() for t in (*tensors, bias)]
        options = {"weight_p": 0.5, "gate_p": gate_p, "seed": 7, "reverse": reverse}
        options |= {"lengths": lengths, "backend": "reference"}
        x_64, h_64, c_64, *rest = truth
        output, state = functional.lstm(x_64, (h_64, c_64), *rest, None, **options)
        total = (output * grad.double()).sum() + sum(each.sum() for each in state)
        right = [output, *state, *torch.autograd.grad(total, truth)]

        masks = lstm.Masks(7, (0.5,) * 4, (gate_p,) * 4, False, int(reverse))
        given, weights = tensors[:3], tensors[3:]
        forward = lstm.forward(*given, weights, bias, lengths, masks, keep=True)
        ones, kept = torch.ones(batch, hidden), (forward[0], *forward[3:])
        grads = lstm.backward((grad, ones, ones), *given, weights, lengths, masks, kept, [True] * 6)
        # Rounding in bfloat16 is 1/256 an operation; what was never written is NaN.
        allowed = 1e-5 if dtype == torch.float32 else 0.1
        for name, value, wanted in zip(NAMES, [*forward[:3], *grads], right, strict=True):
            scale = max(1.0, wanted.abs().max().item())
            assert (value.double() - wanted).abs().max() <= allowed * scale, name
        thin = lstm.forward(*given, weights, None, lengths, masks, keep=False)
        assert not any(t.isnan().any() for t in thin)


NAMES = ["output", "h_n", "c_n", "x", "h_0", "c_0", "w_ih", "w_hh", "bias"]


@pytest.mark.skipif(not SANITIZED, reason="make sanitize-cpu")
@pytest.mark.parametrize(
    ("address", "n", "seen"),
    [("x", 33, "AddressSanitizer: heap-buffer-overflow"), ("x + 1", 16, "misaligned address")],
)
def test_the_sanitizers_see_what_is_done_to_them(address, n, seen):
    code = f"""
import torch
from ctypes import c_int64, c_void_p
from ulmfit_fast.kernels.cpu.library import library
memory = torch.zeros(32)
x = memory.data_ptr()
library().ulmfit_fast_check_tanh(c_void_p({address}), c_int64({n}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and seen in done.stderr
