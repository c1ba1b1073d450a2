"""How far rounding may take a result: a bound that is the same on every processor.

A product of n terms in floating point is the exact product of operands of which each is moved by at
most n units of rounding, in whatever order it was summed (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, section 3.1), and as good as surely by a small multiple of the root of n
(Higham & Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019). So the truth, in
float64, is computed again from operands that are moved by so much, up or down at random; how far
that takes each result is what rounding may do. What another implementation happens to be off by on
this processor is no measure.
"""

import torch

# Roundings to the dtype itself between an operand and a result: operand, gates, state, output.
_STORED = 4
_DRAWS = 4


def moved(values, relative, draw):
    """Return the tensors with each element moved by a relative amount, up or down."""
    generator = torch.Generator().manual_seed(1000 + draw)
    signs = [2 * torch.randint(2, value.shape, generator=generator) - 1 for value in values]
    return [
        value.detach().double() * (1 + relative * sign.to(value.device))
        for value, sign in zip(values, signs, strict=True)
    ]


def errors(got, truth):
    """Return the relative error of each tensor, in the norm over all its elements."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(got, truth, strict=True)]
    return [float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in pairs]


def reach(function, operands, *, terms):
    """Return how far rounding may take each result from the truth, relative, in the norm.

    Args:
        function: from a list of float64 tensors to a list of results.
        operands: in the dtype of the computation; products are summed in float32 at least.
        terms: of the longest sum that is formed of them.
    """
    dtype = operands[0].dtype
    summed = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    relative = (min(terms, 2 * terms**0.5) * summed + _STORED * torch.finfo(dtype).eps) / 2
    truth = function(moved(operands, 0.0, 0))
    draws = [errors(function(moved(operands, relative, n)), truth) for n in range(_DRAWS)]
    # The result is rounded too, and so is the gradient that a backward is given.
    return [max(of_one) + 2 * torch.finfo(dtype).eps for of_one in zip(*draws, strict=True)]


def assert_within(got, truth, bounds, names=None):
    """Assert that no result is farther from the truth than its bound."""
    found = errors(got, truth)
    names = names or range(len(found))
    for name, error, bound in zip(names, found, bounds, strict=True):
        assert error <= bound, f"{name}: off by {error:.2e}, rounding reaches {bound:.2e}"
