"""Vocabularies of fastai and awd-lstm-lm: every word keeps its rows, whatever its id was."""

import pytest
import torch
from fastai_formats import FORMATS, E, V, assert_right, expected_logits, logits, state_dict

from ulmfit_fast.compat.fastai import from_fastai, to_fastai, use_rows, vocabulary_from_fastai
from ulmfit_fast.data import SPECIALS

V2 = [*SPECIALS, "the", "cat"]
V1 = "xxunk xxpad xxbos xxeos xxfld xxmaj xxup xxrep xxwrep the cat".split()
V07 = "_unk_ _pad_ the xbos xfld tk_rep tk_wrep t_up _eos_ cat _bos_".split()
AWD = "<eos> the <unk> cat N".split()


@pytest.mark.parametrize(
    ("itos", "words", "index"),
    [
        (V2, "the cat", range(11)),
        (V1, "the cat", [0, 1, 2, 3, 4, 7, 8, 6, 5, 9, 10]),
        (V07, "the cat _bos_", [0, 1, 3, 8, 4, 5, 6, 7, -1, 2, 9, 10]),
        (AWD, "the cat N", [2, -1, -1, 0, -1, -1, -1, -1, -1, 1, 3, 4]),
        ([*V2, "xxfake", "xxfake"], "the cat", range(11)),
        ([*V2, "the"], "the cat", [*range(9), 11, 10]),
        ([*V2, "<unk>", "t_up"], "the cat <unk> t_up", range(13)),
        (["_bos_", "a"], "a", [-1, -1, 0, -1, -1, -1, -1, -1, -1, 1]),
        (("a",), "a", [-1] * 9 + [0]),
        (["a", "", "\n", "a b"], ["a", "", "\n", "a b"], [-1] * 9 + [0, 1, 2, 3]),
    ],
    ids=["v2", "v1", "0.7", "awd", "filled up", "twice", "old names as words", "one old name",
         "no specials", "odd words"],
)  # fmt: skip
def test_vocabularies(itos, words, index) -> None:
    vocab, rows = vocabulary_from_fastai(itos)
    expected = words.split() if isinstance(words, str) else words
    assert vocab.words == (*SPECIALS, *expected)
    assert rows.dtype == torch.int64 and rows.tolist() == list(index)


@pytest.mark.parametrize(
    ("itos", "error", "message"),
    [
        ("xxunk", TypeError, "itos is the string 'xxunk', expected a list of words"),
        (["a", b"b"], TypeError, r"itos\[1\] is b'b' \(bytes\), expected a str"),
        ([], ValueError, "itos has no words"),
        (["xxfake"], ValueError, "itos has no words"),
    ],
)
def test_vocabularies_that_are_refused(itos, error, message: str) -> None:
    with pytest.raises(error, match=message):
        vocabulary_from_fastai(itos)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kind", "specials"),
    [("v2", V2[:9]), ("v1", V1[:9]), ("0.7", V07), ("awd-lstm-lm", AWD)],
    ids=FORMATS,
)
def test_every_word_keeps_its_logits_there_and_back(kind: str, specials, tied: bool) -> None:
    fillers = ["xxfake"] * 3 if kind in ("v1", "v2") else []
    itos = [*specials, *(f"w{n}" for n in range(V - len(specials) - len(fillers))), *fillers]
    tensors = state_dict(kind)
    if not tied:
        name = next(name for name in tensors if name.endswith("decoder.weight"))
        tensors[name] = torch.randn(V, E, dtype=torch.float64)
    vocab, index = vocabulary_from_fastai(itos)
    old = from_fastai(tensors)
    new = use_rows(old, index)
    assert new.config.vocab_size == len(vocab) and new.config.tie_weights == tied
    assert (new.decoder.weight is new.encoder.encoder.weight) == tied
    assert_right(old, tensors)
    # Every word of the file that is no filler, under its new id and its old one.
    ours, theirs = torch.nonzero(index >= 0).flatten(), index[index >= 0]
    assert len(ours) == V - len(fillers)
    text = torch.randint(len(ours), (9, 4))
    expected = expected_logits(tensors, theirs[text])[..., theirs]
    difference = logits(new, ours[text])[..., ours] - expected
    assert difference.abs().max() < 1e-12
    # What the file did not have is the mean of all its rows.
    if (absent := index < 0).any():
        weight = new.encoder.encoder.weight[absent]
        mean = old.encoder.encoder.weight.mean(dim=0).expand_as(weight)
        torch.testing.assert_close(weight, mean, rtol=1e-12, atol=1e-12)
    # And back: our words are a vocabulary of fastai v2 as they are.
    again, same = vocabulary_from_fastai(list(vocab.words))
    assert again == vocab and same.tolist() == list(range(len(vocab)))
    back = to_fastai(use_rows(from_fastai(to_fastai(new)), same))
    difference = expected_logits(back, ours[text])[..., ours] - expected
    assert difference.abs().max() < 1e-12


def test_use_rows_refuses_rows_that_are_not_there() -> None:
    model = from_fastai(state_dict())
    with pytest.raises(ValueError, match="index runs from 0 to 56, expected values from -1 to 55"):
        use_rows(model, torch.arange(V + 1))
    with pytest.raises(TypeError, match=r"index has dtype torch.int32, expected torch.int64"):
        use_rows(model, torch.arange(V, dtype=torch.int32))
