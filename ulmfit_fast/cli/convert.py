"""`ulmfit-fast convert`: fastai's and awd-lstm-lm's files to a model directory, and back."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ulmfit_fast.cli.app import check_out, check_out_file, say, say_next, typer

if TYPE_CHECKING:
    from ulmfit_fast.nn import LanguageModel, TextClassifier
    from ulmfit_fast.ulmfit.model_files import ModelParts

__all__ = ["convert"]


class Part(str, Enum):
    """What of a model directory is written for fastai."""

    language_model = "language-model"
    encoder = "encoder"
    classifier = "classifier"


class Format(str, Enum):
    """What else a model can become."""

    fastai = "fastai"


class Tokens(str, Enum):
    """What splits the texts for a model of words."""

    word = "word"
    spacy = "spacy"


def convert(
    out: Annotated[
        Path,
        typer.Option("--out", help="The model directory; with --to fastai the .pth file."),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="A language model or encoder of fastai v2, v1 or 0.7 or awd-lstm-lm: a state_dict "
            "in a .pth, .h5, .pt or .safetensors file.",
        ),
    ] = None,
    vocab: Annotated[
        Path | None,
        typer.Option(
            "--vocab",
            help="Its words: a pickled list, .json or .txt; when not given, the one .pkl file "
            "beside --weights.",
        ),
    ] = None,
    tokenizer: Annotated[
        Tokens | None,
        typer.Option(
            "--tokenizer",
            help="How texts are split for --weights: spacy, as in fastai, or word; kept with the "
            "model. When not given, spacy where --vocab has fastai's marks.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="What later stages follow: paper, fastai07, fastai_v2 or multifit; kept with the "
            "model.",
        ),
    ] = None,
    backwards: Annotated[
        bool, typer.Option("--backwards", help="The model of --weights reads text from its end.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option("--model", help="A model directory, to go --to fastai.")
    ] = None,
    to: Annotated[
        Format | None,
        typer.Option("--to", help="Write FILE.pth and FILE.pkl for fastai v2."),
    ] = None,
    part: Annotated[
        Part | None,
        typer.Option("--part", help="What of --model is written; the language model otherwise."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace what is there: the model in --out; with --to fastai both FILE.pth and "
            "FILE.pkl, whatever they hold.",
        ),
    ] = False,
) -> None:
    """Bring fastai's or awd-lstm-lm's weights into a model directory, or a model to fastai v2."""
    if weights is not None:
        _refuse_beside("--weights", model=model, to=to, part=part)
        check_out(out, [weights, vocab], overwrite=overwrite)
        _from_fastai(weights, vocab, out, tokenizer, preset, backwards=backwards)
    elif model is not None:
        _refuse_beside(
            "--model", vocab=vocab, tokenizer=tokenizer, preset=preset, backwards=backwards or None
        )
        if to is None:
            raise ValueError("--to is missing, expected --to fastai beside --model")
        for path in (out, out.with_suffix(".pkl")):
            check_out_file(path, [model], overwrite=overwrite)
        _to_fastai(model, out, part or Part.language_model)
    else:
        raise ValueError("--weights and --model are both missing, expected one of them")


def _refuse_beside(option: str, **others: object) -> None:
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"--{name} does not go with {option}; leave one of them out")


def _from_fastai(
    weights: Path,
    vocab: Path | None,
    out: Path,
    tokens: Tokens | None,
    preset: str | None,
    *,
    backwards: bool,
) -> None:
    from ulmfit_fast.compat.fastai import read_fastai
    from ulmfit_fast.presets import named
    from ulmfit_fast.ulmfit.estimator import ULMFiT

    # Refused before the weights are read.
    recipe = None if preset is None else named(preset)
    vocab = vocab or _vocabulary_beside(weights)
    try:
        language_model, tokenizer = read_fastai(
            weights, vocab, tokenizer="auto" if tokens is None else tokens.value
        )
    except ImportError as error:
        other = "" if tokens else "; or pass --tokenizer word, which splits some words otherwise"
        raise ImportError(f"{vocab} has the words of fastai: {error}{other}") from error
    config = language_model.config
    result = ULMFiT(
        preset=recipe,
        tokenizer=tokenizer,
        emb_size=config.emb_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        device="cpu",
        progress=False,
        backwards=backwards,
    )
    result.language_model, result.tokenizer = language_model, tokenizer
    result.save(out)
    say(f"{_described(language_model)}, {len(tokenizer.vocab)} words; the model is in {out}")
    recipe_said = (
        f"the preset is {preset}" if preset else "no preset (--preset fastai_v2 for fastai's)"
    )
    say(f"the tokenizer is {tokenizer.kind}; {recipe_said}; both are kept with the model")
    say_next("fine-tune", "--model", out, "--text", "texts.csv", "--out", f"{out}-tuned")


def _vocabulary_beside(weights: Path) -> Path:
    if not weights.is_file():
        raise FileNotFoundError(f"--weights {weights} is no file; give the file of the weights")
    found = sorted(weights.resolve().parent.glob("*.pkl"))
    if len(found) != 1:
        raise ValueError(
            f"--vocab is missing, and {len(found)} .pkl files lie beside {weights}, expected one; "
            "give the vocabulary with --vocab"
        )
    say(f"the vocabulary is {found[0]}")
    return found[0]


def _described(language_model: LanguageModel) -> str:
    config = language_model.config
    bias = "" if config.out_bias else ", no decoder bias"
    tie = "" if config.tie_weights else ", a decoder of its own"
    return (
        f"{config.num_layers} layers, emb_size {config.emb_size}, hidden_size {config.hidden_size}"
        f"{bias}{tie}"
    )


def _to_fastai(directory: Path, out: Path, part: Part) -> None:
    from ulmfit_fast.compat.fastai import write_fastai
    from ulmfit_fast.ulmfit.model_files import load_model

    parts = load_model(directory)
    source = _source(parts, directory, part)
    weights, words = write_fastai(
        source, parts.tokenizer.vocab, out, encoder_only=part is Part.encoder
    )
    config = source.encoder.config
    sizes = {"emb_sz": config.emb_size, "n_hid": config.hidden_size, "n_layers": config.num_layers}
    if not config.out_bias and part is Part.language_model:
        sizes["out_bias"] = False
    shown = ", ".join(f"{name}={value}" for name, value in sizes.items())
    say(f"{weights} and {words} are for fastai's AWD_LSTM with {shown}")
    if part is Part.classifier:
        say(f"its classes, in their order: {', '.join(map(str, parts.labels))}")
    if parts.tokenizer.kind == "subword":
        say("its words are pieces; fastai has to split texts into the same ones")
    if parts.backwards:
        say("it reads text from its end; fastai's data needs backwards=True")


def _source(parts: ModelParts, directory: Path, part: Part) -> LanguageModel | TextClassifier:
    model = parts.language_model if part is not Part.classifier else parts.classifier
    if model is None:
        raise ValueError(
            f"{directory} has no {'classifier' if part is Part.classifier else 'language model'}; "
            "choose another --part, or another directory"
        )
    return model
