"""The C kernels' large products, and sums over rows, against PyTorch's in float64."""

import pytest
import torch
from native import needs_native

from ulmfit_fast.kernels.cpu import matmul, sums

pytestmark = needs_native

# M, K, N: of one, odd, on both sides of a panel and of a block of depth, more rows than at once; a
# little more than half a panel of 16, 32 and 64 outputs.
SIZES = [(1, 1, 1), (5, 3, 70), (49, 513, 64), (97, 512, 63), (48, 1030, 130), (200, 20, 1)]
SIZES += [(7, 30, 10), (7, 30, 20), (7, 30, 40)]


def layouts(rows, columns):
    """Return one matrix as it lies, transposed, misaligned, and with gaps in both directions."""
    plain = torch.randn(rows, columns)
    gaps = torch.zeros(2 * rows, 3 * columns)[::2, ::3].copy_(plain)
    shifted = torch.zeros(rows * columns + 1)[1:].view(rows, columns).copy_(plain)
    return plain, [plain, plain.t().contiguous().t(), shifted, gaps]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_product_in_float64_in_any_layout(size, threads, monkeypatch):
    monkeypatch.setattr(matmul, "beats_torch", lambda: True)
    monkeypatch.setattr(matmul, "threads", lambda: threads)
    m, k, n = size
    (plain_a, all_a), (plain_b, all_b) = layouts(m, k), layouts(k, n)
    exact = plain_a.double() @ plain_b.double()
    first = None
    for a in all_a:
        for b in all_b:
            wide = torch.full((m, n + 3), float("nan"))
            out = wide[:, :n]
            matmul.add_matmul(out, a, b, fresh=True)
            torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-6 * k + 1e-5)
            first = out.clone() if first is None else first
            assert torch.equal(out, first)
            assert wide[:, n:].isnan().all()
            matmul.add_matmul(out, a, b)
            torch.testing.assert_close(out.double(), 2 * exact, rtol=0, atol=2e-6 * k + 2e-5)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("wins", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_in_the_dtype_of_what_it_is_added_to(dtype, wins, fresh, monkeypatch):
    monkeypatch.setattr(matmul, "beats_torch", lambda: wins)
    a, b = torch.randn(4, 9, dtype=dtype), torch.randn(9, 5)
    out = torch.ones(4, 5)
    matmul.add_matmul(out, a, b, fresh=fresh)
    expected = a.double() @ b.to(dtype).double() + (0 if fresh else 1)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("size", [(0, 3, 4), (3, 0, 4), (3, 4, 0)], ids=str)
def test_of_nothing(size, monkeypatch):
    monkeypatch.setattr(matmul, "beats_torch", lambda: True)
    m, k, n = size
    out = torch.full((m, n), 7.0)
    matmul.add_matmul(out, torch.zeros(m, k), torch.zeros(k, n), fresh=True)
    assert torch.all(out == 0)


@pytest.mark.parametrize("layout", ["rows", "transposed"])
def test_many_small_terms_beside_a_large_one_are_not_lost(layout, monkeypatch):
    """As in the gradient of a softmax over a large vocabulary: one sum over all loses them all."""
    monkeypatch.setattr(matmul, "beats_torch", lambda: True)
    a = torch.full((3, 16_384), 2.0**-25)
    a[:, 0] = 1.0
    out = torch.empty(3, 1)
    matmul.add_matmul(
        out, a if layout == "rows" else a.t().contiguous().t(), torch.ones(16_384, 1), fresh=True
    )
    assert (out - (1.0 + 16_383 * 2.0**-25)).abs().max() < 5e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (300, 5000), (129, 33), (0, 4), (4, 0)], ids=str)
def test_sums_over_rows(size, dtype, monkeypatch):
    rows, columns = size
    x = torch.randn(rows, columns).to(dtype)
    gaps = torch.zeros(rows, columns + 3, dtype=dtype)[:, 1 : columns + 1].copy_(x)
    exact = 1 + x.double().sum(0)
    first = None
    for threads in (1, 3, 7):
        monkeypatch.setattr(sums, "threads", lambda threads=threads: threads)
        for given in (x, gaps, x.t().contiguous().t()):
            out = torch.ones(columns)
            sums.add_column_sums(out, given)
            torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)
            first = out if first is None else first
            assert torch.equal(out, first)


def test_many_small_rows_beside_a_large_one_are_not_lost():
    x = torch.full((16_384, 3), 2.0**-25)
    x[0] = 1.0
    out = torch.zeros(3)
    sums.add_column_sums(out, x)
    assert (out - (1.0 + 16_383 * 2.0**-25)).abs().max() < 5e-5
