"""The activated gates again, for a forward that did not keep them."""

import torch
import triton
import triton.language as tl

from ulmfit_fast.kernels.cell import activate
from ulmfit_fast.kernels.launch import cdiv, launch

__all__ = ["activate_gates", "previous_states"]


@triton.jit(do_not_specialize=["rows"])
def activate_kernel(gates, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Activate (rows, WIDTH) interleaved pre-activations in place."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = gates + row[:, None] * WIDTH + column[None, :]  # (ROWS, COLUMNS)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    value = activate(tl.load(at, mask=inside, other=0.0).to(tl.float32), column)
    tl.store(at, value.to(gates.dtype.element_ty), mask=inside)


def activate_gates(gates):
    """Activate pre-activations `(T, B, 4H)`, interleaved, in place."""
    width = gates.shape[2]
    rows = gates.numel() // width  # T B
    constants = {"WIDTH": width, "ROWS": 8, "COLUMNS": 256}
    grid = (cdiv(rows, 8), cdiv(width, 256))
    launch(activate_kernel, grid, (gates, rows), constants, {"num_warps": 4})


def previous_states(output, h0, lengths, reverse):
    """Return the h that each step began with, `(T, B, H)`.

    Args:
        output: `(T, B, H)`.
        h0: `(B, H)`.
        lengths: `(B,)` or None.
        reverse: the direction.
    """
    first = h0.to(output.dtype)[None]  # (1, B, H)
    if not reverse:
        return torch.cat([first, output[:-1]])  # (T, B, H)
    before = torch.cat([output[1:], first])  # (T, B, H)
    if lengths is not None:
        # A row's first step in this direction is its last one in time.
        last = (lengths.long() - 1).clamp_min(0)
        rows = torch.arange(last.numel(), dtype=torch.int64, device=last.device)
        before[last, rows] = first[0]
    return before
