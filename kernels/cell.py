"""The LSTM cell on values: activations, their derivatives, and one step of both directions.

Everything is float32, whatever the inputs' dtype. The gates of a unit stand side by side in a tile
of (ROWS, 4 UNITS): column 4 unit + gate, gates in PyTorch's order i, f, g, o.
"""

import triton
import triton.language as tl

__all__ = ["activate", "cell_backward", "cell_forward", "split_gates", "tanh"]


@triton.jit
def _tanh_small(x):
    """Taylor polynomial: below |x| = 0.4 its truncation is less than half a unit of float32."""
    y = x * x
    p = y * (-1382.0 / 155925.0) + (62.0 / 2835.0)
    p = p * y + (-17.0 / 315.0)
    p = p * y + (2.0 / 15.0)
    p = p * y + (-1.0 / 3.0)
    return x + x * y * p


@triton.jit
def tanh(x):
    """Accurate near 0, where 1 - 2/(e^2x + 1) cancels; exactly 1 or -1 once e^-2x overflows."""
    large = 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
    return tl.where(tl.abs(x) < 0.4, _tanh_small(x), large)


@triton.jit
def activate(x, columns):
    """Sigmoid for i, f and o, tanh for g, on the interleaved tile.

    One exponential serves both. Activating after the split instead makes the compiler do all of it
    twice, once more for the copy that is saved.
    """
    is_g = (columns % 4 == 2)[None, :]  # (1, 4 UNITS)
    s = 1.0 / (1.0 + tl.exp(-tl.where(is_g, 2.0 * x, x)))
    t = tl.where(tl.abs(x) < 0.4, _tanh_small(x), 2.0 * s - 1.0)
    return tl.where(is_g, t, s)


@triton.jit
def split_gates(x, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """(ROWS, 4 UNITS) interleaved into i, f, g, o, each (ROWS, UNITS)."""
    i_or_g, f_or_o = tl.split(tl.reshape(x, (ROWS, UNITS, 2, 2)))  # each (ROWS, UNITS, 2)
    i, g = tl.split(i_or_g)  # (ROWS, UNITS)
    f, o = tl.split(f_or_o)
    return i, f, g, o


@triton.jit
def cell_forward(i, f, g, o, c):
    """Masked activated gates and the old cell state to the new h and c."""
    c = f * c + i * g
    return o * tanh(c), c


@triton.jit
def cell_backward(s_i, s_f, s_g, s_o, z_i, z_f, z_g, z_o, c, c_prev, grad_h, grad_c):
    """Gradients of the four pre-activations, and of the cell state of the step before.

    s are the activated gates before their masks z; grad_c does not yet hold what h brings.
    """
    tanh_c = tanh(c)
    grad_c += grad_h * (s_o * z_o) * (1.0 - tanh_c * tanh_c)
    grad_i = grad_c * (s_g * z_g) * z_i * s_i * (1.0 - s_i)
    grad_f = grad_c * c_prev * z_f * s_f * (1.0 - s_f)
    grad_g = grad_c * (s_i * z_i) * z_g * (1.0 - s_g * s_g)
    grad_o = grad_h * tanh_c * z_o * s_o * (1.0 - s_o)
    return grad_i, grad_f, grad_g, grad_o, grad_c * (s_f * z_f)
