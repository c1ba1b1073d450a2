"""ULMFiT on a token store and with a tokenizer of one's own."""

import numpy as np
import pytest
import torch

import ulmfit_fast as uf
from ulmfit_fast.data import Tokenizer, TokenStore

TEXTS = [f"a fine film number {i % 5}" if i % 2 else f"a dull tale {i % 3}" for i in range(60)]
SIZES = {"emb_size": 8, "hidden_size": 8, "num_layers": 1, "min_freq": 1, "progress": False}
STAGE = {"epochs": 2, "batch_size": 4, "bptt": 7}


def store_of(path, texts, **options):
    tokenizer = Tokenizer.train(texts, min_freq=1, **options)
    return TokenStore.build(path, texts, tokenizer, workers=1, progress=False)


@pytest.mark.parametrize("valid_share", [0.0, 0.2])
def test_a_store_trains_as_its_texts_do(tmp_path, monkeypatch, valid_share):
    store = store_of(tmp_path / "store", TEXTS)
    stored = uf.ULMFiT(**SIZES).pretrain(store, **STAGE, valid_share=valid_share)
    loaded = uf.ULMFiT(**SIZES).pretrain(TEXTS, **STAGE, valid_share=valid_share)
    assert stored.histories["pretrain"].losses == loaded.histories["pretrain"].losses
    assert stored.histories["pretrain"].valid_losses == loaded.histories["pretrain"].valid_losses
    assert stored.perplexity(store) == loaded.perplexity(TEXTS)


def test_a_store_stays_on_disk(tmp_path, monkeypatch):
    store = store_of(tmp_path / "store", TEXTS)

    def refuse(*args, **options):
        raise AssertionError("the whole corpus was read into memory")

    monkeypatch.setattr("ulmfit_fast.training.stages.concatenate_documents", refuse)
    model = uf.ULMFiT(**SIZES).pretrain(store, **STAGE, valid_share=0.1)
    model.fine_tune_lm(store_of(tmp_path / "other", [*TEXTS[:30], "a new word"]), **STAGE)
    assert "new" in model.tokenizer.vocab.words
    assert np.isfinite(model.perplexity(store_of(tmp_path / "third", [*TEXTS[:30], "a new word"])))


def test_a_store_brings_its_kind_along(tmp_path):
    model = uf.ULMFiT(**SIZES).pretrain(store_of(tmp_path / "s", TEXTS, kind="subword"), **STAGE)
    assert model.settings.tokenizer == "subword"
    model.save(tmp_path / "model")
    again = uf.ULMFiT.load(tmp_path / "model").fine_tune_lm(TEXTS, **STAGE)
    assert again.tokenizer.vocab == model.tokenizer.vocab


def test_a_store_of_another_tokenizer_is_refused(tmp_path):
    model = uf.ULMFiT(**SIZES, tokenizer="subword").pretrain(TEXTS, **STAGE)
    other = store_of(tmp_path / "store", TEXTS[:30], kind="subword", max_vocab=40)
    with pytest.raises(ValueError, match="was made by another tokenizer"):
        model.fine_tune_lm(other, **STAGE)


def test_a_backward_model_takes_texts(tmp_path):
    with pytest.raises(ValueError, match="holds texts from their beginning"):
        uf.ULMFiT(**SIZES, backwards=True).pretrain(store_of(tmp_path / "s", TEXTS), **STAGE)


def test_a_tokenizer_of_ones_own_is_used_as_it_is(tmp_path):
    tokenizer = Tokenizer.train([*TEXTS, "further words"], min_freq=1)
    model = uf.ULMFiT(**{**SIZES, "min_freq": 9}, tokenizer=tokenizer).pretrain(TEXTS, **STAGE)
    assert model.tokenizer.vocab == tokenizer.vocab and model.settings.tokenizer == "word"


def test_a_tokenizer_json_through_all_stages(tmp_path):
    hf = pytest.importorskip("tokenizers")
    trained = hf.Tokenizer(hf.models.BPE(unk_token="[UNK]"))
    trained.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    trainer = hf.trainers.BpeTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    trained.train_from_iterator(TEXTS, trainer)
    trained.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_huggingface(tmp_path / "tokenizer.json")
    model = uf.ULMFiT(**SIZES, tokenizer=tokenizer).pretrain(TEXTS, **STAGE)
    model.fine_tune_lm(TEXTS, **STAGE)
    model.fit_classifier(TEXTS, ["good" if "fine" in text else "bad" for text in TEXTS], epochs=1)
    expected = model.predict_proba(TEXTS[:4])
    model.save(tmp_path / "model")
    again = uf.ULMFiT.load(tmp_path / "model")
    torch.testing.assert_close(again.predict_proba(TEXTS[:4]), expected)
    with pytest.raises(ValueError, match="is not learnt here"):
        uf.ULMFiT.load(tmp_path / "model").use_vocabulary_of(TEXTS)
