"""Text generation: drawn from the model's own distribution, one token at a time, and repeatable."""

from dataclasses import replace

import pytest
import torch

from ulmfit_fast import ULMFiT
from ulmfit_fast.data import Tokenizer, Vocab
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.serving.generation import generate, generate_ids
from ulmfit_fast.ulmfit.model_files import ModelParts

WORDS = ["one", "two", "three", "four", "five", ",", "(", ")", "!"]
SIZE = 9 + len(WORDS)


class Fixed(torch.nn.Module):
    """A decoder with the same logits for every text."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(logits)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(*hidden.shape[:-1], -1)


def language_model(logits: torch.Tensor | None = None) -> LanguageModel:
    model = LanguageModel(AWDLSTMConfig(SIZE, emb_size=4, hidden_size=6, num_layers=2))
    if logits is not None:
        model.decoder = Fixed(logits)
    return model.eval()


def counting(backwards: bool = False) -> ModelParts:
    """A model that was taught to count."""
    options = {"emb_size": 16, "hidden_size": 24, "num_layers": 2, "min_freq": 1, "seed": 1}
    model = ULMFiT(**options, drop_mult=0.0, device="cpu", progress=False)
    texts = ["One two three four five"] * 40
    if backwards:
        texts = ["five four three two One"] * 40
    model.pretrain(texts, epochs=15, lr=0.03, batch_size=4, bptt=12)
    model.settings = replace(model.settings, backwards=backwards)
    return model


def drawn(count: int, logits: torch.Tensor, **options) -> torch.Tensor:
    ids = generate_ids(language_model(logits), [2], max_tokens=count, seed=0, **options)
    return torch.bincount(torch.tensor(ids), minlength=SIZE) / count


def test_tokens_are_drawn_from_the_softmax() -> None:
    logits = torch.randn(SIZE)
    for temperature in (0.5, 1.0, 2.0):
        shares = drawn(1000, logits, temperature=temperature)
        assert (shares - (logits / temperature).softmax(0)).abs().max() < 0.05
    assert drawn(20, logits, temperature=0)[logits.argmax()] == 1
    assert drawn(20, logits, temperature=1e-30)[logits.argmax()] == 1


def test_top_k_and_top_p_leave_the_unlikely_out() -> None:
    probabilities = torch.full((SIZE,), 0.01)
    probabilities[[9, 10, 11, 12]] = torch.tensor([0.4, 0.3, 0.1, 0.06])
    logits = (probabilities / probabilities.sum()).log()
    two = drawn(500, logits, top_k=2)
    assert two[[9, 10]] == pytest.approx([4 / 7, 3 / 7], abs=0.08) and two[[9, 10]].sum() == 1
    assert drawn(50, logits, top_k=1)[9] == 1
    assert drawn(50, logits, top_p=0.3)[9] == 1, "one token is always left"
    assert set(drawn(300, logits, top_p=0.75).nonzero().flatten().tolist()) == {9, 10, 11}
    assert (drawn(1500, logits, top_p=1.0, top_k=1000) > 0).all()


def test_banned_and_stop() -> None:
    logits = torch.zeros(SIZE)
    logits[3] = 4.0
    shares = drawn(300, logits, banned=(0, 1, 3))
    assert shares[[0, 1, 3]].sum() == 0 and (shares[4:] > 0).all()
    assert logits[3] == 4.0, "the model's own logits stay"
    model = language_model(logits)
    lengths = [len(generate_ids(model, [2], max_tokens=9, stop=[3], seed=s)) for s in range(40)]
    assert min(lengths) == 0 and lengths.count(9) == 0
    options = {"max_tokens": 9, "stop": [3], "min_tokens": 4}
    texts = [generate_ids(model, [2], **options, seed=s) for s in range(40)]
    assert min(map(len, texts)) == 4 and all(3 not in text for text in texts)


def test_the_prompt_is_read_once_and_gives_what_reading_it_again_would() -> None:
    model, seen = language_model(), []
    model.encoder.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    ids = [2, 9, 12, 10]
    new = generate_ids(model, ids, max_tokens=6, temperature=0)
    assert seen == [(4, 1)] + [(1, 1)] * 5
    for position in range(6):
        tokens = torch.tensor(ids + new[:position])[:, None]
        assert new[position] == int(model(tokens).logits[-1, 0].argmax())


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    model = language_model()
    expected = generate_ids(model, [2], max_tokens=8, seed=3)
    assert generate_ids(model.train(), [2], max_tokens=8, seed=3) == expected
    assert model.training and not expected == generate_ids(model, [2], max_tokens=8, seed=4)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        generate_ids(model, [99], max_tokens=1)
    assert model.training


def test_a_seed_decides_the_text_and_leaves_the_generator_alone() -> None:
    model = language_model()
    before = torch.get_rng_state()
    first = generate_ids(model, [2], max_tokens=20, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert generate_ids(model, [2], max_tokens=20, seed=7) == first
    torch.manual_seed(1)
    second = generate_ids(model, [2], max_tokens=20)
    torch.manual_seed(1)
    assert generate_ids(model, [2], max_tokens=20) == second != first


@pytest.fixture(scope="module")
def counter() -> ULMFiT:
    return counting()


def test_a_text_goes_on_as_learned_and_stops_where_another_begins(counter: ULMFiT) -> None:
    assert generate(counter, "One two", temperature=0) == "One two three four five"
    assert generate(counter, temperature=0) == "One two three four five"
    assert generate(counter, "One two", temperature=0, max_tokens=1) == "One two three"
    more = generate(counter, "One two", temperature=0, max_tokens=9, min_tokens=9)
    assert len(more) > len("One two three four five")
    assert generate(counter, "One two", temperature=0, stop=["four"]) == "One two three"
    assert counter.generate("One two", temperature=0) == "One two three four five"


def test_the_prompt_stays_as_it_was_given(counter: ULMFiT) -> None:
    text = generate(counter, "ONE  Two\tunheard  ", max_tokens=3, seed=0)
    assert text.startswith("ONE  Two\tunheard") and len(text) > len("ONE  Two\tunheard ")
    assert "xxunk" not in generate(counter, "unheard", max_tokens=40, min_tokens=40, seed=0)


def test_punctuation_is_glued() -> None:
    logits = torch.zeros(SIZE)
    logits[9 + WORDS.index("!")] = 9.0
    parts = ModelParts(
        Tokenizer.from_vocab(Vocab(WORDS)), language_model(logits), None, [], {"seed": 0}
    )
    assert generate(parts, "one two", max_tokens=1, temperature=0) == "one two!"
    assert generate(parts, "one (", max_tokens=1, temperature=0) == "one (!"


def test_a_backwards_model_writes_what_comes_before() -> None:
    model = counting(backwards=True)
    assert generate(model, "four five", temperature=0).lower() == "one two three four five"
    assert generate(model, temperature=0).lower().endswith("three four five")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0, expected at least 1"),
        ({"min_tokens": 51}, "min_tokens is 51, expected 0 to 50, which is max_tokens"),
        ({"min_tokens": -1}, "min_tokens is -1, expected 0"),
        ({"temperature": -1.0}, "temperature is -1.0, expected a number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0, expected a number in"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"stop": ["tow"]}, "stop has 'tow', expected tokens of the vocabulary"),
    ],
    ids=str,
)
def test_refuses(counter: ULMFiT, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(counter, "one", **options)


def test_refuses_what_is_no_model_no_text_or_leaves_no_token(counter: ULMFiT) -> None:
    with pytest.raises(ValueError, match="there is no language model yet; call pretrain"):
        generate(ULMFiT(), "one")
    with pytest.raises(TypeError, match=r"prompt is 3 \(int\), expected a str"):
        generate(counter, 3)
    with pytest.raises(ValueError, match="ids is empty"):
        generate_ids(language_model(), [], max_tokens=1)
    with pytest.raises(ValueError, match="no token may be drawn"):
        generate_ids(language_model(), [2], max_tokens=1, banned=range(SIZE))
