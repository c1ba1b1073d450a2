"""What two processes do in the tests that start some; run by them, with torchrun's variables set.

    python tests/helpers/two_processes.py WHAT DIRECTORY

Each process writes what it found to DIRECTORY/WHAT-<rank>.pt.
"""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from mortal_runs import Died, MortalRun
from small_models import CONFIG, documents

import ulmfit_fast as uf
from ulmfit_fast.data import ClassifierBatches, LMBatches, Tokenizer, concatenate_documents
from ulmfit_fast.nn import LanguageModel, language_model_loss
from ulmfit_fast.system.distributed import launched, world
from ulmfit_fast.training.classifier_step import ClassifierStep
from ulmfit_fast.training.evaluation import recalibrate_batch_norm
from ulmfit_fast.training.lm_step import LanguageModelStep
from ulmfit_fast.training.objective import Objective
from ulmfit_fast.training.stages import (
    TrainingSettings,
    build_classifier,
    fit_classifier,
    train_language_model,
)

HERE = Path(__file__)
PLAIN = replace(
    CONFIG, input_p=0.0, hidden_p=0.0, embed_p=0.0, weight_p=0.0, gate_p=0.0, output_p=0.0
)
UNFREEZING = TrainingSettings(
    batch_size=2, bptt=5, lr=0.02, epochs=5, gradual_unfreezing=1, valid_share=0.3, patience=2
)
FITTING = TrainingSettings(batch_size=4, bptt=5, lr=0.02, epochs=4, gradual_unfreezing=1)
VALIDATED = replace(FITTING, patience=1, lr=0.1, epochs=6)
# Of the five texts of a batch that two processes share, one has the texts that count least.
WEIGHTS = torch.tensor([0.25, 3.0, 0.0, 1.0, 0.5]).double().repeat(6)
TOKENIZER = Tokenizer.train(["a fine film"] * 3, min_freq=1)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_two(*command, timeout=200):
    """Run a command in two processes with torchrun's variables; return their results."""
    own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # Without the network's names, which a sealed machine may not resolve.
    own |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ended = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *output) for p, output in zip(processes, ended, strict=True)]


def two(directory, *names):
    """Do some of `WHAT` in two processes, one after the other; return both results of each."""
    for code, _, error in in_two(HERE, directory, *names):
        assert code == 0, error[-3000:]
    return {name: [torch.load(directory / f"{name}-{rank}.pt") for rank in range(2)]
            for name in names}  # fmt: skip


def steps(batch_size, part=(0, 1), config=PLAIN, count=3):
    """Take steps, with the first layer group frozen in the second one."""
    torch.manual_seed(0)
    model = LanguageModel(config).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = LanguageModelStep(model, optimizer, objective=Objective(clip=0.5))
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
    torch.manual_seed(1)
    model = LanguageModel(CONFIG)
    run = MortalRun(directory, at, checkpoint_steps=4, **options)
    history = train_language_model(
        model, documents(60), UNFREEZING, seed=3, run=run, tokenizer=TOKENIZER
    )
    return {
        "losses": history.losses.tolist(),
        "valid_losses": history.valid_losses,
        "weights": [p.detach() for p in model.parameters()],
        "generator": torch.get_rng_state(),
    }


def killed_and_resumed(train, deaths, directory):
    """Return a run that was never stopped, and one that was, at some steps."""
    for n, at in enumerate(deaths):
        try:
            train(directory / "killed", at, resume=n > 0)
        except Died:
            continue
        raise AssertionError("not killed")
    whole = train(directory / "whole")
    return {"whole": whole, "again": train(directory / "killed", resume=True)}


def masks(directory):
    """Return the losses and states of steps with dropout on."""
    from ulmfit_fast.system.distributed import own_masks

    torch.manual_seed(9)
    with own_masks(torch.device("cpu")):
        drawn = int(torch.randint(2**40, ()))
        found = {"drawn": drawn, **steps(2, world(), CONFIG)}
    return {"after": torch.rand(()).item(), **found}


