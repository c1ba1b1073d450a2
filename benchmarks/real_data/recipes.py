"""Every setting of a run, one recipe for all sets of a language, and a digest that stands for them.

A setting is changed by a line such as `fit_classifier.lr=0.01`; a file of TOML has them in tables.
The digest covers what the settings come to, defaults of the package among them, so that a default
that changes is another recipe.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ulmfit_fast.ulmfit import sizing
from ulmfit_fast.ulmfit.settings import ModelSettings

Values = dict[str, Any]

_CORPUS: Values = {"files": [], "unit": "line", "words": None, "valid": None, "test": None}
_OF_LANGUAGE_MODELS = (
    *("emb_size", "hidden_size", "num_layers"),
    *("tokenizer", "max_vocab", "min_freq", "lm_dropout"),
)
_STAGES = ("pretrain", "fine_tune_lm", "fit_classifier")


@dataclass(frozen=True)
class Recipe:
    """The settings of all sets of a language.

    Example:
        >>> recipe = RECIPES["english"].changed(["fit_classifier.lr=0.01", "seed=1"])
        >>> recipe.fit_classifier["lr"], recipe.digest != RECIPES["english"].digest
        (0.01, True)

    Attributes:
        name: of the recipe, with what was changed in it.
        model: arguments of `ULMFiT`.
        corpus: what the general model reads: files, unit, words (None for all), and the files of
            texts that its perplexity is measured on, "valid" and "test". Where there are none, one
            in 200 texts of the corpus serves for each. Without files the model is pre-trained on
            the set's own text.
        pretrain: arguments of `ULMFiT.pretrain`.
        fine_tune_lm: arguments of `ULMFiT.fine_tune_lm`.
        fit_classifier: arguments of `ULMFiT.fit_classifier`.
        plain: what is otherwise in `fit_classifier` for classifiers without the schedule.
        lm_rule: batch size and epochs of fine-tuning where `fine_tune_lm` does not say: lists of
            most words, batch size and epochs, the fewest words first; above all of them
            `sizing.language_model_sizes`.
        classifier_rule: the same of the classifier by its rows; `sizing.classifier_sizes`.
        unfreezing: share of a classifier's epochs after which a further layer group opens, where
            `fit_classifier` does not say after how many; None for every epoch.
        unlabelled: files of further texts for the language model, by the set's name.
        unlabelled_words: so many of these at most; None for all.
        domain_step: fine-tune on the further texts first, once for all sets that have the same,
            then on the set's own; False reads both as one corpus.
        apart: sets none of whose rows may be in the corpus or in further texts.
        precision: of all stages.
        seed: of the language models; that of a classifier is 1,000 times this and its draw.
    """

    name: str
    model: Values
    corpus: Values
    pretrain: Values
    fine_tune_lm: Values = field(default_factory=dict)
    fit_classifier: Values = field(default_factory=dict)
    plain: Values = field(default_factory=dict)
    lm_rule: Sequence[Sequence[int]] = ()
    classifier_rule: Sequence[Sequence[int]] = ()
    unfreezing: float | None = None
    unlabelled: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unlabelled_words: int | None = None
    domain_step: bool = False
    apart: Sequence[str] = ()
    precision: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.corpus) - set(_CORPUS))
        if unknown:
            raise ValueError(f"corpus has {unknown[0]!r}, expected some of {', '.join(_CORPUS)}")
        object.__setattr__(self, "corpus", {**_CORPUS, **self.corpus})
        self.settings()

    def settings(self) -> Values:
        """Return all that decides what a run comes to, as plain values.

        Raises:
            TypeError: if a value is of another kind than expected.
            ValueError: if a setting is unknown, or does not fit.
        """
        model = ModelSettings.of(**self.model)
        stages = {}
        for name in (*_STAGES, "plain"):
            given = dict(getattr(self, name))
            if name == "plain":
                given = {**self.fit_classifier, **given}
            stage = "fit_classifier" if name == "plain" else name
            training, drop_mult = model.stage(stage, precision=self.precision, **given)
            # What is left out goes by the amount of text.
            by_rule = {} if name == "pretrain" and self.corpus["files"] else _asked(given)
            stages[name] = {**vars(training), "drop_mult": drop_mult, **by_rule}
        found = {**dataclasses.asdict(self), "model": model.to_dict(), **stages}
        del found["name"]
        plain: Values = json.loads(json.dumps(found))
        return plain

    @property
    def digest(self) -> str:
        """Eight characters that stand for all settings."""
        return digest_of(self.settings())

    def part(self, *names: str) -> Values:
        """Return those settings that a language model depends on, and no others.

        Args:
            names: of fields beside the model's own sizes.
        """
        found = self.settings()
        model = {name: found["model"][name] for name in _OF_LANGUAGE_MODELS}
        return {"model": model, **{name: found[name] for name in names}}

    def lm_arguments(self, stage: str, words: int) -> Values:
        """Return the arguments of "pretrain" or "fine_tune_lm" on so many words.

        Batch size and epochs go by the words where they are not given; those of pre-training do so
        on a set's own text alone.
        """
        given = getattr(self, stage)
        sizes: Values = {}
        if stage == "fine_tune_lm" or not self.corpus["files"]:
            bptt = ModelSettings.of(**self.model).stage(stage, **given)[0].bptt
            sizes = _sizes(self.lm_rule, words, sizing.language_model_sizes(words, bptt))
        return {"precision": self.precision, **sizes, **given}

    def classifier_arguments(self, rows: int, *, plain: bool = False) -> Values:
        """Return the arguments of a classifier of so many rows, with the schedule or without."""
        sizes = _sizes(self.classifier_rule, rows, sizing.classifier_sizes(rows))
        given = {**self.fit_classifier, **(self.plain if plain else {})}
        if self.unfreezing is not None:
            epochs = given.get("epochs", sizes["epochs"])
            sizes["gradual_unfreezing"] = max(1, round(self.unfreezing * epochs))
        return {"precision": self.precision, **sizes, **given}

    def changed(self, lines: Sequence[str]) -> Recipe:
        """Return the recipe with settings changed.

        Args:
            lines: "name=value" or "stage.name=value", the value in JSON, or else a text.

        Raises:
            TypeError: as `settings`.
            ValueError: if a line is none, or as `settings`.
        """
        values: Values = {}
        for line in lines:
            name, sign, text = line.partition("=")
            stage, _, inner = name.partition(".")
            if not sign or (not inner and name.endswith(".")):
                raise ValueError(f"{line!r} is no setting, expected stage.name=value")
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                value = text
            if inner:
                values.setdefault(stage, {})[inner] = value
            else:
                values[stage] = value
        name = " ".join([self.name, *(re.sub(r"\s+", "", line) for line in lines)])
        return self.merged({**values, "name": name})

    def merged(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe with fields changed, of a table the entries that are given.

        Raises:
            TypeError: as `settings`.
            ValueError: if a field is unknown, or as `settings`.
        """
        known = [own.name for own in dataclasses.fields(self)]
        changes: Values = {}
        for name, value in values.items():
            if name not in known:
                raise ValueError(
                    f"there is no setting {name!r}, expected one of {', '.join(known)}"
                )
            own = getattr(self, name)
            if isinstance(own, Mapping) != isinstance(value, Mapping):
                raise ValueError(f"{name} is {value!r}, expected a value like {own!r}")
            changes[name] = {**own, **value} if isinstance(own, Mapping) else value
        return dataclasses.replace(self, **changes)


