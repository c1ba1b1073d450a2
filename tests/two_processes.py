"""What two processes do in tests/test_distributed.py; run by it, with torchrun's variables set.

    python tests/two_processes.py WHAT DIRECTORY

Each process writes what it found to DIRECTORY/WHAT-<rank>.pt.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from small_models import CONFIG, documents

import ulmfit_fast as uf
from ulmfit_fast.data import LMBatches, Tokenizer, concatenate_documents
from ulmfit_fast.distributed import launched, world
from ulmfit_fast.lm_step import LanguageModelStep
from ulmfit_fast.nn import LanguageModel
from ulmfit_fast.pipeline import TrainingSettings, fit_classifier, train_language_model
from ulmfit_fast.runs import Run
from ulmfit_fast.runs.stage import StageRun

PLAIN = replace(
    CONFIG, input_p=0.0, hidden_p=0.0, embed_p=0.0, weight_p=0.0, gate_p=0.0, output_p=0.0
)
UNFREEZING = TrainingSettings(
    batch_size=2, bptt=5, lr=0.02, epochs=5, gradual_unfreezing=1, valid_share=0.3, patience=2
)
TOKENIZER = Tokenizer.train(["a fine film"] * 3, min_freq=1)


def steps(batch_size, part=(0, 1), config=PLAIN, count=3):
    """Take steps, with the first layer group frozen in the second one."""
    torch.manual_seed(0)
    model = LanguageModel(config).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = LanguageModelStep(model, optimizer, clip=0.5)
    found = {"losses": [], "grads": []}
    batches = LMBatches(concatenate_documents(documents(40)), batch_size, 7, part=part)
    for n, (inputs, targets) in zip(range(count), batches, strict=False):
        for group in model.layer_groups()[:2]:
            for parameter in group:
                parameter.requires_grad_(n != 1)
        found["losses"].append(list(map(float, step(inputs, targets))))
        found["grads"].append([None if p.grad is None else p.grad.clone()
                               for p in model.parameters()])  # fmt: skip
    found["state"] = step.state
    found["weights"] = [p.detach() for p in model.parameters()]
    return found


def train(directory, at=None, **options):
    class Mortal(Run):
        def report(self, reading):
            super().report(reading)
            if len(self._training.history.losses) == at:
                raise KeyboardInterrupt

    torch.manual_seed(1)
    model = LanguageModel(CONFIG)
    run = StageRun(Mortal(directory, checkpoint_steps=4, **options), "pretrain", TOKENIZER)
    history = train_language_model(model, documents(60), UNFREEZING, seed=3, run=run)
    return {
        "losses": history.losses,
        "valid_losses": history.valid_losses,
        "weights": [p.detach() for p in model.parameters()],
        "generator": torch.get_rng_state(),
    }


def resumed(directory):
    whole = train(directory / "whole")
    for at in (3, 6, 13):
        try:
            train(directory / "killed", at, resume=at > 3)
        except KeyboardInterrupt:
            continue
        raise AssertionError("not killed")
    again = train(directory / "killed", resume=True)
    return {"whole": whole, "again": again}


def masks(directory):
    """Return the losses and states of steps with dropout on."""
    from ulmfit_fast.distributed import draw_own_masks

    draw_own_masks()
    drawn = int(torch.randint(2**40, ()))
    return {"drawn": drawn, **steps(2, world(), CONFIG)}


def classifier(directory):
    model = LanguageModel(CONFIG)
    try:
        fit_classifier(model, documents(), torch.arange(12) % 2, TrainingSettings())
    except ValueError as error:
        return {"error": str(error)}
    raise AssertionError("not refused")


def full_disk(directory):
    """The first process cannot write; both are to end."""
    from ulmfit_fast.runs import checkpoints

    def fail(path, state):
        raise OSError(28, "No space left on device")

    if world().rank == 0:
        checkpoints.write_state = fail
    try:
        train(directory)
    except OSError as error:
        return {"error": str(error)}
    raise AssertionError("written")


WHAT = {
    "gradients": lambda directory: steps(2, world()),
    "masks": masks,
    "resumed": lambda directory: resumed(directory),
    "train": lambda directory: train(directory / "two"),
    "classifier": classifier,
    "full_disk": full_disk,
}


def main() -> None:
    what, directory = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    assert uf.__version__
    with launched() as (rank, size):
        assert size == 2
        torch.save(WHAT[what](directory), directory / f"{what}-{rank}.pt")


if __name__ == "__main__":
    main()
