"""Where a forward call's seed comes from, and what else makes a run the same as the last one.

rng.py makes the masks of a seed.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ulmfit_fast.system import scoped

__all__ = ["draw_seed", "initialize_vector_functions", "own_generators", "seeds_from"]

# What the blocks of `own_generators` found, in the order in which they began.
_OPEN: list[dict[torch.Generator, Tensor]] = []
_LOCK = threading.Lock()


def draw_seed(generator: torch.Generator | None = None) -> Tensor:
    """Draw a 63-bit seed from PyTorch's CPU generator, so that `torch.manual_seed` rules.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> seed = draw_seed()
        >>> seed.dtype, seed.shape
        (torch.int64, torch.Size([]))

    Args:
        generator: the CPU generator to draw from; None is PyTorch's default one.

    Returns:
        A 0-d int64 CPU tensor in [0, 2**63 - 1).
    """
    source: Callable[[], Tensor] | None = scoped.seed_source
    if source is not None and generator is None:
        return source()
    # On the CPU, whatever the default device is.
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device="cpu", generator=generator)


@contextmanager
def seeds_from(source: Callable[[], Tensor]) -> Iterator[None]:
    """Have `draw_seed` take its seeds from elsewhere, as a CUDA graph must, whose seeds change.

    For the thread, or asyncio task, that the block runs in.

    Example:
        >>> with seeds_from(lambda: torch.tensor(7)):
        ...     draw_seed()
        tensor(7)

    Args:
        source: returns a 0-d int64 tensor at each call, on any device.
    """
    with scoped.setting("seed_source", source):
        yield


@functools.cache
def initialize_vector_functions() -> None:
    """Have MKL's vector functions find out the processor now, in one thread.

    They do so at the first call of a process, without a lock, and write it down twice: as found,
    then as the column of their tables. A thread that calls between the two takes a kernel of
    another accuracy (seen: e**x wrong by 1.5e-4), so that now and then the same run with the
    same seed has other last digits, on an Intel processor with AVX-512 and two threads.

    Example:
        >>> initialize_vector_functions()

    Source:
        Seen in oneMKL 2024.0.2, which PyTorch 2.13.0 holds: mkl_vml_serv_cpu_detect.
    """
    # One element is one thread's.
    torch.exp(torch.zeros(1, dtype=torch.float32, device="cpu"))


@contextmanager
def own_generators(seed: int | None = None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Let the block draw from PyTorch's generators, and leave them as they were before it.

    They are the CPU's and the device's: no other device's is touched, nor seeded. Blocks of several
    threads draw from the same ones; when all have ended, these are as before the first.

    Example:
        >>> before = torch.get_rng_state()
        >>> with own_generators(7):
        ...     _ = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True

    Args:
        seed: where they start in the block; None goes on from where they are.
        device: what is computed on.
    """
    generators = [torch.default_generator, *_generators_of(torch.device(device))]
    with _LOCK:
        states = {generator: generator.get_state() for generator in generators}
        _OPEN.append(states)
    try:
        if seed is not None:
            for generator in generators:
                generator.manual_seed(seed)
        yield
    finally:
        with _LOCK:
            place = next(i for i, own in enumerate(_OPEN) if own is states)
            later = _OPEN[place + 1 :]
            del _OPEN[place]
            for generator, state in states.items():
                # A block that began within this one, and goes on, found what this one had seeded.
                still_open = next((own for own in later if generator in own), None)
                if still_open is None:
                    generator.set_state(state)
                else:
                    still_open[generator] = state


def _generators_of(device: torch.device) -> list[torch.Generator]:
    if device.type == "mps":
        return [torch.mps._get_default_mps_generator()]
    if device.type not in ("cuda", "xpu"):
        return []
    module = torch.get_device_module(device)
    module.init()
    index = module.current_device() if device.index is None else device.index
    return [module.default_generators[index]]
