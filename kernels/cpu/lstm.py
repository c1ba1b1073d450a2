"""The LSTM of lstm.c on tensors: its buffers, its arguments, and the large products after it."""

import ctypes

import torch

from ulmfit_fast.kernels.cpu.calls import Dropout, address, dropout, function, threads
from ulmfit_fast.kernels.cpu.library import library

__all__ = ["backward", "forward"]

_I, _P = ctypes.c_int64, ctypes.c_void_p
# Rows, steps times batch, whose products with W are formed at once: the weight is read once for
# them, and their sums stay in the cache.
_ROWS = 256
# Elements of the gradients of the pre-activations that are held at once.
_HELD = 1 << 24


class _Packing(ctypes.Structure):
    _fields_ = (
        *((name, _I) for name in ("hidden", "depth", "threads", "transposed")),
        ("weight", _P),
        ("panels", _P),
        ("drop", Dropout),
    )


class _Forward(ctypes.Structure):
    _fields_ = (
        *((name, _I) for name in ("steps", "batch", "input", "hidden", "threads")),
        *((name, _I) for name in ("reverse", "sequence", "chunk")),
        *((name, _P) for name in ("x", "input_panels", "panels", "bias", "lengths", "h0", "c")),
        *((name, _P) for name in ("h", "rows", "sums", "output", "h_n", "gates", "cells")),
        ("drop", Dropout),
    )


class _Backward(ctypes.Structure):
    _fields_ = (
        *((name, _I) for name in ("steps", "batch", "hidden", "threads", "reverse", "sequence")),
        *((name, _I) for name in ("first", "last", "products")),
        *((name, _P) for name in ("panels", "lengths", "gates", "cells", "c0", "grad_output")),
        *((name, _P) for name in ("grad_h", "grad_c", "grad_sums")),
        ("drop", Dropout),
    )


def _even(n, fast):
    return n + n % 2 if fast else n


