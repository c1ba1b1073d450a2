import copy
import math

import pytest
import torch
from torch import nn

from ulmfit_fast.nn import EmbeddingDropout, LockedDropout
from ulmfit_fast.nn.dropout import embed


def test_locked_dropout_holds_one_mask_over_time() -> None:
    y = LockedDropout(0.4)(torch.ones(5, 8, 16, dtype=torch.float64))
    assert torch.equal(y, y[:1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 1 / 0.6}
    assert not torch.equal(y[0, 0], y[0, 1]), "rows must have masks of their own"


def test_locked_dropout_draws_a_new_mask_each_forward_and_repeats_it_for_a_seed() -> None:
    drop, x = LockedDropout(0.5), torch.ones(1, 8, 16)
    torch.manual_seed(3)
    first, second = drop(x), drop(x)
    torch.manual_seed(3)
    assert torch.equal(first, drop(x))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9], ids="p{}".format)
def test_locked_dropout_drops_a_share_p(p: float) -> None:
    n = 200 * 300
    zeros = int((LockedDropout(p)(torch.ones(1, 200, 300)) == 0).sum())
    assert abs(zeros - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_locked_dropout_back_propagates_through_its_own_mask() -> None:
    x = torch.randn(4, 3, 8, requires_grad=True)
    y = LockedDropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 2.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_locked_dropout_keeps_the_dtype(dtype: torch.dtype) -> None:
    assert LockedDropout(0.5)(torch.ones(2, 3, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("kind", ["locked", "embedding"])
def test_scale_of_half_precision_is_not_rounded_to_half(kind: str) -> None:
    p, x = 0.1, (1 + torch.rand(1, 2000, 8)).bfloat16()
    if kind == "locked":
        y = LockedDropout(p)(x)
    else:
        lookup = EmbeddingDropout(nn.Embedding.from_pretrained(x[0]), p)
        y = lookup(torch.arange(2000)[None])
    kept = y != 0
    ratio = y[kept].double().mean() / x[kept].double().mean()
    # 1/0.9 in bfloat16 is 1.109375, less by 1.6e-3 of it.
    assert math.isclose(ratio, 1 / 0.9, rel_tol=3e-4)


def test_locked_dropout_ends() -> None:
    x = torch.randn(4, 3, 8)
    assert LockedDropout(0.0)(x) is x
    assert LockedDropout(0.7).eval()(x) is x
    assert torch.equal(LockedDropout(1.0)(x), torch.zeros_like(x))


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan], ids=str)
def test_probability_outside_the_unit_interval_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"^p is .*, expected a probability"):
        LockedDropout(p)
    with pytest.raises(ValueError, match=r"^p is .*, expected a probability"):
        EmbeddingDropout(nn.Embedding(3, 2), p)


def test_locked_dropout_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(T, B, F\) tensor, got shape \(3, 8\)"):
        LockedDropout(0.5)(torch.ones(3, 8))


def test_embedding_dropout_gives_a_word_one_fate() -> None:
    embedding = nn.Embedding(50, 6)
    tokens = torch.randint(50, (30, 20))
    ratio = EmbeddingDropout(embedding, 0.5)(tokens) / embedding(tokens)
    fates = {}
    for token, row in zip(tokens.flatten().tolist(), ratio.flatten(0, 1), strict=True):
        assert torch.allclose(row, row[0].expand(6)), "a word is dropped as a whole"
        assert fates.setdefault(token, round(row[0].item(), 4)) == round(row[0].item(), 4)
    assert set(fates.values()) == {0.0, 2.0}


def test_embedding_dropout_draws_anew_each_forward() -> None:
    drop, tokens = EmbeddingDropout(nn.Embedding(200, 2), 0.5), torch.arange(200)[:, None]
    assert not torch.equal(drop(tokens) == 0, drop(tokens) == 0)


def test_embedding_dropout_drops_a_share_p_of_the_words() -> None:
    n, p = 20_000, 0.2
    y = EmbeddingDropout(nn.Embedding(n, 1), p)(torch.arange(n)[:, None])
    assert abs(int((y == 0).sum()) - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_embedding_dropout_gradient_skips_dropped_words_and_padding() -> None:
    embedding = nn.Embedding(40, 3, padding_idx=1)
    y = EmbeddingDropout(embedding, 0.5)(torch.arange(40)[:, None])
    y.sum().backward()
    expected = torch.where(y.detach()[:, 0] == 0, 0.0, 2.0)
    expected[1] = 0.0
    assert torch.equal(embedding.weight.grad, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"max_norm": 0.5},
        {"max_norm": 0.5, "norm_type": 1.0},
        {"scale_grad_by_freq": True},
        {"sparse": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_embedding_dropout_keeps_the_options_of_the_embedding(options: dict[str, float]) -> None:
    embedding, tokens = nn.Embedding(20, 4, **options), torch.randint(20, (30, 5))
    twin = copy.deepcopy(embedding)
    y, expected = EmbeddingDropout(embedding, 0.0)(tokens), twin(tokens)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(y, expected)
    assert torch.equal(embedding.weight, twin.weight)
    assert embedding.weight.grad.is_sparse == twin.weight.grad.is_sparse == ("sparse" in options)
    assert torch.equal(embedding.weight.grad.to_dense(), twin.weight.grad.to_dense())
    dropped = EmbeddingDropout(embedding, 0.5)(tokens)
    assert torch.equal(dropped, torch.where(dropped == 0, 0.0, 2 * twin(tokens)))


def test_embedding_dropout_ends() -> None:
    embedding, tokens = nn.Embedding(5, 2), torch.tensor([[0, 4]])
    assert torch.equal(EmbeddingDropout(embedding, 0.0)(tokens), embedding(tokens))
    assert torch.equal(EmbeddingDropout(embedding, 0.9).eval()(tokens), embedding(tokens))
    assert torch.equal(EmbeddingDropout(embedding, 1.0)(tokens), torch.zeros(1, 2, 2))


@pytest.mark.parametrize("token", [-1, 5], ids=str)
def test_token_outside_the_vocabulary_is_named(token: int) -> None:
    with pytest.raises(ValueError, match=rf"token id {token} is outside the vocabulary \[0, 5\)"):
        EmbeddingDropout(nn.Embedding(5, 2), 0.0)(torch.tensor([[0, token]]))


def test_tokens_must_be_integers() -> None:
    with pytest.raises(TypeError, match=r"int64 or int32 ids, got torch\.float32"):
        EmbeddingDropout(nn.Embedding(5, 2), 0.0)(torch.zeros(2, 1))


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5}, {"padding_idx": 3}], ids=str)
@pytest.mark.parametrize(("p", "locked_p"), [(0.5, 0.3), (0.0, 0.3), (0.5, 0.0)])
def test_embed_drops_features_as_locked_dropout_would_afterwards(
    options: dict[str, float], p: float, locked_p: float
) -> None:
    embedding, tokens = nn.Embedding(20, 5, **options), torch.randint(20, (6, 4))
    torch.manual_seed(3)
    expected = LockedDropout(locked_p)(EmbeddingDropout(embedding, p)(tokens))
    torch.manual_seed(3)
    got = embed(embedding, tokens, p, locked_p=locked_p)
    assert torch.equal(got, expected)
    grads = [torch.autograd.grad(y.square().sum(), embedding.weight)[0] for y in (expected, got)]
    assert torch.equal(*grads)
