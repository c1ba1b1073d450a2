"""What the config.json of a saved model may say: each field by its type, range and size.

All of it is checked before anything is built. What is wrong ends in one line that names the file,
the field, the value, what was expected and the mend.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ulmfit_fast.data.columns import Label
from ulmfit_fast.nn import AWDLSTMConfig
from ulmfit_fast.nn.weights import Place
from ulmfit_fast.training.settings import check_fields

__all__ = [
    "DTYPES",
    "ModelDescription",
    "check_labels",
    "check_preset",
    "check_settings",
    "describe",
    "shown",
]

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
}
# A size that an int64 cannot hold ends in an OverflowError somewhere in PyTorch.
_MOST = 2**63 - 1
# Control characters, which a terminal acts on, and half characters, which no file holds.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_STAGES = ("pretrain", "fine_tune_lm", "fit_classifier")

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = _shown.maxlong = 60
_shown.maxlevel = 2


def shown(value: object) -> str:
    r"""Return a value for a message, in one line and short, however long or deep it is.

    >>> shown("\x1b[2J"), shown([[[[1]]]])
    ("'\\x1b[2J'", '[[...]]')
    """
    return _shown.repr(value)


class _Rule(NamedTuple):
    fits: Callable[[Any], bool]
    expected: str
    required: bool = False


def _whole(least: int) -> _Rule:
    return _Rule(
        lambda value: type(value) is int and least <= value <= _MOST,
        f"a whole number from {least} to 2**63 - 1",
    )


def _is_probability(value: Any) -> bool:
    # Neither NaN nor an infinity lies between.
    return type(value) in (int, float) and 0 <= value <= 1


def _is_gate_probability(value: Any) -> bool:
    if type(value) is list:
        return len(value) == 4 and all(map(_is_probability, value))
    return _is_probability(value)


def _one_of(*choices: object) -> _Rule:
    names = ", ".join(map(repr, choices))
    return _Rule(lambda value: type(value) is str and value in choices, f"one of {names}")


_SIZE = _whole(1)
_FLAG = _Rule(lambda value: type(value) is bool, "true or false")
_TABLE = _Rule(lambda value: type(value) is dict, "an object with names")
_TABLE_OR_NONE = _Rule(lambda value: value is None or type(value) is dict, "an object or null")
_PROBABILITY = _Rule(_is_probability, "a probability between 0 and 1")
_GATE_PROBABILITY = _Rule(
    _is_gate_probability, "a probability between 0 and 1, or four for the gates i, f, g, o"
)
_FACTOR = _Rule(
    lambda value: type(value) in (int, float) and 0 <= value <= 1e300,
    "a finite number, at least 0",
)
_DTYPE = _one_of(*DTYPES)

_DROPOUTS = {
    **dict.fromkeys(("input_p", "hidden_p", "embed_p", "output_p"), _PROBABILITY),
    **dict.fromkeys(("weight_p", "gate_p"), _GATE_PROBABILITY),
}
_SIZES = dict.fromkeys(("emb_size", "hidden_size", "num_layers"), _SIZE)
_ENCODER = {
    "vocab_size": _SIZE._replace(required=True),
    **_SIZES,
    "pad_id": _whole(0),
    **_DROPOUTS,
    "tie_weights": _FLAG,
    "out_bias": _FLAG,
}
_HEAD = {
    **dict.fromkeys(("hidden", "bptt", "max_len"), _SIZE._replace(required=True)),
    **dict.fromkeys(("output_p", "head_p"), _PROBABILITY._replace(required=True)),
}
_CLASSIFIER = {
    "encoder": _TABLE._replace(required=True),
    "dtype": _DTYPE._replace(required=True),
    **_HEAD,
}
_RECIPE = {
    **_SIZES,
    "tokenizer": _one_of("word", "subword", "spacy", "huggingface"),
    "max_vocab": _whole(9),
    "min_freq": _SIZE,
    "drop_mult": _FACTOR,
    "lm_dropout": _TABLE,
    "classifier_dropout": _TABLE,
    "backwards": _FLAG,
}
_SETTINGS = {**_RECIPE, "preset": _TABLE_OR_NONE, "seed": _whole(0)}
_PRESET = {
    "name": _Rule(lambda value: type(value) is str, "a string", required=True),
    **dict.fromkeys(("model", *_STAGES), _TABLE._replace(required=True)),
}
_COUNTS = _Rule(
    lambda value: (
        value is None or (type(value) is list and all(map(_whole(0).fits, value)) and any(value))
    ),
    "a whole number for each class, or null",
)
_MODEL = {
    "model_type": _one_of("ulmfit"),
    "single_file": _FLAG,
    "labels": _Rule(lambda value: type(value) is list, "a list of labels", required=True),
    "settings": _TABLE._replace(required=True),
    "language_model": _TABLE_OR_NONE._replace(required=True),
    "classifier": _TABLE_OR_NONE._replace(required=True),
    # Of a classifier, and not there in models of before.
    "class_counts": _COUNTS,
    "bag_of_words": _FLAG,
    "validation": _FLAG,
}


@dataclass(frozen=True)
class ModelDescription:
    """What a config.json says, every value of it checked.

    Attributes:
        single_file: whether all weights stand in one file.
        labels: the classes, in the order of the logits.
        settings: of the estimator; names that it does not know are kept.
        language_model: sizes and dropouts, or None.
        language_model_dtype: of its weights.
        encoder: sizes and dropouts of the classifier's encoder, or None.
        classifier_dtype: of the encoder's weights.
        head: the classifier's further arguments by name.
        class_counts: texts of each class that the classifier was fitted to, or None.
        bag_of_words: whether a bag of words is kept beside it.
        validation: whether it is kept how good the classifier was.
    """

    single_file: bool
    labels: list[Label]
    settings: dict[str, Any]
    language_model: AWDLSTMConfig | None
    language_model_dtype: torch.dtype
    encoder: AWDLSTMConfig | None
    classifier_dtype: torch.dtype
    head: dict[str, Any]
    class_counts: list[int] | None = None
    bag_of_words: bool = False
    validation: bool = False


def describe(place: Place, config: Mapping[str, Any]) -> ModelDescription:
    """Check every field of a model's config.json.

    Args:
        place: the file, for the error.
        config: what it holds; its format and version have been looked at.

    Raises:
        ValueError: if a field is missing, or is not what it has to be.
    """
    _check(place, "", config, _MODEL)
    check_labels(place, config["labels"])
    check_settings(place, config["settings"])
    language_model = encoder = None
    dtype = classifier_dtype = torch.float32
    head: dict[str, Any] = {}
    if config["language_model"] is not None:
        _check(place, "", config, {"language_model_dtype": _DTYPE._replace(required=True)})
        language_model = _encoder(place, "language_model", config["language_model"])
        dtype = DTYPES[config["language_model_dtype"]]
    if config["classifier"] is not None:
        values = config["classifier"]
        _check(place, "classifier.", values, _CLASSIFIER)
        if not config["labels"]:
            raise place.error("labels is [], expected one for each class of the classifier")
        encoder = _encoder(place, "classifier.encoder", values["encoder"])
        classifier_dtype = DTYPES[values["dtype"]]
        head = {name: values[name] for name in _HEAD}
    counts = config.get("class_counts")
    if counts is not None and len(counts) != len(config["labels"]):
        raise place.error(
            f"class_counts is {shown(counts)}, expected {len(config['labels'])} numbers, one for "
            "each of the labels"
        )
    if config.get("bag_of_words") and counts is None:
        raise place.error("bag_of_words is true and class_counts null, expected both or none")
    if language_model and encoder and language_model.vocab_size != encoder.vocab_size:
        raise place.error(
            f"classifier.encoder.vocab_size is {encoder.vocab_size}, expected "
            f"{language_model.vocab_size}, that of language_model"
        )
    return ModelDescription(
        single_file=config.get("single_file", False),
        labels=list(config["labels"]),
        settings=dict(config["settings"]),
        language_model=language_model,
        language_model_dtype=dtype,
        encoder=encoder,
        classifier_dtype=classifier_dtype,
        head=head,
        class_counts=counts,
        bag_of_words=config.get("bag_of_words", False),
        validation=config.get("validation", False),
    )


def _check(
    place: Place, prefix: str, values: Mapping[str, Any], rules: Mapping[str, _Rule]
) -> None:
    for name, rule in rules.items():
        if name not in values:
            if rule.required:
                raise place.error(f"{prefix}{name} is missing, expected {rule.expected}")
        elif not rule.fits(values[name]):
            raise place.error(f"{prefix}{name} is {shown(values[name])}, expected {rule.expected}")


def _refuse_unknown(
    place: Place, name: str, values: Mapping[str, Any], known: Iterable[str]
) -> None:
    unknown = sorted(set(values).difference(known))
    if unknown:
        raise place.error(
            f"{name} has the unknown field {shown(unknown[0])}, expected some of {', '.join(known)}"
        )


def _encoder(place: Place, name: str, values: dict[str, Any]) -> AWDLSTMConfig:
    _refuse_unknown(place, name, values, _ENCODER)
    _check(place, f"{name}.", values, _ENCODER)
    try:
        return AWDLSTMConfig.from_dict(values)
    except ValueError as error:
        raise place.error(f"{name}: {error}") from error


def check_settings(place: Place, settings: Mapping[str, Any]) -> None:
    """Check the settings of an estimator as JSON holds them; names that it lacks are passed over.

    Args:
        place: what holds them, for the error.
        settings: by name, and the preset among them.

    Raises:
        ValueError: if a value is not what it has to be.
    """
    _check(place, "settings.", settings, _SETTINGS)
    _check_dropouts(place, "settings.", settings)
    if settings.get("preset") is not None:
        check_preset(place, "settings.preset", settings["preset"])


def check_preset(place: Place, name: str, preset: Mapping[str, Any]) -> None:
    """Check the values of a preset as JSON holds them.

    Args:
        place: what holds it, for the error.
        name: of the preset there.
        preset: its name, and the values of the model and its stages.

    Raises:
        ValueError: if a value is not what it has to be.
    """
    _refuse_unknown(place, name, preset, _PRESET)
    _check(place, f"{name}.", preset, _PRESET)
    _refuse_unknown(place, f"{name}.model", preset["model"], _RECIPE)
    _check(place, f"{name}.model.", preset["model"], _RECIPE)
    _check_dropouts(place, f"{name}.model.", preset["model"])
    for stage in _STAGES:
        _check(place, f"{name}.{stage}.", preset[stage], {"drop_mult": _FACTOR})
        try:
            check_fields(preset[stage])
        # Of lists that are too deep to be shown.
        except (ValueError, RecursionError) as error:
            raise place.error(f"{name}.{stage}: {error!s:.300}") from error


def _check_dropouts(place: Place, prefix: str, settings: Mapping[str, Any]) -> None:
    for name in ("lm_dropout", "classifier_dropout"):
        values = settings.get(name, {})
        _refuse_unknown(place, f"{prefix}{name}", values, _DROPOUTS)
        _check(place, f"{prefix}{name}.", values, _DROPOUTS)


def check_labels(place: Place, labels: Iterable[object]) -> None:
    """Refuse labels that are no labels, cannot be distinguished, or cannot be shown.

    >>> check_labels(Place("the classes"), ["good", "bad"])

    Args:
        place: what holds them, for the error.
        labels: the classes.

    Raises:
        ValueError: if one is neither a string, a whole number nor a truth value; has a control
            character or half a character; or is equal to, or written like, one before it.
    """
    seen: dict[object, int] = {}
    for position, label in enumerate(labels):
        if not isinstance(label, (str, int)):
            raise place.error(
                f"labels[{position}] is {shown(label)} ({type(label).__name__}), expected a str, "
                "an int, True or False"
            )
        if isinstance(label, str) and _UNFIT.search(label):
            raise place.error(
                f"labels[{position}] is {shown(label)}, which has a control character or half a "
                "character, expected text that can be shown"
            )
        # 1 and "1" are written alike, 1 and True are equal.
        for key in {str(label), label if isinstance(label, str) else int(label)}:
            first = seen.setdefault(key, position)
            if first != position:
                raise place.error(
                    f"labels[{position}] is {shown(label)} beside labels[{first}], which is equal "
                    "or written alike, expected each label once"
                )
