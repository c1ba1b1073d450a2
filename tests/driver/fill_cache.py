"""Fill a cache with what `benchmarks.first_run` compiles, on a machine without a GPU.

    python tests/driver/fill_cache.py DIRECTORY [--libtriton FILE]

The stages run on a device that only listens, so that each variant is asked for as on a GPU, here a
Hopper one. A cache is one Triton's: run this with the version that the GPU's machine has. If that
one is built for another Python, name its `triton/_C/libtriton.so`, the only file of Triton by which
the two builds differ. `benchmarks.first_run --cache DIRECTORY` takes it wherever it lies.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import listening

ROOT = Path(__file__).parents[2]
# A launch needs its code and what is known of it; the stages before it are for people.
_KEPT = (".cubin", ".json")
_STAGES = ("values", "steps", "capture", "lm_step")


def fill(only: list[str] | None) -> None:
    """Run stages, and unless it is only some, what a report compiles ahead of its questions."""
    from benchmarks import first_run, warm
    from benchmarks.harness.settings import Settings
    from benchmarks.questions.all import QUESTIONS

    def check(row: dict[str, Any]) -> None:
        if first_run.failed(row):
            raise SystemExit(f"this must run on a device that only listens: {row}")

    settings = Settings.of("cuda", repeats=1)
    for stage in only or _STAGES:
        getattr(first_run, stage)(settings, check)
    for note in settings.notes:
        check({"note": note})
    if not only:
        warm.work(Settings.of("cuda", share=warm.Share(0, 1)), warm.to_compile(list(QUESTIONS)))


def key_for(libtriton: Path) -> str:
    """Return the part of a key that names this Triton, as that build of it would."""
    from triton._C import libtriton as own
    from triton.runtime import cache

    digests = [
        hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in (own.__file__, libtriton)
    ]
    key: str = cache.triton_key()
    assert digests[0] in key
    return key.replace(*digests)


def main() -> int:
    """Fill the directory and say how large it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--libtriton", type=Path, help="that of a build for another Python")
    parser.add_argument("--only", nargs="+", choices=_STAGES, help="for these stages alone")
    options = parser.parse_args()
    compiler = listening.find_compiler()
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = str(directory.resolve())
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as library:
        listening.build(compiler, library)
        listener = listening.connect(library)
        import programs
        import triton
        from triton.runtime import cache

        programs.stand_in()

        if options.libtriton:
            key = key_for(options.libtriton)
            cache.triton_key = lambda: key
        with listener:
            fill(options.only)
    names = [event["name"] for event in listener.events if event["what"] == "load"]
    size = 0
    for path in directory.rglob("*"):
        if path.is_file() and path.suffix not in _KEPT:
            path.unlink()
        elif path.is_file():
            size += path.stat().st_size
    print(f"{len(names)} kernels, {size / 1e6:.1f} MB, for Triton {triton.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
