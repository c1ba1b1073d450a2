"""Imports go downwards only, as the table in CONTRIBUTING.md says, and nowhere in a circle."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOPS = {"ulmfit_fast": ROOT / "ulmfit_fast", "kernels": ROOT / "kernels"}
BENCHMARKS = {"benchmarks": ROOT / "benchmarks"}


def named(tops):
    """Return the files below some folders, by dotted name; `__init__` keeps its name."""
    found = {}
    for top, folder in tops.items():
        prefix = ("ulmfit_fast", "kernels") if top == "kernels" else (top,)
        for path in folder.rglob("*.py"):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts)] = path
    return found


def imported(path, name, files):
    """Return the files that one imports, wherever in it and for whatever reason."""
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            wanted = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for dotted in wanted:
            while dotted and dotted not in files and f"{dotted}.__init__" not in files:
                dotted = dotted.rpartition(".")[0]
            if dotted:
                yield dotted if dotted in files else f"{dotted}.__init__"


def graph_of(files):
    return {name: {*imported(path, name, files)} - {name} for name, path in files.items()}


FILES = named(TOPS)
GRAPH = graph_of(FILES)
ROWS = re.findall(
    r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$",
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    flags=re.M,
)
FLOORS = {wing: int(floor) for floor, wings, _ in ROWS for wing in re.findall(r"`(\w+)`", wings)}


def wing(name):
    return name.split(".")[1]


def test_the_table_names_every_wing_and_no_other():
    assert set(FLOORS) == {wing(name) for name in FILES}
    assert [int(floor) for floor, *_ in ROWS] == list(range(len(ROWS)))


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_go_downwards(name):
    for other in GRAPH[name]:
        assert wing(other) == wing(name) or FLOORS[wing(other)] < FLOORS[wing(name)], (
            f"{name} imports {other}, which is not on a floor below"
        )


def test_only_four_wings_open_the_door_to_the_kernels():
    doors = {wing(name) for name, others in GRAPH.items() for o in others if wing(o) == "kernels"}
    assert doors <= {"kernels", "rng", "backend", "lstm", "functional"}


def circles(graph):
    """Return what is left when what imports nothing that is left is taken away, again and again."""
    left = dict(graph)
    while True:
        free = [name for name, others in left.items() if not others & left.keys()]
        if not free:
            break
        for name in free:
            del left[name]
    # What only stands above a circle is no part of it.
    while True:
        wanted = set().union(*left.values()) if left else set()
        above = [name for name in left if name not in wanted]
        if not above:
            return sorted(left)
        for name in above:
            del left[name]


def folders(graph):
    """Return the same among folders: a wing's own files, and each folder in it, are one room."""
    rooms = {}
    for name, others in graph.items():
        room = name.rpartition(".")[0] if name.count(".") > 1 else name
        found = rooms.setdefault(room, set())
        found |= {o.rpartition(".")[0] if o.count(".") > 1 else o for o in others} - {room}
    return rooms


def without_doors(graph):
    """Leave out each package's `__init__`, which offers what is in its folder."""
    return {
        name: {o for o in others if not o.endswith("__init__")}
        for name, others in graph.items()
        if not name.endswith("__init__")
    }


@pytest.mark.parametrize("tops", [TOPS, BENCHMARKS], ids=["package", "benchmarks"])
def test_no_file_and_no_folder_is_in_a_circle(tops):
    graph = without_doors(graph_of(named(tops)))
    assert circles(graph) == []
    assert circles(folders(graph)) == []


def test_a_circle_is_found():
    graph = {"a.b.c": {"a.d.e"}, "a.d.e": {"a.d.f"}, "a.d.f": {"a.b.g"}, "a.b.g": set()}
    assert circles(graph) == []
    assert circles(folders(graph)) == ["a.b", "a.d"]
    assert circles({**graph, "a.b.g": {"a.b.c"}}) == ["a.b.c", "a.b.g", "a.d.e", "a.d.f"]


# From the ground up; a folder imports from those before it alone, the programs on top from all.
BENCH_FLOORS = ["harness", "compared", "questions", "compile", "real_data"]


def test_rooms_of_the_benchmarks_import_downwards():
    graph = graph_of(named(BENCHMARKS))
    for name, others in graph.items():
        for other in others:
            if other.count(".") < 2:
                assert name.count(".") < 2, f"{name} imports {other}, a program"
            elif name.count(".") > 1 and wing(name) != wing(other):
                below = BENCH_FLOORS[: BENCH_FLOORS.index(wing(name))]
                assert wing(other) in below, f"{name} imports {other} from above"


def test_kernels_stay_flat_but_for_those_of_a_cpu_and_import_torch_and_triton_alone():
    paths = list(TOPS["kernels"].rglob("*.py"))
    assert paths
    for path in paths:
        assert path.parent in (TOPS["kernels"], TOPS["kernels"] / "cpu")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                allowed = {"torch", "triton", *sys.stdlib_module_names}
                own = name.startswith("ulmfit_fast.kernels")
                assert own or name.split(".")[0] in allowed, f"{path.name} imports {name}"
