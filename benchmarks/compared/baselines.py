"""The layers that are compared: ours, and what one would use instead of it.

Every implementation is made from the same parameters, keeps its own copy of them, and can be run
with the masks of a given seed, so that all can be held against one truth.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ulmfit_fast as uf

TODAY = "F.dropout + nn.LSTM"
PLAIN = "nn.LSTM"
REFERENCE = "torch reference"
KERNELS = ("triton-persistent", "triton-stepwise")
# The persistent form with its weights on chip.
RESIDENT = "triton-resident"
SEED = 5

Weights = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass
class Implementation:
    """A stack of LSTM layers, as one implementation runs it.

    Attributes:
        name: what it is called in the report.
        dtype: of parameters and input.
        weight_p: weight-drop that it applies.
        gate_p: gate dropout that it applies.
        run: (T, B, E) -> (T, B, H), new masks each time.
        seeded: the same with the masks of a seed, a 0-d int64 tensor; without masks, as `run`.
        parameters: its own parameters, the recurrent weights as they are before dropout.
        recurrent: the recurrent weights among them.
        kernels: whether Triton compiles it.
        replays: whether a CUDA graph may replay `run`; a seed drawn on the host would be fixed.
        within: makes the context in which its forwards and backwards run.
    """

    name: str
    dtype: torch.dtype
    weight_p: float
    gate_p: float
    run: Callable[[Tensor], Tensor]
    seeded: Callable[[Tensor, Tensor], Tensor]
    parameters: list[nn.Parameter]
    recurrent: list[nn.Parameter]
    kernels: bool = False
    replays: bool = True
    within: Callable[[], AbstractContextManager[object]] = nullcontext


class WeightDropped(nn.Module):
    """nn.LSTM with a recurrent weight that is dropped in Python before each forward.

    This is how weight-drop is written with PyTorch's own LSTM: the dropped weight is a tensor of
    its own, so the weights are not views of one buffer and cuDNN's are gathered at every call.
    """

    def __init__(self, lstm: nn.LSTM, weight_p: float) -> None:
        super().__init__()
        self.raw = nn.Parameter(lstm.weight_hh_l0.detach().clone())
        self.weight_p = weight_p
        del lstm.weight_hh_l0
        self.lstm = lstm
        self._put(self.raw.detach())
        # Moving or casting the module would gather weights of which one is no parameter.
        lstm.flatten_parameters = lambda: None

    def _put(self, weight: Tensor) -> None:
        self.lstm.weight_hh_l0 = weight

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the LSTM; a given mask takes the place of a drawn one."""
        if mask is None:
            # A view, as with nothing to drop the parameter itself would become one of the LSTM's.
            self._put(F.dropout(self.raw.view_as(self.raw), self.weight_p, self.training))
        else:
            self._put(self.raw * mask)
        with warnings.catch_warnings():
            # On CUDA it warns of weights that are not one buffer.
            warnings.simplefilter("ignore")
            output, state = self.lstm(x, state)
        # It would hold this call's graph, and what later calls capture would add to its streams.
        self._put(self.raw.detach())
        return output, state


def make_weights(widths: Sequence[int], device: str) -> list[Weights]:
    """Draw the parameters of a stack of layers, as nn.LSTM draws them.

    Args:
        widths: E and the H of each layer.
        device: where they are.

    Returns:
        Of each layer w_ih, w_hh, b_ih, b_hh in float32.
    """
    pairs = itertools.pairwise(widths)
    return [tuple(uf.LSTM(e, h, device=device).all_weights[0]) for e, h in pairs]


def weight_mask(hidden_size: int, weight_p: float, seed: Tensor, like: Tensor) -> Tensor:
    """Return the mask that our layer applies under a seed, as a tensor."""
    drawn = uf.dropout_masks(
        seed, hidden_size=hidden_size, weight_p=weight_p, dtype=like.dtype, device=like.device
    )
    assert drawn.weight is not None
    return drawn.weight


