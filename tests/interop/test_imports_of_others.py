"""The package takes what other libraries make, and imports none of them to find out."""

import subprocess
import sys

OTHERS = ["datasets", "onnx", "onnxscript", "pandas", "polars", "pyarrow", "tensorboard"]


def test_the_whole_api_imports_none_of_them():
    program = (
        "import sys, ulmfit_fast as uf\n"
        "uf.LSTM, uf.ULMFiT, uf.convert_lstm\n"
        f"print(*[name for name in {OTHERS} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
