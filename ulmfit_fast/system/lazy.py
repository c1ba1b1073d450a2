"""What a package offers is there from the start, and imported when it is first asked for."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["lazy_attributes"]


def lazy_attributes(
    package: str,
    public: Iterable[str] = (),
    objects: Mapping[str, str] | None = None,
    needs: Mapping[str, str] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`, which know its submodules.

    What they find does not depend on what was imported before.

    Example:
        >>> find, names = lazy_attributes("ulmfit_fast.data")
        >>> find("tables").__name__, "tables" in names()
        ('ulmfit_fast.data.tables', True)

    Args:
        package: full name of the package.
        public: its `__all__`. A package that keeps none of its own is asked for it here.
        objects: names that submodules define, each with the submodule's name.
        needs: submodules that cannot be imported without another package, each with that package:
            where it is missing, neither they nor their objects are listed.

    Returns:
        The two functions.
    """
    public, objects, needs = list(public), objects or {}, needs or {}

    @functools.cache
    def submodules() -> frozenset[str]:
        # The first entry alone: what stands beside a source checkout is no part of the package.
        # A module that is no package has none.
        found = pkgutil.iter_modules(list(vars(sys.modules[package]).get("__path__", ()))[:1])
        # The command line is a program: importing it may end the process.
        return frozenset(
            module.name for module in found if not module.name.startswith(("_", "cli"))
        )

    def can_be_had(name: str) -> bool:
        needed = needs.get(objects.get(name, name))
        return needed is None or importlib.util.find_spec(needed) is not None

    def get(name: str) -> Any:
        if name in objects:
            return getattr(importlib.import_module(f"{package}.{objects[name]}"), name)
        if name in submodules():
            return importlib.import_module(f"{package}.{name}")
        if name == "__all__" and public:
            return list(filter(can_be_had, public))
        message = f"module {package!r} has no attribute {name!r}"
        # An error that says its name gets no second suggestion from Python.
        raise AttributeError(message + _near(name, names()), name=name)

    def names() -> list[str]:
        own = {name for name in vars(sys.modules[package]) if name.startswith("__")}
        return sorted(own.union(filter(can_be_had, {*public, *objects, *submodules()})))

    return get, names


def _near(name: str, names: list[str]) -> str:
    if name.startswith("_"):
        return ""
    import difflib

    # A class stands before the module of its name, and is the one that is kept.
    lower = {other.lower(): other for other in reversed(names)}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.75)
    return f". Did you mean: {lower[near[0]]!r}?" if near else ""