def without_dropout_in_the_head(model):
    for module in model.head:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def classifier_steps(weights=None):
    """Take steps on uneven batches, one of them too small for two, with AR, TAR and clipping."""
    torch.manual_seed(0)
    model = build_classifier(None, PLAIN, 3, TrainingSettings(bptt=4))
    model.max_len = 6
    without_dropout_in_the_head(model).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = ClassifierStep(model, optimizer, objective=Objective(clip=0.5), weights=weights)
    found = {"losses": [], "grads": []}
    texts = documents(12)
    # Of the last batch's texts one process has none but an empty one, which has no tokens to train.
    for n, own in enumerate((texts[:5], texts[5:10], texts[10:11], [texts[11], []])):
        for group in model.layer_groups()[:-1]:
            for parameter in group:
                parameter.requires_grad_(n != 1)
        labels = torch.arange(len(own)) % 3
        (batch,) = ClassifierBatches(own, labels, batch_size=8)
        found["losses"].append(list(step(*batch)))
        found["grads"].append([None if p.grad is None else p.grad.clone()
                               for p in model.parameters()])  # fmt: skip
    recalibrate_batch_norm(model, ClassifierBatches(texts, torch.zeros(12).long(), batch_size=5))
    found["state"] = {name: value.clone() for name, value in model.state_dict().items()}
    return found


def fit(directory, at=None, settings=FITTING, config=CONFIG, weights=None, **options):
    torch.manual_seed(1)
    model = build_classifier(None, config, 2, settings)
    if config is PLAIN:
        without_dropout_in_the_head(model).double()
    run = MortalRun(directory, at, checkpoint_steps=2, **options)
    labels = torch.arange(30) % 2
    valid = (documents(41)[30:], labels[:11]) if settings.keeps_best else None
    history = fit_classifier(
        model, documents(30), labels, settings, weights=weights, valid=valid, seed=3, run=run,
        tokenizer=TOKENIZER,
    )  # fmt: skip
    return {
        "losses": history.losses.tolist(),
        "valid": (history.valid_losses, history.valid_scores),
        "weights": list(model.state_dict().values()),
        "generator": torch.get_rng_state(),
    }


def full_disk(directory):
    """The first process cannot write; both are to end."""
    from ulmfit_fast.runs import checkpoints

    def fail(path, state):
        raise OSError(28, "No space left on device")

    written = checkpoints.write_state
    if world().rank == 0:
        checkpoints.write_state = fail
    try:
        train(directory)
    except OSError as error:
        return {"error": str(error)}
    finally:
        checkpoints.write_state = written
    raise AssertionError("written")


def plain_losses(prepare, steps=5):
    """Train a whole model by hand, as PyTorch's or others' wrappers see it."""
    torch.manual_seed(0)
    model = LanguageModel(PLAIN)
    model, optimizer = prepare(model, lambda p: torch.optim.Adam(p, lr=0.01))
    text = torch.randint(2, 14, (steps, 9, 3), generator=torch.Generator().manual_seed(4))
    losses = []
    for batch in text:
        loss = language_model_loss(model(batch[:-1]), batch[1:])
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.total.item())
    return losses


def fsdp2(directory):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world().size,))

    def prepare(model, make):
        fully_shard(model, mesh=mesh)
        return model, make(model.parameters())

    return {"losses": plain_losses(prepare)}


def accelerate(directory):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    return {"losses": plain_losses(lambda m, make: accelerator.prepare(m, make(m.parameters())))}


WHAT = {
    "fsdp2": fsdp2,
    "accelerate": accelerate,
    "gradients": lambda directory: steps(2, world()),
    "masks": masks,
    "resumed": partial(killed_and_resumed, train, (3, 6, 13)),
    "train": lambda directory: train(directory / "two"),
    "classifier": lambda directory: classifier_steps(),
    "weighted_classifier": lambda directory: classifier_steps(WEIGHTS[:5]),
    "weighted_fit": lambda directory: fit(directory / "two", config=PLAIN, weights=WEIGHTS),
    "fit": lambda directory: fit(directory / "two", config=PLAIN),
    "validated_fit": lambda directory: fit(directory / "two", settings=VALIDATED, config=PLAIN),
    "fit_and_resume": partial(killed_and_resumed, fit, (1, 4, 9)),
    "full_disk": full_disk,
}


def main() -> None:
    directory, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    assert uf.__version__
    with launched() as (rank, size):
        assert size == 2
        for name in names:
            torch.save(WHAT[name](directory / name), directory / f"{name}-{rank}.pt")
    # Those of gloo that outlive the group can abort the process as it ends. FSDP's mesh keeps it.
    threads = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
    assert "fsdp2" in names or not any("gloo" in thread for thread in threads), threads


if __name__ == "__main__":
    main()
