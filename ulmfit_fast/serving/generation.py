"""Write text with a language model, token by token."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.data.tokens.vocab import BOS, PAD, UNK
from ulmfit_fast.lstm.native import caching_weights
from ulmfit_fast.nn import LanguageModel

__all__ = ["WithLanguageModel", "generate", "generate_ids"]


class WithLanguageModel(Protocol):
    """What `generate` needs: a `ULMFiT`, or the `ModelParts` of a model directory."""

    @property
    def language_model(self) -> LanguageModel | None:
        """The language model."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer."""

    @property
    def backwards(self) -> bool:
        """Whether it reads texts from their end."""


def generate(
    model: WithLanguageModel,
    prompt: str = "",
    *,
    max_tokens: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_tokens: int = 0,
    stop: Sequence[str] = ("xxbos", "xxeos"),
    no_unk: bool = True,
    seed: int | None = None,
) -> str:
    """Continue a text with a language model; a model that reads backwards writes its beginning.

    Example:
        >>> import ulmfit_fast as uf
        >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, min_freq=1, progress=False)
        >>> _ = model.pretrain(["one two three four"] * 40, epochs=1, batch_size=4)
        >>> generate(model, "One two,", max_tokens=5, seed=0).startswith("One two,")
        True

    Args:
        model: a `ULMFiT` with a language model, or the `ModelParts` of one.
        prompt: the text to go on from; empty starts a new text.
        max_tokens: largest number of new tokens; marks of capitals and repetition count.
        temperature: divides the logits; below 1 more of the likely words, 0 always the likeliest.
        top_k: draw among the k likeliest tokens; None among all.
        top_p: draw among the fewest likeliest tokens that together have this probability.
        min_tokens: new tokens before which the text does not stop.
        stop: tokens at which the text ends; `xxbos` begins another text.
        no_unk: never write `xxunk`, the unknown word.
        seed: fixes the draws; None takes them from torch's generator.

    Returns:
        The prompt as it was given and what comes after it; before it, where the model reads
        backwards.

    Raises:
        ValueError: if there is no language model, a stop token is not in the vocabulary, or a
            number is out of range.
        TypeError: if the prompt is no string.

    Source:
        Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), for top_p.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is {prompt!r:.60} ({type(prompt).__name__}), expected a str")
    language_model, tokenizer = model.language_model, model.tokenizer
    if language_model is None or tokenizer is None:
        raise ValueError("there is no language model yet; call pretrain(texts) or load(dir) first")
    given = tokenizer.encode_batch([prompt])[0].tolist()
    new = generate_ids(
        language_model,
        # A text read backwards follows on the first token of the text before it.
        [BOS, *reversed(given[1:])] if model.backwards else given,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_tokens=min_tokens,
        stop=[_stop_id(tokenizer, token) for token in stop],
        banned=(PAD, UNK) if no_unk else (PAD,),
        seed=seed,
    )
    # What the tokenizer makes of the prompt is replaced by the prompt itself.
    shown = tokenizer.decode(given)
    if model.backwards:
        text = tokenizer.decode([*reversed(new), *given])
        matches = text.endswith(shown)
        return text[: len(text) - len(shown)] + prompt.lstrip() if matches else text
    text = tokenizer.decode([*given, *new])
    return prompt.rstrip() + text[len(shown) :] if text.startswith(shown) else text


def _stop_id(tokenizer: Tokenizer, token: str) -> int:
    if token not in tokenizer.vocab:
        raise ValueError(
            f"stop has {token!r:.60}, expected tokens of the vocabulary, such as xxbos or '.'"
        )
    return tokenizer.vocab.index(token)


@torch.no_grad()
def generate_ids(
    model: LanguageModel,
    ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_tokens: int = 0,
    stop: Collection[int] = (),
    banned: Collection[int] = (),
    seed: int | None = None,
) -> list[int]:
    """Draw the tokens that follow on others; the prompt is read once, then one token at a time.

    Example:
        >>> from ulmfit_fast.nn import AWDLSTMConfig
        >>> model = LanguageModel(AWDLSTMConfig(20, emb_size=4, hidden_size=6))
        >>> len(generate_ids(model, [2, 11], max_tokens=5, seed=0))
        5

    Args:
        model: the language model; its dropout is off meanwhile.
        ids: the tokens so far, at least one.
        max_tokens: largest number of new tokens.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: draw among the k likeliest tokens; None among all.
        top_p: draw among the fewest likeliest tokens that together have this probability.
        min_tokens: new tokens before which `stop` does not end the text.
        stop: ids at which to stop; the id itself is not returned.
        banned: ids that are never drawn.
        seed: fixes the draws; None takes them from torch's generator.

    Returns:
        The new ids.

    Raises:
        ValueError: if there are no ids, a number is out of range, or no token may be drawn.
    """
    _check(max_tokens, temperature, top_k, top_p, min_tokens)
    if len(ids) == 0:
        raise ValueError("ids is empty, expected at least one token; start with xxbos, id 2")
    device = model.decoder.weight.device
    # On the CPU the same seed draws the same tokens for every device.
    generator = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        tokens = torch.tensor(ids, dtype=torch.int64, device="cpu")
        state, new = None, list[int]()
        with caching_weights():
            while len(new) < max_tokens:
                hidden, state = model.encoder(tokens[:, None].to(device), state)  # (T, 1, E)
                logits = model.decoder(hidden[-1, 0]).float().cpu()  # (V,)
                refused = [*banned, *(stop if len(new) < min_tokens else ())]
                places = torch.tensor(refused, dtype=torch.int64, device="cpu")
                logits = logits.index_fill(0, places, -math.inf)
                token = _draw(logits, temperature, top_k, top_p, generator)
                if token in stop:
                    break
                new.append(token)
                tokens = torch.tensor([token], dtype=torch.int64, device="cpu")
        return new
    finally:
        model.train(was_training)


def _draw(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> int:
    """Draw one token from logits (V,)."""
    if not logits.max() > -math.inf:
        raise ValueError(
            "no token may be drawn: all are banned, or the logits are not finite; "
            "allow more tokens, or train with a lower rate"
        )
    if temperature == 0:
        return int(logits.argmax())
    # Less the largest, so that a small temperature does not overflow.
    values, order = ((logits - logits.max()) / temperature).sort(descending=True, stable=True)
    probabilities = values[:top_k].softmax(0)  # (k,)
    if top_p is not None:
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _check(
    max_tokens: int, temperature: float, top_k: int | None, top_p: float | None, min_tokens: int
) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1")
    if not 0 <= min_tokens <= max_tokens:
        raise ValueError(
            f"min_tokens is {min_tokens}, expected 0 to {max_tokens}, which is max_tokens"
        )
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature is {temperature}, expected a number of at least 0; 0 always takes the "
            "likeliest token"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1, or None for all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected a number in (0, 1], or None for all tokens")
