"""The names that fastai v2, v1 and 0.7 and awd-lstm-lm give to the tensors of our models.

    ours                          theirs, where they differ from fastai v2
    encoder.encoder.weight        0.encoder.weight, again as 0.encoder_dp.emb.weight;
                                  0.7: again as 0.encoder_with_dropout.embed.weight
    encoder.rnns.N.weight_hh_l0   0.rnns.N.weight_hh_l0_raw; v1: and its last dropped form as
                                  0.rnns.N.module.weight_hh_l0; 0.7 and awd-lstm-lm:
                                  0.rnns.N.module.weight_hh_l0_raw
    encoder.rnns.N.weight_ih_l0   0.rnns.N.module.weight_ih_l0, and bias_ih_l0, bias_hh_l0 alike
    decoder.weight, .bias         1.decoder.weight, 1.decoder.bias; 0.7: no bias

awd-lstm-lm and the files of `save_encoder` have no `0.` and `1.`; the encoder of a classifier lies
under `0.module.`. Tensors are found by these names alone, never by their order or shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BIAS",
    "DECODER",
    "EMBEDDING",
    "classifier_tensors",
    "fastai_head_names",
    "fastai_names",
    "infer_sizes",
    "language_model_tensors",
    "same_values",
    "unwrapped",
]

EMBEDDING, DECODER, BIAS = "encoder.encoder.weight", "decoder.weight", "decoder.bias"

_WRAPPERS = ("module.", "_orig_mod.")
_EMBEDDINGS = {
    "encoder.weight",
    "encoder_dp.emb.weight",
    "encoder_with_dropout.embed.weight",
}
_LAYER = re.compile(r"rnns\.(\d+)\.(?:module\.)?((?:weight|bias)_(?:ih|hh)_l0)(_raw)?")
_LAYER_TENSORS = ("weight_hh_l0", "weight_ih_l0", "bias_ih_l0", "bias_hh_l0")
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_MOST_LISTED = 12

Found = dict[str, list[tuple[str, Tensor]]]


def fastai_names(num_layers: int) -> list[tuple[str, str]]:
    """Return fastai v2's names of an encoder's tensors in fastai's order, and ours.

    >>> fastai_names(1)[2:4]
    [('rnns.0.weight_hh_l0_raw', 'rnns.0.weight_hh_l0'), ('rnns.0.module.weight_ih_l0', \
'rnns.0.weight_ih_l0')]

    Args:
        num_layers: L.

    Returns:
        Pairs (theirs, ours) without the prefix of the encoder; the embedding stands there twice.
    """
    pairs = [(name, "encoder.weight") for name in ("encoder.weight", "encoder_dp.emb.weight")]
    for layer in range(num_layers):
        for name in _LAYER_TENSORS:
            theirs = f"{name}_raw" if name == "weight_hh_l0" else f"module.{name}"
            pairs.append((f"rnns.{layer}.{theirs}", f"rnns.{layer}.{name}"))
    return pairs


def fastai_head_names(linear_places: tuple[int, int]) -> list[tuple[str, str]]:
    """Return fastai v2's names of a classifier head's tensors in fastai's order, and ours.

    >>> fastai_head_names((2, 2))[5]
    ('1.layers.0.2.weight', 'head.2.weight')

    Args:
        linear_places: where in its block each linear layer stands: 2, or 1 in a block without
            dropout.

    Returns:
        Pairs (theirs, ours).
    """
    pairs = []
    for block, (place, norm, linear) in enumerate(zip(linear_places, (0, 4), (2, 6), strict=True)):
        pairs += [(f"1.layers.{block}.0.{name}", f"head.{norm}.{name}") for name in _NORM_TENSORS]
        pairs.append((f"1.layers.{block}.{place}.weight", f"head.{linear}.weight"))
    return pairs


def language_model_tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a language model, or of an encoder alone, under our names.

    Args:
        state_dict: of any of the formats.

    Returns:
        The tensors themselves; of the decoder those that there are.

    Raises:
        TypeError: if it is no mapping of names to floating tensors of one dtype.
        ValueError: if names are unknown or missing, shapes do not fit each other, or two names of
            one tensor hold different values.
    """
    encoder, rest = _parts(unwrapped(state_dict))
    if any(name.startswith("1.layers.") for name in rest):
        raise ValueError(
            "the state_dict is that of a classifier (it has 1.layers), expected a language model "
            "or an encoder; use classifier_from_fastai"
        )
    found, unknown = _encoder(encoder)
    for name, tensor in rest.items():
        if name in ("1.decoder.weight", "1.decoder.bias"):
            found.setdefault(name.removeprefix("1."), []).append((name, tensor))
        else:
            unknown.append(name)
    if EMBEDDING not in found and DECODER in found:
        # safetensors writes a shared tensor under one of its names.
        found[EMBEDDING] = found[DECODER]
    return _checked(found, unknown)


