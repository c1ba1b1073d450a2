import numpy as np
import pytest
import torch

from ulmfit_fast.data import (
    ClassifierBatches,
    LMBatches,
    Tokenizer,
    TokenStore,
    concatenate_documents,
)


def test_reference_stream() -> None:
    docs = [range(0, 5), range(5, 11), range(11, 19), range(19, 21), range(21, 23)]
    stream = concatenate_documents([np.array(doc, dtype=np.int32) for doc in docs])
    assert stream.dtype == torch.int64
    batches = LMBatches(stream, batch_size=4, bptt=3)
    assert len(batches) == 2
    (x0, y0), (x1, y1) = batches
    assert x0.t().tolist() == [[0, 1, 2], [5, 6, 7], [10, 11, 12], [15, 16, 17]]
    assert x1.t().tolist() == [[3, 4], [8, 9], [13, 14], [18, 19]]
    assert torch.equal(y0, x0 + 1) and torch.equal(y1, x1 + 1)


@pytest.mark.parametrize("count", [3, 12, 13, 100], ids="N{}".format)
@pytest.mark.parametrize("batch_size", [1, 2], ids="B{}".format)
@pytest.mark.parametrize("bptt", [1, 4, 200], ids="T{}".format)
def test_stream_layout(count: int, batch_size: int, bptt: int) -> None:
    ids = torch.arange(count, dtype=torch.int32)
    batches = LMBatches(ids.numpy(), batch_size, bptt)
    pairs = list(batches)
    assert len(pairs) == len(batches)
    rows = torch.cat([x for x, _ in pairs]).t()
    length = (count - 1) // batch_size
    assert rows.flatten().tolist() == list(range(length * batch_size))
    assert torch.equal(torch.cat([y for _, y in pairs]).t(), rows + 1)
    assert all(x.shape == y.shape and len(x) <= bptt for x, y in pairs)
    assert all(len(x) == bptt for x, _ in pairs[:-1])
    assert all(t.dtype == torch.int64 and t.is_contiguous() for pair in pairs for t in pair)


def test_stream_batches_are_views() -> None:
    storages = {
        t.untyped_storage().data_ptr() for pair in LMBatches(torch.arange(50), 2, 5) for t in pair
    }
    assert len(storages) == 1


def test_documents_are_shuffled_whole() -> None:
    docs = [np.full(n, n, dtype=np.int32) for n in range(1, 9)]
    plain, first, again, other = (concatenate_documents(docs, seed=s) for s in (None, 5, 5, 6))
    assert plain.tolist() == sorted(plain.tolist())
    assert torch.equal(first, again)
    assert len({tuple(t.tolist()) for t in (plain, first, other)}) == 3
    assert sorted(first.tolist()) == plain.tolist()
    assert (first.diff() != 0).sum() == 7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: LMBatches(torch.arange(7), 16, 5),
            ValueError,
            "7 tokens, expected at least 17 for batch_size=16; pass batch_size=6 or more text",
        ),
        (lambda: LMBatches(torch.arange(1), 1, 5), ValueError, "has 1 tokens.*; pass more text"),
        (lambda: LMBatches(torch.ones(9), 1, 5), TypeError, "ids has dtype torch.float32"),
        (lambda: LMBatches(torch.ones(3, 3).int(), 1, 5), ValueError, r"shape \(3, 3\), expected"),
        (lambda: LMBatches(torch.arange(9), 0, 5), ValueError, "batch_size is 0"),
        (lambda: LMBatches(torch.arange(9), 1, 0), ValueError, "bptt is 0, expected at least 1"),
        (lambda: concatenate_documents([]), ValueError, "0 documents hold 0 tokens"),
        (lambda: ClassifierBatches([[1]], batch_size=0), ValueError, "batch_size is 0"),
        (lambda: ClassifierBatches([[1]], [0, 1]), ValueError, "2 labels for 1 texts"),
        (lambda: ClassifierBatches([[1]], ["a"]), TypeError, "labels has dtype .*number the cl"),
        (lambda: ClassifierBatches([[1]], torch.ones(1)), TypeError, "labels has dtype float32"),
        (lambda: ClassifierBatches([[1]], torch.ones(1, 1)), ValueError, r"shape \(1, 1\)"),
        (lambda: ClassifierBatches([[1]]).set_epoch(-1), ValueError, "epoch is -1"),
    ],
    ids=[
        "short", "one-token", "float", "matrix", "no-rows", "no-steps", "no-documents",
        "batch-size", "label-count", "label-string", "label-float", "label-matrix", "epoch",
    ],
)  # fmt: skip
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_smallest_stream(dtype: torch.dtype) -> None:
    ((x, y),) = LMBatches(torch.arange(3, dtype=dtype), 2, 70)
    assert (x.tolist(), y.tolist()) == ([[0, 1]], [[1, 2]])


