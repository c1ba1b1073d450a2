"""Sums over rows in float32, of sums.c."""

import ctypes

import torch

from ulmfit_fast.kernels.cpu.calls import address, function, threads

__all__ = ["add_column_sums"]


class _Sums(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns", "stride", "threads")),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


def add_column_sums(out, x):
    """Add the sums over the rows of x `(N, M)`, float32 or bfloat16, to out `(M,)` float32."""
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, columns = x.shape
    call = _Sums(rows, columns, x.stride(0), threads(), address(x), address(out))
    function("column_sums")(ctypes.byref(call), x.dtype == torch.bfloat16)
