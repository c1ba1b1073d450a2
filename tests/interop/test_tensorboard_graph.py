"""TensorBoard's add_graph traces a model with uf.LSTM in it."""

import pytest
import torch
from torch import nn

import ulmfit_fast as uf

pytest.importorskip("tensorboard", reason="in the extra [interop]")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_add_graph_writes_the_layer(tmp_path, training):
    from torch.utils.tensorboard import SummaryWriter

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = uf.LSTM(4, 3, weight_p=0.5, gate_p=0.1)
            self.out = nn.Linear(3, 2)

        def forward(self, x):
            return self.out(self.lstm(x)[0])

    tagger = Tagger().train(training)
    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(tagger, torch.ones(5, 2, 4))
    (events,) = tmp_path.iterdir()
    assert b"aten::lstm" in events.read_bytes()
    assert tagger.training == training
