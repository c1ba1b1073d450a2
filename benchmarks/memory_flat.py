"""Does memory stay flat over 10,000 steps of training from a token store?

    python -m benchmarks.memory_flat

A small language model trains through `stages.train_language_model`, 20 epochs of 500 steps, the
documents in another order in each. After each epoch the process's memory is read from
/proc/self/statm: all that is resident, and of it what is mapped from files. The mapped part holds
the pages of the store that were read, which the system takes back when it needs them; what the
process itself has taken must not grow. Loss and rates of each step, which a run reports at its
end, are part of it. The first fifth of the epochs is warm-up.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import machine
from benchmarks.harness.rows import RESULTS, write_records
from ulmfit_fast.data import Tokenizer, TokenStore
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.training.stages import TrainingSettings, train_language_model

_STATM = Path("/proc/self/statm")
BATCH_SIZE, BPTT = 16, 20
# In bytes a step, over all epochs after the warm-up: a step's loss and rates take less.
LARGEST_GROWTH = 150.0


@dataclass(frozen=True)
class Sample:
    """Memory after an epoch; the order of the fields is that of the CSV.

    Attributes:
        step: steps taken.
        epoch: epochs finished.
        resident_bytes: memory of the process.
        mapped_bytes: of it, pages mapped from files: those of the store, and of libraries.
        own_bytes: the rest.
        store_bytes: size of the store's ids, none of which is loaded.
        batch_bytes: ids of one batch, all that is kept of them.
        loss: mean cross entropy of the epoch, nats.
    """

    step: int
    epoch: int
    resident_bytes: int
    mapped_bytes: int
    own_bytes: int
    store_bytes: int
    batch_bytes: int
    loss: float


def make_store(directory: Path, tokens: int, seed: int = 0) -> TokenStore:
    """Write a store of drawn words with at least so many tokens, in documents of 20 to 400."""
    draw = random.Random(seed)
    words = [f"w{number}" for number in range(500)]

    def texts() -> Any:
        left = tokens
        while left > 0:
            length = draw.randint(20, 400)
            left -= length + 1
            yield " ".join(draw.choices(words, range(500, 0, -1), k=length))

    tokenizer = Tokenizer.train([" ".join(words)], min_freq=1)
    return TokenStore.build(directory, texts(), tokenizer, workers=1, progress=False)


def measure(
    store: TokenStore,
    epochs: int,
    *,
    each_step: Callable[[], object] | None = None,
    say: Callable[[str], object] = print,
) -> list[Sample]:
    """Train, and return the memory after each epoch.

    Args:
        store: what to train on; its size decides the steps of an epoch.
        epochs: how many.
        each_step: called in every forward; or None.
        say: takes a line for each epoch.
    """
    torch.manual_seed(0)
    sizes = {"emb_size": 8, "hidden_size": 8, "num_layers": 1}
    model = LanguageModel(AWDLSTMConfig.language_model(store.vocab_size, **sizes))
    if each_step is not None:
        # What a hook returns would take the place of the inputs.
        model.encoder.register_forward_pre_hook(lambda module, inputs: (each_step(), None)[1])
    samples: list[Sample] = []

    def after_epoch(epoch: int, history: Any) -> None:
        gc.collect()
        pages = [int(field) for field in _STATM.read_text(encoding="ascii").split()[1:3]]
        resident, mapped = (count * resource.getpagesize() for count in pages)
        samples.append(
            Sample(
                len(history.losses),
                epoch,
                resident,
                mapped,
                resident - mapped,
                store.ids.nbytes,
                BATCH_SIZE * (BPTT + 1) * 8,
                round(history.epochs[-1].loss, 4),
            )
        )
        say(f" step {samples[-1].step:6,}: {samples[-1].own_bytes / 2**20:.2f} MiB")

    settings = TrainingSettings(epochs=epochs, batch_size=BATCH_SIZE, bptt=BPTT, lr=0.01)
    train_language_model(model, store, settings, progress=False, after_epoch=after_epoch)
    return samples


def growth(samples: Sequence[Sample]) -> float:
    """Return by how many bytes a step the process's own memory grows after the warm-up.

    The median of the slopes between all pairs of samples: one that is out of line changes nothing.
    """
    kept = samples[len(samples) // 5 :]
    pairs = [(a, b) for n, a in enumerate(kept) for b in kept[n + 1 :]]
    return statistics.median((b.own_bytes - a.own_bytes) / (b.step - a.step) for a, b in pairs)


def write(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples to a CSV file, with what they depend on."""
    facts = machine.facts("cpu")
    names = [*(field.name for field in fields(Sample)), *facts]
    write_records(path, names, ({**asdict(each), **facts} for each in samples))


def main() -> None:
    """Measure, write the CSV and say whether memory is flat."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20, help="of some 500 steps")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory_flat.csv")
    options = parser.parse_args()
    if not _STATM.exists():
        raise SystemExit("memory is read from /proc/self/statm, which this system has not")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder, "store"), 500 * BATCH_SIZE * BPTT)
        samples = measure(store, options.epochs)
    write(options.out, samples)
    found = growth(samples)
    flat = "flat" if found <= LARGEST_GROWTH else "GROWING"
    print(f"{flat}: {found:.0f} bytes a step, at most {LARGEST_GROWTH:.0f}; {options.out}")
    raise SystemExit(found > LARGEST_GROWTH)


if __name__ == "__main__":
    main()
