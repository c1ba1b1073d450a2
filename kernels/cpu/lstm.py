"""The LSTM of lstm.c on tensors: its buffers, its arguments, and the large products after it."""

import ctypes
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ulmfit_fast.kernels.cpu.calls import Dropout, address, dropout, function, threads
from ulmfit_fast.kernels.cpu.library import library
from ulmfit_fast.kernels.cpu.masks import drop_weight
from ulmfit_fast.kernels.cpu.matmul import add_matmul
from ulmfit_fast.kernels.cpu.sums import add_column_sums
from ulmfit_fast.kernels.cpu.weight_cache import cached

__all__ = ["PRODUCTS_VARIABLE", "Masks", "backward", "forward", "has_bfloat16_products"]

PRODUCTS_VARIABLE = "ULMFIT_FAST_PRODUCTS"

_I, _P = ctypes.c_int64, ctypes.c_void_p
# Rows, steps times batch, whose products with W are formed at once: the weight is read once for
# them, and their sums stay in the cache.
_ROWS = 256
# Sums are in float32, whatever PyTorch's defaults are.
_SUMS = {"dtype": torch.float32, "device": "cpu"}
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


class Masks(NamedTuple):
    """What is dropped in a call: a seed, and four probabilities each for weights and gates."""

    seed: int
    weight_p: Sequence
    gate_p: Sequence
    sequence: bool
    stream: int

    def of_weight(self):
        """Return the C argument of weight-drop."""
        return dropout(self.seed, self.stream, self.weight_p)

    def of_gates(self):
        """Return the C argument of gate dropout."""
        return dropout(self.seed, self.stream, self.gate_p)


def has_bfloat16_products(dtype):
    """Say whether the products of a dtype are formed in bfloat16.

    They are where the CPU has instructions for them: with AVX512-BF16 alone they were measured at
    twice the rate of float32's on an EPYC.

    Raises:
        ValueError: if ULMFIT_FAST_PRODUCTS asks for what is not here.
    """
    if dtype != torch.bfloat16:
        return False
    asked, there = os.environ.get(PRODUCTS_VARIABLE, ""), bool(library().has_bfloat16())
    if asked not in ("", "float32", "bfloat16"):
        raise ValueError(f"{PRODUCTS_VARIABLE} is {asked!r}, expected float32 or bfloat16")
    if asked == "bfloat16" and not there:
        raise ValueError(
            f"{PRODUCTS_VARIABLE} is bfloat16, and this CPU or its compiler has no such products; "
            "unset it, or take float32"
        )
    return there and asked != "float32"


def _round_to_even(n, in_pairs):
    return n + n % 2 if in_pairs else n


