"""Give a model that already trains this package's LSTM, in place, in the midst of its training.

`uf.convert_lstm` turns each `nn.LSTM` of a model into a `uf.LSTM`. The parameters stay the same
objects under the same names, so optimizer, checkpoints and the rest of the code do not change. On a
CUDA device Triton kernels then run the layers with the dropouts inside. On a CPU the operators are
PyTorch's own, and what is gained is the weight-drop, for little time. The script times a step both
ways, in turns, and says what runs.

    python examples/convert_existing_model.py
"""

import statistics
import time

import torch
import torch.nn.functional as F

import ulmfit_fast as uf

T, B, WORDS, TAGS = 40, 16, 500, 7


class Tagger(torch.nn.Module):
    """A tagger as it may stand in anyone's code: it knows nothing of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(WORDS, 64)
        self.lstm = torch.nn.LSTM(64, 128, num_layers=2, bidirectional=True, dropout=0.2)
        self.out = torch.nn.Linear(256, TAGS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Return logits (T, B, TAGS) for words (T, B)."""
        output, _ = self.lstm(self.embedding(words))
        return self.out(output)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, words: torch.Tensor) -> float:
    """Take one training step: the tag is that of the word before; return the milliseconds."""
    if words.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    tags = words.roll(1, 0) % TAGS
    optimizer.zero_grad()
    F.cross_entropy(model(words).flatten(0, 1), tags.flatten()).backward()
    optimizer.step()
    if words.is_cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Convert a model and back, and time its steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = Tagger().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    words = torch.randint(WORDS, (T, B), device=device)
    before = [(name, id(parameter)) for name, parameter in model.named_parameters()]

    times: dict[str, list[float]] = {"nn.LSTM": [], "uf.LSTM": []}
    for turn in range(6):
        for name in times:
            if name == "uf.LSTM":
                uf.convert_lstm(model, weight_p=0.3)
            taken = step(model, optimizer, words)
            if turn:  # the first of each warms up
                times[name].append(taken)
            if name == "uf.LSTM":
                uf.restore_lstm(model)

    uf.convert_lstm(model, weight_p=0.3)
    after = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    print("parameters are the same objects:", before == after)
    print("backend:", uf.backend.explain(model.lstm, model.embedding(words)))
    for name, taken in times.items():
        print(f"{name}: {statistics.median(taken):.1f} ms a step")


if __name__ == "__main__":
    main()
