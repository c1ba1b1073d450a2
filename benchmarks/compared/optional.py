"""LSTM layers of other packages, where these are installed; why not, where they are not.

Each raises an ImportError that says what is missing. What these packages import must stay out of a
run that has no use for it, hence the imports inside the functions.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks.compared.baselines import Implementation, Weights, weight_mask


def load(package: str, module: str) -> ModuleType:
    """Import a module of a package that need not be there.

    Raises:
        ImportError: with the reason, whatever the package itself raised.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except Exception as error:
        # Packages fail in many ways to be imported, by a compiler that is missing among them.
        raise ImportError(f"{package} is left out: {type(error).__name__}: {error}") from error


def fastai_layer(
    weights: Sequence[Weights], weight_p: float, dtype: torch.dtype = torch.float32
) -> Implementation:
    """Make fastai's WeightDropout around nn.LSTM."""
    made = load("fastai", "fastai.text.models.awdlstm")
    layers = []
    for layer in weights:
        lstm = nn.LSTM(layer[0].shape[1], layer[1].shape[1], device=layer[0].device, dtype=dtype)
        with torch.no_grad():
            for parameter, value in zip(lstm.all_weights[0], layer, strict=True):
                parameter.copy_(value)
        layers.append(made.WeightDropout(lstm, weight_p))

    def run(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)[0]
        return x

    def seeded(x: Tensor, seed: Tensor) -> Tensor:
        for layer in layers:
            raw = layer.weight_hh_l0_raw
            mask = weight_mask(raw.shape[1], weight_p, seed, raw)
            layer.module.weight_hh_l0 = raw * mask
            x = layer.module(x)[0]
        return x

    parameters = [p for layer in layers for p in layer.parameters()]
    recurrent = [layer.weight_hh_l0_raw for layer in layers]
    return Implementation(
        "fastai WeightDropout", dtype, weight_p, 0.0, run, seeded, parameters, recurrent
    )


def flashrnn_layer(
    weights: Sequence[Weights], dtype: torch.dtype, backend: str = "cuda_fused"
) -> Implementation:
    """Make flashrnn's LSTM after a linear layer for the input; it has no dropout."""
    made = load("flashrnn", "flashrnn")
    name = str(dtype).removeprefix("torch.")
    parameters = [[nn.Parameter(w.detach().to(dtype, copy=True)) for w in ws] for ws in weights]

    def run(x: Tensor) -> Tensor:
        for w_ih, w_hh, b_ih, b_hh in parameters:
            hidden = w_hh.shape[1]
            inputs = nn.functional.linear(x, w_ih, b_ih).transpose(0, 1)
            states, _ = made.flashrnn(
                inputs.reshape(*inputs.shape[:2], 4, 1, hidden),
                w_hh.view(4, 1, hidden, hidden),
                b_hh.view(4, 1, hidden),
                function="lstm",
                backend=backend,
                dtype=name,
            )
            x = states[0].flatten(2).transpose(0, 1)
        return x

    return Implementation(
        f"flashrnn {backend}",
        dtype,
        0.0,
        0.0,
        run,
        lambda x, seed: run(x),
        [p for ps in parameters for p in ps],
        [ps[1] for ps in parameters],
    )


def torchrl_layer(weights: Sequence[Weights], dtype: torch.dtype) -> Implementation:
    """Make torchrl's Triton LSTM; it has no dropout, keeps float32 and multiplies in the dtype."""
    made = load("torchrl", "torchrl.modules.tensordict_module._rnn_triton")
    # Its products are in float32 or bfloat16.
    compute = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    parameters = [[nn.Parameter(w.detach().clone()) for w in ws] for ws in weights]

    def run(x: Tensor) -> Tensor:
        value = x.float().transpose(0, 1)
        for ws in parameters:
            state = value.new_zeros(*value.shape[:2], ws[1].shape[1])
            start = torch.zeros(value.shape[:2], dtype=torch.bool, device=x.device)
            value = made.lstm_triton(value, state, state, *ws, start, compute_dtype=compute)[0]
        return value.transpose(0, 1).to(x.dtype)

    return Implementation(
        "torchrl triton",
        dtype,
        0.0,
        0.0,
        run,
        lambda x, seed: run(x),
        [p for ps in parameters for p in ps],
        [ps[1] for ps in parameters],
    )