def ours(
    weights: Sequence[Weights],
    backend: str,
    dtype: torch.dtype,
    *,
    weight_p: float = 0.0,
    gate_p: float = 0.0,
    name: str = "",
) -> Implementation:
    """Our layers on one backend."""
    layers = []
    for layer in weights:
        width, hidden = layer[0].shape[1], layer[1].shape[1]
        made = uf.LSTM(width, hidden, weight_p=weight_p, gate_p=gate_p, backend=backend)
        made.to(layer[0].device, dtype)
        _copy(made.all_weights[0], layer)
        layers.append(made)

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)[0]
        return x

    def seeded(x: Tensor, seed: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x, seed=seed)[0]
        return x

    return Implementation(
        name or (REFERENCE if backend == "reference" else f"ulmfit_fast {backend}"),
        dtype,
        weight_p,
        gate_p,
        run,
        seeded,
        [p for layer in layers for p in layer.parameters()],
        [layer.weight_hh_l0 for layer in layers],
        kernels=backend.startswith("triton"),
        replays=not (weight_p or gate_p),
    )


def plain(weights: Sequence[Weights], dtype: torch.dtype, name: str = PLAIN) -> Implementation:
    """PyTorch's LSTM without any dropout."""
    layers = [_plain_layer(layer, dtype) for layer in weights]

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)[0]
        return x

    parameters = [p for layer in layers for p in layer.parameters()]
    recurrent = [layer.weight_hh_l0 for layer in layers]
    return Implementation(name, dtype, 0.0, 0.0, run, lambda x, seed: run(x), parameters, recurrent)


def weight_dropped(
    weights: Sequence[Weights], dtype: torch.dtype, weight_p: float
) -> Implementation:
    """Weight-drop as it is written today."""
    layers = [WeightDropped(_plain_layer(layer, dtype), weight_p) for layer in weights]

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)[0]
        return x

    def seeded(x: Tensor, seed: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x, mask=weight_mask(layer.raw.shape[1], weight_p, seed, layer.raw))[0]
        return x

    parameters = [p for layer in layers for p in layer.parameters()]
    recurrent = [layer.raw for layer in layers]
    return Implementation(TODAY, dtype, weight_p, 0.0, run, seeded, parameters, recurrent)


def truth(
    implementation: Implementation, weights: Sequence[Weights], x: Tensor, grad: Tensor
) -> list[Tensor]:
    """Compute in float64 what an implementation should, from parameters rounded to its dtype.

    Args:
        implementation: whose dtype and dropouts count.
        weights: the parameters of the stack.
        x: (T, B, E).
        grad: gradient of the output, (T, B, H).

    Returns:
        The output, and the gradients of the input and of each recurrent weight.
    """
    dtype = implementation.dtype
    start = x.to(dtype).double().detach().requires_grad_()
    value, recurrent = start, []
    for layer in weights:
        wide = [w.detach().to(dtype).double().requires_grad_() for w in layer]
        recurrent.append(wide[1])
        masks = uf.dropout_masks(
            SEED,
            hidden_size=wide[1].shape[1],
            batch_size=x.shape[1],
            steps=x.shape[0],
            weight_p=implementation.weight_p,
            gate_p=implementation.gate_p,
            dtype=torch.float64,
            device=x.device,
        )
        value, _ = uf.functional.lstm(value, None, *wide, masks=masks, backend="reference")
    grads = torch.autograd.grad(value, [start, *recurrent], grad.to(dtype).double())
    return [value.detach(), *grads]


def results(implementation: Implementation, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Run an implementation with the masks of `SEED`; returns as `truth`."""
    start = x.to(implementation.dtype).detach().requires_grad_()
    seed = torch.tensor(SEED, device=x.device)
    inputs = [start, *implementation.recurrent]
    with implementation.within():
        output = implementation.seeded(start, seed)
        grads = torch.autograd.grad(output, inputs, grad.to(implementation.dtype))
    return [output.detach(), *grads]


def _plain_layer(layer: Weights, dtype: torch.dtype) -> nn.LSTM:
    made = nn.LSTM(layer[0].shape[1], layer[1].shape[1], device=layer[0].device, dtype=dtype)
    _copy(made.all_weights[0], layer)
    return made


@torch.no_grad()
def _copy(parameters: Sequence[nn.Parameter], source: Weights) -> None:
    for parameter, value in zip(parameters, source, strict=True):
        parameter.copy_(value)
