import pandas as pd
import pytest
import torch

from ulmfit_fast.data import SPECIALS, Vocab, transfer_rows


def test_specials_come_first() -> None:
    vocab = Vocab(["b", "xxbos", "a"])
    assert vocab.words == (*SPECIALS, "b", "a")
    assert [vocab.index(word) for word in SPECIALS] == list(range(9))
    assert len(vocab) == 11 and "a" in vocab and "c" not in vocab and vocab.index("c") == 0
    assert len(Vocab([])) == 9


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(dict(counts={"b": 3, "a": 3, "c": 9, "d": 2}), ("c", "a", "b"), id="order"),
        pytest.param(dict(counts={"b": 3, "a": 3, "c": 9}, max_size=11), ("c", "a"), id="max-size"),
        pytest.param(dict(counts={"a": 1, "xxbos": 7}, min_freq=1), ("a",), id="specials"),
        pytest.param(dict(counts={"a": 1, "xxbos": 7}, max_size=10, min_freq=1), ("a",), id="room"),
        pytest.param(dict(counts=[["a", "b"], ["b"]], min_freq=1), ("b", "a"), id="tokens"),
        pytest.param(dict(counts=[["a"]], max_size=9, min_freq=1), (), id="no-room"),
        pytest.param(dict(counts=[]), (), id="nothing"),
    ],
)
def test_build(arguments: dict, expected: tuple[str, ...]) -> None:
    assert Vocab.build(**arguments).words[9:] == expected


def test_json() -> None:
    vocab = Vocab(["caf\u00e9", '"', "\u2603"])
    assert Vocab.from_json(vocab.to_json()) == vocab != Vocab(["a"])
    assert "caf\u00e9" in vocab.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [("[", "not valid JSON"), ('["a"]', "expected a JSON list that starts"), ("{}", "starts with")],
    ids=["broken", "no-specials", "object"],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocab.from_json(text)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Vocab("the"), TypeError, "words is the string 'the'"),
        (
            lambda: Vocab(pd.DataFrame({"word": ["the"]})),
            TypeError,
            "words is a DataFrame, expected a list of words; pass the column",
        ),
        (lambda: Vocab(["a", 3]), TypeError, r"words\[1\] is 3 \(int\), expected a str"),
        (lambda: Vocab(["a", "b", "a"]), ValueError, "'a' occurs 2 times"),
        (lambda: Vocab.build({}, max_size=8), ValueError, "max_size is 8, expected at least 9"),
        (lambda: Vocab.build({}, min_freq=0), ValueError, "min_freq is 0"),
        (lambda: Vocab.build(["a b"]), TypeError, "text 0 is the string 'a b'"),
    ],
    ids=["string", "table", "type", "twice", "max-size", "min-freq", "untokenised"],
)
def test_bad_words(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_transfer_by_name() -> None:
    old, new = Vocab(["the", "cat", "sat"]), Vocab(["sat", "dog", "the"])
    index = new.transfer(old)
    assert index.dtype == torch.int64
    assert index.tolist() == [*range(9), 11, -1, 9]
    weight = torch.randn(12, 4, requires_grad=True)
    rows = transfer_rows(weight, index)
    assert not rows.requires_grad
    assert torch.equal(rows[:9], weight[:9]) and torch.equal(rows[[9, 11]], weight[[11, 9]])
    assert torch.allclose(rows[10], weight.mean(0))
    bias = torch.randn(12)
    moved = transfer_rows(bias, index)
    assert torch.equal(moved[[9, 11]], bias[[11, 9]]) and torch.allclose(moved[10], bias.mean())
    assert torch.equal(transfer_rows(weight, old.transfer(old)), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_mean_row_keeps_precision(dtype: torch.dtype) -> None:
    weight = torch.full((70_000, 1), 2.0, dtype=dtype)
    rows = transfer_rows(weight, torch.tensor([-1]))
    assert rows.dtype == dtype and rows.item() == 2.0


@pytest.mark.parametrize(
    ("weight", "index", "error", "message"),
    [
        (torch.ones(3, 2), torch.tensor([3]), ValueError, "index runs from 3 to 3"),
        (torch.ones(3, 2), torch.tensor([-2]), ValueError, "values from -1 to 2"),
        (torch.ones(3, 2), torch.tensor([0.0]), TypeError, "index has dtype torch.float32"),
        (torch.ones(3, 2), torch.tensor([[0]]), ValueError, r"index has shape \(1, 1\)"),
        (torch.ones(0, 2), torch.tensor([-1]), ValueError, r"weight has shape \(0, 2\)"),
        (torch.ones(3).long(), torch.tensor([-1]), TypeError, "weight has dtype torch.int64"),
    ],
    ids=["past", "negative", "float", "shape", "empty", "integers"],
)
def test_bad_transfer(
    weight: torch.Tensor, index: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        transfer_rows(weight, index)
