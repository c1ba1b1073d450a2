"""Does every kernel that ships compile, within the device's limits, without spills or double work?

No GPU is needed. The launchers run on buffers without data, and what they would launch is compiled
for sm_80, sm_90, sm_100 and gfx942: a selection in a minute or two, or, as in CI, all of it:

    python -m benchmarks.compile_gate
    python -m benchmarks.compile_gate --all --write kernels/compile_report.md
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import triton

from benchmarks.compile.expect import expect, faults, loaded_in_a_step
from benchmarks.compile.inspect import Found, compile_launch, read, work
from benchmarks.compile.record import record
from benchmarks.compile.variants import TARGETS, Variant, alternatives, selection, variants
from ulmfit_fast.system.files import write_text

REPORT = Path(__file__).parents[1] / "kernels" / "compile_report.md"


class Result(NamedTuple):
    """A compiled variant.

    Attributes:
        name: the variant's.
        default: whether its form is the one that is chosen when none is asked for.
        tile: its tiles.
        found: what was compiled; None where the form cannot run.
        product_work: multiplications done over those needed, 1 where no work is doubled.
        loaded: bytes that a block asks of global memory in a time step; None where that is not
            counted.
        faults: what is wrong with it.
        note: why the form cannot run, or is not the default one.
    """

    name: str
    default: bool
    tile: Any
    found: Found | None
    product_work: float | None
    faults: list[str]
    note: str
    loaded: int | None = None


def inspect(variant: Variant) -> Result:
    """Compile a variant and compare it with what is expected."""
    launch, tile, default, note = record(variant)
    if launch is None:
        return Result(str(variant), False, None, None, None, [], note)
    warps = launch.options["num_warps"]
    try:
        found = read(compile_launch(launch, TARGETS[variant.arch]))
    except Exception as error:
        # One variant that does not compile must not hide the others.
        why = str(error).split("\n")[0][:200].replace("|", "/")
        text = f"does not compile: {type(error).__name__}: {why}"
        if variant.alternative is not None:
            return Result(str(variant), default, tile, None, None, [], text)
        return Result(str(variant), default, tile, None, None, [text], note)
    expected = expect(variant, tile)
    ratio = expected.product and work(found.products, warps, expected.product)
    wrong = faults(variant, expected, found, default, ratio)
    loaded = loaded_in_a_step(variant, expected, found, warps)
    if variant.alternative is not None:
        # Nobody runs it unasked: what is wrong with it is a finding.
        note, wrong = "; ".join(wrong), []
    return Result(str(variant), default, tile, found, ratio, wrong, note, loaded)


def distinct(wanted: Iterable[Variant]) -> dict[str, list[Variant]]:
    """Group variants that are one compiled kernel."""
    groups: dict[str, list[Variant]] = {}
    for variant in wanted:
        launch, _, _, note = record(variant)
        key = f"{variant.arch} {launch.key()}" if launch else f"{variant} {note}"
        groups.setdefault(key, []).append(variant)
    return groups


def line(result: Result) -> str:
    """Return a result as a row of the table."""
    found = result.found
    tile = "" if result.tile is None else "/".join(str(int(n)) for n in result.tile)
    words = "; ".join([*result.faults, *([result.note] if result.note else [])])
    if found is None:
        return f"| {result.name} | | {tile} | | | | | | | | | | | | {words} |"
    products = ", ".join(f"{count} {name}" for name, count in found.products.items())
    spilled = f"{found.spilled} ({found.local_accesses})" if found.spilled else "0"
    cells = (result.name, "yes" if result.default else "", tile, found.shared, found.registers)
    loop = found.loop
    turn = (loop.instructions, loop.inner or "", loop.barriers, loop.waits, loop.special)
    cells = (*cells, spilled, products, found.resident or "", loop.code)
    cells = (*cells, *(turn if loop.instructions else ("",) * 5))
    cells = (*cells, "" if result.loaded is None else f"{result.loaded / 1024:.1f}", words)
    return "| " + " | ".join(map(str, cells)) + " |"


COLUMNS = (
    *("variant", "default", "tile", "shared", "registers", "spilled", "products", "resident"),
    *("code", "turn", "inner", "barriers", "waits", "special", "loads", ""),
)
TABLE = f"""| {" | ".join(COLUMNS)} |
{"|---" * len(COLUMNS)}|
"""
HEAD = f"""# What the kernels compile to

