"""Answer all questions on this machine: check, time, print, and write the rows and the plots.

    python -m benchmarks.report --device cpu

On a GPU each implementation is checked first; one that is wrong gets no time. `--dry-run` walks the
whole path of a GPU at tiny shapes on a CPU, with the kernels in Triton's interpreter; its numbers
mean nothing and are never written to benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness.rows import RESULTS, Row, file_name, read_rows, write_rows

# The interpreter is chosen when Triton is imported; a dry run is a process of its own.
_INTERPRET = "TRITON_INTERPRET"
# Longest run, in seconds: nothing new begins after this, and the last group comes to its end.
_LONGEST = {"cpu": 510.0, "cuda": 450.0}


def main(arguments: list[str] | None = None) -> int:
    """Run the report; returns the exit code, 1 if an implementation was wrong."""
    options = _parser().parse_args(arguments)
    if options.dry_run and os.environ.get(_INTERPRET) != "1":
        command = [sys.executable, "-m", "benchmarks.report", *(arguments or sys.argv[1:])]
        return subprocess.run(command, env={**os.environ, _INTERPRET: "1"}, check=False).returncode
    if options.dry_run:
        with tempfile.TemporaryDirectory() as unused:
            return _report(options, options.out or Path(unused))
    return _report(options, options.out or RESULTS)


def _report(options: argparse.Namespace, out: Path) -> int:
    import torch

    import ulmfit_fast as uf

    if not options.dry_run:
        return _answer(options, out)
    enabled = torch.backends.mkldnn.enabled
    # oneDNN has no LSTM in float16 under autocast; PyTorch's own operations have.
    torch.backends.mkldnn.enabled = False
    try:
        # On a CPU "auto" would not take the kernels.
        with uf.backend.use("triton"):
            return _answer(options, out)
    finally:
        torch.backends.mkldnn.enabled = enabled


def _answer(options: argparse.Namespace, out: Path) -> int:
    import torch

    from benchmarks import goals, plots, warm
    from benchmarks.harness import roofline
    from benchmarks.harness.settings import Settings
    from benchmarks.questions.all import ON_REQUEST, QUESTIONS

    if (options.dry_run or options.tiny) and out.resolve() == RESULTS.resolve():
        raise SystemExit(
            "this run measures nothing: give it an --out other than benchmarks/results"
        )
    device = "cpu" if options.dry_run else options.device
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --dry-run walks its path without one")
    values = {"gpu": True, "tiny": True, "repeats": 1} if options.dry_run else {}
    if options.tiny:
        values["tiny"] = True
    if options.repeats:
        values["repeats"] = options.repeats
    settings = Settings.of(device, **values)
    began = time.perf_counter()
    longest = options.seconds or _LONGEST[settings.device]
    settings.end = began + longest
    facts = settings.facts
    name = file_name("dry_run" if options.dry_run else settings.device, facts["device"])
    for fact, value in facts.items():
        settings.say(f"{fact:8} {value}")
    if facts["dirty"]:
        settings.note("tracked files differ from the commit that the rows name")
    known = {**QUESTIONS, **ON_REQUEST}
    asked = options.only or list(QUESTIONS)
    if unknown := [question for question in asked if question not in known]:
        raise SystemExit(f"{unknown[0]} is no question; there are {', '.join(known)}")
    if settings.cuda:
        warm.compile_all(settings, asked)
    settings.say(f"ceilings {roofline.ceilings(settings)}")
    rows: list[Row] = []
    for question in asked:
        start = time.perf_counter()
        settings.say(question)
        rows += known[question](settings)
        settings.say(f"  {time.perf_counter() - start:.0f} s")
        # Written after each, so that a run that is cut off leaves what it has.
        write_rows(out / name, _with_others(out / name, rows, asked))
    settings.say("goals")
    for line in goals.lines(read_rows(out / name)):
        settings.say(f"  {line}")
    for note in settings.notes:
        settings.say(f"note: {note}")
    settings.say(f"{len(rows)} rows in {out / name}, {time.perf_counter() - began:.0f} s")
    try:
        for path in plots.draw(read_rows(out / name), out, name.removesuffix(".csv")):
            settings.say(f"plot {path}")
    except ImportError as error:
        settings.say(f"plots: left out, {error}")
    return 0 if all(row.right for row in rows) else 1


def _with_others(path: Path, rows: list[Row], asked: list[str]) -> list[Row]:
    """Keep the file's rows of questions that were not asked this time."""
    names = {"layer": {"layer", "stack", "layer_bfloat16"}}
    replaced = set().union(*(names.get(question, {question}) for question in asked))
    old = read_rows(path) if path.exists() else []
    return rows + [row for row in old if row.question not in replaced]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: cuda where there is one"
    )
    parser.add_argument("--out", type=Path, help="folder of the CSV and the plots")
    parser.add_argument("--dry-run", action="store_true", help="a GPU's path on a CPU, tiny shapes")
    parser.add_argument("--only", nargs="+", metavar="QUESTION", help="ask these alone, in order")
    parser.add_argument("--seconds", type=float, help="nothing begins after so many seconds")
    parser.add_argument("--repeats", type=int, help="samples of each time")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: run, measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
