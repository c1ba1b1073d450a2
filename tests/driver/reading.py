"""What a host reads of a listening device, and copies, and keeps in files; a line of JSON for each.

Run as `python reading.py DIRECTORY`, where the library is: it must be there before torch is. Each
line is out before the next begins, which may take the process with it.
"""

import copy
import gc
import json
import sys
import tempfile

import listening

listener = listening.connect(sys.argv[1])

import numpy as np  # noqa: E402
import programs  # noqa: E402
import safetensors  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

from ulmfit_fast.nn import AWDLSTMConfig, LanguageModel  # noqa: E402
from ulmfit_fast.training.stages import TrainingSettings, build_classifier  # noqa: E402


def told(function, *args):
    """Return what it returns, or the class of its error."""
    try:
        return function(*args)
    except Exception as error:
        return type(error).__name__


def lists():
    device, host = torch.rand(2, 3, device="cuda"), torch.rand(2, 3)
    counts = torch.arange(3, device="cuda")
    return [
        device.tolist(),
        host.tolist(),
        counts.tolist(),
        counts[0].tolist(),
        device[:0].tolist(),
    ]


def arrays():
    host = torch.rand(2, 3)
    found = host.numpy(), np.asarray(host), torch.arange(3).numpy(), host.cuda().numpy(force=True)
    return [[str(array.dtype), array.tolist()] for array in found]


def refused():
    host = torch.rand(2)
    return {
        "of a device": told(host.cuda().numpy),
        "with a gradient": told(torch.rand(2, requires_grad=True).numpy),
        "no such dtype": told(host.bfloat16().numpy),
        "apply_": told(host.apply_, lambda value: value),
        "map_": told(host.map_, host, lambda value, other: value),
        "from_dlpack": told(torch.from_dlpack, host),
        "data_ptr": host.data_ptr(),
    }


def copies():
    """Build classifiers on copies of encoders that are gone then; the heap is whole afterwards."""
    config, parts = AWDLSTMConfig.language_model(5_000), []
    for _ in range(15):
        model = LanguageModel(config)
        classifier = build_classifier(model, config, 2, TrainingSettings())
        parts.append(sum(p.requires_grad for p in classifier.parameters()))
        for _ in range(20):
            # Let glibc look through all that it holds.
            kept = [np.empty(size) for size in range(1, 30_000, 7)]
            del kept
        gc.collect()
    twice = torch.ones(2)
    one, other = copy.deepcopy([twice, twice])
    return [len(set(parts)), one is other, one is not twice, copy.deepcopy(model) is not model]


def files():
    kept = {"half": torch.rand(2, 3, device="cuda").bfloat16(), "count": torch.arange(4)}
    with tempfile.NamedTemporaryFile() as file:
        safetensors.torch.save_file({name: t.cpu() for name, t in kept.items()}, file.name)
        with safetensors.safe_open(file.name, "pt") as opened:
            found = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
        loaded = safetensors.torch.load_file(file.name)
    assert {name: t.tolist() for name, t in loaded.items()} == {
        name: t.tolist() for name, t in found.items()
    }
    return {name: [type(t).__name__, str(t.dtype), t.tolist()] for name, t in found.items()}


def generators():
    torch.manual_seed(3)
    torch.cuda.manual_seed_all(3)
    own, state = torch.cuda.get_rng_state(), torch.get_rng_state()
    # A state that has been in a file is no state here.
    torch.set_rng_state(state.clone())
    torch.cuda.set_rng_state(own.clone())
    torch.set_rng_state(state)
    return [own.dtype == torch.uint8, torch.cuda.default_generators[1].initial_seed()]


def waits():
    loss = torch.rand((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    found = [told(loss.item), told(loss.to, "cpu")]
    found.append(told(lambda: str(loss.to("cpu", non_blocking=True).shape)))
    torch.cuda.set_sync_debug_mode("default")
    return [*found, loss.item()]


def main():
    programs.stand_in()
    with listener:
        for scenario in (lists, arrays, refused, generators, waits, files, copies):
            print(json.dumps([scenario.__name__, told(scenario)]), flush=True)


main()
