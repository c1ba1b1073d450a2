"""Dropout masks as a pure function of (seed, counter): Philox-4x32-10 in plain PyTorch.

One Philox call maps a 64-bit key (the seed) and four 32-bit counter words to four random 32-bit
words. Who owns which counter:

| mask         | word 0          | word 1 | word 2              | word 3         | outputs        |
|--------------|-----------------|--------|---------------------|----------------|----------------|
| weight-drop  | u * H + k       | 0      | 2 * layer + reverse | KIND_WEIGHT    | gates i,f,g,o  |
| gate dropout | b * H + u       | t      | 2 * layer + reverse | KIND_GATE      | gates i,f,g,o  |
| embedding    | token id        | 0      | 0                   | KIND_EMBEDDING | first one used |
| locked       | flat index // 4 | 0      | stream              | KIND_LOCKED    | index % 4      |
| layer output | flat index // 4 | 0      | 2 * layer           | KIND_LAYER     | index % 4      |

An element is kept iff its word `r >= floor(p * 2**32)`, an integer comparison, so every device and
every implementation of Philox gives the same bits. On a CPU the C kernels draw and apply them where
there is a compiler; the torch operations here are the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ulmfit_fast.checks import gate_probabilities

__all__ = [
    "KIND_EMBEDDING",
    "KIND_GATE",
    "KIND_LAYER",
    "KIND_LOCKED",
    "KIND_WEIGHT",
    "drop_weight",
    "embedding_keep",
    "gate_keep",
    "gate_probabilities",
    "keep_mask",
    "keep_scale",
    "mask_gradient",
    "philox",
    "weight_keep",
]

KIND_WEIGHT, KIND_GATE, KIND_EMBEDDING, KIND_LOCKED, KIND_LAYER = range(5)

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_ROUNDS = 10
_KERNEL_DTYPES = (torch.float32, torch.bfloat16)
# Six int64 work arrays of this length stay near the core; measured best between 2**16 and 2**17.
_BLOCK = 1 << 16


def keep_scale(p: float) -> float:
    """Return the factor of kept elements, 1/(1-p); p = 1 keeps nothing, and its factor is 0."""
    return 0.0 if p >= 1.0 else 1.0 / (1.0 - p)


def _threshold(p: float) -> int:
    return int(p * 2.0**32)


def _c_kernels(counters: int, *tensors: Tensor, dtypes: tuple[torch.dtype, ...] = ()) -> Any:
    """Return the C kernels of the masks if they can write and read these tensors, else None."""
    if torch.compiler.is_compiling() or counters > _WORD:
        return None
    if dtypes and any(tensor.dtype not in dtypes for tensor in tensors):
        return None
    from ulmfit_fast.kernels.cpu import calls, masks

    return masks if calls.can_access(*tensors) else None


def _key(seed: Tensor | int) -> Tensor | int:
    """Return a seed as a number, but where it lies on a device, which a number would wait for."""
    return seed if isinstance(seed, Tensor) and seed.device.type != "cpu" else int(seed)


def _philox_blocks(
    seed: Tensor | int, word_0: Tensor, word_1: Tensor | int, word_2: int, word_3: int
) -> Iterator[tuple[slice, tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """Yield the four output words block by block; the yielded tensors are reused by the next block.

    A 32 x 32 -> 64 bit product wraps in int64 but keeps its 64 bits, so the low word is a mask and
    the high word a shift followed by a mask (the shift is arithmetic).
    """
    key = _key(seed)
    n = word_0.numel()
    work = torch.empty(6, min(n, _BLOCK), dtype=torch.int64, device=word_0.device)
    for start in range(0, n, _BLOCK):
        block = slice(start, min(n, start + _BLOCK))
        x0, x2, low_0, low_1, product_0, product_1 = work[:, : block.stop - start].unbind(0)
        x0.copy_(word_0[block])
        if isinstance(word_1, int):
            low_1.fill_(word_1)
        else:
            low_1.copy_(word_1[block])
        x2.fill_(word_2)
        low_0.fill_(word_3)
        key_0, key_1 = key & _WORD, (key >> 32) & _WORD
        for _ in range(_ROUNDS):
            torch.mul(x0, _MULTIPLIER_0, out=product_0)
            torch.mul(x2, _MULTIPLIER_1, out=product_1)
            torch.bitwise_right_shift(product_1, 32, out=x0)
            x0.bitwise_xor_(low_1).bitwise_and_(_WORD).bitwise_xor_(key_0)
            torch.bitwise_right_shift(product_0, 32, out=x2)
            x2.bitwise_xor_(low_0).bitwise_and_(_WORD).bitwise_xor_(key_1)
            low_0, product_0 = product_0, low_0
            low_1, product_1 = product_1, low_1
            key_0, key_1 = (key_0 + _WEYL_0) & _WORD, (key_1 + _WEYL_1) & _WORD
        yield block, (x0, low_1.bitwise_and_(_WORD), x2, low_0.bitwise_and_(_WORD))


def philox(
    seed: Tensor | int, word_0: Tensor, word_1: Tensor | int = 0, word_2: int = 0, word_3: int = 0
) -> Tensor:
    """Compute Philox-4x32-10 for a row of counters.

    Example:
        >>> [hex(word) for word in philox(0, torch.tensor([0])).flatten().tolist()]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']

    Args:
        seed: the 64-bit key.
        word_0: `(n,)` int64, the first counter word, values below 2**32.
        word_1: the second counter word, one for all or `(n,)`.
        word_2: the third counter word.
        word_3: the fourth counter word.

    Returns:
        `(4, n)` int64, the four output words, each below 2**32.

    Source:
        Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    out = torch.empty(4, word_0.numel(), dtype=torch.int64, device=word_0.device)
    for block, words in _philox_blocks(seed, word_0, word_1, word_2, word_3):
        for lane, word in enumerate(words):
            out[lane, block] = word
    return out


