"""State dicts as fastai and awd-lstm-lm write them, and what they compute."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulmfit_fast.nn import LanguageModel

V, E, LAYERS = 56, 8, 3
FORMATS = ["v2", "v1", "0.7", "awd-lstm-lm"]


def state_dict(kind: str = "v2", hidden: int = 24, layers: int = LAYERS, bias: bool | None = None):
    """Return a language model's tensors with the names that a project gives them, in float64."""
    bias = kind != "0.7" if bias is None else bias

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64) * 0.5

    tensors, embedding = {}, values(V, E)
    tensors["0.encoder.weight"] = embedding
    if kind == "0.7":
        tensors["0.encoder_with_dropout.embed.weight"] = embedding
    if kind in ("v1", "v2"):
        tensors["0.encoder_dp.emb.weight"] = embedding
    for n in range(layers):
        width = hidden if n < layers - 1 else E
        wrapper, lstm = f"0.rnns.{n}.", f"0.rnns.{n}.module."
        raw = values(4 * width, width)
        if kind in ("v1", "v2"):
            tensors[f"{wrapper}weight_hh_l0_raw"] = raw
        tensors[f"{lstm}weight_ih_l0"] = values(4 * width, hidden if n else E)
        if kind == "v1":
            # What the last dropout left.
            tensors[f"{lstm}weight_hh_l0"] = F.dropout(raw, 0.5)
        tensors[f"{lstm}bias_ih_l0"] = values(4 * width)
        tensors[f"{lstm}bias_hh_l0"] = values(4 * width)
        if kind in ("0.7", "awd-lstm-lm"):
            tensors[f"{lstm}weight_hh_l0_raw"] = raw
    tensors["1.decoder.weight"] = embedding
    if bias:
        tensors["1.decoder.bias"] = values(V)
    if kind == "awd-lstm-lm":
        return {name[2:]: value for name, value in tensors.items()}
    return tensors


def encoder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what `save_encoder` would write."""
    return {name[2:]: value for name, value in tensors.items() if name.startswith("0.")}


def expected_logits(tensors: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Run PyTorch's own layers, batch first as fastai does, on tensors of any of the formats."""
    named = {name.removeprefix("0.").removeprefix("1."): v for name, v in tensors.items()}
    x = F.embedding(tokens.t(), named["encoder.weight"])
    layers = len({name.split(".")[1] for name in named if name.startswith("rnns.")})
    for n in range(layers):
        own = {name[7:]: v for name, v in named.items() if name.startswith(f"rnns.{n}.")}
        raw = own.get("weight_hh_l0_raw", own.get("module.weight_hh_l0_raw"))
        lstm = nn.LSTM(x.shape[2], raw.shape[1], batch_first=True, dtype=torch.float64)
        rest = ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0")
        lstm.load_state_dict({"weight_hh_l0": raw} | {n: own[f"module.{n}"] for n in rest})
        x = lstm(x)[0].detach()
    return F.linear(x, named["decoder.weight"], named.get("decoder.bias")).transpose(0, 1)


def logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def assert_right(model: LanguageModel, tensors: dict[str, Tensor]) -> None:
    for shape in [(1, 1), (2, 3), (70, 2)]:
        tokens = torch.randint(V, shape)
        difference = logits(model, tokens) - expected_logits(tensors, tokens)
        assert difference.abs().max() < 1e-12


def parallel(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in tensors.items()}
