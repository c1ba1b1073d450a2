"""The first ten minutes on a GPU: are the kernels right, how fast are they, can a step be captured?

    python -m benchmarks.first_run --out DIR

Each stage is a process of its own, with a time limit, and writes each result as it comes: what
fails, hangs or is killed leaves the results before it, and the stages after it run. All of them
share one of Triton's caches, so that nothing is compiled twice; `--cache` names a folder that
`tests/driver/fill_cache.py` has filled, wherever it lies now. `--dry-run` walks the same path on a
CPU, at tiny shapes, with the kernels in the Triton interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from benchmarks.harness.rows import Row
    from benchmarks.harness.settings import Settings
    from benchmarks.questions.layers import Make

Write = Callable[[dict[str, Any]], None]
ROOT = Path(__file__).parents[1]
SUMMARY = "first_run.json"
WEIGHT_P, GATE_P = 0.5, 0.1
_PR_SET_PDEATHSIG = 1


def compiled(settings: Settings, write: Write) -> None:
    """Compile what the other stages run, on all cores."""
    from benchmarks import warm

    if settings.cuda:
        warm.compile_all(settings, ["layer"])


def forms(settings: Settings, **drops: float) -> dict[str, Make]:
    """Return the makers of our layer in each form, by the form's name."""
    from benchmarks.compared import baselines
    from benchmarks.questions import layers

    names = (*baselines.KERNELS, baselines.RESIDENT, "eager")
    return {form: layers.ours(settings, form, **drops) for form in names}


def values(settings: Settings, write: Write) -> None:
    """Compare outputs and gradients of each form with float64, with dropout."""
    import torch

    from benchmarks.compared import baselines
    from benchmarks.harness import check
    from benchmarks.harness.timing import UNABLE

    widths = settings.sized((), (400, 1152), (6, 16))
    steps, batch_size = settings.sized((0, 0), (70, 64), (3, 2))
    torch.manual_seed(0)
    weights = baselines.make_weights(widths, settings.device)
    x = torch.randn(steps, batch_size, widths[0]).to(settings.device)
    grad = torch.randn(steps, batch_size, widths[1]).to(settings.device)
    for gate_p in (0.0, GATE_P):
        wanted = None
        drops = {"weight_p": WEIGHT_P, "gate_p": gate_p}
        for form, make in forms(settings, **drops).items():
            row: dict[str, Any] = {"form": form, "dtype": str(settings.dtype), **drops}
            start = time.perf_counter()
            try:
                made = make(weights)
                if wanted is None:
                    wanted = baselines.truth(made, weights, x, grad)
                error = check.error_of(baselines.results(made, x, grad), wanted)
                row |= {"error": error}
                row |= {"right": error <= check.tolerance(settings.dtype, settings.cuda)}
            except UNABLE as problem:
                row |= {"right": False, "failed": f"{type(problem).__name__}: {problem}"[:500]}
            write({**row, "seconds": time.perf_counter() - start})


def steps(settings: Settings, write: Write) -> None:
    """Time one step of a layer: cuDNN and each form, launched one by one and in a graph."""
    from benchmarks.compared.baselines import KERNELS, PLAIN, RESIDENT
    from benchmarks.questions.layers import compare_layers, ours, plain, today

    shapes: list[tuple[tuple[int, int], int]] = settings.sized(
        [],
        [((1152, 1152), 64), ((400, 1152), 64), ((1152, 400), 64), ((1152, 1152), 128)],
        [((6, 16), 2)],
    )
    length = settings.sized(0, 70, 2)
    for widths, batch_size in shapes:
        makers = [plain(settings), today(settings)]
        makers += [ours(settings, form) for form in (*KERNELS, RESIDENT)]
        compare_layers(
            settings,
            makers,
            question="first_run",
            widths=widths,
            batch_size=batch_size,
            steps=length,
            baseline=PLAIN,
        )


