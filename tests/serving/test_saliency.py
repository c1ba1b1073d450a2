"""Saliency: the derivative of the answer, per token, however long or padded the text is."""

import random

import pytest
import torch
from torch import Tensor

from ulmfit_fast import ULMFiT
from ulmfit_fast.nn import AWDLSTM, AWDLSTMConfig, TextClassifier
from ulmfit_fast.serving.saliency import Explanation, TokenScore, _words, explain, token_saliency

FILLERS = "the a of and it was film story with some very long music night".split()
MAKERS = ("fine", "dull")


def labelled(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts in which one word at any place makes the class."""
    rng, texts = random.Random(seed), []
    for n in range(count):
        words = [rng.choice(FILLERS) for _ in range(rng.randrange(2, 7))]
        words.insert(rng.randrange(len(words) + 1), MAKERS[n % 2])
        texts.append(" ".join(words))
    return texts, ["good", "bad"] * (count // 2)


TEXTS, LABELS = labelled(80, 0)


def make(bptt: int = 4, max_len: int = 6) -> TextClassifier:
    encoder = AWDLSTM(AWDLSTMConfig.classifier(12, emb_size=4, hidden_size=6, num_layers=2))
    model = TextClassifier(encoder, 3, hidden=7, bptt=bptt, max_len=max_len).double()
    for norm in (model.head[0], model.head[4]):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)
    return model


def batch(lengths: list[int], extra: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.ones(max(lengths) + extra, len(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[:length, row] = torch.randint(2, 12, (length,), generator=generator)
    return tokens, torch.tensor(lengths)


def derivative(model: TextClassifier, tokens: Tensor, row: int, label: int, place: int) -> float:
    """By finite differences: the embedding of one place alone is stretched."""
    model.eval()
    encoder = model.encoder
    values = []
    for factor in (1 + 1e-5, 1 - 1e-5):
        x = encoder.encoder.weight[tokens[:, row]].detach()[:, None].clone()
        x[place] *= factor
        for rnn in encoder.rnns:
            x, _ = rnn(x)
        span = x[-model.max_len :, 0]
        pooled = torch.cat([span[-1], span.amax(0), span.mean(0)])[None]
        values.append(model.head(pooled).log_softmax(1)[0, label].item())
    return (values[0] - values[1]) / 2e-5


def test_scores_are_the_derivative_by_each_token() -> None:
    model = make()
    tokens, lengths = batch([11])
    scores, logits = token_saliency(model, tokens, lengths)
    label = int(logits.argmax())
    expected = torch.tensor([derivative(model, tokens, 0, label, t) for t in range(11)])
    assert torch.allclose(scores[:, 0], expected / expected.abs().max(), atol=1e-4)
    assert (scores[:5] != 0).all(), "before the pooled span and across windows, too"
    assert torch.allclose(logits, model.eval()(tokens, lengths).float(), atol=1e-6)


@pytest.mark.parametrize("method", ["gradient_x_input", "intrinsic_attention"])
def test_scores_depend_on_the_text_alone(method: str) -> None:
    model, lengths = make(), [3, 11, 1, 8]
    together, _ = token_saliency(model, *batch(lengths), method=method)
    padded, _ = token_saliency(model, *batch(lengths, extra=5), method=method)
    assert torch.allclose(padded[:11], together, atol=1e-6) and not padded[11:].any()
    tokens, _ = batch(lengths)
    for row, length in enumerate(lengths):
        own = tokens[:length, row : row + 1], torch.tensor([length])
        alone, _ = token_saliency(model, *own, method=method)
        assert torch.allclose(together[:length, row], alone[:, 0], atol=1e-6)
        assert together[:length, row].abs().max() == pytest.approx(1)
        assert not together[length:, row].any()


def test_a_class_may_be_asked_for_and_attention_has_no_sign() -> None:
    model, (tokens, lengths) = make(), batch([7, 5])
    every = [token_saliency(model, tokens, lengths, label)[0] for label in range(3)]
    assert not torch.allclose(every[0], every[1])
    assert all((scores < 0).any() and (scores > 0).any() for scores in every)
    attention, _ = token_saliency(model, tokens, lengths, method="intrinsic_attention")
    assert (attention >= 0).all() and (attention[:5] > 0).all()


def test_the_model_is_left_as_it_was() -> None:
    model, (tokens, lengths) = make().train(), batch([7, 5])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first, _ = token_saliency(model, tokens, lengths)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    second, _ = token_saliency(model, tokens, lengths)
    assert torch.equal(first, second), "dropout is off; frozen layers pass the gradient on"
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_texts_without_tokens_have_no_scores() -> None:
    scores, logits = token_saliency(make(), *batch([4, 0]))
    assert torch.isfinite(logits).all() and not scores[:, 1].any() and scores[:, 0].any()


def fit(**options) -> ULMFiT:
    sizes = {"emb_size": 12, "hidden_size": 16, "num_layers": 2, "min_freq": 1, "seed": 1}
    stage = {"epochs": 10, "batch_size": 16, "lr": 0.02, "drop_mult": 0.1}
    model = ULMFiT(**sizes, **options, progress=False)
    return model.fit_classifier(TEXTS, LABELS, **stage, gradual_unfreezing=0)


@pytest.fixture(scope="module")
def fitted() -> ULMFiT:
    return fit()


def strongest(explanation: Explanation) -> str:
    return max(explanation.words, key=lambda word: word.score).token


def test_the_word_that_makes_the_class_speaks_for_it(fitted: ULMFiT) -> None:
    texts, labels = labelled(40, 1)
    found = explain(fitted, texts)
    assert [e.text for e in found] == texts and [e.label for e in found] == fitted.predict(texts)
    assert sum(e.label == label for e, label in zip(found, labels, strict=True)) >= 36
    assert sum(strongest(e) in MAKERS for e in found) >= 36, "there are about five words a text"
    against = explain(fitted, texts[::2], "bad")
    scores = [word.score for e in against for word in e.words if word.token == "fine"]
    assert len(scores) == 20 and sum(score < 0 for score in scores) >= 18


def test_tokens_words_and_probabilities_are_those_of_the_text(fitted: ULMFiT) -> None:
    texts = ["The dull film", "a fine story", ""]
    found = fitted.explain(texts)
    shown = [[token.token for token in e.tokens] for e in found]
    assert shown[0] == ["xxbos", "xxmaj", "the", "dull", "film"] and shown[2] == ["xxbos"]
    assert [word.token for word in found[0].words] == ["The", "dull", "film"]
    probabilities = fitted.predict_proba(texts)
    assert [e.probability for e in found] == pytest.approx(probabilities.max(1), abs=1e-6)
    asked = fitted.explain(texts, "good")
    assert [e.probability for e in asked] == pytest.approx(probabilities[:, 1], abs=1e-6)
    assert {e.label for e in asked} == {"good"}
    for one, all_ in zip(explain(fitted, texts, batch_size=1), found, strict=True):
        pairs = zip(one.tokens, all_.tokens, strict=True)
        assert all(a.score == pytest.approx(b.score, abs=1e-4) for a, b in pairs)


def test_a_backwards_model_scores_in_reading_order() -> None:
    texts, _ = labelled(20, 1)
    found = explain(fit(backwards=True), texts)
    assert [" ".join(word.token for word in e.words) for e in found] == texts
    assert sum(strongest(e) in MAKERS for e in found) >= 14, "by chance four"


SCORED = [
    (
        "xxbos xxmaj the xxup cat sat xxrep 3 ! xxwrep 3 so xxunk 3 .",
        ["The", "CAT", "sat", "!!!", "so so so", "xxunk", "3", "."],
        [5, 9, 6, 24, 33, 13, 14, 15],
    ),
    ("xxbos", [], []),
    ("xxbos well xxmaj", ["well"], [2]),
]


@pytest.mark.parametrize(("tokens", "words", "scores"), SCORED, ids=["marks", "empty", "loose"])
def test_marks_belong_to_the_word_behind_them(
    tokens: str, words: list[str], scores: list[float]
) -> None:
    given = [TokenScore(token, n) for n, token in enumerate(tokens.split(), start=1)]
    found = _words(given, subwords=False)
    assert [word.token for word in found] == words and [w.score for w in found] == scores


def test_pieces_belong_to_one_word() -> None:
    tokens = "xxbos xxmaj \u2581 t he \u2581film xxrep \u2581 3 \u2581 ! \u2581 xxunk s".split()
    given = [TokenScore(token, n) for n, token in enumerate(tokens, start=1)]
    found = _words(given, subwords=True)
    assert [word.token for word in found] == ["The", "film", "!!!", "xxunks"]
    assert [word.score for word in found] == [14, 6, 45, 39]
    assert sum(word.score for word in found) == sum(range(1, 15)) - 1


def test_refuses(fitted: ULMFiT) -> None:
    with pytest.raises(ValueError, match=r"label is 'fine', expected one of the classes 'bad', 'g"):
        explain(fitted, TEXTS[:1], "fine")
    with pytest.raises(ValueError, match=r"method is 'gradient', expected one of gradient_x_input"):
        explain(fitted, TEXTS[:1], method="gradient")
    with pytest.raises(ValueError, match=r"there is no classifier yet; call fit_classifier"):
        explain(ULMFiT(), TEXTS[:1])
    with pytest.raises(TypeError, match="expected a list of texts"):
        explain(fitted, "a fine film")