def _weight_blocks(
    seed: Tensor | int, hidden_size: int, stream: int, device: torch.device | str | None
) -> Iterator[tuple[slice, tuple[Tensor, Tensor, Tensor, Tensor]]]:
    counters = torch.arange(hidden_size * hidden_size, dtype=torch.int64, device=device)  # (HH,)
    return _philox_blocks(seed, counters, 0, stream, KIND_WEIGHT)


def weight_keep(
    seed: Tensor | int,
    hidden_size: int,
    p: Sequence[float],
    *,
    stream: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return which recurrent weights are kept: bool `(4H, H)`, gate blocks in the order i, f, g, o.

    Args:
        seed: the forward call's seed.
        hidden_size: H.
        p: four drop probabilities.
        stream: 2 * layer + reverse.
        device: where the mask is made.
    """
    keep = torch.empty(4, hidden_size * hidden_size, dtype=torch.bool, device=device)
    native = _c_kernels(hidden_size * hidden_size, keep)
    if native is not None:
        native.weight_keep(keep, _key(seed), hidden_size, p, stream)
        return keep.view(4 * hidden_size, hidden_size)  # (4H, H)
    thresholds = [_threshold(value) for value in p]
    for block, words in _weight_blocks(seed, hidden_size, stream, device):
        for lane, word in enumerate(words):
            torch.ge(word, thresholds[lane], out=keep[lane, block])
    return keep.view(4 * hidden_size, hidden_size)  # (4H, H)


def drop_weight(
    weight: Tensor, seed: Tensor | int, p: Sequence[float], *, stream: int = 0
) -> Tensor:
    """Apply weight-drop, M * U, without holding the mask M in memory.

    Args:
        weight: `(4H, H)` recurrent weight, or a gradient of it.
        seed: the forward call's seed.
        p: four drop probabilities.
        stream: 2 * layer + reverse.

    Returns:
        `(4H, H)` a new tensor of the dtype of `weight`.
    """
    hidden_size = weight.shape[1]
    native = _c_kernels(hidden_size * hidden_size, weight, dtypes=_KERNEL_DTYPES)
    if weight.shape == (4 * hidden_size, hidden_size) and native is not None:
        dropped: Tensor = native.drop_weight(weight, _key(seed), p, stream)
        return dropped
    source = weight.reshape(4, hidden_size * hidden_size)  # (4, HH)
    dropped = torch.empty_like(source, memory_format=torch.contiguous_format)
    thresholds = [_threshold(value) for value in p]
    for block, words in _weight_blocks(seed, hidden_size, stream, weight.device):
        for lane, word in enumerate(words):
            kept = torch.mul(source[lane, block], word >= thresholds[lane])
            torch.mul(kept, keep_scale(p[lane]), out=dropped[lane, block])
    return dropped.view_as(weight)


def mask_gradient(
    grad: Tensor,
    weight: Tensor,
    dropped: Tensor,
    seed: Tensor | int,
    p: Sequence[float],
    *,
    stream: int = 0,
) -> Tensor:
    """Apply to a gradient the mask that made `dropped` of `weight`.

    The C kernels draw it again. Without them, on a CPU, what is kept and not zero shows that it
    was kept: one pass, the derivative of hardshrink, instead of ten rounds of Philox. A weight that
    is zero itself shows nothing; then the mask is drawn again, as it is where the question whether
    there is one would wait for the device.

    Args:
        grad: `(4H, H)` gradient of `dropped`.
        weight: `(4H, H)` recurrent weight.
        dropped: `(4H, H)` what `drop_weight` made of it.
        seed: the seed that it was dropped with.
        p: four drop probabilities.
        stream: 2 * layer + reverse.

    Returns:
        `(4H, H)` a new tensor, the gradient of `weight`.
    """
    native = _c_kernels(weight.shape[1] ** 2, grad, dtypes=_KERNEL_DTYPES)
    if grad.shape == weight.shape and native is not None:
        drawn: Tensor = native.drop_weight(grad, _key(seed), p, stream, gradient=True)
        return drawn
    if weight.device.type != "cpu" or bool((weight == 0).any()):
        return drop_weight(grad, seed, p, stream=stream)
    masked: Tensor = torch.ops.aten.hardshrink_backward(grad.contiguous(), dropped, 0.0)
    for gate, value in zip(masked.chunk(4), p, strict=True):
        gate.mul_(keep_scale(value))
    return masked


def gate_keep(
    seed: Tensor | int,
    steps: range,
    batch_size: int,
    hidden_size: int,
    p: Sequence[float],
    *,
    stream: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return which activated gates are kept at the given time steps: bool `(S, B, 4H)`.

    Args:
        seed: the forward call's seed.
        steps: the S time steps; for one mask a sequence, `range(1)`.
        batch_size: B.
        hidden_size: H.
        p: four drop probabilities.
        stream: 2 * layer + reverse.
        device: where the mask is made.
    """
    keep = torch.empty(len(steps), batch_size, 4 * hidden_size, dtype=torch.bool, device=device)
    native = _c_kernels(max(batch_size * hidden_size, steps.stop), keep)
    if native is not None:
        native.gate_keep(keep, _key(seed), steps, batch_size, hidden_size, p, stream)
        return keep
    cells = torch.arange(batch_size * hidden_size, dtype=torch.int64, device=device)  # (BH,)
    times = torch.arange(steps.start, steps.stop, dtype=torch.int64, device=device)  # (S,)
    shape = (len(steps), batch_size * hidden_size)
    word_0 = cells.expand(shape).reshape(-1)  # (SBH,)
    word_1 = times[:, None].expand(shape).reshape(-1)  # (SBH,)
    lanes = torch.empty(4, word_0.numel(), dtype=torch.bool, device=device)
    for block, words in _philox_blocks(seed, word_0, word_1, stream, KIND_GATE):
        for lane, word in enumerate(words):
            torch.ge(word, _threshold(p[lane]), out=lanes[lane, block])
    by_gate = lanes.view(4, len(steps), batch_size, hidden_size).permute(1, 2, 0, 3)  # (S, B, 4, H)
    keep.view(by_gate.shape).copy_(by_gate)
    return keep


@torch.library.custom_op("ulmfit_fast::keep_mask", mutates_args=())
def _keep_mask(
    seed: Tensor, n: int, p: float, kind: int, stream: int, device: torch.device
) -> Tensor:
    keep = torch.empty(n, dtype=torch.bool, device=device)
    native = _c_kernels(n // 4, keep)
    if native is not None:
        native.keep_mask(keep, _key(seed), p, kind, stream)
        return keep
    counters = torch.arange((n + 3) // 4, dtype=torch.int64, device=device)  # (n / 4,)
    by_counter = torch.empty(counters.numel(), 4, dtype=torch.bool, device=device)
    for block, words in _philox_blocks(seed, counters, 0, stream, kind):
        for lane, word in enumerate(words):
            torch.ge(word, _threshold(p), out=by_counter[block, lane])
    return keep.copy_(by_counter.view(-1)[:n])


@_keep_mask.register_fake
def _(seed: Tensor, n: int, p: float, kind: int, stream: int, device: torch.device) -> Tensor:
    return seed.new_empty(n, dtype=torch.bool, device=device)


@torch.library.custom_op("ulmfit_fast::embedding_keep", mutates_args=())
def _embedding_keep(seed: Tensor, token_ids: Tensor, p: float) -> Tensor:
    keep = torch.empty(token_ids.shape, dtype=torch.bool, device=token_ids.device)
    native = _c_kernels(0, keep, token_ids) if token_ids.dtype == torch.int64 else None
    # An id of more than 32 bits, or below 0, is no counter of the kernels.
    if native is not None and native.embedding_keep(keep, _key(seed), token_ids, p):
        return keep
    by_token = keep.view(-1)
    for block, words in _philox_blocks(seed, token_ids.reshape(-1), 0, 0, KIND_EMBEDDING):
        torch.ge(words[0], _threshold(p), out=by_token[block])
    return keep


@_embedding_keep.register_fake
def _(seed: Tensor, token_ids: Tensor, p: float) -> Tensor:
    return torch.empty_like(token_ids, dtype=torch.bool, memory_format=torch.contiguous_format)


def keep_mask(
    seed: Tensor,
    n: int,
    p: float,
    *,
    kind: int,
    stream: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return which of n elements dropout keeps: element j is word j % 4 of counter j // 4.

    Example:
        >>> keep_mask(torch.tensor(7), 6, 0.5, kind=KIND_LOCKED).tolist()
        [True, False, False, True, False, True]

    Args:
        seed: 0-d int64 CPU tensor.
        n: how many elements.
        p: drop probability in [0, 1].
        kind: whose mask it is, one of the `KIND_` constants.
        stream: distinguishes masks of one kind under one seed.
        device: where the mask is made.

    Returns:
        Bool `(n,)`.
    """
    keep: Tensor = _keep_mask(seed, n, p, kind, stream, torch.device(device or "cpu"))
    return keep


def embedding_keep(seed: Tensor, token_ids: Tensor, p: float) -> Tensor:
    """Return whether each token's embedding row is kept; equal ids share their fate.

    Example:
        >>> embedding_keep(torch.tensor(7), torch.tensor([[5, 4], [4, 5]]), 0.5).tolist()
        [[False, True], [True, False]]

    Args:
        seed: 0-d int64 CPU tensor.
        token_ids: int64 of any shape.
        p: drop probability in [0, 1].

    Returns:
        Bool of the shape of `token_ids`.

    Source:
        Merity, Keskar & Socher 2018 (arXiv:1708.02182), section 4.3.
    """
    keep: Tensor = _embedding_keep(seed, token_ids, p)
    return keep
