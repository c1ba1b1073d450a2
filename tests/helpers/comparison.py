"""Runs one layer on any backend, and on the reference in float64."""

import torch
from rounding import assert_within, reach

from ulmfit_fast import functional

NAMES = ["output", "h_n", "c_n", "x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh"]


def tensors(steps, batch_size, input_size, hidden_size, dtype, *, seed=0, device="cpu"):
    """Return x, h0, c0, w_ih, w_hh, b_ih and b_hh."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (steps, batch_size, input_size),
        (batch_size, hidden_size),
        (batch_size, hidden_size),
        (4 * hidden_size, input_size),
        (4 * hidden_size, hidden_size),
        (4 * hidden_size,),
        (4 * hidden_size,),
    ]
    scales = [1.0, 0.5, 0.5, 0.3, hidden_size**-0.5, 0.1, 0.1]
    return [
        (torch.randn(shape, generator=generator) * scale).to(device, dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def run(backend, inputs, *, wide=False, keep=None, **settings):
    """Return outputs and gradients of a layer.

    Args:
        backend: any backend; "triton-stepwise" and "triton-persistent" call the kernels.
        inputs: what `tensors` returned.
        wide: compute in float64 from the same values.
        keep: what the forward keeps, see `lstm_operator`.
        settings: of `functional.lstm`.
    """
    leaves = [(t.double() if wide else t).clone().requires_grad_() for t in inputs]
    x, h0, c0, *weights = leaves
    output, (h_n, c_n) = functional.lstm(
        x, (h0, c0), *weights, backend=backend, recompute_gates=keep == "cells", **settings
    )
    loss = 0.0
    for number, part in enumerate((output, h_n, c_n)):
        generator = torch.Generator().manual_seed(100 + number)
        weights = torch.randn(part.shape, generator=generator).to(part.device)
        loss = loss + (part.double() * weights.double()).sum()
    loss.backward()
    return [output.detach(), h_n.detach(), c_n.detach(), *(leaf.grad for leaf in leaves)]


def bounds(inputs, **settings):
    """Return how far rounding may take each result of `run` on these inputs."""
    x, w_hh = inputs[0], inputs[4]
    # Of a gate; a gradient sums over the gates, or over steps and rows.
    terms = max(4 * w_hh.shape[1], x.shape[2] + w_hh.shape[1] + 2, x.shape[0] * x.shape[1])
    return reach(lambda moved: run("reference", moved, **settings), inputs, terms=terms)


def assert_within_rounding(backend, inputs, **settings):
    """Assert that no result is farther from float64 than rounding takes it."""
    keep = settings.pop("keep", None)
    truth = run("reference", inputs, wide=True, **settings)
    got = run(backend, inputs, keep=keep, **settings)
    assert_within(got, truth, bounds(inputs, **settings), NAMES)


def uninterleave(matrix):
    """Put the rows of a `(4H, ...)` matrix, whose unit's gates are adjacent, in PyTorch's order."""
    return matrix.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
