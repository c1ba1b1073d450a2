"""The language model: an AWD-LSTM encoder and a decoder tied to its embedding."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ulmfit_fast.nn.awd_lstm import AWDLSTM, EMBEDDING_BOUND
from ulmfit_fast.nn.config import AWDLSTMConfig
from ulmfit_fast.nn.dropout import LockedDropout
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


class LanguageModel(nn.Module):
    """Predict the next token: an AWD-LSTM encoder and a decoder that shares its embedding.

    Example:
        >>> import torch
        >>> model = LanguageModel(AWDLSTMConfig(10, emb_size=4, hidden_size=6))
        >>> output = model(torch.randint(10, (7, 3)))
        >>> tuple(output.logits.shape), model.decoder.weight is model.encoder.encoder.weight
        ((7, 3, 10), True)

    Args:
        config: sizes and dropout values.

    Source:
        Merity et al., "Regularizing and Optimizing LSTM Language Models" (2018); the shared weight
        after Inan et al. (2017).
    """

    def __init__(self, config: AWDLSTMConfig) -> None:
        super().__init__()
        self.encoder = AWDLSTM(config)
        self.output_dropout = LockedDropout(config.output_p)
        self.decoder = nn.Linear(config.emb_size, config.vocab_size, bias=config.out_bias)
        if config.tie_weights:
            self.decoder.weight = self.encoder.encoder.weight
        else:
            nn.init.uniform_(self.decoder.weight, -EMBEDDING_BOUND, EMBEDDING_BOUND)
        if config.out_bias:
            nn.init.zeros_(self.decoder.bias)

    @property
    def config(self) -> AWDLSTMConfig:
        """Sizes and dropout values."""
        return self.encoder.config

    def forward(self, tokens: Tensor, state: State | None = None) -> LMOutput:
        """Score the next token at every place.

        Args:
            tokens: token ids, (T, B), int64 or int32.
            state: the state of the text before, or None at its start; see `AWDLSTM.forward`.

        Returns:
            Logits, the encoder's output with and without dropout, and the new state.

        Raises:
            TypeError: if tokens are not integers, or the state is not (h, c) pairs.
            ValueError: if a shape does not fit or a token on the CPU is outside [0, V).
        """
        raw, state = self.encoder(tokens, state)
        dropped = self.output_dropout(raw)
        return LMOutput(self.decoder(dropped), raw, dropped, state)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters by depth, for layer-wise learning rates and unfreezing.

        The decoder stands with the embedding whose weight it shares, hence at the input end.

        Returns:
            [embedding and decoder, first layer, ..., last layer].
        """
        embedding, *rnns = self.encoder.layer_groups()
        known = {id(parameter) for parameter in embedding}
        decoder = [p for p in self.decoder.parameters() if id(p) not in known]
        return [embedding + decoder, *rnns]
