"""Draw the committed rows, and write the tables of docs/benchmarks.md and README.md from them.

python -m benchmarks.plots          # PNGs beside each CSV
python -m benchmarks.plots --docs   # and both documents between their markers
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import tables
from benchmarks.harness.machine import ROOT
from benchmarks.harness.rows import RESULTS, Row, read_rows
from ulmfit_fast.system.files import file_in_place, write_text

BEGIN, END = "<!-- speed: python -m benchmarks.plots --docs -->", "<!-- end of speed -->"


def result_files(folder: Path = RESULTS) -> list[Path]:
    """Return the files of rows, one a device."""
    return sorted([*folder.glob("cpu_*.csv"), *folder.glob("cuda_*.csv")])


def section(folder: Path = RESULTS) -> str:
    """Return all tables of all devices, with the markers."""
    parts = [tables.device(read_rows(path), path.name) for path in result_files(folder)]
    return "\n\n".join([BEGIN, *parts, END])


def summary(folder: Path = RESULTS) -> str:
    """Return the short table of a CPU and of a GPU, those with most rows, with the markers."""
    most: dict[str, tuple[list[Row], str]] = {}
    for path in result_files(folder):
        rows, kind = read_rows(path), path.name.partition("_")[0]
        if kind not in most or len(rows) > len(most[kind][0]):
            most[kind] = rows, path.name
    parts = [tables.summary(rows, name) for rows, name in most.values()]
    return "\n\n".join([BEGIN, *parts, END])


# Both hold the markers, each with what its function writes between them.
DOCUMENTS: dict[str, Callable[[], str]] = {"README.md": summary, "docs/benchmarks.md": section}


def rewrite(document: str, new: str) -> str:
    """Put a new section between the markers of a document."""
    before, _, rest = document.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the document has no {BEGIN!r} with {END!r} after it")
    return before + new + after


def draw(rows: Sequence[Row], folder: Path, stem: str) -> list[Path]:
    """Draw what there are rows for; returns the paths of the PNGs.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    drawn = []
    for name, fill in (("layers", _layers), ("scaling", _scaling), ("lm_step", _parts)):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        if fill(figure, [row for row in rows if row.median_us is not None]):
            path = folder / f"{stem}_{name}.png"
            with file_in_place(path) as file:
                # Without its version and date the same rows give the same file.
                figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
            drawn.append(path)
    return drawn


def _layers(figure, rows: Sequence[Row]) -> bool:
    chosen = [
        row
        for row in rows
        if row.question in ("layer", "stack") and row.passes == "training"
        if row.dtype == _main_dtype(rows)
    ]
    shapes = list(dict.fromkeys(_shape(row) for row in chosen))
    names = list(dict.fromkeys((row.implementation, row.launched) for row in chosen))
    if not shapes:
        return False
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for index, (name, launched) in enumerate(names):
        found = {_shape(r): r for r in chosen if (r.implementation, r.launched) == (name, launched)}
        places = [i + index * width for i, shape in enumerate(shapes) if shape in found]
        heights = [found[shape].median_us / 1000 for shape in shapes if shape in found]
        label = name if launched == "eager" else f"{name}, graph"
        axes.bar(places, heights, width, align="edge", label=label)
    axes.set_xticks([i + 0.4 for i in range(len(shapes))], shapes, fontsize=8)
    axes.set_ylabel("forward + backward, ms")
    axes.set_title(f"LSTM layers, {chosen[0].dtype}, {chosen[0].device}")
    axes.legend(fontsize=8)
    return True


def _scaling(figure, rows: Sequence[Row]) -> bool:
    chosen = [row for row in rows if row.question == "scaling" and row.launched == "eager"]
    if not chosen:
        return False
    base = chosen[0]
    sizes = {"batch_size": "B", "steps": "T", "hidden_size": "H"}
    for place, (field, letter) in enumerate(sizes.items(), start=1):
        axes = figure.add_subplot(1, 3, place)
        fixed = [name for name in sizes if name != field]
        line = [r for r in chosen if all(getattr(r, n) == getattr(base, n) for n in fixed)]
        for name in dict.fromkeys(row.implementation for row in line):
            own = sorted((getattr(r, field), r.median_us) for r in line if r.implementation == name)
            axes.plot(*zip(*own, strict=True), marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel=letter, title=f"in {letter}")
        axes.set_xticks(sorted({getattr(r, field) for r in line}), minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        if place == 1:
            axes.set_ylabel("forward + backward, us")
            axes.legend(fontsize=8)
    return True


def _parts(figure, rows: Sequence[Row]) -> bool:
    chosen = [row for row in rows if row.question == "lm_step" and row.launched == "eager"]
    parts = [row for row in chosen if row.passes != "step"]
    if not parts:
        return False
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row.implementation for row in parts))
    left = [0.0] * len(names)
    for part in dict.fromkeys(row.passes for row in parts):
        found = {row.implementation: row.median_us for row in parts if row.passes == part}
        widths = [found.get(name, 0.0) / 1000 for name in names]
        axes.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel("ms, each part forward and backward")
    axes.set_title(f"A training step of the language model, {parts[0].dtype}, {parts[0].device}")
    axes.legend(fontsize=8)
    return True


def _main_dtype(rows: Sequence[Row]) -> str:
    return "bfloat16" if any(r.cudnn for r in rows) else rows[0].dtype if rows else ""


def _shape(row: Row) -> str:
    name = "stack" if row.question == "stack" else f"{row.input_size}→{row.hidden_size}"
    return f"{name}\nB={row.batch_size}"


def main(arguments: list[str] | None = None) -> None:
    """Draw every committed file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--docs", action="store_true", help="rewrite the documents' tables too")
    options = parser.parse_args(arguments)
    for path in result_files():
        for drawn in draw(read_rows(path), path.parent, path.stem):
            print(drawn)
    if options.docs:
        for name, write in DOCUMENTS.items():
            path = ROOT / name
            text = rewrite(path.read_text(encoding="utf-8"), write())
            write_text(path, text)
            print(path)


if __name__ == "__main__":
    main()
