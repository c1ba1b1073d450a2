"""Imports go downwards only, and only functional.py and fused.py open the door to the kernels."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ulmfit_fast"

# From the ground up; a module may import from its own floor and those below.
FLOORS = [
    {"kernels"},
    {
        "rng",
        "scoped",
        "seeds",
        "masks",
        "reference",
        "eager",
        "eager_backward",
        "eager_steps",
        "backend",
        "checks",
        "lazy",
    },
    {"operators"},
    {"functional", "fused", "fused_checks", "linear_cross_entropy"},
    {"nn"},
    {
        "optim",
        "data",
        "progress",
        "files",
        "locks",
        "directories",
        "outputs",
        "distributed",
        "report",
    },
    {
        "lm_step",
        "captured_step",
        "classifier_step",
        "shared_batch",
        "loss_readings",
        "settings",
        "plan",
        "precision",
    },
    {
        "training",
        "epochs",
        "history",
        "runs",
        "evaluation",
        "checkpoint",
        "model_schema",
        "model_weights",
    },
    {"lm_stage"},
    {"pipeline", "lr_finder", "lr_curve", "generation", "saliency", "serving"},
    {"presets"},
    {"estimator", "estimator_base", "estimator_checks", "estimator_settings", "estimator_weights"},
    {"ensemble", "sklearn_classifier"},
    {"compat"},
    {"demo", "ablation"},
    {
        "cli",
        "__main__",
    },
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_of(path):
    if path.parent.name == "kernels":
        return f"ulmfit_fast.kernels.{path.stem}"
    return ".".join(("ulmfit_fast", *path.relative_to(PACKAGE).with_suffix("").parts))


def imported(path):
    """Return the dotted names of everything a file imports from this package."""
    parts = module_of(path).split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_downwards(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in FLOOR_OF, f"{own} has no floor: give it one in this test"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "ulmfit_fast":
            continue
        # The package itself stands on everything but the command line.
        room = parts[1] if len(parts) > 1 and parts[1] != "__version__" else "demo"
        assert room in FLOOR_OF, f"{path.name} imports {name}, a room without a floor"
        assert FLOOR_OF[room] <= FLOOR_OF[own], f"{path.name} imports {name} from above"
        assert room != "kernels" or own in ("functional", "fused")


def test_kernels_stay_flat_and_import_torch_and_triton_alone():
    paths = list((ROOT / "kernels").rglob("*.py"))
    assert paths
    for path in paths:
        assert path.parent == ROOT / "kernels"
        for name in imported(path):
            own = name.startswith("ulmfit_fast.kernels")
            allowed = {"torch", "triton", *sys.stdlib_module_names}
            assert own or name.split(".")[0] in allowed, f"{path.name} imports {name}"
