"""The site shows everything that is public, and builds without a warning."""

import importlib
import importlib.util
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ulmfit_fast as uf

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = ["backend", "compat.fastai", "data", "functional", "nn", "optim", "presets", "rng"]
PACKAGES += ["runs", "serving"]
DIRECTIVES = {
    name
    for path in (DOCS / "reference").glob("*.md")
    for name in re.findall(r"^::: ([\w.]+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
}


def public_names():
    """Return the full name of each thing that is public, modules left out."""
    found = {}
    for package in ["", *PACKAGES]:
        path = f"ulmfit_fast.{package}".rstrip(".")
        module = importlib.import_module(path)
        found |= {f"{path}.{name}": getattr(module, name) for name in module.__all__}
    del found["ulmfit_fast.__version__"]
    return {name: thing for name, thing in found.items() if not inspect.ismodule(thing)}


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def resolved(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def shown(name, thing):
    """Return whether a directive names the thing, or a module that exports it."""
    for directive in DIRECTIVES:
        if not is_module(directive):
            if directive == name or resolved(directive) is thing:
                return True
        elif name.rpartition(".")[2] in (exporter := importlib.import_module(directive)).__all__:
            if getattr(exporter, name.rpartition(".")[2]) is thing:
                return True
    return False


def test_every_directive_names_something():
    assert DIRECTIVES
    for name in DIRECTIVES:
        assert is_module(name) or resolved(name) is not None


def test_every_public_module_is_listed_here():
    modules = {name for name in uf.__all__ if inspect.ismodule(getattr(uf, name))}
    assert modules <= {name.partition(".")[0] for name in PACKAGES}
    packages = {path.parent.name for path in (ROOT / "ulmfit_fast").glob("*/__init__.py")}
    with_names = {
        name
        for name in packages
        if hasattr(importlib.import_module(f"ulmfit_fast.{name}"), "__all__")
    }
    assert with_names <= {name.partition(".")[0] for name in PACKAGES}


@pytest.mark.parametrize(("name", "thing"), public_names().items(), ids=public_names())
def test_everything_public_is_in_the_reference(name, thing):
    assert shown(name, thing), f"no ::: of docs/reference shows {name}"


def test_every_page_of_the_reference_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"- (reference/\w+\.md)$", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(f"reference/{p.name}" for p in (DOCS / "reference").glob("*"))


PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
PAGES += [ROOT / folder / "README.md" for folder in ("benchmarks", "examples", "kernels")]


def heads(path):
    """Return the anchors that GitHub and mkdocs make of a page's headings."""
    lines = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.+)$", lines, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in found}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_of_the_repository(path):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.is_file(), f"{target} is not there"
        # mkdocs makes the anchors of the reference, and checks them.
        if anchor and not anchor.startswith("ulmfit_fast"):
            assert anchor in heads(file), f"{target}: no such heading"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in DOCS.glob("*.md"):
        assert re.search(rf"- .+: {path.name}$", text, flags=re.MULTILINE), path.name


def test_the_page_of_commands_has_each_command_with_all_of_its_options():
    typer = pytest.importorskip("typer")
    from ulmfit_fast.cli.program import app

    page = runpy.run_path(str(DOCS / "commands.py"))["page"]()
    sections = dict(
        re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", page, flags=re.DOTALL | re.MULTILINE)
    )
    commands = typer.main.get_command(app).commands
    assert list(sections) == list(commands)
    for name, command in commands.items():
        rows = re.findall(r"^\| \**`([^ `,]+)[^`]*`\** \| \S", sections[name], flags=re.MULTILINE)
        options = [parameter.opts[0] for parameter in command.params]
        assert [row for row in rows if row[0] == "-"] == [one for one in options if one[0] == "-"]
        assert len(rows) == len(options)
        assert command.help in sections[name] and f"\nulmfit-fast {name}" in sections[name]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for module in ("mkdocs", "mkdocstrings_handlers.python"):
        if not is_module(module):
            pytest.skip(f"{module} is not installed: make docs")
    out = tmp_path_factory.mktemp("site")
    # With --quiet mkdocs counts no warnings, and so passes them.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return out


@pytest.mark.slow
def test_the_site_has_everything_public(site):
    pages = {path: path.read_text(encoding="utf-8") for path in site.glob("reference/*/index.html")}
    text = "\n".join(pages.values())
    things = public_names()
    anchors = {anchor for anchor in re.findall(r'id="(ulmfit_fast[\w.]+)"', text)}
    for name, thing in things.items():
        # The kinds of masks have no paragraphs of their own, but a table.
        assert name in anchors or name.rpartition(".")[2] in text, name
        if inspect.isclass(thing) or inspect.isfunction(thing):
            same = {other for other, twin in things.items() if twin is thing}
            assert same & anchors, name


@pytest.mark.slow
def test_the_site_shows_doctests_as_code_and_no_quotation(site):
    page = (site / "reference" / "nn" / "index.html").read_text(encoding="utf-8")
    assert "&gt;&gt;&gt;" in page and "<blockquote" not in page


@pytest.mark.slow
def test_the_site_has_the_maths_and_the_plots(site):
    assert "Backward" in (site / "kernels" / "index.html").read_text(encoding="utf-8")
    assert "sm_90 persistent" in (site / "compile_report" / "index.html").read_text("utf-8")
    pages = [(site / name / "index.html").read_text("utf-8") for name in ("benchmarks", "ablation")]
    for plot in (ROOT / "benchmarks" / "results").glob("*.png"):
        assert any(f"results/{plot.name}" in page for page in pages)
        assert (site / "results" / plot.name).stat().st_size


@pytest.mark.slow
def test_the_notebook_runs_and_is_kept_without_its_output(tmp_path):
    for module in ("nbconvert", "ipykernel", "sklearn"):
        if not is_module(module):
            pytest.skip(f"{module} is not installed: make docs")
    notebook = json.loads((ROOT / "examples" / "tickets.ipynb").read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    for name in ("tickets.ipynb", "make_tickets.py"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    command = [sys.executable, "-m", "nbconvert", "--to", "markdown", "--execute", "tickets.ipynb"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "tickets.md").read_text(encoding="utf-8")
    scores = re.search(r"^ *accuracy +(\S+) .*\) +(\S+) .*\) +(\S+) ", text, re.MULTILINE)
    ours, _, majority = map(float, scores.groups())
    assert "<progress " in text and "left of the" not in text
    assert "200 texts, 4 classes" in text and ours >= 0.85 > 0.5 > majority
    assert "Accuracy" in (tmp_path / "classifier" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_site_needs_no_other_host(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img|link)[^>]+(src|href)="(https?:)?//', text), path
