"""Pages that stand elsewhere, in the repository or in the program, become pages of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import commands
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {
    "index.md": "README.md",
    "examples.md": "examples/README.md",
    "kernels.md": "kernels/README.md",
    "compile_report.md": "kernels/compile_report.md",
    "running_benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
# The target of a link or an image within the repository, and its anchor.
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=(?:#[^)]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, that of the commands, and what the committed benchmarks drew and measured."""
    sources = {name: ROOT / source for name, source in PAGES.items()}
    sources |= {f"results/{path.name}": path for path in _results(".png", ".csv", ".json")}
    for name, path in sources.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, "commands.md", content=commands.page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at pages, and show the benchmarks' plots below their text, and all rows."""
    place = page.file.src_uri
    source = PAGES.get(place, f"docs/{place}")

    def on_site(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[0]))
        return posixpath.relpath(_page(target), posixpath.dirname(place) or ".")

    markdown = _LINK.sub(on_site, markdown)
    if place != "benchmarks.md":
        return markdown
    plots = [
        f"![{path.stem}](results/{path.name})"
        for path in _results(".png")
        if not path.name.startswith("ablation_")
    ]
    rows = [f"- [`{path.name}`](results/{path.name})" for path in _results(".csv")]
    return "\n\n".join([markdown, "## Plots", *plots, "## All rows", "\n".join(rows)])


def _page(target: str) -> str:
    """Return where on the site a file of the repository is; mkdocs refuses what is not there."""
    pages = {source: name for name, source in PAGES.items()}
    for folder, prefix in (("docs/", ""), ("benchmarks/results/", "results/")):
        if target.startswith(folder):
            return prefix + target.removeprefix(folder)
    return pages.get(target, target)


def _results(*suffixes: str) -> list[Path]:
    return sorted(path for path in RESULTS.iterdir() if path.suffix in suffixes)
