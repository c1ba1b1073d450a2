"""The language model: an AWD-LSTM encoder and a decoder tied to its embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ulmfit_fast.functional import dropout as fused
from ulmfit_fast.functional.cross_entropy import linear_cross_entropy
from ulmfit_fast.nn.awd_lstm import AWDLSTM, EMBEDDING_BOUND
from ulmfit_fast.nn.config import AWDLSTMConfig
from ulmfit_fast.nn.dropout import LockedDropout
from ulmfit_fast.nn.loss import LMLoss, LMOutput, check_loss_arguments, language_model_loss
from ulmfit_fast.nn.state import State
from ulmfit_fast.nn.tracing import OnlyTraced
from ulmfit_fast.system.seeds import draw_seed


class LanguageModel(OnlyTraced):
    """Predict the next token: an AWD-LSTM encoder and a decoder that shares its embedding.

    Example:
        >>> import torch
        >>> model = LanguageModel(AWDLSTMConfig(10, emb_size=4, hidden_size=6))
        >>> output = model(torch.randint(10, (7, 3)))
        >>> tuple(output.logits.shape), model.decoder.weight is model.encoder.encoder.weight
        ((7, 3, 10), True)

    Args:
        config: sizes and dropout values.
        device: device of the parameters; None for PyTorch's default.
        dtype: dtype of the parameters; None for PyTorch's default.

    Source:
        Merity et al., "Regularizing and Optimizing LSTM Language Models" (2018); the shared weight
        after Inan et al. (2017).
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
        self.encoder = AWDLSTM(config, **made)
        self.output_dropout = LockedDropout(config.output_p)
        size = config.emb_size, config.vocab_size
        self.decoder = nn.Linear(*size, bias=config.out_bias, **made)
        if config.tie_weights:
            self.decoder.weight = self.encoder.encoder.weight
        else:
            nn.init.uniform_(self.decoder.weight, -EMBEDDING_BOUND, EMBEDDING_BOUND)
        if config.out_bias:
            nn.init.zeros_(self.decoder.bias)

    def _is_tied(self) -> bool:
        own = self.decoder._parameters.get("weight")
        return own is not None and own is self.encoder.encoder._parameters.get("weight")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModel:
        # What replaces parameters, such as to_empty(), makes one for each name.
        tied = self._is_tied()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if tied and not self._is_tied():
            self.decoder.weight = self.encoder.encoder.weight
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = f"{prefix}encoder.encoder.weight", f"{prefix}decoder.weight"
        if self._is_tied() and all(isinstance(state_dict.get(name), Tensor) for name in names):
            first, second = (state_dict[name] for name in names)
            if not _equal(first, second):
                error_msgs.append(
                    f"{names[0]} and {names[1]} differ, and are one parameter here, expected the "
                    "same; make the model with tie_weights=False"
                )
            elif local_metadata.get("assign_to_params_buffers"):
                # Of one object there will be one parameter.
                one = first if isinstance(first, nn.Parameter) else nn.Parameter(first, False)
                state_dict.update(dict.fromkeys(names, one))
        super()._load_from_state_dict(
            *(state_dict, prefix, local_metadata, strict),
            *(missing_keys, unexpected_keys, error_msgs),
        )

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
        self._refuse_fx(tokens, state)
        raw, state = self.encoder(tokens, state)
        dropped = self.output_dropout(raw)  # (T, B, E)
        return LMOutput(self.decoder(dropped), raw, dropped, state)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None = None,
        *,
        alpha: float = 2.0,
        beta: float = 1.0,
        ar_on: Literal["dropped", "raw"] = "dropped",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> tuple[LMLoss, State]:
        """Compute the training loss without keeping all logits.

        The value and gradients of `language_model_loss` on what `forward` returns, masks included.
        In evaluation mode pass alpha = beta = 0, or read `cross_entropy` alone.

        Example:
            >>> import torch
            >>> model = LanguageModel(AWDLSTMConfig(10, emb_size=4, hidden_size=6))
            >>> tokens = torch.randint(10, (8, 3))
            >>> loss, state = model.loss(tokens[:-1], tokens[1:])
            >>> loss.total.backward()

        Args:
            tokens: token ids, (T, B), int64 or int32.
            targets: token ids, (T, B), int64.
            state: the state of the text before, or None at its start; see `AWDLSTM.forward`.
            alpha: weight of AR; 0 leaves it out.
            beta: weight of TAR; 0 leaves it out.
            ar_on: AR after ("dropped") or before ("raw") output dropout.
            label_smoothing: share of the target spread evenly over all V word types, in [0, 1].
            ignore_index: target that does not count in the cross entropy.

        Returns:
            The parts of the loss, and the new state, still attached to the graph.

        Raises:
            TypeError: if tokens or targets are not integers, or the state is not (h, c) pairs.
            ValueError: if an argument does not fit, as for `forward` and `language_model_loss`.

        Source:
            Merity et al. (2018), section 4.6.
        """
        if type(self.decoder) is not nn.Linear or _has_hooks(self) or _has_hooks(self.decoder):
            # Another decoder computes its logits in its own way, and hooks want to see them.
            output = self(tokens, state)
            parts = language_model_loss(
                output,
                targets,
                alpha=alpha,
                beta=beta,
                ar_on=ar_on,
                label_smoothing=label_smoothing,
                ignore_index=ignore_index,
            )
            return parts, output.state
        check_loss_arguments(
            targets, tokens.shape, alpha, beta, ar_on=ar_on, label_smoothing=label_smoothing
        )
        raw, state = self.encoder(tokens, state)
        p = self.output_dropout.p if self.training else 0.0
        seed = draw_seed() if p > 0.0 else None
        activation = temporal = raw.new_zeros(
            (), dtype=torch.promote_types(raw.dtype, torch.float32)
        )
        if alpha > 0.0 or beta > 0.0:
            dropped, square, difference = fused.dropout_and_regularisers(raw, seed, p, ar_on=ar_on)
            # Multiplied by 0 an infinite activation would still be felt.
            activation = alpha * square if alpha > 0.0 else activation
            temporal = beta * difference if beta > 0.0 else temporal
        else:
            dropped = raw if seed is None else fused.locked_dropout(raw, seed, p)
        cross_entropy = linear_cross_entropy(
            dropped.flatten(0, 1),  # (TB, E)
            self.decoder.weight,
            self.decoder.bias,
            targets.flatten(),
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
        total = cross_entropy + activation + temporal
        return LMLoss(cross_entropy, activation, temporal, total), state

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


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or bool(module._backward_pre_hooks)


def _equal(first: Tensor, second: Tensor) -> bool:
    # Those of a meta device have no values, and others are for the copying to refuse.
    if first is second or first.is_meta or second.is_meta or first.shape != second.shape:
        return True
    second = second.to(first.device, first.dtype)
    return torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
