"""fastai's and awd-lstm-lm's weights in our models and ours in fastai's, always by name.

Models are equal after the change in evaluation mode: fastai reads `(B, T)`, ours `(T, B)`. A model
made for reversed text stays one: reverse the tokens before it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ulmfit_fast.compat import fastai_names as names
from ulmfit_fast.compat.fastai_learner import accelerate, restore
from ulmfit_fast.compat.fastai_vocab import vocabulary_from_fastai
from ulmfit_fast.compat.files import read_tensors, read_words, write_tensors_and_words
from ulmfit_fast.data.tokens.tokenizer import Tokenizer, largest_json
from ulmfit_fast.data.tokens.vocab import BOS, UP, Vocab
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, LanguageModel, TextClassifier
from ulmfit_fast.nn.vocabulary import language_model, use_rows
from ulmfit_fast.nn.weights import Place, check_finite

__all__ = [
    "accelerate",
    "classifier_from_fastai",
    "from_fastai",
    "read_fastai",
    "restore",
    "to_fastai",
    "use_rows",
    "vocabulary_from_fastai",
    "write_fastai",
]

_FROM_THE_WEIGHTS = (
    "vocab_size",
    "emb_size",
    "hidden_size",
    "num_layers",
    "tie_weights",
    "out_bias",
)
_WITH_ENCODER = (LanguageModel, TextClassifier)


def from_fastai(state_dict: Mapping[str, Any], **overrides: Any) -> LanguageModel:
    """Make a language model from the weights of fastai v2, v1 or 0.7, or of awd-lstm-lm.

    Sizes are read off the tensors, so 1150 hidden units stay 1150; so is whether the decoder has a
    bias and whether it shares the embedding (where the two are equal). An encoder alone, as
    `save_encoder` writes it, gets a decoder that shares the embedding, with a bias of zeros. Where
    a recurrent weight occurs raw and as dropout last left it, the raw one counts.

    Example:
        >>> model = LanguageModel(AWDLSTMConfig(10, emb_size=4, hidden_size=6))
        >>> from_fastai(to_fastai(model), weight_p=0.1).config.hidden_size
        6

    Args:
        state_dict: of the model or its encoder; as `Learner.save` wraps it, {"model": ...}; or
            with the names that a module around it gives (`module.`).
        overrides: dropout values of `AWDLSTMConfig`, and pad_id. awd-lstm-lm has no padding, its
            id 1 is a word; `read_fastai` gives such a model a vocabulary with padding.

    Returns:
        The model in evaluation mode, with copies of the tensors in their dtype, on the device of
        the embedding.

    Raises:
        TypeError: if it is no mapping of names to floating tensors of one dtype.
        ValueError: if names are unknown or missing (they are listed), shapes do not fit each other,
            two names of one tensor hold different values, or an override is a size.
    """
    tensors = names.language_model_tensors(state_dict)
    embedding = tensors[names.EMBEDDING]
    if names.DECODER not in tensors and names.BIAS not in tensors:
        tensors[names.BIAS] = embedding.new_zeros(len(embedding))
    decoder = tensors.setdefault(names.DECODER, embedding)
    config = AWDLSTMConfig.language_model(
        **names.infer_sizes(tensors),
        **_checked(overrides),
        tie_weights=names.same_values(decoder, embedding),
        out_bias=names.BIAS in tensors,
    )
    return language_model(config, _copies(tensors))


def classifier_from_fastai(
    state_dict: Mapping[str, Any],
    *,
    bptt: int = 72,
    max_len: int = 1440,
    head_p: float | None = None,
    **overrides: Any,
) -> TextClassifier:
    """Make a text classifier from the weights of fastai v2's `text_classifier_learner`.

    Example:
        >>> encoder = AWDLSTM(AWDLSTMConfig.classifier(10, emb_size=4, hidden_size=6))
        >>> model = TextClassifier(encoder, num_classes=3, hidden=5)
        >>> classifier_from_fastai(to_fastai(model)).num_classes
        3

    Args:
        state_dict: of the model, also wrapped as for `from_fastai`.
        bptt: tokens in a window, fastai's seq_len.
        max_len: tokens at a text's end that are pooled.
        head_p: dropout on the layer between; None for 0.1, or 0 where fastai left it out.
        overrides: dropout values of `AWDLSTMConfig.classifier`, and pad_id; output_p acts before
            the head, and is 0 by itself where fastai left it out.

    Returns:
        The classifier in evaluation mode, with copies of the tensors in their dtype, on the device
        of the embedding.

    Raises:
        TypeError: as for `from_fastai`.
        ValueError: as for `from_fastai`; a head of another form than fastai v2's default, with one
            hidden layer, has unknown names.
    """
    tensors, places = names.classifier_tensors(state_dict)
    values = {"output_p": 0.0} if places[0] == 1 else {}
    config = AWDLSTMConfig.classifier(
        **names.infer_sizes(tensors), **(values | _checked(overrides))
    )
    if head_p is None:
        head_p = 0.0 if places[1] == 1 else 0.1
    hidden, num_classes = (len(tensors[f"head.{place}.weight"]) for place in (2, 6))
    sizes: dict[str, Any] = {"hidden": hidden, "bptt": bptt, "max_len": max_len}
    model = TextClassifier(
        AWDLSTM(config, device="meta"),
        num_classes,
        output_p=config.output_p,
        head_p=head_p,
        device="meta",
        **sizes,
    )
    model.load_state_dict(_copies(tensors), assign=True)
    return model.eval()


def _checked(overrides: dict[str, Any]) -> dict[str, Any]:
    for name in overrides:
        if name in _FROM_THE_WEIGHTS:
            raise ValueError(
                f"{name}={overrides[name]!r} is given, but it is read off the weights; leave it out"
            )
    return overrides


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def to_fastai(
    model: LanguageModel | AWDLSTM | TextClassifier, *, encoder_only: bool = False
) -> dict[str, Tensor]:
    """Return a model's weights under fastai v2's names, in fastai's order.

    `load_state_dict` of fastai's model of the same sizes takes them, strictly. A hidden_size other
    than 1152 goes into fastai's config as n_hid, a missing decoder bias as out_bias=False.

    Example:
        >>> model = LanguageModel(AWDLSTMConfig(10, emb_size=4, hidden_size=6))
        >>> list(to_fastai(model))[:3]
        ['0.encoder.weight', '0.encoder_dp.emb.weight', '0.rnns.0.weight_hh_l0_raw']

    Args:
        model: a language model, a classifier, or an encoder, which goes as with encoder_only.
        encoder_only: the encoder alone, as `save_encoder` writes it and `load_encoder` takes it.

    Returns:
        Copies of the tensors. Names of one tensor (the embedding has two, and the decoder's where
        it is shared) share its copy.

    Raises:
        TypeError: for any other model.
    """
    if isinstance(model, AWDLSTM) or (encoder_only and isinstance(model, _WITH_ENCODER)):
        encoder = model if isinstance(model, AWDLSTM) else model.encoder
        return _renamed(encoder, names.fastai_names(len(encoder.rnns)))
    if not isinstance(model, _WITH_ENCODER):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a LanguageModel, a TextClassifier or an "
            "AWDLSTM"
        )
    pairs = [
        (theirs, f"encoder.{ours}") for theirs, ours in names.fastai_names(len(model.encoder.rnns))
    ]
    if isinstance(model, TextClassifier):
        # fastai leaves a dropout of 0 out, and what stands behind it moves up.
        first, second = (2 if p > 0 else 1 for p in (model.output_p, model.head_p))
        pairs = [(f"0.module.{theirs}", ours) for theirs, ours in pairs]
        return _renamed(model, pairs + names.fastai_head_names((first, second)))
    pairs = [(f"0.{theirs}", ours) for theirs, ours in pairs]
    tied = model.decoder.weight is model.encoder.encoder.weight
    pairs.append(("1.decoder.weight", names.EMBEDDING if tied else names.DECODER))
    if model.decoder.bias is not None:
        pairs.append(("1.decoder.bias", names.BIAS))
    return _renamed(model, pairs)


def _renamed(model: nn.Module, pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
    tensors = model.state_dict()
    copies = {ours: tensors[ours].detach().clone() for ours in dict.fromkeys(n for _, n in pairs)}
    return {theirs: copies[ours] for theirs, ours in pairs}


def read_fastai(
    weights: str | os.PathLike[str],
    vocabulary: str | os.PathLike[str],
    *,
    tokenizer: Literal["word", "spacy", "auto"] = "word",
    **overrides: Any,
) -> tuple[LanguageModel, Tokenizer]:
    """Read a pre-trained language model and its vocabulary from files, running nothing of them.

    Example:
        >>> import tempfile
        >>> model = LanguageModel(AWDLSTMConfig(11, emb_size=4, hidden_size=6))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_fastai(model, Vocab(["the", "cat"]), f"{folder}/lm.pth")
        ...     model, tokenizer = read_fastai(*files)
        >>> tokenizer.vocab.words[9:]
        ('the', 'cat')

    Args:
        weights: file of a language model or of an encoder: .pth, .h5 or .pt as `torch.save` wrote
            it, or .safetensors.
        vocabulary: its words in the order of the rows, as a pickled list, .json or .txt.
        tokenizer: "word"; "spacy", whose tokens are fastai's; or "auto" for "spacy" where the
            vocabulary has fastai's marks (`xxbos`, `xxup`, or their older names), as the published
            ones do, and "word" elsewhere.
        overrides: dropout values, as for `from_fastai`.

    Returns:
        The model over the tokenizer's vocabulary, every word of the file with its own row of the
        embedding and decoder; and a word-level tokenizer.

    Raises:
        FileNotFoundError: if a file is missing.
        ImportError: if the tokenizer is "spacy" and the package spacy is missing.
        ValueError: if a file holds anything but tensors, or words; if a weight is not finite; if
            the words are not as many as the rows of the embedding; and as for `from_fastai`.
    """
    if tokenizer not in ("word", "spacy", "auto"):
        raise ValueError(f"tokenizer is {tokenizer!r:.60}, expected 'word', 'spacy' or 'auto'")
    state_dict = read_tensors(weights)
    try:
        model = from_fastai(state_dict, **overrides)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(weights)}: {error}") from error
    check_finite(
        Place(os.fspath(weights), "give the weights of a model that did not diverge"),
        names.unwrapped(state_dict),
    )
    rows = model.config.vocab_size
    path = Path(vocabulary)
    if path.is_file() and path.stat().st_size > largest_json(rows):
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, expected at most {largest_json(rows):,} "
            f"for the {rows:,} rows of {os.fspath(weights)}; give the vocabulary that was saved "
            "with the weights"
        )
    words = read_words(vocabulary)
    if len(words) != rows:
        raise ValueError(
            f"{os.fspath(vocabulary)} has {len(words)} words and {os.fspath(weights)} {rows} rows, "
            "expected those of one model; give the vocabulary that was saved with the weights"
        )
    vocab, index = vocabulary_from_fastai(words)
    if tokenizer == "auto":
        tokenizer = "spacy" if max(index[BOS], index[UP]) >= 0 else "word"
    return use_rows(model, index), Tokenizer.from_vocab(vocab, tokenizer)


def write_fastai(
    model: LanguageModel | TextClassifier,
    vocab: Vocab,
    path: str | os.PathLike[str],
    *,
    encoder_only: bool = False,
) -> tuple[Path, Path]:
    """Write a model's weights and its vocabulary as fastai v2 reads them.

    `language_model_learner(dls, AWD_LSTM, pretrained_fnames=[name, name])` takes the two files from
    its model directory, names without endings.

    Args:
        model: a language model or a classifier.
        vocab: its vocabulary.
        path: name of the weights, ending in .pth; the vocabulary gets the same name with .pkl.
            Files that are there are replaced.
        encoder_only: the encoder alone, as `save_encoder` writes it.

    Returns:
        The two paths.

    Raises:
        ValueError: if the vocabulary is not the model's, or the name does not end in .pth.
        OSError: if a file cannot be written; older ones stay as they were.
    """
    rows = model.encoder.config.vocab_size
    if len(vocab) != rows:
        raise ValueError(
            f"the vocabulary has {len(vocab)} words and the model {rows}, expected its own"
        )
    tensors = to_fastai(model, encoder_only=encoder_only)
    return write_tensors_and_words(path, tensors, vocab.words)
