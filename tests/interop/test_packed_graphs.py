"""A PackedSequence inside a graph that torch.compile takes whole."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import ulmfit_fast as uf
from ulmfit_fast.nn.packed import packed_data, padded

# Dynamo looks at the gradient of every input, and a packed batch is no leaf.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

LENGTHS = ([3, 2], [4, 4, 1], [5, 5, 5, 5], [1], [6, 1, 1])
OPTIONS = {
    "plain": {},
    "all": {
        "num_layers": 2,
        "bidirectional": True,
        "weight_p": 0.5,
        "gate_p": 0.1,
        "dropout": 0.2,
    },
}


def results(run, lstm, lengths, in_order, with_state):
    """Return everything that a call gives: outputs, state and gradients."""
    torch.manual_seed(len(lengths))
    rows = 2 * lstm.num_layers if lstm.bidirectional else lstm.num_layers
    x = torch.randn(max(lengths), len(lengths), 4, dtype=torch.float64, requires_grad=True)
    state = [torch.randn(rows, len(lengths), 5, dtype=torch.float64) for _ in "hc"]
    hx = tuple(part.requires_grad_() for part in state) if with_state else None
    lengths = torch.tensor(lengths if in_order else lengths[::-1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=in_order)
    output, (h_n, c_n) = run(packed, hx, seed=3)
    assert type(output) is PackedSequence
    for place in (1, 2, 3):
        assert (output[place] is None) == (packed[place] is None)
        assert output[place] is None or torch.equal(output[place], packed[place])
    leaves = [x, *(hx or ()), *lstm.parameters()]
    loss = output.data.sin().sum() + (h_n * c_n).sum()
    return [output.data, h_n, c_n, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("in_order", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
def test_a_packed_sequence_compiles_whole(options, in_order, with_state):
    torch._dynamo.reset()
    lstm = uf.LSTM(4, 5, **options, dtype=torch.float64)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    for lengths in LENGTHS:
        call = (lstm, lengths, in_order, with_state)
        torch.testing.assert_close(
            results(compiled, *call), results(lstm, *call), rtol=1e-10, atol=1e-12
        )
    lstm.eval()
    call = (lstm, [4, 2, 2], in_order, with_state)
    torch.testing.assert_close(
        results(compiled, *call), results(lstm, *call), rtol=1e-10, atol=1e-12
    )


def test_a_state_of_another_batch_size_is_refused_in_the_graph():
    torch._dynamo.reset()
    compiled = torch.compile(uf.LSTM(4, 5), fullgraph=True, backend="aot_eager")
    packed = pack_padded_sequence(torch.randn(3, 2, 4), torch.tensor([3, 2]))
    with pytest.raises(RuntimeError, match="h_0 has another B than the PackedSequence"):
        compiled(packed, (torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)))


def test_packing_by_the_user_breaks_the_graph_and_nothing_else():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = uf.LSTM(4, 5, dtype=torch.float64)

        def forward(self, x, lengths):
            output, _ = self.lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
            return pad_packed_sequence(output)[0]

    torch._dynamo.reset()
    tagger = Tagger()
    x, lengths = torch.randn(4, 3, 4, dtype=torch.float64), torch.tensor([2, 4, 1])
    compiled = torch.compile(tagger, backend="aot_eager")
    torch.testing.assert_close(compiled(x, lengths), tagger(x, lengths))


def test_padding_by_indices_is_pytorchs_padding(monkeypatch):
    for lengths in LENGTHS:
        x = torch.randn(max(lengths), len(lengths), 4)
        packed = pack_padded_sequence(x, torch.tensor(lengths))
        expected, ends = pad_packed_sequence(packed)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            rows, counts = padded(packed, None)
            data = packed_data(rows, counts, packed)
        assert torch.equal(counts, ends)
        inside = (torch.arange(max(lengths))[:, None] < ends)[:, :, None]
        assert torch.equal(rows.where(inside, 0), expected)
        assert torch.equal(data, packed.data)