def _packed(weight, drop, *, transposed):
    """Copy a weight `(4H, K)` or `(4H, H)` into panels, dropped: `(P, K, 4 LANES)`."""
    weight = weight.contiguous()
    hidden, depth = weight.shape[0] // 4, weight.shape[1]
    lanes, pairs = library().lanes(), has_bfloat16_products(weight.dtype)
    width = 4 * lanes if transposed else lanes
    rows = 4 * hidden if transposed else _round_to_even(depth, pairs)
    dtype = torch.bfloat16 if pairs else torch.float32
    packed = torch.empty(-(-hidden // width), rows, 4 * lanes, dtype=dtype, device="cpu")
    call = _Packing(hidden, depth, threads(), transposed, address(weight), address(packed), drop)
    function("pack_weight")(ctypes.byref(call), weight.dtype == torch.bfloat16, pairs)
    return packed


def forward(x, h0, c0, weights, bias, lengths, masks, *, keep):
    """Run one layer in one direction.

    Args:
        x: `(T, B, E)` float32 or bfloat16.
        h0: `(B, H)`, as x.
        c0: `(B, H)` float32.
        weights: `(4H, E)` and `(4H, H)`, as x.
        bias: `(4H,)` float32, or None.
        lengths: `(B,)` int64, or None.
        masks: what is dropped.
        keep: whether gates and cells are wanted.

    Returns:
        output `(T, B, H)` and h_n `(B, H)` as x, c_n `(B, H)` float32; gates `(T, B, 4H)` as x and
        cells `(T, B, H)` float32, or both empty.
    """
    w_ih, w_hh = weights
    steps, batch, inputs = x.shape
    hidden, lanes, pairs = w_hh.shape[1], library().lanes(), has_bfloat16_products(x.dtype)
    x, h0 = x.contiguous(), h0.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    whole = dropout(0, 0, (0.0,) * 4)
    input_panels = cached(("packed", pairs), w_ih, lambda: _packed(w_ih, whole, transposed=False))
    if any(masks.weight_p):
        panels = _packed(w_hh, masks.of_weight(), transposed=False)
    else:
        panels = cached(("packed", pairs), w_hh, lambda: _packed(w_hh, whole, transposed=False))
    chunk = max(1, min(steps, -(-_ROWS // max(1, batch))))
    output, h_n = x.new_empty(steps, batch, hidden), x.new_empty(batch, hidden)
    c_n = c0.clone(memory_format=torch.contiguous_format)
    gates = x.new_empty((steps, batch, 4 * hidden) if keep else 0)  # (T, B, 4H)
    cells = c0.new_empty((steps, batch, hidden) if keep else 0)
    # Zeros, for where H is odd the last column is read and never written.
    states = panels.new_zeros(2, batch, _round_to_even(hidden, pairs))  # (2, B, H)
    rows = None
    if x.dtype != panels.dtype or inputs != _round_to_even(inputs, pairs):
        rows = panels.new_empty(chunk, batch, _round_to_even(inputs, pairs))  # (S, B, E)
    sums = torch.empty(panels.shape[0], chunk, batch, 4 * lanes, **_SUMS)  # (P, S, B, 4 LANES)
    call = _Forward(
        *(steps, batch, inputs, hidden, threads(), masks.stream & 1, masks.sequence, chunk),
        *map(address, (x, input_panels, panels, bias, lengths, h0, c_n, states, rows, sums)),
        *map(address, (output, h_n, gates if keep else None, cells if keep else None)),
        masks.of_gates(),
    )
    function("lstm_forward")(ctypes.byref(call), x.dtype == torch.bfloat16, pairs)
    return output, h_n, c_n, gates, cells


def backward(grads, x, h0, c0, weights, lengths, masks, kept, needs):
    """Differentiate `forward`.

    Args:
        grads: of output `(T, B, H)`, and in float32 of h_n and c_n, `(B, H)`.
        x: `(T, B, E)` as in the forward; so are h0, c0, weights, lengths and masks.
        h0: `(B, H)`.
        c0: `(B, H)`.
        weights: `(4H, E)` and `(4H, H)`.
        lengths: `(B,)`.
        masks: what is dropped.
        kept: output, gates and cells of the forward.
        needs: which of the results are wanted.

    Returns:
        grad_x as x, and in float32 grad_h0, grad_c0, grad_w_ih, grad_w_hh and grad_bias.
    """
    grad_output, grad_h_n, grad_c_n = grads
    output, gates, cells = kept
    w_ih, w_hh = weights
    steps, batch, inputs = x.shape
    hidden, lanes, reverse = w_hh.shape[1], library().lanes(), masks.stream & 1
    grad_output, c0 = grad_output.contiguous(), c0.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    panels = _packed(w_hh, masks.of_weight(), transposed=True)
    padded = panels.shape[0] * 4 * lanes
    grad_h = torch.zeros(batch, padded, **_SUMS)
    grad_h[:, :hidden] = grad_h_n  # (B, 4 LANES P)
    grad_h = (
        grad_h.view(batch, panels.shape[0], 4 * lanes).transpose(0, 1).contiguous()
    )  # (P, B, 4 LANES)
    grad_c = grad_c_n.clone(memory_format=torch.contiguous_format)
    grad_x = x.new_empty(x.shape if needs[0] else 0)
    grad_w_ih = torch.zeros(w_ih.shape if needs[3] else 0, **_SUMS)
    grad_w_hh = torch.zeros(w_hh.shape if needs[4] else 0, **_SUMS)
    grad_bias = torch.zeros(4 * hidden if needs[5] else 0, **_SUMS)
    before = _states_before(h0, output, lengths, reverse) if needs[4] else None
    chunk = max(1, min(steps, _HELD // max(1, 4 * hidden * batch)))
    starts = range(0, steps, chunk)
    for start in starts if reverse else reversed(starts):
        inside = slice(start, min(steps, start + chunk))
        last = inside.stop == steps if reverse else start == 0
        sums = panels.new_empty(inside.stop - start, batch, 4 * hidden)  # da, (S, B, 4H)
        call = _Backward(
            *(steps, batch, hidden, threads(), reverse, masks.sequence, start, inside.stop),
            not last or needs[1],
            *map(address, (panels, lengths, gates, cells, c0, grad_output, grad_h, grad_c, sums)),
            masks.of_gates(),
        )
        pairs = panels.dtype == torch.bfloat16
        function("lstm_backward")(ctypes.byref(call), x.dtype == torch.bfloat16, pairs)
        flat = sums.view(sums.shape[0] * batch, 4 * hidden)  # (SB, 4H)
        if needs[0]:
            add_matmul(grad_x[inside].view(len(flat), inputs), flat, w_ih, fresh=True)  # (SB, E)
        if needs[3]:
            add_matmul(grad_w_ih, flat.t(), x[inside].reshape(len(flat), inputs))  # (4H, E)
        if before is not None:
            add_matmul(grad_w_hh, flat.t(), before[inside].reshape(len(flat), hidden))  # (4H, H)
        if needs[5]:
            add_column_sums(grad_bias, flat)  # (4H,)
    if needs[4] and any(masks.weight_p):
        grad_w_hh = drop_weight(grad_w_hh, masks.seed, masks.weight_p, masks.stream, gradient=True)
    grad_h0 = grad_h.transpose(0, 1).reshape(batch, padded)[:, :hidden]  # (B, H)
    return grad_x, grad_h0, grad_c, grad_w_ih, grad_w_hh, grad_bias


def _states_before(h0, output, lengths, reverse):
    """Return the state that each step began with, `(T, B, H)`."""
    if not reverse:
        return torch.cat([h0[None], output[:-1]])  # (T, B, H)
    before = torch.cat([output[1:], h0[None]])  # (T, B, H)
    if lengths is not None:
        # The first step of a row is its last one; what follows in memory is padding.
        rows = (lengths > 0).nonzero().squeeze(1)
        before[lengths[rows] - 1, rows] = h0[rows]
    return before
