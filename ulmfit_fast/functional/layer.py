"""The LSTM operator: validate, choose a backend, run it with autograd."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ulmfit_fast import backend as backends
from ulmfit_fast import rng
from ulmfit_fast.checks import as_seed
from ulmfit_fast.lstm import reference
from ulmfit_fast.lstm.checks import check_layer, check_pair
from ulmfit_fast.lstm.masks import DropoutMasks, dropout_masks
from ulmfit_fast.lstm.operators import drop_weight as _drop_weight
from ulmfit_fast.lstm.operators import lstm_eager as _lstm_eager
from ulmfit_fast.system import scoped
from ulmfit_fast.system.seeds import draw_seed

__all__ = ["lstm"]

_NOT_IN_ONE = "RNN module weights are not part of single contiguous chunk of memory"


def _lstm_torch(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    biases: list[Tensor],
    stream: int,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's own fused LSTM on an already dropped weight; it holds c in the dtype of x."""
    reverse = bool(stream & 1)
    inputs = x.flip(0) if reverse else x
    state = [h0[None], c0[None].to(x.dtype)]
    if x.device.type == "cuda":
        # cuDNN takes no others, where all other backends do.
        state = [part.contiguous() for part in state]
    weights = [w_ih, w_hh, *biases]
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
    return output.flip(0) if reverse else output, h_n[0], c_n[0].to(c0.dtype)


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
    if masks is not None:
        check_pair("masks", masks, "(weight, gate)", optional=True)
    if seed is not None:
        seed = as_seed(seed)
    autocast = autocast_dtype(x)
    if autocast is not None:
        # As autocast would, c left as it is.
        x, w_hh = x.to(autocast), w_hh.to(autocast)
        state = None if state is None else (state[0].to(autocast), state[1])
    cast = autocast is not None
    check_layer(x, state, w_ih, w_hh, b_ih, b_hh, lengths, masks, cast=cast)
    batch_size, hidden_size = x.shape[1], w_hh.shape[1]
    weight_ps = rng.gate_probabilities("weight_p", weight_p)
    gate_ps = gate_probabilities(gate_p, gate_mask)
    if not training:
        masks, weight_ps, gate_ps = None, (0.0,) * 4, (0.0,) * 4
    compute = torch.promote_types(x.dtype, torch.float32)
    weight_mask, gate_masks = None, None
    if masks is not None:
        weight_ps = gate_ps = (0.0,) * 4
        weight_mask, gate_masks = (None if mask is None else mask.to(compute) for mask in masks)
    if lengths is not None:
        x = _without_padding(x, lengths)
    if state is None:
        zeros = x.new_zeros(batch_size, hidden_size)
        state = (zeros, zeros)
    h0, c0 = state
    drops = any(weight_ps) or any(gate_ps)
    if drops and (backends.in_jit_trace() or torch.compiler.is_exporting()):
        backends.warn_of_own_operators()
    choice = backends.choose(
        backend,
        device=x.device,
        dtype=x.dtype,
        batch_size=batch_size,
        input_size=x.shape[2],
        hidden_size=hidden_size,
        has_gate_mask=gate_masks is not None or any(gate_ps),
        has_lengths=lengths is not None,
        mixed_state=h0.dtype != x.dtype or c0.dtype != x.dtype,
        drops=drops,
        kernels=functools.partial(
            backends.kernel_plan,
            device=x.device,
            dtype=x.dtype,
            hidden_size=hidden_size,
            # A graph for any B takes the kernels in either form: it asks for none in particular.
            batch_size=1 if torch.compiler.is_compiling() else batch_size,
            injected_gate_mask=gate_masks is not None,
        ),
    )
    stream = 2 * layer + int(reverse)
    if seed is None:
        seed = draw_seed() if drops else as_seed(0)

    if weight_mask is not None and choice.name in ("torch", "triton"):
        w_hh = (w_hh * weight_mask).to(w_hh.dtype)
    if choice.name == "triton":
        # Once for forward and backward, without waiting. Where nothing is dropped no kernel reads
        # it, and a captured graph could not copy it.
        if drops:
            seed = seed.to(x.device, non_blocking=True)
        else:
            seed = torch.empty_like(seed, device=x.device)
        settings = (lengths, seed, weight_ps, gate_ps, gate_mask == "sequence", stream)
        inputs = (x, h0, c0, w_ih, w_hh, b_ih, b_hh)
        output, h_n, c_n = _lstm_triton(inputs, settings, choice.form, recompute_gates)
        return output, (h_n, c_n)
    if autocast is not None:
        w_ih = w_ih.to(autocast)
        b_ih, b_hh = (None if bias is None else bias.to(autocast) for bias in (b_ih, b_hh))
    if choice.name == "eager":
        output, h_n, c_n, *_ = _lstm_eager(
            x,
            h0,
            c0,
            w_ih,
            w_hh,
            b_ih,
            b_hh,
            lengths,
            seed,
            weight_ps,
            gate_ps,
            gate_mask == "sequence",
            stream,
            weight_mask,
            gate_masks,
        )
    elif choice.name == "torch":
        if any(weight_ps):
            w_hh = _dropped(w_hh, seed, weight_ps, stream)
        biases = _both_biases(b_ih, b_hh)
        output, h_n, c_n = _lstm_torch(x, h0, c0, w_ih, w_hh, biases, stream, training)
    else:
        if masks is None:
            drawn = dropout_masks(
                seed,
                hidden_size=hidden_size,
                batch_size=batch_size,
                steps=x.shape[0],
                weight_p=weight_ps,
                gate_p=gate_ps,
                gate_mask=gate_mask,
                layer=layer,
                reverse=reverse,
                dtype=compute,
                device=x.device,
            )
        else:
            drawn = DropoutMasks(weight_mask, gate_masks)
        # All is cast already; autocast would take the products to half precision.
        device = x.device.type
        with torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext():
            output, h_n, c_n = reference.lstm_layer(
                x, h0, c0, w_ih, w_hh, b_ih, b_hh, drawn, lengths, reverse=reverse
            )
    return output, (h_n, c_n)


