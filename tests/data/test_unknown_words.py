"""Which share of a corpus' words a vocabulary lacks, counted one by one and in blocks."""

import numpy as np
import pytest

from ulmfit_fast.data import Tokenizer, TokenStore, Vocab
from ulmfit_fast.data.tokens import unknown
from ulmfit_fast.data.tokens.unknown import unknown_words

TEXTS = ["The cat sat on the mat.", "A DOG!!!", "", "the cat", "once"]


@pytest.mark.parametrize("block", [1, 3, 2**20])
def test_shares_are_those_of_a_count_by_hand(monkeypatch, tmp_path, block):
    monkeypatch.setattr(unknown, "_TOKENS", block)
    tokenizer = Tokenizer.train([*TEXTS, *TEXTS[:4]], min_freq=2)
    known = Vocab(["the", "on", "."])
    words = [
        word
        for text in TEXTS
        for word in tokenizer.tokens(text)
        if word in tokenizer.vocab.words[9:]
    ]
    lacking = [word for word in words if word not in known.words]
    expected = (len(lacking) / len(words), len(set(lacking)) / len(set(words)), len(set(words)))
    documents = tokenizer.encode_batch(TEXTS)
    assert unknown_words(documents, tokenizer.vocab, known) == expected
    store = TokenStore.build(tmp_path / "store", TEXTS, tokenizer, workers=1)
    assert unknown_words(store, tokenizer.vocab, known) == expected


def test_a_vocabulary_that_stays_lacks_what_is_unknown():
    tokenizer = Tokenizer.from_vocab(Vocab(["cat", "the"]))
    documents = tokenizer.encode_batch(["The cat and the dog", "xxunk"])
    found = unknown_words(documents, tokenizer.vocab, tokenizer.vocab)
    assert found == (0.5, None, 2)


def test_no_words_lack_nothing():
    vocab = Vocab(["cat"])
    assert unknown_words([np.array([2]), np.array([], dtype=np.int32)], vocab, vocab) == (
        0,
        None,
        0,
    )
    assert unknown_words([], vocab, Vocab(["dog"])) == (0, 0, 0)
