"""Run `benchmarks.first_run` on a device that only listens, its stages the processes that they are.

    python tests/driver/rehearse.py --out DIR

takes the arguments of `benchmarks.first_run`. All is compiled, launched and captured as on a Hopper
GPU, and nothing computed: what is read back is 0, so each comparison agrees, and times are those of
the launches on the host. Without `--cache` everything is compiled anew. Of the GPU's tests those
fail that ask for more than zeros; none may take the process with it. Stages have eight times as
long as on a GPU; give all of them together that with `--seconds`.
"""

import os
import sys
import tempfile
from pathlib import Path

import listening

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Fake tensors take more of a CPU's time than a GPU takes of its own.
_TIMES_AS_LONG = 8


def main(arguments):
    """Run it; returns its exit code."""
    sys.path.insert(0, str(ROOT))
    from benchmarks import first_run

    first_run.STAGES = {
        name: stage._replace(seconds=_TIMES_AS_LONG * stage.seconds)
        for name, stage in first_run.STAGES.items()
    }
    with tempfile.TemporaryDirectory() as made:
        library = Path(made, "library")
        library.mkdir()
        listening.build(listening.find_compiler(), library)
        os.environ.pop("TRITON_INTERPRET", None)
        os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (HERE / "site", ROOT)))
        os.environ["ULMFIT_FAST_LISTENING"] = str(library)
        os.environ["TRITON_CACHE_DIR"] = str(Path(made, "cache"))
        return first_run.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
