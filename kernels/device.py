"""What a device has, as far as the choice of form and tiles depends on it."""

from typing import NamedTuple

import torch

__all__ = ["Device", "describe_device"]

# Shared memory that a block may ask for, in bytes, by compute capability.
_SHARED_MEMORY = {
    (8, 0): 166_912,
    (8, 6): 101_376,
    (8, 7): 166_912,
    (8, 9): 101_376,
    (9, 0): 232_448,
    (10, 0): 232_448,
    (10, 3): 232_448,
    (12, 0): 101_376,
}


class Device(NamedTuple):
    """What the choice depends on.

    Attributes:
        kind: "cuda", "hip", or "interpreter".
        capability: compute capability, (9, 0) for sm_90.
        multiprocessors: how many; a block of the persistent form takes one for itself.
        shared_memory: bytes that one block may ask for.
    """

    kind: str
    capability: tuple
    multiprocessors: int
    shared_memory: int


def describe_device(device):
    """Return the `Device` of a torch.device.

    Args:
        device: a cuda device (AMD's as well); any other one is the interpreter.
    """
    if device.type != "cuda":
        return Device("interpreter", (0, 0), 1, 1 << 30)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return Device("hip", (0, 0), properties.multi_processor_count, 65_536)
    capability = (properties.major, properties.minor)
    shared = getattr(properties, "shared_memory_per_block_optin", None)
    return Device(
        "cuda",
        capability,
        properties.multi_processor_count,
        shared or _SHARED_MEMORY.get(capability, 49_152),
    )