def capture(settings: Settings, write: Write) -> None:
    """Capture a training step of the language model, with and without dropout."""
    import torch

    from benchmarks.harness.timing import UNABLE
    from benchmarks.questions import lm_step as bench_lm_step

    asked = bench_lm_step.problem(settings)
    batches, turns = asked.batches(), settings.sized(0, 8, 2)
    for name, config in (
        ("all dropouts", asked.config),
        ("no dropout", bench_lm_step.without_dropout(asked.config)),
    ):
        row: dict[str, Any] = {"step": name}
        start = time.perf_counter()
        try:
            for kind in ("eager", "captured"):
                torch.manual_seed(0)
                capture_it = kind == "captured" and settings.cuda
                train, _ = bench_lm_step.make_ours(config, asked, settings.dtype, capture_it)
                losses = [train(*batches[turn % len(batches)]).item() for turn in range(turns)]
                row[kind] = losses
                begun = time.perf_counter()
                for turn in range(settings.sized(0, 20, 1)):
                    loss = train(*batches[turn % len(batches)])
                loss.item()
                row[f"{kind}_ms"] = 1e3 * (time.perf_counter() - begun) / (turn + 1)
            pairs = zip(row["eager"], row["captured"], strict=True)
            differences = [abs(a - b) / max(abs(a), 1e-30) for a, b in pairs]
            # NaN, which a failed replay shows as, is below nothing and above nothing.
            row["largest_difference"] = max(differences, key=lambda d: (d != d, d))
            row["right"] = row["largest_difference"] <= 1e-2
        except UNABLE as problem:
            row |= {"right": False, "failed": f"{type(problem).__name__}: {problem}"[:500]}
        write({**row, "seconds": time.perf_counter() - start})


def lm_step(settings: Settings, write: Write) -> None:
    """Time a training step of the language model beside plain PyTorch's, and its parts."""
    from benchmarks.questions import lm_step as bench_lm_step

    bench_lm_step.run(settings)


class Stage(NamedTuple):
    """A stage.

    Attributes:
        seconds: that it may take.
        run: its function, or the arguments of its program.
        real: what the program gets besides on a GPU.
        dry: what it gets besides in a dry run.
    """

    seconds: float
    run: Callable[[Settings, Write], None] | tuple[str, ...]
    real: tuple[str, ...] = ()
    dry: tuple[str, ...] = ()


