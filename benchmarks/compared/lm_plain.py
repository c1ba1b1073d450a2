"""A language model's training step as it is written with PyTorch's own layers today.

The operations are those of the usual AWD-LSTM implementations: the whole embedding matrix is
dropped from, every mask is drawn by bernoulli, each layer is nn.LSTM behind `F.dropout` on its
recurrent weight, the logits are all there at once, and Adam walks from parameter to parameter.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.compared.baselines import WeightDropped
from benchmarks.harness.timing import INPUTS
from ulmfit_fast.nn import AWDLSTMConfig

ALPHA, BETA, CLIP = 2.0, 1.0, 0.25
# fastai's Adam: decoupled weight decay, momenta 0.9 and 0.99.
ADAM = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-5, "weight_decay": 0.01}

State = list[tuple[Tensor, Tensor]]


@dataclass
class Problem:
    """The model and the text of a run.

    Attributes:
        config: sizes and dropouts.
        batch_size: B.
        steps: T.
        start: values of our model's parameters.
        device: "cpu" or "cuda".
    """

    config: AWDLSTMConfig
    batch_size: int
    steps: int
    start: dict[str, Tensor]
    device: str

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Draw random (T, B) inputs and targets."""
        size = (self.steps + 1, self.batch_size)
        drawn = torch.Generator().manual_seed(1)
        ids = [
            torch.randint(2, self.config.vocab_size, size, generator=drawn) for _ in range(INPUTS)
        ]
        texts = [text.to(self.device) for text in ids]
        return [(text[:-1].contiguous(), text[1:].contiguous()) for text in texts]


def locked(x: Tensor, p: float, training: bool) -> Tensor:
    """Drop the same features at every step of (B, T, F)."""
    if not training or p == 0.0:
        return x
    mask = x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1 - p)
    return x * (mask / (1 - p))


class PlainEncoder(nn.Module):
    """AWD-LSTM out of nn.Embedding and nn.LSTM, batch first."""

    def __init__(self, config: AWDLSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.emb_size, config.pad_id)
        hidden = [config.hidden_size] * (config.num_layers - 1)
        widths = [config.emb_size, *hidden, config.emb_size]
        self.rnns = nn.ModuleList(
            WeightDropped(nn.LSTM(e, h, batch_first=True), config.weight_p)
            for e, h in itertools.pairwise(widths)
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Look tokens up, dropping word types, then features: (B, T) -> (B, T, E)."""
        weight = self.embedding.weight
        if self.training and self.config.embed_p > 0.0:
            keep = 1 - self.config.embed_p
            weight = weight * (weight.new_empty(len(weight), 1).bernoulli_(keep) / keep)
        x = F.embedding(tokens, weight, self.config.pad_id)
        return locked(x, self.config.input_p, self.training)

    def stack(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Run the LSTM layers."""
        new_state = []
        for index, rnn in enumerate(self.rnns):
            if index > 0:
                x = locked(x, self.config.hidden_p, self.training)
            x, (h, c) = rnn(x, None if state is None else state[index])
            new_state.append((h.detach(), c.detach()))
        return x, new_state

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Encode (B, T) tokens as (B, T, E)."""
        return self.stack(self.embed(tokens), state)

    @torch.no_grad()
    def load(self, ours: Mapping[str, Tensor], prefix: str = "encoder.") -> None:
        """Take the values of our encoder's parameters, by its names."""
        self.embedding.weight.copy_(ours[f"{prefix}encoder.weight"])
        for index, rnn in enumerate(self.rnns):
            rnn.raw.copy_(ours[f"{prefix}rnns.{index}.weight_hh_l0"])
            for name, parameter in rnn.lstm.named_parameters():
                parameter.copy_(ours[f"{prefix}rnns.{index}.{name}"])

    def by_name(self) -> dict[str, nn.Parameter]:
        """Return the parameters under our encoder's names."""
        named = {"encoder.encoder.weight": self.embedding.weight}
        for index, rnn in enumerate(self.rnns):
            named[f"encoder.rnns.{index}.weight_hh_l0"] = rnn.raw
            named[f"encoder.rnns.{index}.weight_ih_l0"] = rnn.lstm.weight_ih_l0
        return named


class PlainLanguageModel(nn.Module):
    """The encoder and a decoder tied to its embedding."""

    def __init__(self, config: AWDLSTMConfig) -> None:
        super().__init__()
        self.encoder = PlainEncoder(config)
        self.decoder = nn.Linear(config.emb_size, config.vocab_size)
        self.decoder.weight = self.encoder.embedding.weight

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Return cross entropy, AR and TAR of an encoder's output."""
        dropped = locked(raw, self.encoder.config.output_p, self.training)
        logits = self.decoder(dropped)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss = loss + ALPHA * dropped.float().pow(2).mean()
        return loss + BETA * (raw[:, 1:] - raw[:, :-1]).float().pow(2).mean()

    @torch.no_grad()
    def load(self, ours: Mapping[str, Tensor]) -> None:
        """Take the values of our language model's parameters."""
        self.encoder.load(ours)
        self.decoder.bias.copy_(ours["decoder.bias"])

    def by_name(self) -> dict[str, nn.Parameter]:
        """Return the parameters under our model's names."""
        return {**self.encoder.by_name(), "decoder.bias": self.decoder.bias}


class PlainStep:
    """A training step of the plain model; half precision by autocast, float16 with a scaler.

    Args:
        model: on its device, in float32 or, for the truth, float64.
        dtype: of autocast, or the model's own.
    """

    def __init__(self, model: PlainLanguageModel, dtype: torch.dtype) -> None:
        self.model = model.train()
        weight = model.decoder.weight
        self.half = dtype if dtype in (torch.float16, torch.bfloat16) else None
        self.device = weight.device.type
        scaled = dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device, enabled=scaled, init_scale=2.0**10)
        # One parameter after the other, as optimisers written in Python do.
        self.optimizer = torch.optim.AdamW(model.parameters(), foreach=False, **ADAM)
        self.state: State | None = None

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context of the forward."""
        if self.half is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.half)

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Train on (T, B) ids; return the loss."""
        self.optimizer.zero_grad()
        with self.autocast():
            raw, self.state = self.model.encoder(inputs.t(), self.state)
            loss = self.model.loss(raw, targets.t())
        self.scaler.scale(loss).backward()
        self.update()
        return loss.detach()

    def update(self) -> None:
        """Clip the gradients and step."""
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP, foreach=False)
        self.scaler.step(self.optimizer)
        self.scaler.update()
