"""The launch of a variant, recorded on buffers without data."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from benchmarks.compile.inspect import Launch, recorded
from benchmarks.compile.small import launch_small
from benchmarks.compile.variants import DEVICES, DTYPES, MODES, Variant
from ulmfit_fast.kernels import (  # noqa: TID251
    backward_persistent,
    backward_stepwise,
    forward_persistent,
    forward_stepwise,
    tiles,
)
from ulmfit_fast.kernels.launch import DropArguments, LayerCall  # noqa: TID251

__all__ = ["record"]


def record(variant: Variant) -> tuple[Launch | None, Any, bool, str]:
    """Return the launch of a variant, its tiles, whether it is the default, and why not."""
    device, dtype = DEVICES[variant.arch], DTYPES[variant.dtype]
    if variant.form == "small":
        with recorded() as launches:
            launch_small(variant.kernel, variant.batch, dtype)
        return launches[0], None, True, ""
    sizes = {"batch_size": variant.batch, "hidden_size": variant.hidden, "dtype": dtype}
    instead = variant.alternative.applied() if variant.alternative else contextlib.nullcontext()
    with recorded() as launches, instead:
        plan, chosen = (
            tiles.choose(device, precision="tf32", form=form, **sizes)
            for form in (variant.form, None)
        )
        if plan.form is None:
            return None, None, False, plan.reason
        tile = _launch(variant, plan, dtype)
    default = plan._replace(reason="") == chosen._replace(reason="") and not variant.alternative
    return launches[0], tile, default, "" if default or variant.alternative else chosen.reason


def _launch(variant, plan, dtype):
    """Run the launcher of a variant on buffers without data, and return its tiles."""
    steps, batch, hidden, mode = 2, variant.batch, variant.hidden, MODES[variant.mode]

    def buffer(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def wide(*shape):
        return buffer(*shape, dtype=torch.float32)

    seed = buffer(dtype=torch.int64)
    lengths = buffer(batch, dtype=torch.int32) if mode.padded else None
    gates, weight = buffer(steps, batch, 4 * hidden), buffer(4 * hidden, hidden)
    cells = wide(steps + 1 if mode.keep_cells else 1, batch, hidden)
    call = LayerCall(
        weight_drop=DropArguments.of([mode.weight_p] * 4),
        gate_drop=DropArguments.of([0.1 if mode.gate_mask else 0.0] * 4),
        gate_mask=mode.gate_mask,
        reverse=mode.padded,
        mask_stream=2 + mode.padded,
        precision="tf32",
        keep_gates=mode.keep_gates,
        keep_cells=mode.keep_cells,
    )
    if variant.kernel == "forward":
        buffers = (gates, weight, buffer(steps + 1, batch, hidden), cells)
        run, tile = (
            (forward_persistent.run, plan.forward)
            if variant.persistent
            else (forward_stepwise.run, plan.forward_step)
        )
    else:
        ends = (wide(batch, hidden), wide(batch, hidden))
        buffers = (buffer(steps, batch, hidden), gates, cells, weight, *ends)
        run, tile = (
            (backward_persistent.run, plan.backward)
            if variant.persistent
            else (backward_stepwise.run, plan.backward_step)
        )
    run(*buffers, lengths, seed, call, tile)
    return tile
