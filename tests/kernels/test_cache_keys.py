"""What names a compiled kernel in Triton's cache, which other processes read."""

import importlib
import os
from pathlib import Path

import pytest

import ulmfit_fast

runtime = pytest.importorskip("triton.runtime")
from ulmfit_fast.kernels import launch  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)


def functions():
    """Return all that Triton compiles, by module and name."""
    found = {}
    for path in sorted(Path(launch.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"{ulmfit_fast.__name__}.kernels.{path.stem}")
        for name, value in vars(module).items():
            if isinstance(value, runtime.JITFunction) and value.fn.__module__ == module.__name__:
                found[f"{path.stem}.{name}"] = value
    return found


def keys(order, monkeypatch):
    """Return the keys of kernels that are launched in an order, in a new process."""
    for function in functions().values():
        monkeypatch.setattr(function, "hash", None)
        monkeypatch.setattr(function, "used_global_vals", {})
    monkeypatch.setattr(launch, "_keyed", set())
    made = {}
    for name in order:
        launch.give_key(functions()[name])
        made[name] = functions()[name].cache_key
    return made


def test_a_kernels_key_does_not_depend_on_those_launched_before(monkeypatch):
    kernels = [name for name in functions() if name.endswith("_kernel")]
    assert len(kernels) >= 9
    wanted = keys(kernels, monkeypatch)
    for first in kernels:
        assert keys([first], monkeypatch)[first] == wanted[first]
    assert keys(kernels[::-1], monkeypatch) == wanted
