"""The kernels beside the recurrence, as `compile_gate` has them compiled."""

import torch

from ulmfit_fast.kernels import (  # noqa: TID251
    cross_entropy,
    dropout,
    embedding,
    recompute,
    regularisers,
    weight_drop,
)
from ulmfit_fast.kernels.launch import DropArguments  # noqa: TID251

# The width each is compiled for: H, E or V.
SMALL = {
    "drop": 1152,
    "unmix": 1152,
    "activate": 1152,
    "locked": 1152,
    "embed": 400,
    "embed-grad": 400,
    "means": 400,
    "means-grad": 400,
    "cross-entropy": 60_008,
}


def _buffer(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta")


def launch_small(kernel: str, batch: int, dtype: torch.dtype) -> None:
    """Run the launcher of a small kernel on buffers without data, as large as a training step's."""
    steps, width, vocab = 70, SMALL[kernel], 60_008
    seed = _buffer(dtype=torch.int64)
    x = _buffer(steps, batch, width, dtype=dtype)
    match kernel:
        case "activate":
            recompute.activate_gates(_buffer(2, batch, 4 * width, dtype=dtype))
        case "drop" | "unmix":
            run = {"drop": weight_drop.drop_weight, "unmix": weight_drop.unmix_gradient}
            weight = _buffer(4 * width, width, dtype=dtype)
            run[kernel](weight, DropArguments.of([0.2] * 4), seed, 2)
        case "locked":
            dropout.drop_locked(x, seed, 0.3)
        case "embed" | "embed-grad":
            tokens = _buffer(steps, batch, dtype=torch.int64)
            source = _buffer(vocab, width, dtype=dtype) if kernel == "embed" else x
            gather = kernel == "embed"
            embedding.mask_rows(source, tokens, vocab, (seed, 0.1, seed, 0.3), gather=gather)
        case "means":
            regularisers.forward(x, seed, 0.4, False)
        case "means-grad":
            means = _buffer(2, dtype=torch.float32)
            regularisers.backward(x, means, x, seed, 0.4, False)
        case "cross-entropy":
            targets = _buffer(steps * batch, dtype=torch.int64)
            logits = _buffer(steps * batch, width, dtype=dtype)
            cross_entropy.softmax_cross_entropy_(logits, targets, -100, 0.1)
