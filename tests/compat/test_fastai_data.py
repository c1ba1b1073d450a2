"""Batches, vocabularies and the weights of a new vocabulary against fastai's."""

import random

import numpy as np
import pytest
import torch
from fastai_parts import assert_equal, fastai, language_models

from ulmfit_fast.compat.fastai import from_fastai, to_fastai, use_rows, vocabulary_from_fastai
from ulmfit_fast.data import (
    SPECIALS,
    ClassifierBatches,
    LMBatches,
    Tokenizer,
    Vocab,
    concatenate_documents,
    transfer_rows,
)
from ulmfit_fast.training.stages import with_vocabulary


def documents(count, seed, longest=40):
    draw = np.random.default_rng(seed)
    return [draw.integers(9, 500, draw.integers(1, longest)) for _ in range(count)]


def assert_equal_batches(ours, theirs):
    assert len(ours) == len(theirs)
    for (x, y), (their_x, their_y) in zip(ours, theirs, strict=True):
        assert torch.equal(x, their_x.as_subclass(torch.Tensor).t())
        assert torch.equal(y, their_y.as_subclass(torch.Tensor).t())


def test_batches_of_the_reference_table():
    docs = [range(5), range(5, 11), range(11, 19), range(19, 21), range(21, 23)]
    docs = [np.arange(doc.start, doc.stop) for doc in docs]
    ours = LMBatches(concatenate_documents(docs), batch_size=4, bptt=3)
    (x, y), (x_last, y_last) = ours
    assert x.t().tolist() == [[0, 1, 2], [5, 6, 7], [10, 11, 12], [15, 16, 17]]
    assert x_last.t().tolist() == [[3, 4], [8, 9], [13, 14], [18, 19]]
    assert torch.equal(y, x + 1) and torch.equal(y_last, x_last + 1)
    loader = fastai.LMDataLoader([torch.tensor(doc) for doc in docs], bs=4, seq_len=3)
    assert_equal_batches(ours, list(loader))


@pytest.mark.parametrize("batch_size", [1, 4, 7])
@pytest.mark.parametrize("bptt", [1, 5, 72])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_random_corpora(batch_size, bptt, shuffle):
    for seed in range(3):
        docs = documents(25, seed)
        loader = fastai.LMDataLoader(
            [torch.from_numpy(doc) for doc in docs], bs=batch_size, seq_len=bptt, shuffle=shuffle
        )
        theirs = list(loader)
        order = list(loader.items.idxs)
        assert (order != sorted(order)) == shuffle
        stream = concatenate_documents([docs[i] for i in order])
        assert_equal_batches(LMBatches(stream, batch_size, bptt), theirs)


def test_texts_come_longest_first_as_in_validation():
    docs = documents(23, 0, longest=9)
    items = [(fastai.TensorText(doc), torch.tensor(i)) for i, doc in enumerate(docs)]
    loader = fastai.SortedDL(items, bs=4, num_workers=0, before_batch=fastai.Pad_Chunk(seq_len=72))
    for ours, (tokens, positions) in zip(
        ClassifierBatches(docs, batch_size=4), loader, strict=True
    ):
        assert torch.equal(ours.positions, positions)
        # Windows are longer than the texts, so that fastai pads behind them as well.
        assert torch.equal(ours.tokens, tokens.as_subclass(torch.Tensor).t())


def test_vocabularies_have_the_same_words():
    draw = random.Random(0)
    # Equal counts stand in the order of the texts in fastai, and alphabetically in ours.
    counts = {f"w{n}": n for n in draw.sample(range(1, 400), 300)} | {"xxmaj": 77, "xxbos": 30}
    for max_vocab, min_freq in ((60_000, 3), (100, 3), (50, 200)):
        theirs = fastai.make_vocab(fastai.Counter(counts), min_freq=min_freq, max_vocab=max_vocab)
        ours = Vocab.build(counts, max_size=max_vocab, min_freq=min_freq)
        assert theirs[:9] == list(SPECIALS)
        words = [word for word in theirs if word != "xxfake"]
        if max_vocab == 60_000:
            assert list(ours.words) == words and len(theirs) % 8 == 0
        # fastai counts its specials among the most frequent words before it moves them, and so may
        # leave a place or two unused.
        assert list(ours.words[: len(words)]) == words and len(ours) <= max_vocab


def test_unknown_words_have_the_same_id():
    vocab = [*SPECIALS, "the", "cat"]
    theirs = fastai.Numericalize(vocab)(["xxbos", "the", "dog", "cat"])
    (ours,) = Tokenizer.from_vocab(Vocab(vocab)).encode_batch(["the dog cat"])
    assert ours.tolist() == theirs.tolist() == [2, 9, 0, 10]


def vocabularies(seed, fill):
    """Return two vocabularies in fastai's form that share some words, in another order."""
    draw = random.Random(seed)
    result = []
    for _ in range(2):
        words = draw.sample([f"w{n}" for n in range(60)], draw.randint(20, 50))
        words = [*SPECIALS, *words]
        result.append(words + ["xxfake"] * (8 - len(words) % 8) * fill)
    return result


def matched(model, old_words, new_words):
    """Return the weights that fastai gives a model for another vocabulary."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return fastai.match_embeds(weights, list(old_words), list(new_words))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_weights_for_a_new_vocabulary(seed, bias):
    old_words, new_words = vocabularies(seed, fill=False)
    old, ours = language_models(sizes=(len(old_words), 12, 14, 2), out_bias=bias)
    expected = matched(old, old_words, new_words)
    moved = with_vocabulary(ours, Vocab(old_words), Vocab(new_words))
    found = to_fastai(moved)
    assert list(found) == list(expected) and ("1.decoder.bias" in found) == bias
    for name, value in found.items():
        assert_equal(value, expected[name])
    assert moved.decoder.weight is moved.encoder.encoder.weight
    assert 0 < (Vocab(new_words).transfer(Vocab(old_words)) < 0).sum() < len(new_words)


@pytest.mark.parametrize("seed", range(4))
def test_rows_for_a_vocabulary_with_fillers(seed):
    old_words, new_words = vocabularies(seed, fill=True)
    old, _ = language_models(sizes=(len(old_words), 12, 14, 2))
    rows = {word: row for row, word in enumerate(old_words)}
    index = torch.tensor([rows.get(word, -1) for word in new_words])
    expected = matched(old, old_words, new_words)
    for name in ("0.encoder.weight", "1.decoder.weight", "1.decoder.bias"):
        assert_equal(transfer_rows(old.state_dict()[name], index), expected[name])


def test_a_model_with_fillers_comes_over_without_them():
    old_words, _ = vocabularies(0, fill=True)
    old, _ = language_models(sizes=(len(old_words), 12, 14, 2))
    vocab, index = vocabulary_from_fastai(old_words)
    assert list(vocab.words) == [word for word in old_words if word != "xxfake"]
    model = use_rows(from_fastai(old.state_dict()), index)
    old.eval()
    tokens = torch.randint(len(vocab), (7, 3))
    assert_equal(model(tokens).logits, old(tokens.t())[0].transpose(0, 1)[..., : len(vocab)])
