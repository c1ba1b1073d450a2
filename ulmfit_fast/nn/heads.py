"""The classifier head of ULMFiT: windows over long texts, concat pooling, two linear layers."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulmfit_fast.backend import in_jit_trace
from ulmfit_fast.checks import probability
from ulmfit_fast.nn.awd_lstm import AWDLSTM
from ulmfit_fast.nn.pooling import ConcatPool, SpanRegularisers
from ulmfit_fast.nn.state import State, detach_state
from ulmfit_fast.nn.tracing import OnlyTraced

Join = Callable[[Tensor], Tensor]


class RegularisedLogits(NamedTuple):
    """What `TextClassifier.regularised` returns.

    Attributes:
        logits: (B, C).
        activation: AR, alpha * mean(output ** 2) over the pooled outputs of all texts, a scalar.
        temporal: TAR, beta * mean((output[t + 1] - output[t]) ** 2) over the same, a scalar.
    """

    logits: Tensor
    activation: Tensor
    temporal: Tensor


class TextClassifier(OnlyTraced):
    """Classify texts of any length: encode in windows, pool over the tokens, two linear layers.

    A text is read in windows of `bptt` tokens, the state going from window to window without its
    gradient. Its last `max_len` tokens are pooled into [last, max, mean]; windows before every
    text's last `max_len` tokens only warm the state up, without a graph. A text's features depend
    on its own tokens alone: not on the other rows, their order, or the padding. A text without
    tokens has zeros for features.

    Example:
        >>> import torch
        >>> from ulmfit_fast.nn import AWDLSTMConfig
        >>> encoder = AWDLSTM(AWDLSTMConfig.classifier(10, emb_size=4, hidden_size=6))
        >>> model = TextClassifier(encoder, num_classes=2).eval()
        >>> tokens = torch.tensor([[2, 2], [5, 7], [1, 3]])  # two tokens and a pad; three
        >>> tuple(model(tokens, lengths=torch.tensor([2, 3])).shape)
        (2, 2)

    Args:
        encoder: the encoder, usually with weights from a language model.
        num_classes: C.
        hidden: width of the layer between.
        output_p: dropout on the pooled features.
        head_p: dropout on the layer between.
        bptt: tokens in a window; gradients do not pass its start.
        max_len: tokens at a text's end that are pooled and trained on.
        device: device of the head's parameters; None for PyTorch's default.
        dtype: dtype of the head's parameters; None for PyTorch's default.

    Raises:
        TypeError: if a size is no whole number.
        ValueError: if a size is below 1 or past int64, or a probability outside [0, 1].

    Source:
        Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (2018),
        section 3.3 (concat pooling, BPT3C).
    """

    def __init__(
        self,
        encoder: AWDLSTM,
        num_classes: int,
        *,
        hidden: int = 50,
        output_p: float = 0.4,
        head_p: float = 0.1,
        bptt: int = 72,
        max_len: int = 1440,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = {"num_classes": num_classes, "hidden": hidden, "bptt": bptt, "max_len": max_len}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, numbers.Integral):
                raise TypeError(f"{name} must be a whole number, got {size!r}")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
            if size >= 2**63:
                raise ValueError(f"{name} must be below 2**63, got {size}")
        self.encoder = encoder
        self.num_classes = num_classes
        self.bptt = bptt
        self.max_len = max_len
        self.hidden = hidden
        self.output_p = probability("output_p", output_p)
        self.head_p = probability("head_p", head_p)
        width = 3 * encoder.config.emb_size
        self.head = nn.Sequential(
            _BatchNorm(width, **made),
            nn.Dropout(self.output_p),
            nn.Linear(width, hidden, bias=False, **made),
            nn.ReLU(),
            _BatchNorm(hidden, **made),
            nn.Dropout(self.head_p),
            nn.Linear(hidden, num_classes, bias=False, **made),
        )

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor,
        regularisers: SpanRegularisers | None = None,
        join: Join | None = None,
    ) -> Tensor:
        """Score the classes of each text.

        In training mode the head normalises over the batch; a batch of one row, which has no
        spread to normalise by, uses the running statistics and leaves them as they are.

        Args:
            tokens: token ids, (T, B), int64 or int32, padded at the end with any valid id.
            lengths: tokens of each text, (B,), int64, 0 to T.
            regularisers: take the pooled outputs in as well; see `regularised`.
            join: makes the features of a larger batch from those of these texts, where several
                processes share one, see `shared_batch`; the logits are then of that batch.

        Returns:
            Logits, (B, C).

        Raises:
            TypeError: if tokens or lengths are not tensors of integers.
            ValueError: if shapes differ, a length is outside [0, T] or a token on the CPU is
                outside [0, V).
        """
        features = self._pooled(tokens, lengths, regularisers)  # (B, 3E)
        logits: Tensor = self.head(features if join is None else join(features))  # (B, C)
        return logits

    def regularised(
        self,
        tokens: Tensor,
        lengths: Tensor,
        *,
        alpha: float = 2.0,
        beta: float = 1.0,
        join: Join | None = None,
    ) -> RegularisedLogits:
        """Score the classes of each text, with the regularisers of a training step.

        Args:
            tokens: token ids, (T, B), as in `forward`.
            lengths: tokens of each text, (B,), as in `forward`.
            alpha: weight of AR; 0 leaves it out.
            beta: weight of TAR; 0 leaves it out.
            join: as in `forward`; AR and TAR are of these texts alone.

        Returns:
            The logits of `forward`, AR and TAR.

        Raises:
            TypeError: if tokens or lengths are not tensors of integers.
            ValueError: if alpha or beta is negative, shapes differ, a length is outside [0, T] or
                a token on the CPU is outside [0, V).
        """
        sums = SpanRegularisers(alpha=alpha, beta=beta)
        # Through __call__, for the hooks that a user, or a wrapper, has put on the model.
        logits = self(tokens, lengths, sums, join)
        return RegularisedLogits(logits, *sums.result())

    def features(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Pool the encoder's outputs over the last `max_len` tokens of each text.

        Args:
            tokens: token ids, (T, B), as in `forward`.
            lengths: tokens of each text, (B,), as in `forward`.

        Returns:
            [last, max, mean] of the outputs, (B, 3E), the dtype of the head; zeros for no tokens.

        Raises:
            TypeError: if tokens or lengths are not tensors of integers.
            ValueError: if shapes differ, a length is outside [0, T] or a token on the CPU is
                outside [0, V).
        """
        return self._pooled(tokens, lengths, None)

    def _pooled(
        self, tokens: Tensor, lengths: Tensor, regularisers: SpanRegularisers | None
    ) -> Tensor:
        self._refuse_fx(tokens, lengths)
        _check_shapes(tokens, lengths)
        if torch.compiler.is_exporting() or in_jit_trace():
            return self._pooled_whole(tokens, lengths, regularisers)
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.graph_break(
                "the number of windows of a TextClassifier depends on the values of lengths: leave "
                "fullgraph out, compile its encoder, or write it whole with "
                "ulmfit_fast.serving.export_classifier"
            )
        counts = _checked_counts(tokens, lengths)
        ends = lengths.to(tokens.device, torch.int64)  # (B,)
        span = ((ends - self.max_len).clamp(min=0), ends)
        pool = ConcatPool(*span, self.encoder.encoder.weight)
        if regularisers is not None:
            regularisers.begin(*span)
        first_pooled = min((max(n - self.max_len, 0) for n in counts if n), default=0)
        longest = max(counts, default=0)
        state: State | None = None
        for start in range(0, longest, self.bptt):
            stop = min(start + self.bptt, longest)
            pooled = stop > first_pooled
            # The encoder needs no lengths: what it makes of the padding behind a text is not
            # pooled and reaches no other text.
            with torch.set_grad_enabled(pooled and torch.is_grad_enabled()):
                output, state = self.encoder(tokens[start:stop], state)  # (T, B, E)
            state = detach_state(state)
            if pooled:
                pool.add(output, start)
                if regularisers is not None:
                    regularisers.add(output, start)
        return pool.result().to(next(self.head.parameters()).dtype)

    def _pooled_whole(
        self, tokens: Tensor, lengths: Tensor, regularisers: SpanRegularisers | None
    ) -> Tensor:
        """Pool all time steps as one window, whose number depends on no value of lengths."""
        if self.training or regularisers is not None:
            raise RuntimeError(
                "a TextClassifier in training is read in windows whose number depends on lengths, "
                "which no exporter or tracer can record: call eval(), or "
                "ulmfit_fast.serving.export_classifier(model, path)"
            )
        if not in_jit_trace():  # the older exporter to ONNX has no such operator
            inside = (lengths >= 0) & (lengths <= tokens.shape[0])
            torch._assert_async(inside.all(), "a length is outside [0, T], the rows of tokens")
        output, _ = self.encoder(tokens)  # (T, B, E)
        ends = lengths.to(torch.int64)
        pool = ConcatPool((ends - self.max_len).clamp(min=0), ends, output)
        pool.add(output, 0)
        return pool.result().to(next(self.head.parameters()).dtype)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters by depth, for layer-wise learning rates and unfreezing.

        Returns:
            [embedding, first layer, ..., last layer, head].
        """
        return [*self.encoder.layer_groups(), list(self.head.parameters())]


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes a training batch of one row with the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) < 2:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


def _check_shapes(tokens: Tensor, lengths: Tensor) -> None:
    for name, value in (("tokens", tokens), ("lengths", lengths)):
        if not isinstance(value, Tensor):
            shown = " ".join(repr(value).split())  # an array's repr has several lines
            raise TypeError(
                f"{name} is {shown:.60} ({type(value).__name__}), expected a tensor of integers: "
                f"pass torch.tensor({name})"
            )
    if tokens.dim() != 2:
        raise ValueError(
            f"tokens must be (T, B), time first, got shape {tuple(tokens.shape)}: "
            "one text alone is tokens.unsqueeze(1)"
        )
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(
            f"lengths must be integers, got {lengths.dtype} {lengths.tolist()!s:.60}: "
            "count the tokens of each text"
        )
    if lengths.shape != tokens.shape[1:]:
        raise ValueError(
            f"lengths must have shape ({tokens.shape[1]},), one per column of tokens, got "
            f"{tuple(lengths.shape)}, {lengths.tolist()!s:.60}: count the tokens of each column"
        )


def _checked_counts(tokens: Tensor, lengths: Tensor) -> list[int]:
    if torch._C._functorch.is_batchedtensor(lengths):
        raise ValueError(
            "lengths is mapped over by torch.func.vmap, expected the same for all (in_dims None): "
            "the number of windows depends on its values; put the mapped dimension into B"
        )
    # The number of windows depends on the lengths: the one place that waits for the device.
    counts: list[int] = lengths.tolist()
    for row, count in enumerate(counts):
        if not 0 <= count <= len(tokens):
            raise ValueError(
                f"length {count} of row {row} is outside [0, {len(tokens)}], the rows of tokens: "
                "lengths count tokens without padding"
            )
    return counts