def _lstm_triton(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    settings: tuple[object, ...],
    form: str,
    recompute_gates: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from ulmfit_fast.kernels import lstm_operator

    keep = lstm_operator.KEEP_NOTHING
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        keep = lstm_operator.KEEP_CELLS if recompute_gates else lstm_operator.KEEP_GATES
    x, h0, c0, w_ih, w_hh, b_ih, b_hh = inputs
    # In the dtype of x only now: one copy changes that and the order of the rows.
    w_ih, bias = lstm_operator.with_gates_together(w_ih, b_ih, b_hh, x.dtype)
    output, h_n, c_n, *_ = lstm_operator.lstm_triton(
        x, h0, c0, w_ih, w_hh, bias, *settings, form, keep
    )
    return output, h_n, c_n


def _dropped(w_hh: Tensor, seed: Tensor, weight_ps: Sequence[float], stream: int) -> Tensor:
    """Apply weight-drop for PyTorch's own LSTM: one kernel on CUDA, torch operations elsewhere."""
    if w_hh.device.type == "cuda":
        plan = backends.kernel_plan(
            "stepwise",
            device=w_hh.device,
            dtype=w_hh.dtype,
            hidden_size=w_hh.shape[1],
        )
        if plan.form is not None:
            from ulmfit_fast.kernels import weight_drop

            placed = seed.to(w_hh.device, non_blocking=True)
            kernel: Tensor = weight_drop.drop_weight_triton(w_hh, placed, weight_ps, stream)
            return kernel
    dropped: Tensor = _drop_weight(w_hh, seed, weight_ps, stream)
    return dropped


def gate_probabilities(gate_p: float | Sequence[float], gate_mask: str) -> tuple[float, ...]:
    """Expand gate_p to four values and refuse what would grow without bound.

    Raises:
        ValueError: if a value lies outside [0, 1], `gate_mask` is unknown, or one mask for the
            whole sequence would drop forget gates.
    """
    values = rng.gate_probabilities("gate_p", gate_p)
    if gate_mask not in ("step", "sequence"):
        raise ValueError(f'gate_mask is {gate_mask!r}, expected "step" or "sequence"')
    if gate_mask == "sequence" and values[1] > 0:
        raise ValueError(
            f'gate_p drops forget gates with p = {values[1]} under gate_mask="sequence": a kept '
            "forget gate, scaled by 1/(1-p) at each step, grows as (1-p)**-T; "
            'use gate_p=(p_i, 0, p_g, p_o) or gate_mask="step"'
        )
    return values


def _both_biases(b_ih: Tensor | None, b_hh: Tensor | None) -> list[Tensor]:
    present = b_ih if b_ih is not None else b_hh
    if present is None:
        return []
    zeros = torch.zeros_like(present)
    return [zeros if b_ih is None else b_ih, zeros if b_hh is None else b_hh]


def _without_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Set what lies past each row's length to zero, so that no NaN there reaches a product."""
    steps = torch.arange(x.shape[0], dtype=torch.int64, device=x.device)
    return x.masked_fill((steps[:, None] >= lengths)[:, :, None], 0.0)


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