def _packed(weight, drop, *, transposed, fast):
    hidden, depth = weight.shape[0] // 4, weight.shape[1]
    lanes = library().lanes()
    width = 4 * lanes if transposed else lanes
    rows = 4 * hidden if transposed else _even(depth, fast)
    panels = -(-hidden // width)
    dtype = torch.bfloat16 if fast else torch.float32
    packed = torch.empty(panels, rows, 4 * lanes, dtype=dtype)
    call = _Packing(
        hidden, depth, threads(), transposed, address(weight), address(packed), drop
    )
    function("pack_weight")(ctypes.byref(call), weight.dtype == torch.bfloat16, fast)
    return packed


def forward(x, h0, c0, w_ih, w_hh, bias, lengths, seed, weight_p, gate_p, sequence, stream, *,
            keep, fast):
    """Run one layer in one direction.

    Args:
        x: `(T, B, E)` float32 or bfloat16; so are h0 `(B, H)`, w_ih `(4H, E)`, w_hh `(4H, H)`.
        c0: `(B, H)` float32.
        bias: `(4H,)` float32, or None.
        lengths: `(B,)` int64, or None.
        keep: whether gates `(T, B, 4H)` and cells `(T, B, H)` are wanted.
        fast: whether the products are in bfloat16.

    Returns:
        output, h_n, c_n, gates and cells, the last two empty unless they are kept.
    """
    steps, batch, inputs = x.shape
    hidden = w_hh.shape[1]
    lanes = library().lanes()
    x, h0, w_ih, w_hh = (tensor.contiguous() for tensor in (x, h0, w_ih, w_hh))
    no_drop = dropout(seed, stream, (0.0,) * 4)
    input_panels = _packed(w_ih, no_drop, transposed=False, fast=fast)
    panels = _packed(w_hh, dropout(seed, stream, weight_p), transposed=False, fast=fast)
    wide = torch.bfloat16 if fast else torch.float32
    chunk = max(1, min(steps, -(-_ROWS // max(1, batch))))
    output = x.new_empty(steps, batch, hidden)
    h_n, c_n = x.new_empty(batch, hidden), c0.clone(memory_format=torch.contiguous_format)
    gates = x.new_empty((steps, batch, 4 * hidden) if keep else 0)
    cells = c0.new_empty((steps, batch, hidden) if keep else 0)
    # Zeros, for where H is odd the last column is read and never written.
    states = torch.zeros(2, batch, _even(hidden, fast), dtype=wide)
    rows = None
    if x.dtype != wide or inputs != _even(inputs, fast):
        rows = torch.empty(chunk, batch, _even(inputs, fast), dtype=wide)
    sums = torch.empty(panels.shape[0], chunk, batch, 4 * lanes)
    call = _Forward(
        steps, batch, inputs, hidden, threads(), stream & 1, sequence, chunk,
        address(x), address(input_panels), address(panels), address(bias), address(lengths),
        address(h0), address(c_n), address(states), address(rows), address(sums),
        address(output), address(h_n), address(gates) if keep else None,
        address(cells) if keep else None, dropout(seed, stream, gate_p),
    )
    function("lstm_forward")(ctypes.byref(call), x.dtype == torch.bfloat16, fast)
    return output, h_n, c_n, gates, cells


def backward(grad_output, grad_h_n, grad_c_n, x, h0, c0, w_ih, w_hh, lengths, seed, weight_p,
             gate_p, sequence, stream, output, gates, cells, needs, *, fast):
    """Differentiate `forward`; returns grad_x, grad_h0, grad_c0, grad_w_ih, grad_w_hh, grad_bias."""
    steps, batch, inputs = x.shape
    hidden = w_hh.shape[1]
    lanes = library().lanes()
    wide = torch.bfloat16 if fast else torch.float32
    drop = dropout(seed, stream, weight_p)
    panels = _packed(w_hh.contiguous(), drop, transposed=True, fast=fast)
    reverse = stream & 1
    grad_output = grad_output.contiguous()
    padded = panels.shape[0] * 4 * lanes
    grad_h = torch.zeros(batch, padded)
    grad_h[:, :hidden] = grad_h_n
    grad_h = grad_h.view(batch, panels.shape[0], 4 * lanes).transpose(0, 1).contiguous()
    grad_c = grad_c_n.clone(memory_format=torch.contiguous_format)
    chunk = max(1, min(steps, _HELD // max(1, 4 * hidden * batch)))
    grad_x = x.new_empty(x.shape if needs[0] else 0)
    grad_w_ih = torch.zeros(w_ih.shape if needs[3] else 0)
    grad_w_hh = torch.zeros(w_hh.shape if needs[4] else 0)
    grad_bias = torch.zeros(4 * hidden if needs[5] else 0)
    before = _states_before(h0, output, lengths, reverse)
    starts = range(0, steps, chunk)
    for start in starts if reverse else reversed(starts):
        stop = min(steps, start + chunk)
        grads = torch.empty(stop - start, batch, 4 * hidden, dtype=wide)
        last = stop == steps if reverse else start == 0
        call = _Backward(
            steps, batch, hidden, threads(), reverse, sequence, start, stop,
            not last or needs[1], address(panels), address(lengths), address(gates),
            address(cells), address(c0), address(grad_output), address(grad_h), address(grad_c),
            address(grads), dropout(seed, stream, gate_p),
        )
        function("lstm_backward")(ctypes.byref(call), x.dtype == torch.bfloat16, fast)
        flat = grads.view(-1, 4 * hidden)
        if needs[0]:
            grad_x[start:stop] = torch.mm(flat, w_ih.to(wide)).view(-1, batch, inputs)
        if needs[3]:
            grad_w_ih += torch.mm(flat.t(), x[start:stop].reshape(-1, inputs).to(wide))
        if needs[4]:
            grad_w_hh += torch.mm(flat.t(), before[start:stop].reshape(-1, hidden).to(wide))
        if needs[5]:
            grad_bias += flat.sum(0, dtype=torch.float32)
    grad_h0 = grad_h.transpose(0, 1).reshape(batch, padded)[:, :hidden]
    return grad_x, grad_h0, grad_c, grad_w_ih, grad_w_hh, grad_bias


def _states_before(h0, output, lengths, reverse):
    """Return the state that each step began with, `(T, B, H)`."""
    if not reverse:
        return torch.cat([h0[None], output[:-1]])
    before = torch.cat([output[1:], h0[None]])
    if lengths is not None:
        # The first step of a row is its last one; what follows in memory is padding.
        rows = (lengths > 0).nonzero().squeeze(1)
        before[lengths[rows] - 1, rows] = h0[rows]
    return before