# In the order of what one wants to know; the last takes what is left.
_TESTS = ("values", "launches", "language_model_step", "gpu_faults", "gpu_training")
_FILES = tuple(f"tests/gpu/test_{name}.py" for name in _TESTS)
_REPORT = ("benchmarks.report", "--out", "{out}/report", "--seconds", "{shorter}")
STAGES = {
    "compiled": Stage(120.0, compiled),
    "values": Stage(90.0, values),
    "steps": Stage(120.0, steps),
    "capture": Stage(60.0, capture),
    "lm_step": Stage(90.0, lm_step),
    "tests": Stage(180.0, ("pytest", "-q", "-p", "no:cacheprovider", *_FILES), real=("-m", "gpu")),
    "report": Stage(450.0, _REPORT, real=("--device", "cuda"), dry=("--dry-run",)),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; returns 1 if one of them failed, was wrong or was left out."""
    options = _parser().parse_args(arguments)
    if options.stage:
        _work(options)
        return 0
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    if (out / SUMMARY).exists():
        raise SystemExit(f"{out} holds a run already: give this one another --out")
    end = time.monotonic() + options.seconds
    summary: dict[str, Any] = {}
    _keep(out, summary)
    environment = dict(os.environ)
    if options.cache:
        relocate(options.cache)
        environment["TRITON_CACHE_DIR"] = str(options.cache.resolve())
    if options.dry_run:
        environment["TRITON_INTERPRET"] = "1"
    environment["ULMFIT_FAST_GPU_RESULTS"] = str(out.resolve() / "tests.json")
    for name in options.only or STAGES:
        # The interpreter takes its time.
        longest = min(STAGES[name].seconds * (4 if options.dry_run else 1), end - time.monotonic())
        if longest < 5.0:
            summary[name] = {"ended": "left out: the time was up"}
        else:
            print(f"{name}, {longest:.0f} s at most", flush=True)
            summary[name] = _run(name, _command(name, longest, options), longest, out, environment)
        _keep(out, summary)
        print(f"  {summary[name]['ended']}", flush=True)
    for line in highlights(out, summary):
        print(line)
    return int(any(stage["ended"] != "well" for stage in summary.values()))


def _keep(out: Path, summary: dict[str, Any]) -> None:
    # Renamed into place, so that a kill leaves the old one or the new one.
    unfinished = out / f"{SUMMARY}.tmp"
    unfinished.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(out / SUMMARY)


def relocate(cache: Path) -> None:
    """Let a cache of Triton's that lies elsewhere now name its files where they are.

    Args:
        cache: the directory; a group of files is named there by absolute paths.
    """
    for path in cache.resolve().glob("*/__grp__*.json"):
        named = json.loads(path.read_text(encoding="utf-8"))["child_paths"]
        here = {name: str(path.parent / name) for name in named}
        if named != here:
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps({"child_paths": here}), encoding="utf-8")
            unfinished.replace(path)


def highlights(out: Path, summary: dict[str, Any]) -> Iterator[str]:
    """Yield what is most worth reading, a line each."""
    for name in summary:
        for row in _rows(out / f"{name}.jsonl"):
            if name == "values" and "form" in row:
                error = row.get("failed", row.get("error"))
                yield f"{row['form']:20} gate_p {row['gate_p']}: {error}"
            elif name == "steps" and row.get("median_us"):
                per_step = row["median_us"] / row["steps"]
                shape = f"{row['input_size']}->{row['hidden_size']} B={row['batch_size']}"
                which = f"{row['implementation']}, {row['launched']}"
                yield f"{shape:16} {row['passes']:9} {which:42} {per_step:8.2f} us a step"
            elif name == "capture" and "step" in row:
                ms = f"{row.get('eager_ms', 0):.1f} ms, captured {row.get('captured_ms', 0):.1f} ms"
                yield f"{row['step']:12} {ms}; {row.get('failed', row.get('largest_difference'))}"
            elif name == "lm_step" and row.get("passes") == "step" and row.get("median_us"):
                which = f"{row['implementation']}, {row['launched']}, {row['dtype']}"
                yield f"{which:42} {row['median_us'] / 1e3:8.2f} ms, {row['times_as_fast']} times"
            elif "note" in row:
                yield f"{name:10} {row['note']}"
    for name, stage in summary.items():
        yield f"{name:10} {stage['ended']}" + (
            f", {stage['seconds']:.0f} s" if "seconds" in stage else ""
        )


def failed(row: dict[str, Any]) -> bool:
    """Say whether a row is of something of ours that is wrong, or remarks that it raised."""
    return row.get("right") is False or row.get("note", "").startswith("ulmfit_fast")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        # The last one may have been cut off by a kill.
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def _command(name: str, longest: float, options: argparse.Namespace) -> list[str]:
    stage = STAGES[name]
    run = stage.run
    if not isinstance(run, tuple):
        run = ("benchmarks.first_run", "--stage", name, "--out", "{out}", "--seconds", "{seconds}")
        run = (*run, "--dry-run") if options.dry_run else run
    # The report, where its time is short, ends by itself, with its plots.
    words = {"out": str(options.out), "seconds": f"{longest:.0f}"}
    words["shorter"] = f"{max(1.0, longest - 30.0):.0f}"
    given = [word.format(**words) for word in run]
    return [sys.executable, "-u", "-m", *given, *(stage.dry if options.dry_run else stage.real)]


def _run(
    name: str, command: list[str], longest: float, out: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """Run a stage and say how it ended; whatever it started ends with it."""
    start = time.monotonic()
    with (out / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=longest)
            ended = "well" if code == 0 else f"with exit code {code}: see {name}.log"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {longest:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    wrong = [row for row in _rows(out / f"{name}.jsonl") if failed(row)]
    if ended == "well" and wrong:
        ended = f"with {len(wrong)} wrong or failed: see {name}.jsonl"
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1)}


def _work(options: argparse.Namespace) -> None:
    """Run one stage in this process."""
    if sys.platform == "linux":
        # Should the process that waits for this one be killed, this one ends as well.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    from triton import knobs

    import ulmfit_fast as uf
    from benchmarks.harness.settings import Settings

    stage = STAGES[options.stage].run
    assert not isinstance(stage, tuple)
    with (options.out / f"{options.stage}.jsonl").open("w", encoding="utf-8") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

        def keep(row: Row) -> None:
            write(asdict(row))

        class Notes(list[str]):
            """Remarks, each written as it is made: a stage that is stopped has said them."""

            def append(self, text: str) -> None:
                super().append(text)
                write({"note": text})

        counts = {"compiled": 0, "from_cache": 0}

        def listen(**event: Any) -> None:
            counts["from_cache" if event["cache_hit"] else "compiled"] += 1

        knobs.compilation.listener = listen
        if options.dry_run:
            import torch

            settings = Settings.of("cpu", gpu=True, tiny=True, repeats=1, keep=keep, notes=Notes())
            # oneDNN has no LSTM in float16 under autocast; PyTorch's own operations have.
            torch.backends.mkldnn.enabled = False
            with uf.backend.use("triton"):
                stage(settings, write)
        else:
            stage(Settings.of("cuda", keep=keep, notes=Notes()), write)
        write({"kernels": counts})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--cache", type=Path, help="folder of compiled kernels, read and written")
    parser.add_argument("--dry-run", action="store_true", help="a GPU's path on a CPU, tiny shapes")
    parser.add_argument("--only", nargs="+", choices=STAGES, help="these alone, in this order")
    parser.add_argument("--seconds", type=float, default=570.0, help="of all stages together")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
