"""Pages that stand elsewhere in the repository become pages of the site, without a copy."""

from __future__ import annotations

from pathlib import Path

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
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and the plots and rows of the committed benchmarks."""
    sources = {name: ROOT / source for name, source in PAGES.items()}
    sources |= {f"results/{path.name}": path for path in _results(".png", ".csv")}
    for name, path in sources.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show every committed plot below the text on the benchmarks, with a link to all rows."""
    if page.file.src_uri != "benchmarks.md":
        return markdown
    plots = [f"![{path.stem}](results/{path.name})" for path in _results(".png")]
    rows = [f"- [`{path.name}`](results/{path.name})" for path in _results(".csv")]
    return "\n\n".join([markdown, "## Plots", *plots, "## All rows", "\n".join(rows)])


def _results(*suffixes: str) -> list[Path]:
    return sorted(path for path in RESULTS.iterdir() if path.suffix in suffixes)
