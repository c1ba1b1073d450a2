"""How many tokens a second does a language model write, one after the other?

The same loop with PyTorch's LSTM, and with ours in float32 and in bfloat16; a batch of one, the
decoder and the draw included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from benchmarks.harness import check
from benchmarks.harness.cli import run_question
from benchmarks.harness.measure import Entry, compare
from benchmarks.harness.rows import Row
from benchmarks.harness.settings import Settings
from ulmfit_fast import backend
from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel
from ulmfit_fast.serving.generation import generate_ids

QUESTION = "generate"
TORCH, OURS, BFLOAT16 = "ulmfit_fast torch", "ulmfit_fast auto", "ulmfit_fast auto, bfloat16"


def run(settings: Settings) -> list[Row]:
    """Measure it for ULMFiT's model, on a CPU."""
    if settings.gpu or settings.over(QUESTION):
        return []
    full = {"vocab_size": 15_008, "emb_size": 400, "hidden_size": 1152, "num_layers": 3}
    tiny = {"vocab_size": 50, "emb_size": 6, "hidden_size": 16, "num_layers": 2}
    sizes = tiny if settings.tiny else full
    count = 4 if settings.tiny else 30
    torch.manual_seed(0)
    model = LanguageModel(AWDLSTMConfig.language_model(**sizes)).eval()
    settings.say(" {emb_size}->{hidden_size}, {num_layers} layers, V={vocab_size}".format(**sizes))

    def write(name: str, dtype: torch.dtype) -> list[int]:
        with _as(name, dtype):
            return generate_ids(model, [2], max_tokens=count, min_tokens=count, seed=0)

    def last_state(name: str, dtype: torch.dtype) -> torch.Tensor:
        tokens = torch.arange(2, 2 + count)[:, None]
        with torch.no_grad(), _as(name, dtype):
            return model.encoder(tokens)[0][-1].float()

    wanted = last_state(TORCH, torch.float32)
    kinds = ((TORCH, torch.float32), (OURS, torch.float32), (BFLOAT16, torch.bfloat16))
    entries = [
        Entry(
            name,
            "one text",
            dtype,
            lambda turn, name=name, dtype=dtype: write(name, dtype),
            lambda name=name, dtype=dtype: check.error_of([last_state(name, dtype)], [wanted]),
            tokens=count,
        )
        for name, dtype in kinds
    ]
    return compare(
        entries,
        settings,
        question=QUESTION,
        baseline=TORCH,
        input_size=sizes["emb_size"],
        hidden_size=sizes["hidden_size"],
        vocab_size=sizes["vocab_size"],
        batch_size=1,
        steps=count,
    )


@contextlib.contextmanager
def _as(name: str, dtype: torch.dtype) -> Iterator[None]:
    with (
        backend.use("torch" if name == TORCH else "auto"),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        yield


if __name__ == "__main__":
    run_question(run, __doc__)
