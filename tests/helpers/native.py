"""Whether the C kernels are compiled here, and how a test goes without them."""

import pytest

from ulmfit_fast.kernels.cpu import library


def compiled():
    return library.library() is not None


needs_native = pytest.mark.skipif(
    not compiled(), reason=f"the C kernels are not here: {library.status()}"
)


# What auto takes on a CPU of a call that any backend can run.
AUTO = "native" if compiled() else "torch"


def switch_off(monkeypatch, why="switched off in a test"):
    """Have the package find no C kernels."""
    monkeypatch.setattr(library, "_found", (None, why))
