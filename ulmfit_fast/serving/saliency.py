"""Which tokens speak for a classifier's answer, and which against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit_fast.data.batches import ClassifierBatches
from ulmfit_fast.data.columns import Label, nearest
from ulmfit_fast.data.tokens.rules import Piece, restore_text
from ulmfit_fast.data.tokens.texts import CheckedTexts
from ulmfit_fast.data.tokens.tokenizer import Tokenizer
from ulmfit_fast.data.tokens.vocab import MAJ, REP, SPECIALS, UNK, UP, WREP
from ulmfit_fast.data.tokens.words import SPACE_MARK
from ulmfit_fast.nn import TextClassifier
from ulmfit_fast.nn.pooling import ConcatPool
from ulmfit_fast.nn.state import first_state
from ulmfit_fast.report.explanations import Explanation, Explanations, TokenScore

__all__ = [
    "Explanation",
    "Explanations",
    "Method",
    "TokenScore",
    "WithClassifier",
    "explain",
    "token_saliency",
]

Method = Literal["gradient_x_input", "intrinsic_attention"]

_SPECIAL_IDS = {word: index for index, word in enumerate(SPECIALS)}


class WithClassifier(Protocol):
    """What `explain` needs: a `ULMFiT`, or the `ModelParts` of a model directory."""

    @property
    def classifier(self) -> TextClassifier | None:
        """The classifier."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer."""

    @property
    def labels(self) -> list[Label]:
        """The classes in the order of the logits."""

    @property
    def backwards(self) -> bool:
        """Whether it reads texts from their end."""


def explain(
    model: WithClassifier,
    texts: Sequence[str],
    label: Label | None = None,
    *,
    method: Method = "gradient_x_input",
    batch_size: int = 16,
) -> Explanations:
    """Score each token of texts by its effect on the classifier's answer.

    Example:
        >>> import ulmfit_fast as uf
        >>> model = uf.ULMFiT(emb_size=8, hidden_size=16, min_freq=1, progress=False)
        >>> _ = model.fit_classifier(["a fine film", "a dull film"] * 20, ["+", "-"] * 20, epochs=1)
        >>> [word.token for word in explain(model, ["Fine film!!!"])[0].words]
        ['Fine', 'film', '!!!']

    Args:
        model: a `ULMFiT` with a classifier, or the `ModelParts` of one.
        texts: what to explain, as `Tokenizer.encode_batch` takes it.
        label: the class that is asked for; None takes the most probable class of each text.
        method: "gradient_x_input", with a sign, or "intrinsic_attention", without.
        batch_size: texts at a time; the result does not depend on it.

    Returns:
        An explanation of each text, in the order of the texts.

    Raises:
        TypeError: if texts is one string, or one of the texts is no string.
        ValueError: if there is no classifier, the label is not one of its classes, the method is
            unknown or an answer is not finite.
    """
    classifier, tokenizer = model.classifier, model.tokenizer
    if classifier is None or tokenizer is None:
        raise ValueError("there is no classifier yet; call fit_classifier(texts, labels) first")
    if label is not None and label not in model.labels:
        known = ", ".join(repr(name) for name in model.labels)
        raise ValueError(
            f"label is {label!r:.60}, expected one of the classes {known}"
            f"{nearest(label, model.labels)}"
        )
    wanted = None if label is None else model.labels.index(label)
    step = -1 if model.backwards else 1
    texts = list(CheckedTexts(texts))
    documents = [ids[::step] for ids in tokenizer.encode_batch(texts)]
    pad_id = classifier.encoder.config.pad_id
    found: list[Explanation | None] = [None] * len(documents)
    for batch in ClassifierBatches(documents, None, batch_size, pad_id=pad_id):
        scores, logits = token_saliency(
            classifier, batch.tokens, batch.lengths, wanted, method=method
        )
        probabilities = logits.softmax(1)  # (B, C)
        if not (probabilities.isfinite().all() and scores.isfinite().all()):
            raise ValueError(
                "the classifier's answer or its gradient is not finite, expected numbers; train "
                "the model again with a lower rate"
            )
        for row, position in enumerate(batch.positions.tolist()):
            chosen = int(logits[row].argmax()) if wanted is None else wanted
            own = scores[: int(batch.lengths[row]), row].tolist()[::step]
            tokens = [
                TokenScore(*pair)
                for pair in zip(tokenizer.tokens(texts[position]), own, strict=True)
            ]
            found[position] = Explanation(
                texts[position],
                model.labels[chosen],
                float(probabilities[row, chosen]),
                tokens,
                _words(tokens, subwords=tokenizer.kind == "subword"),
            )
    return Explanations(explanation for explanation in found if explanation is not None)


