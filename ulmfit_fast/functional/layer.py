"""The LSTM operator: validate, choose a backend, run it with autograd."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ulmfit_fast import backend as backends
from ulmfit_fast import rng
from ulmfit_fast.checks import as_seed
from ulmfit_fast.lstm import native, operators, reference
from ulmfit_fast.lstm.checks import check_dropouts, check_layer, check_pair
from ulmfit_fast.lstm.masks import DropoutMasks, draw_masks
from ulmfit_fast.system import scoped
from ulmfit_fast.system.seeds import draw_seed

__all__ = ["lstm"]

_NOT_IN_ONE = "RNN module weights are not part of single contiguous chunk of memory"
_NOTHING = (0.0,) * 4

State = tuple[Tensor, Tensor]
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class Options(NamedTuple):
    """How the layers of a stack run, checked.

    Attributes:
        weight_p: four probabilities of weight-drop; 0 out of training.
        gate_p: four probabilities of gate dropout; 0 out of training.
        sequence: one gate mask for all steps instead of one a step.
        training: whether masks are applied, drawn or injected.
        recompute_gates: compute the gates again in the kernels' backward.
        backend: one of `backend.BACKENDS`.
        drops: whether drawn masks have anything to drop.
    """

    weight_p: tuple[float, ...]
    gate_p: tuple[float, ...]
    sequence: bool
    training: bool
    recompute_gates: bool
    backend: str
    drops: bool


def options(
    weight_p: float | Sequence[float],
    gate_p: float | Sequence[float],
    gate_mask: str,
    *,
    training: bool,
    recompute_gates: bool,
    backend: str,
) -> Options:
    """Check what a user has set, once for all layers and directions.

    Raises:
        ValueError: if a probability lies outside [0, 1], or `gate_mask` does not fit.
        TypeError: if a probability is not a number.
    """
    weight_ps, gate_ps = check_dropouts(weight_p, gate_p, gate_mask)
    if not training:
        weight_ps = gate_ps = _NOTHING
    drops = any(weight_ps) or any(gate_ps)
    sequence = gate_mask == "sequence"
    return Options(weight_ps, gate_ps, sequence, training, recompute_gates, backend, drops)


def request_of(
    options: Options,
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    *,
    state: State | None,
    has_lengths: bool,
    masks: DropoutMasks | None = None,
) -> backends.Request:
    """Describe a layer's call to `backend.choose`, for what runs and for `backend.explain`.

    Args:
        options: of the call.
        device: device of the tensors.
        dtype: compute dtype.
        sizes: B, E and H.
        state: (h0, c0), or None for zeros.
        has_lengths: rows have lengths of their own.
        masks: injected masks, or None; out of training they are not applied.
    """
    injected = options.training and masks is not None
    injected_gate = injected and masks is not None and masks[1] is not None
    return backends.Request(
        device,
        dtype,
        *sizes,
        has_gate_mask=injected_gate or (not injected and any(options.gate_p)),
        injected_gate_mask=injected_gate,
        has_lengths=has_lengths,
        mixed_state=state is not None and state[1].dtype != dtype,
        drops=options.drops and not injected,
    )


def lstm(
    x: Tensor,
    state: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    weight_p: float | Sequence[float] = 0.0,
    gate_p: float | Sequence[float] = 0.0,
    gate_mask: str = "step",
    training: bool = True,
    lengths: Tensor | None = None,
    reverse: bool = False,
    layer: int = 0,
    seed: Tensor | int | None = None,
    masks: DropoutMasks | None = None,
    recompute_gates: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run one LSTM layer in one direction, with weight-drop and gate dropout.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x, w_ih, w_hh = torch.randn(70, 4, 3), torch.randn(32, 3), torch.randn(32, 8)
        >>> output, (h, c) = lstm(x, None, w_ih, w_hh, weight_p=0.5, gate_p=(0, 0, 0.1, 0), seed=7)
        >>> output.shape, h.shape, c.shape
        (torch.Size([70, 4, 8]), torch.Size([4, 8]), torch.Size([4, 8]))

    Equivalent to (weight_p only):
        `torch.nn.LSTM` whose `weight_hh_l0` is replaced by `F.dropout(weight_hh_l0, weight_p)`
        before each call.

    Args:
        x: `(T, B, E)` input; float32, float64, bfloat16 or float16.
        state: (h0, c0), each `(B, H)`, or None for zeros. c0 may be wider than x (float32 beside
            bfloat16), and c_n comes back in its dtype; the torch backend rounds it to x's inside.
        w_ih: `(4H, E)` input weight, gate blocks i, f, g, o.
        w_hh: `(4H, H)` recurrent weight.
        b_ih: `(4H,)` or None.
        b_hh: `(4H,)` or None.
        weight_p: probability of dropping a recurrent weight; one, or four for i, f, g, o. One mask
            serves all T, all B and the backward.
        gate_p: probability of dropping an activated gate; one or four.
        gate_mask: "step" for a new gate mask at each time step; "sequence" for one in all, which
            needs p = 0 for the forget gate.
        training: False applies no dropout.
        lengths: `(B,)` int64; a row's state stops at its length, its later outputs are zeros, and
            its later inputs do not matter, NaN included.
        reverse: run from the last step to the first.
        layer: index of the layer in its stack; separates the masks of layers under one seed.
        seed: whole number in [0, 2**63) that fixes the masks, or a 0-d int64 tensor; None draws
            one from PyTorch's generator. A captured CUDA graph replays with what a tensor on its
            device then holds.
        masks: masks to use instead of drawn ones, a pair (weight, gate) of any floating dtype (see
            `ulmfit_fast.dropout_masks`); bool ones keep without scaling.
        recompute_gates: on the Triton kernels, keep the cell states but not the activated gates,
            `(T, B, 4H)`, and compute these again in the backward; the other backends keep them.
        backend: one of `ulmfit_fast.backend.BACKENDS`.

    Returns:
        output `(T, B, H)` and the state (h_n, c_n), each `(B, H)`.

    Raises:
        ValueError: if a shape, device or probability does not fit.
        TypeError: if a type or dtype does not fit.
        RuntimeError: if a backend asked for by name cannot run the call.

    Source:
        Merity, Keskar & Socher 2018 (arXiv:1708.02182), section 2, for weight-drop; Semeniuta,
        Severyn & Barth 2016 (arXiv:1603.05118), equation 12, for dropout of the gate g.
    """
    if state is not None:
        check_pair("state", state, "(h0, c0)")
    how = options(
        weight_p,
        gate_p,
        gate_mask,
        training=training,
        recompute_gates=recompute_gates,
        backend=backend,
    )
    return run_layer(
        x,
        state,
        (w_ih, w_hh, b_ih, b_hh),
        how,
        lengths=lengths,
        stream=2 * layer + int(reverse),
        seed=None if seed is None else as_seed(seed),
        masks=masks,
    )