def texts(count: int = 230) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(2, 99, n).astype(np.int32) for n in draw.integers(0, 40, count)]


@pytest.mark.parametrize("shuffle", [False, True], ids=["in-order", "shuffled"])
def test_each_text_comes_once_and_whole(shuffle: bool) -> None:
    docs = texts()
    labels = np.arange(len(docs))
    batches = ClassifierBatches(docs, labels, 8, pad_id=1, shuffle=shuffle)
    seen = []
    for tokens, lengths, classes, positions in batches:
        assert {t.dtype for t in (tokens, lengths, classes, positions)} == {torch.int64}
        assert tokens.shape == (max(1, int(lengths.max())), len(lengths))
        assert tokens.is_contiguous() and torch.equal(classes, positions)
        for column, length, position in zip(tokens.t(), lengths, positions, strict=True):
            assert column[:length].tolist() == docs[position].tolist()
            assert (column[length:] == 1).all()
        seen += positions.tolist()
    assert sorted(seen) == list(range(len(docs)))
    assert len(batches) == len(list(batches)) == 29


def test_without_shuffle_the_longest_come_first() -> None:
    lengths = torch.cat([batch.lengths for batch in ClassifierBatches(texts(), batch_size=8)])
    assert (lengths.diff() <= 0).all()


def test_little_padding_when_shuffled() -> None:
    docs = texts(4_000)
    padded = sum(b.tokens.numel() for b in ClassifierBatches(docs, batch_size=8, shuffle=True))
    assert padded < 1.1 * sum(map(len, docs))


def test_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = ClassifierBatches(texts(), batch_size=8, shuffle=True, seed=seed)
        list(batches)
        batches.set_epoch(epoch)
        return [batch.positions.tolist() for batch in batches]

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in (0, 1, -1) for epoch in (0, 1)}) == 6
    first, second = ({frozenset(batch) for batch in order(0, epoch)} for epoch in (0, 1))
    assert not first & second


def test_empty_texts_get_one_column_of_padding() -> None:
    empty = np.zeros(0, dtype=np.int32)
    (batch,) = ClassifierBatches([empty, empty], batch_size=4, pad_id=7)
    assert batch.tokens.tolist() == [[7, 7]] and batch.lengths.tolist() == [0, 0]
    assert batch.labels is None
    assert list(ClassifierBatches([], [])) == [] and len(ClassifierBatches([])) == 0


@pytest.mark.parametrize(
    ("count", "shuffle", "sizes"),
    [
        (9, True, [4, 5]),
        (9, False, [1, 4, 4]),
        (10, True, [2, 4, 4]),
        (1, True, [1]),
        (8, True, [4, 4]),
    ],
    ids=["joined", "kept", "two-left", "single", "even"],
)
def test_no_training_batch_of_one(count: int, shuffle: bool, sizes: list[int]) -> None:
    batches = ClassifierBatches(texts(count), batch_size=4, shuffle=shuffle)
    assert sorted(len(batch.lengths) for batch in batches) == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize("random_bptt", [False, True])
def test_a_stream_on_disk_gives_the_same_batches(tmp_path, random_bptt):
    texts = ["the cat sat " * (1 + i % 5) for i in range(20)]
    tokenizer = Tokenizer.train(texts, min_freq=1)
    store = TokenStore.build(tmp_path / "store", texts, tokenizer, workers=1, progress=False)
    options = {"random_bptt": random_bptt, "seed": 3}
    for seed in (None, 5):
        stored = LMBatches(store.stream(seed), 4, 7, **options)
        loaded = LMBatches(concatenate_documents(list(store), seed), 4, 7, **options)
        assert len(stored) == len(loaded)
        for (x, y), (own_x, own_y) in zip(stored, loaded, strict=True):
            assert torch.equal(x, own_x) and torch.equal(y, own_y)


def test_a_stream_on_disk_may_be_too_short(tmp_path):
    tokenizer = Tokenizer.train(["a cat"], min_freq=1)
    store = TokenStore.build(tmp_path / "store", ["a cat"], tokenizer, workers=1, progress=False)
    with pytest.raises(ValueError, match="the corpus has 3 tokens, expected at least 5"):
        LMBatches(store.stream(), 4, 7)
