"""Large products in float32, by the C kernels where they are faster than PyTorch's BLAS."""

import ctypes
import functools
import platform
from pathlib import Path

import torch

from ulmfit_fast.kernels.cpu.calls import address, function, threads
from ulmfit_fast.kernels.cpu.library import library

__all__ = ["add_matmul", "beats_torch"]

_I, _P = ctypes.c_int64, ctypes.c_void_p


class _Matmul(ctypes.Structure):
    _fields_ = (
        *((name, _I) for name in ("m", "n", "k", "threads", "accumulate")),
        ("a", _P),
        ("b", _P),
        *((name, _I) for name in ("a_row", "a_column", "b_row", "b_column")),
        ("c", _P),
        ("c_row", _I),
        ("panels", _P),
        ("edges", _P),
    )


@functools.lru_cache(maxsize=1)
def beats_torch():
    """Say whether the C product beats torch.mm here: MKL on a processor that is not Intel's.

    Measured on an EPYC of Zen 5, two threads: 190 against 370 GFLOP/s for a weight's gradient. On
    one of Zen 4, whose vectors of 512 bits are no faster than MKL's of 256, both are alike.
    """
    if library() is None:
        return False
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkl.is_available():
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def add_matmul(out, a, b, *, fresh=False):
    """Add `(M, K) @ (K, N)` to out, or write it there; in the dtype of a, summed in that of out.

    On any device; only on a CPU has it anything to choose.
    """
    b = b.to(a.dtype)
    fits = a.dtype == out.dtype == torch.float32 and a.device.type == "cpu" and a.numel() > 0
    if fits and beats_torch():
        _matmul(out, a, b, not fresh)
    elif not fresh and a.dtype == out.dtype:
        out.addmm_(a, b)
    elif not fresh:
        out.add_(torch.mm(a, b))
    elif a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(torch.mm(a, b))


def _matmul(out, a, b, accumulate):
    if 1 not in a.stride():
        a = a.contiguous()
    (m, k), n, of = a.shape, b.shape[1], library()
    for size in (of.matmul_panels, of.matmul_edges):
        size.restype, size.argtypes = _I, [_I]
    panels, edges = a.new_empty(of.matmul_panels(n)), a.new_empty(of.matmul_edges(threads()))
    call = _Matmul(
        *(m, n, k, threads(), accumulate, address(a), address(b), *a.stride(), *b.stride()),
        *(address(out), out.stride(0), address(panels), address(edges)),
    )
    function("matmul")(ctypes.byref(call))
