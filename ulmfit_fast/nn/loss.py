"""The loss of a language model: cross entropy and the two activation regularisers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ulmfit_fast.nn.state import State


class LMOutput(NamedTuple):
    """What a language model returns.

    Attributes:
        logits: (T, B, V), scores of the next token.
        raw: (T, B, E), the encoder's output.
        dropped: (T, B, E), the encoder's output after output dropout, the decoder's input.
        state: per layer (h, c), each (1, B, H_l); detach it before the next batch.
    """

    logits: Tensor
    raw: Tensor
    dropped: Tensor
    state: State


class LMLoss(NamedTuple):
    """The parts of a language model's loss, each a scalar in float32 (float64 for float64 models).

    Attributes:
        cross_entropy: mean over the targets that count, in nats; its exponential is the perplexity.
            0 where no target counts, so that such a batch trains nothing through it.
        activation: AR, alpha * mean(output ** 2).
        temporal: TAR, beta * mean((output[t + 1] - output[t]) ** 2).
        total: the sum of the three, the value to back-propagate.
    """

    cross_entropy: Tensor
    activation: Tensor
    temporal: Tensor
    total: Tensor


def language_model_loss(
    output: LMOutput,
    targets: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 1.0,
    ar_on: Literal["dropped", "raw"] = "dropped",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> LMLoss:
    """Compute the training loss of a language model.

    `LanguageModel.loss` is the same without the logits, in less time and memory. The regularisers
    belong to training: report and compare `cross_entropy`, and in evaluation read that alone or
    pass alpha = beta = 0.

    Example:
        >>> import torch
        >>> from ulmfit_fast.nn import LMOutput
        >>> output = LMOutput(torch.zeros(3, 2, 10), torch.ones(3, 2, 4), torch.ones(3, 2, 4), [])
        >>> loss = language_model_loss(output, torch.zeros(3, 2, dtype=torch.int64))
        >>> [round(part.item(), 4) for part in loss]
        [2.3026, 2.0, 0.0, 4.3026]

    Args:
        output: what `LanguageModel.forward` returned.
        targets: token ids, (T, B), int64.
        alpha: weight of AR; 0 leaves it out.
        beta: weight of TAR; 0 leaves it out. A sequence of one step has none.
        ar_on: AR on the output after ("dropped") or before ("raw") output dropout. TAR is always
            on the output before it.
        label_smoothing: share of the target spread evenly over all V word types, in [0, 1].
        ignore_index: target that does not count in the cross entropy; the regularisers are means
            over all outputs.

    Returns:
        The parts and their sum, accumulated in at least float32.

    Raises:
        TypeError: if targets are not int64.
        ValueError: if targets are not (T, B) like the output or there are none, alpha or beta is
            negative, label_smoothing is outside [0, 1], or ar_on is another word.

    Source:
        Merity et al. (2018), section 4.6 (alpha, beta); total = CE + AR + TAR.
    """
    logits = at_least_float32(output.logits)
    check_loss_arguments(
        targets, logits.shape[:2], alpha, beta, ar_on=ar_on, label_smoothing=label_smoothing
    )
    # The mean that F.cross_entropy takes itself is 0 / 0 where every target is ignored.
    summed = F.cross_entropy(
        logits.flatten(0, 1),  # (TB, V)
        targets.flatten(),  # (TB,)
        reduction="sum",
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )
    cross_entropy = summed / (targets != ignore_index).sum().clamp(min=1)
    activation = temporal = logits.new_zeros(())
    if alpha > 0.0:
        active = at_least_float32(output.dropped if ar_on == "dropped" else output.raw)
        activation = alpha * active.square().mean()
    if beta > 0.0 and len(output.raw) > 1:
        raw = at_least_float32(output.raw)
        differences = raw[1:] - raw[:-1]  # (T - 1, B, E)
        temporal = beta * differences.square().mean()
    return LMLoss(cross_entropy, activation, temporal, cross_entropy + activation + temporal)


def check_loss_arguments(
    targets: Tensor,
    shape: torch.Size,
    alpha: float,
    beta: float,
    *,
    ar_on: str,
    label_smoothing: float,
) -> None:
    """Refuse what `language_model_loss` says it refuses.

    Args:
        targets: what is to be (T, B) int64.
        shape: (T, B) of the model's output.
        alpha: weight of AR.
        beta: weight of TAR.
        ar_on: where AR is taken.
        label_smoothing: share of the target spread over all word types.

    Raises:
        TypeError: if targets are not int64.
        ValueError: if any other argument does not fit.
    """
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 ids, got {targets.dtype}: convert with .long()")
    if targets.shape != shape:
        raise ValueError(
            f"targets must be {tuple(shape)} like the output, got "
            f"{tuple(targets.shape)}: both are time first"
        )
    if targets.numel() == 0:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, expected at least one: a mean over none "
            "is not a number; leave the batch out"
        )
    check_regularisers(alpha, beta)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(
            f"label_smoothing must be in [0, 1], got {label_smoothing}: it is the share of the "
            "target spread over all word types"
        )
    if ar_on not in ("dropped", "raw"):
        raise ValueError(f"ar_on must be 'dropped' or 'raw', got {ar_on!r}")


def check_regularisers(alpha: float, beta: float) -> None:
    """Refuse weights of AR and TAR that are negative, or no numbers."""
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not value >= 0.0:
            raise ValueError(f"{name} must be at least 0, got {value}: 0 leaves the term out")


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor of half precision in float32, any other one as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
