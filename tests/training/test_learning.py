"""Does it learn? Small corpora of made-up words whose order and topics a model can find out."""

import math
from collections import Counter
from statistics import mean

import numpy as np
import pytest

import ulmfit_fast as uf

TOPICS = 2
WORDS = 80  # of each topic, most of which 20 texts do not show
SIZES = {"emb_size": 20, "hidden_size": 28, "num_layers": 2, "min_freq": 1, "drop_mult": 0.1}
STAGE = {"batch_size": 16, "bptt": 20}


def texts(count, seed):
    """Each text walks round its topic's words, now and then jumping; any word names the topic."""
    draw = np.random.default_rng(seed)
    result, labels = [], []
    for index in range(count):
        topic, place, walked = index % TOPICS, int(draw.integers(WORDS)), []
        for _ in range(6):
            place = int(draw.integers(WORDS)) if draw.random() < 0.2 else (place + 1) % WORDS
            walked.append(f"{'ab'[topic]}{place}")
        result.append(" ".join(walked))
        labels.append("ab"[topic])
    return result, labels


@pytest.fixture(scope="module")
def pretrained():
    corpus, _ = texts(800, seed=0)
    model = uf.ULMFiT(**SIZES, seed=1, progress=False)
    return model.pretrain(corpus, epochs=12, lr=1e-2, **STAGE)


@pytest.mark.slow
def test_a_language_model_falls_below_the_entropy_of_single_words(pretrained):
    held_out, _ = texts(100, seed=99)
    counts = Counter(word for text in held_out for word in text.split())
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    # Where a text starts is anybody's guess, and one word in six is a start.
    assert math.log(pretrained.perplexity(held_out)) < 0.9 * entropy


@pytest.mark.slow
def test_pre_training_and_fine_tuning_beat_a_start_from_scratch_with_20_labels(pretrained):
    tuned = pretrained.copy().fine_tune_lm(texts(400, seed=7)[0], epochs=3, lr=5e-3, **STAGE)
    test, expected = texts(200, seed=100)

    def accuracy(start, seed):
        train, labels = texts(20, seed=1000 + seed)
        model = start.copy(seed=seed) if start else uf.ULMFiT(**SIZES, seed=seed, progress=False)
        if start is None:
            # The same words, untrained.
            model.tokenizer = tuned.tokenizer
        model.fit_classifier(train, labels, epochs=8, lr=1e-2, batch_size=8)
        return mean(a == b for a, b in zip(model.predict(test), expected, strict=True))

    scratch = mean(accuracy(None, seed) for seed in range(5))
    ours = mean(accuracy(tuned, seed) for seed in range(5))
    assert ours > scratch + 0.1 and ours > 0.9, (ours, scratch)