def classifier_tensors(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Return the tensors of fastai v2's text classifier under our names.

    Args:
        state_dict: of `get_text_classifier(AWD_LSTM, ...)` with one hidden layer.

    Returns:
        The tensors themselves, and where in its block each linear layer stands, see
        `fastai_head_names`.

    Raises:
        TypeError: as for `language_model_tensors`.
        ValueError: as for `language_model_tensors`.
    """
    encoder, rest = _parts(unwrapped(state_dict))
    found, unknown = _encoder(encoder)
    places = tuple(1 if f"1.layers.{block}.1.weight" in rest else 2 for block in range(2))
    head = dict(fastai_head_names((places[0], places[1])))
    for name, tensor in rest.items():
        if name in head:
            found[head[name]] = [(name, tensor)]
        else:
            unknown.append(name)
    missing = [name for name, ours in head.items() if ours not in found]
    return _checked(found, unknown, missing), (places[0], places[1])


def unwrapped(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take a model's tensors out of {'model', 'opt'} and out of modules around the model.

    Args:
        state_dict: as a file holds it.

    Raises:
        TypeError: if it holds anything but tensors by name.
    """
    if isinstance(state_dict, Mapping) and isinstance(state_dict.get("model"), Mapping):
        state_dict = state_dict["model"]
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"the state_dict is a {type(state_dict).__name__}, expected tensors by name; "
            "pass model.state_dict()"
        )
    for name, tensor in state_dict.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(
                f"the state_dict holds a {type(tensor).__name__} under {name!r:.60}, expected "
                "tensors by name; pass model.state_dict()"
            )
    tensors = dict(state_dict)
    return _without_wrappers(tensors)


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            inner = {name.removeprefix(prefix): value for name, value in tensors.items()}
            return _without_wrappers(inner)
    return tensors


def _parts(tensors: dict[str, Tensor]) -> tuple[dict[str, tuple[str, Tensor]], dict[str, Tensor]]:
    """Split into the encoder's (name within it: full name, tensor) and the rest under full names.

    The decoder of awd-lstm-lm, which stands beside the encoder, becomes `1.decoder`.
    """
    children = {
        child: {name: value for name, value in tensors.items() if name.startswith(f"{child}.")}
        for child in "01"
    }
    if not children["0"] and not children["1"]:
        decoder = {n: v for n, v in tensors.items() if n.startswith("decoder.")}
        encoder = {name: (name, v) for name, v in tensors.items() if name not in decoder}
        return encoder, {f"1.{name}": value for name, value in decoder.items()}
    inner = {name.removeprefix("0."): (name, value) for name, value in children["0"].items()}
    if inner and all(name.startswith("module.") for name in inner):
        inner = {name.removeprefix("module."): value for name, value in inner.items()}
    rest = {name: value for name, value in tensors.items() if name not in children["0"]}
    return inner, rest


def _encoder(tensors: Mapping[str, tuple[str, Tensor]]) -> tuple[Found, list[str]]:
    """Find what each of our encoder's tensors is called; return it and the names unknown."""
    found: Found = {}
    dropped: Found = {}
    unknown = []
    for name, (full_name, tensor) in tensors.items():
        match = _LAYER.fullmatch(name)
        if name in _EMBEDDINGS:
            found.setdefault(EMBEDDING, []).append((full_name, tensor))
        elif match and (match[2] == "weight_hh_l0" or not match[3]):
            ours = f"encoder.rnns.{int(match[1])}.{match[2]}"
            twice = dropped if match[2] == "weight_hh_l0" and not match[3] else found
            twice.setdefault(ours, []).append((full_name, tensor))
        else:
            unknown.append(full_name)
    # Beside the raw weight it is what the last dropout left of it.
    return {**dropped, **found}, unknown


