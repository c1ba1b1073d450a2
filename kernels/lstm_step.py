"""What a step does with its pre-activations, and backwards with its gradients, in both forms."""

import triton
import triton.language as tl

from ulmfit_fast.kernels.cell import activate, cell_backward, cell_forward, split_gates
from ulmfit_fast.kernels.philox import interleave_columns, scales_of_bits

__all__ = ["finish_step", "step_gradients"]


@triton.jit
def finish_step(
    acc,
    c,
    columns,
    bits,
    gate_drop,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    GATE_MASK: tl.constexpr,
):
    """Pre-activations (ROWS, 4 UNITS) and the old c to the activated gates, h and c."""
    act = activate(acc, columns)  # (ROWS, 4 UNITS)
    i, f, g, o = split_gates(act, ROWS, UNITS)  # each (ROWS, UNITS)
    if GATE_MASK != 0:
        z_i, z_f, z_g, z_o = scales_of_bits(bits, gate_drop)  # each (ROWS, UNITS)
        i, f, g, o = i * z_i, f * z_f, g * z_g, o * z_o
    h, c = cell_forward(i, f, g, o, c)  # (ROWS, UNITS)
    return act, h, c


@triton.jit
def step_gradients(
    act,
    c,
    c_prev,
    grad_h,
    grad_c,
    bits,
    gate_drop,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    GATE_MASK: tl.constexpr,
):
    """Gradients of a step's pre-activations (ROWS, 4 UNITS), and of the cell state before it."""
    s_i, s_f, s_g, s_o = split_gates(act, ROWS, UNITS)  # each (ROWS, UNITS)
    if GATE_MASK != 0:
        z_i, z_f, z_g, z_o = scales_of_bits(bits, gate_drop)  # each (ROWS, UNITS)
    else:
        z_i, z_f, z_g, z_o = 1.0, 1.0, 1.0, 1.0
    g_i, g_f, g_g, g_o, grad_c = cell_backward(
        s_i, s_f, s_g, s_o, z_i, z_f, z_g, z_o, c, c_prev, grad_h, grad_c
    )
    return interleave_columns(g_i, g_f, g_g, g_o, ROWS, UNITS), grad_c
