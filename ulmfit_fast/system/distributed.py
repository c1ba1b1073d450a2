"""Several processes on one training, with PyTorch's own engine: who is who, and what they share.

`torchrun` starts the processes; each reads its own streams of the text, with its own hidden state
and masks, and DistributedDataParallel averages the gradients. In one process all of this is absent.
"""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ulmfit_fast.system.seeds import own_generators

__all__ = [
    "World",
    "any_rank",
    "gathered",
    "launched",
    "mean_",
    "own_masks",
    "parallel",
    "rank_zero_only",
    "shared_text",
    "sum_",
    "world",
]


class World(NamedTuple):
    """The processes of a training.

    Attributes:
        rank: this one, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1


def world() -> World:
    """Return who this process is.

    >>> world()
    World(rank=0, size=1)
    """
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def launched() -> Iterator[World]:
    """Join the processes that `torchrun` has started; without it do nothing.

    NCCL carries CUDA tensors and gloo the others, whichever the model turns out to need.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield world()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # DistributedDataParallel imports this. Were it imported only then, its functions would keep the
    # group of that time as their default argument, and the group's threads would never end.
    from torch.distributed.nn import functional  # noqa: F401

    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield world()
    finally:
        # A DistributedDataParallel is in reference cycles, and holds the group. A thread of gloo
        # that still runs as Python shuts down, and drops the tensors of its last work only there,
        # aborts the process.
        gc.collect()
        dist.destroy_process_group()


def parallel(module: nn.Module) -> DistributedDataParallel:
    """Wrap a module so that its gradients are the means over the processes.

    Its buffers are each process's own business. To be made anew when other parameters are to be
    trained: it must know which have gradients to wait for.

    Args:
        module: with equal parameters in all processes.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # What PyTorch 2.13 calls it, and what it was called before.
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, **options)


def mean_(values: Tensor) -> Tensor:
    """Average a tensor over the processes, in place, and return it."""
    size = world().size
    if size > 1:
        dist.all_reduce(values)
        values /= size
    return values


def sum_(values: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place, and return it."""
    if world().size > 1:
        dist.all_reduce(values)
    return values


def any_rank(wanted: bool) -> bool:
    """Return whether any of the processes wants something; all get the same answer.

    Args:
        wanted: whether this one does.
    """
    if world().size == 1:
        return wanted
    vote = torch.tensor([int(wanted)], dtype=torch.int64, device="cpu")
    dist.all_reduce(vote, dist.ReduceOp.MAX)
    return bool(vote.item())


def gathered(values: Tensor) -> list[Tensor]:
    """Return a tensor of every process, in the order of their ranks, on the CPU.

    Args:
        values: of the same shape and dtype in all processes.
    """
    values = values.detach().cpu().contiguous()
    size = world().size
    if size == 1:
        return [values]
    found = [torch.empty_like(values) for _ in range(size)]
    dist.all_gather(found, values)
    return found


def shared_text(make: Callable[[], str]) -> str:
    """Have rank zero make a text, and return it in all of them.

    Args:
        make: called in rank zero alone.
    """
    rank, size = world()
    if size == 1:
        return make()
    data = make().encode() if rank == 0 else b""
    length = torch.tensor([len(data)], dtype=torch.int64, device="cpu")
    dist.broadcast(length, 0)
    content = torch.empty(int(length), dtype=torch.uint8, device="cpu")
    if rank == 0:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(content, 0)
    return content.numpy().tobytes().decode()


def rank_zero_only(work: Callable[[], object]) -> None:
    """Have rank zero do something while the others wait; all fail if it fails.

    Args:
        work: what to do.

    Raises:
        OSError: in the other processes, if rank zero failed; it raises its own error.
    """
    rank, size = world()
    error: BaseException | None = None
    if rank == 0:
        try:
            work()
        except Exception as raised:
            error = raised
    if size > 1:
        failed = torch.tensor([int(error is not None)], dtype=torch.int64, device="cpu")
        dist.broadcast(failed, 0)
        if bool(failed.item()) and error is None:
            raise OSError("the first process failed, see its message; mend that and start again")
    if error is not None:
        raise error


def own_masks(device: torch.device) -> AbstractContextManager[None]:
    """Give each process generators of its own in a block, so that their dropout masks differ.

    In one process nothing is drawn.

    Args:
        device: what the masks are made on.
    """
    rank, size = world()
    if size == 1:
        return nullcontext()
    base = int(torch.randint(0, 2**62, (), dtype=torch.int64, device="cpu"))
    return own_generators(base + rank, device)