def run_layer(
    x: Tensor,
    state: State | None,
    weights: Weights,
    options: Options,
    *,
    lengths: Tensor | None,
    stream: int,
    seed: Tensor | None,
    masks: DropoutMasks | None,
) -> tuple[Tensor, State]:
    """Run `lstm` with options and a seed that are checked.

    Args:
        x: `(T, B, E)`.
        state: (h0, c0), each `(B, H)`, or None for zeros.
        weights: `(4H, E)`, `(4H, H)`, and two biases `(4H,)` or None.
        options: how it runs.
        lengths: `(B,)` int64 or None.
        stream: 2 * layer + reverse.
        seed: 0-d int64, or None to draw one.
        masks: masks to use instead of drawn ones.

    Returns:
        output `(T, B, H)` and the state (h_n, c_n), each `(B, H)`.
    """
    w_ih, w_hh, b_ih, b_hh = weights
    autocast = autocast_dtype(x)
    if autocast is not None:
        # As autocast would, c left as it is.
        x, w_hh = x.to(autocast), native.cast(w_hh, autocast)
        state = None if state is None else (state[0].to(autocast), state[1])
    check_layer(x, state, (w_ih, w_hh, b_ih, b_hh), lengths, masks, cast=autocast is not None)
    sizes = x.shape[1], x.shape[2], w_hh.shape[1]
    has_lengths = lengths is not None
    request = request_of(
        options, x.device, x.dtype, sizes, state=state, has_lengths=has_lengths, masks=masks
    )
    weight_mask, gate_mask = None, None
    if masks is not None and options.training:
        compute = torch.promote_types(x.dtype, torch.float32)
        weight_mask, gate_mask = (None if mask is None else mask.to(compute) for mask in masks)
    if lengths is not None:
        x = _without_padding(x, lengths)
    if state is None:
        zeros = x.new_zeros(sizes[0], sizes[2])  # (B, H)
        state = (zeros, zeros)
    if request.drops and (backends.in_jit_trace() or torch.compiler.is_exporting()):
        backends.warn_of_own_operators()
    choice = backends.choose(options.backend, request)
    if seed is None:
        seed = draw_seed() if request.drops else as_seed(0)
    if weight_mask is not None and choice.name in ("torch", "triton", "native"):
        w_hh = (w_hh * weight_mask).to(w_hh.dtype)
    if autocast is not None and choice.name != "triton":
        w_ih = native.cast(w_ih, autocast)
        b_ih, b_hh = (None if bias is None else bias.to(autocast) for bias in (b_ih, b_hh))
    call = operators.LayerCall(
        x,
        *state,
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        lengths,
        seed,
        options.weight_p if request.drops else _NOTHING,
        options.gate_p if request.drops else _NOTHING,
        options.sequence,
        stream,
        weight_mask,
        gate_mask,
    )
    if choice.name == "triton":
        output, h_n, c_n = _lstm_triton(call, choice.form, options.recompute_gates, request.drops)
    elif choice.name == "eager":
        output, h_n, c_n, *_ = operators.lstm_eager(*call)
    elif choice.name == "native":
        output, h_n, c_n, *_ = operators.lstm_native(*call[:-2], _records(call))
    elif choice.name == "torch":
        output, h_n, c_n = _lstm_torch(call, options.training)
    else:
        # All is cast already; autocast would take the products to half precision.
        device = x.device.type
        with torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext():
            output, h_n, c_n = _lstm_reference(call)
    return output, (h_n, c_n)


