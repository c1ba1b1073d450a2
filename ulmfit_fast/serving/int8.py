"""A classifier whose LSTM layers multiply in int8, on a CPU."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ulmfit_fast.nn import LSTM, TextClassifier
from ulmfit_fast.serving.checks import HasClassifier, prediction_copy
from ulmfit_fast.system.scoped import ignoring
from ulmfit_fast.system.seeds import own_generators

__all__ = ["is_quantized", "quantize"]

Model = TypeVar("Model", bound="TextClassifier | HasClassifier")
_DEPRECATED = r"torch\.quantize_per_tensor, torch\.quantize_per_channel"


@own_generators()
def quantize(model: Model) -> Model:
    """Return a copy for prediction on a CPU, whose LSTM weights are int8.

    The layers are PyTorch's own dynamically quantised LSTM: weights in int8 with a scale for each
    output, activations in 8 bits with a scale that is found at each step, over all rows of the
    batch. So a text's probabilities depend a little on the texts beside it, as they do not in
    float32; `batch_size=1` makes them its own, and has the most to gain. Embedding and head stay
    in float32. What it costs and brings is measured by `benchmarks/questions/predict.py`.

    Example:
        >>> import torch
        >>> from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig
        >>> config = AWDLSTMConfig.classifier(10, emb_size=8, hidden_size=16)
        >>> model = TextClassifier(AWDLSTM(config), num_classes=2).eval()
        >>> tokens = torch.tensor([[2], [5], [7]])
        >>> tuple(quantize(model)(tokens, torch.tensor([3])).shape)
        (1, 2)

    Args:
        model: a `TextClassifier` in evaluation mode, or a `ULMFiT` with a classifier; in float32,
            on the CPU. It stays as it is.

    Returns:
        The same kind of thing. Of a `ULMFiT`, the copy has no language model, shares the
        tokenizer, and cannot be saved: save the one that it was made from.

    Raises:
        TypeError: if the model is neither.
        ValueError: if there is no classifier, it trains, is on a GPU, or not in float32.
        RuntimeError: if this build of PyTorch has no int8 LSTM.
    """
    classifier = prediction_copy(model, "quantised")
    rnns = [_Int8LSTM(cast(LSTM, rnn)) for rnn in classifier.encoder.rnns]
    classifier.encoder.rnns = nn.ModuleList(rnns)
    classifier.__class__ = _Int8Classifier
    classifier.eval()
    if isinstance(model, TextClassifier):
        return cast(Model, classifier)
    quantised = copy.copy(model)
    quantised.classifier, quantised.language_model = classifier, None
    return quantised


def is_quantized(classifier: TextClassifier) -> bool:
    """Say whether a classifier is one that `quantize` made."""
    return isinstance(classifier, _Int8Classifier)


class _Int8Classifier(TextClassifier):
    """A classifier that refuses to train before any part of it has changed its mode."""

    def train(self, mode: bool = True) -> _Int8Classifier:
        if mode:
            raise RuntimeError(
                "a quantised classifier only predicts; train the one that it was made from, and "
                "quantise that again"
            )
        return super().train(False)


class _Int8LSTM(nn.Module):
    """One layer, called as `AWDLSTM` calls a `uf.LSTM`."""

    def __init__(self, layer: LSTM) -> None:
        super().__init__()
        sizes = layer.input_size, layer.hidden_size
        plain = nn.LSTM(*sizes, device="cpu", dtype=torch.float32)
        plain.load_state_dict(layer.state_dict())
        self.layer = _dynamic_lstm(plain)

    def forward(
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the layer; lengths are of no use to a classifier, which pools with them."""
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "a quantised classifier has no gradients; use the one that it was made from"
            )
        output, state = self.layer(x, hx)  # (T, B, H), (1, B, H)
        return output, state


def _dynamic_lstm(layer: nn.LSTM) -> Any:
    """Quantise with what PyTorch has.

    All of torch.ao.quantization is deprecated in favour of torchao, which has nothing for an LSTM:
    a loop over its linear layers would take the time back that int8 saves. Neither the module nor
    the operator below it warns; the kind of tensor that the weight passes through does.
    """
    try:
        from torch.ao.nn.quantized.dynamic import LSTM as DynamicLSTM
        from torch.ao.quantization import per_channel_dynamic_qconfig
    except ImportError as error:
        raise RuntimeError(
            f"PyTorch {torch.__version__} has no int8 LSTM any more ({error}); use torch<=2.13"
        ) from error
    if torch.backends.quantized.engine == "none":
        raise RuntimeError(
            "this build of PyTorch has no engine for int8 products; "
            f"it knows {torch.backends.quantized.supported_engines}"
        )
    # Both make tensors of PyTorch's default dtype or device, where none is given.
    made = {"device": "cpu", "dtype": torch.float32}
    observer = per_channel_dynamic_qconfig.weight.with_args(factory_kwargs=made)
    layer.qconfig = per_channel_dynamic_qconfig._replace(weight=observer)
    with ignoring(UserWarning, _DEPRECATED), torch.device("cpu"):
        return DynamicLSTM.from_float(layer)  # type: ignore[no-untyped-call]
