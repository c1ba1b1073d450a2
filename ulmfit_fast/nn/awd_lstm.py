"""The AWD-LSTM encoder: an embedding and a stack of LSTM layers, with dropout at every joint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ulmfit_fast.functional.layer import autocast_dtype
from ulmfit_fast.nn.config import AWDLSTMConfig
from ulmfit_fast.nn.dropout import LockedDropout, embed
from ulmfit_fast.nn.lstm import LSTM
from ulmfit_fast.nn.state import State, first_state, prepare_state
from ulmfit_fast.nn.tracing import OnlyTraced

EMBEDDING_BOUND = 0.1


class AWDLSTM(OnlyTraced):
    """Encode token sequences with an embedding and LSTM layers of widths E -> H -> ... -> E.

    The state goes in and out of `forward` and is never kept on the module, so the module can be
    copied, pickled and saved after any step. The training loop detaches it.

    Example:
        >>> import torch
        >>> encoder = AWDLSTM(AWDLSTMConfig(10, emb_size=4, hidden_size=6, num_layers=2))
        >>> output, state = encoder(torch.randint(10, (7, 3)))
        >>> tuple(output.shape), [tuple(h.shape) for h, c in state]
        ((7, 3, 4), [(1, 3, 6), (1, 3, 4)])
        >>> output, state = encoder(torch.randint(10, (5, 2)), state)  # the first two rows go on

    Args:
        config: sizes and dropout values. output_p, tie_weights and out_bias belong to the heads.
        device: device of the parameters; None for PyTorch's default.
        dtype: dtype of the parameters; None for PyTorch's default.

    Source:
        Merity et al., "Regularizing and Optimizing LSTM Language Models" (2018), section 4. The
        embedding starts uniform in [-0.1, 0.1] (zeros for padding), layers in +-1/sqrt(H_l).
    """

    def __init__(
        self,
        config: AWDLSTMConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = config
        size = config.vocab_size, config.emb_size
        self.encoder = nn.Embedding(*size, padding_idx=config.pad_id, **made)
        nn.init.uniform_(self.encoder.weight, -EMBEDDING_BOUND, EMBEDDING_BOUND)
        nn.init.zeros_(self.encoder.weight.data[config.pad_id])
        hidden = [config.hidden_size] * (config.num_layers - 1)
        self.sizes = [*hidden, config.emb_size]
        self.rnns = nn.ModuleList(
            LSTM(width_in, width_out, weight_p=config.weight_p, gate_p=config.gate_p, **made)
            for width_in, width_out in zip([config.emb_size, *hidden], self.sizes, strict=True)
        )
        self.input_dropout = LockedDropout(config.input_p)
        self.hidden_dropout = LockedDropout(config.hidden_p)

    def forward(
        self, tokens: Tensor, state: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Encode one stretch of text.

        Args:
            tokens: token ids, (T, B), int64 or int32.
            state: what an earlier forward returned, or None for zeros. Rows follow the batch:
                missing rows start from zeros, surplus rows at the end are left out.
            lengths: (B,), int64, 0 to T: row b ends after lengths[b] tokens, its state stops
                there and its later outputs are zeros. None: every row has T tokens.

        Returns:
            The last layer's output (T, B, E), before any output dropout, and the new state: per
            layer (h, c), each (1, B, H_l), still attached to the graph; c is in float32 where h is
            in half precision.

        Raises:
            TypeError: if tokens are not integers, or the state is not (h, c) pairs.
            ValueError: if a shape does not fit or a token on the CPU is outside [0, V).
        """
        self._refuse_fx(tokens, state, lengths)
        if tokens.dim() != 2:
            raise ValueError(
                f"tokens must be (T, B), time first, got shape {tuple(tokens.shape)}: "
                "one text alone is tokens.unsqueeze(1)"
            )
        weight, batch = self.encoder.weight, tokens.shape[1]
        incoming: State | list[None]
        if state is None:
            incoming = first_state(
                self.sizes, batch=batch, dtype=weight.dtype, device=weight.device
            )
        else:
            dtype = autocast_dtype(weight) or weight.dtype
            incoming = prepare_state(
                state, self.sizes, batch=batch, dtype=dtype, device=weight.device
            )
        word_p, input_p = (self.config.embed_p, self.input_dropout.p) if self.training else (0, 0)
        x = embed(self.encoder, tokens, word_p, locked_p=input_p)  # (T, B, E)
        new_state: State = []
        for layer, (rnn, hx) in enumerate(zip(self.rnns, incoming, strict=True)):
            if layer > 0:
                x = self.hidden_dropout(x)
            x, layer_state = rnn(x, hx, lengths=lengths)  # (T, B, H), (1, B, H)
            new_state.append(layer_state)
        return x, new_state

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters by depth, for layer-wise learning rates and unfreezing.

        Returns:
            [embedding, first layer, ..., last layer], from input to output.
        """
        return [list(self.encoder.parameters()), *(list(rnn.parameters()) for rnn in self.rnns)]
