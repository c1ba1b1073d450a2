"""A classifier over long documents as it is written with PyTorch's own layers today."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.compared.lm_plain import PlainEncoder
from ulmfit_fast.nn import AWDLSTMConfig


class PlainClassifier(nn.Module):
    """Windows of `bptt` tokens, the outputs of the last `max_len` kept and pooled, a small head.

    Every window is run with gradient; the outputs of those before the kept span are thrown away.

    Args:
        config: of the encoder.
        classes: C.
        bptt: tokens in a window.
        max_len: tokens at the end that are pooled.
        head_p: dropouts of the head.
    """

    def __init__(
        self,
        config: AWDLSTMConfig,
        classes: int,
        bptt: int,
        max_len: int,
        head_p: tuple[float, float],
    ) -> None:
        super().__init__()
        self.encoder = PlainEncoder(config)
        self.bptt = bptt
        self.max_len = max_len
        width = 3 * config.emb_size
        self.head = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Dropout(head_p[0]),
            nn.Linear(width, 50, bias=False),
            nn.ReLU(),
            nn.BatchNorm1d(50),
            nn.Dropout(head_p[1]),
            nn.Linear(50, classes, bias=False),
        )

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Score (B, T) tokens, padded at the end, of which row b has lengths[b]: (B, C)."""
        steps = tokens.shape[1]
        state, kept = None, []
        first = max(steps - self.max_len, 0) // self.bptt * self.bptt
        for start in range(0, steps, self.bptt):
            output, state = self.encoder(tokens[:, start : start + self.bptt], state)
            if start >= first:
                kept.append(output)
        outputs = torch.cat(kept, dim=1)
        place = torch.arange(first, steps, device=tokens.device)
        inside = (place < lengths[:, None]) & (place >= lengths[:, None] - self.max_len)
        outside = ~inside[:, :, None]
        last = outputs[torch.arange(len(outputs), device=tokens.device), lengths - 1 - first]
        largest = outputs.masked_fill(outside, -float("inf")).amax(1)
        mean = outputs.masked_fill(outside, 0).sum(1) / inside.sum(1, keepdim=True)
        return self.head(torch.cat([last, largest, mean.to(last.dtype)], dim=1))

    @torch.no_grad()
    def load(self, ours: Mapping[str, Tensor]) -> None:
        """Take the values of our classifier's parameters."""
        self.encoder.load(ours)
        self.head.load_state_dict(
            {n.removeprefix("head."): v for n, v in ours.items() if n.startswith("head.")}
        )

    def by_name(self) -> dict[str, nn.Parameter]:
        """Return the parameters under our classifier's names."""
        head = {f"head.{name}": value for name, value in self.head.named_parameters()}
        return {**self.encoder.by_name(), **head}
