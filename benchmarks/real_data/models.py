"""The language models of a recipe: each is trained once, and kept for all draws and processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from benchmarks.real_data.recipes import Recipe, digest_of
from benchmarks.real_data.sets import Set, corpus, keys_of
from ulmfit_fast.runs import Run
from ulmfit_fast.system.files import parse_json, write_text
from ulmfit_fast.system.locks import directory_lock
from ulmfit_fast.ulmfit.estimator import ULMFiT
from ulmfit_fast.ulmfit.settings import ModelSettings
from ulmfit_fast.ulmfit.sizing import words_in

# What a recipe does not say of a model that was pre-trained elsewhere.
_OF_WEIGHTS = ("emb_size", "hidden_size", "num_layers", "tokenizer", "backwards")
_MINUTES, _WAIT = 5.0, 5.0


class Models:
    """The general model, and those fine-tuned on each set, in both directions.

    A model lies in `out/models/NAME-DIGEST`, with a digest of what it depends on; the file
    NAME-DIGEST.json beside it is written when it is complete. What was killed goes on from its
    last checkpoint; who needs a model that another process trains waits for it.

    Args:
        data: folder of the sets and texts.
        out: folder of the results.
        recipe: all settings.
        given: directories of general models that are there already, at most one a direction.
        say: takes each line of progress.
    """

    def __init__(
        self,
        data: Path,
        out: Path,
        recipe: Recipe,
        given: Sequence[Path] = (),
        say: Callable[[str], object] = print,
    ) -> None:
        self.data, self.recipe, self.say = data, recipe, say
        self.folder = out / "models"
        self._given: dict[bool, tuple[Path, str]] = {}
        for path in given:
            model = ULMFiT.load(path, device="cpu", progress=False)
            self._given[model.backwards] = path, _digest_of_weights(model)

    @cached_property
    def digest(self) -> str:
        """What stands for all settings, and for the models that were given."""
        own = [digest for _, (_, digest) in sorted(self._given.items())]
        return digest_of([self.recipe.settings(), own]) if own else self.recipe.digest

    def keep_recipe(self) -> None:
        """Write what the digest stands for."""
        values = {"name": self.recipe.name, **self.recipe.settings()}
        values["given"] = [digest for _, (_, digest) in sorted(self._given.items())]
        path = self.folder.parent / "recipes" / f"{self.digest}.json"
        write_text(path, json.dumps(values, indent=1) + "\n")

    def load(self, path: Path, seed: int | None = None) -> ULMFiT:
        """Read a model, to be trained on with the recipe's dropouts, limits and seed."""
        model = ULMFiT.load(path, device="cpu", progress=False)
        own = {name: getattr(model.settings, name) for name in _OF_WEIGHTS}
        asked = ModelSettings.of(**self.recipe.model)
        model.settings = dataclasses.replace(asked, **own)
        model.seed = self.recipe.seed if seed is None else seed
        return model

    def new(self, seed: int, backwards: bool = False) -> ULMFiT:
        """Return a model of the recipe that has learnt nothing."""
        return ULMFiT(
            **self.recipe.model, backwards=backwards, device="cpu", seed=seed, progress=False
        )

    def general(self, backwards: bool = False) -> Path:
        """Return the directory of the general model, pre-trained first where it is missing.

        Raises:
            ValueError: if the recipe has no corpus, or only the other direction was given.
        """
        if self._given:
            if backwards not in self._given:
                raise ValueError(
                    f"the general model {'backwards' if backwards else 'forwards'} was not given "
                    "with --general, and the other one was; pass both"
                )
            return self._given[backwards][0]
        own = self.recipe.corpus
        if not own["files"]:
            raise ValueError(f"the recipe {self.recipe.name} has no corpus for a general model")

        def texts() -> list[str]:
            return corpus(
                self.data,
                own["files"],
                unit=own["unit"],
                words=own["words"],
                without=keys_of(self.data, self.recipe.apart),
                held_out=None if own["valid"] and own["test"] else "train",
            )

        return self._made("general", backwards, "pretrain", self._general_digest, texts)

    @property
    def _general_digest(self) -> str:
        return digest_of(self.recipe.part("corpus", "apart", "pretrain", "seed"))

    def general_texts(self, purpose: str) -> list[str]:
        """Return general texts that no model has read, "valid" or "test"; none without a corpus."""
        own = self.recipe.corpus
        if own[purpose]:
            return corpus(self.data, [own[purpose]], unit=own["unit"])
        if not own["files"]:
            return []
        return corpus(self.data, own["files"], unit=own["unit"], held_out=purpose)

    def tuned(self, task: Set, backwards: bool = False) -> Path:
        """Return the directory of the language model of a set, trained first where it is missing.

        It reads the set's pool, and the further texts that the recipe has for the set but for
        copies of rows of labelled sets.
        """
        recipe = self.recipe
        files = list(recipe.unlabelled.get(task.name, ()))
        if not (recipe.corpus["files"] or self._given):
            digest = digest_of([recipe.part("pretrain", "lm_rule", "seed"), task.name, task.part])
            name = f"own-{task.name}-{task.part}"
            return self._made(name, backwards, "pretrain", digest, lambda: task.pool.texts)
        given = self._given.get(backwards)
        known: list[Any] = [
            given[1] if given else self._general_digest,
            recipe.part("fine_tune_lm", "lm_rule", "seed"),
        ]
        if files:
            known += [files, recipe.unlabelled_words, recipe.domain_step, list(recipe.apart)]
        domain = digest_of(known)

        def start(backwards: bool) -> Path:
            if not (files and recipe.domain_step):
                return self.general(backwards)
            further = partial(self._further, files)
            return self._made("domain", backwards, "fine_tune_lm", domain, further, self.general)

        def texts() -> list[str]:
            further = [] if recipe.domain_step or not files else self._further(files)
            return [*task.pool.texts, *further]

        digest = digest_of([*known, task.name, task.part])
        name = f"tuned-{task.name}-{task.part}"
        return self._made(name, backwards, "fine_tune_lm", digest, texts, start)

    def _further(self, files: Sequence[str]) -> list[str]:
        # Of all sets that have further texts, so that a model of these alone serves each of them.
        apart = keys_of(self.data, {*self.recipe.apart, *self.recipe.unlabelled})
        return corpus(self.data, files, words=self.recipe.unlabelled_words, without=apart)

    def _made(
        self,
        name: str,
        backwards: bool,
        stage: str,
        digest: str,
        texts: Callable[[], list[str]],
        start: Callable[[bool], Path] | None = None,
    ) -> Path:
        """Return the directory of a model, trained by a stage where it is not there."""
        direction = "backward" if backwards else "forward"
        path = self.folder / f"{name}-{direction}-{digest}"
        if self.note(path) is not None:
            return path
        before = start(backwards) if start else None
        self.folder.mkdir(parents=True, exist_ok=True)
        with waiting(self.folder / f".{path.name}.lock", lambda: self.say(f"wait for {path.name}")):
            if self.note(path) is None:
                self._train(path, stage, texts(), before, backwards)
        return path

    def _train(
        self, path: Path, stage: str, texts: list[str], before: Path | None, backwards: bool
    ) -> None:
        seed = self.recipe.seed
        model = self.new(seed, backwards) if before is None else self.load(before)
        words = sum(len(text.split()) for text in texts)
        arguments = self.recipe.lm_arguments(stage, words_in(texts))
        training, drop_mult = model.settings.stage(stage, **arguments)
        self.say(
            f"{path.name}: {words:,} words, {training.epochs} epochs, batch {training.batch_size}"
        )
        model.checkpoint_dir = path
        run = Run(path, resume=True, checkpoint_minutes=_MINUTES, keep=1, report_steps=50)
        getattr(model, stage)(texts, run=run, **arguments)
        # Empty where a process was killed between the end of its training and the note of it.
        epochs = model.histories[stage].epochs if stage in model.histories else []
        seconds, tokens = sum(own.seconds for own in epochs), sum(own.items for own in epochs)
        assert model.tokenizer is not None
        note = {
            "recipe": self.recipe.name,
            "stage": stage,
            "texts": len(texts),
            "words": words,
            "vocabulary": len(model.tokenizer.vocab),
            "epochs": training.epochs,
            "batch_size": training.batch_size,
            "bptt": training.bptt,
            "lr": training.lr,
            "drop_mult": drop_mult,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        }
        write_text(self.folder / f"{path.name}.json", json.dumps(note, indent=1) + "\n")
        self.say(f"{path.name}: {seconds:,.0f} s")

    def note(self, path: Path) -> Mapping[str, Any] | None:
        """Return what is noted of a model that is complete, or None."""
        file = self.folder / f"{path.name}.json"
        if not file.exists():
            return None
        found: Mapping[str, Any] = parse_json(file.read_text(encoding="utf-8"), file)
        return found


@contextmanager
def waiting(lock: Path, say: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold a lock in the block, and wait for it as long as another process holds it."""
    said = False
    while True:
        holder = directory_lock(lock.parent, lock, alone=True)
        try:
            holder.__enter__()
            break
        except FileExistsError:
            if not said:
                say()
            said = True
            time.sleep(_WAIT)
    try:
        yield
    finally:
        holder.__exit__(None, None, None)


def _digest_of_weights(model: ULMFiT) -> str:
    assert model.language_model is not None and model.tokenizer is not None
    found = hashlib.sha256(model.tokenizer.to_json().encode())
    for name, weight in sorted(model.language_model.state_dict().items()):
        found.update(name.encode() + weight.numpy().tobytes())
    return found.hexdigest()[:8]
