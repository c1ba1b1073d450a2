"""Choosing, forcing and explaining the backend."""

import pytest
import torch

import ulmfit_fast as uf
from ulmfit_fast import functional


def test_auto_says_what_it_chose_and_why():
    x = torch.randn(5, 2, 4)
    assert uf.backend.explain(uf.LSTM(4, 8, gate_p=0.1), x).startswith("eager: ")
    assert uf.backend.explain(uf.LSTM(4, 8, gate_p=0.1).eval(), x).startswith("torch: ")
    assert uf.backend.explain(uf.LSTM(4, 8), x).startswith("torch: ")
    half = uf.LSTM(4, 8, dtype=torch.bfloat16)
    assert uf.backend.explain(half, x.bfloat16()).startswith("eager: ")
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]))
    assert "lengths" in uf.backend.explain(uf.LSTM(4, 8), packed)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"gate_p": 0.1}, "_lstm_eager", id="eager"),
        pytest.param({}, "_lstm_torch", id="torch"),
        pytest.param({"backend": "eager"}, "_lstm_eager", id="named"),
    ],
)
def test_the_explained_backend_is_the_one_that_runs(monkeypatch, settings, expected):
    ran = []
    for name in ("_lstm_eager", "_lstm_torch"):
        original = getattr(functional, name)

        def record(*args, name=name, original=original):
            ran.append(name)
            return original(*args)

        monkeypatch.setattr(functional, name, record)
    uf.LSTM(4, 8, **settings)(torch.randn(5, 2, 4))
    assert ran == [expected]


def test_triton_asked_for_by_name_raises_with_reason_and_mend():
    lstm = uf.LSTM(4, 8, backend="triton")
    x = torch.randn(5, 2, 4)
    with pytest.raises(RuntimeError, match=r'no Triton kernels yet; use "auto" or "eager"'):
        lstm(x)
    assert uf.backend.explain(lstm, x).startswith("cannot run: triton was asked for")


def test_torch_asked_for_by_name_does_not_fall_back():
    x = torch.randn(5, 2, 4)
    with pytest.raises(RuntimeError, match="cannot mask gates"):
        uf.LSTM(4, 8, gate_p=0.5, backend="torch")(x)
    with pytest.raises(RuntimeError, match="takes no lengths"):
        uf.LSTM(4, 8, backend="torch")(x, lengths=torch.tensor([5, 3]))


def test_use_forces_and_restores():
    lstm, x = uf.LSTM(4, 8), torch.randn(5, 2, 4)
    with uf.backend.use("reference"):
        assert uf.backend.explain(lstm, x).startswith("reference: ")
        with uf.backend.use("eager"):
            assert uf.backend.explain(lstm, x).startswith("eager: ")
        assert uf.backend.explain(lstm, x).startswith("reference: ")
    assert uf.backend.explain(lstm, x).startswith("torch: ")
    named = uf.LSTM(4, 8, backend="eager")
    with uf.backend.use("reference"):
        assert uf.backend.explain(named, x).startswith("eager: ")
    with pytest.raises(ValueError, match="expected one of auto"), uf.backend.use("fast"):
        pass


def test_environment_variable(monkeypatch):
    lstm, x = uf.LSTM(4, 8), torch.randn(5, 2, 4)
    monkeypatch.setenv("ULMFIT_FAST_BACKEND", "reference")
    assert uf.backend.explain(lstm, x) == "reference: asked for by ULMFIT_FAST_BACKEND=reference"
    monkeypatch.setenv("ULMFIT_FAST_BACKEND", "quick")
    with pytest.raises(ValueError, match="ULMFIT_FAST_BACKEND is 'quick'"):
        lstm(x)


def test_explain_wants_our_lstm():
    with pytest.raises(TypeError, match=r"expected a uf\.LSTM"):
        uf.backend.explain(torch.nn.LSTM(4, 8), torch.randn(5, 2, 4))