def _lstm_reference(call: operators.LayerCall) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch_size, _ = call.x.shape
    drawn = draw_masks(
        call.seed,
        (steps, batch_size, call.w_hh.shape[1]),
        call.weight_p,
        call.gate_p,
        sequence=call.sequence,
        stream=call.stream,
        dtype=torch.promote_types(call.x.dtype, torch.float32),
        device=call.x.device,
    )
    masks = DropoutMasks(
        drawn.weight if call.weight_mask is None else call.weight_mask,
        drawn.gate if call.gate_mask is None else call.gate_mask,
    )
    return reference.lstm_layer(*call[:7], masks, call.lengths, reverse=bool(call.stream & 1))


def _lstm_torch(call: operators.LayerCall, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's own fused LSTM on an already dropped weight; it holds c in the dtype of x."""
    x, reverse = call.x, bool(call.stream & 1)
    w_hh = _dropped(call) if any(call.weight_p) else call.w_hh
    biases = _both_biases(call.b_ih, call.b_hh)
    inputs = x.flip(0) if reverse else x  # (T, B, E)
    state = [call.h0[None], call.c0[None].to(x.dtype)]  # (1, B, H)
    if x.device.type == "cuda":
        # cuDNN takes no others, where all other backends do.
        state = [part.contiguous() for part in state]
    weights = [call.w_ih, w_hh, *biases]
    # cuDNN differentiates only what ran in its training mode. A trace keeps the flag for good, and
    # what it is checked against runs without gradients.
    train = training if backends.in_jit_trace() else torch.is_grad_enabled()
    # cuDNN copies weights into one piece of memory at each call, and warns of it; a dropped weight
    # is new each time, so that nothing would be won by doing it here.
    quiet = x.device.type == "cuda" and not torch.compiler.is_compiling()
    with scoped.ignoring(UserWarning, _NOT_IN_ONE) if quiet else contextlib.nullcontext():
        output, h_n, c_n = torch.lstm(
            inputs, state, weights, bool(biases), 1, 0.0, train, False, False
        )
    return output.flip(0) if reverse else output, h_n[0], c_n[0].to(call.c0.dtype)


def _records(call: operators.LayerCall) -> bool:
    """Say whether a backward can follow."""
    tensors = (tensor for tensor in call[:7] if tensor is not None)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _lstm_triton(
    call: operators.LayerCall, form: str, recompute_gates: bool, drops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from ulmfit_fast.kernels import lstm_operator

    x, seed = call.x, call.seed
    # Once for forward and backward, without waiting. Where nothing is dropped no kernel reads it,
    # and a captured graph could not copy it.
    if drops:
        seed = seed.to(x.device, non_blocking=True)
    else:
        seed = torch.empty_like(seed, device=x.device)
    keep = lstm_operator.KEEP_NOTHING
    if _records(call):
        keep = lstm_operator.KEEP_CELLS if recompute_gates else lstm_operator.KEEP_GATES
    # In the dtype of x only now: one copy changes that and the order of the rows.
    w_ih, bias = lstm_operator.with_gates_together(call.w_ih, call.b_ih, call.b_hh, x.dtype)
    output, h_n, c_n, *_ = lstm_operator.lstm_triton(
        x,
        call.h0,
        call.c0,
        w_ih,
        call.w_hh,
        bias,
        call.lengths,
        seed,
        call.weight_p,
        call.gate_p,
        call.sequence,
        call.stream,
        form,
        keep,
    )
    return output, h_n, c_n


def _dropped(call: operators.LayerCall) -> Tensor:
    """Apply weight-drop for PyTorch's own LSTM: one kernel on CUDA, torch operations elsewhere."""
    weight, seed = call.w_hh, call.seed  # (4H, H)
    if weight.device.type == "cuda":
        request = backends.Request(weight.device, weight.dtype, hidden_size=weight.shape[1])
        if backends.layer_plan("stepwise", request).form is not None:
            from ulmfit_fast.kernels import weight_drop

            placed = seed.to(weight.device, non_blocking=True)
            kernel: Tensor = weight_drop.drop_weight_triton(
                weight, placed, call.weight_p, call.stream
            )
            return kernel
    dropped: Tensor = operators.drop_weight(weight, seed, call.weight_p, call.stream)
    return dropped


def _both_biases(b_ih: Tensor | None, b_hh: Tensor | None) -> list[Tensor]:
    present = b_ih if b_ih is not None else b_hh
    if present is None:
        return []
    zeros = torch.zeros_like(present)
    return [zeros if b_ih is None else b_ih, zeros if b_hh is None else b_hh]


def _without_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Set what lies past each row's length to zero, so that no NaN there reaches a product."""
    steps = torch.arange(x.shape[0], dtype=torch.int64, device=x.device)  # (T,)
    outside = steps[:, None] >= lengths  # (T, B)
    return x.masked_fill(outside[:, :, None], 0.0)


def drop_between_layers(x: Tensor, seed: Tensor, p: float, layer: int) -> Tensor:
    """Drop elements of a layer's output before the next layer; the same seed drops the same.

    Args:
        x: `(T, B, D * H)`.
        seed: 0-d int64 CPU tensor.
        p: drop probability in [0, 1].
        layer: index of the layer whose output x is.

    Returns:
        `(T, B, D * H)`, the dtype of x.
    """
    if torch.compiler.is_exporting():
        backends.warn_of_own_operators()
    keep = rng.keep_mask(seed, x.numel(), p, kind=rng.KIND_LAYER, stream=2 * layer, device=x.device)
    # In half precision the scale itself would be rounded, and the mean shifted.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * keep.view(x.shape) * rng.keep_scale(p)).to(x.dtype)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast runs a call on x in, or None where it does not act."""
    device = x.device.type
    if not x.is_floating_point() or x.dtype == torch.float64:
        return None
    # Asking whether autocast is on raises for a device without it, such as meta. Dynamo of PyTorch
    # 2.10 cannot trace that there is autocast, and compiles for devices that have it.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    if not known or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