def _asked(given: Values) -> Values:
    return {name: given.get(name) for name in ("epochs", "batch_size")}


def _sizes(rule: Sequence[Sequence[int]], amount: int, otherwise: tuple[int, int]) -> Values:
    sizes = next(((batch, epochs) for most, batch, epochs in rule if amount <= most), otherwise)
    return dict(zip(("batch_size", "epochs"), sizes, strict=True))


def digest_of(values: object) -> str:
    """Return eight characters that stand for plain values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


_REVIEWS = ["en_movie_reviews_imdb_unsup.txt"]
_PRETRAIN: Values = {"epochs": 1, "lr": 3e-3, "batch_size": 32, "bptt": 70, "drop_mult": 0.1}
# As the demo's classifiers without the schedule.
_PLAIN: Values = {"schedule": "constant", "factor": 1.0, "gradual_unfreezing": 0, "lr": 3e-3}
# Measured on validation rows of TREC-6 and SUBJ, see docs/results.md: with 100 labels twice the
# epochs of the rule, and layers that open over the first three fifths of them.
_CLASSIFIER_RULE = [[200, 8, 40]]
_UNFREEZING = 0.15

RECIPES = {
    "english": Recipe(
        "english",
        model={"preset": "medium"},
        corpus={
            "files": ["wikipedia_en/part_00.txt"],
            "valid": "wikipedia_en/valid.txt",
            "test": "wikipedia_en/test.txt",
        },
        pretrain=_PRETRAIN,
        plain=_PLAIN,
        classifier_rule=_CLASSIFIER_RULE,
        unfreezing=_UNFREEZING,
        unlabelled={"imdb": _REVIEWS, "mr": _REVIEWS},
        apart=["imdb"],
    ),
    "portuguese": Recipe(
        "portuguese",
        model={"preset": "medium"},
        corpus={
            "files": [
                "pt_news_fakebr_true.txt",
                "pt_news_macmorpho.txt",
                "pt_novels_eltec.txt",
                "pt_product_reviews_b2w.txt",
            ]
        },
        pretrain=_PRETRAIN,
        plain=_PLAIN,
        classifier_rule=_CLASSIFIER_RULE,
        unfreezing=_UNFREEZING,
        # The product reviews are of the same source.
        apart=["pt_b2w_polarity", "pt_hatebr"],
    ),
    "german": Recipe(
        "german", model={"preset": "medium"}, corpus={}, pretrain={"lr": 3e-3}, plain=_PLAIN
    ),
}
_LANGUAGES = {"pt": "portuguese", "de": "german", "en": "english"}


def recipe_of(name: str, asked: str | None, changes: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a set.

    Args:
        name: of the set; "pt_" or "de_" in its beginning says the language, else it is English.
        asked: the name of a recipe, or a file of TOML, with "base" for the recipe that it changes
            (the set's language otherwise); None for that of the language.
        changes: as for `Recipe.changed`.

    Raises:
        TypeError: as `Recipe.settings`.
        ValueError: if there is no such recipe, or a setting is unknown or does not fit.
    """
    prefix, sign, _ = name.partition("_")
    says = bool(sign) and len(prefix) == 2
    if says and prefix not in _LANGUAGES and asked is None:
        raise ValueError(f"{name} is in {prefix!r}, of which there is no recipe; name one")
    language = _LANGUAGES.get(prefix, "english") if says else "english"
    if asked is None or not asked.endswith(".toml"):
        if asked is not None and asked not in RECIPES:
            raise ValueError(f"there is no recipe {asked!r}, expected a .toml or {list(RECIPES)}")
        recipe = RECIPES[asked or language]
    else:
        import tomllib  # from Python 3.11 on

        values = tomllib.loads(Path(asked).read_text(encoding="utf-8"))
        base = RECIPES[values.pop("base", language)]
        recipe = base.merged({"name": Path(asked).stem, **values})
    return recipe.changed(changes) if changes else recipe
