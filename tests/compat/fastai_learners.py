"""fastai learners on a small corpus: texts of two topics, split one in four for validation."""

import random

from fastai_parts import EMB, HIDDEN, fastai

SIZES = {"emb_sz": EMB, "n_hid": HIDDEN, "n_layers": 3}
TOPICS = {
    "sea": "wave shore salt tide sail gull harbour storm".split(),
    "town": "street tram market lamp bridge crowd roof bell".split(),
}
COMMON = "the a old and near under of with its one".split()


def corpus(texts=40, seed=0):
    """Return a data frame of texts, labels, and whether a row is for validation."""
    draw = random.Random(seed)
    rows = []
    for row in range(texts):
        label = list(TOPICS)[row % 2]
        words = [draw.choice(COMMON + TOPICS[label]) for _ in range(draw.randint(8, 40))]
        rows.append({"text": " ".join(words), "label": label, "is_valid": row % 8 < 2})
    return fastai.pd.DataFrame(rows)


def loaders(frame, *, is_lm, bs=4, seq_len=8, vocab=None):
    """Return fastai's loaders, made in this process alone."""
    text = fastai.TextBlock.from_df(
        "text", vocab=vocab, is_lm=is_lm, seq_len=seq_len, n_workers=0, min_freq=1
    )
    return fastai.DataBlock(
        blocks=[text] if is_lm else [text, fastai.CategoryBlock],
        get_x=fastai.ColReader("text"),
        get_y=None if is_lm else fastai.ColReader("label"),
        splitter=fastai.ColSplitter("is_valid"),
    ).dataloaders(frame, bs=bs, seq_len=seq_len, num_workers=0)


def quiet(learn):
    """Take progress and tables away."""
    learn.remove_cb(learn.progress)
    learn.logger = lambda row: None
    return learn


def lm_learner(path, frame=None, *, vocab=None, drop_mult=1.0, **config):
    """Return a language model's learner that saves under `path`."""
    dls = loaders(corpus() if frame is None else frame, is_lm=True, vocab=vocab)
    learn = fastai.language_model_learner(
        dls,
        fastai.AWD_LSTM,
        config=fastai.awd_lstm_lm_config | SIZES | config,
        drop_mult=drop_mult,
        pretrained=False,
        path=path,
        metrics=[fastai.accuracy],
    )
    return quiet(learn)


def classifier_learner(path, frame=None, *, vocab=None, **config):
    """Return a classifier's learner that saves under `path`."""
    dls = loaders(corpus() if frame is None else frame, is_lm=False, vocab=vocab)
    learn = fastai.text_classifier_learner(
        dls,
        fastai.AWD_LSTM,
        seq_len=8,
        config=fastai.awd_lstm_clas_config | SIZES | config,
        pretrained=False,
        path=path,
        metrics=[fastai.accuracy],
    )
    return quiet(learn)
