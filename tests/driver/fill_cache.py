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
import shutil
import sys
import tempfile
from pathlib import Path

import listening

ROOT = Path(__file__).parents[2]
# A launch needs its code and what is known of it; the stages before it are for people.
_KEPT = (".cubin", ".json")


def fill() -> None:
    """Run each kernel of the stages once."""
    import torch

    from benchmarks import first_run
    from benchmarks.compared import baselines, lm_ours
    from benchmarks.harness.settings import Settings
    from benchmarks.questions import layers, lm_step
    from benchmarks.warm import Share
    from ulmfit_fast.nn import LanguageModel

    settings = Settings.of("cuda", share=Share(0, 1))
    first_run.steps(settings, print)
    widths, batch_size = (400, 1152), 64
    weights = baselines.make_weights(widths, "cuda")
    for gate_p in (0.0, first_run.GATE_P):
        for make in first_run.forms(settings, weight_p=first_run.WEIGHT_P, gate_p=gate_p).values():
            made = make(weights)
            if not made.kernels:
                continue
            x = torch.randn(2, batch_size, widths[0], device="cuda")
            grad = torch.randn(2, batch_size, widths[1], device="cuda")
            layers.step_of(made.run, made, [x], grad, "training")(0)
    asked = lm_step.problem(settings)
    for config in (asked.config, lm_step.without_dropout(asked.config)):
        for dtype in lm_step.dtypes(settings):
            # A fake device's model is made where it is, not moved there.
            step = lm_ours.make_step(LanguageModel(config, device="cuda"), dtype)
            ids = torch.randint(
                2, config.vocab_size, (asked.steps + 1, asked.batch_size), device="cuda"
            )
            for _ in range(2):
                step(ids[:-1].contiguous(), ids[1:].contiguous())


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
    options = parser.parse_args()
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise SystemExit("no C++ compiler: the listening device needs one, install g++ or clang")
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = str(directory.resolve())
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as library:
        listening.build(compiler, library)
        listener = listening.connect(library)
        import triton
        from triton.runtime import cache

        if options.libtriton:
            key = key_for(options.libtriton)
            cache.triton_key = lambda: key
        with listener:
            fill()
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
