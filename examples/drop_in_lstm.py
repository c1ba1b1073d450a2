"""Take the place of nn.LSTM in a plain training loop, and drop weights and gates in it.

Trains the same model of characters twice from the same weights, on 3,000 characters of docstrings:
with `torch.nn.LSTM`, and with `uf.LSTM`, which differs in two arguments and drops recurrent weights
and cell inputs. So little text is soon known by heart; what the dropouts bring shows in the loss on
text that was not trained on.

    python examples/drop_in_lstm.py
"""

import argparse
import inspect
import shutil
import zipfile

import torch
import torch.nn.functional as F

import ulmfit_fast as uf

MODULES = (argparse, shutil, zipfile)
T, B, H, STEPS = 32, 8, 64, 250


class CharacterModel(torch.nn.Module):
    """Embedding, LSTM and decoder: the logits of the next character."""

    def __init__(self, characters: int, lstm: torch.nn.Module) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(characters, 32)
        self.lstm = lstm
        self.decoder = torch.nn.Linear(H, characters)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits (T, B, C) for ids (T, B)."""
        output, _ = self.lstm(self.embedding(ids))
        return self.decoder(output)


def documentation() -> str:
    """Return the docstrings of the modules' functions, classes and methods."""
    found = []
    for module in MODULES:
        for _, member in inspect.getmembers(module):
            if inspect.getmodule(member) is not module:
                continue
            found.append(inspect.getdoc(member))
            found += [inspect.getdoc(value) for value in vars(member).values() if callable(value)]
    return "\n".join(dict.fromkeys(text for text in found if text))


def loss_on(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of the next characters of ids (T + 1, B)."""
    return F.cross_entropy(model(ids[:-1]).flatten(0, 1), ids[1:].flatten())


def train(model: torch.nn.Module, train_ids: torch.Tensor, test_ids: torch.Tensor) -> float:
    """Train, and return the loss on the other text."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    draw = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        starts = torch.randint(len(train_ids) - T, (B,), generator=draw)
        loss = loss_on(model, torch.stack([train_ids[s : s + T + 1] for s in starts], 1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    rows = test_ids[: len(test_ids) // (T + 1) * (T + 1)].view(-1, T + 1).t()
    with torch.no_grad():
        return loss_on(model, rows).item()


def main() -> None:
    """Train both models and print what each makes of unknown text."""
    text = documentation()
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(character) for character in text])
    train_ids, test_ids = ids[:3000], ids[-6000:]

    torch.set_num_threads(1)  # more do not pay at these sizes
    torch.manual_seed(0)
    plain = CharacterModel(len(characters), torch.nn.LSTM(32, H))
    dropping = CharacterModel(len(characters), uf.LSTM(32, H, weight_p=0.4, gate_p=(0, 0, 0.3, 0)))
    dropping.load_state_dict(plain.state_dict())  # the same names and shapes
    print(f"{len(train_ids):,} characters to train on, {len(test_ids):,} others")
    print("backend:", uf.backend.explain(dropping.lstm, torch.zeros(T, B, 32)))
    for name, model in (("nn.LSTM", plain), ("uf.LSTM, weight_p and gate_p", dropping)):
        print(f"{name}: {train(model, train_ids, test_ids):.3f} nats a character")


if __name__ == "__main__":
    main()
