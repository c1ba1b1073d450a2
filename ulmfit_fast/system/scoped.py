"""What a `with` block sets for the code inside it, and for no other thread or asyncio task.

The values are read as attributes of this module. Dynamo cannot trace `ContextVar.get`; an attribute
it takes, and guards on it, so that what was compiled in one block is compiled anew in another.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

__all__ = ["ignoring", "setting"]

_Blocks = tuple[list[Any], ...]

_VARIABLES: dict[str, ContextVar[_Blocks]] = {
    name: ContextVar(f"ulmfit_fast.{name}", default=()) for name in ("backend", "seed_source")
}


# Filters of warnings belong to the process: of two threads that each put back what they found, one
# could put back, for good, what the other had set.
_FILTERS = threading.RLock()


def __getattr__(name: str) -> Any:
    """Return what the innermost block sets, or None outside of all of them."""
    variable = _VARIABLES.get(name)
    if variable is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    blocks = variable.get()
    if not blocks and torch._C._is_key_in_tls("context"):
        # In a thread of autograd's own PyTorch leaves the context that the backward was called in.
        context = torch._C._get_obj_in_tls("context")
        blocks = () if context is None else context.get(variable, ())
    return next((block[0] for block in reversed(blocks) if block), None)


@contextmanager
def setting(name: str, value: object) -> Iterator[None]:
    """Set an attribute of this module while the block runs.

    Example:
        >>> from ulmfit_fast.system import scoped
        >>> with setting("backend", "eager"):
        ...     scoped.backend
        'eager'

    Args:
        name: "backend" or "seed_source".
        value: what is read inside; not in threads that are started there.
    """
    variable, own = _VARIABLES[name], [value]
    variable.set((*variable.get(), own))
    try:
        yield
    finally:
        # Blocks of two generators may end in the order in which they began, and one of a generator
        # in another context than it began in: what is taken out is this block, wherever it stands.
        left = tuple(block for block in variable.get() if block is not own)
        if len(left) == len(variable.get()):
            own.clear()
        variable.set(left)


@contextmanager
def ignoring(category: type[Warning], message: str = "") -> Iterator[None]:
    """Ignore warnings while the block runs, in one thread after the other.

    Example:
        >>> with ignoring(UserWarning):
        ...     warnings.warn("seen by nobody", stacklevel=1)

    Args:
        category: class of the warnings.
        message: regular expression that their beginning matches.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message, category)
        yield