def token_saliency(
    model: TextClassifier,
    tokens: Tensor,
    lengths: Tensor,
    label: int | None = None,
    *,
    method: Method = "gradient_x_input",
) -> tuple[Tensor, Tensor]:
    """Differentiate the logarithm of a class's probability with respect to each token.

    "gradient_x_input" is the derivative with respect to a factor of 1 on the token's embedding,
    that is, gradient times embedding summed over the E features: positive where the token speaks
    for the class, negative where it speaks against it. "intrinsic_attention" is the sum of the
    gradient's absolute values, as fastai's function of this name has it: how much the token
    matters, without a direction. Both are divided by the largest absolute value of their text.

    The gradient goes through the whole text, also where training would stop it: across the starts
    of windows, and to tokens before the span that is pooled.

    Example:
        >>> from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig
        >>> encoder = AWDLSTM(AWDLSTMConfig.classifier(10, emb_size=4, hidden_size=6))
        >>> model = TextClassifier(encoder, num_classes=2)
        >>> scores, logits = token_saliency(model, torch.full((7, 3), 5), torch.tensor([7, 2, 4]))
        >>> tuple(scores.shape), scores.abs().amax(0).tolist()
        ((7, 3), [1.0, 1.0, 1.0])

    Args:
        model: the classifier; its dropout is off and its BatchNorm in evaluation meanwhile.
        tokens: token ids, `(T, B)`, padded at the end.
        lengths: tokens of each text, `(B,)`.
        label: the class; None takes each text's most probable one.
        method: one of the two.

    Returns:
        Scores `(T, B)` in float32 on the CPU, from -1 to 1, zero on padding; and the logits
        `(B, C)`, there too.

    Raises:
        ValueError: if the method is unknown or shapes do not fit.

    Source:
        Graves, "Supervised Sequence Labelling with Recurrent Neural Networks" (2012), section 3.3.4
        (sequential Jacobian); Denil et al. (2014, arXiv:1412.6815), for gradient times input.
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}, expected one of {', '.join(get_args(Method))}")
    device = model.encoder.encoder.weight.device
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            embedded, logits = _logits(model, tokens.to(device), lengths.to(device))
            log_p = logits.log_softmax(1)  # (B, C)
            chosen = logits.argmax(1) if label is None else torch.full_like(logits[:, 0], label)
            # Rows do not see one another, so the gradient of the sum is that of each.
            total = log_p.gather(1, chosen.long()[:, None]).sum()  # 0-d
            (gradient,) = torch.autograd.grad(total, embedded)  # (T, B, E)
    finally:
        model.train(was_training)
    signed = method == "gradient_x_input"
    effect = (gradient * embedded.detach()) if signed else gradient.abs()
    scores = effect.float().sum(2)  # (T, B)
    largest = scores.abs().amax(0, keepdim=True)  # (1, B)
    scores = torch.where(largest > 0, scores / largest, 0.0)
    return scores.cpu(), logits.detach().float().cpu()


def _logits(model: TextClassifier, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embedded tokens (T, B, E) and the logits (B, C), in one window."""
    encoder = model.encoder
    weight = encoder.encoder.weight
    embedded = F.embedding(tokens, weight.detach()).requires_grad_()
    batch = tokens.shape[1]
    state = first_state(encoder.sizes, batch=batch, dtype=weight.dtype, device=weight.device)
    x = embedded  # (T, B, E)
    for rnn, hx in zip(encoder.rnns, state, strict=True):
        x, _ = rnn(x, hx)  # (T, B, H)
    pool = ConcatPool((lengths - model.max_len).clamp(min=0), lengths, weight)
    pool.add(x, 0)
    features = pool.result().to(next(model.head.parameters()).dtype)  # (B, 3E)
    return embedded, model.head(features).float()


def _words(tokens: Sequence[TokenScore], *, subwords: bool) -> list[TokenScore]:
    """Join pieces to words and marks to the word that they stand before."""
    words: list[TokenScore] = []
    group: list[Piece] = []
    score = 0.0
    for piece, own in _joined(tokens) if subwords else _pieces(tokens):
        group.append(piece)
        score += own
        is_count = group[-2:-1] in ([REP], [WREP]) and isinstance(piece, str) and piece.isdecimal()
        if isinstance(piece, str) and not is_count:
            words.append(TokenScore(restore_text(group), score))
            group, score = [], 0.0
    return words


def _pieces(tokens: Sequence[TokenScore]) -> Iterator[tuple[Piece, float]]:
    """Yield marks as ids and words as strings; the other specials show nothing."""
    for token in tokens:
        special = _SPECIAL_IDS.get(token.token, UNK)
        if special in (MAJ, UP, REP, WREP):
            yield special, token.score
        elif special == UNK:
            yield token.token, token.score


def _joined(tokens: Sequence[TokenScore]) -> Iterator[tuple[Piece, float]]:
    """Yield what `_pieces` does, with the pieces of a word put together."""
    word, score = "", 0.0
    for piece, own in _pieces(tokens):
        is_mark = isinstance(piece, int)
        if word and (is_mark or str(piece).startswith(SPACE_MARK)):
            yield word, score
            word, score = "", 0.0
        if is_mark:
            yield piece, own
        else:
            word += str(piece).removeprefix(SPACE_MARK)
            score += own
    if word:
        yield word, score