Written by `python -m benchmarks.compile_gate --all --write kernels/compile_report.md`, on a machine
without a GPU, with Triton {triton.__version__}.
Default: the form that runs when none is asked for; it may not spill.
Tile: the fields of the variant's tile in tiles.py, in their order.
Spilled: bytes of a thread's stack and the instructions that touch it, on gfx942 registers.
Resident: tiles of the weight in shared memory before the time loop.
Inner: instructions of a loop within the time loop that has the products, which turns once a K tile;
where there is one, the other counts have a single turn of it, and the loads have all.
Code: instructions of the whole kernel; turn: those of the loop that has the products, which turns
once a time step in the persistent form and once for some K tiles in the stepwise one.
Barriers, waits, special: of a turn, barriers of the block, waits for products or copies, and
exponentials and quotients. A wait that polls other blocks, which the grid barrier is, counts once.
Loads: KiB that a block asks of global memory in a time step, as the instructions stand; its blocks
ask L2 for as many times more. Not counted on gfx942, nor of
the small kernels.

{TABLE}"""
OTHERS = f"""
## What is not chosen

The weight on chip, which `form="resident"` asks for, and the alternatives of
`benchmarks/compared/alternatives.py`: hypotheses for a GPU to judge, and nothing that runs unasked.
What is wrong with one is said in the last column.

{TABLE}"""


def unlisted(report: str) -> list[str]:
    """Return the variants without a row in a report, and the rows without a variant."""
    listed = {row.split("|")[1].strip() for row in report.splitlines() if row.startswith("| ")}
    wanted = set(map(str, [*variants(), *alternatives()]))
    return sorted(listed - {"variant"} ^ wanted)


def main(argv: list[str] | None = None) -> int:
    """Compile, print, and return 1 for any fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="the whole matrix, not a selection")
    parser.add_argument("--write", type=Path, help="write the table to this file")
    parser.add_argument("--check", action="store_true", help="only look for gaps in the report")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile at once"
    )
    args = parser.parse_args(argv)
    if args.check:
        gaps = unlisted(REPORT.read_text(encoding="utf-8"))
        print("\n".join(gaps) or f"{REPORT.name} lists every variant")
        return 1 if gaps else 0
    started = time.perf_counter()
    wanted = [*variants(), *alternatives()] if args.all else selection()
    groups = list(distinct(wanted).values())
    results = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        # In order of arrival the table would differ from run to run.
        for group, result in zip(groups, pool.map(inspect, [g[0] for g in groups]), strict=True):
            results += [result._replace(name=str(variant)) for variant in group]
            print(line(result), flush=True)
    wrong = [result for result in results if result.faults]
    for result in wrong:
        print(f"FAULT {result.name}: {'; '.join(result.faults)}")
    others = set(map(str, alternatives()))
    table = HEAD + "".join(line(r) + "\n" for r in results if r.name not in others)
    table += OTHERS + "".join(line(r) + "\n" for r in results if r.name in others)
    stale = False
    if args.write:
        write_text(args.write, table)
    elif args.all:
        committed = REPORT.read_text(encoding="utf-8")
        # Another Triton compiles to something else; the report says which one it is of.
        stale = f"with Triton {triton.__version__}." in committed and committed != table
        if stale:
            print(f"STALE {REPORT.name}: what was compiled differs; write it with --write")
    seconds = time.perf_counter() - started
    print(
        f"{len(results)} variants, {len(groups)} compiled in {seconds:.0f} s, {len(wrong)} faults"
    )
    return 1 if wrong or stale else 0


if __name__ == "__main__":
    sys.exit(main())