def _checked(found: Found, unknown: list[str], missing: Iterable[str] = ()) -> dict[str, Tensor]:
    layers = [int(name.split(".")[2]) for name in found if name.startswith("encoder.rnns.")]
    # A number out of all proportion must not make a list of that length.
    count = min(max(layers, default=0), len(found)) + 1
    names = {f"encoder.{ours}": theirs for theirs, ours in fastai_names(count)}
    names[EMBEDDING] = "encoder.weight"
    missing = [theirs for ours, theirs in names.items() if ours not in found] + list(missing)
    if unknown or missing:
        hint = ""
        if any("_reverse" in name for name in unknown):
            hint = "; layers of two directions are not supported"
        raise ValueError(
            "the state_dict is no AWD-LSTM of fastai or awd-lstm-lm: "
            f"unknown names: {_listed(unknown)}; missing: {_listed(missing)}{hint}"
        )
    tensors, called = {}, {}
    for ours, candidates in found.items():
        (name, tensor), *others = candidates
        for other, value in others:
            if not same_values(tensor, value):
                raise ValueError(
                    f"{name} and {other} are two names of one tensor but hold different values; "
                    "leave the wrong one out"
                )
        tensors[ours], called[ours] = tensor, name
    _check_dtypes(tensors, called)
    _check_shapes(tensors, called)
    return tensors


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return (", ".join(names[:_MOST_LISTED]) + more) or "none"


def same_values(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are one, or equal in shape, dtype and values."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # A diverged model's NaN differ from themselves.
    same_memory = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    return same_memory or torch.equal(a, b.to(a.device))


def _check_dtypes(tensors: Mapping[str, Tensor], called: Mapping[str, str]) -> None:
    dtype = tensors[EMBEDDING].dtype
    for ours, tensor in tensors.items():
        if ours.endswith("num_batches_tracked"):
            if tensor.dtype != torch.int64:
                raise TypeError(f"{called[ours]} has dtype {tensor.dtype}, expected torch.int64")
            continue
        if tensor.dtype != dtype or not dtype.is_floating_point:
            raise TypeError(
                f"{called[ours]} has dtype {tensor.dtype}, expected one floating dtype for all, "
                f"the embedding's being {dtype}; convert them first"
            )


def infer_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Read the sizes off tensors under our names.

    Args:
        tensors: as `language_model_tensors` and `classifier_tensors` return them.

    Returns:
        vocab_size, emb_size, hidden_size and num_layers.
    """
    vocab, emb = _rows_and_columns(tensors[EMBEDDING])
    layers = sum(name.endswith("weight_hh_l0") for name in tensors)
    # One layer alone has the width of the embedding.
    first = tensors["encoder.rnns.0.weight_hh_l0"]
    hidden = _rows_and_columns(first)[1] if layers > 1 else emb
    return {"vocab_size": vocab, "emb_size": emb, "hidden_size": hidden, "num_layers": layers}


def _rows_and_columns(tensor: Tensor) -> tuple[int, int]:
    rows, columns, *_ = (*tensor.shape, 0, 0)
    return rows, columns


def _check_shapes(tensors: Mapping[str, Tensor], called: Mapping[str, str]) -> None:
    sizes = infer_sizes(tensors)
    expected = _shapes(tensors, **sizes)
    for ours, tensor in tensors.items():
        if tuple(tensor.shape) != expected[ours]:
            shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(
                f"{called[ours]} has shape {tuple(tensor.shape)}, expected {expected[ours]} in a "
                f"model of {shown}; the tensors are of several models, or the file is damaged"
            )


def _shapes(
    tensors: Mapping[str, Tensor],
    *,
    vocab_size: int,
    emb_size: int,
    hidden_size: int,
    num_layers: int,
) -> dict[str, tuple[int, ...]]:
    table = (vocab_size, emb_size)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: table, DECODER: table, BIAS: (vocab_size,)}
    for layer in range(num_layers):
        width_in = hidden_size if layer else emb_size
        width = hidden_size if layer < num_layers - 1 else emb_size
        prefix = f"encoder.rnns.{layer}."
        shapes[f"{prefix}weight_hh_l0"] = (4 * width, width)
        shapes[f"{prefix}weight_ih_l0"] = (4 * width, width_in)
        shapes[f"{prefix}bias_ih_l0"] = shapes[f"{prefix}bias_hh_l0"] = (4 * width,)
    if "head.2.weight" in tensors:
        hidden, classes = (_rows_and_columns(tensors[f"head.{n}.weight"])[0] for n in (2, 6))
        shapes |= {"head.2.weight": (hidden, 3 * emb_size), "head.6.weight": (classes, hidden)}
        for norm, width in ((0, 3 * emb_size), (4, hidden)):
            shapes |= {f"head.{norm}.{name}": (width,) for name in _NORM_TENSORS}
            shapes[f"head.{norm}.num_batches_tracked"] = ()
    return shapes
