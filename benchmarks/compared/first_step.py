"""Times the first steps of one implementation in a fresh process.

    python -m benchmarks.compared.first_step NAME DEVICE DTYPE E H B T

prints the seconds of the import, of the first training step and of the second one, as JSON.
"""

from __future__ import annotations

import time

_START = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402


def main(arguments: list[str]) -> None:
    """Import, make the layer, step twice."""
    name, device, dtype_name, *sizes = arguments
    import torch

    input_size, hidden_size, batch_size, steps = map(int, sizes)
    dtype = getattr(torch, dtype_name)
    make = {"device": device, "dtype": dtype}
    if name == "nn.LSTM":
        layer = torch.nn.LSTM(input_size, hidden_size, **make)
    else:
        import ulmfit_fast as uf

        backend, _, compiled = name.partition("+")
        layer = uf.LSTM(input_size, hidden_size, weight_p=0.5, backend=backend, **make)
        if compiled:
            layer = torch.compile(layer, fullgraph=True)
    seconds = {"import": time.perf_counter() - _START}
    x = torch.randn(steps, batch_size, input_size).to(**make)
    for passes in ("first step", "second step"):
        start = time.perf_counter()
        layer(x)[0].sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds[passes] = time.perf_counter() - start
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
