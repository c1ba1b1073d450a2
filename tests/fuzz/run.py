"""Fuzz a target of `targets.py` guided by the lines that its inputs reach.

python tests/fuzz/run.py --seconds 60 csv        one target; needs the package atheris
python tests/fuzz/run.py --seconds 60            all of them, one after the other

A failing input is written to --out, and `--input FILE TARGET` runs it once more.
"""

import argparse
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"))
    parser.add_argument("--input", type=Path, help="run a target on this file alone")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.in_process:
        fuzz(chosen.target[0], chosen)
    from targets import TARGETS

    names = chosen.target or list(TARGETS)
    for name in names:
        if name not in TARGETS:
            parser.error(f"target is {name!r}, expected one of {', '.join(TARGETS)}")
    if chosen.input is not None:
        TARGETS[names[0]](chosen.input.read_bytes())
        return 0
    return max(run(name, chosen) for name in names)


def run(name: str, chosen: argparse.Namespace) -> int:
    """Fuzz in a process of its own, since libFuzzer ends the one that it is in."""
    options = ["--seconds", str(chosen.seconds), "--seed", str(chosen.seed), "--out", chosen.out]
    command = [sys.executable, __file__, name, *map(str, options), "--in-process"]
    log = subprocess.run(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, check=False)
    text = log.stdout.decode("utf-8", "replace")
    found = re.findall(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)", text, re.MULTILINE)
    if found:
        first, last = next((f for f in found if int(f[0]) > 2), found[0]), found[-1]
        print(
            f"{name}: {int(last[0]):,} executions, coverage {first[1]} -> {last[1]} edges, "
            f"{last[3]} inputs kept, {'FAILED' if log.returncode else 'no failure'}",
            flush=True,
        )
    if log.returncode or not found:
        print(text[-6_000:], flush=True)
    return int(log.returncode != 0)


def fuzz(name: str, chosen: argparse.Namespace) -> None:
    import atheris

    # Each row that is skipped would be told.
    logging.disable()
    with atheris.instrument_imports(include=["ulmfit_fast", "csv", "json", "pickletools", "gzip"]):
        from targets import TARGETS, seeds
    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    chosen.out.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={chosen.seconds}", "-rss_limit_mb=6000", "-timeout=30"]
    arguments = [f"-seed={chosen.seed}", "-max_len=20000", f"-artifact_prefix={chosen.out}/{name}-"]
    atheris.Setup([sys.argv[0], *limits, *arguments, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
